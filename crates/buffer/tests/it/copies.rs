//! Which backend copies, how much, and what is an error.

use alloc_core::{Device, Stream, TransferError};
use buffer::{BorrowedBuffer, BorrowedBufferMut, Buffer, BufferError, Memory, SharedBuffer, TypedBuffer};

use crate::sim::{Backend, Call, Event, Failure, GPU, GPU_PEER, Machine, OTHER, PINNED};

const S1: Stream = Stream::from_raw(1);
const S2: Stream = Stream::from_raw(2);
const S3: Stream = Stream::from_raw(3);

#[test]
fn every_direction_takes_the_right_backend_and_stream_and_arrives() {
    let cases = [
        (Device::CPU, Device::CPU, Backend::Host, S2),
        (Device::CPU, GPU, Backend::Gpu, S2),
        (GPU, Device::CPU, Backend::Gpu, S1),
        (GPU, GPU, Backend::Gpu, S2),
        (GPU, GPU_PEER, Backend::Gpu, S2),
        (PINNED, GPU, Backend::Gpu, S2),
        (GPU, PINNED, Backend::Gpu, S2),
        (PINNED, Device::CPU, Backend::Gpu, S1),
        (Device::CPU, OTHER, Backend::Other, S2),
        (OTHER, GPU, Backend::Other, S1),
        (GPU, OTHER, Backend::Other, S2),
    ];
    for (from, to, by, stream) in cases {
        let machine = Machine::new();
        let source = Buffer::from_slice_on(machine.allocator(from), b"contents", S1).unwrap();
        let mut destination = Buffer::new_on(machine.allocator(to), 8, S2).unwrap();
        machine.clear_log();
        assert_eq!(destination.copy_from(&source).unwrap(), 8);
        assert_eq!(machine.copies(), [(by, from, to, 8, stream)]);
        // Finished on return.
        assert_eq!(machine.waiting(), 0, "{from} to {to}");
        assert_eq!(destination.to_vec::<u8>().unwrap(), b"contents");
        drop((source, destination));
        machine.assert_clean();
    }
}

#[test]
fn no_backend_at_hand_is_an_error_with_both_devices() {
    let machine = Machine::new();
    let source = Buffer::zeroed(machine.allocator(PINNED), 8).unwrap();
    let mut destination = Buffer::zeroed(machine.allocator(OTHER), 8).unwrap();
    let error = destination.copy_from(&source).unwrap_err();
    assert_eq!(error, BufferError::Transfer(TransferError::Unsupported { from: PINNED, to: OTHER }));
    assert_eq!(destination.initialised(), 8);
    drop((source, destination));
    machine.assert_clean();
}

#[test]
fn the_shorter_length_counts_and_the_rest_stays() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut long = Buffer::from_slice(gpu.clone(), &[1_u8; 6]).unwrap();
    let mut short = Buffer::from_slice(gpu, &[2_u8; 4]).unwrap();
    assert_eq!(long.copy_from(&short).unwrap(), 4);
    assert_eq!(long.to_vec::<u8>().unwrap(), [2, 2, 2, 2, 1, 1]);
    long.fill(3).unwrap();
    assert_eq!(short.copy_from(&long).unwrap(), 4);
    assert_eq!(short.to_vec::<u8>().unwrap(), [3; 4]);
    assert_eq!(short.copy_from_slice(&[7_u16; 9]).unwrap(), 4);
    let mut host = [0_u8; 9];
    assert_eq!(long.copy_to_slice(&mut host).unwrap(), 6);
    assert_eq!(host, [3, 3, 3, 3, 3, 3, 0, 0, 0]);
}

#[test]
fn the_strict_form_takes_equal_lengths_only_and_touches_nothing_else() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut a = Buffer::from_slice(gpu.clone(), &[1_u8; 6]).unwrap();
    let b = Buffer::from_slice(gpu, &[2_u8; 4]).unwrap();
    machine.clear_log();
    let error = BufferError::LengthMismatch { destination_bytes: 6, source_bytes: 4 };
    assert_eq!(a.copy_from_exact(&b), Err(error.clone()));
    assert_eq!(a.copy_from_exact_on(&b, S1), Err(error.clone()));
    assert_eq!(a.copy_from_slice_exact(&[0_u8; 4]), Err(error));
    let error = BufferError::LengthMismatch { destination_bytes: 8, source_bytes: 6 };
    assert_eq!(a.copy_to_slice_exact(&mut [0_u16; 4]), Err(error));
    assert_eq!(machine.log(), []);
    a.copy_from_exact(&[5_u16; 3]).unwrap();
    let mut host = [0_u16; 3];
    a.copy_to_slice_exact(&mut host).unwrap();
    assert_eq!(host, [5; 3]);
}

#[test]
fn all_kinds_of_memory_are_sources_and_destinations() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut destination = Buffer::new(gpu.clone(), 2).unwrap();
    let mut arrives = |source: &dyn Memory, bytes: [u8; 2]| {
        assert_eq!(destination.copy_from(source).unwrap(), 2);
        assert_eq!(destination.to_vec::<u8>().unwrap(), bytes);
    };
    let shared = SharedBuffer::from(Buffer::from_slice(gpu.clone(), &[1_u8, 2, 3]).unwrap());
    arrives(&shared, [1, 2]);
    arrives(&shared.shared_slice(1..).unwrap(), [2, 3]);
    arrives(&shared.slice(1..).unwrap(), [2, 3]);
    arrives(&TypedBuffer::from_slice(gpu.clone(), &[0x0807_u16]).unwrap(), [7, 8]);
    arrives(&vec![4_u8, 5], [4, 5]);
    arrives(&[6_u8, 7], [6, 7]);
    arrives(&BorrowedBuffer::from_slice(&[8_u8, 9]), [8, 9]);
    let mut bytes = [3_u8, 4];
    arrives(&BorrowedBufferMut::from_slice(&mut bytes), [3, 4]);

    let mut whole = Buffer::zeroed(gpu, 4).unwrap();
    whole.slice_mut(1..3).unwrap().copy_from(&shared).unwrap();
    assert_eq!(whole.to_vec::<u8>().unwrap(), [0, 1, 2, 0]);
    whole.slice_mut(3..).unwrap().fill(9).unwrap();
    assert_eq!(whole.to_vec::<u8>().unwrap(), [0, 1, 2, 9]);
}

#[test]
fn undefined_bytes_may_be_copied_between_buffers_and_stay_undefined() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut half = Buffer::new(gpu.clone(), 8).unwrap();
    half.slice_mut(..4).unwrap().fill(1).unwrap();
    let mut destination = Buffer::zeroed(gpu, 12).unwrap();
    destination.copy_from(&half).unwrap();
    assert_eq!(destination.initialised(), 4);
    assert_eq!(destination.slice(8..).unwrap().initialised(), 4);
    // Written again, the whole is readable.
    destination.slice_mut(4..8).unwrap().fill(2).unwrap();
    assert_eq!(destination.to_vec::<u8>().unwrap(), [1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 0, 0]);
}

#[test]
fn undefined_bytes_never_reach_the_host() {
    let machine = Machine::new();
    let mut buffer = Buffer::new(machine.allocator(GPU), 8).unwrap();
    buffer.slice_mut(..3).unwrap().fill(1).unwrap();
    machine.clear_log();
    let error = BufferError::Uninitialised { start: 0, end: 8, initialised: 3 };
    assert_eq!(buffer.to_vec::<u8>(), Err(error.clone()));
    let mut host = [7_u8; 9];
    assert_eq!(buffer.copy_to_slice(&mut host), Err(error.clone()));
    assert_eq!(BorrowedBufferMut::from_slice(&mut host).copy_from(&buffer), Err(error));
    assert_eq!((host, machine.log()), ([7; 9], vec![]));
    // What is written may be read, also past a gap.
    buffer.slice_mut(6..).unwrap().fill(2).unwrap();
    assert_eq!(buffer.slice(..3).unwrap().to_vec::<u8>().unwrap(), [1; 3]);
    assert_eq!(buffer.slice(6..).unwrap().to_vec::<u8>().unwrap(), [2; 2]);
    assert_eq!(buffer.copy_to_slice(&mut host[..2]).unwrap(), 2);
    // SAFETY: simulated devices hold bytes that were written when they were allocated.
    unsafe { buffer.assume_init(100) };
    assert_eq!(buffer.initialised(), 8);
    assert!(buffer.to_vec::<u8>().is_ok());
}

#[test]
fn a_copy_that_fails_leaves_the_books_honest() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let source = Buffer::from_slice(gpu.clone(), &[1_u8; 8]).unwrap();
    let mut fresh = Buffer::new(gpu.clone(), 8).unwrap();
    for call in [Call::Copy, Call::Synchronize] {
        machine.fail(call, 1, Failure::Error);
        assert!(matches!(fresh.copy_from(&source), Err(BufferError::Transfer(TransferError::Provider(_)))));
        assert_eq!(fresh.initialised(), 0);
    }
    // A failed copy of undefined bytes may have overwritten defined ones.
    let mut written = Buffer::zeroed(gpu, 8).unwrap();
    machine.fail(Call::Copy, 1, Failure::Error);
    assert!(written.copy_from(&source).is_err());
    assert_eq!(written.initialised(), 8);
    machine.fail(Call::Copy, 1, Failure::Error);
    assert!(written.copy_from(&fresh).is_err());
    assert_eq!(written.initialised(), 0);
    drop((source, fresh, written));
    machine.assert_clean();
}

#[test]
fn fills_run_on_the_stream_asked_for_and_finish_where_they_must() {
    let machine = Machine::new();
    let mut buffer = Buffer::new_on(machine.allocator(GPU), 8, S1).unwrap();
    buffer.zero().unwrap();
    assert_eq!(machine.waiting(), 0);
    buffer.fill_on(1, S3).unwrap();
    buffer.zero_on(S1).unwrap();
    assert_eq!(machine.waiting(), 2);
    let fills: Vec<Event> = machine.log().into_iter().filter(|event| matches!(event, Event::Fill { .. })).collect();
    let fill = |stream| Event::Fill { by: Backend::Gpu, to: GPU, bytes: 8, stream };
    assert_eq!(fills, [fill(S1), fill(S3), fill(S1)]);
    assert_eq!(buffer.to_vec::<u8>().unwrap(), [0; 8]);
    drop(buffer);
    machine.assert_clean();
}
