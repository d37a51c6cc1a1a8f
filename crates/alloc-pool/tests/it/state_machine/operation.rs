//! What may happen, as numbers that mean something in every state, so that a failing run can be cut short anywhere.

use proptest::prelude::*;

use crate::support::{KIB, MIB};

/// One step.
#[derive(Clone, Debug)]
pub enum Operation {
    Take {
        size: u64,
        align: u64,
        stream: usize,
        on_thread: bool,
        work: bool,
    },
    Give {
        block: usize,
        stream: usize,
        on_thread: bool,
    },
    /// Work on a block, on a stream that may not be its own.
    Use {
        block: usize,
        stream: usize,
    },
    /// A block released before is released again.
    GiveAgain {
        block: usize,
    },
    Complete {
        stream: usize,
    },
    CompleteAll,
    Retire {
        stream: usize,
        same_name: bool,
    },
    Trim {
        keep: u64,
    },
    Grow {
        bytes: u64,
        stream: usize,
    },
    Flush,
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        1 => Just(0),
        4 => 1..=8 * KIB,
        4 => 8 * KIB..=64 * KIB,
        4 => 64 * KIB..=MIB,
        2 => MIB..=5 * MIB,
        1 => Just(2 * MIB),
    ]
}

fn take() -> impl Strategy<Value = Operation> {
    let align = prop_oneof![8 => Just(256), 1 => (0_u32..22).prop_map(|power| 1 << power)];
    (size(), align, 0..64_usize, prop::bool::weighted(0.05), prop::bool::weighted(0.8))
        .prop_map(|(size, align, stream, on_thread, work)| Operation::Take { size, align, stream, on_thread, work })
}

/// Any of them.
pub fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    prop_oneof![
        40 => take(),
        24 => (0..64_usize, 0..64_usize, prop::bool::weighted(0.05))
            .prop_map(|(block, stream, on_thread)| Give { block, stream, on_thread }),
        8 => (0..64_usize, 0..64_usize).prop_map(|(block, stream)| Use { block, stream }),
        2 => (0..64_usize).prop_map(|block| GiveAgain { block }),
        10 => (0..64_usize).prop_map(|stream| Complete { stream }),
        3 => Just(CompleteAll),
        2 => (0..64_usize, any::<bool>()).prop_map(|(stream, same_name)| Retire { stream, same_name }),
        2 => (0..32 * MIB).prop_map(|keep| Trim { keep }),
        1 => Just(Trim { keep: 0 }),
        1 => (0..48 * MIB, 0..64_usize).prop_map(|(bytes, stream)| Grow { bytes, stream }),
        1 => Just(Flush),
    ]
}
