//! Copies and fills of host memory.

use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock};
use std::thread;

use alloc_core::{Device, Place, ProviderError, Stream, Transfer, TransferError};

use crate::sys::{ByteWork, SysError};
use crate::workers::Workers;

/// Copies and fills memory that the processor reaches, small blocks on the calling thread and large ones on several.
///
/// Everything is done when a call returns, whatever the stream: hosts have no queue, so each call comes after all
/// earlier ones of the same thread, and [`Transfer::synchronize`] has nothing to wait for. That also means that
/// streams order nothing between threads: those that share a block hand it over by the means of the language.
///
/// Source and destination may not overlap, and that is the caller's promise. Two blocks that live at the same time
/// never do. A page seen at two addresses holds one block, of which only one address is in use.
///
/// ```
/// use alloc_core::{Address, Device, Place, Stream, Transfer};
/// use alloc_cpu::HostTransfer;
///
/// let mut bytes = [0u8; 64];
/// let place = Place { device: Device::CPU, address: Address::new(bytes.as_mut_ptr().expose_provenance() as u64) };
/// // SAFETY: the array has 64 bytes and nothing else uses it.
/// unsafe { HostTransfer::shared().fill(place, 64, 7, Stream::DEFAULT)? };
/// assert_eq!(bytes, [7; 64]);
/// # Ok::<(), alloc_core::TransferError>(())
/// ```
#[derive(Clone, Debug)]
pub struct HostTransfer {
    workers: Arc<Workers>,
    parallel_from: u64,
}

/// No more threads than this share a copy by default: memory is slower than eight of them.
const MOST_THREADS: usize = 8;

impl HostTransfer {
    /// From how many bytes on several threads share the work.
    ///
    /// Measured with two threads on a 2-core EPYC, in GB/s for one and for two: copies of 2 MiB 46 and 46, of 4 MiB 45
    /// and 62, of 16 MiB 13 and 32, of 256 MiB 12 and 14; fills of 2 MiB 100 and 63, of 4 MiB 97 and 111. (What fits
    /// in the cache was in it.)
    pub const PARALLEL_FROM: u64 = 4 << 20;

    /// The transfer that all allocators of the process share: one thread for each processor, at most eight.
    pub fn shared() -> Self {
        static SHARED: LazyLock<HostTransfer> = LazyLock::new(|| {
            let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
            HostTransfer::with_threads(processors.min(MOST_THREADS))
        });
        SHARED.clone()
    }

    /// A transfer whose large copies and fills are shared by `threads` threads, the caller's included. The others
    /// start with the first large block and end when the last clone of this transfer is dropped.
    pub fn with_threads(threads: usize) -> Self {
        Self { workers: Arc::new(Workers::new(threads)), parallel_from: Self::PARALLEL_FROM }
    }

    /// Shares the work on blocks of `bytes` bytes or more, instead of [`HostTransfer::PARALLEL_FROM`].
    #[must_use]
    pub fn parallel_from(mut self, bytes: u64) -> Self {
        self.parallel_from = bytes;
        self
    }

    /// How many threads share a large block.
    pub fn threads(&self) -> usize {
        self.workers.threads()
    }

    /// Returns when the work is done.
    fn run(&self, work: ByteWork) {
        if self.workers.threads() > 1 && work.bytes() as u64 >= self.parallel_from {
            self.workers.run(work);
        } else {
            work.run();
        }
    }
}

/// The first address of `bytes` bytes, all of which this machine can address.
fn extent(call: &'static str, place: Place, bytes: u64) -> Result<(usize, usize), ProviderError> {
    let invalid = || SysError { call, errno: libc::EFAULT }.into_provider_error(place.device);
    let address = usize::try_from(place.address.get()).map_err(|_| invalid())?;
    let length = usize::try_from(bytes).ok().filter(|&length| isize::try_from(length).is_ok()).ok_or_else(invalid)?;
    if address == 0 || address.checked_add(length).is_none() {
        return Err(invalid());
    }
    Ok((address, length))
}

// SAFETY: copies and fills are done when they return, and only between memories that the processor reaches; so there is
// nothing to wait for, and streams order nothing. It shares no stream.
unsafe impl Transfer for HostTransfer {
    fn can_copy(&self, from: Device, to: Device) -> bool {
        from.is_host_accessible() && to.is_host_accessible()
    }

    /// # Errors
    /// [`TransferError::Unsupported`] unless the processor reaches both; a
    /// [`ProviderError`] of kind [`InvalidArgument`](alloc_core::ProviderErrorKind::InvalidArgument) for addresses
    /// that no memory can have.
    unsafe fn copy(&self, from: Place, to: Place, bytes: u64, _stream: Stream) -> Result<(), TransferError> {
        if !self.can_copy(from.device, to.device) {
            return Err(TransferError::Unsupported { from: from.device, to: to.device });
        }
        if bytes == 0 {
            return Ok(());
        }
        let (source, length) = extent("copy", from, bytes)?;
        let (target, _) = extent("copy", to, bytes)?;
        // SAFETY: the caller promises that both places are valid, don't overlap and are used by nothing else until
        // the copy is done, which it is when this returns.
        self.run(unsafe { ByteWork::copy(source, target, length) });
        Ok(())
    }

    unsafe fn fill(&self, to: Place, bytes: u64, value: u8, _stream: Stream) -> Result<(), TransferError> {
        if !to.device.is_host_accessible() {
            return Err(TransferError::Unsupported { from: Device::CPU, to: to.device });
        }
        if bytes == 0 {
            return Ok(());
        }
        let (target, length) = extent("fill", to, bytes)?;
        // SAFETY: the caller promises that the place is valid and used by nothing else until the fill is done, which
        // it is when this returns.
        self.run(unsafe { ByteWork::fill(target, length, value) });
        Ok(())
    }

    fn synchronize(&self, _stream: Stream) -> Result<(), TransferError> {
        Ok(())
    }
}
