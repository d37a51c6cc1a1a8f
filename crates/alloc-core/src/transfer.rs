//! Copies and fills.

use std::fmt::Debug;

use thiserror::Error;

use crate::{Address, Device, ProviderError, Stream};

/// An address and the device whose memory it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a place is this")]
pub struct Place {
    /// The device.
    pub device: Device,
    /// The address in that device's memory.
    pub address: Address,
}

/// A copy or fill that failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TransferError {
    /// No backend at hand copies between these two devices.
    #[error("nothing copies from {from} to {to}")]
    Unsupported {
        /// The source.
        from: Device,
        /// The destination.
        to: Device,
    },
    /// The backend failed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// Copies and fills memory of one backend's devices, and between them and the host.
///
/// All calls are ordered by the stream: they may return before the work is done, work submitted to the stream later
/// sees it done, and [`Transfer::synchronize`] waits for it. A host may do the work before it returns.
/// Streams named to a transfer are living streams of its backend, or the default one.
///
/// # Safety
/// Safe code reads what was copied and frees what was waited for. An implementation promises:
///
/// - A copy or fill that returns `Ok` writes all bytes of the destination, as asked, in the order of the stream. Also
///   when it returns an error it touches no other memory and none later than [`Transfer::copy`] and
///   [`Transfer::fill`] allow.
/// - Once [`Transfer::synchronize`] has returned `Ok`, all work submitted to the stream before is done. Once
///   [`Transfer::order_after`] has, later work of the one stream starts after the earlier work of the other.
/// - [`Transfer::shares_stream`] says yes only if the allocators of that device order the reuse of memory after work
///   of the stream so named.
/// - Nothing is copied from a [simulated](Device::is_simulated) device to a real one: there are no bytes to copy.
pub unsafe trait Transfer: Debug + Send + Sync {
    /// Whether this backend copies from `from` to `to`.
    fn can_copy(&self, from: Device, to: Device) -> bool;

    /// Copies `bytes` bytes.
    ///
    /// Memory that only the host knows (pageable memory) has been read, or written, when this returns: the caller
    /// may reuse or free it at once. Other memory stays in use until the stream has come past the copy.
    ///
    /// A place of the kind [`DeviceKind::CPU`](crate::DeviceKind::CPU) counts as pageable whatever a driver knows of
    /// it, and also when this returns an error: a borrowed slice may be part of a page-locked block, and its borrow
    /// ends with the call.
    ///
    /// # Errors
    /// [`TransferError::Unsupported`] if [`Transfer::can_copy`] says no; else what the backend reports.
    ///
    /// # Safety
    /// Both places are valid for `bytes` bytes and stay so until the stream has come past the copy; they don't
    /// overlap; no other work writes to either, or reads the destination, meanwhile.
    unsafe fn copy(&self, from: Place, to: Place, bytes: u64, stream: Stream) -> Result<(), TransferError>;

    /// Sets `bytes` bytes to `value`.
    ///
    /// # Errors
    /// What the backend reports.
    ///
    /// # Safety
    /// The place is valid for `bytes` bytes until the stream has come past the fill; no other work uses it meanwhile.
    unsafe fn fill(&self, to: Place, bytes: u64, value: u8, stream: Stream) -> Result<(), TransferError>;

    /// Waits until all work submitted to `stream` is done.
    ///
    /// # Errors
    /// What the backend reports, failures of earlier work included.
    fn synchronize(&self, stream: Stream) -> Result<(), TransferError>;

    /// Makes work that is submitted to `stream` from now on start after all work submitted to `earlier` so far.
    ///
    /// The default waits on the host for `earlier`. A device that can order its streams itself does that instead.
    ///
    /// # Errors
    /// What the backend reports; nothing is ordered then.
    fn order_after(&self, stream: Stream, earlier: Stream) -> Result<(), TransferError> {
        let _ = stream;
        self.synchronize(earlier)
    }

    /// Whether `stream` of this backend names the same stream to the allocators of `device`, so that work on it can
    /// be declared to them. Asked about devices other than the backend's own: page-locked memory, say, or a peer, to
    /// which a stream's handle may mean the same while that of the default stream does not.
    ///
    /// The default says no, which is always right: a copy between two such devices then finishes before it returns.
    fn shares_stream(&self, stream: Stream, device: Device) -> bool {
        let _ = (stream, device);
        false
    }
}
