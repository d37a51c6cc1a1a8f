//! Remote releases: large blocks given back by threads that don't take the arena's lock.
//!
//! Where one thread allocates and another releases, a lock that both take for each block goes back and forth between
//! their cores, and with it all that it protects. After mimalloc's thread-free lists (Leijen, Zorn, de Moura:
//! "Mimalloc: free list sharding in action", 2019) a released block is left where whoever has the lock takes all of
//! them now and then. As a release has to tell a living block from one that is gone, each block has an entry here that
//! says so, and that one compare-and-swap ends. Only arenas at which threads meet all the time have such entries: for
//! others they would be work for nothing.
//!
//! A list would have its reader fetch one cache line after the other from the releasing core, each to learn where the
//! next one is. So released nodes are named side by side in a tray first, sixteen to a cache line, and only what finds
//! no place there is chained.

use std::sync::OnceLock;

use alloc_core::{Block, Stream};

use crate::ledger::{CHUNKS, chunk_len, chunk_of};
use crate::placement::heap::NIL;
use crate::primitive::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// The bit of a life that says it has not ended.
const LIVING: u32 = 1 << 31;

/// What any thread may know of a node's block.
#[derive(Debug)]
#[repr(align(64))]
struct Entry {
    /// The generation, and whether its block lives.
    life: AtomicU32,
    /// The node released before this one.
    next: AtomicU32,
    address: AtomicU64,
    size: AtomicU64,
    home: [AtomicU64; 2],
}

/// A living block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Living {
    pub(crate) node: u32,
    /// As ids carry it.
    pub(crate) generation: u32,
    pub(crate) address: u64,
    /// Bytes asked for.
    pub(crate) size: u64,
    pub(crate) home: Stream,
}

/// Places of the tray: several times what is released from one look at it to the next. Few for loom, which keeps
/// account of each.
const PLACES: usize = if cfg!(loom) { 1 } else { 64 };
/// How many places a release tries before it chains its node.
const TRIES: u32 = 4;

/// Released nodes, or [`NIL`], in no order.
#[derive(Debug)]
#[repr(align(128))]
struct Tray([AtomicU32; PLACES]);

/// What only releasing threads touch, in a cache line of its own since they write it all the time.
#[derive(Debug)]
#[repr(align(128))]
struct Releasing {
    /// Where the next place of the tray may be free.
    next: AtomicU32,
    /// The node that was chained last.
    chain: AtomicU32,
}

/// The remote releases of one arena.
#[derive(Debug)]
pub(crate) struct RemoteReleases {
    on: AtomicBool,
    entries: [OnceLock<Box<[Entry]>>; CHUNKS],
    tray: Tray,
    releasing: Releasing,
}

impl RemoteReleases {
    pub(crate) fn new() -> Self {
        Self {
            on: AtomicBool::new(false),
            entries: std::array::from_fn(|_| OnceLock::new()),
            tray: Tray(std::array::from_fn(|_| AtomicU32::new(NIL))),
            releasing: Releasing { next: AtomicU32::new(0), chain: AtomicU32::new(NIL) },
        }
    }

    /// Whether blocks of this arena have entries. Once they have, they always will.
    #[inline(always)]
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// From now on blocks have entries. Called under the arena's lock, after all living blocks were announced.
    pub(crate) fn turn_on(&self) {
        self.on.store(true, Ordering::Release);
    }

    fn entry(&self, node: u32) -> Option<&Entry> {
        let (chunk, offset) = chunk_of(node);
        self.entries.get(chunk)?.get()?.get(offset)
    }

    /// Notes a block that was handed out. Called under the arena's lock.
    pub(crate) fn announce(&self, living: Living) {
        let (chunk, offset) = chunk_of(living.node);
        let Some(entries) = self.entries.get(chunk) else { return };
        let entries = entries.get_or_init(|| (0..chunk_len(chunk)).map(|_| Entry::new()).collect());
        let Some(entry) = entries.get(offset) else { return };
        entry.address.store(living.address, Ordering::Relaxed);
        entry.size.store(living.size, Ordering::Relaxed);
        entry.set_home(living.home);
        // Last, for a release that finds this life to find the rest as well.
        entry.life.store(living.generation | LIVING, Ordering::Release);
    }

    /// Ends a block's life; `false` if it had ended before. Called under the arena's lock.
    pub(crate) fn end(&self, node: u32, generation: u32) -> bool {
        self.entry(node).is_some_and(|entry| entry.end(generation))
    }

    /// Releases a block whose only stream is `stream`. `false`, with nothing done, if the lock has to be taken for it:
    /// the block is from another stream, or is none that lives here.
    #[inline]
    pub(crate) fn release(&self, block: Block, (node, generation): (u32, u32), stream: Stream) -> bool {
        let Some(entry) = self.entry(node) else { return false };
        if entry.life.load(Ordering::Acquire) != generation | LIVING
            || entry.address.load(Ordering::Relaxed) != block.address().get()
            || entry.size.load(Ordering::Relaxed) != block.size()
            || entry.home() != stream
            || !entry.end(generation)
        {
            return false;
        }
        if !self.put_on_tray(node) {
            self.chain(entry, node);
        }
        true
    }

    #[inline]
    fn put_on_tray(&self, node: u32) -> bool {
        let next = self.releasing.next.load(Ordering::Relaxed);
        for at in (0..TRIES).map(|tried| next.wrapping_add(tried)) {
            let place = &self.tray.0[at as usize % PLACES];
            let is_free = place.load(Ordering::Relaxed) == NIL;
            if is_free && place.compare_exchange(NIL, node, Ordering::Release, Ordering::Relaxed).is_ok() {
                self.releasing.next.store(at.wrapping_add(1), Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    #[cold]
    fn chain(&self, entry: &Entry, node: u32) {
        let chain = &self.releasing.chain;
        let mut last = chain.load(Ordering::Relaxed);
        loop {
            entry.next.store(last, Ordering::Relaxed);
            match chain.compare_exchange_weak(last, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => last = now,
            }
        }
    }

    /// Whether any were released since they were last taken.
    #[inline(always)]
    pub(crate) fn has_any(&self) -> bool {
        self.is_on()
            && (self.tray.0.iter().any(|place| place.load(Ordering::Relaxed) != NIL)
                || self.releasing.chain.load(Ordering::Relaxed) != NIL)
    }

    /// Hands all released nodes to `take`. Called under the arena's lock.
    pub(crate) fn drain(&self, mut take: impl FnMut(u32)) {
        let (mut taken, mut count) = ([NIL; PLACES], 0);
        for place in &self.tray.0 {
            let node = place.load(Ordering::Acquire);
            if node == NIL {
                continue;
            }
            // No release touches a place that is taken, so this need not be one step with the load.
            place.store(NIL, Ordering::Relaxed);
            if let Some(entry) = self.entry(node) {
                // The entry is written here again when the node's next block is announced. To write it now brings its
                // line from the releasing core, and those of all nodes at a time.
                entry.next.store(NIL, Ordering::Relaxed);
            }
            taken[count] = node;
            count += 1;
        }
        taken[..count].iter().for_each(|&node| take(node));
        let mut node = self.releasing.chain.load(Ordering::Relaxed);
        if node != NIL {
            node = self.releasing.chain.swap(NIL, Ordering::Acquire);
        }
        while let Some(entry) = self.entry(node) {
            let next = entry.next.load(Ordering::Relaxed);
            take(node);
            node = next;
        }
    }

    /// Takes the blocks in use from their stream. Called under the arena's lock.
    pub(crate) fn disown(&self, stream: Stream, nobody: Stream) {
        for entry in self.entries.iter().filter_map(OnceLock::get).flatten().filter(|entry| entry.home() == stream) {
            entry.set_home(nobody);
        }
    }
}

impl Entry {
    fn new() -> Self {
        Self {
            life: AtomicU32::new(0),
            next: AtomicU32::new(NIL),
            address: AtomicU64::new(0),
            size: AtomicU64::new(0),
            home: [AtomicU64::new(0), AtomicU64::new(0)],
        }
    }

    #[inline]
    fn end(&self, generation: u32) -> bool {
        self.life.compare_exchange(generation | LIVING, generation, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    #[inline]
    fn home(&self) -> Stream {
        let [handle, identity] = &self.home;
        Stream::with_identity(handle.load(Ordering::Relaxed), identity.load(Ordering::Relaxed))
    }

    fn set_home(&self, home: Stream) {
        self.home[0].store(home.handle(), Ordering::Relaxed);
        self.home[1].store(home.identity(), Ordering::Relaxed);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc_core::{Address, BlockId};

    use super::*;

    fn living(node: u32, generation: u32) -> Living {
        Living { node, generation, address: 4096 + u64::from(node), size: 100_000, home: Stream::from_raw(7) }
    }

    fn block(living: Living) -> Block {
        Block::from_parts(Address::new(living.address), living.size, BlockId::from_bits(0))
    }

    #[test]
    fn a_block_is_released_once_by_its_own_name_and_stream() {
        let remote = RemoteReleases::new();
        remote.turn_on();
        let one = living(300, 5);
        let name = (one.node, one.generation);
        assert!(!remote.release(block(one), name, one.home), "nothing is announced");
        remote.announce(one);
        assert!(!remote.release(block(one), (300, 4), one.home));
        assert!(!remote.release(block(one), name, Stream::DEFAULT));
        assert!(!remote.release(block(Living { size: 99_999, ..one }), name, one.home));
        assert!(!remote.release(block(Living { address: 0, ..one }), name, one.home));
        assert!(!remote.has_any());
        assert!(remote.release(block(one), name, one.home));
        assert!(!remote.release(block(one), name, one.home));
        assert!(!remote.end(300, 5));
        let mut taken = Vec::new();
        remote.drain(|node| taken.push(node));
        assert_eq!(taken, [300]);
        assert!(!remote.has_any());
    }

    #[test]
    fn all_that_was_released_is_taken() {
        let remote = RemoteReleases::new();
        remote.turn_on();
        for node in 0..1000 {
            remote.announce(living(node, 1));
        }
        std::thread::scope(|scope| {
            for part in 0..4 {
                let remote = &remote;
                scope.spawn(move || {
                    for node in (part..1000).step_by(4) {
                        let living = living(node, 1);
                        assert!(remote.release(block(living), (node, 1), living.home));
                    }
                });
            }
        });
        let mut taken = Vec::new();
        remote.drain(|node| taken.push(node));
        taken.sort_unstable();
        assert!(taken.iter().copied().eq(0..1000));
    }

    #[test]
    fn a_stream_that_is_gone_releases_nothing() {
        let remote = RemoteReleases::new();
        remote.turn_on();
        let one = living(3, 9);
        remote.announce(one);
        remote.disown(one.home, Stream::with_identity(u64::MAX, u64::MAX));
        assert!(!remote.release(block(one), (3, 9), one.home));
        assert!(remote.end(3, 9));
    }
}
