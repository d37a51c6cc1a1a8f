//! What the tests share: providers that don't disturb each other, and short words for the calls of a pool.

use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::ScopedJoinHandle;

use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
use alloc_core::{
    AllocError, Block, Device, DeviceAllocator, DeviceKind, Layout, ProviderErrorKind, ReleaseError, Statistics,
    Stream, StreamSet,
};
use alloc_pool::{Pool, PoolConfig};

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
/// The granularity of a provider by default.
pub const PAGE: u64 = 2 * MIB;

pub const A: Stream = Stream::from_raw(1);
pub const B: Stream = Stream::from_raw(2);
pub const C: Stream = Stream::from_raw(3);

/// A device that no other test has: pools of one device ask each other for memory.
pub fn device() -> Device {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    Device::new(DeviceKind::new(12, false), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// The default provider, on a device of its own.
pub fn simulated() -> SimulatedConfig {
    SimulatedConfig { device: device(), ..SimulatedConfig::default() }
}

/// Numbers below what is asked for, the same for a seed on every machine.
pub fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    move |below| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    }
}

/// Waits for threads to their very end: a scope does not wait for what they do as they end, which is to give their caches back.
pub fn join_all<'scope, T>(threads: impl IntoIterator<Item = ScopedJoinHandle<'scope, T>>) {
    threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
}

/// A provider and a pool over it, both within reach.
#[derive(Debug)]
pub struct Rig {
    pub provider: SimulatedProvider,
    pub pool: Pool<SimulatedProvider>,
}

impl Rig {
    pub fn new(provider: SimulatedConfig, config: PoolConfig) -> Self {
        let provider = SimulatedProvider::new(provider);
        let pool = Pool::new(provider.clone(), config).unwrap();
        Self { provider, pool }
    }

    #[track_caller]
    pub fn take(&self, size: u64, stream: Stream) -> Block {
        take(&self.pool, size, stream)
    }

    pub fn try_take(&self, size: u64, stream: Stream) -> Result<Block, AllocError> {
        self.pool.allocate(Layout::bytes(size).unwrap(), stream)
    }

    #[track_caller]
    pub fn give(&self, block: Block, stream: Stream) {
        give(&self.pool, block, stream);
    }

    pub fn try_give(&self, block: Block, stream: Stream, uses: &[Stream]) -> Result<(), ReleaseError> {
        try_give(&self.pool, block, stream, uses)
    }

    #[track_caller]
    pub fn give_used(&self, block: Block, stream: Stream, uses: &[Stream]) {
        self.try_give(block, stream, uses).unwrap();
    }

    /// Submits work that writes the whole block.
    pub fn work(&self, block: Block, stream: Stream) {
        self.provider.submit(stream, block.address(), block.size());
    }

    pub fn figures(&self) -> Statistics {
        self.pool.statistics()
    }

    /// Drops the pool: nothing must be left of it.
    #[track_caller]
    pub fn close(self) {
        self.provider.assert_clean();
        drop(self.pool);
        self.provider.assert_all_returned();
    }
}

impl Default for Rig {
    fn default() -> Self {
        Self::new(simulated(), PoolConfig::default())
    }
}

#[track_caller]
pub fn take(pool: &impl DeviceAllocator, size: u64, stream: Stream) -> Block {
    pool.allocate(Layout::bytes(size).unwrap(), stream).unwrap()
}

#[track_caller]
pub fn give(pool: &impl DeviceAllocator, block: Block, stream: Stream) {
    try_give(pool, block, stream, &[]).unwrap();
}

pub fn try_give(
    pool: &impl DeviceAllocator,
    block: Block,
    stream: Stream,
    uses: &[Stream],
) -> Result<(), ReleaseError> {
    // SAFETY: no memory is behind the blocks of a simulated provider, so that no misuse can do harm.
    unsafe { pool.release(block, stream, &uses.iter().copied().collect::<StreamSet>()) }
}

/// Shows pools that had memory to give back, each of which failed at another call, in some of which bytes were lost for good: those
/// that `see` returns.
pub fn trim_and_fail(see: impl Fn(&Rig) -> u64) {
    let lost = (1..10).map(|failing| {
        let rig = Rig::default();
        let (kept, free) = (rig.take(MIB, A), rig.take(4 * PAGE, A));
        rig.give(free, A);
        rig.provider.fail_call(failing, ProviderErrorKind::Other);
        rig.pool.trim(0);
        rig.provider.cancel_failures();
        let lost = see(&rig);
        rig.give(kept, A);
        lost
    });
    assert!(lost.sum::<u64>() > 0);
}
