//! Thread caches: released small blocks, kept by the thread that released them, for the stream they were released on.
//!
//! A hit touches memory of the calling thread alone. What is kept is bounded in bytes, goes back to the arenas in
//! batches, and is handed back when the thread ends.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

use alloc_core::Stream;

use crate::id::{slot_and_generation, small_name};
use crate::local::{self, Call};
use crate::placement::heap::{SHARED_TAG, Tag};
use crate::placement::units::{CLASSES, class_bytes};
use crate::primitive::{AtomicU64, Ordering};
use crate::streams::Seat;

/// A tag that no block has.
const KEEPS_NONE: Tag = Tag::MAX;

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

    #[cfg(loom)]
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

/// How many blocks of a class there are, and how many to keep at most.
#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    len: u32,
    bound: u32,
}

/// A place for another block of a class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    class: usize,
    len: u32,
    bytes: u64,
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
pub(crate) struct StreamCache {
    /// The stream's tag and the arena that this thread allocates from.
    pub(crate) seat: Seat,
    /// The tag of blocks to be kept, or [`KEEPS_NONE`] if streams that share a tag can't be told apart.
    keeps: Tag,
    /// How often the thread met another one at its arena's lock.
    pub(crate) crowding: Crowding,
    /// How often blocks were given back since any were wanted.
    one_way: u32,
    bytes: u64,
    byte_bound: u64,
    pub(crate) counters: Arc<CacheCounters>,
    bins: [Bin; CLASSES],
    blocks: [[CachedBlock; BIN_BLOCKS]; CLASSES],
}

impl StreamCache {
    fn new(seat: Seat, byte_bound: u64, counters: Arc<CacheCounters>) -> Self {
        let bins = std::array::from_fn(|class| {
            let fitting = (byte_bound / 8).checked_div(class_bytes(class)).unwrap_or(BIN_BLOCKS as u64);
            let bound = if byte_bound == 0 { 0 } else { fitting.clamp(2, BIN_BLOCKS as u64) as u32 };
            Bin { len: 0, bound }
        });
        Self {
            seat,
            keeps: if seat.tag == SHARED_TAG { KEEPS_NONE } else { seat.tag },
            crowding: Crowding::default(),
            one_way: ONE_WAY,
            bytes: 0,
            byte_bound,
            counters,
            bins,
            blocks: [[CachedBlock::default(); BIN_BLOCKS]; CLASSES],
        }
    }

    #[inline(always)]
    pub(crate) fn pop(&mut self, class: usize, bytes: u64) -> Option<CachedBlock> {
        let bin = self.bins.get_mut(class)?;
        let len = bin.len.checked_sub(1)?;
        bin.len = len;
        self.bytes -= bytes;
        Some(self.blocks[class][len as usize & (BIN_BLOCKS - 1)])
    }

    /// Whether blocks of this tag may be kept.
    #[inline(always)]
    pub(crate) fn keeps(&self, tag: Tag) -> bool {
        self.keeps == tag
    }

    /// The place of another block of the class, if one may be kept.
    #[inline(always)]
    pub(crate) fn room(&self, class: usize) -> Option<Room> {
        let bin = self.bins.get(class)?;
        let (len, bytes) = (bin.len, self.bytes);
        (len < bin.bound && bytes <= self.byte_bound).then_some(Room { class, len, bytes })
    }

    /// Keeps a block where there is room, with nothing else done in between.
    #[inline(always)]
    pub(crate) fn fill(&mut self, room: Room, bytes: u64, block: CachedBlock) {
        let Room { class, len, bytes: before } = room;
        self.blocks[class][len as usize & (BIN_BLOCKS - 1)] = block;
        self.bins[class].len = len + 1;
        self.bytes = before + bytes;
    }

    /// Keeps a block; says no if that takes more than is to be kept.
    pub(crate) fn push(&mut self, class: usize, block: CachedBlock) -> bool {
        let room = self.room(class);
        room.map(|room| self.fill(room, class_bytes(class), block)).is_some()
    }

    /// How many blocks a refill brings. The thread is one that allocates.
    pub(crate) fn begin_refill(&mut self, class: usize) -> usize {
        self.one_way = 0;
        self.bins[class].bound.div_ceil(2) as usize
    }

    /// Takes blocks of a class out, those that were kept longest: half of the bound or, if the thread only releases,
    /// all of them. Whether that is so.
    pub(crate) fn make_room(&mut self, class: usize, out: &mut Batch) -> bool {
        let only_releases = self.one_way >= ONE_WAY;
        self.one_way = self.one_way.saturating_add(1);
        let keep = if only_releases { 0 } else { self.bins[class].bound / 2 };
        self.take_oldest(class, keep, out);
        only_releases
    }

    /// Whether as many bytes are kept as may be.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes > self.byte_bound
    }

    /// Takes the older half of a class's blocks out.
    pub(crate) fn halve(&mut self, class: usize, out: &mut Batch) {
        let keep = self.bins[class].len / 2;
        self.take_oldest(class, keep, out);
    }

    /// Takes all blocks of a class out.
    pub(crate) fn empty(&mut self, class: usize, out: &mut Batch) {
        self.take_oldest(class, 0, out);
    }

    /// Takes the oldest blocks of a class until `keep` are left.
    fn take_oldest(&mut self, class: usize, keep: u32, out: &mut Batch) {
        let (bin, blocks) = (&mut self.bins[class], &mut self.blocks[class]);
        let count = bin.len.saturating_sub(keep) as usize;
        out.extend(&blocks[..count]);
        blocks.copy_within(count..bin.len as usize, 0);
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CacheKey {
    /// A number that no other pool or epoch has.
    pub(crate) epoch: u64,
    pub(crate) stream: Stream,
}

/// A cache, whose it is, and where its blocks belong.
#[derive(Debug)]
struct Kept {
    key: CacheKey,
    pool: u64,
    cache: Box<StreamCache>,
    home: Weak<dyn CacheHome>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(home) = self.home.upgrade() {
            self.cache.drain(&*home);
            home.forget(self.cache.seat, &self.cache.counters);
        }
    }
}

/// The caches of a thread: the one used last, and the others.
#[derive(Debug)]
pub(crate) struct Caches {
    latest: Option<Kept>,
    others: Vec<Kept>,
}

/// Calls `hit` with this thread's cache for the key. `None` if it has none (of this epoch) yet, or if the caches
/// can't be had: the thread is ending, or is in the midst of a call.
#[inline]
pub(crate) fn with<R>(key: CacheKey, hit: impl FnOnce(&mut StreamCache) -> R) -> Option<R> {
    let call = Call::default();
    let mut caches = local::current(&call)?.try_borrow_mut().ok()?;
    caches.get(key).map(hit)
}

impl Caches {
    pub(crate) fn new() -> Self {
        Self { latest: None, others: Vec::new() }
    }

    /// The cache for the key.
    #[inline(always)]
    pub(crate) fn get(&mut self, key: CacheKey) -> Option<&mut StreamCache> {
        if self.latest.as_ref().is_some_and(|latest| latest.key == key) {
            return self.latest.as_mut().map(|latest| &mut *latest.cache);
        }
        self.find(key.epoch, key.stream)
    }

    /// Makes another cache the latest. The parts of the key in registers, lest a hit puts it together in memory.
    #[inline(never)]
    fn find(&mut self, epoch: u64, stream: Stream) -> Option<&mut StreamCache> {
        let key = CacheKey { epoch, stream };
        let other = self.others.iter_mut().find(|other| other.key == key)?;
        match &mut self.latest {
            Some(latest) => std::mem::swap(latest, other),
            None => return Some(&mut other.cache),
        }
        self.latest.as_mut().map(|latest| &mut *latest.cache)
    }

    /// Takes out the caches that match.
    fn take(&mut self, matches: impl Fn(&Kept) -> bool) -> Vec<Kept> {
        let latest = self.latest.take_if(|latest| matches(latest));
        latest.into_iter().chain(self.others.extract_if(.., |other| matches(other))).collect()
    }
}

/// What a new cache starts from.
pub(crate) struct Fresh {
    pub(crate) seat: Seat,
    pub(crate) byte_bound: u64,
    pub(crate) counters: Arc<CacheCounters>,
}

/// Gives this thread a cache. Those of the pool's earlier epochs are emptied, and those of pools that are gone freed.
/// `false` if the thread's caches can't be had.
pub(crate) fn install(pool: u64, key: CacheKey, home: Weak<dyn CacheHome>, fresh: Fresh) -> bool {
    let mut gone = Vec::new();
    local::make();
    let call = Call::default();
    let caches = local::current(&call).map(|caches| caches.try_borrow_mut());
    let installed = match caches {
        Some(Ok(mut caches)) => {
            gone = caches.take(|old| (old.pool == pool && old.key.epoch != key.epoch) || old.home.strong_count() == 0);
            let cache = Box::new(StreamCache::new(fresh.seat, fresh.byte_bound, fresh.counters));
            let before = caches.latest.replace(Kept { key, pool, cache, home });
            caches.others.extend(before);
            true
        }
        Some(Err(_)) | None => false,
    };
    // Emptied with the caches free for use: giving blocks back may call a hook that allocates.
    drop(gone);
    installed
}

/// Empties this thread's caches of the pool.
pub(crate) fn drain(pool: u64) {
    let call = Call::default();
    let caches = local::current(&call).and_then(|caches| caches.try_borrow_mut().ok());
    let gone = caches.map(|mut caches| caches.take(|kept| kept.pool == pool));
    drop(gone);
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
        assert_eq!((batch.blocks().len(), cache.pop(1, class_bytes(1))), (BIN_BLOCKS, None));
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
        assert_eq!(cache.pop(1, class_bytes(1)).map(|b| b.slot()), Some(31));
    }
}
