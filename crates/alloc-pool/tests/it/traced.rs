//! Whoever traces may use the pool that is traced.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alloc_core::conformance::SimulatedProvider;
use alloc_core::{DeviceAllocator, Layout, ProviderErrorKind, Stream};
use alloc_pool::{Pool, PoolConfig};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use crate::support::{A, B, C, KIB, PAGE, give, simulated, take};

/// Finds out whether an event's text begins with what it looks for.
struct Text {
    beginning: &'static str,
    found: bool,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.found |= [field.name(), &format!("{value:?}")].iter().any(|text| text.starts_with(self.beginning));
    }
}

/// Uses the pool on every event, on a stream that it has not seen, and counts the events that say what is looked for.
#[derive(Debug, Default)]
struct Listener {
    pool: OnceLock<std::sync::Weak<Pool<SimulatedProvider>>>,
    looked_for: &'static str,
    found: AtomicU64,
    streams: AtomicU64,
}

impl Subscriber for Listener {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = Text { beginning: self.looked_for, found: false };
        event.record(&mut text);
        self.found.fetch_add(u64::from(text.found), Ordering::Relaxed);
        let Some(pool) = self.pool.get().and_then(std::sync::Weak::upgrade) else { return };
        let stream = Stream::from_raw(100 + self.streams.fetch_add(1, Ordering::Relaxed));
        let block = pool.allocate(Layout::bytes(PAGE).unwrap(), stream);
        block.into_iter().for_each(|block| give(&pool, block, stream));
        pool.statistics();
        pool.trim(PAGE);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Does something to a pool while somebody listens; how many events said what is looked for.
fn events(looked_for: &'static str, work: impl FnOnce(&Pool<SimulatedProvider>, &SimulatedProvider) + Send) -> u64 {
    let listener = Arc::new(Listener { looked_for, ..Listener::default() });
    let provider = SimulatedProvider::new(simulated());
    let pool =
        Arc::new(Pool::new(provider.clone(), PoolConfig { growth_slack: 0.0, ..PoolConfig::default() }).unwrap());
    listener.pool.set(Arc::downgrade(&pool)).unwrap();
    std::thread::scope(|scope| {
        let (done, is_done) = channel::<()>();
        let heard = Arc::clone(&listener);
        scope.spawn(move || {
            tracing::subscriber::with_default(heard, || work(&pool, &provider));
            drop(done);
        });
        if is_done.recv_timeout(Duration::from_secs(120)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("an event was told under a lock that the listener needs");
            std::process::abort();
        }
    });
    listener.found.load(Ordering::Relaxed)
}

#[test]
fn a_stream_that_can_t_take_over_from_another_is_told_of_without_locks() {
    let told = (1..12).map(|call| {
        events("nothing is taken over", |pool, provider| {
            let block = take(pool, 50 * KIB, C);
            provider.submit(C, block.address(), block.size());
            give(pool, block, C);
            pool.retire_stream(C);
            provider.fail_call(call, ProviderErrorKind::Other);
            let taken = pool.allocate(Layout::bytes(1000).unwrap(), A);
            provider.cancel_failures();
            taken.into_iter().for_each(|block| give(pool, block, A));
            give(pool, take(pool, PAGE, B), B);
        })
    });
    assert!(told.sum::<u64>() > 0);
}

#[test]
fn a_stream_whose_end_is_unknown_is_told_of_without_locks() {
    let told = events("the point up to which", |pool, provider| {
        let block = take(pool, PAGE, C);
        provider.submit(C, block.address(), block.size());
        give(pool, block, C);
        provider.fail_always(Some(ProviderErrorKind::Other));
        pool.retire_stream(C);
        provider.fail_always(None);
    });
    assert_eq!(told, 1);
}

#[test]
fn memory_that_the_backend_did_not_take_well_is_told_of_without_locks() {
    let told = (1..12).map(|call| {
        events("the backend complained", |pool, provider| {
            give(pool, take(pool, PAGE, C), C);
            provider.fail_call(call, ProviderErrorKind::Other);
            pool.trim(0);
            provider.cancel_failures();
        })
    });
    assert!(told.sum::<u64>() > 0);
}
