//! A second allocator for what the first has no memory for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::{
    Address, AllocError, Block, Device, DeviceAllocator, Gauge, Layout, ProviderCalls, ReleaseError, Statistics,
    Stream, StreamSet, Transfer,
};

/// Serves from a secondary allocator what the primary has no memory for, and releases each block to its own.
///
/// Both hand out memory of one device: a pool and the plain allocator behind it, say, or a small fast reserve and a
/// large slow one. The secondary is asked where the primary's error is one of memory
/// ([`AllocError::is_out_of_memory`]) or of size ([`AllocError::TooLarge`]). If it fails too, the primary's error is
/// returned, and the secondary's goes to `tracing` at debug level. Blocks of the secondary are looked up by their
/// address, which no two living blocks of a device share; while it has none out, a release costs one load more. The
/// idea is that of RMM's `failure_alternate_resource_adaptor`.
///
/// ```
/// use alloc_core::adaptor::Fallback;
/// use alloc_core::{Address, AddressRange, Device, DeviceAllocator, Layout, SimulatedAllocator, Stream};
///
/// let range = |start, bytes| AddressRange { start: Address::new(start), bytes };
/// let reserve = SimulatedAllocator::in_range(Device::CPU, range(1 << 20, 1024));
/// let device = SimulatedAllocator::in_range(Device::CPU, range(1 << 30, 1 << 30));
/// let allocator = Fallback::new(reserve, device)?;
/// let small = allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
/// let large = allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
/// assert!(!allocator.is_from_secondary(small) && allocator.is_from_secondary(large));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Fallback<P, S> {
    primary: P,
    secondary: S,
    /// The living blocks of the secondary.
    fallen_back: Mutex<HashMap<Address, Block>>,
    fallen_back_len: AtomicU64,
}

/// Two allocators that can't stand in for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an allocator of {secondary} can't stand in for one of {primary}")]
#[non_exhaustive]
pub struct FallbackError {
    /// The device of the primary.
    pub primary: Device,
    /// The device of the secondary.
    pub secondary: Device,
}

impl<P: DeviceAllocator, S: DeviceAllocator> Fallback<P, S> {
    /// Falls back from `primary` to `secondary`.
    ///
    /// # Errors
    /// [`FallbackError`] if they are not of the same device.
    pub fn new(primary: P, secondary: S) -> Result<Self, FallbackError> {
        let (first, second) = (primary.device(), secondary.device());
        if first != second {
            return Err(FallbackError { primary: first, secondary: second });
        }
        Ok(Self { primary, secondary, fallen_back: Mutex::new(HashMap::new()), fallen_back_len: AtomicU64::new(0) })
    }
}

impl<P, S> Fallback<P, S> {
    /// The allocator that is asked first.
    pub const fn primary(&self) -> &P {
        &self.primary
    }

    /// The allocator that is asked where the primary fails.
    pub const fn secondary(&self) -> &S {
        &self.secondary
    }

    /// Whether a living block came from the secondary.
    pub fn is_from_secondary(&self, block: Block) -> bool {
        self.may_have_fallen_back() && self.fallen_back().get(&block.address()) == Some(&block)
    }

    /// Whoever releases a block learned of it after it was counted, so it is never missed here.
    fn may_have_fallen_back(&self) -> bool {
        self.fallen_back_len.load(Ordering::Relaxed) != 0
    }

    fn fallen_back(&self) -> MutexGuard<'_, HashMap<Address, Block>> {
        self.fallen_back.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, block: Block) {
        self.fallen_back_len.fetch_add(1, Ordering::Relaxed);
        self.fallen_back().insert(block.address(), block);
    }

    /// Forgets a block of the secondary; `false` if it is none.
    fn forget(&self, block: Block) -> bool {
        let mut fallen_back = self.fallen_back();
        let found = fallen_back.get(&block.address()) == Some(&block);
        if found {
            fallen_back.remove(&block.address());
            self.fallen_back_len.fetch_sub(1, Ordering::Relaxed);
        }
        found
    }
}

// SAFETY: blocks come from one of two allocators of one device, which keep the promises, also towards each other, and are
// handed on as they are. The transfer of either serves, as it does for all memory of its device.
unsafe impl<P: DeviceAllocator, S: DeviceAllocator> DeviceAllocator for Fallback<P, S> {
    fn device(&self) -> Device {
        self.primary.device()
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let error = match self.primary.allocate(layout, stream) {
            Ok(block) => return Ok(block),
            Err(error) => error,
        };
        if !error.is_out_of_memory() && !matches!(error, AllocError::TooLarge { .. }) {
            return Err(error);
        }
        match self.secondary.allocate(layout, stream) {
            Ok(block) => {
                self.remember(block);
                Ok(block)
            }
            Err(second) => {
                tracing::debug!(device = %self.device(), error = %second, "the secondary allocator failed too");
                Err(error)
            }
        }
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        // Forgotten before it is released: the address may be handed out again at once.
        if !self.may_have_fallen_back() || !self.forget(block) {
            // SAFETY: the caller's promises are those that the inner allocator asks for.
            return unsafe { self.primary.release(block, stream, uses) };
        }
        // SAFETY: as above, and the block came from the secondary.
        unsafe { self.secondary.release(block, stream, uses) }
    }

    /// The sums of both. Peaks are summed too, which makes them an upper bound; the largest free block is the larger
    /// one.
    fn statistics(&self) -> Statistics {
        sum(self.primary.statistics(), self.secondary.statistics())
    }

    /// Trims the secondary first.
    fn trim(&self, keep: u64) -> u64 {
        let primary = self.primary.statistics().reserved.current;
        let from_secondary = self.secondary.trim(keep.saturating_sub(primary));
        let secondary = self.secondary.statistics().reserved.current;
        from_secondary.saturating_add(self.primary.trim(keep.saturating_sub(secondary)))
    }

    /// Grows the primary.
    fn grow_to(&self, bytes: u64, stream: Stream) -> Result<u64, AllocError> {
        let secondary = self.secondary.statistics().reserved.current;
        let primary = self.primary.grow_to(bytes.saturating_sub(secondary), stream)?;
        Ok(primary.saturating_add(secondary))
    }

    fn transfer(&self) -> &dyn Transfer {
        self.primary.transfer()
    }

    fn retire_stream(&self, stream: Stream) {
        self.primary.retire_stream(stream);
        self.secondary.retire_stream(stream);
    }
}

fn sum(a: Statistics, b: Statistics) -> Statistics {
    let gauge = |a: Gauge, b: Gauge| Gauge {
        current: a.current.saturating_add(b.current),
        peak: a.peak.saturating_add(b.peak),
        total: a.total.saturating_add(b.total),
        count: a.count.saturating_add(b.count),
    };
    let (x, y) = (a.provider_calls, b.provider_calls);
    Statistics {
        requested: gauge(a.requested, b.requested),
        in_use: gauge(a.in_use, b.in_use),
        reserved: gauge(a.reserved, b.reserved),
        cached: a.cached.saturating_add(b.cached),
        parked: gauge(a.parked, b.parked),
        hits: a.hits.saturating_add(b.hits),
        misses: a.misses.saturating_add(b.misses),
        moves: a.moves.saturating_add(b.moves),
        largest_free: a.largest_free.max(b.largest_free),
        rejected_releases: a.rejected_releases.saturating_add(b.rejected_releases),
        leaked: a.leaked.saturating_add(b.leaked),
        provider_calls: ProviderCalls {
            reserve: x.reserve.saturating_add(y.reserve),
            create: x.create.saturating_add(y.create),
            map: x.map.saturating_add(y.map),
            unmap: x.unmap.saturating_add(y.unmap),
            release: x.release.saturating_add(y.release),
            record: x.record.saturating_add(y.record),
            query: x.query.saturating_add(y.query),
            wait: x.wait.saturating_add(y.wait),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AddressRange, SimulatedAllocator};

    fn part(start: u64, bytes: u64) -> SimulatedAllocator {
        SimulatedAllocator::in_range(Device::CPU, AddressRange { start: Address::new(start), bytes })
    }

    fn allocate(allocator: &impl DeviceAllocator, size: u64) -> Result<Block, AllocError> {
        allocator.allocate(Layout::bytes(size).unwrap(), Stream::DEFAULT)
    }

    fn release(allocator: &impl DeviceAllocator, block: Block) -> Result<(), ReleaseError> {
        // SAFETY: nothing uses simulated memory.
        unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }
    }

    #[test]
    fn each_block_goes_back_to_its_own_allocator() {
        let allocator = Fallback::new(part(4096, 1024), part(1 << 20, 4096)).unwrap();
        // Both count their ids from the same number: only addresses tell the blocks apart.
        let blocks: Vec<Block> =
            [512, 2048, 512, 1024].map(|size| allocate(&allocator, size).unwrap()).into_iter().collect();
        let secondary: Vec<bool> = blocks.iter().map(|block| allocator.is_from_secondary(*block)).collect();
        assert_eq!(secondary, [false, true, false, true]);
        assert_eq!(allocator.statistics().requested.current, 4096);
        for block in &blocks {
            release(&allocator, *block).unwrap();
        }
        assert_eq!(allocator.primary().statistics().requested.current, 0);
        assert_eq!(allocator.secondary().statistics().requested.current, 0);
        assert!(!allocator.may_have_fallen_back() && allocator.fallen_back().is_empty());
        for block in &blocks {
            assert!(release(&allocator, *block).is_err());
        }
    }

    #[test]
    fn when_both_fail_the_error_is_that_of_the_primary() {
        let allocator = Fallback::new(part(4096, 1024), part(1 << 20, 4096)).unwrap();
        let error = allocate(&allocator, 8192).unwrap_err();
        assert!(matches!(error, AllocError::TooLarge { requested: 8192, maximum: 1024, .. }));
        assert_eq!(allocator.statistics().in_use.current, 0);
    }

    #[test]
    fn different_devices_do_not_stand_in_for_each_other() {
        let error = Fallback::new(part(4096, 1024), SimulatedAllocator::new(Device::cuda(0), 1024)).unwrap_err();
        assert_eq!(error, FallbackError { primary: Device::CPU.simulated(), secondary: Device::cuda(0).simulated() });
    }
}
