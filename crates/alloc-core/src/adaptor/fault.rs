//! Failures on purpose.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{AllocError, Block, DeviceAllocator, Layout, OutOfMemory, ProviderError, Stream, forward_allocator};

/// Which allocations are to fail, and how. Rules add up: an allocation fails if any of them says so.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    nth: Vec<u64>,
    every: u64,
    chance: Option<Chance>,
    above: Option<u64>,
    error: InjectedError,
}

#[derive(Clone, Copy, Debug)]
struct Chance {
    probability: f64,
    seed: u64,
}

/// What an allocation fails with on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum InjectedError {
    /// [`AllocError::OutOfMemory`] with the figures of the inner allocator.
    #[default]
    OutOfMemory,
    /// [`AllocError::Provider`] with this error.
    Provider(ProviderError),
}

impl Faults {
    /// No faults.
    pub fn none() -> Self {
        Self::default()
    }

    /// The `n`-th allocation fails, counted from 1. May be given several times.
    #[must_use]
    pub fn nth(mut self, n: u64) -> Self {
        self.nth.push(n);
        self
    }

    /// Every `n`-th allocation fails; 0 means none.
    #[must_use]
    pub fn every(mut self, n: u64) -> Self {
        self.every = n;
        self
    }

    /// Each allocation fails with `probability` (0 to 1; what is not a number counts as 0). Which do follows from
    /// `seed` and the number of the allocation alone, so a run can be repeated.
    #[must_use]
    pub fn probability(mut self, probability: f64, seed: u64) -> Self {
        self.chance = Some(Chance { probability, seed });
        self
    }

    /// Allocations of more than `bytes` bytes fail.
    #[must_use]
    pub fn above(mut self, bytes: u64) -> Self {
        self.above = Some(bytes);
        self
    }

    /// Faults are this error instead of out of memory.
    #[must_use]
    pub fn with_error(mut self, error: InjectedError) -> Self {
        self.error = error;
        self
    }

    fn hits(&self, call: u64, bytes: u64) -> bool {
        self.nth.contains(&call)
            || (self.every != 0 && call.is_multiple_of(self.every))
            || self.above.is_some_and(|limit| bytes > limit)
            || self.chance.is_some_and(|chance| chance.of(call) < chance.probability)
    }
}

impl Chance {
    /// A number from 0 (included) to 1 (excluded) for the `call`-th allocation. The mixing is the finalizer of
    /// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
    fn of(self, call: u64) -> f64 {
        let mut z = self.seed.wrapping_add(call.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Makes chosen allocations fail, to test what callers do then. A failed allocation never reaches the inner
/// allocator, and releases never fail.
///
/// ```
/// use alloc_core::adaptor::{FaultInjection, Faults};
/// use alloc_core::{AllocError, Device, DeviceAllocator, Layout, SimulatedAllocator, Stream};
///
/// let device = SimulatedAllocator::new(Device::CPU, 1 << 20);
/// let allocator = FaultInjection::new(device, Faults::none().nth(2));
/// let layout = Layout::bytes(100)?;
/// assert!(allocator.allocate(layout, Stream::DEFAULT).is_ok());
/// assert!(matches!(allocator.allocate(layout, Stream::DEFAULT), Err(AllocError::OutOfMemory(_))));
/// assert!(allocator.allocate(layout, Stream::DEFAULT).is_ok());
/// assert_eq!((allocator.calls(), allocator.injected()), (3, 1));
/// # Ok::<(), AllocError>(())
/// ```
#[derive(Debug)]
pub struct FaultInjection<A> {
    state: Mutex<State>,
    inner: A,
}

#[derive(Debug)]
struct State {
    faults: Faults,
    calls: u64,
    injected: u64,
}

impl<A> FaultInjection<A> {
    /// Makes the allocations of `inner` fail that `faults` names.
    pub const fn new(inner: A, faults: Faults) -> Self {
        Self { state: Mutex::new(State { faults, calls: 0, injected: 0 }), inner }
    }

    /// Replaces the rules and counts from zero again.
    pub fn set_faults(&self, faults: Faults) {
        *self.state() = State { faults, calls: 0, injected: 0 };
    }

    /// Allocations asked for since the rules were set, those that failed included.
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Allocations failed on purpose since the rules were set.
    pub fn injected(&self) -> u64 {
        self.state().injected
    }

    /// The allocator inside.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a call; the error if it is to fail.
    fn next(&self, bytes: u64) -> Option<InjectedError> {
        let mut state = self.state();
        state.calls += 1;
        let hit = state.faults.hits(state.calls, bytes);
        state.injected += u64::from(hit);
        hit.then(|| state.faults.error.clone())
    }
}

impl<A: DeviceAllocator> FaultInjection<A> {
    fn out_of_memory(&self, requested: u64) -> OutOfMemory {
        let figures = self.inner.statistics();
        OutOfMemory {
            device: self.inner.device(),
            requested,
            in_use: figures.in_use.current,
            reserved: figures.reserved.current,
            largest_free: figures.largest_free,
            parked: figures.parked.current,
            limit: None,
            device_free: None,
            device_total: None,
        }
    }
}

// SAFETY: blocks come from the inner allocator, which keeps the promises, and are handed on as they are.
unsafe impl<A: DeviceAllocator> DeviceAllocator for FaultInjection<A> {
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        match self.next(layout.size()) {
            None => self.inner.allocate(layout, stream),
            Some(InjectedError::OutOfMemory) => Err(self.out_of_memory(layout.size()).into()),
            Some(InjectedError::Provider(error)) => Err(error.into()),
        }
    }

    forward_allocator!(self => self.inner; device, release, statistics, trim, grow_to, transfer, retire_stream);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, ProviderErrorKind, SimulatedAllocator};

    fn failures(faults: Faults, sizes: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let allocator = FaultInjection::new(SimulatedAllocator::new(Device::CPU, 1 << 30), faults);
        let mut failed = Vec::new();
        for (call, size) in (1..).zip(sizes) {
            if allocator.allocate(Layout::bytes(size).unwrap(), Stream::DEFAULT).is_err() {
                failed.push(call);
            }
        }
        assert_eq!(allocator.injected(), failed.len() as u64);
        assert_eq!(allocator.inner().statistics().requested.count, allocator.calls() - allocator.injected());
        failed
    }

    #[test]
    fn rules_hit_the_allocations_they_name_and_add_up() {
        assert_eq!(failures(Faults::none(), [1; 10]), []);
        assert_eq!(failures(Faults::none().nth(1).nth(4), [1; 10]), [1, 4]);
        assert_eq!(failures(Faults::none().every(3), [1; 10]), [3, 6, 9]);
        assert_eq!(failures(Faults::none().above(100), [99, 100, 101, 1]), [3]);
        assert_eq!(failures(Faults::none().above(100).nth(1).every(2), [1, 1, 101, 1]), [1, 2, 3, 4]);
    }

    #[test]
    fn chance_repeats_by_seed_and_keeps_to_its_probability() {
        let run = |probability, seed| failures(Faults::none().probability(probability, seed), [1; 10_000]);
        let tenth = run(0.1, 7);
        assert_eq!(tenth, run(0.1, 7));
        assert_ne!(tenth, run(0.1, 8));
        // 10,000 draws at 0.1 have a standard deviation of 30.
        assert!((850..=1150).contains(&tenth.len()), "{} of 10000", tenth.len());
        assert_eq!(run(0.0, 7).len(), 0);
        assert_eq!(run(1.0, 7).len(), 10_000);
        assert_eq!(run(f64::NAN, 7).len(), 0);
    }

    #[test]
    fn errors_carry_their_data_and_new_rules_count_anew() {
        let allocator = FaultInjection::new(SimulatedAllocator::new(Device::cuda(1), 4096), Faults::none().every(1));
        let layout = Layout::bytes(1000).unwrap();
        let Err(AllocError::OutOfMemory(figures)) = allocator.allocate(layout, Stream::DEFAULT) else {
            panic!("not out of memory")
        };
        assert_eq!((figures.device, figures.requested, figures.reserved), (Device::cuda(1).simulated(), 1000, 4096));

        let error = ProviderError {
            device: Device::cuda(1).simulated(),
            call: "cuMemCreate",
            code: 999,
            name: "CUDA_ERROR_UNKNOWN".into(),
            kind: ProviderErrorKind::Poisoned,
        };
        allocator.set_faults(Faults::none().nth(2).with_error(InjectedError::Provider(error.clone())));
        assert!(allocator.allocate(layout, Stream::DEFAULT).is_ok());
        assert_eq!(allocator.allocate(layout, Stream::DEFAULT), Err(AllocError::Provider(error)));
        assert_eq!((allocator.calls(), allocator.injected()), (2, 1));
    }
}
