//! Vectors and boxes live in an allocator's memory and give all of it back.

use std::alloc::Layout as PlainLayout;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use alloc_core::{
    Device, DeviceAllocator, Place, ProviderError, ProviderErrorKind, SimulatedAllocator, Stream, Transfer,
    TransferError, forward_allocator,
};
use alloc_cpu::{HostAlloc, NotHostAccessible, SystemAllocator};
use allocator_api2::alloc::Allocator;
use allocator_api2::{boxed::Box, vec::Vec};

fn used(allocator: &SystemAllocator) -> (u64, u64) {
    let statistics = allocator.statistics();
    (statistics.in_use.current, statistics.rejected_releases)
}

#[test]
fn a_vector_grows_shrinks_and_goes() {
    let allocator = SystemAllocator::new();
    let host = HostAlloc::borrowed(&allocator).unwrap().on_stream(Stream::from_raw(3));
    let mut numbers = Vec::new_in(host.clone());
    assert_eq!(used(&allocator), (0, 0), "an empty vector has no memory");
    for n in 0..100_000u32 {
        numbers.push(n);
    }
    assert!(used(&allocator).0 >= 400_000);
    numbers.truncate(10);
    numbers.shrink_to_fit();
    assert!(numbers.iter().copied().eq(0..10));
    numbers.clear();
    numbers.shrink_to_fit();
    assert_eq!(used(&allocator), (0, 0));
    numbers.extend([7; 5]);
    let copy = numbers.clone();
    drop(numbers);
    assert_eq!(copy, [7; 5]);
    drop(copy);
    assert_eq!(used(&allocator), (0, 0));
}

#[test]
fn boxes_keep_their_alignment() {
    #[repr(align(4096))]
    struct Wide([u8; 5000]);
    #[repr(align(64))]
    struct Line(u64);

    let allocator = SystemAllocator::new();
    let host = HostAlloc::borrowed(&allocator).unwrap();
    let wide = Box::new_in(Wide([9; 5000]), host.clone());
    let line = Box::new_in(Line(5), host.clone());
    let nothing = Box::new_in((), host.clone());
    let text: Box<[Line], _> = (0..9)
        .map(Line)
        .fold(Vec::new_in(host), |mut all, line| {
            all.push(line);
            all
        })
        .into_boxed_slice();
    assert_eq!(std::ptr::from_ref(&*wide).addr() % 4096, 0);
    assert_eq!(std::ptr::from_ref(&*line).addr() % 64, 0);
    assert!(wide.0.iter().all(|&byte| byte == 9) && line.0 == 5);
    assert_eq!(size_of_val(&*nothing), 0);
    assert!(text.iter().map(|line| line.0).eq(0..9));
    drop((wide, line, nothing, text));
    assert_eq!(used(&allocator), (0, 0));
}

#[test]
fn memory_grows_in_place_while_its_block_has_room() {
    let allocator = SystemAllocator::new();
    let host = HostAlloc::borrowed(&allocator).unwrap();
    let layout = |size, align| PlainLayout::from_size_align(size, align).unwrap();
    let first = host.allocate(layout(1000, 8)).unwrap();
    assert!(first.len() >= 1000);
    // SAFETY: each call hands over what the one before returned, with a layout that fits it.
    unsafe {
        first.cast::<u8>().write_bytes(1, first.len());
        let grown = host.grow(first.cast(), layout(1000, 8), layout(first.len(), 8)).unwrap();
        assert_eq!(grown, first, "the block has room");
        let shrunk = host.shrink(grown.cast(), layout(first.len(), 8), layout(10, 8)).unwrap();
        assert_eq!(shrunk, first);
        let zeroed = host.grow_zeroed(shrunk.cast(), layout(10, 8), layout(5000, 8)).unwrap();
        let bytes = zeroed.as_ref();
        assert!(bytes[..10].iter().all(|&byte| byte == 1) && bytes[10..].iter().all(|&byte| byte == 0));
        let aligned = host.grow(zeroed.cast(), layout(5000, 8), layout(5000, 1 << 16)).unwrap();
        assert!(aligned.cast::<u8>().addr().get().is_multiple_of(1 << 16));
        assert!(aligned.as_ref()[..10].iter().all(|&byte| byte == 1));
        let none = host.shrink(aligned.cast(), layout(5000, 1 << 16), layout(0, 8)).unwrap();
        assert_eq!((none.len(), used(&allocator)), (0, (0, 0)));
        let again = host.grow(none.cast(), layout(0, 8), layout(64, 8)).unwrap();
        host.deallocate(again.cast(), layout(64, 8));
        host.deallocate(none.cast(), layout(0, 8));
    }
    assert_eq!(used(&allocator), (0, 0));
}

#[test]
fn want_of_memory_is_an_error() {
    let allocator = SystemAllocator::new();
    let mut bytes = Vec::new_in(HostAlloc::borrowed(&allocator).unwrap());
    bytes.extend([1u8, 2, 3]);
    assert!(bytes.try_reserve(1 << 52).is_err());
    assert!(bytes.try_reserve(isize::MAX as usize - 100).is_err());
    assert_eq!(bytes, [1, 2, 3]);
    drop(bytes);
    assert_eq!(used(&allocator), (0, 0));
}

#[test]
fn collections_keep_a_private_allocator_alive() {
    let allocator = Arc::new(SystemAllocator::new());
    let watch = Arc::downgrade(&allocator);
    let mut words = Vec::new_in(HostAlloc::new(allocator).unwrap());
    words.extend([1u64; 100]);
    assert_eq!(words.iter().sum::<u64>(), 100);
    assert!(watch.upgrade().is_some());
    drop(words);
    assert!(watch.upgrade().is_none());
}

#[test]
fn memory_out_of_reach_is_refused() {
    let simulated = SimulatedAllocator::new(Device::CPU, 1 << 20);
    let device = simulated.device();
    let error = HostAlloc::borrowed(&simulated).unwrap_err();
    assert!(matches!(error, NotHostAccessible { device: refused, .. } if refused == device));
    assert_eq!(HostAlloc::new(Arc::new(simulated)).unwrap_err(), error);
}

/// The system's heap, with a note of the streams that were waited for.
#[derive(Debug, Default)]
struct Waiting {
    heap: SystemAllocator,
    waited: Mutex<Vec<Stream>>,
    fails: AtomicBool,
}

// SAFETY: blocks are those of the system's allocator.
unsafe impl DeviceAllocator for Waiting {
    forward_allocator!(self => self.heap; device, allocate, release, statistics, trim, grow_to, retire_stream);

    fn transfer(&self) -> &dyn Transfer {
        self
    }
}

// SAFETY: copies and fills are those of the system's allocator, done when they return.
unsafe impl Transfer for Waiting {
    fn can_copy(&self, from: Device, to: Device) -> bool {
        self.heap.transfer().can_copy(from, to)
    }
    unsafe fn copy(&self, from: Place, to: Place, bytes: u64, stream: Stream) -> Result<(), TransferError> {
        // SAFETY: the caller's promises are those that the inner transfer asks for.
        unsafe { self.heap.transfer().copy(from, to, bytes, stream) }
    }
    unsafe fn fill(&self, to: Place, bytes: u64, value: u8, stream: Stream) -> Result<(), TransferError> {
        // SAFETY: as above.
        unsafe { self.heap.transfer().fill(to, bytes, value, stream) }
    }
    fn synchronize(&self, stream: Stream) -> Result<(), TransferError> {
        self.waited.lock().unwrap().push(stream);
        if self.fails.load(Ordering::Relaxed) {
            let (device, kind) = (self.device(), ProviderErrorKind::Poisoned);
            return Err(ProviderError::new(device, "synchronize", kind, "INJECTED").into());
        }
        Ok(())
    }
}

#[test]
fn new_memory_is_used_only_when_its_stream_was_waited_for() {
    let allocator = Waiting::default();
    let stream = Stream::from_raw(5);
    let host = HostAlloc::borrowed(&allocator).unwrap().on_stream(stream);
    let number = Box::new_in(7, host.clone());
    assert_eq!((*number, allocator.waited.lock().unwrap().as_slice()), (7, [stream].as_slice()));

    allocator.fails.store(true, Ordering::Relaxed);
    assert!(Box::try_new_in(8, host).is_err());
    assert_eq!(allocator.statistics().in_use.count, 2);
    drop(number);
    assert_eq!(used(&allocator.heap), (0, 0), "the block that could not be waited for went back");
}
