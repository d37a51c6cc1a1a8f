//! Many threads, threads that end, and pools that come and go.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Barrier, OnceLock};
use std::thread;

use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
use alloc_core::{AllocatorEvent, Block, Device, DeviceAllocator, EventHook, ReleaseError, Stream};
use alloc_pool::{Pool, PoolConfig};

use crate::support::{A, B, KIB, MIB, PAGE, Rig, give, join_all, simulated, take, try_give};

const THREADS: u64 = 6;

/// A block's bytes belong to one thread at a time: each marks its own with its name in a shared table.
struct Marks {
    owners: Vec<AtomicU64>,
    base: u64,
}

impl Marks {
    /// One mark for each 512 bytes of the addresses from `base` on.
    fn new(base: u64, bytes: u64) -> Self {
        Self { owners: (0..bytes / 512).map(|_| AtomicU64::new(0)).collect(), base }
    }

    fn of(&self, block: Block) -> &[AtomicU64] {
        let first = (block.address().get() - self.base) / 512;
        &self.owners[first as usize..(first + block.size().div_ceil(512)) as usize]
    }

    fn set(&self, block: Block, owner: u64) {
        for mark in self.of(block) {
            assert_eq!(mark.swap(owner, Ordering::Relaxed), 0, "{block:?} is {owner}'s and another's");
        }
    }

    fn clear(&self, block: Block, owner: u64) {
        for mark in self.of(block) {
            assert_eq!(mark.swap(0, Ordering::Relaxed), owner, "{block:?} was handed out while {owner} had it");
        }
    }
}

/// Few addresses, so that the marks of all of them fit in memory.
fn marked() -> (Rig, Marks) {
    let config = PoolConfig { address_space: Some(512 * MIB), arenas: 4, ..PoolConfig::default() };
    let rig = Rig::new(simulated(), config);
    // Four pairs of arenas, each with addresses for blocks of no bytes behind it.
    let marks = Marks::new(rig.provider.config().address_base, 8 * 516 * MIB);
    (rig, marks)
}

fn hammer(rig: &Rig, marks: &Marks, thread: u64, stream: Stream, rounds: u64) {
    let mut live = Vec::new();
    let mut state = thread * 77 + 1;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for _ in 0..rounds {
        let size = [1 + random(4 * KIB), 1 + random(64 * KIB), 1 + random(600 * KIB)][random(3) as usize];
        let block = rig.take(size, stream);
        marks.set(block, thread);
        live.push(block);
        if live.len() > 24 {
            let block = live.swap_remove(random(24) as usize);
            marks.clear(block, thread);
            rig.give(block, stream);
        }
    }
    for block in live {
        marks.clear(block, thread);
        rig.give(block, stream);
    }
}

fn on_threads(work: impl Fn(u64) + Sync) {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (1..=THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

fn assert_idle(rig: &Rig) {
    let figures = rig.figures();
    assert_eq!((figures.requested.current, figures.in_use.current, figures.cached), (0, 0, 0));
    rig.pool.trim(0);
    assert_eq!((rig.provider.physical_bytes(), rig.provider.mapped_bytes()), (0, 0));
}

#[test]
fn many_threads_share_one_stream() {
    let (rig, marks) = marked();
    on_threads(|thread| hammer(&rig, &marks, thread, A, 1500));
    assert_eq!(rig.figures().requested.count, THREADS * 1500);
    assert_eq!(rig.provider.calls().wait, 0, "one stream waits for nobody");
    assert_idle(&rig);
    rig.close();
}

#[test]
fn many_threads_have_a_stream_each() {
    let (rig, marks) = marked();
    on_threads(|thread| hammer(&rig, &marks, thread, Stream::from_raw(thread), 1500));
    assert_eq!(rig.figures().requested.count, THREADS * 1500);
    assert_idle(&rig);
    rig.close();
}

/// One large block after the other, which needs no lock as long as nobody else takes it; meanwhile someone reads the
/// figures and trims, and blocks of the same sizes go to another thread to be released there.
#[test]
fn pairs_of_large_blocks_on_many_threads() {
    const ROUNDS: u64 = 4000;
    let (rig, marks) = marked();
    let (sender, receiver) = channel::<Block>();
    let done = AtomicBool::new(false);
    let pairs = |thread: u64, sender: std::sync::mpsc::Sender<Block>| {
        for round in 0..ROUNDS {
            let block = rig.take((1 + thread % 3) * 100 * KIB, A);
            marks.set(block, thread);
            if round % 50 == 49 {
                marks.clear(block, thread);
                sender.send(block).unwrap();
                continue;
            }
            // Where threads run one at a time, some are to be met with a block in hand.
            if round % 512 == 0 {
                thread::yield_now();
            }
            marks.clear(block, thread);
            rig.give(block, A);
            if round % 100 == 0 {
                assert!(try_give(&rig.pool, block, A, &[]).is_err(), "released twice");
            }
        }
    };
    thread::scope(|scope| {
        let (rig, done) = (&rig, &done);
        let releaser = scope.spawn(move || receiver.into_iter().for_each(|block| rig.give(block, A)));
        let watcher = scope.spawn(move || {
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                let figures = rig.figures();
                assert!(figures.requested.count >= count && figures.in_use.current <= figures.in_use.peak);
                count = figures.requested.count;
                rig.pool.trim(u64::MAX);
                thread::yield_now();
            }
        });
        let threads: Vec<_> = (1..=THREADS)
            .map(|thread| {
                let (pairs, sender) = (&pairs, sender.clone());
                scope.spawn(move || pairs(thread, sender))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        drop(sender);
        releaser.join().unwrap();
        done.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
    });
    let figures = rig.figures();
    let bytes: u64 = (1..=THREADS).map(|thread| ROUNDS * (1 + thread % 3) * 100 * KIB).sum();
    assert_eq!((figures.requested.count, figures.requested.total), (THREADS * ROUNDS, bytes));
    assert_eq!((figures.in_use.count, figures.in_use.total), (THREADS * ROUNDS, bytes));
    assert_eq!(figures.rejected_releases, THREADS * ROUNDS / 100);
    assert_idle(&rig);
    rig.close();
}

#[test]
fn blocks_are_released_by_other_threads_than_took_them() {
    let (rig, marks) = marked();
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| channel::<Block>()).unzip();
    let receivers: Vec<_> = receivers.into_iter().map(std::sync::Mutex::new).collect();
    on_threads(|thread| {
        let next = &senders[(thread % THREADS) as usize];
        let own = receivers[thread as usize - 1].lock().unwrap();
        for number in 0..1200_u64 {
            let block = rig.take(1 + number * 97 % (90 * KIB), A);
            marks.set(block, 9);
            next.send(block).unwrap();
            for block in own.try_iter() {
                marks.clear(block, 9);
                rig.give(block, A);
            }
        }
    });
    for receiver in &receivers {
        for block in receiver.lock().unwrap().try_iter() {
            marks.clear(block, 9);
            rig.give(block, A);
        }
    }
    rig.pool.flush_thread_cache();
    assert_idle(&rig);
    rig.close();
}

#[test]
fn threads_that_only_release_keep_up_with_those_that_allocate() {
    let (rig, marks) = marked();
    thread::scope(|scope| {
        let mut threads = Vec::new();
        for pair in 1..=3_u64 {
            let (rig, marks) = (&rig, &marks);
            let (sender, receiver) = std::sync::mpsc::sync_channel::<Block>(64);
            let stream = Stream::from_raw(pair % 2);
            threads.push(scope.spawn(move || {
                for number in 0..8000_u64 {
                    let block =
                        rig.take(1 + number * 7919 * pair % (if number % 3 == 0 { MIB } else { 40 * KIB }), stream);
                    marks.set(block, pair);
                    sender.send(block).unwrap();
                }
            }));
            threads.push(scope.spawn(move || {
                for (number, block) in receiver.into_iter().enumerate() {
                    marks.clear(block, pair);
                    rig.give(block, stream);
                    if number % 50 == 0 {
                        assert!(try_give(&rig.pool, block, stream, &[]).is_err(), "{block:?} is released twice");
                    }
                }
            }));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(rig.figures().rejected_releases, 3 * 160);
    rig.pool.flush_thread_cache();
    assert_idle(&rig);
    rig.close();
}

#[test]
fn a_thread_that_only_releases_loses_nothing_when_its_cache_is_full() {
    let rig = Rig::new(simulated(), PoolConfig { thread_cache: 512 * KIB, ..PoolConfig::default() });
    // As many of the smallest as may wait to be handed over and a cache's place for them holds.
    let smallest: Vec<_> = (0..64 + 32).map(|_| rig.take(512, A)).collect();
    // With these the cache keeps more than it may, by more than all of the smallest.
    let large = [64, 64, 60, 60, 56, 56, 52, 52, 32, 48].map(|size| rig.take(size * KIB, A));
    let last = rig.take(512, A);
    thread::scope(|scope| {
        let releaser = scope.spawn(|| {
            smallest.into_iter().chain(large).chain([last]).for_each(|block| rig.give(block, A));
        });
        releaser.join().unwrap();
    });
    rig.pool.flush_thread_cache();
    assert_idle(&rig);
    rig.close();
}

#[test]
fn remote_releases_meet_trims_retired_streams_and_statistics() {
    let (rig, marks) = marked();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (rig, marks, over) = (&rig, &marks, &over);
        let mut threads = Vec::new();
        for pair in 1..=3_u64 {
            let (sender, receiver) = std::sync::mpsc::sync_channel::<(Block, Stream)>(32);
            threads.push(scope.spawn(move || {
                for number in 0..3000_u64 {
                    // A stream of its own for some time, and one that all have in common.
                    let own = Stream::with_identity(10 + pair, number / 500);
                    let stream = if number % 2 == 0 { A } else { own };
                    let block =
                        rig.take(1 + number * 7919 * pair % (if number % 3 == 0 { 40 * KIB } else { MIB }), stream);
                    marks.set(block, pair);
                    sender.send((block, stream)).unwrap();
                    if number % 500 == 499 {
                        rig.pool.retire_stream(own);
                    }
                }
            }));
            threads.push(scope.spawn(move || {
                for (number, (block, stream)) in receiver.into_iter().enumerate() {
                    marks.clear(block, pair);
                    match number % 7 {
                        0 => rig.give(block, B),
                        1 => rig.give_used(block, stream, &[B]),
                        _ => rig.give(block, stream),
                    }
                    if number % 50 == 0 {
                        assert!(try_give(&rig.pool, block, stream, &[]).is_err(), "{block:?} is released twice");
                    }
                }
            }));
        }
        let looks = scope.spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let figures = rig.figures();
                assert!(figures.requested.current <= figures.in_use.current);
                rig.pool.flush_thread_cache();
                rig.pool.trim(16 * MIB);
                thread::sleep(std::time::Duration::from_millis(1));
            }
        });
        let ended: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        over.store(true, Ordering::Relaxed);
        looks.join().unwrap();
        ended.into_iter().for_each(|ended| ended.unwrap());
    });
    rig.pool.flush_thread_cache();
    rig.pool.trim(0);
    assert_idle(&rig);
    rig.close();
}

#[test]
fn one_of_many_releases_of_a_block_succeeds() {
    let rig = Rig::default();
    for size in [0, 100, 30 * KIB, 200 * KIB, 2 * PAGE] {
        for _ in 0..50 {
            let block = rig.take(size, A);
            let (start, won) = (Barrier::new(4), AtomicU64::new(0));
            let release = || {
                start.wait();
                match try_give(&rig.pool, block, A, &[]) {
                    Ok(()) => drop(won.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => assert!(matches!(error, ReleaseError::Stale { .. }), "{error}"),
                }
            };
            thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(release)).collect();
                join_all(threads);
            });
            assert_eq!(won.into_inner(), 1, "{size}");
        }
    }
    assert_eq!(rig.figures().rejected_releases, 5 * 50 * 3);
    rig.close();
}

#[test]
fn a_thread_that_ends_hands_its_cache_back() {
    let rig = Rig::default();
    for _ in 0..20 {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let blocks: Vec<_> = (0..300).map(|number| rig.take(1 + number * 40, A)).collect();
                blocks.into_iter().for_each(|block| rig.give(block, A));
            });
            thread.join().unwrap();
        });
    }
    let figures = rig.figures();
    assert_eq!((figures.cached, figures.in_use.current, figures.requested.count), (0, 0, 20 * 300));
    assert!(figures.reserved.peak <= 6 * PAGE, "{} for 2 MiB at a time", figures.reserved.peak);
    assert_idle(&rig);
    rig.close();
}

#[test]
fn what_a_thread_left_alive_is_released_by_another() {
    let rig = Rig::default();
    let blocks = thread::scope(|scope| {
        scope.spawn(|| (0..300).map(|number| rig.take(1 + number * 1000, A)).collect::<Vec<_>>()).join().unwrap()
    });
    blocks.into_iter().for_each(|block| rig.give(block, A));
    rig.pool.flush_thread_cache();
    assert_idle(&rig);
    rig.close();
}

#[test]
fn a_flush_reaches_other_threads_at_their_next_call() {
    let rig = Rig::default();
    let (warm, flushed, done) = (Barrier::new(2), Barrier::new(2), Barrier::new(2));
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let blocks: Vec<_> = (0..100).map(|_| rig.take(4 * KIB, A)).collect();
            blocks.into_iter().for_each(|block| rig.give(block, A));
            warm.wait();
            flushed.wait();
            let block = rig.take(100 * KIB, A);
            rig.give(block, A);
            done.wait();
        });
        warm.wait();
        rig.pool.trim(0);
        flushed.wait();
        done.wait();
        assert_eq!(rig.figures().cached, 0);
        rig.pool.trim(0);
        assert_eq!(rig.provider.physical_bytes(), 0);
        join_all([other]);
    });
    rig.close();
}

#[test]
fn a_pool_goes_while_other_threads_still_have_caches_of_it() {
    let provider = SimulatedProvider::new(simulated());
    let pool = Pool::new(provider.clone(), PoolConfig::default()).unwrap();
    let (ready, gone) = (Barrier::new(3), Barrier::new(3));
    thread::scope(|scope| {
        let lent = Arc::new(pool);
        for stream in [A, B] {
            let (pool, ready, gone) = (Arc::clone(&lent), &ready, &gone);
            scope.spawn(move || {
                let blocks: Vec<_> = (0..100).map(|_| take(&pool, 2 * KIB, stream)).collect();
                blocks.into_iter().for_each(|block| give(&pool, block, stream));
                drop(pool);
                ready.wait();
                gone.wait();
                // The thread's caches are of a pool that is gone; another takes their place.
                let next = Pool::new(SimulatedProvider::new(simulated()), PoolConfig::default()).unwrap();
                let block = take(&next, 2 * KIB, stream);
                give(&next, block, stream);
            });
        }
        ready.wait();
        drop(lent);
        provider.assert_all_returned();
        gone.wait();
    });
    provider.assert_all_returned();
}

#[test]
fn two_pools_in_one_thread_do_not_mix_their_blocks() {
    let elsewhere = SimulatedConfig { address_base: 0x1000_0000_0000, ..simulated() };
    let (one, other) = (Rig::default(), Rig::new(elsewhere, PoolConfig::default()));
    for size in [0, 100, 5 * KIB, 100 * KIB] {
        for _ in 0..100 {
            let (a, b) = (one.take(size, A), other.take(size, A));
            assert!(matches!(one.try_give(b, A, &[]), Err(ReleaseError::Foreign { .. } | ReleaseError::Stale { .. })));
            one.give(a, A);
            other.give(b, A);
        }
    }
    for rig in [one, other] {
        assert_eq!((rig.figures().requested.count, rig.figures().in_use.current), (400, 0));
        rig.close();
    }
}

#[test]
fn a_thousand_pools_come_and_go() {
    let kept = Rig::default();
    let block = kept.take(KIB, A);
    for number in 0..1000 {
        let rig = Rig::default();
        let blocks = [rig.take(KIB, A), rig.take(100 * KIB, B)];
        if number % 2 == 0 {
            rig.give(blocks[0], A);
            rig.give(blocks[1], B);
        }
        rig.close();
    }
    kept.give(block, A);
    kept.close();
}

/// Allocates from and releases to the pool that it listens to, whatever that tells.
#[derive(Debug, Default)]
struct Busy {
    pool: OnceLock<std::sync::Weak<Pool<SimulatedProvider>>>,
    calls: AtomicU64,
    inside: AtomicBool,
}

impl EventHook for Busy {
    fn on_event(&self, _device: Device, _event: &AllocatorEvent<'_>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let Some(pool) = self.pool.get().and_then(std::sync::Weak::upgrade) else { return };
        if self.inside.swap(true, Ordering::Relaxed) {
            return;
        }
        for size in [100, 40 * KIB, 300 * KIB] {
            for stream in [A, B] {
                let layout = alloc_core::Layout::bytes(size).unwrap();
                if let Ok(block) = pool.allocate(layout, stream) {
                    give(&pool, block, stream);
                }
            }
        }
        pool.statistics();
        pool.flush_thread_cache();
        pool.trim(100 * MIB);
        self.inside.store(false, Ordering::Relaxed);
    }
}

#[test]
fn a_hook_may_use_the_pool_that_calls_it() {
    let hook = Arc::new(Busy::default());
    let provider = SimulatedProvider::new(simulated());
    let config = PoolConfig {
        hook: Some(Arc::clone(&hook) as _),
        limit: Some(24 * PAGE),
        release_threshold: Some(8 * PAGE),
        growth_slack: 0.0,
        ..PoolConfig::default()
    };
    let pool = Arc::new(Pool::new(provider.clone(), config).unwrap());
    hook.pool.set(Arc::downgrade(&pool)).unwrap();
    // Growth, moves, waits, refusals, shrinking, failures: each tells the hook.
    let blocks: Vec<_> = (0..20).map(|_| take(&pool, PAGE, A)).collect();
    for (number, block) in blocks.into_iter().enumerate() {
        if number % 2 == 0 {
            provider.submit(A, block.address(), PAGE);
            give(&pool, block, A);
        }
    }
    let crossed = take(&pool, 6 * PAGE, B);
    provider.submit(B, crossed.address(), crossed.size());
    give(&pool, crossed, B);
    assert!(try_give(&pool, crossed, B, &[]).is_err());
    assert!(pool.allocate(alloc_core::Layout::bytes(30 * PAGE).unwrap(), A).is_err());
    pool.trim(0);
    assert!(hook.calls.load(Ordering::Relaxed) >= 10);
    provider.assert_clean();
    drop(pool);
    provider.assert_clean();
}

#[test]
fn a_pool_may_be_used_as_its_thread_ends() {
    // A thread-local value that gives its block back when the thread's caches may be gone already.
    struct Owner(Arc<Rig>, Block);
    impl Drop for Owner {
        fn drop(&mut self) {
            self.0.give(self.1, A);
            let block = self.0.take(700, A);
            self.0.give(block, A);
        }
    }
    thread_local! {
        static FIRST: std::cell::RefCell<Option<Owner>> = const { std::cell::RefCell::new(None) };
        static LAST: std::cell::RefCell<Option<Owner>> = const { std::cell::RefCell::new(None) };
    }
    let rig = Arc::new(Rig::default());
    let lent = Arc::clone(&rig);
    thread::spawn(move || {
        // One is made before the thread's caches and one after, so that one of them outlives these.
        FIRST.with(|first| drop(first.borrow_mut().take()));
        let block = lent.take(3 * KIB, A);
        LAST.with(|last| *last.borrow_mut() = Some(Owner(Arc::clone(&lent), block)));
        let block = lent.take(90 * KIB, A);
        FIRST.with(|first| *first.borrow_mut() = Some(Owner(lent, block)));
    })
    .join()
    .unwrap();
    assert_idle(&rig);
    Arc::into_inner(rig).unwrap().close();
}

/// The thread that allocated releases small blocks one after the other, and a large one that stands by, while another
/// thread releases the same ones: of each two releases one succeeds, though the first thread may own what it releases.
#[test]
fn a_block_released_by_its_owner_and_another_thread_is_released_once() {
    for round in 0..100 {
        let rig = Rig::default();
        let blocks: Vec<_> = (0..40).map(|n| rig.take(1 + n * KIB, A)).collect();
        // A pair has the large block stand by, out for the last time.
        (0..3).for_each(|_| rig.give(rig.take(MIB, A), A));
        let large = rig.take(MIB, A);
        let all: Vec<_> = blocks.iter().copied().chain([large]).collect();
        let barrier = Barrier::new(2);
        let release_all = || {
            barrier.wait();
            all.iter().map(|&block| rig.try_give(block, A, &[]).is_ok()).collect::<Vec<_>>()
        };
        let (own, others) = std::thread::scope(|scope| {
            let other = scope.spawn(release_all);
            (release_all(), other.join().unwrap())
        });
        assert!(own.iter().zip(&others).all(|(own, other)| own != other), "round {round}: {own:?} {others:?}");
        assert_eq!(rig.figures().in_use.current, 0);
        assert_eq!(rig.figures().rejected_releases, all.len() as u64);
        rig.close();
    }
}
