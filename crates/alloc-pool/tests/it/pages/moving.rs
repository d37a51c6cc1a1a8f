//! Free pages are moved to where they are needed before new ones are created.

use alloc_core::Block;
use alloc_pool::PoolConfig;

use crate::support::{A, B, KIB, MIB, PAGE, Rig, simulated};

fn tight() -> Rig {
    Rig::new(simulated(), PoolConfig { growth_slack: 0.0, ..PoolConfig::default() })
}

/// Takes `count` blocks of `pages` pages and gives every second one back.
fn comb(rig: &Rig, count: usize, pages: u64) -> Vec<Block> {
    let blocks: Vec<_> = (0..count).map(|_| rig.take(pages * PAGE, A)).collect();
    let (kept, given): (Vec<_>, Vec<_>) = blocks.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
    given.into_iter().for_each(|(_, block)| rig.give(block, A));
    kept.into_iter().map(|(_, block)| block).collect()
}

fn backing(rig: &Rig, blocks: &[Block]) -> Vec<Option<(u64, u64)>> {
    blocks.iter().map(|block| rig.provider.physical_at(block.address())).collect()
}

#[test]
fn a_comb_of_free_pages_serves_a_block_that_none_of_them_fits() {
    let rig = tight();
    let kept = comb(&rig, 32, 2);
    let before = (rig.figures().reserved.current, backing(&rig, &kept));
    let large = rig.take(30 * PAGE, A);
    rig.work(large, A);
    assert_eq!((rig.figures().reserved.current, backing(&rig, &kept)), before, "nothing grew, nothing in use moved");
    assert!(rig.figures().moves >= 15);
    let calls = rig.provider.calls();
    assert_eq!((calls.release, calls.unmap), (0, 0), "pages are moved by a second view, not torn down");
    rig.close();
}

#[test]
fn fragmentation_costs_next_to_nothing() {
    let rig = Rig::new(simulated(), PoolConfig { growth_slack_thrashing: 0.0, ..PoolConfig::default() });
    let mut live = Vec::new();
    let mut state = 7_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let (mut bytes, mut peak) = (0, 0);
    for _ in 0..4000 {
        let size = (1 + random(32)) * PAGE;
        while bytes + size > 1500 * MIB {
            let block: Block = live.swap_remove(random(live.len() as u64) as usize);
            bytes -= block.size();
            rig.give(block, A);
        }
        live.push(rig.take(size, A));
        bytes += size;
        peak = peak.max(bytes);
    }
    let reserved = rig.figures().reserved.peak;
    assert!(rig.figures().moves > 0);
    assert!(reserved as f64 <= peak as f64 * 1.06, "{reserved} reserved at {peak} live");
    rig.close();
}

#[test]
fn pages_of_one_stream_serve_another() {
    let rig = tight();
    let kept = comb(&rig, 16, 1);
    let reserved = rig.figures().reserved.current;
    let large = rig.take(8 * PAGE, B);
    rig.work(large, B);
    assert_eq!(rig.figures().reserved.current, reserved);
    assert_eq!(rig.provider.calls().wait, 0, "what A had is complete");
    kept.into_iter().for_each(|block| rig.give(block, A));
    rig.close();
}

#[test]
fn a_page_that_comes_back_finds_its_view_standing() {
    let rig = tight();
    let _kept = comb(&rig, 16, 1);
    let large = rig.take(8 * PAGE, A);
    rig.give(large, A);
    let again: Vec<_> = (0..8).map(|_| rig.take(PAGE, A)).collect();
    again.into_iter().for_each(|block| rig.give(block, A));
    let calls = rig.provider.calls();
    for _ in 0..10 {
        let large = rig.take(8 * PAGE, A);
        rig.give(large, A);
        let small: Vec<_> = (0..8).map(|_| rig.take(PAGE, A)).collect();
        small.iter().for_each(|block| rig.work(*block, A));
        small.into_iter().for_each(|block| rig.give(block, A));
    }
    assert_eq!(rig.provider.calls(), calls, "to and fro is bookkeeping alone");
    rig.close();
}

#[test]
fn small_blocks_and_large_ones_lend_each_other_pages() {
    let rig = tight();
    let small: Vec<_> = (0..2000).map(|_| rig.take(16 * KIB, A)).collect();
    let reserved = rig.figures().reserved.current;
    small.into_iter().for_each(|block| rig.give(block, A));
    rig.pool.flush_thread_cache();
    let large = rig.take(24 * MIB, A);
    assert!(rig.figures().reserved.current <= reserved);
    rig.give(large, A);
    let small: Vec<_> = (0..1400).map(|_| rig.take(16 * KIB, A)).collect();
    assert!(rig.figures().reserved.current <= reserved);
    small.into_iter().for_each(|block| rig.give(block, A));
    rig.close();
}

#[test]
fn when_addresses_run_out_stale_views_make_room() {
    let config = PoolConfig { growth_slack: 0.0, address_space: Some(64 * PAGE), ..PoolConfig::default() };
    let rig = Rig::new(simulated(), config);
    // Blocks of ever other sizes, so that views pile up; all addresses are needed again and again.
    for round in 0..40_u64 {
        let sizes = [3 + round % 5, 7, 1 + round % 11, 13];
        let blocks: Vec<_> = sizes.iter().map(|pages| rig.take(pages * PAGE, A)).collect();
        blocks.iter().for_each(|block| rig.work(*block, A));
        for block in [blocks[1], blocks[3], blocks[0], blocks[2]] {
            rig.give(block, A);
        }
    }
    let whole = rig.take(48 * PAGE, A);
    rig.work(whole, A);
    rig.give(whole, A);
    assert!(rig.figures().reserved.peak <= 48 * PAGE);
    rig.close();
}
