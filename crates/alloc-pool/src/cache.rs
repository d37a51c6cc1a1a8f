//! Thread caches: released small blocks, kept by the thread that released them, for the stream they were released on.
//!
//! A hit touches memory of the calling thread alone. What is kept is bounded in bytes, goes back to the arenas in
//! batches, and is handed back when the thread ends.

use std::cell::RefCell;
use std::fmt::Debug;
use std::sync::{Arc, Weak};

use alloc_core::Stream;

use crate::placement::units::{CLASSES, UNIT_SHIFT, class_units};
use crate::primitive::{AtomicU64, Ordering};
use crate::streams::Seat;

/// The most blocks of one class that a thread keeps.
pub(crate) const BIN_BLOCKS: usize = 32;

/// A small block that nobody uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CachedBlock {
    pub(crate) address: u64,
    /// Slab and slot.
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// What a thread counts, for others to read. Only the owner writes, so no update is lost.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct CacheCounters {
    pub(crate) allocations: AtomicU64,
    pub(crate) allocated_requested: AtomicU64,
    pub(crate) allocated_bytes: AtomicU64,
    pub(crate) releases: AtomicU64,
    pub(crate) released_requested: AtomicU64,
    pub(crate) released_bytes: AtomicU64,
    /// Bytes that wait in the cache; written when blocks come and go in batches.
    pub(crate) cached: AtomicU64,
    /// Number of allocations that the cache had no block for.
    pub(crate) refills: AtomicU64,
}

/// Adds to a counter that only this thread writes: a plain load and store, not a locked operation.
#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl CacheCounters {
    #[inline]
    pub(crate) fn count_allocation(&self, requested: u64, bytes: u64) {
        bump(&self.allocations, 1);
        bump(&self.allocated_requested, requested);
        bump(&self.allocated_bytes, bytes);
    }

    #[inline]
    pub(crate) fn count_release(&self, requested: u64, bytes: u64) {
        bump(&self.releases, 1);
        bump(&self.released_requested, requested);
        bump(&self.released_bytes, bytes);
    }
}

#[derive(Debug)]
struct Bin {
    len: u32,
    /// How many blocks to keep at most.
    bound: u32,
    blocks: [CachedBlock; BIN_BLOCKS],
}

/// The blocks that a thread keeps for one stream of one pool.
#[derive(Debug)]
pub(crate) struct StreamCache {
    pub(crate) stream: Stream,
    /// The stream's tag and the arena that this thread allocates from.
    pub(crate) seat: Seat,
    /// How often another thread held the arena's lock.
    pub(crate) contended: u32,
    bytes: u64,
    byte_bound: u64,
    pub(crate) counters: Arc<CacheCounters>,
    bins: [Bin; CLASSES],
}

const fn class_bytes(class: usize) -> u64 {
    (class_units(class) as u64) << UNIT_SHIFT
}

impl StreamCache {
    fn new(stream: Stream, seat: Seat, byte_bound: u64, counters: Arc<CacheCounters>) -> Self {
        let bins = std::array::from_fn(|class| {
            let fitting = (byte_bound / 4).checked_div(class_bytes(class)).unwrap_or(BIN_BLOCKS as u64);
            let bound = if byte_bound == 0 { 0 } else { fitting.clamp(2, BIN_BLOCKS as u64) as u32 };
            Bin { len: 0, bound, blocks: [CachedBlock::default(); BIN_BLOCKS] }
        });
        Self { stream, seat, contended: 0, bytes: 0, byte_bound, counters, bins }
    }

    #[inline]
    pub(crate) fn pop(&mut self, class: usize) -> Option<CachedBlock> {
        let bin = self.bins.get_mut(class)?;
        let len = bin.len.checked_sub(1)?;
        bin.len = len;
        self.bytes -= class_bytes(class);
        Some(bin.blocks[len as usize & (BIN_BLOCKS - 1)])
    }

    /// Keeps a block; says no if that takes more than is to be kept.
    #[inline]
    pub(crate) fn push(&mut self, class: usize, block: CachedBlock) -> bool {
        let Some(bin) = self.bins.get_mut(class) else { return false };
        if bin.len >= bin.bound || self.bytes > self.byte_bound {
            return false;
        }
        bin.blocks[bin.len as usize & (BIN_BLOCKS - 1)] = block;
        bin.len += 1;
        self.bytes += class_bytes(class);
        true
    }

    /// How many blocks a refill brings.
    pub(crate) fn refill_size(&self, class: usize) -> usize {
        self.bins[class].bound.div_ceil(2) as usize
    }

    /// Takes the blocks of a class out that were kept longest, down to half the bound.
    pub(crate) fn take_half(&mut self, class: usize, out: &mut Batch) {
        let keep = self.bins[class].bound / 2;
        self.take_oldest(class, keep, out);
    }

    /// Takes the oldest blocks of a class until `keep` are left.
    fn take_oldest(&mut self, class: usize, keep: u32, out: &mut Batch) {
        let bin = &mut self.bins[class];
        let count = bin.len.saturating_sub(keep) as usize;
        out.extend(&bin.blocks[..count]);
        bin.blocks.copy_within(count..bin.len as usize, 0);
        bin.len -= count as u32;
        self.bytes -= count as u64 * class_bytes(class);
        self.publish();
    }

    /// Notes for others how many bytes are kept.
    pub(crate) fn publish(&self) {
        self.counters.cached.store(self.bytes, Ordering::Relaxed);
    }

    fn drain(&mut self, home: &dyn CacheHome) {
        let mut batch = Batch::new();
        for class in 0..CLASSES {
            self.take_oldest(class, 0, &mut batch);
            home.take_back(&mut batch);
        }
    }
}

/// Some blocks on their way between a cache and the arenas, without a heap allocation.
#[derive(Debug)]
pub(crate) struct Batch {
    len: usize,
    blocks: [CachedBlock; BIN_BLOCKS],
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self { len: 0, blocks: [CachedBlock::default(); BIN_BLOCKS] }
    }

    pub(crate) fn push(&mut self, block: CachedBlock) {
        if let Some(place) = self.blocks.get_mut(self.len) {
            *place = block;
            self.len += 1;
        }
    }

    fn extend(&mut self, blocks: &[CachedBlock]) {
        for &block in blocks {
            self.push(block);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<CachedBlock> {
        self.len = self.len.checked_sub(1)?;
        Some(self.blocks[self.len])
    }

    pub(crate) fn blocks(&self) -> &[CachedBlock] {
        &self.blocks[..self.len]
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }
}

/// Where cached blocks belong: a pool, whatever its backend.
pub(crate) trait CacheHome: Debug + Send + Sync {
    /// Gives blocks back to their arenas and empties the batch.
    fn take_back(&self, batch: &mut Batch);
    /// Notes that a cache goes away: its counters are added up, its seat is free.
    fn forget(&self, seat: Seat, counters: &Arc<CacheCounters>);
}

/// What a thread keeps of one pool.
#[derive(Debug)]
struct PoolCaches {
    pool: u64,
    epoch: u32,
    home: Weak<dyn CacheHome>,
    current: usize,
    streams: Vec<Box<StreamCache>>,
}

impl PoolCaches {
    fn drain(&mut self) {
        if let Some(home) = self.home.upgrade() {
            for mut cache in self.streams.drain(..) {
                cache.drain(&*home);
                home.forget(cache.seat, &cache.counters);
            }
        }
        self.streams.clear();
        self.current = 0;
    }
}

impl Drop for PoolCaches {
    fn drop(&mut self) {
        self.drain();
    }
}

thread_local! {
    static CACHES: RefCell<Vec<Option<PoolCaches>>> = const { RefCell::new(Vec::new()) };
}

/// Names a pool to the threads' caches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolKey {
    /// A small number, reused after the pool is gone.
    pub(crate) slot: usize,
    /// Never reused.
    pub(crate) pool: u64,
}

/// Calls `hit` with this thread's cache for the stream. `None` if it has none (of this epoch) yet, or if the caches
/// can't be had: the thread is ending, or is in the midst of a call.
#[inline]
pub(crate) fn with<R>(key: PoolKey, epoch: u32, stream: Stream, hit: impl FnOnce(&mut StreamCache) -> R) -> Option<R> {
    CACHES
        .try_with(|caches| {
            let mut caches = caches.try_borrow_mut().ok()?;
            let pool = caches.get_mut(key.slot)?.as_mut()?;
            if pool.pool != key.pool || pool.epoch != epoch {
                return None;
            }
            let current = pool.current;
            match pool.streams.get_mut(current) {
                Some(cache) if cache.stream == stream => Some(hit(cache)),
                _ => {
                    let found = pool.streams.iter().position(|cache| cache.stream == stream)?;
                    pool.current = found;
                    Some(hit(pool.streams.get_mut(found)?))
                }
            }
        })
        .ok()
        .flatten()
}

/// What a new cache starts from.
pub(crate) struct Fresh {
    pub(crate) seat: Seat,
    pub(crate) byte_bound: u64,
    pub(crate) counters: Arc<CacheCounters>,
}

/// Gives this thread a cache for the stream. Caches of an earlier epoch, and of a pool that had this slot before, are
/// emptied. `false` if the thread's caches can't be had.
pub(crate) fn install(
    key: PoolKey,
    epoch: u32,
    home: &Arc<impl CacheHome + 'static>,
    stream: Stream,
    fresh: Fresh,
) -> bool {
    let mut gone = None;
    let installed = CACHES
        .try_with(|caches| {
            let Ok(mut caches) = caches.try_borrow_mut() else { return false };
            if caches.len() <= key.slot {
                caches.resize_with(key.slot + 1, || None);
            }
            let place = &mut caches[key.slot];
            if place.as_ref().is_none_or(|pool| pool.pool != key.pool || pool.epoch != epoch) {
                let home: Weak<dyn CacheHome> = Arc::downgrade(home) as Weak<dyn CacheHome>;
                let pool = PoolCaches { pool: key.pool, epoch, home, current: 0, streams: Vec::new() };
                gone = place.replace(pool);
            }
            let Some(pool) = place else { return false };
            pool.current = pool.streams.len();
            pool.streams.push(Box::new(StreamCache::new(stream, fresh.seat, fresh.byte_bound, fresh.counters)));
            true
        })
        .unwrap_or(false);
    // Emptied with the caches free for use: giving blocks back may call a hook that allocates.
    drop(gone);
    installed
}

/// Empties this thread's caches of the pool.
pub(crate) fn drain(key: PoolKey) {
    let gone = CACHES.try_with(|caches| {
        let mut caches = caches.try_borrow_mut().ok()?;
        let place = caches.get_mut(key.slot)?;
        if place.as_ref()?.pool == key.pool { place.take() } else { None }
    });
    drop(gone);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn cache(bound: u64) -> StreamCache {
        StreamCache::new(Stream::DEFAULT, Seat { tag: 0, arena: 0 }, bound, Arc::default())
    }

    #[test]
    fn what_is_kept_is_bounded_in_blocks_and_bytes() {
        let mut cache = cache(512 << 10);
        let mut kept = 0;
        while cache.push(CLASSES - 1, CachedBlock::default()) {
            kept += 1;
        }
        assert_eq!(kept, 2, "two blocks of 64 KiB are within a quarter of the bound");
        let mut bytes = kept * (64 << 10);
        for class in 0..CLASSES {
            while cache.push(class, CachedBlock::default()) {
                bytes += class_bytes(class);
            }
        }
        assert!(bytes <= (512 << 10) + (64 << 10), "{bytes}");
    }

    #[test]
    fn no_bytes_means_no_cache() {
        assert!(!cache(0).push(1, CachedBlock::default()));
    }

    #[test]
    fn the_oldest_blocks_leave_first() {
        let mut cache = cache(512 << 10);
        for slot in 0..32 {
            assert!(cache.push(1, CachedBlock { slot, ..CachedBlock::default() }));
        }
        let mut batch = Batch::new();
        cache.take_half(1, &mut batch);
        assert_eq!(batch.blocks().iter().map(|b| b.slot).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
        assert_eq!(cache.pop(1).map(|b| b.slot), Some(31));
    }
}
