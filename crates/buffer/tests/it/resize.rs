//! Changing length and capacity: contents stay, moves are told, and a failure loses nothing.

use alloc_core::{AllocError, Device, Layout, LayoutError, Stream};
use buffer::{Buffer, BufferError, Relocation};

use crate::sim::{Call, Event, Failure, GPU, Machine};

const S1: Stream = Stream::from_raw(1);
const S2: Stream = Stream::from_raw(2);

#[test]
fn within_the_capacity_nothing_moves() {
    let machine = Machine::new();
    let mut buffer = Buffer::from_slice(machine.allocator(GPU), &[1_u8, 2, 3, 4]).unwrap();
    machine.clear_log();
    assert_eq!(buffer.resize(2).unwrap(), Relocation::InPlace);
    assert_eq!((buffer.len(), buffer.capacity()), (2, 4));
    assert_eq!(buffer.resize(4).unwrap(), Relocation::InPlace);
    // What was cut off is undefined, as if it had never been written.
    assert_eq!(buffer.initialised(), 2);
    assert_eq!(buffer.reserve(0).unwrap(), Relocation::InPlace);
    assert_eq!(machine.log(), []);
}

#[test]
fn a_move_keeps_contents_alignment_and_stream_and_names_both_addresses() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut buffer = Buffer::with_layout(gpu, Layout::new(4, 1024).unwrap(), S1).unwrap();
    buffer.copy_from(&[1_u8, 2, 3, 4]).unwrap();
    let from = buffer.address();
    let relocation = buffer.resize(8).unwrap();
    assert_eq!(relocation, Relocation::Moved { from, to: buffer.address() });
    assert!(relocation.has_moved() && from != buffer.address());
    assert_eq!((buffer.len(), buffer.capacity(), buffer.stream(), buffer.align()), (8, 8, S1, 1024));
    assert!(buffer.address().is_aligned_to(1024));
    assert_eq!(buffer.initialised(), 4);
    assert_eq!(buffer.slice(..4).unwrap().to_vec::<u8>().unwrap(), [1, 2, 3, 4]);
    drop(buffer);
    machine.assert_clean();
}

#[test]
fn the_old_block_goes_after_the_copy_on_the_same_stream_without_a_wait() {
    let machine = Machine::new();
    let mut buffer = Buffer::zeroed_on(machine.allocator(GPU), 16, S1).unwrap();
    buffer.fill_on(1, S2).unwrap();
    machine.clear_log();
    let _ = buffer.resize(32).unwrap();
    let steps: Vec<&str> = machine
        .log()
        .iter()
        .map(|event| match event {
            Event::Allocate { stream: S1, size: 32, .. } => "allocate",
            Event::Order { stream: S1, after: S2, .. } => "order",
            Event::Copy { stream: S1, bytes: 16, .. } => "copy",
            Event::Release { stream: S1, size: 16, .. } => "release",
            _ => "something else",
        })
        .collect();
    assert_eq!(steps, ["allocate", "order", "copy", "release"]);
    assert_eq!(machine.releases()[0].2, [S2]);
    assert_eq!(buffer.slice(..16).unwrap().to_vec::<u8>().unwrap(), [1; 16]);
    drop(buffer);
    machine.assert_clean();
}

#[test]
fn bytes_that_only_a_kernel_knows_of_move_too() {
    let machine = Machine::new();
    let mut buffer = Buffer::new(machine.allocator(GPU), 4).unwrap();
    assert_eq!(buffer.initialised(), 0);
    let before = machine.peek(buffer.address(), 4);
    let _ = buffer.resize(8).unwrap();
    machine.run_all();
    assert_eq!(machine.peek(buffer.address(), 4), before);
    assert_eq!((machine.copies().len(), buffer.initialised()), (1, 0));
}

#[test]
fn islands_of_written_bytes_stay_written() {
    let machine = Machine::new();
    let mut buffer = Buffer::new(machine.allocator(GPU), 8).unwrap();
    buffer.slice_mut(2..4).unwrap().fill(1).unwrap();
    buffer.slice_mut(6..8).unwrap().fill(2).unwrap();
    let _ = buffer.resize(16).unwrap();
    assert_eq!(buffer.slice(2..4).unwrap().to_vec::<u8>().unwrap(), [1; 2]);
    assert_eq!(buffer.slice(6..8).unwrap().to_vec::<u8>().unwrap(), [2; 2]);
    assert!(buffer.slice(4..6).unwrap().to_vec::<u8>().is_err());
    let _ = buffer.resize(7).unwrap();
    let _ = buffer.shrink_to_fit().unwrap();
    let _ = buffer.resize(8).unwrap();
    assert_eq!(buffer.slice(6..8).unwrap().initialised(), 1);
}

#[test]
fn reserve_and_shrink_are_exact() {
    let machine = Machine::new();
    let mut buffer = Buffer::from_slice(machine.allocator(Device::CPU), &[5_u8; 10]).unwrap();
    assert!(buffer.reserve(90).unwrap().has_moved());
    assert_eq!((buffer.len(), buffer.capacity()), (10, 100));
    assert_eq!(buffer.reserve(90).unwrap(), Relocation::InPlace);
    assert!(buffer.reserve(91).unwrap().has_moved());
    assert!(buffer.shrink_to_fit().unwrap().has_moved());
    assert_eq!((buffer.len(), buffer.capacity()), (10, 10));
    assert_eq!(buffer.shrink_to_fit().unwrap(), Relocation::InPlace);
    assert_eq!(buffer.as_bytes().unwrap(), [5; 10]);
    let _ = buffer.resize(0).unwrap();
    assert!(buffer.shrink_to_fit().unwrap().has_moved());
    assert_eq!(buffer.capacity(), 0);
    drop(buffer);
    machine.assert_clean();
}

#[test]
fn new_bytes_can_be_filled() {
    let machine = Machine::new();
    let mut buffer = Buffer::from_slice(machine.allocator(GPU), &[1_u8; 2]).unwrap();
    assert!(buffer.resize_filled(4, 9).unwrap().has_moved());
    assert_eq!(buffer.to_vec::<u8>().unwrap(), [1, 1, 9, 9]);
    assert_eq!(buffer.resize_filled(1, 0).unwrap(), Relocation::InPlace);
    assert_eq!(buffer.resize_filled(3, 7).unwrap(), Relocation::InPlace);
    assert_eq!(buffer.to_vec::<u8>().unwrap(), [1, 7, 7]);
    machine.fail(Call::Fill, 1, Failure::Error);
    assert!(buffer.resize_filled(6, 7).is_err());
    assert_eq!((buffer.len(), buffer.to_vec::<u8>().unwrap()), (3, vec![1, 7, 7]));
    drop(buffer);
    machine.assert_clean();
}

#[test]
fn a_failure_leaves_the_buffer_as_it_was() {
    for (call, failure) in [(Call::Allocate, Failure::Error), (Call::Copy, Failure::Error)] {
        let machine = Machine::new();
        let mut buffer = Buffer::from_slice_on(machine.allocator(GPU), &[3_u8; 8], S1).unwrap();
        let address = buffer.address();
        for attempt in 0..3 {
            machine.fail(call, 1, failure);
            let outcome = match attempt {
                0 => buffer.resize(16),
                1 => buffer.reserve(100),
                _ => {
                    let _ = buffer.resize(7).unwrap();
                    buffer.shrink_to_fit()
                }
            };
            assert!(matches!(outcome, Err(BufferError::Alloc(_) | BufferError::Transfer(_))), "{outcome:?}");
            assert_eq!((buffer.address(), buffer.capacity(), machine.living()), (address, 8, 1));
        }
        assert_eq!(buffer.to_vec::<u8>().unwrap(), [3; 7]);
        drop(buffer);
        machine.assert_clean();
    }
}

#[test]
fn lengths_that_overflow_are_errors() {
    let machine = Machine::new();
    let mut buffer = Buffer::from_slice(machine.allocator(GPU), &[3_u8; 8]).unwrap();
    let overflows =
        |outcome| matches!(outcome, Err(BufferError::Alloc(AllocError::Layout(LayoutError::Overflow { .. }))));
    assert!(overflows(buffer.resize(u64::MAX)));
    assert!(overflows(buffer.reserve(u64::MAX)));
    assert!(overflows(buffer.reserve(u64::MAX - 8)));
    assert!(overflows(buffer.resize_filled(u64::MAX, 0)));
    assert!(matches!(buffer.resize(1 << 50), Err(BufferError::Alloc(AllocError::TooLarge { .. }))));
    assert_eq!(buffer.to_vec::<u8>().unwrap(), [3; 8]);
    drop(buffer);
    machine.assert_clean();
}
