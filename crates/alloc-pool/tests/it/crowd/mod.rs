//! Threads that do whatever they may, at random: whatever they do, no memory is in two hands.
//!
//! What single threads do at random is in the state machine's tests; here several share a pool that is mostly too small for
//! them, so that requests fail beside others that are served, and pieces move. `ALLOC_POOL_CROWDS` is how many such
//! programs are run; a hunt for a race takes some thousands, in a release build with debug assertions.

mod member;

use std::collections::HashSet;
use std::env;
use std::sync::{Mutex, RwLock};

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{Address, Addressing, Block, DeviceAllocator, Stream};
use alloc_pool::PoolConfig;

use crate::support::{KIB, MIB, Rig, random, simulated};

use self::member::Member;

/// A block in use, and who else uses it.
#[derive(Debug)]
struct Lent {
    block: Block,
    home: Stream,
    uses: Vec<Stream>,
    /// The physical memory behind each of its pages.
    behind: Vec<(u64, u64)>,
}

/// What the threads share.
#[derive(Debug)]
struct Crowd {
    rig: Rig,
    /// The streams that are being captured. Who begins or ends a capture is alone.
    captured: RwLock<HashSet<Stream>>,
    /// Blocks on their way from one thread to another.
    handed_on: Mutex<Vec<Lent>>,
    /// The physical memory in use: which of it, from where to where.
    held: Mutex<Vec<(u64, u64, u64)>>,
}

impl Crowd {
    /// What is behind each page of the block, the same of which must be there when it is released.
    fn behind(&self, block: Block) -> Vec<(u64, u64)> {
        let page = self.rig.provider.config().granularity;
        let (start, end) = (block.address().get(), block.address().get() + block.size());
        let pages = (start / page..end.div_ceil(page)).map(|number| (number * page).max(start));
        let behind = |at: u64| self.rig.provider.physical_at(Address::new(at));
        pages.map(|at| behind(at).unwrap_or_else(|| panic!("no memory behind {block:?} at {at:#x}"))).collect()
    }

    /// The same as stretches of physical memory.
    fn extents(&self, lent: &Lent) -> Vec<(u64, u64, u64)> {
        let page = self.rig.provider.config().granularity;
        let (start, end) = (lent.block.address().get(), lent.block.address().get() + lent.block.size());
        let lengths = (start / page..end.div_ceil(page))
            .map(|number| ((number + 1) * page).min(end) - (number * page).max(start));
        lent.behind.iter().zip(lengths).map(|(&(handle, offset), bytes)| (handle, offset, offset + bytes)).collect()
    }

    fn hold(&self, lent: &Lent) {
        let extents = self.extents(lent);
        let mut held = self.held.lock().unwrap();
        for (handle, from, to) in &extents {
            let other = held.iter().find(|(other, start, end)| other == handle && start < to && from < end);
            assert_eq!(other, None, "the memory of {lent:?} is another block's as well");
        }
        held.extend(extents);
    }

    fn let_go(&self, lent: &Lent) {
        assert_eq!(self.behind(lent.block), lent.behind, "the memory of {lent:?} is elsewhere");
        let extents = self.extents(lent);
        self.held.lock().unwrap().retain(|held| !extents.contains(held));
    }
}

/// One program: how the pool is, how many threads there are, and whether they have streams of their own, comes from the seed.
fn run(seed: u64) {
    let mut random = random(seed);
    let page = [2 * MIB, 2 * MIB, 64 * KIB, 512 * KIB][random(4) as usize];
    let room = page * [24, 40, 60, 90, 140][random(5) as usize];
    let limited = random(4);
    let addressing = if random(12) == 0 { Addressing::Segmented } else { Addressing::Mapped };
    let provider = SimulatedConfig {
        addressing,
        granularity: page,
        capacity: if limited == 3 { room } else { 4096 * page },
        is_idle_dear: random(3) == 0,
        ..simulated()
    };
    let config = PoolConfig {
        limit: (limited < 3).then_some(room),
        growth_slack: [0.0, 0.0195][random(2) as usize],
        pieces_per_peak: [192, 192, 8, 32][random(4) as usize],
        release_threshold: (random(10) == 0).then_some(room / 2),
        thread_cache: if random(5) == 0 { 0 } else { 8 * MIB },
        arenas: 4,
        ..PoolConfig::default()
    };
    let crowd = Crowd {
        rig: Rig::new(provider, config),
        captured: RwLock::default(),
        handed_on: Mutex::default(),
        held: Mutex::default(),
    };
    let (threads, streams, have_own) = (2 + random(3), 1 + random(5), random(2) == 0);
    let seeds: Vec<u64> = (0..threads).map(|_| random(u64::MAX >> 12)).collect();
    // In every other program most streams come when the pool has told as many apart as it can.
    let bystanders = if random(2) == 0 { 58 + random(8) } else { 0 };
    for stream in (0..bystanders).map(|number| Stream::from_raw(900_000 + number)) {
        if let Ok(block) = crowd.rig.try_take(512, stream) {
            crowd.rig.give(block, stream);
        }
    }
    std::thread::scope(|scope| {
        let spawn = |(number, seed)| {
            let crowd = &crowd;
            let first = if have_own { 1 + 100 * number } else { 1 };
            scope.spawn(move || Member::new(crowd, (first, streams), have_own.then_some(number), seed).run())
        };
        let members: Vec<_> = (0..).zip(seeds).map(spawn).collect();
        // Not left to the scope, which does not wait for what threads drop at their end.
        members.into_iter().for_each(|member| member.join().unwrap());
    });
    let Crowd { rig, captured, .. } = crowd;
    for stream in captured.into_inner().unwrap() {
        rig.provider.set_capturing(stream, false);
        rig.provider.drop_graph(stream);
    }
    rig.provider.assert_clean();
    let figures = rig.figures();
    assert_eq!((figures.in_use.current, figures.requested.current, figures.leaked), (0, 0, 0));
    if seed.is_multiple_of(2) {
        rig.provider.complete_everything();
    }
    rig.pool.trim(0);
    assert_eq!(rig.figures().reserved.current, 0);
    rig.close();
}

#[test]
fn no_memory_is_in_two_hands() {
    let crowds = env::var("ALLOC_POOL_CROWDS").ok().and_then(|number| number.parse().ok()).unwrap_or(24);
    for seed in 1..=crowds {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("in program {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}
