//! Page-locked host memory.

use std::fs;
use std::mem::ManuallyDrop;

use alloc_core::{
    Address, AddressRange, Addressing, Device, DeviceMemory, MemoryProvider, ProviderError, Stream, Transfer,
};

use super::host_pages::{HUGE_PAGE, HostPages};
use crate::driver::{Context, Event};
use crate::transfer::CudaTransfer;

/// How host memory is page-locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PinnedMethod {
    /// Huge pages of our own, touched by several threads, then registered with the driver. On systems other than
    /// Linux the driver's own.
    #[default]
    Registered,
    /// The driver's own: `cuMemHostAlloc`.
    DriverAllocated,
}

/// A segment of page-locked host memory.
#[derive(Debug)]
pub struct PinnedMemory {
    /// Where the segment starts: a multiple of the huge page.
    address: u64,
    /// The address that the driver gave, or where the pages start.
    base: u64,
    /// The pages, where they are ours. As long as they are registered, dropping this leaves them be: the device may
    /// still reach them, so better lost than given to somebody else.
    pages: Option<ManuallyDrop<HostPages>>,
}

impl PinnedMemory {
    /// `bytes` bytes, a multiple of the huge page.
    pub(crate) fn new(context: &Context, bytes: u64, method: PinnedMethod) -> Result<Self, ProviderError> {
        if method == PinnedMethod::DriverAllocated || !cfg!(target_os = "linux") {
            // The driver aligns to ordinary pages.
            let base = context.host_allocate(bytes.saturating_add(HUGE_PAGE - 4096))?;
            return Ok(Self { address: base.next_multiple_of(HUGE_PAGE), base, pages: None });
        }
        let pages = HostPages::new(Device::cuda_pinned(context.ordinal()), bytes)?;
        // SAFETY: the pages are mapped, and `release` unregisters them before they go.
        unsafe { context.register(pages.address(), pages.bytes()) }?;
        Ok(Self { address: pages.address(), base: pages.address(), pages: Some(ManuallyDrop::new(pages)) })
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    /// # Safety
    /// Nobody uses the memory, and the context is that of `new`.
    unsafe fn release(self, context: &Context) -> Result<(), ProviderError> {
        match self.pages {
            Some(pages) => {
                // SAFETY: registered by `new`; the caller says that nobody uses it.
                unsafe { context.unregister(self.base) }?;
                drop(ManuallyDrop::into_inner(pages));
                Ok(())
            }
            // SAFETY: allocated by `new`; the caller says that nobody uses it.
            None => unsafe { context.host_free(self.base) },
        }
    }
}

/// Page-locked host memory, for [`alloc_pool::Pool`]. Every device of the process can copy from it and to it at the
/// speed of the link; blocks of the pool stay parked while a copy uses them.
///
/// ```
/// use alloc_core::MemoryProvider;
/// use alloc_cuda::{PinnedMethod, PinnedProvider};
///
/// if alloc_cuda::is_available() {
///     let provider = PinnedProvider::new(0, PinnedMethod::Registered)?;
///     assert!(provider.device().is_host_accessible());
/// }
/// # Ok::<(), alloc_core::ProviderError>(())
/// ```
#[derive(Debug)]
pub struct PinnedProvider {
    context: &'static Context,
    transfer: &'static CudaTransfer,
    method: PinnedMethod,
}

impl PinnedProvider {
    /// Host memory page-locked through the context of the device `ordinal`.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unavailable`](alloc_core::ProviderErrorKind::Unavailable) without CUDA, a driver or such
    /// a device; else what the driver reports.
    pub fn new(ordinal: u16, method: PinnedMethod) -> Result<Self, ProviderError> {
        Ok(Self { context: Context::open(ordinal)?, transfer: CudaTransfer::of(ordinal)?, method })
    }
}

/// What the host has, from `/proc/meminfo`; zeros elsewhere than on Linux.
fn host_memory() -> DeviceMemory {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()?.checked_mul(1024)
    };
    DeviceMemory { free: figure("MemAvailable:").unwrap_or(0), total: figure("MemTotal:").unwrap_or(0) }
}

// SAFETY: a segment is page-locked memory of the process that nobody else has, found by any device and the processor at one
// address until it is released; events are the driver's, recorded behind the work of the stream.
unsafe impl MemoryProvider for PinnedProvider {
    type Physical = PinnedMemory;
    type Event = Event;

    fn device(&self) -> Device {
        Device::cuda_pinned(self.context.ordinal())
    }

    fn addressing(&self) -> Addressing {
        Addressing::Segmented
    }

    fn granularity(&self) -> u64 {
        HUGE_PAGE
    }

    fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        Ok(host_memory())
    }

    fn reserve(&self, _bytes: u64) -> Result<AddressRange, ProviderError> {
        Err(self.only_segments("reserve"))
    }

    unsafe fn unreserve(&self, _range: AddressRange) -> Result<(), ProviderError> {
        Err(self.only_segments("unreserve"))
    }

    fn create(&self, bytes: u64) -> Result<PinnedMemory, ProviderError> {
        PinnedMemory::new(self.context, bytes, self.method).map_err(|error| self.rename(error))
    }

    unsafe fn release(&self, physical: PinnedMemory, _bytes: u64) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { physical.release(self.context) }.map_err(|error| self.rename(error))
    }

    unsafe fn map(&self, _at: Address, _physical: &PinnedMemory, _bytes: u64) -> Result<(), ProviderError> {
        Err(self.only_segments("map"))
    }

    unsafe fn unmap(&self, _at: Address, _bytes: u64) -> Result<(), ProviderError> {
        Err(self.only_segments("unmap"))
    }

    fn segment_address(&self, physical: &PinnedMemory) -> Address {
        Address::new(physical.address)
    }

    work_of_a_context!();
}

impl PinnedProvider {
    fn rename(&self, mut error: ProviderError) -> ProviderError {
        error.device = self.device();
        error
    }

    fn only_segments(&self, call: &'static str) -> ProviderError {
        let kind = alloc_core::ProviderErrorKind::Unsupported;
        ProviderError::new(self.device(), call, kind, "page-locked memory comes in segments")
    }
}
