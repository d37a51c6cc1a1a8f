//! Memory that two processes use: the file descriptor crosses over a socket, and either may go first.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write, stdin};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use alloc_core::{Device, DeviceAllocator, ProviderErrorKind};
use alloc_cuda::{CudaStream, DeviceOptions, DeviceProvider, ShareError, ShareableMemory};
use alloc_pool::PoolConfig;
use buffer::Buffer;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use super::devices::{make_current, primary};
use super::harness::{Fake, Living, any_device, child, fake, on_gpu, two_peers};

const BYTES: u64 = 4 << 20;

fn pattern(seed: u64) -> Vec<u8> {
    (0..BYTES).map(|index| (index * 5 + index / 257 + seed) as u8).collect()
}

fn send(socket: &UnixStream, file: &OwnedFd, bytes: u64) {
    let files = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
    let size = bytes.to_le_bytes();
    assert_eq!(sendmsg(socket, &[IoSlice::new(&size)], &mut control, SendFlags::empty()).unwrap(), 8);
}

fn receive(socket: &UnixStream) -> (OwnedFd, u64) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut size = [0; 8];
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut size)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(got.bytes, 8);
    let file = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    (file.unwrap(), u64::from_le_bytes(size))
}

fn say(socket: &mut UnixStream, word: u8) {
    socket.write_all(&[word]).unwrap();
}

fn hear(socket: &mut UnixStream, word: u8) {
    let mut heard = [0];
    socket.read_exact(&mut heard).unwrap();
    assert_eq!(heard[0], word);
}

fn buffer_of(memory: ShareableMemory) -> Buffer {
    let stream = alloc_core::Stream::DEFAULT;
    let allocator = alloc_cuda::global(memory.device().ordinal()).unwrap();
    memory.into_buffer(allocator, stream).unwrap()
}

/// Memory of device 0 that another process opens on `device`. Whoever is to drop it first does.
fn cross(device: u16, importer_first: bool) {
    let memory = ShareableMemory::new(0, BYTES - 5, &[]).unwrap();
    assert_eq!((memory.bytes(), memory.device(), memory.is_imported()), (BYTES, Device::cuda(0), false));
    let (mut here, there) = UnixStream::pair().unwrap();
    let mut command = child("processes::opens_what_it_is_given");
    command.env("SHARED_ON_DEVICE", device.to_string()).env("SHARED_FIRST", u8::from(importer_first).to_string());
    command.stdin(OwnedFd::from(there)).stdout(Stdio::piped());
    let other = command.spawn().unwrap();
    drop(command);
    send(&here, &memory.export().unwrap(), memory.bytes());
    let mut buffer = buffer_of(memory);
    assert_eq!(buffer.copy_from_slice(&pattern(1)).unwrap(), BYTES);
    say(&mut here, b'1');
    // The other has read, and has written something else.
    hear(&mut here, b'2');
    assert!(buffer.to_vec::<u8>().unwrap() == pattern(2), "what the other process wrote");
    if importer_first {
        hear(&mut here, b'3');
        assert!(buffer.to_vec::<u8>().unwrap() == pattern(2), "with the other's view gone");
        drop(buffer);
    } else {
        drop(buffer);
        say(&mut here, b'3');
    }
    let output = other.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by `memory_crosses_to_another_process_and_outlives_whoever_goes_first`"]
fn opens_what_it_is_given() {
    let _device = any_device();
    let variable = |name| std::env::var(name).unwrap();
    let mut socket = UnixStream::from(stdin().as_fd().try_clone_to_owned().unwrap());
    let (file, bytes) = receive(&socket);
    let device = variable("SHARED_ON_DEVICE").parse().unwrap();
    let memory = ShareableMemory::import(device, &file, bytes).unwrap();
    // The memory lives without the descriptor.
    drop(file);
    assert!(memory.is_imported());
    assert_eq!(memory.device(), Device::cuda(0), "whose memory it is, not who uses it");
    hear(&mut socket, b'1');
    // Through the device that opened it.
    let mut own = Buffer::new(alloc_cuda::global(device).unwrap(), bytes).unwrap();
    let mut buffer = buffer_of(memory);
    own.copy_from_exact(&buffer).unwrap();
    assert!(own.to_vec::<u8>().unwrap() == pattern(1), "what the first process wrote");
    own.copy_from_slice_exact(&pattern(2)).unwrap();
    buffer.copy_from_exact(&own).unwrap();
    say(&mut socket, b'2');
    if variable("SHARED_FIRST") == "1" {
        drop(buffer);
        say(&mut socket, b'3');
    } else {
        hear(&mut socket, b'3');
        assert!(buffer.to_vec::<u8>().unwrap() == pattern(2), "with the first's view gone");
    }
}

#[test]
fn memory_crosses_to_another_process_and_outlives_whoever_goes_first() {
    let _device = any_device();
    if on_gpu() && !alloc_cuda::device_info(0).unwrap().shareable {
        println!("left out: {}", ShareableMemory::new(0, BYTES, &[]).unwrap_err());
        return;
    }
    for importer_first in [false, true] {
        cross(0, importer_first);
    }
}

#[test]
fn memory_crosses_to_another_process_on_another_device() {
    if !two_peers("memory to another process on another device") {
        return;
    }
    let _device = any_device();
    for importer_first in [false, true] {
        cross(1, importer_first);
    }
}

#[test]
fn memory_can_be_opened_where_it_was_made_and_lives_until_the_last_view_goes() {
    let _device = any_device();
    if on_gpu() && !alloc_cuda::device_info(0).unwrap().shareable {
        return;
    }
    let memory = ShareableMemory::new(0, BYTES, &[]).unwrap();
    let file = memory.export().unwrap();
    let views: Vec<_> = (0..3).map(|_| ShareableMemory::import(0, &file, BYTES).unwrap()).collect();
    let mut made = buffer_of(memory);
    made.copy_from_slice_exact(&pattern(9)).unwrap();
    let later = ShareableMemory::import(0, &file, BYTES).unwrap();
    drop((made, file));
    for view in views.into_iter().chain([later]) {
        assert!(buffer_of(view).to_vec::<u8>().unwrap() == pattern(9));
    }
}

#[test]
fn what_is_no_such_memory_is_refused() {
    let _device = any_device();
    if on_gpu() && !alloc_cuda::device_info(0).unwrap().shareable {
        let error = ShareableMemory::new(0, BYTES, &[]).unwrap_err();
        assert!(matches!(error, ShareError::Unsupported { .. }), "{error}");
        return;
    }
    let nothing = File::open("/dev/null").unwrap();
    let error = ShareableMemory::import(0, &nothing, BYTES).unwrap_err();
    println!("/dev/null: {error}");
    assert!(matches!(error, ShareError::NotMemory { device, .. } if device == Device::cuda(0)), "{error}");
    let memory = ShareableMemory::new(0, BYTES, &[]).unwrap();
    let file = memory.export().unwrap();
    for bytes in [0, 1000, BYTES + 1, 2 * BYTES, 1 << 60] {
        let error = ShareableMemory::import(0, &file, bytes).unwrap_err();
        println!("{bytes} bytes: {error}");
        let of_memory = matches!(&error, ShareError::Provider(error) if error.kind == ProviderErrorKind::OutOfMemory);
        // No address space has room for the last.
        assert!(error == ShareError::Size { bytes } || bytes == 1 << 60 && of_memory, "{error}");
    }
    for bytes in [0, u64::MAX] {
        assert_eq!(ShareableMemory::new(0, bytes, &[]).unwrap_err(), ShareError::Size { bytes });
    }
    let error = ShareableMemory::new(0, 1 << 50, &[]).unwrap_err();
    println!("a pebibyte: {error}");
    assert!(matches!(&error, ShareError::Provider(error) if error.call == "cuMemCreate"), "{error}");
    // A wrong size leaves the memory as it was.
    assert!(ShareableMemory::import(0, &file, BYTES).is_ok());
    let host = alloc_cpu::SystemAllocator::new();
    let host: std::sync::Arc<dyn DeviceAllocator> = std::sync::Arc::new(host);
    let error = memory.into_buffer(host, alloc_core::Stream::DEFAULT).unwrap_err();
    assert!(matches!(error, buffer::BufferError::DeviceMismatch { .. }), "{error}");
}

#[test]
fn a_device_that_cannot_says_so() {
    let Some(_fake) = fake() else { return };
    let memory = ShareableMemory::new(0, BYTES, &[1]).unwrap();
    let file = memory.export().unwrap();
    for ordinal in [2, 3] {
        let unsupported = ShareError::Unsupported { device: Device::cuda(ordinal) };
        assert_eq!(ShareableMemory::new(ordinal, BYTES, &[]).unwrap_err(), unsupported);
        assert_eq!(ShareableMemory::import(ordinal, &file, BYTES).unwrap_err(), unsupported);
        assert!(!alloc_cuda::device_info(ordinal).unwrap().shareable);
    }
    let unreachable = ShareError::Unreachable { device: Device::cuda(0), peer: Device::cuda(3) };
    assert_eq!(ShareableMemory::new(0, BYTES, &[1, 3]).unwrap_err(), unreachable);
    let refused = DeviceProvider::new(3, &DeviceOptions::default().shareable(true)).unwrap_err();
    assert_eq!(refused.kind, ProviderErrorKind::Unsupported);
}

/// Reservations, handles and mappings.
fn books(fake: &Fake) -> [u64; 3] {
    [Living::Reservations, Living::Physical, Living::Mappings].map(|kind| fake.living(kind))
}

#[test]
fn a_failure_at_any_call_loses_nothing() {
    let Some(fake) = fake() else { return };
    let (before, used) = (books(&fake), fake.used(0));
    let calls = [
        "cuMemCreate",
        "cuMemAddressReserve",
        "cuMemMap",
        "cuMemSetAccess",
        "cuMemExportToShareableHandle",
        "cuMemImportFromShareableHandle",
        "cuMemGetAllocationPropertiesFromHandle",
    ];
    for call in calls {
        let mut failures = 0;
        for nth in 0.. {
            fake.fail(call, nth, 304);
            let made = ShareableMemory::new(0, BYTES, &[1]).and_then(|memory| {
                let file = memory.export()?;
                let opened = ShareableMemory::import(1, &file, BYTES)?;
                drop(memory);
                Ok(opened)
            });
            let happened = fake.failures_left() == 0;
            assert_eq!(made.is_err(), happened, "{call} number {nth}");
            drop(made);
            fake.clear();
            assert_eq!((books(&fake), fake.used(0)), (before, used), "{call} number {nth}");
            if !happened {
                break;
            }
            failures += 1;
        }
        assert!(failures > 0, "{call} is never called");
    }
}

#[test]
fn memory_goes_though_its_addresses_do_not() {
    let Some(fake) = fake() else { return };
    let used = fake.used(0);
    let memory = ShareableMemory::new(0, BYTES, &[]).unwrap();
    fake.fail("cuMemAddressFree", 0, 304);
    drop(memory);
    assert_eq!(fake.used(0), used);
}

#[test]
fn dropping_waits_for_the_work_of_every_device_that_has_access() {
    let Some(fake) = fake() else { return };
    let memory = ShareableMemory::new(0, BYTES, &[1]).unwrap();
    let address = memory.address();
    let transfer = alloc_cuda::CudaTransfer::of(1).unwrap();
    let stream = CudaStream::new(1).unwrap();
    fake.hold(stream.stream());
    // SAFETY: the memory is dropped, and that waits.
    unsafe {
        let place = alloc_core::Place { device: Device::cuda(1), address };
        alloc_core::Transfer::fill(transfer, place, BYTES, 1, stream.stream()).unwrap();
    }
    assert!(fake.pending(stream.stream()) > 0);
    drop(memory);
    assert_eq!(fake.pending(stream.stream()), 0);
}

#[test]
fn dropping_waits_for_the_work_of_contexts_that_others_made() {
    if on_gpu() {
        return;
    }
    // In a process of its own, as this library has not opened the context there.
    let output = child("processes::is_used_in_a_context_of_others").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
#[ignore = "run by `dropping_waits_for_the_work_of_contexts_that_others_made`"]
fn is_used_in_a_context_of_others() {
    use cust::sys;
    let Some(fake) = fake() else { return };
    assert_eq!(alloc_cuda::device_count(), Ok(4));
    // SAFETY: zeros are a value of the structure.
    let mut properties: sys::CUmemAllocationProp = unsafe { std::mem::zeroed() };
    properties.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.requestedHandleTypes = sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
    properties.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
    let (mut handle, mut file, mut stream) = (0, -1, std::ptr::null_mut());
    make_current(primary(0));
    // SAFETY: the driver is initialised, a context is current, and the out parameters are locals.
    let codes = unsafe {
        [
            sys::cuMemCreate(&raw mut handle, BYTES as usize, &raw const properties, 0),
            sys::cuMemExportToShareableHandle((&raw mut file).cast(), handle, properties.requestedHandleTypes, 0),
            sys::cuStreamCreate(&raw mut stream, 1),
        ]
    };
    assert_eq!(codes.map(|code| code as i32), [0; 3]);
    use std::os::fd::FromRawFd;
    // SAFETY: the driver made it for the caller.
    let file = unsafe { OwnedFd::from_raw_fd(file) };
    let memory = ShareableMemory::import(1, &file, BYTES).unwrap();
    let held = alloc_core::Stream::from_raw(stream as u64);
    fake.hold(held);
    // SAFETY: the memory is dropped, and that waits.
    let code = unsafe { sys::cuMemsetD8Async(memory.address().get(), 1, BYTES as usize, stream) };
    assert_eq!((code as i32, fake.pending(held)), (0, 1));
    drop(memory);
    assert_eq!(fake.pending(held), 0);
}

#[test]
fn pages_of_a_pool_are_made_for_other_processes_if_asked() {
    let Some(fake) = fake() else { return };
    let pool = |shareable| {
        let options = DeviceOptions::default().shareable(shareable);
        alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap()
    };
    for shareable in [false, true] {
        fake.clear();
        let pool = pool(shareable);
        let stream = CudaStream::new(0).unwrap();
        let block = pool.allocate(super::harness::bytes(BYTES), stream.stream()).unwrap();
        // The driver is asked for the handle of the pages, as NCCL asks it, and whether it can be exported.
        let handle = fake.log().iter().find(|(name, _)| name == "cuMemCreate").unwrap().1;
        let mut file = -1;
        // SAFETY: the handle is the pool's and lives; the out parameter is a local.
        let code = unsafe {
            cust::sys::cuMemExportToShareableHandle(
                (&raw mut file).cast(),
                handle,
                cust::sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                0,
            )
        };
        assert_eq!(code as i32 == 0, shareable);
        if shareable {
            use std::os::fd::FromRawFd;
            // SAFETY: the driver made it for the caller.
            drop(unsafe { OwnedFd::from_raw_fd(file) });
        }
        super::harness::release(&*pool, block, stream.stream());
    }
}
