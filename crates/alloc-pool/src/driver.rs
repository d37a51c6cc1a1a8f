//! The calls to the backend, counted. The one module of this crate with `unsafe` code.
//!
//! The page layer keeps the books that the promises to [`MemoryProvider`] rest on: which physical memory is mapped
//! where, and which view of it is in use. Its functions are the only callers.

use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::{Address, AddressRange, MemoryProvider, ProviderCalls, ProviderError, Stream};

/// A provider and how often it was called.
#[derive(Debug)]
pub(crate) struct Driver<P> {
    provider: P,
    reserve: AtomicU64,
    create: AtomicU64,
    map: AtomicU64,
    unmap: AtomicU64,
    release: AtomicU64,
    record: AtomicU64,
    query: AtomicU64,
    wait: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl<P: MemoryProvider> Driver<P> {
    pub(crate) fn new(provider: P) -> Self {
        Self {
            provider,
            reserve: AtomicU64::new(0),
            create: AtomicU64::new(0),
            map: AtomicU64::new(0),
            unmap: AtomicU64::new(0),
            release: AtomicU64::new(0),
            record: AtomicU64::new(0),
            query: AtomicU64::new(0),
            wait: AtomicU64::new(0),
        }
    }

    pub(crate) fn provider(&self) -> &P {
        &self.provider
    }

    pub(crate) fn calls(&self) -> ProviderCalls {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut calls = ProviderCalls::default();
        calls.reserve = read(&self.reserve);
        calls.create = read(&self.create);
        calls.map = read(&self.map);
        calls.unmap = read(&self.unmap);
        calls.release = read(&self.release);
        calls.record = read(&self.record);
        calls.query = read(&self.query);
        calls.wait = read(&self.wait);
        calls
    }

    pub(crate) fn reserve(&self, bytes: u64) -> Result<AddressRange, ProviderError> {
        count(&self.reserve);
        self.provider.reserve(bytes)
    }

    /// Only for a range in which no view is left.
    pub(crate) fn unreserve(&self, range: AddressRange) -> Result<(), ProviderError> {
        // SAFETY: ranges are reserved once per arena, given back only when the pool is dropped, after all views.
        unsafe { self.provider.unreserve(range) }
    }

    pub(crate) fn create(&self, bytes: u64) -> Result<P::Physical, ProviderError> {
        count(&self.create);
        self.provider.create(bytes)
    }

    /// Only for memory without a view and without work.
    pub(crate) fn release(&self, physical: P::Physical, bytes: u64) -> Result<(), ProviderError> {
        count(&self.release);
        // SAFETY: the page layer made it with the same size, removed its views, and waited for its streams.
        unsafe { self.provider.release(physical, bytes) }
    }

    /// Only where nothing is mapped.
    pub(crate) fn map(&self, at: Address, physical: &P::Physical, bytes: u64) -> Result<(), ProviderError> {
        count(&self.map);
        // SAFETY: the page layer's table of views says that these granules of a reserved range are unmapped.
        unsafe { self.provider.map(at, physical, bytes) }
    }

    /// Only for one whole view whose work is complete.
    pub(crate) fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError> {
        count(&self.unmap);
        // SAFETY: the table of views says that one mapping starts here with this size; its arena's stream is idle.
        unsafe { self.provider.unmap(at, bytes) }
    }

    pub(crate) fn record(&self, stream: Stream) -> Result<Option<P::Event>, ProviderError> {
        count(&self.record);
        self.provider.record(stream)
    }

    pub(crate) fn is_complete(&self, event: &P::Event) -> Result<bool, ProviderError> {
        count(&self.query);
        self.provider.is_complete(event)
    }

    pub(crate) fn is_idle(&self, stream: Stream) -> Result<bool, ProviderError> {
        count(&self.query);
        self.provider.is_idle(stream)
    }

    pub(crate) fn synchronize(&self, event: &P::Event) -> Result<(), ProviderError> {
        count(&self.query);
        self.provider.synchronize(event)
    }

    pub(crate) fn make_wait(&self, stream: Stream, event: &P::Event) -> Result<(), ProviderError> {
        count(&self.wait);
        self.provider.make_wait(stream, event)
    }
}
