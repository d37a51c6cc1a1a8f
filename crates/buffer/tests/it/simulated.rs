//! Nobody follows the addresses of an allocator without memory, whichever device it stands for.

use std::sync::Arc;

use alloc_core::{AllocError, Device, DeviceAllocator, OutOfMemory, SimulatedAllocator, TransferError};
use buffer::{Buffer, BufferError};

use crate::sim::{GPU, Machine};

#[test]
fn a_simulated_block_is_neither_seen_nor_copied() {
    let machine = Machine::new();
    for real in [Device::CPU, GPU] {
        let allocator = Arc::new(SimulatedAllocator::new(real, 1 << 20));
        let device = allocator.device();
        let mut simulated = Buffer::new(allocator, 64).unwrap();
        // SAFETY: there are no bytes that could be read before they are initialised.
        unsafe { simulated.assume_init(64) };
        assert_eq!(simulated.as_bytes(), Err(BufferError::NotHostAccessible { device }));
        let mut other = Buffer::zeroed(machine.allocator(real), 64).unwrap();
        let out = TransferError::Unsupported { from: device, to: real };
        assert_eq!(other.copy_from(&simulated), Err(BufferError::Transfer(out)));
        let into = TransferError::Unsupported { from: real, to: device };
        assert_eq!(simulated.copy_from(&other), Err(BufferError::Transfer(into)));
        assert!(matches!(simulated.fill(1), Err(BufferError::Transfer(TransferError::Unsupported { .. }))));
    }
    assert_eq!(machine.copies(), []);
    machine.assert_clean();
}

#[test]
fn more_than_the_host_has_memory_for_is_an_error() {
    // More than an address space has.
    const BYTES: u64 = 1 << 60;
    let buffer = Buffer::new(Arc::new(SimulatedAllocator::new(GPU, BYTES)), BYTES).unwrap();
    let wanted = BufferError::Alloc(AllocError::from(OutOfMemory::new(Device::CPU, BYTES)));
    assert_eq!(buffer.to_vec::<u64>(), Err(wanted));
}
