//! A block is released exactly once, to the allocator that gave it, on the buffer's stream, whatever happens.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use alloc_core::{AllocError, AllocatorHandle, Device, DeviceAllocator, Layout, LayoutError, Stream};
use buffer::{Buffer, BufferError};

use crate::sim::{Call, Event, Failure, GPU, Machine, OTHER, SimAllocator, reports};

const S1: Stream = Stream::from_raw(1);
const S2: Stream = Stream::from_raw(2);

#[test]
fn a_buffer_knows_what_it_was_made_of_and_goes_back_there() {
    let machine = Machine::new();
    let (cpu, gpu) = (machine.allocator(Device::CPU), machine.allocator(GPU));
    let on_gpu = Buffer::with_layout(gpu, Layout::new(100, 4096).unwrap(), S1).unwrap();
    let on_cpu = Buffer::new(cpu, 10).unwrap();
    assert_eq!((on_gpu.device(), on_gpu.stream(), on_gpu.len(), on_gpu.align()), (GPU, S1, 100, 4096));
    assert!(on_gpu.address().is_aligned_to(4096));
    assert_eq!((on_cpu.device(), on_cpu.stream(), on_cpu.capacity()), (Device::CPU, Stream::DEFAULT, 10));
    assert!(on_gpu.as_ptr().is_none());
    assert_eq!(on_cpu.as_ptr().unwrap().addr() as u64, on_cpu.address().get());
    drop((on_gpu, on_cpu));
    assert_eq!(machine.releases(), [(GPU, S1, vec![]), (Device::CPU, Stream::DEFAULT, vec![])]);
    machine.assert_clean();
}

#[test]
fn a_global_allocator_needs_no_count_and_a_private_one_lives_as_long_as_its_buffers() {
    let machine = Machine::new();
    let global: &'static SimAllocator = Box::leak(Box::new(Arc::into_inner(machine.allocator(GPU)).unwrap()));
    let buffer = Buffer::new(global, 64).unwrap();
    assert!(matches!(buffer.allocator(), AllocatorHandle::Global(_)));
    drop(buffer);

    let private = machine.allocator(GPU);
    let weak = Arc::downgrade(&private);
    let buffer = Buffer::new(private, 64).unwrap();
    assert_eq!(weak.strong_count(), 1);
    drop(buffer);
    assert_eq!(weak.strong_count(), 0);
    machine.assert_clean();
}

#[test]
fn declared_uses_are_named_at_release_once_and_the_own_stream_never() {
    let machine = Machine::new();
    let buffer = Buffer::new_on(machine.allocator(GPU), 64, S1).unwrap();
    for stream in [S2, S1, S2, Stream::from_raw(9)] {
        buffer.use_on(stream);
    }
    buffer.read_on(Stream::from_raw(3));
    drop(buffer);
    assert_eq!(machine.releases(), [(GPU, S1, vec![S2, Stream::from_raw(9), Stream::from_raw(3)])]);
    machine.assert_clean();
}

#[test]
fn many_uses_are_all_named() {
    let machine = Machine::new();
    let buffer = Buffer::new(machine.allocator(GPU), 64).unwrap();
    let streams: Vec<Stream> = (1..=40).map(Stream::from_raw).collect();
    streams.iter().for_each(|stream| buffer.use_on(*stream));
    drop(buffer);
    assert_eq!(machine.releases()[0].2, streams);
}

#[test]
fn a_buffer_that_was_handed_over_is_released_on_its_new_stream() {
    let machine = Machine::new();
    let mut buffer = Buffer::zeroed_on(machine.allocator(GPU), 64, S1).unwrap();
    buffer.hand_over(S1).unwrap();
    assert_eq!(machine.orders(), []);
    buffer.hand_over(S2).unwrap();
    assert_eq!((buffer.stream(), machine.orders()), (S2, vec![(S2, S1)]));
    // Nothing more to wait for on the new stream, all of it on a third.
    buffer.fill_on(1, S2).unwrap();
    assert_eq!(machine.orders().len(), 1);
    buffer.fill_on(2, Stream::from_raw(3)).unwrap();
    assert_eq!(machine.orders()[1..], [(Stream::from_raw(3), S2)]);
    drop(buffer);
    assert_eq!(machine.releases()[0].1, S2);
    machine.assert_clean();
}

#[test]
fn a_hand_over_waits_for_the_old_stream_even_where_nothing_was_declared_on_it() {
    let machine = Machine::new();
    let mut buffer = Buffer::new_on(machine.allocator(GPU), 64, S1).unwrap();
    buffer.synchronize().unwrap();
    buffer.hand_over(S2).unwrap();
    assert_eq!(machine.orders(), [(S2, S1)]);
    drop(buffer);
    assert_eq!(machine.releases(), [(GPU, S2, vec![S1])]);
}

#[test]
fn a_refused_or_panicking_release_is_reported_and_goes_no_further() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    for failure in [Failure::Error, Failure::Panic] {
        let buffer = Buffer::new(gpu.clone(), 64).unwrap();
        machine.fail(Call::Release, 1, failure);
        let mut outcome = Ok(());
        let reported = reports::count(|| outcome = catch_unwind(AssertUnwindSafe(|| drop(buffer))).map_err(drop));
        assert_eq!((outcome, reported), (Ok(()), 1), "{failure:?}");
    }
    let fine = Buffer::new(gpu, 64).unwrap();
    assert_eq!(reports::count(|| drop(fine)), 0);
}

#[test]
fn a_panic_of_the_owner_releases_once() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let unwound = catch_unwind(AssertUnwindSafe(|| {
        let _buffer = Buffer::new(gpu, 64).unwrap();
        panic!("while the buffer lives");
    }));
    assert!(unwound.is_err());
    assert_eq!(machine.releases().len(), 1);
    machine.assert_clean();
}

#[test]
fn buffers_of_one_scope_go_in_reverse_order() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    {
        let _first = Buffer::new_on(gpu.clone(), 1, S1).unwrap();
        let _second = Buffer::new_on(gpu, 2, S2).unwrap();
    }
    assert_eq!(machine.releases(), [(GPU, S2, vec![]), (GPU, S1, vec![])]);
}

#[test]
fn what_fails_to_be_filled_at_birth_is_given_back() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    machine.fail(Call::Fill, 1, Failure::Error);
    assert!(matches!(Buffer::zeroed(gpu.clone(), 64), Err(BufferError::Transfer(_))));
    machine.fail(Call::Copy, 1, Failure::Error);
    assert!(matches!(Buffer::from_slice(gpu, &[1_u8; 64]), Err(BufferError::Transfer(_))));
    assert_eq!(machine.releases().len(), 2);
    machine.assert_clean();
}

#[test]
fn zero_bytes_are_a_buffer_like_any_other() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let (mut a, b) = (Buffer::new(gpu.clone(), 0).unwrap(), Buffer::zeroed(gpu.clone(), 0).unwrap());
    assert_ne!(a.address(), b.address());
    assert!(a.is_empty());
    assert_eq!(a.copy_from(&b).unwrap(), 0);
    assert_eq!(a.copy_from(&[1_u8]).unwrap(), 0);
    a.fill(1).unwrap();
    a.copy_from_exact(&b).unwrap();
    assert!(a.to_vec::<u64>().unwrap().is_empty());
    let on_host = Buffer::new(machine.allocator(Device::CPU), 0).unwrap();
    assert!(on_host.as_bytes().unwrap().is_empty());
    assert!(on_host.as_slice::<u64>().unwrap().is_empty());
    assert!(!machine.log().iter().any(|event| matches!(event, Event::Copy { .. } | Event::Fill { .. })));
    drop((a, b, on_host));
    assert_eq!(machine.releases().len(), 3);
    machine.assert_clean();
}

#[test]
fn impossible_sizes_are_errors_and_nothing_is_lost() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let overflow = Buffer::new(gpu.clone(), u64::MAX).unwrap_err();
    assert!(matches!(overflow, BufferError::Alloc(AllocError::Layout(LayoutError::Overflow { size: u64::MAX, .. }))));
    let too_large = Buffer::new(gpu.clone(), 1 << 50).unwrap_err();
    assert!(matches!(too_large, BufferError::Alloc(AllocError::TooLarge { requested, .. }) if requested == 1 << 50));
    assert_eq!(gpu.device(), GPU);
    assert!(machine.log().is_empty());
}

#[test]
fn raw_parts_carry_everything_and_release_nothing() {
    let machine = Machine::new();
    let mut buffer = Buffer::with_layout(machine.allocator(GPU), Layout::new(64, 512).unwrap(), S1).unwrap();
    buffer.copy_from_on(&[7_u8; 10], S2).unwrap();
    buffer.use_on(Stream::from_raw(5));
    let _ = buffer.resize(32).unwrap();
    let address = buffer.address();
    let parts = buffer.into_raw_parts().unwrap();
    assert_eq!(machine.releases(), []);
    assert_eq!((parts.block.address(), parts.block.size(), parts.len, parts.align), (address, 64, 32, 512));
    assert_eq!((parts.stream, parts.initialised), (S1, 10));
    assert!(parts.uses.contains(Stream::from_raw(5)));
    // SAFETY: the parts are as they came.
    let buffer = unsafe { Buffer::from_raw_parts(parts) };
    assert_eq!((buffer.len(), buffer.capacity(), buffer.initialised()), (32, 64, 10));
    assert_eq!(buffer.slice(..10).unwrap().to_vec::<u8>().unwrap(), [7; 10]);
    buffer.use_on(Stream::from_raw(6));
    drop(buffer);
    assert_eq!(machine.releases().len(), 1);
    assert!(machine.releases()[0].2.contains(&Stream::from_raw(6)));
    machine.assert_clean();
}

#[test]
fn memory_that_nobody_releases_keeps_its_allocator() {
    let machine = Machine::new();
    let source = Buffer::zeroed_on(machine.allocator(GPU), 64, S2).unwrap();
    let in_use = |gpu| {
        let mut buffer = Buffer::new_on(gpu, 64, S1).unwrap();
        buffer.copy_from_on(&source, S2).unwrap();
        buffer
    };
    // The allocator knows of no work on the second stream, and if it went its memory would go under the copy.
    let gpu = machine.allocator(GPU);
    let weak = Arc::downgrade(&gpu);
    drop(in_use(gpu).into_raw_parts().unwrap());
    assert_eq!((machine.waiting(), weak.strong_count()), (2, 1), "dropped parts");

    let gpu = machine.allocator(GPU);
    let weak = Arc::downgrade(&gpu);
    let buffer = in_use(gpu);
    machine.fail(Call::Release, 1, Failure::Panic);
    assert_eq!(reports::count(|| drop(buffer)), 1);
    assert_eq!((machine.waiting(), weak.strong_count()), (3, 1), "a release that panicked");

    let gpu = machine.allocator(GPU);
    let weak = Arc::downgrade(&gpu);
    let buffer = Buffer::zeroed(gpu, 64).unwrap();
    buffer.synchronize().unwrap();
    let mut other = Buffer::new(machine.allocator(OTHER), 64).unwrap();
    machine.fail(Call::Synchronize, 1, Failure::Error);
    assert!(other.copy_from_on(&buffer, S1).is_err());
    assert_eq!(reports::count(|| drop(buffer)), 1);
    assert_eq!((machine.waiting(), weak.strong_count()), (4, 1), "a copy that was never seen to finish");

    // Parts that are taken up again keep nothing.
    let gpu = machine.allocator(GPU);
    let weak = Arc::downgrade(&gpu);
    let parts = in_use(gpu).into_raw_parts().unwrap();
    assert_eq!((parts.allocator.device(), weak.strong_count()), (GPU, 1));
    // SAFETY: the parts are as they came.
    drop(unsafe { Buffer::from_raw_parts(parts) });
    assert_eq!(weak.strong_count(), 0);
    machine.run_all();
    assert_eq!(machine.violations(), 0);
}

#[test]
fn debug_output_tells_what_a_buffer_is() {
    let machine = Machine::new();
    let buffer = Buffer::new_on(machine.allocator(GPU), 64, S1).unwrap();
    let text = format!("{buffer:?}");
    assert!(text.contains("kind77:0") && text.contains("len: 64") && text.contains("stream(0x1)"), "{text}");
}
