//! Time inside the driver.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use alloc_core::{Address, AddressRange, DeviceMemory, MemoryProvider, ProviderError, Stream, forward_provider};
use alloc_cuda::{DeviceProvider, Event, Physical};

/// A provider that takes the time of every call to the driver.
#[derive(Debug)]
pub struct Timed {
    inner: DeviceProvider,
    nanoseconds: Arc<AtomicU64>,
}

impl Timed {
    /// Takes the time of `inner`'s calls, which adds up in `nanoseconds`.
    pub fn new(inner: DeviceProvider, nanoseconds: Arc<AtomicU64>) -> Self {
        Self { inner, nanoseconds }
    }

    fn time<T>(&self, call: impl FnOnce(&DeviceProvider) -> T) -> T {
        let start = Instant::now();
        let result = call(&self.inner);
        let elapsed = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(elapsed, Ordering::Relaxed);
        result
    }
}

// SAFETY: all is answered by the provider within.
unsafe impl MemoryProvider for Timed {
    type Physical = Physical;
    type Event = Event;

    fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        self.time(DeviceProvider::memory)
    }
    fn reserve(&self, bytes: u64) -> Result<AddressRange, ProviderError> {
        self.time(|inner| inner.reserve(bytes))
    }
    unsafe fn unreserve(&self, range: AddressRange) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        self.time(|inner| unsafe { inner.unreserve(range) })
    }
    fn create(&self, bytes: u64) -> Result<Physical, ProviderError> {
        self.time(|inner| inner.create(bytes))
    }
    unsafe fn release(&self, physical: Physical, bytes: u64) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        self.time(|inner| unsafe { inner.release(physical, bytes) })
    }
    unsafe fn map(&self, at: Address, physical: &Physical, bytes: u64) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        self.time(|inner| unsafe { inner.map(at, physical, bytes) })
    }
    unsafe fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        self.time(|inner| unsafe { inner.unmap(at, bytes) })
    }
    fn record(&self, stream: Stream) -> Result<Option<Event>, ProviderError> {
        self.time(|inner| inner.record(stream))
    }
    fn is_complete(&self, event: &Event) -> Result<bool, ProviderError> {
        self.time(|inner| inner.is_complete(event))
    }
    fn is_idle(&self, stream: Stream) -> Result<bool, ProviderError> {
        self.time(|inner| inner.is_idle(stream))
    }
    fn make_wait(&self, stream: Stream, event: &Event) -> Result<(), ProviderError> {
        self.time(|inner| inner.make_wait(stream, event))
    }
    fn synchronize(&self, event: &Event) -> Result<(), ProviderError> {
        self.time(|inner| inner.synchronize(event))
    }
    fn recycle(&self, event: Event) {
        self.time(|inner| inner.recycle(event));
    }
    fn is_capturing(&self, stream: Stream) -> Result<bool, ProviderError> {
        self.time(|inner| inner.is_capturing(stream))
    }

    forward_provider!(self => self.inner; device, addressing, granularity, segment_address, is_idle_dear, transfer);
}
