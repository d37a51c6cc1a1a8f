//! An offer by itself, and pools whose large blocks stand by.
#![cfg(not(loom))]

use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
use alloc_core::{Address, Block, BlockId, DeviceAllocator, Layout, ReleaseError, StreamSet};

use super::*;
use crate::id::Name;
use crate::{Pool, PoolConfig};

const HOME: Stream = Stream::from_raw(7);

fn id(generation: u32) -> u64 {
    Name::Large { arena: 4, node: 9, generation }.id().to_bits()
}

fn offered(generation: u32) -> Offered {
    Offered { id: id(generation), address: 4096, size: 100_000, tag: 3, home: HOME }
}

fn on_offer(generation: u32) -> (Standby, Offers) {
    let (standby, mut offers) = (Standby::new(), Offers::default());
    standby.offer(&mut offers, offered(generation), None);
    (standby, offers)
}

#[test]
fn only_what_is_on_offer_is_taken() {
    let (standby, mut offers) = on_offer(5);
    assert_eq!(standby.take(100_001, 3, HOME, None), None);
    assert_eq!(standby.take(100_000, 2, HOME, None), None);
    assert_eq!(standby.take(100_000, 3, Stream::DEFAULT, None), None);
    assert_eq!(standby.take(100_000, 3, Stream::with_identity(7, 1), None), None);
    let taken = standby.take(100_000, 3, HOME, None).unwrap();
    assert_eq!((taken.0.get(), taken.1), (4096, id(5)));
    assert_eq!(standby.take(100_000, 3, HOME, None), None, "it is out");
    assert_eq!(standby.end(&mut offers, None, |_| unreachable!()), Outcome { releases: 0, is_out: true });
    assert_eq!(standby.take(100_000, 3, HOME, None), None, "the offer has ended");
}

#[test]
fn only_the_block_itself_comes_back_and_only_once() {
    let (standby, mut offers) = on_offer(5);
    assert!(!standby.give_back(4096, 100_000, id(5), HOME, None), "nobody has it");
    let (address, taken) = standby.take(100_000, 3, HOME, None).unwrap();
    let address = address.get();
    assert!(!standby.give_back(address + 1, 100_000, taken, HOME, None));
    assert!(!standby.give_back(address, 99_999, taken, HOME, None));
    assert!(!standby.give_back(address, 100_000, id(4), HOME, None));
    assert!(!standby.give_back(address, 100_000, taken ^ 1 << 40, HOME, None), "another node's");
    assert!(!standby.give_back(address, 100_000, taken, Stream::DEFAULT, None));
    assert!(standby.give_back(address, 100_000, taken, HOME, None));
    assert!(!standby.give_back(address, 100_000, taken, HOME, None));
    let (_, again) = standby.take(100_000, 3, HOME, None).unwrap();
    assert_eq!(again, id(6));
    assert!(!standby.give_back(address, 100_000, taken, HOME, None), "that life is over");
    assert!(standby.give_back(address, 100_000, again, HOME, None));
    assert_eq!(standby.end(&mut offers, None, |_| unreachable!()), Outcome { releases: 2, is_out: false });
    assert_eq!(standby.end(&mut offers, None, |_| unreachable!()), Outcome { releases: 0, is_out: false });
}

#[test]
fn generations_wrap_within_their_bits() {
    let last = id::NODE_GENERATIONS as u32;
    let (standby, mut offers) = on_offer(last);
    let (address, taken) = standby.take(100_000, 3, HOME, None).unwrap();
    assert_eq!(taken, id(last));
    assert!(standby.give_back(address.get(), 100_000, taken, HOME, None));
    assert_eq!(standby.take(100_000, 3, HOME, None).unwrap().1, id(0));
    assert_eq!(standby.end(&mut offers, None, |_| unreachable!()), Outcome { releases: 1, is_out: true });
}

#[test]
fn no_two_offers_have_a_word_in_common() {
    let (standby, mut offers) = on_offer(id::NODE_GENERATIONS as u32);
    for generation in [id::NODE_GENERATIONS as u32, 0, 0, 5, 4] {
        let (address, taken) = standby.take(100_000, 3, HOME, None).unwrap();
        assert!(standby.give_back(address.get(), 100_000, taken, HOME, None));
        let last = standby.word.load(Ordering::Relaxed);
        standby.end(&mut offers, None, |_| unreachable!());
        standby.offer(&mut offers, offered(generation), None);
        assert!(standby.word.load(Ordering::Relaxed) > last);
    }
}

#[test]
fn when_numbers_have_come_to_their_end_nothing_is_offered() {
    let standby = Standby::new();
    standby.offer(&mut Offers { word: u64::MAX >> 1, ..Offers::default() }, offered(1), None);
    assert!(!standby.is_on_offer());
    assert_eq!(standby.take(100_000, 3, HOME, None), None);
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const A: Stream = Stream::from_raw(1);
const B: Stream = Stream::from_raw(2);

type Simulated = Pool<SimulatedProvider>;

fn pool(config: PoolConfig) -> Simulated {
    Pool::new(SimulatedProvider::new(SimulatedConfig::default()), config).unwrap()
}

fn take(pool: &Simulated, size: u64, stream: Stream) -> Block {
    pool.allocate(Layout::bytes(size).unwrap(), stream).unwrap()
}

/// As a program releases, which may do so without the lock.
fn give(pool: &Simulated, block: Block, stream: Stream) -> Result<(), ReleaseError> {
    // SAFETY: no memory is behind the blocks of a simulated provider, so that no misuse can do harm.
    unsafe { pool.release(block, stream, StreamSet::EMPTY) }
}

fn stands_by(pool: &Simulated) -> bool {
    pool.inner.arena(0).is_some_and(|arena| arena.standby.is_on_offer())
}

/// Takes the lock, which ends an offer and changes nothing else.
fn end_offers(pool: &Simulated) {
    for arena in pool.inner.arenas.iter() {
        drop(arena.lock_or_wait());
    }
}

/// Pairs of calls until the block stands by: the next allocation and release need no lock.
fn establish(pool: &Simulated, size: u64, stream: Stream) {
    for _ in 0..2 {
        give(pool, take(pool, size, stream), stream).unwrap();
    }
    assert!(stands_by(pool), "one pair shows the pattern, and the next one ends with an offer");
}

#[test]
fn pairs_of_calls_leave_the_offer_as_it_is() {
    let pool = pool(PoolConfig::default());
    establish(&pool, 3 * MIB, A);
    let arena = pool.inner.arena(0).unwrap();
    let before = arena.standby.word.load(Ordering::Relaxed);
    for _ in 0..100 {
        give(&pool, take(&pool, 3 * MIB, A), A).unwrap();
    }
    assert_eq!(arena.standby.word.load(Ordering::Relaxed), before + 200);
    for (size, stream) in [(3 * MIB - 1, A), (3 * MIB, B), (2 * MIB, A)] {
        let other = take(&pool, size, stream);
        assert!(!stands_by(&pool), "{size} for {stream:?} is not what is on offer");
        give(&pool, other, stream).unwrap();
        establish(&pool, 3 * MIB, A);
    }
}

/// The same calls with offers and without: the same blocks, ids and figures.
#[test]
fn standing_by_changes_no_placement() {
    let (plain, standing) = (pool(PoolConfig::default()), pool(PoolConfig::default()));
    let (mut live, mut state, mut unlocked) = (Vec::new(), 9_u64, 0);
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for step in 0..20_000 {
        let grow = live.len() < 10 || (live.len() < 40 && random(2) == 0);
        // Few sizes, so that there are gaps which they fill, and some that fit nowhere.
        let odd = if random(4) == 0 { random(MIB) } else { random(100) };
        let (size, stream) = ((1 + random(6)) * 256 * KIB - odd / 4, [A, B][random(8) as usize / 7]);
        // Now and then the same is wanted several times in a row.
        let pairs = [0, 0, 0, 2, 3, 6][random(6) as usize];
        for pair in 0..=pairs {
            end_offers(&plain);
            unlocked += u32::from(stands_by(&standing));
            let (one, other) = (take(&plain, size, stream), take(&standing, size, stream));
            assert_eq!(one, other, "step {step}");
            if pair == pairs && grow {
                live.push((one, stream));
                break;
            }
            end_offers(&plain);
            give(&plain, one, stream).unwrap();
            give(&standing, one, stream).unwrap();
        }
        if !grow {
            let (block, stream) = live.swap_remove(random(live.len() as u64) as usize);
            end_offers(&plain);
            give(&plain, block, stream).unwrap();
            give(&standing, block, stream).unwrap();
        }
        if step % 1000 == 0 {
            assert_eq!(plain.statistics(), standing.statistics(), "step {step}");
        }
    }
    assert!(unlocked > 2_000, "{unlocked} times there was an offer");
    for (block, stream) in live {
        give(&plain, block, stream).unwrap();
        give(&standing, block, stream).unwrap();
    }
    assert_eq!(plain.statistics(), standing.statistics());
    assert_eq!(plain.trim(0), standing.trim(0));
    assert_eq!(standing.statistics().reserved.current, 0);
}

#[test]
fn a_block_on_standby_is_released_once_and_by_name() {
    let pool = pool(PoolConfig::default());
    establish(&pool, 3 * MIB, A);
    let early = take(&pool, 3 * MIB, A);
    give(&pool, early, A).unwrap();
    assert!(matches!(give(&pool, early, A), Err(ReleaseError::Stale { .. })), "it is resting");
    establish(&pool, 3 * MIB, A);
    let block = take(&pool, 3 * MIB, A);
    assert!(stands_by(&pool), "it is out");
    let altered = [
        Block::from_parts(block.address(), block.size() - 1, block.id()),
        Block::from_parts(Address::new(block.address().get() + 512), block.size(), block.id()),
        Block::from_parts(block.address(), block.size(), BlockId::from_bits(block.id().to_bits() ^ 1 << 30)),
    ];
    for altered in altered {
        assert!(matches!(give(&pool, altered, A), Err(ReleaseError::Foreign { .. })), "{altered:?}");
    }
    assert!(matches!(give(&pool, early, A), Err(ReleaseError::Stale { .. })), "an earlier life's");
    give(&pool, block, A).unwrap();
    establish(&pool, 3 * MIB, A);
    let other_streams = take(&pool, 3 * MIB, A);
    give(&pool, other_streams, B).unwrap();
    assert!(!stands_by(&pool));
    assert!(matches!(give(&pool, other_streams, A), Err(ReleaseError::Stale { .. })));
    assert_eq!(pool.statistics().rejected_releases, 6);
    assert_eq!((pool.statistics().in_use.current, pool.statistics().requested.current), (0, 0));
}

#[test]
fn figures_count_what_was_done_without_the_lock() {
    let pool = pool(PoolConfig::default());
    let size = 3 * MIB - 100;
    establish(&pool, size, A);
    for _ in 0..10 {
        give(&pool, take(&pool, size, A), A).unwrap();
    }
    let (figures, bytes) = (pool.statistics(), 3 * MIB);
    assert_eq!((figures.requested.count, figures.requested.total), (12, 12 * size));
    assert_eq!((figures.in_use.current, figures.in_use.peak, figures.in_use.total), (0, bytes, 12 * bytes));
    establish(&pool, size, A);
    pool.reset_peaks();
    assert_eq!(pool.statistics().in_use.peak, 0, "the block is resting");
    establish(&pool, size, A);
    let block = take(&pool, size, A);
    let figures = pool.statistics();
    assert_eq!((figures.requested.current, figures.requested.peak, figures.requested.count), (size, size, 17));
    assert_eq!((figures.in_use.current, figures.in_use.peak), (bytes, bytes));
    give(&pool, block, A).unwrap();
    assert_eq!((pool.statistics().requested.current, pool.statistics().in_use.current), (0, 0));
}

/// Whatever comes between while the block is out or resting, it is released once, and nothing is lost.
#[test]
fn whatever_comes_between_nothing_is_lost() {
    let between: [fn(&Simulated); 6] = [
        |pool| assert!(pool.trim(0) <= 64 * MIB),
        |pool| pool.flush_thread_cache(),
        |pool| pool.retire_stream(A),
        |pool| assert_eq!(pool.breakdown().reserved, pool.statistics().reserved.current),
        |pool| {
            pool.retire_stream(A);
            // A new stream of the same name: blocks of the old one are not its own.
            let block = take(pool, 5 * MIB, A);
            give(pool, block, A).unwrap();
        },
        |pool| {
            let arena = pool.inner.arena(0).unwrap();
            while !arena.remote.is_on() {
                arena.note_meeting(&mut arena.lock());
            }
        },
    ];
    for (which, between) in between.into_iter().enumerate() {
        for is_out in [false, true] {
            let pool = pool(PoolConfig::default());
            establish(&pool, 3 * MIB, A);
            let block = is_out.then(|| take(&pool, 3 * MIB, A));
            assert!(stands_by(&pool));
            between(&pool);
            if let Some(block) = block {
                assert_eq!(pool.statistics().in_use.current, 3 * MIB, "{which}");
                give(&pool, block, A).unwrap();
                assert!(matches!(give(&pool, block, A), Err(ReleaseError::Stale { .. })), "{which}");
            }
            let again = take(&pool, 3 * MIB, A);
            give(&pool, again, A).unwrap();
            assert_eq!(pool.statistics().in_use.current, 0, "{which}");
            pool.trim(0);
            assert_eq!(pool.statistics().reserved.current, 0, "{which}, out: {is_out}");
        }
    }
}

#[test]
fn a_thread_that_ends_leaves_its_block_to_others() {
    let pool = pool(PoolConfig::default());
    let block = std::thread::scope(|scope| {
        let taker = scope.spawn(|| {
            establish(&pool, 3 * MIB, A);
            take(&pool, 3 * MIB, A)
        });
        taker.join().unwrap()
    });
    assert!(stands_by(&pool));
    give(&pool, block, A).unwrap();
    assert!(stands_by(&pool), "whoever releases it needs no lock");
    let next = take(&pool, 3 * MIB, A);
    assert_eq!(next.address(), block.address());
    give(&pool, next, A).unwrap();
    assert!(matches!(give(&pool, block, A), Err(ReleaseError::Stale { .. })));
}

#[test]
fn a_threshold_is_kept_to_without_the_lock() {
    let pool = pool(PoolConfig { release_threshold: Some(64 * MIB), ..PoolConfig::default() });
    let kept = take(&pool, 62 * MIB, A);
    establish(&pool, 2 * MIB, A);
    give(&pool, take(&pool, 2 * MIB, A), A).unwrap();
    assert!(stands_by(&pool), "no more is reserved than the threshold allows");
    let second = take(&pool, 2 * MIB, A);
    assert!(stands_by(&pool));
    pool.set_limit(None);
    give(&pool, second, A).unwrap();
    give(&pool, kept, A).unwrap();
    let (one, two) = (take(&pool, 60 * MIB, A), take(&pool, 8 * MIB, A));
    assert!(pool.statistics().reserved.current > 64 * MIB);
    give(&pool, two, A).unwrap();
    assert!(pool.statistics().reserved.current <= 64 * MIB, "what is past it goes back with the release");
    give(&pool, one, A).unwrap();
}
