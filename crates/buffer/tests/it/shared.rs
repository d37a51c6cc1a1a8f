//! Counted handles: the memory goes with the last handle or slice, and only the only handle writes.

use alloc_core::Stream;
use buffer::{Buffer, BufferError, SharedBuffer, WeakBuffer};

use crate::sim::{GPU, Machine, PINNED};

#[test]
fn the_last_handle_releases_and_weak_ones_don_t_hold() {
    let machine = Machine::new();
    let first = SharedBuffer::from(Buffer::new(machine.allocator(GPU), 8).unwrap());
    let weak = first.downgrade();
    let second = weak.upgrade().unwrap();
    assert!(first.is_same(&second));
    assert_eq!(first.strong_count(), 2);
    drop(first);
    assert_eq!((machine.releases().len(), second.len()), (0, 8));
    drop(second);
    assert_eq!(machine.releases().len(), 1);
    assert!(weak.upgrade().is_none());
    assert!(WeakBuffer::new().upgrade().is_none());
    machine.assert_clean();
}

#[test]
fn only_the_only_handle_gets_the_buffer_itself() {
    let machine = Machine::new();
    let mut shared = SharedBuffer::new(Buffer::zeroed(machine.allocator(GPU), 8).unwrap());
    shared.get_mut().unwrap().fill(4).unwrap();
    let slice = shared.shared_slice(2..).unwrap();
    assert!(shared.get_mut().is_none());
    let shared = shared.try_unwrap().unwrap_err();
    drop(slice);
    let other = shared.clone();
    assert!(shared.into_inner().is_none());
    let mut buffer = other.try_unwrap().unwrap();
    let _ = buffer.resize(16).unwrap();
    assert_eq!(buffer.slice(..8).unwrap().to_vec::<u8>().unwrap(), [4; 8]);
    drop(buffer);
    machine.assert_clean();
}

#[test]
fn slices_of_slices_keep_the_buffer_and_know_their_place() {
    let machine = Machine::new();
    let bytes: Vec<u8> = (0..16).collect();
    let shared = SharedBuffer::from(Buffer::from_slice(machine.allocator(PINNED), &bytes).unwrap());
    let start = shared.address().get();
    let outer = shared.shared_slice(4..12).unwrap();
    let inner = outer.shared_slice(2..=5).unwrap();
    assert_eq!((inner.offset(), inner.len(), inner.address().get(), inner.device()), (6, 4, start + 6, PINNED));
    let error = BufferError::OutOfBounds { start: 3, end: 9, len: 8 };
    assert_eq!(outer.shared_slice(3..9).map(drop).unwrap_err(), error);
    assert!(inner.shared_slice(4..).unwrap().is_empty());
    drop((shared, outer));
    assert_eq!(machine.releases(), []);
    assert_eq!(inner.as_bytes().unwrap(), [6, 7, 8, 9]);
    assert_eq!(inner.as_slice::<u16>().unwrap(), [0x0706, 0x0908]);
    assert_eq!(inner.to_vec::<u8>().unwrap(), [6, 7, 8, 9]);
    assert_eq!(inner.parent().len(), 16);
    drop(inner);
    machine.assert_clean();
}

#[test]
fn uses_through_any_handle_are_named_at_release() {
    let machine = Machine::new();
    let shared = SharedBuffer::from(Buffer::new(machine.allocator(GPU), 8).unwrap());
    let slice = shared.shared_slice(..4).unwrap();
    let mut destination = Buffer::new(machine.allocator(GPU), 4).unwrap();
    destination.copy_from_on(&slice, Stream::from_raw(1)).unwrap();
    shared.clone().use_on(Stream::from_raw(2));
    drop(shared);
    drop(slice);
    assert_eq!(machine.releases(), [(GPU, Stream::DEFAULT, vec![Stream::from_raw(1), Stream::from_raw(2)])]);
    drop(destination);
    machine.assert_clean();
}
