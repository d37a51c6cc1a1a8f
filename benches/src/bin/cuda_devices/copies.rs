//! Copies between two devices: buffers against the driver's own call on the same memory, and against two copies by way of
//! page-locked memory.

use std::time::Instant;

use alloc_core::{AllocatorHandle, Place, Transfer};
use alloc_cuda::{CudaStream, CudaTransfer, DeviceOptions};
use alloc_pool::PoolConfig;
use anyhow::ensure;
use buffer::Buffer;
use cudarc::driver::sys;

use crate::{Bench, are_peers};

const SIZES: [u64; 4] = [64 << 10, 1 << 20, 16 << 20, 256 << 20];
/// The chunks of the way over the host, and how many are under way at a time.
const CHUNK: u64 = 4 << 20;
const CHUNKS: u64 = 8;

/// The driver's context of a device.
fn primary(ordinal: u16) -> anyhow::Result<sys::CUcontext> {
    let mut context = std::ptr::null_mut();
    // SAFETY: the driver is initialised, and the out parameter is a local.
    unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, ordinal.into()) }.result()?;
    Ok(context)
}

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    if bench.count < 2 {
        bench.say("copies: left out, as there is one device");
        return Ok(());
    }
    let contexts = [primary(0)?, primary(1)?];
    // Without a current context the driver refuses ranges that lie in several mappings; ours makes one current itself.
    // SAFETY: the context is retained.
    unsafe { sys::cuCtxSetCurrent(contexts[0]) }.result()?;
    for memory in [Memory::Closed, Memory::Open, Memory::Global] {
        if memory == Memory::Open && !are_peers(0, 1) {
            bench.say("copies with direct access: left out, as devices 0 and 1 don't reach each other");
            continue;
        }
        let allocators = [allocator(0, memory)?, allocator(1, memory)?];
        for from in [0, 1] {
            let case = format!("{from} to {}, {}", 1 - from, memory.text());
            for bytes in SIZES.into_iter().filter(|bytes| !bench.options.quick || *bytes <= 16 << 20) {
                one(bench, &case, &allocators, contexts, from, bytes)?;
            }
        }
    }
    Ok(())
}

/// Whose memory is copied.
#[derive(Clone, Copy, PartialEq)]
enum Memory {
    /// Private pools that the other device does not reach.
    Closed,
    /// Private pools that it does.
    Open,
    /// The process's pools, which the first copy opens to each other.
    Global,
}

impl Memory {
    fn text(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Global => "global",
        }
    }
}

fn allocator(ordinal: u16, memory: Memory) -> anyhow::Result<AllocatorHandle> {
    let options = DeviceOptions::default();
    let pool = |options| alloc_cuda::device_pool(ordinal, options, PoolConfig::default());
    Ok(match memory {
        Memory::Closed => pool(&options)?.into(),
        Memory::Open => pool(&options.peers([1 - ordinal]))?.into(),
        Memory::Global => alloc_cuda::global(ordinal)?.into(),
    })
}

fn one(
    bench: &Bench,
    case: &str,
    allocators: &[AllocatorHandle; 2],
    contexts: [sys::CUcontext; 2],
    from: usize,
    bytes: u64,
) -> anyhow::Result<()> {
    let to = 1 - from;
    let handle = |index: usize| allocators[index].clone();
    let streams = [CudaStream::new(from as u16)?, CudaStream::new(to as u16)?];
    let stream = &streams[0];
    let pattern: Vec<u8> = (0..bytes).map(|index| (index * 7 + index / 251) as u8).collect();
    let source = Buffer::from_slice_on(handle(from), &pattern, stream.stream())?;
    let mut target = Buffer::zeroed_on(handle(to), bytes, streams[1].stream())?;
    target.make_ready_on(stream.stream())?;
    // As many as make a round of a few milliseconds, so that waiting for the end weighs little.
    let count = ((2 << 30) / bytes).clamp(4, 400);
    let addresses = [source.address().get(), target.address().get()];
    let raw_copy = || -> anyhow::Result<()> {
        // SAFETY: both ranges are the buffers', which live past the waits below; the contexts are theirs.
        unsafe {
            sys::cuMemcpyPeerAsync(
                addresses[1],
                contexts[to],
                addresses[0],
                contexts[from],
                bytes as usize,
                stream.handle() as sys::CUstream,
            )
        }
        .result()?;
        Ok(())
    };
    let [ours, raw, over_host] = bench.turns::<3>(|who| {
        // A link that nothing has crossed for a while is slow at first.
        for _ in 0..count {
            raw_copy()?;
        }
        stream.synchronize()?;
        let start = Instant::now();
        match who {
            0 => {
                for _ in 0..count {
                    target.copy_from_exact_on(&source, stream.stream())?;
                }
            }
            1 => {
                for _ in 0..count {
                    raw_copy()?;
                }
            }
            _ => {
                for _ in 0..count {
                    by_way_of_the_host(&source, &mut target, &streams)?;
                }
            }
        }
        stream.synchronize()?;
        Ok(start.elapsed().as_secs_f64() / count as f64)
    })?;
    ensure!(target.to_vec::<u8>()? == pattern, "{case}: the copies are wrong");
    let moved = Some(bytes as f64);
    bench.note("copies", (case, "Buffer::copy_from"), bytes, ours, (moved, Some(raw)))?;
    bench.note("copies", (case, "cuMemcpyPeerAsync"), bytes, raw, (moved, None))?;
    bench.note("copies", (case, "through page-locked chunks"), bytes, over_host, (moved, Some(raw)))
}

/// Down on the source's stream and up on the destination's, in chunks that follow each other. Waits for the whole.
fn by_way_of_the_host(source: &Buffer, target: &mut Buffer, streams: &[CudaStream; 2]) -> anyhow::Result<()> {
    let [down, up] = streams;
    let (from, to) = (down.device().ordinal(), up.device().ordinal());
    let pinned = alloc_cuda::pinned(from)?;
    let chunks: Vec<Buffer> = (0..CHUNKS.min(source.len().div_ceil(CHUNK)))
        .map(|_| Buffer::new_on(pinned, CHUNK.min(source.len()), down.stream()))
        .collect::<Result<_, _>>()?;
    let place = |buffer: &Buffer, offset| Place {
        device: buffer.device(),
        address: alloc_core::Address::new(buffer.address().get() + offset),
    };
    for (index, offset) in (0..source.len()).step_by(CHUNK as usize).enumerate() {
        let length = CHUNK.min(source.len() - offset);
        let chunk = &chunks[index % chunks.len()];
        // A chunk is used again once the destination has read it.
        if index >= chunks.len() {
            down.wait_for(up)?;
        }
        // SAFETY: the ranges lie in buffers that live past the waits below; the events order them.
        unsafe { CudaTransfer::of(from)?.copy(place(source, offset), place(chunk, 0), length, down.stream()) }?;
        up.wait_for(down)?;
        // SAFETY: as above.
        unsafe { CudaTransfer::of(to)?.copy(place(chunk, 0), place(target, offset), length, up.stream()) }?;
    }
    up.synchronize()?;
    Ok(())
}
