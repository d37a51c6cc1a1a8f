//! Buffers cross threads, and shared ones are used by many at a time.

use std::thread;

use alloc_core::Stream;
use buffer::{
    BorrowedBuffer, BorrowedBufferMut, Buffer, ExternalOwner, SharedBuffer, SharedSlice, TypedBuffer, WeakBuffer,
};

use crate::sim::{GPU, Machine, PINNED};

#[test]
fn all_owners_and_borrowers_are_send_and_sync() {
    fn check<T: Send + Sync>() {}
    check::<Buffer>();
    check::<SharedBuffer>();
    check::<WeakBuffer>();
    check::<SharedSlice>();
    check::<BorrowedBuffer<'static>>();
    check::<BorrowedBufferMut<'static>>();
    check::<TypedBuffer<u32>>();
    check::<ExternalOwner>();
}

#[test]
fn a_shared_source_is_copied_and_viewed_by_many_threads() {
    let machine = Machine::new();
    let (gpu, pinned) = (machine.allocator(GPU), machine.allocator(PINNED));
    let source = SharedBuffer::from(Buffer::from_slice_on(pinned, &[9_u8; 256], Stream::from_raw(100)).unwrap());
    let threads: Vec<_> = (0..4_u64)
        .map(|index| {
            let (source, gpu) = (source.clone(), gpu.clone());
            thread::spawn(move || {
                let stream = Stream::from_raw(1 + index % 2);
                for _ in 0..50 {
                    let mut copy = Buffer::new_on(gpu.clone(), 256, stream).unwrap();
                    copy.copy_from_on(&source, stream).unwrap();
                    source.use_on(Stream::from_raw(50 + index));
                    assert_eq!(source.as_bytes().unwrap(), [9; 256]);
                    assert_eq!(copy.to_vec::<u8>().unwrap(), [9; 256]);
                }
                let mut left = Buffer::new_on(gpu, 256, stream).unwrap();
                left.copy_from_on(&source, stream).unwrap();
                left
            })
        })
        .collect();
    let left: Vec<Buffer> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    drop(source); // with copies from it under way
    for buffer in &left {
        assert_eq!(buffer.to_vec::<u8>().unwrap(), [9; 256]);
    }
    drop(left);
    machine.assert_clean();
}

#[test]
fn a_buffer_may_be_dropped_by_another_thread() {
    let machine = Machine::new();
    let buffer = Buffer::zeroed(machine.allocator(GPU), 64).unwrap();
    thread::spawn(move || drop(buffer)).join().unwrap();
    machine.assert_clean();
}
