//! Nobody follows the addresses of an allocator without memory, whichever device it stands for.

use std::sync::Arc;

use alloc_core::{Device, DeviceAllocator, SimulatedAllocator, TransferError};
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
