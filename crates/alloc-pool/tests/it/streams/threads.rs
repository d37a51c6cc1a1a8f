//! Threads that pass each other memory from stream to stream, in a pool that never grows for it.

use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
use alloc_core::{Block, Device, DeviceAllocator, DeviceKind, Layout, MemoryProvider, Stream, StreamSet};
use alloc_pool::{Pool, PoolConfig};

use crate::support::{MIB, join_all, random};

const STREAMS: u64 = 4;

/// Uses a block on some streams in turn, each of which comes after the one before, and releases it.
fn finish(
    pool: &Pool<SimulatedProvider>,
    provider: &SimulatedProvider,
    (block, home): (Block, Stream),
    others: &[Stream],
) {
    let mut uses = StreamSet::new();
    let mut before = home;
    for &other in others.iter().filter(|&&other| other != home) {
        if let Some(event) = provider.record(before).unwrap() {
            provider.make_wait(other, &event).unwrap();
        }
        provider.submit(other, block.address(), block.size());
        (_, before) = (uses.insert(other), other);
    }
    // SAFETY: all uses were submitted to the home stream or are declared.
    unsafe { pool.release(block, home, &uses) }.unwrap();
}

fn pass_on(pool: &Pool<SimulatedProvider>, provider: &SimulatedProvider, seed: u64, own: Option<u64>) {
    let mut random = random(seed);
    let mut living: Vec<(Block, Stream)> = Vec::new();
    for _ in 0..2000 {
        let stream = Stream::from_raw(1 + own.unwrap_or_else(|| random(STREAMS - 1)));
        if living.len() > 5 {
            let index = if random(3) == 0 { random(living.len() as u64) as usize } else { 0 };
            let others: Vec<_> = (0..random(3)).map(|_| Stream::from_raw(1 + random(STREAMS))).collect();
            finish(pool, provider, living.remove(index), &others);
        }
        let size = [2, 4, 6, 8, 12][random(5) as usize] * MIB;
        let block = pool.allocate(Layout::bytes(size).unwrap(), stream).unwrap();
        provider.submit(stream, block.address(), block.size());
        living.push((block, stream));
        if random(4) == 0 {
            provider.complete_next(Stream::from_raw(1 + random(STREAMS)));
        }
        if random(200) == 0 {
            provider.complete_everything();
        }
    }
    living.into_iter().for_each(|block| finish(pool, provider, block, &[]));
}

#[test]
fn memory_of_others_goes_to_one_thread_at_a_time() {
    for seed in 1..5 {
        for (arenas, own_streams) in [(1, true), (1, false), (4, false)] {
            let device = Device::new(DeviceKind::new(12, false), (61_000 + seed) as u16);
            let config = SimulatedConfig { device, is_idle_dear: seed % 2 == 0, ..SimulatedConfig::default() };
            let provider = SimulatedProvider::new(config);
            let config = PoolConfig { growth_slack: 0.0, arenas, ..PoolConfig::default() };
            let pool = Pool::new(provider.clone(), config).unwrap();
            std::thread::scope(|scope| {
                let (pool, provider) = (&pool, &provider);
                let run = |thread| {
                    scope.spawn(move || pass_on(pool, provider, 7 * seed + thread, own_streams.then_some(thread)))
                };
                join_all((0..3).map(run).collect::<Vec<_>>());
            });
            provider.complete_everything();
            assert_eq!(provider.violations(), Vec::<String>::new());
            pool.trim(0);
            let figures = pool.statistics();
            assert_eq!((figures.in_use.current, figures.reserved.current), (0, 0));
        }
    }
}
