//! What can be changed about a pool that is in use: its limit, and where its peaks are counted from.

use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::MemoryProvider;

use crate::pool::{Inner, Pool};

/// A limit that can be moved; all ones stand for none.
#[derive(Debug)]
pub(crate) struct Limit(AtomicU64);

const NONE: u64 = u64::MAX;

impl Limit {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self(AtomicU64::new(limit.unwrap_or(NONE)))
    }

    pub(crate) fn get(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|&limit| limit != NONE)
    }
}

impl<P: MemoryProvider> Pool<P> {
    /// The most physical memory to hold in bytes: what [`PoolConfig::limit`](crate::PoolConfig::limit) said, or what
    /// was [set](Pool::set_limit) since.
    pub fn limit(&self) -> Option<u64> {
        self.inner.limit.get()
    }

    /// Sets the most physical memory to hold, in bytes, for requests that come from now on. Nothing is given back
    /// by this; [`trim`](alloc_core::DeviceAllocator::trim) does that, as far as memory is free.
    ///
    /// ```
    /// use alloc_core::{DeviceAllocator, Layout, Stream};
    ///
    /// let pool = alloc_pool::Pool::new(alloc_core::conformance::SimulatedProvider::default(), Default::default())?;
    /// pool.set_limit(Some(1 << 20));
    /// assert!(pool.allocate(Layout::bytes(64 << 20)?, Stream::DEFAULT).is_err());
    /// pool.set_limit(None);
    /// assert!(pool.allocate(Layout::bytes(64 << 20)?, Stream::DEFAULT).is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_limit(&self, limit: Option<u64>) {
        self.inner.limit.0.store(limit.unwrap_or(NONE), Ordering::Relaxed);
    }

    /// Counts the peaks of the [statistics](alloc_core::DeviceAllocator::statistics) from what there is now.
    pub fn reset_peaks(&self) {
        let inner = &*self.inner;
        for arena in inner.arenas.iter() {
            arena.lock().reset_peaks();
        }
        {
            let mut pages = inner.lock_pages();
            pages.reserved.peak = pages.reserved.current;
        }
        {
            let mut parked = inner.parked.lock().unwrap_or_else(PoisonError::into_inner);
            parked.bytes.peak = parked.bytes.current;
        }
        {
            let mut tags = inner.lock_tags();
            let current = inner.count_parked(&mut tags).current;
            tags.marks.bytes.peak = current;
        }
        {
            let mut caches = inner.caches.lock().unwrap_or_else(PoisonError::into_inner);
            (caches.peak_requested, caches.peak_in_use) = (0, 0);
        }
        // The first look after this sets the peaks of what all parts hold together.
        let _ = inner.gather_statistics();
    }
}

impl<P: MemoryProvider> Inner<P> {
    /// The most physical memory to hold at present.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.limit.get()
    }
}
