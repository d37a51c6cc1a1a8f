//! What a block holds stays, while pages move around it.

use alloc_core::{Block, DeviceAllocator, Layout, Stream, StreamSet};
use alloc_cpu::{HostOptions, HostPool, HugePages, Populate};
use alloc_pool::PoolConfig;
use proptest::prelude::*;

use crate::bytes::{read, write};

/// Every so many bytes a word of the pattern is written, and once at either end.
const STRIDE: u64 = 4096;

#[derive(Clone, Debug)]
enum Step {
    Allocate { size: u64, stream: u64 },
    Release { which: usize },
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![
        2 => 1u64..64 << 10,
        4 => 64u64 << 10..4 << 20,
        1 => 4u64 << 20..12 << 20,
    ];
    prop_oneof![
        10 => (size, 0u64..3).prop_map(|(size, stream)| Step::Allocate { size, stream }),
        9 => any::<usize>().prop_map(|which| Step::Release { which }),
        1 => Just(Step::Trim),
    ]
}

struct Living {
    block: Block,
    stream: Stream,
    mark: u64,
}

fn offsets(size: u64) -> impl Iterator<Item = u64> {
    (0..size.saturating_sub(8)).step_by(STRIDE as usize).chain(size.checked_sub(8))
}

impl Living {
    fn write(&self) {
        for offset in offsets(self.block.size()) {
            write(self.block.address(), offset, &(self.mark ^ offset).to_ne_bytes());
        }
    }

    fn check(&self) {
        for offset in offsets(self.block.size()) {
            let word = u64::from_ne_bytes(read(self.block.address(), offset, 8).try_into().unwrap());
            // The words at the end of a block may lie over those of the stride: the last written counts.
            let expected = if self.block.size() - 8 - offset < 8 { self.block.size() - 8 } else { offset };
            if expected == offset {
                assert_eq!(word, self.mark ^ offset, "{:?} at {offset}", self.block);
            }
        }
    }
}

fn replay(pool: &HostPool, steps: &[Step]) -> u64 {
    let mut living: Vec<Living> = Vec::new();
    let release = |gone: Living| {
        gone.check();
        // SAFETY: the block is used no more.
        unsafe { pool.release(gone.block, gone.stream, StreamSet::EMPTY) }.unwrap();
    };
    for (mark, step) in steps.iter().enumerate() {
        match *step {
            Step::Allocate { size, stream } => {
                let stream = Stream::from_raw(stream);
                match pool.allocate(Layout::bytes(size).unwrap(), stream) {
                    Ok(block) => {
                        let new = Living { block, stream, mark: (mark as u64 + 1) << 40 };
                        new.write();
                        living.push(new);
                    }
                    Err(error) => assert!(error.is_out_of_memory(), "{error}"),
                }
            }
            Step::Release { which } if !living.is_empty() => release(living.swap_remove(which % living.len())),
            Step::Release { .. } => {}
            Step::Trim => {
                pool.trim(0);
            }
        }
    }
    living.iter().for_each(Living::check);
    living.into_iter().for_each(release);
    let moves = pool.statistics().moves;
    pool.trim(0);
    assert_eq!(pool.statistics().reserved.current, 0);
    assert_eq!((pool.provider().created_bytes(), pool.provider().resident_bytes().unwrap()), (0, 0));
    moves
}

fn tight_pool(populate: Populate) -> HostPool {
    alloc_cpu::pool()
        .options(HostOptions::new().capacity_bytes(64 << 20).huge_pages(HugePages::Transparent).populate(populate))
        .config(PoolConfig { growth_slack: 0.0, ..PoolConfig::default() })
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn contents_stay_through_random_traffic(steps in prop::collection::vec(step(), 100..600)) {
        replay(&tight_pool(Populate::Lazy), &steps);
    }

    #[test]
    fn contents_stay_in_huge_pages_too(steps in prop::collection::vec(step(), 100..300)) {
        replay(&tight_pool(Populate::OnCreate), &steps);
    }
}

#[test]
fn the_traffic_does_move_pages() {
    // Blocks with holes between them, then one that is larger than each hole and smaller than their sum.
    let mut steps = vec![Step::Allocate { size: 4 << 20, stream: 0 }; 12];
    // The last block of the list takes the place of one that goes: those made as 0, 2, 4, 6 and 11 go, no neighbours.
    steps.extend([0, 2, 4, 6, 8].map(|which| Step::Release { which }));
    steps.push(Step::Allocate { size: 13 << 20, stream: 0 });
    // A pool of another test that runs out of memory at that moment has this one give its free pages back, and then there is
    // nothing to move.
    let moves = (0..20).any(|_| replay(&tight_pool(Populate::Lazy), &steps) > 0);
    assert!(moves, "this traffic is meant to move pages");
}

#[test]
fn threads_keep_what_they_wrote_while_pages_move() {
    let pool = tight_pool(Populate::Lazy);
    std::thread::scope(|scope| {
        let threads = [0, 1, 2, 3u64].map(|thread| {
            let pool = &pool;
            scope.spawn(move || {
                let stream = Stream::from_raw(1 + thread % 2);
                let mut living: Vec<Living> = Vec::new();
                let mut state = thread + 1;
                for round in 0..400u64 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let size = 1 + (state >> 33) % (1 << (10 + state % 12));
                    if living.len() > 6 || (state >> 20) % 5 < 2 && !living.is_empty() {
                        let gone = living.swap_remove((state >> 40) as usize % living.len());
                        gone.check();
                        // SAFETY: the block is used no more.
                        unsafe { pool.release(gone.block, gone.stream, StreamSet::EMPTY) }.unwrap();
                    }
                    if let Ok(block) = pool.allocate(Layout::bytes(size).unwrap(), stream) {
                        let new = Living { block, stream, mark: (thread + 1) << 56 | (round + 1) << 40 };
                        new.write();
                        living.push(new);
                    }
                }
                for gone in living {
                    gone.check();
                    // SAFETY: the block is used no more.
                    unsafe { pool.release(gone.block, gone.stream, StreamSet::EMPTY) }.unwrap();
                }
            })
        });
        // The scope's own end would not wait for what threads do when they end, such as giving their caches back.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
    assert_eq!(pool.statistics().in_use.current, 0);
    pool.trim(0);
    assert_eq!(pool.provider().created_bytes(), 0);
}
