//! The suite of the contract over pools of every kind.

use alloc_core::Addressing;
use alloc_core::conformance::{Options, SimulatedConfig, SimulatedProvider, Subject};
use alloc_pool::{Pool, PoolConfig};

use crate::support::{KIB, MIB, simulated};

/// A pool whose blocks must have memory behind them, and that must leave nothing behind.
fn subject(provider: SimulatedConfig, config: PoolConfig) -> Subject {
    let provider = SimulatedProvider::new(provider);
    let (looked_at, left) = (provider.clone(), provider.clone());
    Subject::new(Pool::new(provider, config).unwrap())
        .inspect(move |block| match looked_at.is_backed(block.address(), block.size()) {
            true => Ok(()),
            false => Err("no memory behind it".into()),
        })
        .finish(move || {
            let held = (left.live_handles(), left.mapped_bytes(), left.reserved_addresses(), left.live_events());
            match (left.violations().as_slice(), held) {
                ([], (0, 0, 0, 0)) => Ok(()),
                (violations, held) => Err(format!("{violations:?}, left: {held:?}")),
            }
        })
}

fn options() -> Options {
    Options { contents: false, ..Options::default() }
}

fn segmented() -> SimulatedConfig {
    SimulatedConfig { addressing: Addressing::Segmented, ..simulated() }
}

alloc_core::conformance! { mapped, || subject(simulated(), PoolConfig::default()), options() }

alloc_core::conformance! {
    segmented_memory,
    || subject(segmented(), PoolConfig::default()),
    options()
}

alloc_core::conformance! {
    limited_capacity,
    || subject(SimulatedConfig { capacity: 256 * MIB, ..simulated() }, PoolConfig::default()),
    Options { capacity: Some(256 * MIB), ..options() }
}

alloc_core::conformance! {
    limited_capacity_in_segments,
    || subject(SimulatedConfig { capacity: 256 * MIB, ..segmented() }, PoolConfig::default()),
    Options { capacity: Some(256 * MIB), ..options() }
}

alloc_core::conformance! {
    small_pages,
    || {
        // An odd base: alignment beyond the granularity is the pool's own work.
        let address_base = 0x7000_0001_0000;
        let provider = SimulatedConfig { granularity: 64 * KIB, capacity: 128 * MIB, address_base, ..simulated() };
        subject(provider, PoolConfig::default())
    },
    Options { capacity: Some(128 * MIB), ..options() }
}

alloc_core::conformance! {
    without_thread_caches,
    || subject(simulated(), PoolConfig { thread_cache: 0, ..PoolConfig::default() }),
    options()
}

alloc_core::conformance! {
    limited_by_the_program,
    || {
        let provider = SimulatedConfig { granularity: 64 * KIB, ..simulated() };
        subject(provider, PoolConfig { limit: Some(32 * MIB), ..PoolConfig::default() })
    },
    Options { capacity: Some(32 * MIB), ..options() }
}

alloc_core::conformance! {
    given_back_at_once,
    || subject(simulated(), PoolConfig { release_threshold: Some(0), ..PoolConfig::default() }),
    options()
}
