//! Borrowed memory: what its functions leave behind when they return, since its lifetime may end then.

use alloc_core::{Address, Device, DeviceAllocator, Layout, Stream, StreamSet, TransferError};
use buffer::{BorrowedBuffer, BorrowedBufferMut, Buffer, BufferError, MemoryMut};

use crate::sim::{Call, Failure, GPU, Machine, PINNED};

const S1: Stream = Stream::from_raw(1);

#[test]
fn host_memory_is_copied_by_the_processor_where_there_is_no_backend() {
    let numbers = [1_u32, 2, 3];
    let mut others = [0_u32; 4];
    let mut destination = BorrowedBufferMut::from_slice(&mut others);
    assert_eq!(destination.copy_from(&numbers).unwrap(), 12);
    destination.slice_mut(12..).unwrap().fill(0xff).unwrap();
    assert_eq!(destination.as_slice::<u32>().unwrap(), [1, 2, 3, u32::MAX]);
    destination.as_slice_mut::<u32>().unwrap()[0] = 7;
    assert_eq!(others, [7, 2, 3, u32::MAX]);
    let mut vector = vec![0_u8; 3];
    assert_eq!(vector.as_borrowed_mut().copy_from_on(&[1_u8; 9], S1).unwrap(), 3);
    assert_eq!(vector, [1; 3]);
}

#[test]
fn a_copy_from_a_borrowed_slice_has_read_it_when_it_returns() {
    let machine = Machine::new();
    let mut buffer = Buffer::new_on(machine.allocator(GPU), 64, S1).unwrap();
    {
        let mut data = vec![5_u8; 64];
        buffer.copy_from_on(&data, S1).unwrap();
        data.fill(6);
    }
    assert_eq!(buffer.to_vec::<u8>().unwrap(), [5; 64]);
    drop(buffer);
    machine.assert_clean();
}

#[test]
fn borrowed_device_memory_is_done_with_on_return_also_in_the_ordered_form() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let block = gpu.allocate(Layout::bytes(16).unwrap(), S1).unwrap();
    let mut buffer = Buffer::from_slice_on(gpu.clone(), &[4_u8; 16], S1).unwrap();
    {
        // SAFETY: the block lives on, its bytes were written by the simulation, and nothing else uses it.
        let mut borrowed = unsafe { BorrowedBufferMut::from_raw_parts(GPU, block.address(), 16, Some(gpu.transfer())) };
        borrowed.copy_from_on(&buffer, S1).unwrap();
        assert_eq!(machine.waiting(), 0);
        borrowed.slice_mut(8..).unwrap().fill_on(9, S1).unwrap();
        assert_eq!(machine.waiting(), 0);
        assert!(matches!(borrowed.as_bytes(), Err(BufferError::NotHostAccessible { device }) if device == GPU));
    }
    {
        // SAFETY: as above; the buffer's transfer copies.
        let borrowed = unsafe { BorrowedBuffer::from_raw_parts(GPU, block.address(), 16, None) };
        buffer.copy_from_on(&borrowed, S1).unwrap();
        assert_eq!(machine.waiting(), 0);
    }
    // SAFETY: all work is done.
    unsafe { gpu.release(block, S1, StreamSet::EMPTY) }.unwrap();
    assert_eq!(buffer.to_vec::<u8>().unwrap()[6..10], [4, 4, 9, 9]);
    drop(buffer);
    machine.assert_clean();
}

#[test]
fn a_view_of_pinned_memory_is_a_slice_like_any_other() {
    // The borrow ends when the copy returns, so the pinned block may be written then although a driver would copy
    // it in the background.
    let machine = Machine::new();
    let mut pinned = Buffer::from_slice(machine.allocator(PINNED), &[1_u8; 8]).unwrap();
    let mut buffer = Buffer::new(machine.allocator(GPU), 8).unwrap();
    buffer.copy_from_on(pinned.as_bytes().unwrap(), S1).unwrap();
    pinned.as_bytes_mut().unwrap().fill(2);
    assert_eq!(buffer.to_vec::<u8>().unwrap(), [1; 8]);
    drop((buffer, pinned));
    machine.assert_clean();
}

#[test]
fn what_nobody_can_copy_or_fill_is_an_error() {
    // SAFETY: nothing dereferences the address, since there is no backend.
    let mut borrowed = unsafe { BorrowedBufferMut::from_raw_parts(GPU, Address::new(64), 8, None) };
    assert_eq!(borrowed.fill(1), Err(BufferError::NoTransfer { device: GPU }));
    let error = TransferError::Unsupported { from: Device::CPU, to: GPU };
    assert_eq!(borrowed.copy_from(&[1_u8]), Err(BufferError::Transfer(error)));
}

#[test]
fn a_failed_wait_is_an_error_of_the_copy() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut buffer = Buffer::new(gpu.clone(), 16).unwrap();
    let block = gpu.allocate(Layout::bytes(16).unwrap(), S1).unwrap();
    // SAFETY: the block lives until the copy is over.
    let borrowed = unsafe { BorrowedBuffer::from_raw_parts(GPU, block.address(), 16, None) };
    machine.fail(Call::Synchronize, 1, Failure::Error);
    assert!(buffer.copy_from_on(&borrowed, S1).is_err());
    drop(buffer); // names the stream, on which the copy may be under way
    machine.run_all();
    // SAFETY: it is over now.
    unsafe { gpu.release(block, S1, StreamSet::EMPTY) }.unwrap();
    machine.assert_clean();
}

#[test]
fn ranges_are_checked() {
    let machine = Machine::new();
    let mut buffer = Buffer::zeroed(machine.allocator(Device::CPU), 8).unwrap();
    let out = |start, end, len| Err(BufferError::OutOfBounds { start, end, len });
    assert_eq!(buffer.slice(2..9).map(|_| ()), out(2, 9, 8));
    assert_eq!(buffer.slice(9..).map(|_| ()), out(9, 8, 8));
    #[expect(clippy::reversed_empty_ranges)]
    let reversed = buffer.slice(5..3).map(|_| ());
    assert_eq!(reversed, out(5, 3, 8));
    assert_eq!(buffer.slice(..=u64::MAX).map(|_| ()), out(0, u64::MAX, 8));
    assert_eq!(buffer.slice_mut(..=8).map(|_| ()), out(0, 9, 8));
    assert_eq!(buffer.slice(2..4).unwrap().slice(1..3).map(|_| ()), out(1, 3, 2));
    assert!(buffer.as_borrowed_mut().split_at_mut(9).is_err());
    let start = buffer.address().get();
    let part = buffer.slice(2..=5).unwrap().slice(1..).unwrap();
    assert_eq!((part.len(), part.address().get(), part.device()), (3, start + 3, Device::CPU));
    assert!(buffer.slice(8..).unwrap().is_empty());
}

#[test]
fn two_halves_are_written_at_once() {
    let machine = Machine::new();
    let mut buffer = Buffer::new(machine.allocator(Device::CPU), 1000).unwrap();
    let mut whole = buffer.as_borrowed_mut();
    let (mut left, mut right) = whole.split_at_mut(400).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| right.fill(2).unwrap());
        scope.spawn(|| left.copy_from_exact(&[1_u8; 400]).unwrap());
    });
    right.as_bytes_mut().unwrap()[0] = 3;
    assert_eq!(left.as_bytes().unwrap(), [1; 400]);
    let bytes = buffer.as_bytes().unwrap();
    assert_eq!((bytes[399], bytes[400], bytes[401]), (1, 3, 2));
    drop(buffer);
    machine.assert_clean();
}
