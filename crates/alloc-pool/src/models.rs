//! Models of the lock-free parts, walked through by [loom](https://docs.rs/loom) in every interleaving and with every
//! value that the memory model lets a load return. `tests/loom.rs` runs them; they are here to reach what is private.
//!
//! The arenas' lock is replaced by loom's; what is under it, and what is not, is the pool's own code.

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;

use alloc_core::{Address, Block, BlockId, Stream};

use crate::bias::{Bias, Owner};
use crate::cache::{CacheCounters, CacheKey, CachedBlock};
use crate::id::{Name, Parts, large_generation, next_slot_generation};
use crate::ledger::{SlabEntry, SlabFacts};
use crate::placement::slab::Slabs;
use crate::placement::units::{CLASSES, class_slots, class_stride};
use crate::primitive::{AtomicU64, Ordering};
use crate::remote::{Living, RemoteReleases};
use crate::standby::{Offered, Offers, Standby};

/// The class of the fewest slots.
const CLASS: usize = CLASSES - 1;
const SLOT: u32 = 5;

/// A slab of whose slots all are taken but those that a model gives back.
struct Slab {
    entry: SlabEntry,
    /// What the arena's lock protects.
    slabs: Mutex<Slabs>,
    /// The bytes of the block in [`SLOT`], which loom sees to being accessed in order.
    contents: UnsafeCell<u64>,
}

/// A block as a program has it.
#[derive(Clone, Copy)]
struct Held {
    address: u64,
    slot: u32,
    generation: u32,
}

impl Slab {
    fn new() -> Self {
        let entry = SlabEntry::new();
        let mut slabs = Slabs::new();
        // Another slab of the class, so that this one would leave if it came to be empty.
        slabs.add((CLASS, class_slots(CLASS)), 0, 0, 0);
        let place = slabs.add((CLASS, class_slots(CLASS)), 0, 1, 1);
        entry.set(SlabFacts { base: 1 << 40, class: CLASS, tag: 0, arena: 1 }, place);
        for _ in 0..2 * class_slots(CLASS) {
            slabs.take(CLASS, 0);
        }
        Self { entry, slabs: Mutex::new(slabs), contents: UnsafeCell::new(0) }
    }

    fn address_of(&self, slot: u32) -> u64 {
        self.entry.facts().base + u64::from(slot) * class_stride(CLASS)
    }

    /// The block that is alive in a slot.
    fn held(&self, slot: u32) -> Held {
        Held { address: self.address_of(slot), slot, generation: self.entry.generations.of(slot) }
    }

    /// What a release does before it gives the block to a cache or an arena.
    fn retire(&self, held: Held) -> bool {
        self.retire_as(None, held)
    }

    fn retire_as(&self, me: Option<&Owner>, held: Held) -> bool {
        let facts = self.entry.facts();
        held.address == facts.base + u64::from(held.slot) * class_stride(facts.class)
            && self.entry.end(me, held.slot, held.generation, next_slot_generation(held.generation))
    }

    /// What happens to a block that a cache gives back.
    fn give(&self, slot: u32) {
        let mut slabs = self.slabs.lock().unwrap_or_else(|error| error.into_inner());
        slabs.give(self.entry.place(), slot);
    }

    /// What a refill does.
    fn take(&self) -> Option<Held> {
        let mut slabs = self.slabs.lock().unwrap_or_else(|error| error.into_inner());
        let (_, slot) = slabs.take(CLASS, 0)?;
        Some(self.held(slot))
    }

    fn write(&self) {
        // SAFETY: loom checks that nobody else reads or writes at the same time.
        self.contents.with_mut(|contents| unsafe { *contents += 1 });
    }
}

// SAFETY: the cell is written by whoever has the block, which is what loom checks.
unsafe impl Sync for Slab {}

/// Of three releases of one block exactly one succeeds.
pub fn one_release_of_many_succeeds() {
    loom::model(|| {
        let slab = Arc::new(Slab::new());
        let held = slab.held(SLOT);
        let release = |slab: Arc<Slab>| move || u32::from(slab.retire(held));
        let threads = [thread::spawn(release(Arc::clone(&slab))), thread::spawn(release(Arc::clone(&slab)))];
        let own = u32::from(slab.retire(held));
        let won: u32 = threads.into_iter().map(|thread| thread.join().unwrap_or(9)).sum();
        assert_eq!(won + own, 1);
        assert_eq!(slab.entry.generations.of(SLOT), next_slot_generation(held.generation));
    });
}

/// Of two releases of one block, one by the thread that owns the slab and one by another, exactly one succeeds, and so
/// does the owner's release of another block, whatever became of the bias.
pub fn one_release_succeeds_while_the_bias_is_revoked() {
    loom::model(|| {
        let slab = Arc::new(Slab::new());
        let owner = Arc::new(Owner::new(1));
        slab.entry.bias.give(&owner);
        let (held, second) = (slab.held(SLOT), slab.held(SLOT + 1));
        let (other, of_other) = (Arc::clone(&slab), Arc::clone(&owner));
        let revoker = thread::spawn(move || {
            other.entry.bias.revoke_alone(|_| Some(&of_other));
            other.retire(held)
        });
        let own = slab.retire_as(Some(&owner), held);
        let next = slab.retire_as(Some(&owner), second);
        let others = revoker.join().unwrap_or(own);
        // An owner whose bias is being revoked has to come again.
        let (own, next) = (own || slab.retire_as(Some(&owner), held), next || slab.retire_as(Some(&owner), second));
        assert!(own != others && next);
        for slot in [SLOT, SLOT + 1] {
            assert_eq!(slab.entry.generations.of(slot), next_slot_generation(held.generation));
        }
    });
}

/// A block is released by one thread and handed out to another, which sees all that the first did with it.
pub fn what_was_written_before_a_release_is_seen_after_the_reuse() {
    loom::model(|| {
        let slab = Arc::new(Slab::new());
        let held = slab.held(SLOT);
        let other = Arc::clone(&slab);
        let reuser = thread::spawn(move || {
            other.take().map(|next| {
                other.write();
                next
            })
        });
        slab.write();
        assert!(slab.retire(held));
        slab.give(SLOT);
        if let Ok(Some(next)) = reuser.join() {
            assert_eq!((next.slot, next.generation), (SLOT, next_slot_generation(held.generation)));
            assert!(!slab.retire(held), "the old name is not that of the new block");
            assert!(slab.retire(next));
        }
    });
}

/// A block goes from thread to thread and is released where it was not taken: that thread's cache hands it out again.
pub fn a_block_that_another_thread_took_is_reused_through_the_cache() {
    loom::model(|| {
        let slab = Arc::new(Slab::new());
        slab.give(SLOT);
        let (mailbox, other) = (Arc::new(Mutex::new(None)), Arc::clone(&slab));
        let letter = Arc::clone(&mailbox);
        let taker = thread::spawn(move || {
            let held = other.take();
            other.write();
            *letter.lock().unwrap_or_else(|error| error.into_inner()) = held;
        });
        let received = mailbox.lock().unwrap_or_else(|error| error.into_inner()).take();
        if let Some(held) = received {
            assert!(slab.retire(held));
            // The cache is this thread's own memory: what it keeps, it hands out with the next generation.
            let kept = CachedBlock::new(held.address, held.slot, next_slot_generation(held.generation));
            let again = Held { address: kept.address, slot: kept.slot(), generation: kept.generation() };
            slab.write();
            assert!(slab.retire(again) && !slab.retire(held));
        }
        assert!(taker.join().is_ok());
    });
}

/// Two releases of one block while a third thread asks for one: nobody gets the block twice, and the old name never
/// ends the new block's life.
pub fn a_stale_release_meets_the_reuse_of_its_slot() {
    loom::model(|| {
        let slab = Arc::new(Slab::new());
        let held = slab.held(SLOT);
        let release = |slab: Arc<Slab>| {
            move || {
                let won = slab.retire(held);
                if won {
                    slab.give(SLOT);
                }
                won
            }
        };
        let second = thread::spawn(release(Arc::clone(&slab)));
        let other = Arc::clone(&slab);
        let reuser = thread::spawn(move || other.take());
        let first = release(Arc::clone(&slab))();
        let second = second.join().unwrap_or(first);
        assert!(first != second, "one of them, and only one");
        let reused = reuser.join().unwrap_or_default();
        match reused {
            Some(next) => {
                assert!(slab.take().is_none(), "the slot was handed out twice");
                assert!(slab.retire(next), "a stale release ended the new block's life");
            }
            None => assert!(slab.take().is_some(), "the slot was lost"),
        }
    });
}

/// A slab's entry passes to another slab, of another class at another address, while someone releases an old block of
/// the first again: whatever mixture of old and new he reads, he is refused.
pub fn a_stale_release_meets_the_reuse_of_its_slab() {
    loom::model(|| {
        let slab = Arc::new(Slab::new());
        let held = slab.held(SLOT);
        assert!(slab.retire(held));
        let other = Arc::clone(&slab);
        let stale = thread::spawn(move || other.retire(held));
        slab.entry.clear();
        // The next slab lies so that its own slot has the old block's address.
        let class = CLASS - 1;
        let base = held.address - u64::from(SLOT) * class_stride(class);
        slab.entry.set(SlabFacts { base, class, tag: 3, arena: 1 }, 7);
        let next = slab.held(SLOT).generation;
        assert!(!stale.join().unwrap_or(true));
        assert!(slab.entry.end(None, SLOT, next, next_slot_generation(next)), "the new block is alive");
        assert_eq!((slab.entry.facts().class, slab.entry.place()), (class, 7));
    });
}

/// Only the owner of a cache writes its counters, and whoever reads them meanwhile reads what they once were.
pub fn counters_lose_nothing_and_show_nothing_that_never_was() {
    loom::model(|| {
        let counters = Arc::new(CacheCounters::default());
        let read = Arc::clone(&counters);
        let reader = thread::spawn(move || {
            let first = read.allocated[CLASS].load(Ordering::Relaxed);
            let second = read.allocated[CLASS].load(Ordering::Relaxed);
            (first, second, read.released_slack.load(Ordering::Relaxed))
        });
        counters.count_allocation(CLASS, 36);
        counters.count_release(CLASS, 36);
        counters.count_allocation(CLASS, 136);
        let (first, second, released) = reader.join().unwrap_or((u64::MAX, 0, 0));
        assert!(first <= second && second <= 2);
        assert!(released == 0 || released == 36);
        let sum = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert_eq!((sum(&counters.allocated[CLASS]), sum(&counters.released[CLASS])), (2, 1));
        assert_eq!((sum(&counters.allocated_slack), sum(&counters.released_slack)), (172, 36));
    });
}

/// A flush moves the epoch on, with no more order than what orders the calls themselves: a call that comes after the
/// flush finds no cache of the epoch before.
pub fn a_call_after_a_flush_finds_no_old_cache() {
    loom::model(|| {
        let (epoch, flushed) = (Arc::new(AtomicU64::new(1)), Arc::new(Mutex::new(false)));
        let old = CacheKey { epoch: epoch.load(Ordering::Relaxed), stream: Stream::DEFAULT };
        let (moving, telling) = (Arc::clone(&epoch), Arc::clone(&flushed));
        let flusher = thread::spawn(move || {
            moving.store(2, Ordering::Relaxed);
            *telling.lock().unwrap_or_else(|error| error.into_inner()) = true;
        });
        let is_after = *flushed.lock().unwrap_or_else(|error| error.into_inner());
        let key = CacheKey { epoch: epoch.load(Ordering::Relaxed), stream: Stream::DEFAULT };
        assert!(!is_after || key != old, "an emptied cache was found");
        assert!(flusher.join().is_ok());
    });
}

/// A large block whose releases need no lock, and what is in it.
struct Remote {
    releases: RemoteReleases,
    contents: UnsafeCell<u64>,
}

// SAFETY: the cell is written by whoever has the block, which is what loom checks.
unsafe impl Sync for Remote {}

const NODE: u32 = 2;

impl Remote {
    fn new() -> Self {
        let remote = Self { releases: RemoteReleases::new(), contents: UnsafeCell::new(0) };
        remote.releases.announce(living(1));
        remote.releases.turn_on();
        remote
    }

    fn release(&self, generation: u32) -> bool {
        let living = living(generation);
        let block = Block::from_parts(Address::new(living.address), living.size, BlockId::from_bits(0));
        self.releases.is_on() && self.releases.release(block, (NODE, generation), living.home)
    }

    fn write(&self) {
        // SAFETY: loom checks that nobody else reads or writes at the same time.
        self.contents.with_mut(|contents| unsafe { *contents += 1 });
    }
}

fn living(generation: u32) -> Living {
    Living { node: NODE, generation, address: 1 << 20, size: 1 << 20, home: Stream::DEFAULT }
}

/// Of several releases of one block, with the arena's lock and without, exactly one succeeds.
pub fn one_remote_release_of_many_succeeds() {
    loom::model(|| {
        let remote = Arc::new(Remote::new());
        let release = |remote: Arc<Remote>| move || u32::from(remote.release(1));
        let threads = [thread::spawn(release(Arc::clone(&remote))), thread::spawn(release(Arc::clone(&remote)))];
        let locked = u32::from(remote.releases.end(NODE, 1));
        let won: u32 = threads.into_iter().map(|thread| thread.join().unwrap_or(9)).sum();
        let mut taken = 0;
        remote.releases.drain(|node| taken += u32::from(node == NODE));
        assert_eq!((won + locked, taken), (1, won));
    });
}

/// A block released without the lock is taken once by whoever has it, who sees all that was done with the block, and
/// its next life is not ended by a release that is late.
pub fn a_remote_release_is_seen_by_who_takes_it() {
    loom::model(|| {
        let remote = Arc::new(Remote::new());
        let other = Arc::clone(&remote);
        let releaser = thread::spawn(move || {
            other.write();
            assert!(other.release(1));
            other.release(1)
        });
        let mut reused = false;
        remote.releases.drain(|node| {
            assert_eq!(node, NODE);
            remote.write();
            remote.releases.announce(living(2));
            reused = true;
        });
        assert!(!releaser.join().unwrap_or(true), "the second release is one too many");
        assert_eq!(remote.release(2), reused);
    });
}

/// Two blocks released by two threads, one of which may find no place on the tray, are each taken once, then or later.
pub fn every_remote_release_is_taken_once() {
    loom::model(|| {
        let releases = Arc::new(RemoteReleases::new());
        releases.turn_on();
        let nodes = [NODE, NODE + 1];
        for node in nodes {
            releases.announce(Living { node, ..living(1) });
        }
        let release = |node: u32, releases: Arc<RemoteReleases>| {
            move || {
                let living = Living { node, ..living(1) };
                let block = Block::from_parts(Address::new(living.address), living.size, BlockId::from_bits(0));
                releases.release(block, (node, 1), living.home)
            }
        };
        let threads = nodes.map(|node| thread::spawn(release(node, Arc::clone(&releases))));
        let mut taken = Vec::new();
        releases.drain(|node| taken.push(node));
        for thread in threads {
            assert!(thread.join().unwrap_or(false));
        }
        releases.drain(|node| taken.push(node));
        taken.sort_unstable();
        assert_eq!(taken, nodes);
        assert!(!releases.has_any());
    });
}

/// A large block that stands by, what is in it, and what the arena's lock protects.
struct Revolving {
    standby: Standby,
    books: Mutex<Books>,
    /// Who makes offers, if anyone may own them.
    owner: Option<Arc<Owner>>,
    contents: UnsafeCell<u64>,
}

/// What the heap and the counters know.
#[derive(Default)]
struct Books {
    offers: Offers,
    generation: u32,
    is_used: bool,
    allocations: u64,
}

// SAFETY: the cell is written by whoever has the block, which is what loom checks.
unsafe impl Sync for Revolving {}

const SIZE: u64 = 1 << 20;

fn block_id(generation: u32) -> u64 {
    Name::Large { arena: 0, node: NODE, generation }.id().to_bits()
}

impl Revolving {
    /// At rest and on offer.
    fn new() -> Self {
        Self::of(None)
    }

    fn of(owner: Option<Arc<Owner>>) -> Self {
        let (standby, books, contents) = (Standby::new(), Mutex::new(Books::default()), UnsafeCell::new(0));
        let revolving = Self { standby, books, owner, contents };
        revolving.with_books(|books| revolving.offer(books, SIZE));
        revolving
    }

    fn offer(&self, books: &mut Books, size: u64) {
        let id = block_id(books.generation);
        let offered = Offered { id, address: 2 * size, size, tag: 0, home: Stream::DEFAULT };
        self.standby.offer(&mut books.offers, offered, self.owner.as_deref());
    }

    /// Takes the lock, as all do: the offer ends first.
    fn with_books<R>(&self, then: impl FnOnce(&mut Books) -> R) -> R {
        self.with_books_as(None, then)
    }

    fn with_books_as<R>(&self, me: Option<&Owner>, then: impl FnOnce(&mut Books) -> R) -> R {
        let mut books = self.books.lock().unwrap_or_else(|error| error.into_inner());
        if self.standby.is_on_offer() {
            let revoke = |bias: &Bias| bias.revoke_alone(|_| self.owner.as_deref());
            let outcome = self.standby.end(&mut books.offers, me, revoke);
            books.generation += outcome.releases as u32;
            books.is_used = outcome.is_out;
            books.allocations += outcome.releases + u64::from(outcome.is_out);
        }
        then(&mut books)
    }

    fn take(&self, size: u64) -> Option<Parts> {
        self.take_as(None, size)
    }

    fn take_as(&self, me: Option<&Owner>, size: u64) -> Option<Parts> {
        let parts = self.standby.take(size, 0, Stream::DEFAULT, me)?;
        self.write();
        Some(parts)
    }

    /// With the lock, if the block is at rest.
    fn take_locked(&self) -> Option<u64> {
        let id = self.with_books(|books| {
            let id = (!books.is_used).then(|| block_id(books.generation))?;
            (books.is_used, books.allocations) = (true, books.allocations + 1);
            Some(id)
        })?;
        self.write();
        Some(id)
    }

    /// Without the lock, or else with it.
    fn release(&self, id: u64) -> bool {
        self.release_as(None, id)
    }

    fn release_as(&self, me: Option<&Owner>, id: u64) -> bool {
        self.standby.give_back(2 * SIZE, SIZE, id, Stream::DEFAULT, me)
            || self.with_books_as(me, |books| {
                let is_this = books.is_used && block_id(large_generation(books.generation)) == id;
                if is_this {
                    (books.is_used, books.generation) = (false, books.generation + 1);
                }
                is_this
            })
    }

    fn write(&self) {
        // SAFETY: loom checks that nobody else reads or writes at the same time.
        self.contents.with_mut(|contents| unsafe { *contents += 1 });
    }
}

/// A block that one thread takes and gives back without the lock, while another wants it with the lock: one of them at a
/// time has it, and the books say how often it was had.
pub fn a_block_on_standby_has_one_holder() {
    loom::model(|| {
        let shared = Arc::new(Revolving::new());
        let other = Arc::clone(&shared);
        let pairs = thread::spawn(move || {
            let mut taken = 0;
            while let Some((_, id)) = other.take(SIZE)
                && taken < 2
            {
                taken += 1;
                assert!(other.release(id));
            }
            taken
        });
        let locked = shared.take_locked().map(|id| assert!(shared.release(id)));
        let taken = pairs.join().unwrap_or(99);
        let (used, allocations) = shared.with_books(|books| (books.is_used, books.allocations));
        assert_eq!(allocations, taken + u64::from(locked.is_some()) + u64::from(used));
    });
}

/// Of two releases of a block that is out, and an end of the offer in between, exactly one succeeds, and the late one
/// does not end the next life.
pub fn one_release_of_a_block_on_standby_succeeds() {
    loom::model(|| {
        let shared = Arc::new(Revolving::new());
        let Some((_, id)) = shared.take(SIZE) else { return assert!(!shared.standby.is_on_offer()) };
        let (one, other) = (Arc::clone(&shared), Arc::clone(&shared));
        let releaser = thread::spawn(move || one.release(id));
        let settler = thread::spawn(move || other.with_books(|books| books.generation));
        let own = shared.release(id);
        let next = shared.take(SIZE);
        assert!(releaser.join().unwrap_or(own) != own, "one of them, and only one");
        assert!(settler.join().is_ok());
        assert!(!shared.release(id));
        if let Some((_, next)) = next {
            assert!(next == block_id(1) && shared.release(next), "a late release ended the next life");
        }
    });
}

/// A thread that looks at one offer while the next one is made takes what the one or the other says, and no mixture.
pub fn what_is_taken_belongs_to_the_offer() {
    loom::model(|| {
        let shared = Arc::new(Revolving::new());
        let other = Arc::clone(&shared);
        let taker = thread::spawn(move || other.take(SIZE));
        shared.with_books(|books| {
            if !books.is_used {
                books.generation += 1;
                shared.offer(books, 2 * SIZE);
            }
        });
        let late = shared.take(2 * SIZE);
        let taken = taker.join().unwrap_or(late);
        assert!(taken.is_some() != late.is_some(), "{taken:?} and {late:?}");
        if let Some((address, id)) = taken {
            assert_eq!((address.get(), id), (2 * SIZE, block_id(0)));
        }
        if let Some((address, id)) = late {
            assert_eq!((address.get(), id), (4 * SIZE, block_id(1)));
        }
    });
}

/// A block on standby whose offer has an owner: he takes it and gives it back without compare-and-swap until another
/// thread takes the lock, and the books say how often it was had.
pub fn a_block_on_standby_leaves_its_owner() {
    loom::model(|| {
        let owner = Arc::new(Owner::new(1));
        let shared = Arc::new(Revolving::of(Some(Arc::clone(&owner))));
        let other = Arc::clone(&shared);
        let locked = thread::spawn(move || match other.take_locked() {
            Some(id) => other.release(id),
            None => false,
        });
        let me = Some(&*owner);
        let taken = shared.take_as(me, SIZE).map(|(_, id)| assert!(shared.release_as(me, id)));
        let again = shared.take_as(me, SIZE).map(|(_, id)| assert!(shared.release_as(me, id)));
        let locked = locked.join().unwrap_or(false);
        let (used, allocations) = shared.with_books(|books| (books.is_used, books.allocations));
        assert!(!used);
        assert_eq!(allocations, [taken.is_some(), again.is_some(), locked].map(u64::from).iter().sum());
    });
}

/// Of two releases of a block that is out, one by the owner of the offer, exactly one succeeds.
pub fn one_release_of_an_owned_block_on_standby_succeeds() {
    loom::model(|| {
        let owner = Arc::new(Owner::new(1));
        let shared = Arc::new(Revolving::of(Some(Arc::clone(&owner))));
        let me = Some(&*owner);
        let Some((_, id)) = shared.take_as(me, SIZE) else { return assert!(!shared.standby.is_on_offer()) };
        let other = Arc::clone(&shared);
        let releaser = thread::spawn(move || other.release(id));
        let own = shared.release_as(me, id);
        assert!(releaser.join().unwrap_or(own) != own, "one of them, and only one");
        assert!(!shared.release_as(me, id) && !shared.release(id));
    });
}
