//! NCCL on memory of our pools, on the driver's, and on pages that it may register.
//!
//! One process has all devices, and NCCL then reads other devices' buffers directly: our pages have to be open to the
//! peers. Multicast over NVLink stays off.

use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;
use std::time::Instant;

use alloc_core::AllocatorHandle;
use alloc_cuda::{CudaStream, DeviceOptions, DirectAllocator};
use alloc_pool::PoolConfig;
use anyhow::{bail, ensure};
use buffer::Buffer;
use cudarc::nccl::sys;

use crate::{Bench, are_peers};

/// One communicator for each device.
struct Comms(Vec<sys::ncclComm_t>);

fn check(call: &str, result: sys::ncclResult_t) -> anyhow::Result<()> {
    if result == sys::ncclResult_t::ncclSuccess {
        return Ok(());
    }
    // SAFETY: NCCL gives a C string of its own for any code.
    let text = unsafe { CStr::from_ptr(sys::ncclGetErrorString(result)) };
    bail!("{call}: {} ({result:?})", text.to_string_lossy())
}

impl Comms {
    fn new(count: u16) -> anyhow::Result<Self> {
        let devices: Vec<c_int> = (0..count).map(c_int::from).collect();
        let mut comms = vec![std::ptr::null_mut(); devices.len()];
        // SAFETY: both arrays have as many entries.
        let result = unsafe { sys::ncclCommInitAll(comms.as_mut_ptr(), devices.len() as c_int, devices.as_ptr()) };
        check("ncclCommInitAll", result)?;
        Ok(Self(comms))
    }

    /// A call for each device, as one operation.
    fn group(&self, mut each: impl FnMut(usize, sys::ncclComm_t) -> sys::ncclResult_t) -> anyhow::Result<()> {
        // SAFETY: no preconditions.
        check("ncclGroupStart", unsafe { sys::ncclGroupStart() })?;
        let results: Vec<_> = self.0.iter().enumerate().map(|(rank, comm)| each(rank, *comm)).collect();
        // SAFETY: the group was started.
        check("ncclGroupEnd", unsafe { sys::ncclGroupEnd() })?;
        results.into_iter().try_for_each(|result| check("a collective operation", result))
    }
}

impl Drop for Comms {
    fn drop(&mut self) {
        for comm in &self.0 {
            // SAFETY: the communicators are this one's, and their work was waited for.
            let _ = unsafe { sys::ncclCommDestroy(*comm) };
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Memory {
    Driver,
    Pool,
    Shareable,
}

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    if std::env::var_os("NCCL_NVLS_ENABLE").is_none_or(|value| value != "0") {
        bail!("NCCL_NVLS_ENABLE=0 has to be in the environment: multicast over NVLink stays off");
    }
    // SAFETY: looks for the library only.
    if !unsafe { sys::is_culib_present() } {
        bail!("libnccl.so is not found; PyTorch's package nvidia-nccl has one as libnccl.so.2");
    }
    let mut version = 0;
    // SAFETY: the out parameter is a local.
    check("ncclGetVersion", unsafe { sys::ncclGetVersion(&raw mut version) })?;
    bench.say(&format!("NCCL {}.{}.{}", version / 10_000, version / 100 % 100, version % 100));
    let comms = Comms::new(bench.count)?;
    let sizes: &[u64] = if bench.options.quick { &[1 << 20, 16 << 20] } else { &[1 << 20, 64 << 20, 256 << 20] };
    for bytes in sizes {
        let mut reference = [None; 2];
        for memory in [Memory::Driver, Memory::Pool, Memory::Shareable] {
            for registered in [false, true] {
                // Registration of the driver's memory is the older way's, and of no interest here.
                if memory == Memory::Driver && registered {
                    continue;
                }
                let found = one(bench, &comms, *bytes, memory, registered, reference)?;
                if memory == Memory::Driver {
                    reference = found.map(Some);
                }
            }
        }
    }
    Ok(())
}

fn allocator(bench: &Bench, ordinal: u16, memory: Memory) -> anyhow::Result<AllocatorHandle> {
    let peers = (0..bench.count).filter(|other| *other != ordinal && are_peers(ordinal, *other));
    let options = DeviceOptions::default().peers(peers).shareable(memory == Memory::Shareable);
    Ok(match memory {
        Memory::Driver => Arc::new(DirectAllocator::new(ordinal)?).into(),
        _ => alloc_cuda::device_pool(ordinal, &options, PoolConfig::default())?.into(),
    })
}

/// An all-reduce and an all-gather of so many bytes a device; what they took in seconds.
fn one(
    bench: &Bench,
    comms: &Comms,
    bytes: u64,
    memory: Memory,
    registered: bool,
    reference: [Option<f64>; 2],
) -> anyhow::Result<[f64; 2]> {
    let ranks = u64::from(bench.count);
    let method = match (memory, registered) {
        (Memory::Driver, _) => "cuMemAlloc",
        (Memory::Pool, false) => "pool",
        (Memory::Pool, true) => "pool, registered",
        (Memory::Shareable, false) => "pool, shareable",
        (Memory::Shareable, true) => "shareable, registered",
    };
    let elements = (bytes / 4) as usize;
    let streams = (0..bench.count).map(CudaStream::new).collect::<Result<Vec<_>, _>>()?;
    let mut sent = Vec::new();
    let mut reduced = Vec::new();
    let mut gathered = Vec::new();
    for (rank, stream) in streams.iter().enumerate() {
        let allocator = allocator(bench, rank as u16, memory)?;
        // Whole numbers, so that sums are exact in any order.
        let values: Vec<f32> = (0..elements).map(|index| (index % 1000 + rank) as f32).collect();
        sent.push(Buffer::from_slice_on(allocator.clone(), &values, stream.stream())?);
        reduced.push(Buffer::zeroed_on(allocator.clone(), bytes, stream.stream())?);
        gathered.push(Buffer::zeroed_on(allocator, bytes * ranks, stream.stream())?);
        stream.synchronize()?;
    }
    let mut handles = Vec::new();
    if registered {
        for (rank, comm) in comms.0.iter().enumerate() {
            for buffer in [&sent[rank], &reduced[rank], &gathered[rank]] {
                let mut handle = std::ptr::null_mut();
                // SAFETY: the range is the buffer's, which lives until it is deregistered below.
                let result =
                    unsafe { sys::ncclCommRegister(*comm, pointer(buffer), buffer.len() as usize, &raw mut handle) };
                check("ncclCommRegister", result)?;
                handles.push((*comm, handle));
            }
        }
    }
    let wait = || streams.iter().try_for_each(CudaStream::synchronize);
    let count = ((1 << 30) / bytes).clamp(4, 100);
    let times = bench.turns::<2>(|who| {
        wait()?;
        let start = Instant::now();
        for _ in 0..count {
            comms.group(|rank, comm| {
                let (from, stream) = (pointer(&sent[rank]), streams[rank].handle() as sys::cudaStream_t);
                // SAFETY: the buffers are as long as the operations ask, live past the waits, and belong to the
                // device of the communicator and the stream.
                unsafe {
                    if who == 0 {
                        let (kind, sum) = (sys::ncclDataType_t::ncclFloat32, sys::ncclRedOp_t::ncclSum);
                        sys::ncclAllReduce(from, pointer(&reduced[rank]), elements, kind, sum, comm, stream)
                    } else {
                        let kind = sys::ncclDataType_t::ncclFloat32;
                        sys::ncclAllGather(from, pointer(&gathered[rank]), elements, kind, comm, stream)
                    }
                }
            })?;
        }
        wait()?;
        Ok(start.elapsed().as_secs_f64() / count as f64)
    })?;
    for rank in 0..streams.len() {
        // SAFETY: NCCL has written every byte, and was waited for.
        unsafe {
            reduced[rank].assume_init(bytes);
            gathered[rank].assume_init(bytes * ranks);
        }
        let all: u64 = (0..ranks).sum();
        let sums = reduced[rank].to_vec::<f32>()?;
        let right = |index: usize| ((index % 1000) as u64 * ranks + all) as f32;
        ensure!((0..elements).all(|index| sums[index] == right(index)), "the all-reduce of rank {rank} is wrong");
        let whole = gathered[rank].to_vec::<f32>()?;
        let right = |index: usize| (index % elements % 1000 + index / elements) as f32;
        ensure!((0..whole.len()).all(|index| whole[index] == right(index)), "the all-gather of rank {rank} is wrong");
    }
    for (comm, handle) in handles {
        // SAFETY: registered above, and the work on it is done.
        check("ncclCommDeregister", unsafe { sys::ncclCommDeregister(comm, handle) })?;
    }
    // What crosses a link, as NCCL's own tests count it.
    let others = (ranks - 1) as f64;
    let moved = [2.0 * others / ranks as f64 * bytes as f64, others * bytes as f64];
    for (index, case) in ["all-reduce", "all-gather"].into_iter().enumerate() {
        let moved = (ranks > 1).then_some(moved[index]);
        bench.note("nccl", (case, method), bytes, times[index], (moved, reference[index]))?;
    }
    Ok(times)
}

fn pointer(buffer: &Buffer) -> *mut c_void {
    std::ptr::without_provenance_mut(buffer.address().get() as usize)
}
