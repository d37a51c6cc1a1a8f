//! Adaptors around adaptors.

use std::sync::{Arc, Mutex};

use super::*;
use crate::{
    Address, AddressRange, AllocError, Block, Device, DeviceAllocator, Gauge, Layout, ProviderCalls, ReleaseError,
    SimulatedAllocator, Statistics, Stream, StreamSet, Transfer,
};

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

/// Notes what reaches it, and says something of its own in return.
#[derive(Debug)]
struct Witness {
    inner: SimulatedAllocator,
    trimmed: Mutex<Vec<u64>>,
    retired: Mutex<Vec<Stream>>,
    reserved: u64,
}

impl Witness {
    fn new(start: u64, reserved: u64) -> Arc<Self> {
        let range = AddressRange { start: Address::new(start), bytes: 1 << 20 };
        let inner = SimulatedAllocator::in_range(Device::cuda(2), range);
        Arc::new(Self { inner, trimmed: Mutex::default(), retired: Mutex::default(), reserved })
    }
}

// SAFETY: the device is simulated.
unsafe impl DeviceAllocator for Witness {
    fn device(&self) -> Device {
        self.inner.device()
    }
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        self.inner.allocate(layout, stream)
    }
    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        // SAFETY: as the caller promises.
        unsafe { self.inner.release(block, stream, uses) }
    }
    /// Each figure another.
    fn statistics(&self) -> Statistics {
        let gauge = |first| Gauge { current: first, peak: first + 1, total: first + 2, count: first + 3 };
        Statistics {
            requested: gauge(100),
            in_use: gauge(200),
            reserved: gauge(self.reserved),
            cached: 1,
            parked: gauge(300),
            hits: 2,
            misses: 3,
            moves: 4,
            largest_free: 5 + self.reserved,
            rejected_releases: 6,
            leaked: 7,
            provider_calls: ProviderCalls {
                reserve: 10,
                create: 11,
                map: 12,
                unmap: 13,
                release: 14,
                record: 15,
                query: 16,
                wait: 17,
            },
        }
    }
    fn trim(&self, keep: u64) -> u64 {
        self.trimmed.lock().unwrap().push(keep);
        1000 + self.reserved
    }
    fn grow_to(&self, bytes: u64, stream: Stream) -> Result<u64, AllocError> {
        Ok(bytes + stream.handle())
    }
    fn transfer(&self) -> &dyn Transfer {
        self.inner.transfer()
    }
    fn retire_stream(&self, stream: Stream) {
        self.retired.lock().unwrap().push(stream);
    }
}

#[test]
fn adaptors_and_pointers_hand_the_rest_through() {
    type Wrap = fn(Arc<Witness>) -> Box<dyn DeviceAllocator>;
    let all: &[(&str, Wrap)] = &[
        ("Limited", |inner| Box::new(Limited::new(inner, 8192))),
        ("FaultInjection", |inner| Box::new(FaultInjection::new(inner, Faults::none()))),
        ("Logging", |inner| Box::new(Logging::new(inner, std::io::sink()))),
        ("RetryOnFailure", |inner| Box::new(RetryOnFailure::new(inner, |_: &AllocError, _: u64| false))),
        #[cfg(feature = "tracking")]
        ("Tracking", |inner| Box::new(Tracking::new(inner))),
        ("Arc", |inner| Box::new(inner)),
        ("Box", |inner| Box::new(Box::new(inner))),
        ("&", |inner| Box::new(&*Box::leak(Box::new(inner)))),
        ("dyn", |inner| Box::new(inner as Arc<dyn DeviceAllocator>)),
    ];
    for (name, wrap) in all {
        let witness = Witness::new(4096, 500);
        let outer = wrap(Arc::clone(&witness));
        assert_eq!(outer.device(), Device::cuda(2).simulated(), "{name}");
        assert_eq!(outer.statistics(), witness.statistics(), "{name}");
        assert_eq!((outer.trim(77), &*witness.trimmed.lock().unwrap()), (1500, &vec![77]), "{name}");
        assert_eq!(outer.grow_to(3000, Stream::from_raw(5)).unwrap(), 3005, "{name}");
        outer.retire_stream(Stream::from_raw(9));
        assert_eq!(*witness.retired.lock().unwrap(), [Stream::from_raw(9)], "{name}");
        let transfer = std::ptr::from_ref(outer.transfer()).cast::<()>();
        assert_eq!(transfer, std::ptr::from_ref(witness.transfer()).cast(), "{name}");
        let block = outer.allocate(bytes(10), Stream::DEFAULT).unwrap();
        release(&*outer, block).unwrap();
        assert_eq!(witness.inner.statistics().requested.total, 10, "{name}");
        assert_eq!(witness.inner.statistics().requested.current, 0, "{name}");
    }
}

#[test]
fn a_fallback_speaks_for_both() {
    let (first, second) = (Witness::new(4096, 500), Witness::new(1 << 30, 800));
    let allocator = Fallback::new(Arc::clone(&first), Arc::clone(&second)).unwrap();
    allocator.retire_stream(Stream::from_raw(9));
    for witness in [&first, &second] {
        assert_eq!(*witness.retired.lock().unwrap(), [Stream::from_raw(9)]);
    }
    // Together they are to keep 900: the second what the first leaves of that, and the first then the same.
    assert_eq!(allocator.trim(900), 1500 + 1800);
    assert_eq!((&*first.trimmed.lock().unwrap(), &*second.trimmed.lock().unwrap()), (&vec![100], &vec![400]));
    // The second holds 800 of them.
    assert_eq!(allocator.grow_to(3000, Stream::from_raw(5)).unwrap(), 2205 + 800);
    let (sum, one) = (allocator.statistics(), first.statistics());
    let twice = |gauge: Gauge| Gauge {
        current: 2 * gauge.current,
        peak: 2 * gauge.peak,
        total: 2 * gauge.total,
        count: 2 * gauge.count,
    };
    assert_eq!(sum.requested, twice(one.requested));
    assert_eq!(sum.in_use, twice(one.in_use));
    assert_eq!(sum.parked, twice(one.parked));
    assert_eq!(sum.reserved, Gauge { current: 1300, peak: 1302, total: 1304, count: 1306 });
    assert_eq!((sum.cached, sum.hits, sum.misses, sum.moves), (2, 4, 6, 8));
    assert_eq!((sum.rejected_releases, sum.leaked, sum.largest_free), (12, 14, 805));
    let ProviderCalls { reserve, create, map, unmap, release, record, query, wait } = sum.provider_calls;
    assert_eq!([reserve, create, map, unmap, release, record, query, wait], [20, 22, 24, 26, 28, 30, 32, 34]);
}
