//! No allocator: what a workload costs without one.

use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::{
    Address, AllocError, Block, BlockId, Device, DeviceAllocator, Layout, ReleaseError, Statistics, Stream, StreamSet,
    Transfer,
};
use alloc_cpu::HostTransfer;

/// Hands out addresses with no memory behind them and takes them back without a word.
#[derive(Debug)]
pub struct NullAllocator {
    next: AtomicU64,
    transfer: HostTransfer,
}

impl Default for NullAllocator {
    fn default() -> Self {
        Self { next: AtomicU64::new(1 << 40), transfer: HostTransfer::shared() }
    }
}

// SAFETY: the device is simulated.
unsafe impl DeviceAllocator for NullAllocator {
    fn device(&self) -> Device {
        Device::CPU.simulated()
    }

    #[inline]
    fn allocate(&self, layout: Layout, _stream: Stream) -> Result<Block, AllocError> {
        // Not an addition in one step: that would cost more than all the rest of the loop.
        let address = self.next.load(Ordering::Relaxed);
        self.next.store(address.wrapping_add(layout.align()), Ordering::Relaxed);
        Ok(Block::from_parts(Address::new(address), layout.size(), BlockId::from_bits(address)))
    }

    #[inline]
    unsafe fn release(&self, block: Block, _stream: Stream, _uses: &StreamSet) -> Result<(), ReleaseError> {
        let _ = std::hint::black_box(block);
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        Statistics::default()
    }

    fn trim(&self, _keep: u64) -> u64 {
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        &self.transfer
    }
}
