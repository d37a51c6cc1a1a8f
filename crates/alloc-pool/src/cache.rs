//! Thread caches: released small blocks, kept by the thread that released them, for the stream they were released on.
//!
//! A hit touches memory of the calling thread alone. What is kept is bounded in bytes, goes back to the arenas in
//! batches, and is handed back when the thread ends.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

use alloc_core::Stream;

use crate::id::{slot_and_generation, small_name};
use crate::ledger::Sort;
use crate::local;
use crate::owners;
use crate::placement::heap::SHARED_TAG;
use crate::placement::units::{CLASSES, class_bytes, class_stride};
use crate::primitive::{AtomicU64, Ordering};
use crate::streams::Seat;

/// The most blocks of one class that a thread keeps.
pub(crate) const BIN_BLOCKS: usize = 32;

/// A small block that nobody uses. Two numbers, which travel in registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CachedBlock {
    pub(crate) address: u64,
    /// The id of the next block here, but for its slack.
    pub(crate) name: u64,
}

impl CachedBlock {
    #[inline(always)]
    pub(crate) fn new(address: u64, slot: u32, generation: u32) -> Self {
        Self { address, name: small_name(slot, generation) }
    }

    /// Slab and slot.
    #[inline(always)]
    pub(crate) fn slot(self) -> u32 {
        slot_and_generation(self.name).0
    }

    #[inline(always)]
    pub(crate) fn generation(self) -> u32 {
        slot_and_generation(self.name).1
    }
}

/// What a thread counts, for others to read. Only the owner writes, so no update is lost.
///
/// By class, so that a hit has two things to count: how many, and by how much the request was smaller than the block.
/// Bytes are what whoever reads works out.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct CacheCounters {
    pub(crate) allocated_slack: AtomicU64,
    pub(crate) released_slack: AtomicU64,
    /// Bytes that wait in the cache; written when blocks come and go in batches.
    pub(crate) cached: AtomicU64,
    /// Number of allocations that the cache had no block for.
    pub(crate) refills: AtomicU64,
    pub(crate) allocated: [AtomicU64; CLASSES],
    pub(crate) released: [AtomicU64; CLASSES],
    /// The place in the list of all, whose lock is held by whoever reads it or writes it.
    pub(crate) place: AtomicU64,
}

impl Default for CacheCounters {
    fn default() -> Self {
        Self {
            allocated_slack: AtomicU64::new(0),
            released_slack: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            refills: AtomicU64::new(0),
            allocated: std::array::from_fn(|_| AtomicU64::new(0)),
            released: std::array::from_fn(|_| AtomicU64::new(0)),
            place: AtomicU64::new(0),
        }
    }
}

/// Adds to a counter that only this thread writes: a plain load and store, not a locked operation.
#[inline(always)]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl CacheCounters {
    #[inline(always)]
    pub(crate) fn count_allocation(&self, class: usize, slack: u64) {
        bump(&self.allocated[class], 1);
        bump(&self.allocated_slack, slack);
    }

    #[inline(always)]
    pub(crate) fn count_release(&self, class: usize, slack: u64) {
        bump(&self.released[class], 1);
        bump(&self.released_slack, slack);
    }
}

/// The blocks of a class.
#[derive(Debug)]
#[repr(C)]
struct Bin {
    blocks: [CachedBlock; BIN_BLOCKS],
    len: u32,
    /// How many to keep at most.
    bound: u32,
    /// Bytes of a block.
    bytes: u32,
    /// Bytes from one block of a slab to the next.
    stride: u32,
}

/// A place for another block of a class.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    bin: &'a mut Bin,
    spare: &'a mut i64,
}

impl Room<'_> {
    /// Whether blocks there have so many bytes.
    #[inline(always)]
    pub(crate) fn fits(&self, bytes: u64) -> bool {
        u64::from(self.bin.bytes) == bytes
    }

    /// Where in its slab the block of a slot begins.
    #[inline(always)]
    pub(crate) fn offset(&self, slot: u32) -> u64 {
        u64::from(slot) * u64::from(self.bin.stride)
    }

    /// Keeps a block there.
    #[inline(always)]
    pub(crate) fn fill(self, block: CachedBlock) {
        let len = self.bin.len;
        self.bin.blocks[len as usize & (BIN_BLOCKS - 1)] = block;
        self.bin.len = len + 1;
        *self.spare -= i64::from(self.bin.bytes);
    }
}

/// After how many times that it gave blocks back, and wanted none, a thread is taken for one that only releases.
const ONE_WAY: u32 = 1024;

/// Tells threads that get in each other's way all the time from such as meet by chance.
#[derive(Debug)]
pub(crate) struct Crowding {
    visits: u32,
    meetings: u32,
    bearable: u32,
}

/// How many meetings in [`PATIENCE`] visits are too many.
const MEETINGS: u32 = 4;
const PATIENCE: u32 = 4096;

impl Default for Crowding {
    fn default() -> Self {
        Self { visits: 0, meetings: 0, bearable: MEETINGS }
    }
}

impl Crowding {
    /// Counts a visit to the arena.
    #[inline(always)]
    pub(crate) fn visit(&mut self) {
        self.visits = self.visits.wrapping_add(1);
    }

    /// Counts a meeting at the arena's lock; whether there are too many of them.
    pub(crate) fn meet(&mut self) -> bool {
        if self.visits > PATIENCE {
            (self.visits, self.meetings) = (0, 0);
        }
        self.meetings += 1;
        if self.meetings < self.bearable {
            return false;
        }
        self.meetings = 0;
        true
    }

    /// There is no better place: the thread will bear more before it asks again.
    pub(crate) fn bear(&mut self) {
        self.bearable = self.bearable.saturating_mul(4);
    }
}

/// The blocks that a thread keeps for one stream of one pool.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct StreamCache {
    // At the beginning, so that a bin is found by one addition.
    bins: [Bin; CLASSES],
    /// The stream's tag and the arena that this thread allocates from.
    pub(crate) seat: Seat,
    /// The tag of blocks to be kept, or none if streams that share a tag can't be told apart.
    keeps: Sort,
    /// How often the thread met another one at its arena's lock.
    pub(crate) crowding: Crowding,
    /// How often blocks were given back since any were wanted.
    one_way: u32,
    byte_bound: i64,
    /// How many bytes fewer than that are kept: below zero once the bound is passed, which one block may do.
    spare: i64,
    pub(crate) counters: Arc<CacheCounters>,
}

impl StreamCache {
    fn new(seat: Seat, byte_bound: u64, counters: Arc<CacheCounters>) -> Self {
        let bins = std::array::from_fn(|class| {
            let bytes = class_bytes(class);
            let fitting = (byte_bound / 8).checked_div(bytes).unwrap_or(BIN_BLOCKS as u64);
            let bound = if byte_bound == 0 { 0 } else { fitting.clamp(2, BIN_BLOCKS as u64) as u32 };
            let (bytes, stride) = (bytes as u32, class_stride(class) as u32);
            Bin { len: 0, bound, bytes, stride, blocks: [CachedBlock::default(); BIN_BLOCKS] }
        });
        let byte_bound = i64::try_from(byte_bound).unwrap_or(i64::MAX);
        Self {
            seat,
            keeps: if seat.tag == SHARED_TAG { Sort::NONE } else { Sort::of(seat.tag) },
            crowding: Crowding::default(),
            one_way: ONE_WAY,
            byte_bound,
            spare: byte_bound,
            counters,
            bins,
        }
    }

    /// Visits the blocks that are kept.
    pub(crate) fn for_each(&self, visit: &mut impl FnMut(CachedBlock)) {
        self.bins.iter().for_each(|bin| bin.blocks.iter().take(bin.len as usize).for_each(|&block| visit(block)));
    }

    /// The block of the class that was kept last, and how many bytes it has.
    #[inline(always)]
    pub(crate) fn pop(&mut self, class: usize) -> Option<(CachedBlock, u64)> {
        let bin = self.bins.get_mut(class)?;
        let len = bin.len.checked_sub(1)?;
        bin.len = len;
        self.spare += i64::from(bin.bytes);
        Some((bin.blocks[len as usize & (BIN_BLOCKS - 1)], bin.bytes.into()))
    }

    /// What slabs have to be whose blocks of the class are kept.
    #[inline(always)]
    pub(crate) fn sort(&self, class: usize) -> Sort {
        self.keeps.and(class)
    }

    /// The place of another block of the class, if one may be kept.
    #[inline(always)]
    pub(crate) fn room(&mut self, class: usize) -> Option<Room<'_>> {
        let (bin, spare) = (self.bins.get_mut(class)?, &mut self.spare);
        (bin.len < bin.bound && *spare >= 0).then_some(Room { bin, spare })
    }

    /// Keeps a block; says no if that takes more than is to be kept.
    pub(crate) fn push(&mut self, class: usize, block: CachedBlock) -> bool {
        self.room(class).map(|room| room.fill(block)).is_some()
    }

    /// How many blocks a refill brings. The thread is one that allocates.
    pub(crate) fn begin_refill(&mut self, class: usize) -> usize {
        self.one_way = 0;
        self.bins[class].bound.div_ceil(2) as usize
    }

    /// Takes blocks of a class out, those that were kept longest: half of the bound or, if the thread only releases,
    /// all of them. Whether that is so.
    pub(crate) fn make_room(&mut self, class: usize, out: &mut Batch) -> bool {
        let only_releases = self.only_releases();
        self.one_way = self.one_way.saturating_add(1);
        let keep = if only_releases { 0 } else { self.bins[class].bound / 2 };
        self.take_oldest(class, keep, out);
        only_releases
    }

    /// Whether the thread wanted none of the blocks that it released for long.
    fn only_releases(&self) -> bool {
        self.one_way >= ONE_WAY
    }

    /// Whether as many bytes are kept as may be.
    pub(crate) fn is_full(&self) -> bool {
        self.spare < 0
    }

    /// Takes the older half of a class's blocks out or, if the thread only releases, all of them. Whether that is so.
    pub(crate) fn shed(&mut self, class: usize, out: &mut Batch) -> bool {
        let only_releases = self.only_releases();
        let keep = if only_releases { 0 } else { self.bins[class].len / 2 };
        self.take_oldest(class, keep, out);
        only_releases
    }

    /// Takes all blocks of a class out.
    pub(crate) fn empty(&mut self, class: usize, out: &mut Batch) {
        self.take_oldest(class, 0, out);
    }

    /// Takes the oldest blocks of a class until `keep` are left.
    fn take_oldest(&mut self, class: usize, keep: u32, out: &mut Batch) {
        let bin = &mut self.bins[class];
        let count = bin.len.saturating_sub(keep) as usize;
        out.extend(&bin.blocks[..count]);
        bin.blocks.copy_within(count..bin.len as usize, 0);
        bin.len -= count as u32;
        self.spare += count as i64 * i64::from(bin.bytes);
        self.publish();
    }

    /// Notes for others how many bytes are kept.
    pub(crate) fn publish(&self) {
        self.counters.cached.store((self.byte_bound - self.spare) as u64, Ordering::Relaxed);
    }

    fn drain(&mut self, home: &dyn CacheHome) {
        let mut batch = Batch::new();
        for class in 0..CLASSES {
            self.empty(class, &mut batch);
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
        debug_assert!(!self.is_full(), "a block past the end would be lost");
        if let Some(place) = self.blocks.get_mut(self.len) {
            *place = block;
            self.len += 1;
        }
    }

    pub(crate) fn extend(&mut self, blocks: &[CachedBlock]) {
        for &block in blocks {
            self.push(block);
        }
    }

    pub(crate) fn pop(&mut self) -> Option<CachedBlock> {
        self.len = self.len.checked_sub(1)?;
        Some(self.blocks[self.len])
    }

    pub(crate) fn is_full(&self) -> bool {
        self.room() == 0
    }

    /// How many more blocks it takes.
    pub(crate) fn room(&self) -> usize {
        BIN_BLOCKS - self.len
    }

    pub(crate) fn blocks(&self) -> &[CachedBlock] {
        &self.blocks[..self.len]
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Forgets all but the first blocks.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }
}

/// Where cached blocks belong: a pool, whatever its backend.
pub(crate) trait CacheHome: Debug + Send + Sync {
    /// Gives blocks back to their arenas and empties the batch.
    fn take_back(&self, batch: &mut Batch);
    /// Notes that a cache goes away: its counters are added up, its seat is free.
    fn forget(&self, seat: Seat, counters: &Arc<CacheCounters>);
}

/// Which cache is meant: that of an epoch of a pool, for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey {
    /// A number that no other pool or epoch has.
    pub(crate) epoch: u64,
    pub(crate) stream: Stream,
}

/// A cache, whose it is, and where its blocks belong.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Kept {
    pub(crate) cache: StreamCache,
    pub(crate) key: CacheKey,
    pub(crate) pool: u64,
    home: Weak<dyn CacheHome>,
}

impl Kept {
    pub(crate) fn new(pool: u64, key: CacheKey, home: Weak<dyn CacheHome>, fresh: Fresh) -> Self {
        let cache = StreamCache::new(fresh.seat, fresh.byte_bound, fresh.counters);
        Self { cache, key, pool, home }
    }

    /// Whether the pool is gone.
    pub(crate) fn is_homeless(&self) -> bool {
        self.home.strong_count() == 0
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            self.cache.drain(&*home);
            home.forget(self.cache.seat, &self.cache.counters);
        }
    }
}

/// Calls `hit` with this thread's cache for the key. `None` if it has none (of this epoch) yet, or if the caches
/// can't be had: the thread is ending, or is in the midst of a call.
#[inline]
pub(crate) fn with<R>(key: CacheKey, hit: impl FnOnce(&mut StreamCache) -> R) -> Option<R> {
    let mut kept = take(key)?;
    let result = hit(&mut kept.cache);
    local::put(kept);
    Some(result)
}

/// The same without a closure, so that a hit is straight code: the cache is to be [put back](local::put) at the end of
/// the call, before which the thread has no other.
#[inline(always)]
pub(crate) fn take(key: CacheKey) -> Option<Box<Kept>> {
    let latest = local::take();
    if let Some(kept) = latest {
        if kept.key == key {
            return Some(kept);
        }
        return find(Some(kept), key.epoch, key.stream);
    }
    find(None, key.epoch, key.stream)
}

/// Makes another cache the latest. The parts of the key in registers, lest a hit puts it together in memory.
#[inline(never)]
fn find(latest: Option<Box<Kept>>, epoch: u64, stream: Stream) -> Option<Box<Kept>> {
    latest.into_iter().for_each(local::put);
    let found = local::all(|caches| caches.make_latest(CacheKey { epoch, stream }));
    if found == Some(true) { local::take() } else { None }
}

/// What a new cache starts from.
pub(crate) struct Fresh {
    pub(crate) seat: Seat,
    pub(crate) byte_bound: u64,
    pub(crate) counters: Arc<CacheCounters>,
}

/// Gives this thread a cache. `false` if the thread's caches can't be had.
pub(crate) fn install(pool: u64, key: CacheKey, home: Weak<dyn CacheHome>, fresh: Fresh) -> bool {
    let installed = local::all(|caches| {
        owners::join();
        caches.add(Box::new(Kept::new(pool, key, home, fresh)));
    });
    installed.is_some()
}

/// Empties this thread's caches of the pool's other epochs. Those of pools that are gone are freed.
pub(crate) fn drain_others(pool: u64, epoch: u64) {
    // Emptied with the caches free for use: giving blocks back may call a hook that allocates.
    drop(local::all(|caches| caches.sweep(pool, epoch)));
}

/// Empties this thread's caches of the pool.
pub(crate) fn drain(pool: u64) {
    // With the caches free for use, too.
    drop(local::all(|caches| caches.take(|kept| kept.pool == pool)));
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn cache(bound: u64) -> StreamCache {
        StreamCache::new(Seat { tag: 0, arena: 0 }, bound, Arc::default())
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
    fn a_thread_that_only_releases_keeps_nothing_back() {
        let mut cache = cache(512 << 10);
        let fill = |cache: &mut StreamCache| while cache.push(1, CachedBlock::default()) {};
        let mut batch = Batch::new();
        fill(&mut cache);
        assert!(cache.make_room(1, &mut batch), "it never wanted any");
        assert_eq!((batch.blocks().len(), cache.pop(1)), (BIN_BLOCKS, None));
        cache.begin_refill(7);
        for _ in 0..ONE_WAY {
            fill(&mut cache);
            batch.clear();
            assert!(!cache.make_room(1, &mut batch));
            assert_eq!(batch.blocks().len(), BIN_BLOCKS / 2);
        }
        batch.clear();
        assert!(cache.make_room(1, &mut batch), "it has wanted none for long");
    }

    #[test]
    fn chance_meetings_are_borne() {
        let mut crowding = Crowding::default();
        for _ in 0..100 {
            (0..PATIENCE).for_each(|_| crowding.visit());
            assert!(!crowding.meet() && !crowding.meet(), "two in so many visits are chance");
            crowding.visit();
        }
        assert!((0..MEETINGS).any(|_| crowding.meet()));
        crowding.bear();
        assert!(!(0..MEETINGS).any(|_| crowding.meet()), "who found no better place bears more");
    }

    #[test]
    fn no_bytes_means_no_cache() {
        assert!(!cache(0).push(1, CachedBlock::default()));
    }

    #[test]
    fn the_oldest_blocks_leave_first() {
        let mut cache = cache(512 << 10);
        for slot in 0..32 {
            assert!(cache.push(1, CachedBlock::new(0, slot, 0)));
        }
        let mut batch = Batch::new();
        cache.begin_refill(2);
        assert!(!cache.make_room(1, &mut batch));
        assert_eq!(batch.blocks().iter().map(|b| b.slot()).collect::<Vec<_>>(), (0..16).collect::<Vec<_>>());
        assert_eq!(cache.pop(1).map(|(b, _)| b.slot()), Some(31));
    }
}
