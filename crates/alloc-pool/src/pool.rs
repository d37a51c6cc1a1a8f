//! The pool: the allocator that programs use, over any backend.

use std::hint::cold_path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use alloc_core::pressure::{self, Registration, Relieve};

use alloc_core::{
    Address, Addressing, AllocError, AllocatorEvent, Block, BlockId, Device, DeviceAllocator, Layout, MemoryProvider,
    ProviderError, ProviderErrorKind, ReleaseError, Statistics, Stream, StreamSet, Transfer,
};

use crate::adjust::Limit;
use crate::arena::Arena;
use crate::arenas::Arenas;
use crate::asymmetric;
use crate::cache::{self, CacheCounters, CacheKey};
use crate::config::{ConfigError, PoolConfig};
use crate::driver::Driver;
use crate::ledger::Ledger;
use crate::notes::{self, Note};
use crate::pages::{Pages, Patience};
use crate::park::{Clock, ParkList};
use crate::placement::units::UNIT_SHIFT;
use crate::statistics::CacheTotals;
use crate::streams::{Seats, Tags};

/// A pooling, stream-ordered allocator over a [`MemoryProvider`].
///
/// Small blocks (up to 64 KiB) come from thread caches, large ones from the arena of their stream, both without a
/// call to the backend; pages move between arenas before new ones are created. Dropping the pool waits for its
/// streams and gives everything back to the device. If a thread that used it is just ending, that thread does so when it
/// has handed its cache back.
#[derive(Debug)]
pub struct Pool<P: MemoryProvider> {
    pub(crate) inner: Arc<Inner<P>>,
}

/// What a pool shares with the caches of its threads.
#[derive(Debug)]
pub(crate) struct Inner<P: MemoryProvider> {
    pub(crate) number: u64,
    pub(crate) device: Device,
    pub(crate) mapped: bool,
    pub(crate) granularity: u64,
    pub(crate) arena_bytes: u64,
    /// What the device had in all when the pool was made.
    pub(crate) device_total: u64,
    pub(crate) config: PoolConfig,
    pub(crate) limit: Limit,
    pub(crate) driver: Driver<P>,
    pub(crate) ledger: Ledger,
    pub(crate) arenas: Arenas,
    /// Moves on when thread caches are to be emptied.
    epoch: AtomicU64,
    pages: Mutex<Pages<P::Physical>>,
    pub(crate) seats: Mutex<Seats>,
    /// How many pairs of arenas have threads.
    pub(crate) pairs_taken: AtomicU32,
    pub(crate) tags: Mutex<Tags<P::Event>>,
    pub(crate) parked: Mutex<ParkList<P::Event>>,
    /// Held while entries of that list are looked through. Comes before all other locks.
    pub(crate) settling: Mutex<()>,
    pub(crate) park_clock: Clock,
    /// Notes made under a lock, told once it is released.
    pub(crate) deferred: Mutex<Vec<Note>>,
    pub(crate) caches: Mutex<CacheTotals>,
    pub(crate) rejected: AtomicU64,
    /// How often there was no memory for a slab.
    pub(crate) refused_slabs: AtomicU32,
    pub(crate) registration: Registration,
}

/// Numbers pools and epochs; a number is never used again.
fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl<P: MemoryProvider> Pool<P> {
    /// A pool over `provider`. Takes nothing from the device until the first allocation.
    ///
    /// # Errors
    /// [`PoolError::Config`] for settings out of range, [`PoolError::Granularity`] for a backend whose pages the
    /// engine can't place.
    pub fn new(provider: P, config: PoolConfig) -> Result<Self, PoolError> {
        config.validate()?;
        let granularity = provider.granularity();
        if !granularity.is_power_of_two() || !(4096..=1 << 36).contains(&granularity) {
            return Err(PoolError::Granularity { device: provider.device(), granularity });
        }
        let device = provider.device();
        let mapped = provider.addressing() == Addressing::Mapped;
        let total = provider.memory().map_or(64 << 30, |memory| memory.total);
        let arena_bytes = if mapped {
            Inner::<P>::choose_arena_bytes(config.address_space, total, granularity)
        } else {
            // Offsets of segments are no addresses, so they cost nothing.
            Inner::<P>::choose_arena_bytes(Some(u64::MAX), total, granularity)
        };
        let inner = |inner: &Weak<Inner<P>>| Inner {
            number: next_number(),
            device,
            mapped,
            granularity,
            arena_bytes,
            device_total: total,
            driver: Driver::new(provider),
            ledger: Ledger::new(),
            arenas: Arenas::new(),
            epoch: AtomicU64::new(next_number()),
            pages: Mutex::new(Pages::new((granularity >> UNIT_SHIFT) as u32)),
            seats: Mutex::default(),
            pairs_taken: AtomicU32::new(0),
            tags: Mutex::new(Tags::new()),
            parked: Mutex::new(ParkList::new()),
            settling: Mutex::new(()),
            park_clock: Clock::default(),
            deferred: Mutex::new(Vec::with_capacity(16)),
            caches: Mutex::default(),
            rejected: AtomicU64::new(0),
            refused_slabs: AtomicU32::new(0),
            limit: Limit::new(config.limit),
            registration: pressure::register(device, Weak::clone(inner) as Weak<dyn Relieve>),
            config,
        };
        // Asked now, as the first to ask has all threads of the process told, which takes the system milliseconds.
        asymmetric::is_available();
        Ok(Self { inner: Arc::new_cyclic(inner) })
    }

    /// The backend.
    pub fn provider(&self) -> &P {
        self.inner.driver.provider()
    }

    /// The settings.
    pub fn config(&self) -> &PoolConfig {
        &self.inner.config
    }

    /// Gives the calling thread's cached blocks back to the arenas, so that other threads may have them. Other
    /// threads do the same at their next call after a [`trim`](DeviceAllocator::trim), and when they end.
    pub fn flush_thread_cache(&self) {
        cache::drain(self.inner.number);
        self.inner.empty_returns();
        self.inner.keep_to_threshold();
    }

    #[cold]
    #[inline(never)]
    fn release_with_care(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        Inner::release(&self.inner, block, stream, uses).inspect_err(|error| {
            self.inner.rejected.fetch_add(1, Ordering::Relaxed);
            self.inner.tell(&AllocatorEvent::RejectedRelease(error));
        })
    }
}

/// A pool that could not be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError {
    /// A setting makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The backend's pages are no power of two between 4 KiB and 64 GiB.
    #[error("pages of {granularity} bytes on {device} can't be pooled")]
    Granularity {
        /// The device.
        device: Device,
        /// Its granularity in bytes.
        granularity: u64,
    },
}

impl From<PoolError> for AllocError {
    fn from(error: PoolError) -> Self {
        let device = match &error {
            PoolError::Granularity { device, .. } => *device,
            PoolError::Config(_) => Device::CPU,
        };
        ProviderError::new(device, "new pool", ProviderErrorKind::InvalidArgument, error.to_string()).into()
    }
}

// SAFETY: the provider, itself under such promises, vouches for the memory. The page layer keeps each block mapped
// until it is released, the heaps give each byte to one block at a time, and what returns from a release goes to another
// stream only once the events of all streams that used it are complete or waited for.
unsafe impl<P: MemoryProvider> DeviceAllocator for Pool<P> {
    fn device(&self) -> Device {
        self.inner.device
    }

    // Inlined so that a hit returns the block in registers: through memory it costs a stalled load.
    #[inline(always)]
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let (address, id) = match self.inner.allocate_quickly(layout, stream) {
            Some(parts) => parts,
            None => {
                cold_path();
                let mut error = None;
                match Inner::allocate(&self.inner, layout, stream, &mut error) {
                    Some((address, id)) => (address.get(), id),
                    None => return Err(error.unwrap_or_else(|| self.inner.exhausted(layout.size()))),
                }
            }
        };
        Ok(Block::from_parts(Address::new(address), layout.size(), BlockId::from_bits(id)))
    }

    #[inline(always)]
    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        if uses.is_empty() && self.inner.release_quickly(block, stream) {
            return Ok(());
        }
        self.release_with_care(block, stream, uses)
    }

    fn statistics(&self) -> Statistics {
        self.inner.gather_statistics()
    }

    fn trim(&self, keep: u64) -> u64 {
        self.inner.trim(keep)
    }

    fn grow_to(&self, bytes: u64, stream: Stream) -> Result<u64, AllocError> {
        Pool::grow_to(self, bytes, stream)
    }

    fn transfer(&self) -> &dyn Transfer {
        self.inner.driver.provider().transfer()
    }

    fn retire_stream(&self, stream: Stream) {
        self.inner.retire(stream);
    }
}

impl<P: MemoryProvider> Inner<P> {
    #[inline]
    pub(crate) fn arena(&self, index: u32) -> Option<&Arena> {
        self.arenas.get(index)
    }

    /// Names the calling thread's cache for the stream.
    #[inline]
    pub(crate) fn cache_key(&self, stream: Stream) -> CacheKey {
        CacheKey { epoch: self.epoch.load(Ordering::Relaxed), stream }
    }

    /// Has every thread empty its caches at its next call.
    pub(crate) fn next_epoch(&self) {
        self.epoch.store(next_number(), Ordering::Relaxed);
    }

    pub(crate) fn lock_pages(&self) -> MutexGuard<'_, Pages<P::Physical>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tell(&self, event: &AllocatorEvent<'_>) {
        notes::tell(event, self.device, self.config.hook.as_deref());
    }

    /// Whether anybody listens to what is noted.
    pub(crate) fn is_heard(&self) -> bool {
        self.config.hook.is_some() || tracing::enabled!(tracing::Level::DEBUG)
    }

    /// Takes the notes out of the page layer, to be told with [`Inner::tell_deferred`] once it is unlocked.
    pub(crate) fn defer_notes(&self, pages: &mut Pages<P::Physical>) {
        if !self.is_heard() {
            pages.notes.clear();
            return;
        }
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner).append(&mut pages.notes);
    }

    /// Notes something to be told with [`Inner::tell_deferred`] by whoever holds no lock next.
    pub(crate) fn defer(&self, note: Note) {
        if self.is_heard() {
            self.deferred.lock().unwrap_or_else(PoisonError::into_inner).push(note);
        }
    }

    /// Tells what was noted under locks. Called with none held.
    pub(crate) fn tell_deferred(&self) {
        let mut deferred = self.deferred.lock().unwrap_or_else(PoisonError::into_inner);
        if deferred.is_empty() {
            return;
        }
        let notes = std::mem::take(&mut *deferred);
        drop(deferred);
        for note in notes {
            note.tell(self.device, self.config.hook.as_deref());
        }
    }

    fn trim(&self, keep: u64) -> u64 {
        cache::drain(self.number);
        self.next_epoch();
        self.wait_for_parked();
        self.free_empty_slabs();
        let mut pages = self.lock_pages();
        let given = self.give_back(&mut pages, keep, Patience::Wait);
        self.defer_notes(&mut pages);
        drop(pages);
        self.tell_deferred();
        given
    }

    /// A new set of counters, known to the statistics.
    pub(crate) fn new_counters(&self) -> Arc<CacheCounters> {
        let counters = Arc::new(CacheCounters::default());
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).add(Arc::clone(&counters));
        counters
    }
}

impl<P: MemoryProvider> Relieve for Inner<P> {
    fn relieve(&self, bytes: u64) -> u64 {
        let keep = self.lock_pages().reserved.current.saturating_sub(bytes);
        self.trim(keep)
    }
}

impl<P: MemoryProvider> Drop for Inner<P> {
    fn drop(&mut self) {
        self.wait_for_parked();
        self.forget_marks();
        let mut pages = std::mem::replace(&mut *self.lock_pages(), Pages::new(1));
        self.close(&mut pages);
        for note in std::mem::take(&mut pages.notes) {
            note.tell(self.device, self.config.hook.as_deref());
        }
    }
}
