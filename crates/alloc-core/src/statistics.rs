//! Figures of an allocator, by name.

/// One figure over time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a figure over time is this")]
pub struct Gauge {
    /// Now.
    pub current: u64,
    /// The most it has been.
    pub peak: u64,
    /// The sum of all increases since the allocator was made.
    pub total: u64,
    /// How many increases there were.
    pub count: u64,
}

impl Gauge {
    /// Counts `amount` in.
    #[inline]
    pub fn add(&mut self, amount: u64) {
        self.current = self.current.saturating_add(amount);
        self.peak = self.peak.max(self.current);
        self.total = self.total.saturating_add(amount);
        self.count += 1;
    }

    /// Counts `amount` out.
    #[inline]
    pub fn sub(&mut self, amount: u64) {
        self.current = self.current.saturating_sub(amount);
    }
}

/// Calls to a backend, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProviderCalls {
    /// Address ranges reserved.
    pub reserve: u64,
    /// Physical memory created (or segments allocated).
    pub create: u64,
    /// Physical memory mapped at an address.
    pub map: u64,
    /// Mappings removed.
    pub unmap: u64,
    /// Physical memory (or segments) given back to the device.
    pub release: u64,
    /// Events recorded.
    pub record: u64,
    /// Events asked whether they are complete, or waited for by the host.
    pub query: u64,
    /// Streams made to wait for an event.
    pub wait: u64,
}

impl ProviderCalls {
    /// Calls that manage memory: create, map, unmap and release.
    pub fn memory(&self) -> u64 {
        self.create + self.map + self.unmap + self.release
    }

    /// The calls since an earlier reading.
    ///
    /// ```
    /// use alloc_core::ProviderCalls;
    ///
    /// let mut calls = ProviderCalls::default();
    /// calls.map = 5;
    /// let earlier = calls;
    /// calls.map = 7;
    /// assert_eq!(calls.since(&earlier).all(), 2);
    /// ```
    #[must_use]
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            reserve: self.reserve.saturating_sub(earlier.reserve),
            create: self.create.saturating_sub(earlier.create),
            map: self.map.saturating_sub(earlier.map),
            unmap: self.unmap.saturating_sub(earlier.unmap),
            release: self.release.saturating_sub(earlier.release),
            record: self.record.saturating_sub(earlier.record),
            query: self.query.saturating_sub(earlier.query),
            wait: self.wait.saturating_sub(earlier.wait),
        }
    }

    /// All calls.
    pub fn all(&self) -> u64 {
        self.reserve + self.memory() + self.record + self.query + self.wait
    }
}

/// The figures of an allocator. Bytes, except where a name says otherwise.
///
/// An allocator that does not know a figure leaves it zero. Figures of a pool are gathered from its threads without
/// stopping them, so those of one snapshot may be a few operations apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Bytes that callers asked for and still hold. `count` is the number of allocations.
    pub requested: Gauge,
    /// The same blocks with the rounding of the allocator. The peaks of a pool are exact for large blocks and are
    /// taken to within a part in 32, the bound of the thread caches and what is free in slabs for small ones.
    pub in_use: Gauge,
    /// Physical memory held from the device.
    pub reserved: Gauge,
    /// Released blocks that wait in thread caches.
    pub cached: u64,
    /// Released blocks that wait for work on other streams.
    pub parked: Gauge,
    /// Number of allocations served by a thread cache.
    pub hits: u64,
    /// Number of times that no free memory fitted an allocation: pages were moved or created, or the request failed. One that is
    /// tried again, as memory runs out, counts each time.
    pub misses: u64,
    /// Number of times that pages were moved to another address.
    pub moves: u64,
    /// The largest block that can be served without a miss.
    pub largest_free: u64,
    /// Number of releases refused as foreign or stale.
    pub rejected_releases: u64,
    /// Bytes never to be reused, since the completion of their work can't be established.
    pub leaked: u64,
    /// Calls to the backend.
    pub provider_calls: ProviderCalls,
}
