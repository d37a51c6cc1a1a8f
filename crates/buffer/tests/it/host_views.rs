//! What the host sees of a buffer: nothing undefined, nothing misaligned, nothing that is still being written.

use alloc_core::{Device, Layout, Stream};
use buffer::{Buffer, BufferError};

use crate::sim::{Call, Failure, GPU, Machine, PINNED};

const S1: Stream = Stream::from_raw(1);
const S2: Stream = Stream::from_raw(2);

#[test]
fn bytes_that_were_never_written_are_refused_until_they_are() {
    let machine = Machine::new();
    let mut buffer = Buffer::new(machine.allocator(Device::CPU), 8).unwrap();
    let refused = |initialised| BufferError::Uninitialised { start: 0, end: 8, initialised };
    assert_eq!(buffer.as_bytes(), Err(refused(0)));
    assert_eq!(buffer.as_bytes_mut(), Err(refused(0)));
    assert_eq!(buffer.as_slice::<u32>(), Err(refused(0)));
    assert_eq!(buffer.as_slice_mut::<u32>(), Err(refused(0)));
    assert_eq!(buffer.as_uninit().unwrap().len(), 8);
    buffer.copy_from(&[1_u8; 3]).unwrap();
    assert_eq!(buffer.as_bytes(), Err(refused(3)));
    assert_eq!(buffer.slice(..3).unwrap().as_bytes().unwrap(), [1; 3]);
    buffer.slice_mut(3..).unwrap().fill(2).unwrap();
    assert_eq!(buffer.as_bytes().unwrap(), [1, 1, 1, 2, 2, 2, 2, 2]);
}

#[test]
fn the_unwritten_tail_can_be_written_by_the_host() {
    let machine = Machine::new();
    let mut buffer = Buffer::new(machine.allocator(Device::CPU), 6).unwrap();
    buffer.copy_from(&[9_u8; 2]).unwrap();
    buffer.slice_mut(4..).unwrap().fill(8).unwrap();
    let tail = buffer.uninit_mut().unwrap();
    assert_eq!(tail.len(), 4);
    tail[0].write(5);
    tail[1].write(6);
    // The tail was out as uninitialised bytes, so what was written there before doesn't count any more.
    assert_eq!(buffer.slice(4..).unwrap().initialised(), 0);
    // SAFETY: four bytes are written.
    unsafe { buffer.assume_init(4) };
    assert_eq!(buffer.slice(..4).unwrap().as_bytes().unwrap(), [9, 9, 5, 6]);
    assert_eq!(buffer.initialised(), 4);
}

#[test]
fn a_tail_that_could_not_be_had_is_as_it_was() {
    let machine = Machine::new();
    for device in [GPU, PINNED] {
        let mut buffer = Buffer::new_on(machine.allocator(device), 8, S1).unwrap();
        buffer.slice_mut(4..).unwrap().fill_on(7, S1).unwrap();
        machine.fail(Call::Synchronize, 1, Failure::Error);
        assert!(buffer.uninit_mut().is_err());
        machine.run_all();
        assert_eq!(buffer.slice(4..).unwrap().initialised(), 4, "{device}");
    }
}

#[test]
fn device_memory_has_no_host_view() {
    let machine = Machine::new();
    let mut buffer = Buffer::zeroed(machine.allocator(GPU), 8).unwrap();
    let error = BufferError::NotHostAccessible { device: GPU };
    assert_eq!(buffer.as_bytes(), Err(error.clone()));
    assert_eq!(buffer.as_bytes_mut(), Err(error.clone()));
    assert_eq!(buffer.as_slice::<u8>(), Err(error.clone()));
    assert_eq!(buffer.as_uninit().map(<[_]>::len), Err(error.clone()));
    assert_eq!(buffer.uninit_mut().map(|tail| tail.len()), Err(error));
    assert!(buffer.as_mut_ptr().is_none());
    assert_eq!(buffer.to_vec::<u8>().unwrap(), [0; 8]);
}

#[test]
fn elements_must_be_aligned_and_whole() {
    let machine = Machine::new();
    let mut buffer = Buffer::zeroed(machine.allocator(Device::CPU), 10).unwrap();
    let slice = buffer.slice(1..9).unwrap();
    let misaligned = BufferError::Misaligned { address: slice.address(), align: 8 };
    assert_eq!(slice.as_slice::<u64>(), Err(misaligned));
    let partial = BufferError::PartialElement { bytes: 10, element: 4 };
    assert_eq!(buffer.as_slice::<u32>(), Err(partial.clone()));
    assert_eq!(buffer.as_slice_mut::<u32>(), Err(partial.clone()));
    assert_eq!(buffer.to_vec::<u32>(), Err(partial));
    assert_eq!(buffer.to_vec::<()>(), Err(BufferError::PartialElement { bytes: 10, element: 0 }));
    // A copy needs no alignment.
    assert_eq!(buffer.slice(1..9).unwrap().to_vec::<u64>().unwrap(), [0]);
    buffer.as_slice_mut::<u16>().unwrap()[4] = 0x0101;
    assert_eq!(buffer.as_bytes().unwrap()[7..], [0, 1, 1]);
}

#[test]
fn views_wait_for_writers_and_exclusive_ones_for_readers_too() {
    let machine = Machine::new();
    let mut pinned = Buffer::zeroed_on(machine.allocator(PINNED), 8, S1).unwrap();
    assert_eq!(machine.waiting(), 1);
    assert_eq!(pinned.as_bytes().unwrap(), [0; 8]);
    assert_eq!(machine.synchronised(), [S1]);

    let mut gpu = Buffer::new_on(machine.allocator(GPU), 8, S2).unwrap();
    gpu.copy_from_on(&pinned, S2).unwrap();
    machine.clear_log();
    // The device only reads: a reading host need not wait.
    assert_eq!(pinned.as_bytes().unwrap(), [0; 8]);
    assert_eq!((machine.synchronised(), machine.waiting()), (vec![], 1));
    pinned.as_bytes_mut().unwrap().fill(1);
    assert_eq!((machine.synchronised(), machine.waiting()), (vec![S2], 0));
    assert_eq!(gpu.to_vec::<u8>().unwrap(), [0; 8]);

    pinned.copy_from_on(&gpu, S1).unwrap();
    pinned.use_on(S2);
    machine.clear_log();
    assert_eq!(pinned.as_slice::<u64>().unwrap(), [0]);
    assert_eq!(machine.synchronised(), [S1, S2]);
    // Nothing is waited for twice.
    assert!(pinned.as_bytes_mut().is_ok());
    assert_eq!(machine.synchronised().len(), 2);
    drop((pinned, gpu));
    machine.assert_clean();
}

#[test]
fn a_reused_block_is_left_by_its_former_work_before_the_host_writes() {
    // Blocks are handed out again in stream order, so a fresh one may still be in use on its own stream.
    let machine = Machine::new();
    let mut fresh = Buffer::with_layout(machine.allocator(PINNED), Layout::bytes(8).unwrap(), S1).unwrap();
    assert!(fresh.uninit_mut().is_ok());
    assert_eq!(machine.synchronised(), [S1]);
}

#[test]
fn a_wait_that_fails_gives_no_view_and_is_tried_again() {
    let machine = Machine::new();
    let buffer = Buffer::zeroed_on(machine.allocator(PINNED), 8, S1).unwrap();
    machine.fail(Call::Synchronize, 1, Failure::Error);
    assert!(matches!(buffer.as_bytes(), Err(BufferError::Transfer(_))));
    assert_eq!(machine.waiting(), 1);
    assert_eq!(buffer.as_bytes().unwrap(), [0; 8]);
    machine.fail(Call::Synchronize, 1, Failure::Error);
    assert!(buffer.synchronize().is_ok(), "there is nothing left to wait for");
}
