//! The rules by which memory passes from stream to stream.

mod capture;
mod crossing;
mod ends;
mod gather;
mod many;
mod marks;
mod parking;
mod poisoned;
mod retirement;
mod sharers;
mod threads;
mod trust;

use alloc_core::ProviderCalls;
use alloc_pool::PoolConfig;

use crate::support::{Rig, simulated};

/// Never grows past the peak of what is in use, so that memory has to pass from stream to stream.
fn tight() -> Rig {
    Rig::new(simulated(), PoolConfig { growth_slack: 0.0, ..PoolConfig::default() })
}

/// Grows rather than pass memory on.
fn roomy() -> Rig {
    Rig::new(simulated(), PoolConfig { growth_slack: 16.0, ..PoolConfig::default() })
}

/// Calls about streams: events recorded, events asked or waited for, streams made to wait.
fn stream_calls(calls: ProviderCalls) -> (u64, u64, u64) {
    (calls.record, calls.query, calls.wait)
}

impl Rig {
    fn stream_calls(&self) -> (u64, u64, u64) {
        stream_calls(self.provider.calls())
    }
}
