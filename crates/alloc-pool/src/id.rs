//! What a block's id says: a slot of a slab, or a node of an arena's heap; and the generation of either.
//!
//! A small block's id also says how much smaller than its class the request was, so that a block whose size was
//! altered is recognised without a table of sizes.

use std::num::NonZeroU64;

use alloc_core::BlockId;

use crate::placement::units::SMALL_MAX;

const LARGE: u64 = 1 << 63;
const ARENA_BITS: u32 = 11;
const NODE_BITS: u32 = 24;
pub(crate) const NODE_GENERATION_BITS: u32 = 28;
/// The bits of a large block's id that are its node's generation, which are the lowest.
pub(crate) const NODE_GENERATIONS: u64 = (1 << NODE_GENERATION_BITS) - 1;
const SLOT_BITS: u32 = 26;
const SLACK_BITS: u32 = 13;
const SLOT_GENERATION_BITS: u32 = 24;

const _: () = assert!(ARENA_BITS + NODE_BITS + NODE_GENERATION_BITS == 63);
const _: () = assert!(SLOT_BITS + SLACK_BITS + SLOT_GENERATION_BITS == 63);
// Classes are an eighth of a doubling apart, so the slack is less than an eighth of the largest class.
const _: () = assert!(SMALL_MAX / 8 <= 1 << SLACK_BITS);

/// The most arenas of a pool.
pub(crate) const MAX_ARENAS: usize = 1 << ARENA_BITS;
/// The most nodes of an arena that ids can name.
pub(crate) const MAX_NODES: u32 = 1 << NODE_BITS;
/// The most slabs of a pool that ids can name: slots are numbered 64 to a slab.
pub(crate) const MAX_SLABS: u32 = 1 << (SLOT_BITS - 6);

/// The address and the id of a block. Two numbers, one of them not zero, so that even an optional pair of them travels
/// in registers; a whole block is put together where it is wanted.
pub(crate) type Parts = (NonZeroU64, u64);

/// An id, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// Slab and slot in one number, and the bytes by which the request was smaller than its class.
    Small {
        slot: u32,
        generation: u32,
        slack: u32,
    },
    Large {
        arena: u32,
        node: u32,
        generation: u32,
    },
}

/// The part of a node's generation that ids carry.
pub(crate) fn large_generation(generation: u32) -> u32 {
    generation & NODE_GENERATIONS as u32
}

/// The bits of a small block's id, but for its slack: the generation on top, so that it counts on by one addition.
#[inline(always)]
pub(crate) fn small_name(slot: u32, generation: u32) -> u64 {
    u64::from(generation) << (SLOT_BITS + SLACK_BITS) | u64::from(slot) << SLACK_BITS
}

/// Slot and generation of a small block's name.
#[inline(always)]
pub(crate) fn slot_and_generation(name: u64) -> (u32, u32) {
    (field(name, SLACK_BITS, SLOT_BITS), field(name, SLOT_BITS + SLACK_BITS, SLOT_GENERATION_BITS))
}

/// The name of a slot's next block, after one of this id.
#[inline(always)]
pub(crate) fn next_small_name(bits: u64) -> u64 {
    // What is carried out of the generation's bits is cut off.
    ((bits >> SLACK_BITS << SLACK_BITS) + (1 << (SLOT_BITS + SLACK_BITS))) & !LARGE
}

/// The generation of a slot after this one.
#[inline]
pub(crate) fn next_slot_generation(generation: u32) -> u32 {
    (generation + 1) & ((1 << SLOT_GENERATION_BITS) - 1)
}

#[inline(always)]
fn field(bits: u64, shift: u32, width: u32) -> u32 {
    (bits >> shift) as u32 & ((1 << width) - 1)
}

impl Name {
    #[inline(always)]
    pub(crate) fn of(id: BlockId) -> Self {
        let bits = id.to_bits();
        if bits & LARGE == 0 {
            return Self::Small {
                slot: field(bits, SLACK_BITS, SLOT_BITS),
                generation: field(bits, SLOT_BITS + SLACK_BITS, SLOT_GENERATION_BITS),
                slack: field(bits, 0, SLACK_BITS),
            };
        }
        Self::Large {
            arena: field(bits, NODE_BITS + NODE_GENERATION_BITS, ARENA_BITS),
            node: field(bits, NODE_GENERATION_BITS, NODE_BITS),
            generation: field(bits, 0, NODE_GENERATION_BITS),
        }
    }

    #[inline(always)]
    pub(crate) fn id(self) -> BlockId {
        BlockId::from_bits(match self {
            Self::Small { slot, generation, slack } => small_name(slot, generation) | u64::from(slack),
            Self::Large { arena, node, generation } => {
                LARGE
                    | u64::from(arena) << (NODE_BITS + NODE_GENERATION_BITS)
                    | u64::from(node) << NODE_GENERATION_BITS
                    | u64::from(large_generation(generation))
            }
        })
    }
}

/// Slab and slot as one number.
#[inline]
pub(crate) fn slot_number(slab: u32, slot: u32) -> u32 {
    slab << 6 | slot
}

/// Slab and slot of a number.
#[inline]
pub(crate) fn slab_and_slot(number: u32) -> (u32, u32) {
    (number >> 6, number & 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_apart_as_they_were_put_together() {
        for name in [
            Name::Small { slot: slot_number(MAX_SLABS - 1, 63), generation: (1 << 24) - 1, slack: 8191 },
            Name::Small { slot: 0, generation: 0, slack: 0 },
            Name::Large { arena: 2047, node: MAX_NODES - 1, generation: (1 << 28) - 1 },
            Name::Large { arena: 0, node: 0, generation: 0 },
        ] {
            assert_eq!(Name::of(name.id()), name);
        }
    }

    #[test]
    fn generations_of_slots_wrap_within_their_bits() {
        assert_eq!(next_slot_generation((1 << 24) - 1), 0);
        for (slot, generation) in [(0, 0), (slot_number(MAX_SLABS - 1, 63), 7), (5, (1 << 24) - 1)] {
            let next = next_small_name(small_name(slot, generation) | 8191);
            assert_eq!(next, small_name(slot, next_slot_generation(generation)));
        }
    }
}
