//! Where a pool's bytes are, part by part.

use alloc_pool::PoolConfig;

use crate::support::{A, Rig, simulated, trim_and_fail};

#[test]
fn the_parts_add_up_to_what_is_reserved() {
    let rig = Rig::new(simulated(), PoolConfig::default());
    let mut blocks = Vec::new();
    for n in 1..2000_u64 {
        let bytes = n * n % 30_011 * if n % 7 == 0 { 300 } else { 3 };
        blocks.push(rig.take(bytes, A));
        if n % 3 == 0 {
            rig.give(blocks.swap_remove(n as usize * 7 % blocks.len()), A);
        }
        let b = rig.pool.breakdown();
        let rounding = b.rounding_of_large + b.rounding_of_small;
        let free = b.slots + b.within_pages + b.within_pieces + b.free_pieces;
        assert_eq!(b.requested + rounding + free, b.reserved, "{b:?}");
    }
    assert_eq!(rig.pool.breakdown().requested, blocks.iter().map(|block| block.size()).sum::<u64>());
    blocks.into_iter().for_each(|block| rig.give(block, A));
}

#[test]
fn what_could_not_be_given_back_is_a_part_too() {
    trim_and_fail(|rig| {
        let (b, figures) = (rig.pool.breakdown(), rig.figures());
        assert_eq!((b.reserved, b.leaked), (rig.provider.physical_bytes(), figures.leaked));
        assert_eq!(b.requested + b.within_pages + b.free_pieces + b.leaked, b.reserved, "{b:?}");
        b.leaked
    });
}
