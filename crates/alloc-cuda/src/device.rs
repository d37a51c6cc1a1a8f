//! Which devices there are.

use alloc_core::ProviderError;

use crate::driver::context::{self, Attribute, Context};
use crate::put_off;

/// What a device is and can do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The name that the driver has for it.
    pub name: String,
    /// Memory in bytes.
    pub total_memory: u64,
    /// Major and minor compute capability.
    pub compute_capability: (i32, i32),
    /// Whether physical memory can be mapped at addresses of our choice; without it pools use segments.
    pub virtual_memory_management: bool,
    /// Whether the driver has stream-ordered pools, as [`AsyncAllocator`](crate::AsyncAllocator) needs.
    pub memory_pools: bool,
    /// Whether memory can be handed to other processes by file descriptor, as [`ShareableMemory`](crate::ShareableMemory)
    /// is.
    pub shareable: bool,
    /// Whether mapped memory can be reached by other devices on the bus (GPUDirect RDMA).
    pub rdma: bool,
    /// Whether host and devices share one address space.
    pub unified_addressing: bool,
}

/// Whether there is a driver, new enough, with at least one device.
pub fn is_available() -> bool {
    device_count().is_ok_and(|count| count > 0)
}

/// Number of CUDA devices.
///
/// # Errors
/// [`ProviderErrorKind::Unavailable`](alloc_core::ProviderErrorKind::Unavailable) when built without CUDA, or when
/// there is no driver, none new enough, or no device.
pub fn device_count() -> Result<u16, ProviderError> {
    context::count()
}

/// The version of CUDA that the driver is for: major and minor.
///
/// # Errors
/// As [`device_count`].
pub fn driver_version() -> Result<(i32, i32), ProviderError> {
    context::version().map(|version| (version / 1000, version % 1000 / 10))
}

/// What a device is and can do.
///
/// # Errors
/// As [`device_count`], and for an ordinal that no device has.
pub fn device_info(ordinal: u16) -> Result<DeviceInfo, ProviderError> {
    let context = Context::open(ordinal)?;
    Ok(DeviceInfo {
        name: context.device_name()?,
        total_memory: context.memory()?.total,
        compute_capability: (
            context.attribute(Attribute::ComputeCapabilityMajor)?,
            context.attribute(Attribute::ComputeCapabilityMinor)?,
        ),
        virtual_memory_management: context.has(Attribute::VirtualMemoryManagement)?,
        memory_pools: context.has(Attribute::MemoryPools)?,
        shareable: context.has(Attribute::FileDescriptorHandles)?,
        rdma: context.has(Attribute::RdmaWithVirtualMemory)?,
        unified_addressing: context.has(Attribute::UnifiedAddressing)?,
    })
}

/// Whether kernels and copies of the device `from` can reach memory of the device `to` directly, where that memory is
/// [open to it](crate::DeviceProvider::open_to). No context is made for either. Of a device and itself the driver says no.
///
/// # Errors
/// As [`device_count`], and for an ordinal that no device has.
pub fn can_access_peer(from: u16, to: u16) -> Result<bool, ProviderError> {
    context::can_access_peer(from, to)
}

/// Waits for all work of a device, in its primary context. No [capture of this crate](crate::CudaStream::capture) begins meanwhile.
///
/// # Errors
/// As [`device_count`]; what the driver reports, failures of earlier work included; and while a stream is captured. That harms
/// no capture of this crate. Of others nothing is known here, and the driver ends those in this context.
pub fn synchronize(ordinal: u16) -> Result<(), ProviderError> {
    put_off::settle(Context::open(ordinal)?)
}
