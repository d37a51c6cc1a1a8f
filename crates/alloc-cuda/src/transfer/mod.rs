//! Copies and fills: between devices, between devices and the host, page-locked or not.

mod lanes;
mod staging;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use alloc_core::{Device, DeviceKind, Place, ProviderError, Stream, Transfer, TransferError};

use crate::driver::error::{STREAM_CAPTURE_UNSUPPORTED, error};
use crate::driver::stream::{PER_THREAD, Target};
use crate::driver::{Context, Event};
use crate::global;
use lanes::Lanes;
use staging::Staging;

/// Copies and fills of one CUDA device, to and from any device and the host, in the order of any device's streams.
///
/// Copies of pageable memory (the kind [`DeviceKind::CPU`]) go through chunks of page-locked memory that several
/// threads fill or empty, so that they run near the speed of the link; when the call returns, the pageable side has
/// been read or written. They can't be part of a stream capture. Copies between devices go directly where the
/// devices reach each other, and otherwise the way that the driver finds, which is through page-locked memory of its own.
///
/// ```
/// use alloc_core::{Device, Transfer};
/// use alloc_cuda::CudaTransfer;
///
/// if alloc_cuda::is_available() {
///     let transfer = CudaTransfer::of(0)?;
///     assert!(transfer.can_copy(Device::CPU, Device::cuda(0)));
/// }
/// # Ok::<(), alloc_core::ProviderError>(())
/// ```
#[derive(Debug)]
pub struct CudaTransfer {
    context: &'static Context,
    staging: Staging,
    lanes: Lanes,
}

impl CudaTransfer {
    /// The transfer of a device: one for the whole process.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unavailable`](alloc_core::ProviderErrorKind::Unavailable) without CUDA, a driver or such
    /// a device; else what the driver reports.
    pub fn of(ordinal: u16) -> Result<&'static Self, ProviderError> {
        static ALL: Mutex<BTreeMap<u16, &'static CudaTransfer>> = Mutex::new(BTreeMap::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(transfer) = all.get(&ordinal) {
            return Ok(transfer);
        }
        let context = Context::open(ordinal)?;
        let (staging, lanes) = (Staging::new(context), Lanes::new(context));
        let transfer: &'static Self = Box::leak(Box::new(Self { context, staging, lanes }));
        all.insert(ordinal, transfer);
        Ok(transfer)
    }

    fn refuse_capture(&self, stream: Stream) -> Result<(), ProviderError> {
        // SAFETY: the caller of every copy says that the stream lives.
        if unsafe { self.context.stream_is_capturing(Target::of(stream)) }? {
            return Err(error(self.context.name(), "cuMemcpyAsync", STREAM_CAPTURE_UNSUPPORTED));
        }
        Ok(())
    }

    /// Copies from one device to another.
    ///
    /// # Safety
    /// As [`Transfer::copy`]; the contexts are those of the two places' devices.
    unsafe fn copy_between(
        &self,
        (from_context, to_context): (&Context, &Context),
        (from, to): (Place, Place),
        bytes: u64,
        stream: Stream,
    ) -> Result<(), ProviderError> {
        global::open_between(from.device.ordinal(), to.device.ordinal());
        let (source, target) = ((from.address.get(), from_context), (to.address.get(), to_context));
        // SAFETY: the caller's promise; each address is of the device named with it.
        unsafe { self.context.copy_peer(target, source, bytes, Target::of(stream)) }
    }

    /// Who does work on these memories: the transfer of the device that has one of them, as it may be closed to this one's.
    fn worker(&self, memories: [Device; 2]) -> Result<&Self, ProviderError> {
        let is_foreign =
            |device: &Device| device.kind() == DeviceKind::CUDA && device.ordinal() != self.context.ordinal();
        memories.into_iter().find(is_foreign).map_or(Ok(self), |device| Self::of(device.ordinal()))
    }

    /// Copies pageable memory, by several threads if it is much.
    ///
    /// # Safety
    /// As [`Transfer::copy`]; `work` is one of the staging's copies, of `bytes` bytes.
    unsafe fn copy_staged(
        &self,
        worker: &Self,
        bytes: u64,
        stream: Stream,
        work: impl FnOnce(Stream) -> Result<(), ProviderError>,
    ) -> Result<(), ProviderError> {
        self.refuse_capture(stream)?;
        let (home, lanes) = (self.context, &worker.lanes);
        if Staging::takes_threads(bytes) {
            // SAFETY: the caller says that the stream lives.
            unsafe { lanes.in_order_of_threads(home, stream, work) }
        } else {
            // SAFETY: as above.
            unsafe { lanes.in_order(home, stream, work) }
        }
    }

    /// Waits for a stream's work, so that the host itself may touch what the work uses.
    fn wait_on_host(&self, stream: Stream) -> Result<(), ProviderError> {
        self.refuse_capture(stream)?;
        // SAFETY: the caller of every copy says that the stream lives.
        unsafe { self.context.stream_synchronize(Target::of(stream)) }
    }
}

fn is_ours(device: Device) -> bool {
    matches!(device.kind(), DeviceKind::CUDA | DeviceKind::CUDA_PINNED)
}

/// The contexts of two devices, if these are two of ours.
fn peers(from: Device, to: Device) -> Option<(&'static Context, &'static Context)> {
    let are_two = from.kind() == DeviceKind::CUDA && to.kind() == DeviceKind::CUDA && from.ordinal() != to.ordinal();
    are_two.then(|| Context::open(from.ordinal()).ok().zip(Context::open(to.ordinal()).ok())).flatten()
}

// SAFETY: copies and fills of memory that the driver knows are submitted to the stream, pageable memory goes through chunks
// that are waited for, and the host touches memory itself only behind the stream's work. Waiting and ordering are the
// driver's. Memory of simulated devices is none that it knows. Handles above those of the default streams mean the same
// to every device; a default stream is shared on its own device only.
unsafe impl Transfer for CudaTransfer {
    fn can_copy(&self, from: Device, to: Device) -> bool {
        let known =
            |device: Device| device == Device::CPU || is_ours(device) && Context::open(device.ordinal()).is_ok();
        (is_ours(from) || is_ours(to)) && known(from) && known(to)
    }

    unsafe fn copy(&self, from: Place, to: Place, bytes: u64, stream: Stream) -> Result<(), TransferError> {
        if let Some(contexts) = peers(from.device, to.device).filter(|_| bytes > 0) {
            // SAFETY: the caller's promise.
            return Ok(unsafe { self.copy_between(contexts, (from, to), bytes, stream) }?);
        }
        if !self.can_copy(from.device, to.device) {
            return Err(TransferError::Unsupported { from: from.device, to: to.device });
        }
        if bytes == 0 {
            return Ok(());
        }
        let (source, target) = (from.address.get(), to.address.get());
        let worker = self.worker([from.device, to.device])?;
        match (from.device.kind(), to.device.kind()) {
            (DeviceKind::CPU, DeviceKind::CUDA) => {
                // SAFETY: the caller says that the stream lives and that both ranges are valid.
                let upload = |stream| unsafe { worker.staging.upload(source, target, bytes, stream) };
                // SAFETY: as above.
                unsafe { self.copy_staged(worker, bytes, stream, upload) }?;
            }
            (DeviceKind::CUDA, DeviceKind::CPU) => {
                // SAFETY: the caller says that the stream lives and that both ranges are valid.
                let download = |stream| unsafe { worker.staging.download(source, target, bytes, stream) };
                // SAFETY: as above.
                unsafe { self.copy_staged(worker, bytes, stream, download) }?;
            }
            (DeviceKind::CPU, _) | (_, DeviceKind::CPU) => {
                self.wait_on_host(stream)?;
                // SAFETY: both are host memory, valid and apart, the caller says; the stream's work is done.
                unsafe { std::ptr::copy_nonoverlapping(source as *const u8, target as *mut u8, bytes as usize) };
            }
            _ => {
                // SAFETY: the caller's promise; both are memory that the driver knows.
                let copy = |stream| unsafe { worker.context.copy(target, source, bytes, Target::of(stream)) };
                // SAFETY: the caller says that the stream lives.
                unsafe { worker.lanes.in_order(self.context, stream, copy) }?;
            }
        }
        Ok(())
    }

    unsafe fn fill(&self, to: Place, bytes: u64, value: u8, stream: Stream) -> Result<(), TransferError> {
        if bytes == 0 {
            return Ok(());
        }
        if is_ours(to.device) {
            let worker = self.worker([to.device; 2])?;
            // SAFETY: the caller's promise.
            let fill = |stream| unsafe { worker.context.fill(to.address.get(), bytes, value, Target::of(stream)) };
            // SAFETY: the caller says that the stream lives.
            unsafe { worker.lanes.in_order(self.context, stream, fill) }?;
            return Ok(());
        }
        if to.device != Device::CPU {
            return Err(TransferError::Unsupported { from: self.context.name(), to: to.device });
        }
        self.wait_on_host(stream)?;
        // SAFETY: the range is host memory and valid, the caller says; the stream's work is done.
        unsafe { std::ptr::write_bytes(to.address.get() as *mut u8, value, bytes as usize) };
        Ok(())
    }

    fn synchronize(&self, stream: Stream) -> Result<(), TransferError> {
        // SAFETY: whoever names a stream says that it lives.
        unsafe { self.context.stream_synchronize(Target::of(stream)) }?;
        Ok(())
    }

    fn order_after(&self, stream: Stream, earlier: Stream) -> Result<(), TransferError> {
        if stream != earlier {
            // SAFETY: whoever names a stream says that it lives.
            let event = unsafe { Event::record(self.context, earlier) }?;
            // SAFETY: as above.
            unsafe { event.make_wait(self.context, stream) }?;
        }
        Ok(())
    }

    fn shares_stream(&self, stream: Stream, device: Device) -> bool {
        is_ours(device) && (stream.handle() > PER_THREAD || device.ordinal() == self.context.ordinal())
    }
}
