//! Adaptors around adaptors.

use std::sync::{Arc, Mutex};

use super::*;
use crate::{AllocError, Block, Device, DeviceAllocator, Layout, ReleaseError, SimulatedAllocator, Stream, StreamSet};

fn bytes(size: u64) -> Layout {
    Layout::bytes(size).unwrap()
}

fn release(allocator: &dyn DeviceAllocator, block: Block) -> Result<(), ReleaseError> {
    // SAFETY: nothing uses simulated memory.
    unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }
}

/// Every adaptor there is, around one device, as a trait object.
fn everything(device: Arc<SimulatedAllocator>, faults: Faults) -> Box<dyn DeviceAllocator> {
    let limited = Limited::new(FaultInjection::new(device, faults), 8192);
    #[cfg(feature = "tracking")]
    let limited = Tracking::new(limited);
    let logging = Logging::new(limited, std::io::sink());
    let empty = SimulatedAllocator::new(Device::CPU, 0);
    let fallback = Fallback::new(logging, empty).unwrap();
    Box::new(RetryOnFailure::new(fallback, |_: &AllocError, _: u64| false))
}

#[test]
fn a_failure_at_every_call_index_loses_nothing() {
    const CALLS: u64 = 40;
    for failing in 1..=CALLS {
        let device = Arc::new(SimulatedAllocator::new(Device::CPU, 1 << 20));
        let allocator = everything(Arc::clone(&device), Faults::none().nth(failing));
        let mut living = Vec::new();
        let mut failed = Vec::new();
        for call in 1..=CALLS {
            match allocator.allocate(bytes(call * 10), Stream::DEFAULT) {
                Ok(block) => living.push(block),
                Err(error) => {
                    assert!(matches!(&error, AllocError::OutOfMemory(figures) if figures.requested == call * 10));
                    failed.push(call);
                }
            }
            if call % 3 == 0 {
                release(&*allocator, living.remove(0)).unwrap();
            }
        }
        assert_eq!(failed, [failing]);
        let expected: u64 = living.iter().map(Block::size).sum();
        assert_eq!(device.statistics().requested.current, expected);
        for block in living {
            release(&*allocator, block).unwrap();
            assert!(release(&*allocator, block).is_err());
        }
        assert_eq!(device.statistics().requested.current, 0);
        assert_eq!(device.statistics().largest_free, device.capacity());
        // Nothing counts against the limit any more: all of it can be had again.
        let all = allocator.allocate(bytes(8192), Stream::DEFAULT).unwrap();
        release(&*allocator, all).unwrap();
    }
}

#[test]
fn a_retry_around_a_limit_serves_from_a_cache() {
    let limited = Arc::new(Limited::new(SimulatedAllocator::new(Device::CPU, 1 << 20), 1000));
    let cache = Mutex::new(Vec::new());
    for _ in 0..4 {
        cache.lock().unwrap().push(limited.allocate(bytes(250), Stream::DEFAULT).unwrap());
    }
    let allocator = RetryOnFailure::new(Arc::clone(&limited), |error: &AllocError, wanted: u64| {
        assert!(matches!(error, AllocError::LimitReached { requested: 600, limit: 1000, .. }));
        assert_eq!(wanted, 600);
        let block = cache.lock().unwrap().pop();
        block.is_some_and(|block| release(&limited, block).is_ok())
    });
    let block = allocator.allocate(bytes(600), Stream::DEFAULT).unwrap();
    assert_eq!((allocator.retries(), limited.in_use()), (3, 850));
    release(&allocator, block).unwrap();
}

#[test]
fn adaptors_hand_the_rest_through() {
    let device = Arc::new(SimulatedAllocator::new(Device::cuda(2), 1 << 20));
    let allocator = FaultInjection::new(Logging::new(Arc::clone(&device), std::io::sink()), Faults::none());
    assert_eq!(allocator.device(), Device::cuda(2).simulated());
    assert_eq!(allocator.trim(0), 0);
    allocator.retire_stream(Stream::from_raw(1));
    allocator.transfer().synchronize(Stream::DEFAULT).unwrap();
    let block = allocator.allocate(bytes(10), Stream::DEFAULT).unwrap();
    assert_eq!(allocator.statistics(), device.statistics());
    release(&allocator, block).unwrap();
}
