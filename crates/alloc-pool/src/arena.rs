//! An arena: an address range with its heap and slabs, under one lock. All threads start at one arena; those that meet
//! at its lock spread over more.

use spin::mutex::{SpinMutex, SpinMutexGuard};
use spin::relax::Yield;

use alloc_core::{Address, Gauge};

use crate::id::{Name, large_generation};
use crate::owners;
use crate::placement::heap::{Heap, Node};
use crate::placement::slab::Slabs;
use crate::placement::units::UNIT_SHIFT;
use crate::primitive::{AtomicU32, Ordering};
use crate::remote::{Living, RemoteReleases};
use crate::returns::Returns;
use crate::standby::{Offered, Offers, Standby};

/// Size of the range that gives blocks of zero bytes their addresses.
pub(crate) const ZERO_RANGE: u64 = 2 << 20;

/// Arenas come in pairs: one for large blocks, and the next one for slabs, so that small blocks that live long don't
/// lie between large ones.
pub(crate) const SLAB_ARENA: u32 = 1;

/// Whether the arena of this index is for slabs.
pub(crate) fn is_for_slabs(arena: u32) -> bool {
    arena % 2 == SLAB_ARENA
}

/// How many meetings of threads that release, in how many allocations, are too many.
const MEETINGS: u32 = 512;
const PERIOD: u64 = 8192;
/// Every how many allocations free memory is made of what was released without the lock.
const SETTLE_EVERY: u64 = 16;

/// A slab whose owner turns out not to be alone costs microseconds. So many may, and then one in so many.
const SLABS_REVOKED: u32 = 16;
const SLABS_PER_REVOKED: u32 = 32;

/// How often a waiting thread looks before it yields.
const LOOKS: u32 = 64;

/// One arena. The alignment keeps the locks of two arenas out of each other's cache lines.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Arena {
    pub(crate) index: u32,
    /// Held for tens of nanoseconds by one thread that hardly ever meets another, so giving it back with a plain store
    /// counts for more than sleeping well: a waiting thread looks a few times again, and then yields.
    state: SpinMutex<ArenaState, Yield>,
    pub(crate) remote: RemoteReleases,
    /// Comes first for allocations and releases; whoever takes the lock ends the offer.
    pub(crate) standby: Standby,
    /// How many slabs another thread than their owner wanted to change.
    pub(crate) slabs_revoked: AtomicU32,
}

/// What a used node's entry says.
fn living(addresses: &Addresses, index: u32, node: &Node) -> Living {
    Living {
        node: index,
        generation: large_generation(node.generation),
        address: addresses.of(node.start).get(),
        size: node.requested(),
        home: node.home,
    }
}

/// The state of an arena while it is locked.
pub(crate) type Locked<'a> = SpinMutexGuard<'a, ArenaState>;

/// What the lock of an arena protects.
#[derive(Debug)]
pub(crate) struct ArenaState {
    pub(crate) heap: Heap,
    pub(crate) slabs: Slabs,
    pub(crate) addresses: Addresses,
    /// One bit for each free slab of zero-byte blocks.
    pub(crate) zero_slabs: u64,
    pub(crate) large: LargeCounts,
    pub(crate) returns: Returns,
    offers: Offers,
    /// How often a thread that released a block met another one here, since when.
    meetings: (u32, u64),
    /// How many slabs had an owner.
    slabs_owned: u32,
    /// Peaks were last looked for when about so many units were in use.
    most_units: u64,
}

/// Peaks are looked for when a part in so many more is in use, and some more.
const PART_PER_LOOK: u64 = 32;
const MORE_PER_LOOK: u64 = (512 << 10) >> UNIT_SHIFT;

impl ArenaState {
    /// Whether more is in use, by some, than when this was last said since peaks are counted: then there may be a new one, which
    /// nobody sees whose thread takes small blocks out of its cache.
    pub(crate) fn note_most(&mut self) -> bool {
        let used = self.heap.used_units();
        let is_most = used > self.most_units;
        if is_most {
            self.most_units = used + used / PART_PER_LOOK + MORE_PER_LOOK;
        }
        is_most
    }

    /// Counts the peaks from what is there now.
    pub(crate) fn reset_peaks(&mut self) {
        self.large.reset_peaks();
        self.most_units = 0;
    }
}

/// What became of an arena's large blocks, in bytes. Sums that only grow, so that counting a block is a few additions.
#[derive(Debug, Default)]
pub(crate) struct LargeCounts {
    allocations: u64,
    allocated: u64,
    released: u64,
    /// What rounding added to the blocks allocated, and to those released.
    padding: u64,
    padding_released: u64,
    peak_in_use: u64,
    peak_requested: u64,
}

impl LargeCounts {
    /// Counts a block of `bytes`, of which `padding` were not asked for.
    #[inline(always)]
    pub(crate) fn count_allocation(&mut self, bytes: u64, padding: u64) {
        self.allocations += 1;
        self.allocated = self.allocated.wrapping_add(bytes);
        self.padding = self.padding.wrapping_add(padding);
        let in_use = self.in_use();
        if in_use > self.peak_in_use {
            self.peak_in_use = in_use;
        }
        let requested = self.requested();
        if requested > self.peak_requested {
            self.peak_requested = requested;
        }
    }

    #[inline(always)]
    pub(crate) fn count_release(&mut self, bytes: u64, padding: u64) {
        self.released = self.released.wrapping_add(bytes);
        self.padding_released = self.padding_released.wrapping_add(padding);
    }

    /// Counts blocks of `bytes` one after the other in place of one that was counted before: peaks stay as they are.
    fn count_again(&mut self, allocations: u64, releases: u64, (bytes, padding): (u64, u64)) {
        self.allocations += allocations;
        self.allocated = self.allocated.wrapping_add(bytes.wrapping_mul(allocations));
        self.padding = self.padding.wrapping_add(padding.wrapping_mul(allocations));
        self.released = self.released.wrapping_add(bytes.wrapping_mul(releases));
        self.padding_released = self.padding_released.wrapping_add(padding.wrapping_mul(releases));
        debug_assert!(self.in_use() <= self.peak_in_use && self.requested() <= self.peak_requested);
    }

    /// All blocks so far, and their bytes.
    pub(crate) fn allocated(&self) -> (u64, u64) {
        (self.allocations, self.allocated)
    }

    #[inline(always)]
    fn in_use(&self) -> u64 {
        self.allocated.wrapping_sub(self.released)
    }

    #[inline(always)]
    fn requested(&self) -> u64 {
        self.in_use().wrapping_sub(self.padding.wrapping_sub(self.padding_released))
    }

    fn reset_peaks(&mut self) {
        (self.peak_in_use, self.peak_requested) = (self.in_use(), self.requested());
    }

    /// Bytes asked for, and the same with rounding.
    pub(crate) fn gauges(&self) -> [Gauge; 2] {
        let gauge = |current, peak, total| Gauge { current, peak, total, count: self.allocations };
        [
            gauge(self.requested(), self.peak_requested, self.allocated.wrapping_sub(self.padding)),
            gauge(self.in_use(), self.peak_in_use, self.allocated),
        ]
    }
}

/// From offsets to addresses.
#[derive(Debug)]
pub(crate) enum Addresses {
    /// One reserved range.
    Range { base: u64 },
    /// Segments with addresses of their own: that of each granule, if it has memory.
    Segments { granules: Vec<u64>, granule_units: u32 },
}

impl Addresses {
    #[inline(always)]
    pub(crate) fn of(&self, unit: u32) -> Address {
        match self {
            Self::Range { base } => Address::new(base + (u64::from(unit) << UNIT_SHIFT)),
            Self::Segments { granules, granule_units } => {
                let base = granules.get((unit / granule_units) as usize).copied().unwrap_or(0);
                Address::new(base + (u64::from(unit % granule_units) << UNIT_SHIFT))
            }
        }
    }
}

impl Arena {
    pub(crate) fn new(index: u32, heap: Heap, addresses: Addresses) -> Self {
        let zero_slabs = if matches!(addresses, Addresses::Range { .. }) { u64::MAX } else { 0 };
        Self {
            index,
            state: SpinMutex::new(ArenaState {
                heap,
                slabs: Slabs::new(),
                addresses,
                zero_slabs,
                large: LargeCounts::default(),
                returns: Returns::default(),
                offers: Offers::default(),
                meetings: (0, 0),
                slabs_owned: 0,
                most_units: 0,
            }),
            remote: RemoteReleases::new(),
            standby: Standby::new(),
            slabs_revoked: AtomicU32::new(0),
        }
    }

    /// The lock, with all released blocks in the heap.
    #[inline]
    pub(crate) fn lock(&self) -> Locked<'_> {
        let mut state = self.lock_or_wait().0;
        if self.remote.has_any() || state.heap.is_resting() {
            self.settle(&mut state);
        }
        state
    }

    /// Makes free memory of what was released last, and without the lock.
    #[cold]
    #[inline(never)]
    pub(crate) fn settle(&self, state: &mut ArenaState) {
        state.heap.end_rest();
        self.remote.drain(|index| {
            let Some(node) = state.heap.node(index) else { return };
            let (bytes, requested) = (u64::from(node.units) << UNIT_SHIFT, node.requested());
            state.large.count_release(bytes, bytes - requested);
            state.heap.release(index);
        });
    }

    /// Counts a meeting at the lock of a thread that releases. If there are too many of them, blocks are released
    /// without the lock from now on.
    #[cold]
    pub(crate) fn note_meeting(&self, state: &mut ArenaState) {
        let now = state.large.allocations;
        if now.wrapping_sub(state.meetings.1) > PERIOD {
            state.meetings = (0, now);
        }
        state.meetings.0 += 1;
        if state.meetings.0 == MEETINGS {
            let (heap, addresses, remote) = (&state.heap, &state.addresses, &self.remote);
            heap.for_each_used(|index, node| remote.announce(living(addresses, index, node)));
            remote.turn_on();
        }
    }

    /// Notes a block that was handed out, if blocks are released without the lock here.
    #[inline(always)]
    pub(crate) fn announce(&self, state: &ArenaState, index: u32) {
        if self.remote.is_on()
            && let Some(node) = state.heap.node(index)
        {
            self.remote.announce(living(&state.addresses, index, node));
        }
    }

    /// Makes free memory of what was released without the lock, now and then.
    #[inline(always)]
    pub(crate) fn settle_at_times(&self, state: &mut ArenaState) {
        if self.remote.is_on() && state.large.allocations.is_multiple_of(SETTLE_EVERY) && self.remote.has_any() {
            self.settle(state);
        }
    }

    /// The lock, and whether another thread was in the way. Releases may be due.
    #[inline]
    pub(crate) fn lock_or_wait(&self) -> (Locked<'_>, bool) {
        let (mut state, waited) = match self.state.try_lock() {
            Some(state) => (state, false),
            None => (self.wait(), true),
        };
        if self.standby.is_on_offer() {
            self.end_offer(&mut state);
        }
        (state, waited)
    }

    /// Whether a new slab may have an owner, which is counted: not where threads release each other's blocks.
    pub(crate) fn may_own_slab(&self, state: &mut ArenaState) -> bool {
        let revoked = self.slabs_revoked.load(Ordering::Relaxed).saturating_sub(SLABS_REVOKED);
        let may = revoked <= state.slabs_owned / SLABS_PER_REVOKED;
        state.slabs_owned = state.slabs_owned.saturating_add(u32::from(may));
        may
    }

    /// Enters in the books what became of the block on standby.
    #[cold]
    #[inline(never)]
    fn end_offer(&self, state: &mut ArenaState) {
        let outcome = self.standby.end(&mut state.offers, owners::me(), owners::revoke);
        let Some(bytes) = state.heap.catch_up(outcome.releases, outcome.is_out) else { return };
        state.large.count_again(outcome.releases + u64::from(outcome.is_out), outcome.releases, bytes);
    }

    /// Has the resting block stand by, if a request for the same would get it.
    #[cold]
    #[inline(never)]
    pub(crate) fn offer(&self, state: &mut ArenaState) {
        let Some((index, node)) = state.heap.would_return() else { return };
        let living = living(&state.addresses, index, node);
        let name = Name::Large { arena: self.index, node: index, generation: living.generation };
        let Living { address, size, home, .. } = living;
        let offered = Offered { id: name.id().to_bits(), address, size, tag: node.tag, home };
        self.standby.offer(&mut state.offers, offered, owners::me());
    }

    /// Most holders are done before a call to the system would be.
    #[cold]
    fn wait(&self) -> Locked<'_> {
        for _ in 0..LOOKS {
            std::hint::spin_loop();
            if let Some(state) = self.state.try_lock() {
                return state;
            }
        }
        self.state.lock()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
    use alloc_core::{Block, DeviceAllocator, Layout, ReleaseError, Stream, StreamSet};

    use super::*;
    use crate::pool::Inner;
    use crate::{Pool, PoolConfig};

    const A: Stream = Stream::from_raw(1);
    const B: Stream = Stream::from_raw(2);

    fn give(pool: &Pool<SimulatedProvider>, block: Block, stream: Stream) -> Result<(), ReleaseError> {
        Inner::release(&pool.inner, block, stream, StreamSet::EMPTY)
    }

    #[test]
    fn where_threads_meet_blocks_are_still_released_once_and_by_name() {
        let pool = Pool::new(SimulatedProvider::new(SimulatedConfig::default()), PoolConfig::default()).unwrap();
        let take = |bytes| pool.allocate(Layout::bytes(bytes).unwrap(), A).unwrap();
        let before: Vec<_> = (1..40).map(|n| take(n * 100_000)).collect();
        let arena = pool.inner.arena(0).unwrap();
        for _ in 0..MEETINGS {
            assert!(!arena.remote.is_on());
            arena.note_meeting(&mut arena.lock());
        }
        assert!(arena.remote.is_on());
        let after: Vec<_> = (1..40).map(|n| take(n * 90_000)).collect();
        for &block in before.iter().chain(&after) {
            let altered = Block::from_parts(block.address(), block.size() - 1, block.id());
            assert!(matches!(give(&pool, altered, A), Err(ReleaseError::Foreign { .. })));
            // Another stream's release takes the lock, and meets what was released without.
            give(&pool, block, if block.size() % 3 == 0 { B } else { A }).unwrap();
            for stream in [A, B] {
                assert!(matches!(give(&pool, block, stream), Err(ReleaseError::Stale { .. })));
            }
        }
        let figures = pool.statistics();
        assert_eq!((figures.in_use.current, figures.requested.current), (0, 0));
        let again: Vec<_> = (1..40).map(|n| take(n * 100_000)).collect();
        again.iter().for_each(|&block| give(&pool, block, A).unwrap());
        assert!(before.iter().all(|&block| give(&pool, block, A).is_err()), "a stale id stays stale");
        assert_eq!(pool.trim(0), pool.statistics().reserved.peak);
        assert_eq!(pool.statistics().reserved.current, 0);
    }

    #[test]
    fn meetings_by_chance_change_nothing() {
        let arena = Arena::new(0, Heap::new(0, 1024), Addresses::Range { base: 0 });
        for _ in 0..2 * MEETINGS {
            let mut state = arena.lock();
            state.large.allocations += PERIOD / 2;
            arena.note_meeting(&mut state);
        }
        assert!(!arena.remote.is_on());
    }

    #[test]
    fn slabs_have_owners_until_threads_release_each_others_blocks() {
        let pool = Pool::new(SimulatedProvider::new(SimulatedConfig::default()), PoolConfig::default()).unwrap();
        let owned = || pool.inner.arena(SLAB_ARENA).unwrap().lock().slabs_owned;
        let revoked = || pool.inner.arena(SLAB_ARENA).unwrap().slabs_revoked.load(Ordering::Relaxed);
        let take = |count| (0..count).map(|_| pool.allocate(Layout::bytes(60_000).unwrap(), A).unwrap()).collect();
        let own: Vec<_> = take(1000);
        if owners::me().is_none() {
            return;
        }
        let slabs = owned();
        assert!(slabs > 100);
        own.iter().for_each(|&block| give(&pool, block, A).unwrap());
        assert_eq!(revoked(), 0);
        for _ in 0..4 {
            let blocks: Vec<_> = take(1000);
            let others = std::thread::scope(|scope| {
                scope.spawn(|| blocks.iter().filter(|&&block| give(&pool, block, A).is_ok()).count()).join().unwrap()
            });
            assert_eq!(others, 1000);
        }
        assert!(revoked() > SLABS_REVOKED, "{}", revoked());
        let slabs = owned();
        pool.trim(0);
        let again: Vec<_> = take(1000);
        assert_eq!(owned(), slabs, "{} revoked", revoked());
        again.iter().for_each(|&block| give(&pool, block, A).unwrap());
    }
}
