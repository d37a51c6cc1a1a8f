//! A stream's end, and other threads in the midst of a call about it.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

use alloc_core::conformance::{SimulatedEvent, SimulatedPhysical, SimulatedProvider};
use alloc_core::{DeviceAllocator, Layout, MemoryProvider, ProviderError, Stream, forward_provider};
use alloc_pool::{Pool, PoolConfig};

use crate::support::{A, B, C, KIB, PAGE, give, simulated, take, try_give};

thread_local! {
    /// Whether this thread stops in its next call about an event.
    static STOPS: Cell<bool> = const { Cell::new(false) };
}

/// A provider in which a thread stops that is about to ask the driver.
#[derive(Clone, Debug)]
struct Stopping {
    inner: SimulatedProvider,
    reached: Arc<Barrier>,
    goes_on: Arc<Barrier>,
}

impl Stopping {
    fn stop(&self) {
        if STOPS.replace(false) {
            self.reached.wait();
            self.goes_on.wait();
        }
    }
}

// SAFETY: the simulated provider keeps the promises.
unsafe impl MemoryProvider for Stopping {
    type Physical = SimulatedPhysical;
    type Event = SimulatedEvent;

    fn record(&self, stream: Stream) -> Result<Option<Self::Event>, ProviderError> {
        self.stop();
        self.inner.record(stream)
    }

    fn synchronize(&self, event: &Self::Event) -> Result<(), ProviderError> {
        self.stop();
        self.inner.synchronize(event)
    }

    forward_provider!(
        self => self.inner; device, addressing, granularity, memory, reserve, unreserve, create, release, map, unmap,
        segment_address, is_complete, is_idle, is_idle_dear, make_wait, recycle, is_capturing, transfer
    );
}

fn rig() -> (Stopping, Pool<Stopping>) {
    rig_of(PoolConfig { growth_slack: 16.0, ..PoolConfig::default() })
}

fn rig_of(config: PoolConfig) -> (Stopping, Pool<Stopping>) {
    let barrier = || Arc::new(Barrier::new(2));
    let provider = Stopping { inner: SimulatedProvider::new(simulated()), reached: barrier(), goes_on: barrier() };
    let pool = Pool::new(provider.clone(), config).unwrap();
    (provider, pool)
}

/// What is not to happen has so much time for it, and what is to happen all that it needs.
const A_MOMENT: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(60);

/// Whether `meanwhile` comes to its end within that time while another thread is in the midst of a call that `trim` makes.
fn ends_within(time: Duration, provider: &Stopping, pool: &Pool<Stopping>, meanwhile: impl FnOnce() + Send) -> bool {
    let has_ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopped = scope.spawn(|| {
            STOPS.set(true);
            pool.trim(0);
        });
        provider.reached.wait();
        let (ended, is_ended) = channel::<()>();
        let other = scope.spawn(|| {
            meanwhile();
            drop(ended);
        });
        let ended = is_ended.recv_timeout(time) == Err(RecvTimeoutError::Disconnected);
        has_ended.store(ended, Ordering::Relaxed);
        provider.goes_on.wait();
        // A scope does not wait for what threads do as they end, which is to give their caches back.
        for thread in [stopped, other] {
            thread.join().unwrap();
        }
    });
    has_ended.into_inner()
}

#[test]
fn a_stream_does_not_end_while_another_thread_waits_for_it() {
    let (provider, pool) = rig();
    let block = take(&pool, PAGE, A);
    provider.inner.submit(A, block.address(), block.size());
    give(&pool, block, A);
    assert!(
        !ends_within(A_MOMENT, &provider, &pool, || pool.retire_stream(A)),
        "it could be destroyed before it is asked"
    );
    provider.inner.assert_clean();
}

#[test]
fn a_stream_does_not_end_while_another_thread_looks_for_the_end_of_its_capture() {
    let (provider, pool) = rig();
    let (block, own) = (take(&pool, 1000, B), take(&pool, 1000, A));
    provider.inner.set_capturing(A, true);
    provider.inner.submit(A, block.address(), block.size());
    try_give(&pool, block, B, &[A]).unwrap();
    provider.inner.set_capturing(A, false);
    provider.inner.drop_graph(A);
    give(&pool, own, A);
    assert!(
        !ends_within(A_MOMENT, &provider, &pool, || pool.retire_stream(A)),
        "it could be destroyed before it is asked"
    );
    provider.inner.assert_clean();
}

#[test]
fn others_allocate_while_a_stream_that_ended_is_waited_for() {
    let (provider, pool) = rig();
    let (block, own) = (take(&pool, 50 * KIB, B), take(&pool, 1000, A));
    provider.inner.submit(A, block.address(), block.size());
    give(&pool, own, A);
    pool.retire_stream(A);
    try_give(&pool, block, B, &[A]).unwrap();
    let allocate = || give(&pool, take(&pool, 1000, C), C);
    assert!(ends_within(LONG, &provider, &pool, allocate), "what is waited for may wait for that thread");
    assert_eq!(provider.inner.pending(A), 0);
    drop(pool);
    provider.inner.assert_all_returned();
}

#[test]
fn what_one_thread_waits_for_another_may_have() {
    let (provider, pool) = rig_of(PoolConfig { limit: Some(4 * PAGE), thread_cache: 0, ..PoolConfig::default() });
    let layout = Layout::bytes(50 * KIB).unwrap();
    let blocks: Vec<_> = std::iter::from_fn(|| pool.allocate(layout, B).ok()).collect();
    assert!(blocks.len() > 100);
    for &block in &blocks {
        provider.inner.submit(A, block.address(), block.size());
        try_give(&pool, block, B, &[A]).unwrap();
    }
    let taken = Mutex::new(Vec::new());
    ends_within(A_MOMENT, &provider, &pool, || {
        let again = (0..blocks.len() / 2).map(|_| pool.allocate(layout, B));
        taken.lock().unwrap().extend(again);
    });
    for block in taken.into_inner().unwrap() {
        give(&pool, block.unwrap(), B);
    }
    provider.inner.assert_clean();
}
