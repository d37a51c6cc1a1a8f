//! Bad input gets an error that says what is wrong, and nothing is lost by it.

use std::sync::{Arc, Mutex};

use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
use alloc_core::{
    Address, Addressing, AllocError, AllocatorEvent, Block, BlockId, Device, DeviceAllocator, EventHook, Layout,
    LayoutError, ProviderErrorKind, ReleaseError,
};
use alloc_pool::{ConfigError, Pool, PoolConfig, PoolError};

use crate::support::{A, B, KIB, MIB, PAGE, Rig, simulated};

/// No bytes, small ones of several classes, large ones.
const SIZES: [u64; 8] = [0, 1, 512, 5000, 64 * KIB, 64 * KIB + 1, MIB, 3 * PAGE];

#[derive(Debug, Default)]
struct Refusals(Mutex<Vec<ReleaseError>>);

impl EventHook for Refusals {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        if let AllocatorEvent::RejectedRelease(error) = event {
            self.0.lock().unwrap().push((*error).clone());
        }
    }
}

/// Checks that a release is refused, told and counted, and that nothing else changes.
#[track_caller]
fn refuse(rig: &Rig, block: Block) -> ReleaseError {
    let before = rig.figures();
    let error = rig.try_give(block, A, &[]).unwrap_err();
    let mut after = rig.figures();
    assert_eq!(after.rejected_releases, before.rejected_releases + 1);
    after.rejected_releases = before.rejected_releases;
    assert_eq!(after, before);
    error
}

#[track_caller]
fn assert_foreign(rig: &Rig, block: Block) {
    let error = refuse(rig, block);
    assert_eq!(error, ReleaseError::Foreign { device: rig.pool.device(), block });
}

#[track_caller]
fn assert_stale(rig: &Rig, block: Block) {
    let error = refuse(rig, block);
    assert_eq!(error, ReleaseError::Stale { device: rig.pool.device(), block });
}

fn segmented() -> Rig {
    Rig::new(SimulatedConfig { addressing: Addressing::Segmented, ..simulated() }, PoolConfig::default())
}

#[test]
fn a_stale_block_may_name_what_is_hardly_any_memory_now() {
    for units in 1..4 {
        let rig = Rig::default();
        let before = [PAGE / 4, PAGE / 4, PAGE / 8].map(|size| rig.take(size, A));
        before.iter().for_each(|&block| rig.give(block, A));
        // What is left behind it is named as one of those was.
        let block = rig.take(PAGE - units * 512, A);
        before.iter().for_each(|&block| assert_stale(&rig, block));
        rig.give(block, A);
        before.iter().for_each(|&block| assert_stale(&rig, block));
    }
}

#[test]
fn a_second_release_is_stale() {
    for rig in [Rig::default(), segmented()] {
        for size in SIZES {
            let blocks: Vec<_> = (0..50).map(|_| rig.take(size, A)).collect();
            for block in &blocks {
                rig.give(*block, A);
                assert_stale(&rig, *block);
            }
            // Also when others have the memory since, in whatever state it is.
            let next: Vec<_> = (0..50).map(|_| rig.take(size, B)).collect();
            blocks.iter().for_each(|block| assert_stale(&rig, *block));
            next.into_iter().for_each(|block| rig.give(block, B));
            rig.pool.flush_thread_cache();
            blocks.iter().for_each(|block| assert_stale(&rig, *block));
        }
        rig.close();
    }
}

#[test]
fn a_release_is_stale_though_the_memory_is_gone() {
    let rig = Rig::default();
    let blocks: Vec<_> = SIZES.iter().map(|size| rig.take(*size, A)).collect();
    blocks.iter().for_each(|block| rig.give(*block, A));
    rig.pool.trim(0);
    blocks.iter().for_each(|block| assert_stale(&rig, *block));
    rig.close();
}

#[test]
fn a_parked_block_is_stale() {
    let rig = Rig::default();
    for size in [100, 30 * KIB, 2 * PAGE] {
        let block = rig.take(size, A);
        rig.work(block, B);
        rig.give_used(block, A, &[B]);
        assert_stale(&rig, block);
        rig.provider.complete_everything();
        rig.pool.trim(0);
        assert_stale(&rig, block);
    }
    rig.close();
}

#[test]
fn altered_blocks_are_foreign() {
    for rig in [Rig::default(), segmented()] {
        let blocks: Vec<_> = SIZES.iter().map(|size| rig.take(*size, A)).collect();
        for block in &blocks {
            let (address, size, id) = (block.address().get(), block.size(), block.id());
            for other in [address + 1, address + 512, address - 512, address ^ 1 << 46, 0, u64::MAX] {
                assert_foreign(&rig, Block::from_parts(Address::new(other), size, id));
            }
            for other in [size + 1, size.wrapping_sub(1), size ^ 1 << 33, size + 512, u64::MAX, i64::MAX as u64] {
                assert_foreign(&rig, Block::from_parts(block.address(), other, id));
            }
        }
        blocks.into_iter().for_each(|block| rig.give(block, A));
        rig.close();
    }
}

#[test]
fn made_up_ids_are_refused() {
    let rig = Rig::default();
    let blocks: Vec<_> = SIZES.iter().map(|size| rig.take(*size, A)).collect();
    for block in &blocks {
        for bit in 0..64 {
            let id = BlockId::from_bits(block.id().to_bits() ^ 1 << bit);
            refuse(&rig, Block::from_parts(block.address(), block.size(), id));
        }
        for bits in [0, 1, u64::MAX, 1 << 63, u64::MAX >> 1, 0x8000_0000_0000_0001] {
            if bits != block.id().to_bits() {
                refuse(&rig, Block::from_parts(block.address(), block.size(), BlockId::from_bits(bits)));
            }
        }
    }
    // Each other's ids.
    for (one, other) in blocks.iter().zip(blocks.iter().skip(1)) {
        assert_foreign(&rig, Block::from_parts(one.address(), one.size(), other.id()));
    }
    blocks.into_iter().for_each(|block| rig.give(block, A));
    rig.close();
}

#[test]
fn another_pools_blocks_are_foreign_even_to_one_of_the_same_device() {
    let provider = SimulatedProvider::new(simulated());
    let pool = || Rig { provider: provider.clone(), pool: Pool::new(provider.clone(), PoolConfig::default()).unwrap() };
    let (one, other, fresh) = (pool(), pool(), pool());
    for size in SIZES {
        let (own, foreign) = (one.take(size, A), other.take(size, A));
        assert_foreign(&one, foreign);
        assert_foreign(&other, own);
        assert_foreign(&fresh, own);
        one.give(own, A);
        other.give(foreign, A);
    }
    drop((one.pool, other.pool, fresh.pool));
    provider.assert_all_returned();
}

#[test]
fn refusals_are_told_as_they_are_returned() {
    let refusals = Arc::new(Refusals::default());
    let rig = Rig::new(simulated(), PoolConfig { hook: Some(Arc::clone(&refusals) as _), ..PoolConfig::default() });
    let block = rig.take(100, A);
    rig.give(block, A);
    let stale = refuse(&rig, block);
    let foreign = refuse(&rig, Block::from_parts(Address::new(77), 100, block.id()));
    assert_eq!(*refusals.0.lock().unwrap(), [stale, foreign]);
    rig.close();
}

#[test]
fn sizes_and_alignments_that_overflow_never_reach_the_pool() {
    assert!(matches!(Layout::bytes(u64::MAX), Err(LayoutError::Overflow { size: u64::MAX, .. })));
    assert!(matches!(Layout::new(u64::MAX - 5, 4096), Err(LayoutError::Overflow { .. })));
    assert!(matches!(Layout::new(16, 0), Err(LayoutError::Alignment { align: 0 })));
    assert!(matches!(Layout::new(16, 48), Err(LayoutError::Alignment { align: 48 })));
    let error = AllocError::from(Layout::new(16, 48).unwrap_err());
    assert!(!error.is_out_of_memory());
}

#[test]
fn sizes_near_every_power_of_two_are_right_or_an_error() {
    let provider = SimulatedConfig { capacity: 1 << 30, ..simulated() };
    let rig = Rig::new(provider, PoolConfig { address_space: Some(2 << 30), ..PoolConfig::default() });
    for power in 0..63 {
        for offset in [-513_i64, -512, -257, -1, 0, 1, 255, 512, 4095] {
            for align in [1, 256, 4096, 2 * MIB] {
                let Some(size) = (1_u64 << power).checked_add_signed(offset) else { continue };
                let Ok(layout) = Layout::new(size, align) else { continue };
                match rig.pool.allocate(layout, A) {
                    Ok(block) => {
                        assert!(
                            block.address().is_aligned_to(align) && block.size() == size,
                            "{block:?} for {layout:?}"
                        );
                        assert!(rig.provider.is_backed(block.address(), size), "{block:?}");
                        rig.give(block, A);
                    }
                    Err(error) => {
                        assert!(size > 512 << 20, "{layout:?}: {error}");
                        assert!(matches!(error, AllocError::TooLarge { .. } | AllocError::OutOfMemory(_)), "{error}");
                    }
                }
            }
        }
    }
    assert_eq!((rig.figures().in_use.current, rig.figures().requested.current), (0, 0));
    rig.close();
}

#[test]
fn alignments_that_segments_cannot_have_are_unsupported() {
    let rig = segmented();
    let error = rig.pool.allocate(Layout::new(100, 2 * PAGE).unwrap(), A).unwrap_err();
    assert!(matches!(&error, AllocError::Provider(e) if e.kind == ProviderErrorKind::Unsupported), "{error}");
    let text = format!("alignment {} is more than the {PAGE} of segments (0)", 2 * PAGE);
    assert!(error.to_string().contains(&text), "{error}");
    let block = rig.pool.allocate(Layout::new(100, PAGE).unwrap(), A).unwrap();
    assert!(block.address().is_aligned_to(PAGE));
    rig.give(block, A);
    rig.close();
}

#[test]
fn large_alignments_are_of_addresses_wherever_the_range_lies() {
    // The base is odd in units of the alignment.
    for granularity in [4 * KIB, 64 * KIB] {
        let provider = SimulatedConfig { granularity, address_base: 0x7000_0001_0000, ..simulated() };
        let rig = Rig::new(provider, PoolConfig::default());
        let mut blocks = Vec::new();
        for power in 9..27 {
            for size in [1, 1000, 100 * KIB, 3 * MIB] {
                let block = rig.pool.allocate(Layout::new(size, 1 << power).unwrap(), A).unwrap();
                assert!(block.address().is_aligned_to(1 << power), "{block:?} to 2^{power}");
                rig.work(block, A);
                blocks.push(block);
            }
        }
        blocks.into_iter().for_each(|block| rig.give(block, A));
        rig.close();
    }
}

#[test]
fn settings_that_make_no_sense_make_no_pool() {
    let make = |config| Pool::new(SimulatedProvider::new(simulated()), config).unwrap_err();
    let out_of_range = |config, name| {
        let error = make(config);
        assert!(matches!(&error, PoolError::Config(ConfigError::OutOfRange { setting, .. }) if *setting == name));
        assert!(AllocError::from(error).to_string().contains(name));
    };
    out_of_range(PoolConfig { growth_slack: -0.1, ..PoolConfig::default() }, "growth_slack");
    out_of_range(PoolConfig { growth_slack: f64::INFINITY, ..PoolConfig::default() }, "growth_slack");
    out_of_range(PoolConfig { pieces_per_peak: 0, ..PoolConfig::default() }, "pieces_per_peak");
    out_of_range(PoolConfig { arenas: 0, ..PoolConfig::default() }, "arenas");
    out_of_range(PoolConfig { max_piece: 0, ..PoolConfig::default() }, "max_piece");
    let provider =
        SimulatedProvider::new(SimulatedConfig { granularity: 128 << 30, address_base: 128 << 30, ..simulated() });
    let error = Pool::new(provider, PoolConfig::default()).unwrap_err();
    assert!(matches!(error, PoolError::Granularity { granularity, .. } if granularity == 128 << 30));
}
