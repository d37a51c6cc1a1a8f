//! Several CUDA devices in one process.
//!
//! PyTorch copies a tensor from one device to another with one call that names no devices (`cudaMemcpyAsync`), and the
//! driver refuses that for mapped memory which the other device can't reach. So heaps are opened to each other as soon as
//! there are two of them; a process that uses one device, as those of `DistributedDataParallel` do, pays nothing. A device
//! that does not reach each of the others that the process sees has its memory in segments, which the driver copies by way
//! of the host: which of them the process will use can't be known when the first heap is made.

use alloc_core::{Addressing, AllocError, Device, DeviceKind, MemoryProvider, ProviderError, ProviderErrorKind};
use alloc_cpu::HostProvider;
use alloc_cuda::{DeviceProvider, PinnedProvider};
use alloc_pool::{ConfigError, PoolError};

use crate::heaps::Heap;

/// How CUDA memory gets its addresses.
const ADDRESSING: &str = "ALLOC_CUDA_ADDRESSING";

/// Memory that other CUDA devices may be let into.
pub(crate) trait PeerAccess: MemoryProvider {
    /// Lets another device in, if that is needed.
    fn open_to(&self, _peer: u16) -> Result<(), ProviderError> {
        Ok(())
    }
}

impl PeerAccess for HostProvider {}

/// Page-locked memory is every device's.
impl PeerAccess for PinnedProvider {}

impl PeerAccess for DeviceProvider {
    fn open_to(&self, peer: u16) -> Result<(), ProviderError> {
        Self::open_to(self, peer)
    }
}

/// Lets a device into the memory of all others, and them into its.
pub(crate) fn open_to_each_other<'a>(heap: &Heap, others: impl Iterator<Item = &'a Heap>) {
    let is_cuda = |heap: &Heap| heap.device.kind() == DeviceKind::CUDA;
    for other in others.filter(|other| is_cuda(heap) && is_cuda(other)) {
        for (memory, peer) in [(heap, other), (other, heap)] {
            match memory.open_to(peer.device.ordinal()) {
                Ok(()) => {}
                // Segments, or memory of the program's own.
                Err(error) if error.kind == ProviderErrorKind::Unsupported => {
                    tracing::debug!(memory = %memory.device, peer = %peer.device, %error, "memory is not opened to a peer");
                }
                Err(error) => {
                    tracing::warn!(memory = %memory.device, peer = %peer.device, %error, "memory stays closed to a peer");
                }
            }
        }
    }
}

/// What the environment says, or else segments for a device that doesn't reach each of the others, or is out of reach for
/// one of them; `None` for what is best otherwise.
pub(crate) fn addressing(device: Device) -> Result<Option<Addressing>, AllocError> {
    match std::env::var(ADDRESSING) {
        Ok(value) if value == "mapped" => return Ok(Some(Addressing::Mapped)),
        Ok(value) if value == "segmented" => return Ok(Some(Addressing::Segmented)),
        Ok(value) => {
            let expected = "\"mapped\" or \"segmented\"";
            return Err(PoolError::from(ConfigError::Environment { variable: ADDRESSING, value, expected }).into());
        }
        Err(_) => {}
    }
    let own = device.ordinal();
    for other in (0..alloc_cuda::device_count()?).filter(|other| *other != own) {
        let reaches = |from, to| alloc_cuda::can_access_peer(from, to).unwrap_or(false);
        if !reaches(own, other) || !reaches(other, own) {
            tracing::info!(%device, other, "memory in segments, as one of two devices does not reach the other");
            return Ok(Some(Addressing::Segmented));
        }
    }
    Ok(None)
}
