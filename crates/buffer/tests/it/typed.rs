//! Buffers of elements.

use alloc_core::{AllocError, Device, Layout, LayoutError, Stream};
use buffer::{Buffer, BufferError, Relocation, TypedBuffer};

use crate::sim::{GPU, Machine};

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(512))]
struct Wide([u8; 512]);

// SAFETY: bytes without padding.
unsafe impl bytemuck::Zeroable for Wide {}
// SAFETY: bytes without padding; the size is a multiple of the alignment.
unsafe impl bytemuck::Pod for Wide {}

#[test]
fn lengths_and_ranges_count_elements() {
    let machine = Machine::new();
    let mut numbers = TypedBuffer::from_slice(machine.allocator(GPU), &[1_u32, 2, 3, 4]).unwrap();
    assert_eq!((numbers.len(), numbers.buffer().len()), (4, 16));
    assert_eq!(numbers.slice(1..3).unwrap().to_vec::<u32>().unwrap(), [2, 3]);
    let error = BufferError::OutOfBounds { start: 2, end: 5, len: 4 };
    assert_eq!(numbers.slice(2..5).map(|_| ()), Err(error));
    assert!(numbers.slice(..=u64::MAX).is_err());
    numbers.slice_mut(3..).unwrap().fill(0xff).unwrap();
    assert_eq!(numbers.copy_from(&[7_u32, 8]).unwrap(), 2);
    assert_eq!(numbers.copy_from_on(&[1_u8; 7], Stream::from_raw(1)).unwrap(), 1);
    assert_eq!(numbers.to_vec().unwrap(), [0x0101_0101, 8, 3, u32::MAX]);
    let mut two = [0_u32; 2];
    assert_eq!(numbers.copy_to_slice(&mut two).unwrap(), 2);
    assert_eq!(two, [0x0101_0101, 8]);
    assert!(numbers.copy_from_exact(&two).is_err());
    assert!(numbers.resize(8).unwrap().has_moved());
    assert_eq!((numbers.len(), numbers.slice(..2).unwrap().to_vec::<u32>().unwrap()), (8, two.to_vec()));
    drop(numbers);
    machine.assert_clean();
}

#[test]
fn elements_are_aligned_also_after_a_move() {
    let machine = Machine::new();
    let mut wide = TypedBuffer::<Wide>::zeroed(machine.allocator(Device::CPU), 2).unwrap();
    assert!(wide.address().is_aligned_to(512));
    let _ = wide.resize(5).unwrap();
    assert!(wide.address().is_aligned_to(512));
    let _ = wide.resize(2).unwrap();
    assert_eq!(wide.as_slice().unwrap(), [Wide([0; 512]); 2]);
    wide.as_slice_mut().unwrap()[1].0[3] = 1;
    assert_eq!(wide.to_vec().unwrap()[1].0[3], 1);
}

#[test]
fn counts_that_overflow_are_errors() {
    let machine = Machine::new();
    let overflows = |outcome: Result<(), BufferError>| {
        matches!(outcome, Err(BufferError::Alloc(AllocError::Layout(LayoutError::Overflow { .. }))))
    };
    assert!(overflows(TypedBuffer::<u64>::new(machine.allocator(GPU), u64::MAX / 4).map(drop)));
    let mut numbers = TypedBuffer::<u64>::zeroed(machine.allocator(GPU), 2).unwrap();
    assert!(overflows(numbers.resize(u64::MAX / 2).map(|_| ())));
    assert_eq!(numbers.to_vec().unwrap(), [0, 0]);
}

#[test]
fn a_buffer_becomes_elements_only_if_it_is_made_of_them() {
    let machine = Machine::new();
    let cpu = machine.allocator(Device::CPU);
    let odd = Buffer::zeroed(cpu.clone(), 7).unwrap();
    let error = TypedBuffer::<u16>::try_from(odd).unwrap_err();
    assert_eq!(error.error, BufferError::PartialElement { bytes: 7, element: 2 });
    assert_eq!(error.buffer.len(), 7);
    drop(error);
    let narrow = Buffer::with_layout(cpu.clone(), Layout::new(512, 1).unwrap(), Stream::DEFAULT).unwrap();
    let error = TypedBuffer::<Wide>::try_from(narrow).unwrap_err();
    assert_eq!(error.error, BufferError::Misaligned { address: error.buffer.address(), align: 512 });
    let fits = Buffer::from_slice(cpu, &[1_u16, 2]).unwrap();
    let typed = TypedBuffer::<u16>::try_from(fits).unwrap();
    assert_eq!(typed.as_slice().unwrap(), [1, 2]);
    assert_eq!(Buffer::from(typed).len(), 4);
    drop(error);
    machine.assert_clean();
}

#[test]
fn elements_of_no_size_are_refused_or_empty() {
    let machine = Machine::new();
    let buffer = Buffer::zeroed(machine.allocator(Device::CPU), 4).unwrap();
    assert!(TypedBuffer::<()>::try_from(buffer).is_err());
    let mut nothing = TypedBuffer::<()>::new(machine.allocator(Device::CPU), 5).unwrap();
    assert_eq!(nothing.len(), 5);
    assert_eq!(nothing.copy_from(&[1_u8; 4]).unwrap(), 0);
}

#[test]
fn elements_that_a_kernel_wrote_are_declared() {
    let machine = Machine::new();
    let mut output = TypedBuffer::<u32>::new(machine.allocator(Device::CPU), 4).unwrap();
    assert!(output.as_slice().is_err());
    let start = output.address().get() as usize;
    // SAFETY: the block is the buffer's, and has room for as many.
    unsafe { std::ptr::with_exposed_provenance_mut::<u32>(start).write_bytes(1, 3) };
    // SAFETY: the first three were written.
    unsafe { output.assume_init(3) };
    assert_eq!(output.initialised(), 3);
    assert!(output.as_slice().is_err(), "the last one was not");
    assert_eq!(output.slice(..3).unwrap().to_vec::<u32>().unwrap(), [0x0101_0101; 3]);
    let _ = output.resize(3).unwrap();
    assert_eq!(output.as_slice().unwrap(), [0x0101_0101; 3]);
    drop(output);
    machine.assert_clean();
}

#[test]
fn room_is_counted_in_elements_and_streams_change() {
    let machine = Machine::new();
    let mut numbers = TypedBuffer::from_slice(machine.allocator(GPU), &[1_u32, 2]).unwrap();
    assert!(numbers.reserve(6).unwrap().has_moved());
    assert_eq!((numbers.len(), numbers.buffer().capacity()), (2, 32));
    assert_eq!(numbers.resize(8).unwrap(), Relocation::InPlace);
    assert!(numbers.reserve(u64::MAX / 2).is_err());
    let _ = numbers.resize(2).unwrap();
    assert!(numbers.shrink_to_fit().unwrap().has_moved());
    assert_eq!(numbers.buffer().capacity(), 8);
    numbers.hand_over(Stream::from_raw(3)).unwrap();
    assert_eq!((numbers.stream(), numbers.to_vec().unwrap()), (Stream::from_raw(3), vec![1, 2]));
    drop(numbers);
    machine.assert_clean();
}
