//! Virtual memory, device memory, pinned host memory and the driver's own pools.

use std::ffi::c_void;

use alloc_core::{DeviceMemory, ProviderError};

use super::calls::{self, AccessDescription, AllocationProperties, Location, PoolProperties};
use super::context::Context;
use super::stream::Target;

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
const ALLOCATION_PINNED: i32 = 1;
/// `CU_MEM_ALLOC_GRANULARITY_RECOMMENDED`.
const GRANULARITY_RECOMMENDED: i32 = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: i32 = 3;
/// `CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP`, and the same for registering.
const PORTABLE_AND_MAPPED: u32 = 3;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub(super) const POSIX_FILE_DESCRIPTOR: i32 = 1;

/// What physical memory is made for, besides being used by its device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Abilities {
    /// Network cards and other devices on the bus can reach it (GPUDirect RDMA).
    pub(crate) rdma: bool,
    /// It can be handed to other processes by file descriptor.
    pub(crate) shareable: bool,
}

/// Memory that could not be mapped, or not be opened to those that are to use it.
#[derive(Debug)]
pub(crate) struct NotMapped {
    pub(crate) error: ProviderError,
    /// It is mapped all the same: the driver refused to let some device in, and to undo the mapping too.
    pub(crate) stays: bool,
}

impl From<ProviderError> for NotMapped {
    fn from(error: ProviderError) -> Self {
        Self { error, stays: false }
    }
}

/// Figures and switches of a driver pool, by the driver's numbers.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum PoolAttribute {
    ReleaseThreshold = 4,
    Reserved = 5,
    ReservedHigh = 6,
}

fn access(devices: &[i32]) -> Vec<AccessDescription> {
    devices.iter().map(|id| AccessDescription { location: Location::device(*id), flags: READ_WRITE }).collect()
}

impl Context {
    fn properties(&self, abilities: Abilities) -> AllocationProperties {
        AllocationProperties {
            kind: ALLOCATION_PINNED,
            handle_types: if abilities.shareable { POSIX_FILE_DESCRIPTOR } else { 0 },
            location: Location::device(self.device()),
            win32_meta_data: std::ptr::null_mut(),
            compression: 0,
            gpu_direct_rdma_capable: u8::from(abilities.rdma),
            usage: 0,
            reserved: [0; 4],
        }
    }

    /// Free and total memory.
    pub(crate) fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        let _current = self.enter_relaxed()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; the out parameters are locals.
        self.check("cuMemGetInfo", unsafe { calls::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok(DeviceMemory { free: free as u64, total: total as u64 })
    }

    /// The unit of virtual memory management, in bytes.
    pub(crate) fn granularity(&self, abilities: Abilities) -> Result<u64, ProviderError> {
        let mut bytes = 0;
        let properties = self.properties(abilities);
        // SAFETY: the parameters are locals.
        self.check("cuMemGetAllocationGranularity", unsafe {
            calls::cuMemGetAllocationGranularity(&raw mut bytes, &raw const properties, GRANULARITY_RECOMMENDED)
        })?;
        Ok(bytes as u64)
    }

    pub(crate) fn reserve(&self, bytes: u64, align: u64) -> Result<u64, ProviderError> {
        let _current = self.enter_relaxed()?;
        let mut address = 0;
        // SAFETY: the out parameter is a local.
        self.check("cuMemAddressReserve", unsafe {
            calls::cuMemAddressReserve(&raw mut address, bytes as usize, align as usize, 0, 0)
        })?;
        Ok(address)
    }

    /// # Safety
    /// The range was reserved as such, nothing is mapped in it, and it is given back once.
    pub(crate) unsafe fn unreserve(&self, address: u64, bytes: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemAddressFree", unsafe { calls::cuMemAddressFree(address, bytes as usize) })
    }

    pub(crate) fn create(&self, bytes: u64, abilities: Abilities) -> Result<u64, ProviderError> {
        let _current = self.enter_relaxed()?;
        let properties = self.properties(abilities);
        let mut handle = 0;
        // SAFETY: the parameters are locals.
        self.check("cuMemCreate", unsafe {
            calls::cuMemCreate(&raw mut handle, bytes as usize, &raw const properties, 0)
        })?;
        Ok(handle)
    }

    /// # Safety
    /// The handle came from [`Context::create`] and is released once.
    pub(crate) unsafe fn release(&self, handle: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemRelease", unsafe { calls::cuMemRelease(handle) })
    }

    /// Maps a handle and lets `devices` read and write it there. On an error nothing is mapped, or it says so.
    ///
    /// # Safety
    /// The addresses are reserved and free, and `bytes` is the size of the handle.
    pub(crate) unsafe fn map(&self, address: u64, bytes: u64, handle: u64, devices: &[i32]) -> Result<(), NotMapped> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemMap", unsafe { calls::cuMemMap(address, bytes as usize, 0, handle, 0) })?;
        // SAFETY: the range was just mapped.
        unsafe { self.allow(address, bytes, devices) }.map_err(|error| {
            // SAFETY: the range was just mapped, and nobody has used it. The first error is the one to report.
            let stays = unsafe { calls::cuMemUnmap(address, bytes as usize) } != 0;
            NotMapped { error, stays }
        })
    }

    /// Lets `devices` read and write what is mapped.
    ///
    /// # Safety
    /// The range is that of one mapping, which stays to the end of the call.
    pub(crate) unsafe fn set_access(&self, address: u64, bytes: u64, devices: &[i32]) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.allow(address, bytes, devices) }
    }

    /// As [`Context::set_access`], for callers that have made the context current.
    ///
    /// # Safety
    /// As there.
    unsafe fn allow(&self, address: u64, bytes: u64, devices: &[i32]) -> Result<(), ProviderError> {
        let access = access(devices);
        // SAFETY: the caller's promise; the array lives to the end of the call.
        self.check("cuMemSetAccess", unsafe {
            calls::cuMemSetAccess(address, bytes as usize, access.as_ptr(), access.len())
        })
    }

    /// # Safety
    /// The range is that of one mapping, and no work uses it.
    pub(crate) unsafe fn unmap(&self, address: u64, bytes: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemUnmap", unsafe { calls::cuMemUnmap(address, bytes as usize) })
    }

    pub(crate) fn allocate(&self, bytes: u64) -> Result<u64, ProviderError> {
        let _current = self.enter_relaxed()?;
        let mut address = 0;
        // SAFETY: the context is current; the out parameter is a local.
        self.check("cuMemAlloc", unsafe { calls::cuMemAlloc_v2(&raw mut address, bytes as usize) })?;
        Ok(address)
    }

    /// # Safety
    /// The address came from [`Context::allocate`] and is freed once; no work uses the memory.
    pub(crate) unsafe fn free(&self, address: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemFree", unsafe { calls::cuMemFree_v2(address) })
    }

    /// Page-locked host memory of the driver's own.
    pub(crate) fn host_allocate(&self, bytes: u64) -> Result<u64, ProviderError> {
        let _current = self.enter_relaxed()?;
        let mut address = std::ptr::null_mut();
        // SAFETY: the context is current; the out parameter is a local.
        self.check("cuMemHostAlloc", unsafe {
            calls::cuMemHostAlloc(&raw mut address, bytes as usize, PORTABLE_AND_MAPPED)
        })?;
        Ok(address as u64)
    }

    /// # Safety
    /// The address came from [`Context::host_allocate`] and is freed once; nobody uses the memory.
    pub(crate) unsafe fn host_free(&self, address: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemFreeHost", unsafe { calls::cuMemFreeHost(address as *mut c_void) })
    }

    /// Page-locks host memory for every device.
    ///
    /// # Safety
    /// The range is mapped host memory and stays so until it is unregistered.
    pub(crate) unsafe fn register(&self, address: u64, bytes: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemHostRegister", unsafe {
            calls::cuMemHostRegister_v2(address as *mut c_void, bytes as usize, PORTABLE_AND_MAPPED)
        })
    }

    /// # Safety
    /// The address was registered and is unregistered once; no work uses the memory.
    pub(crate) unsafe fn unregister(&self, address: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemHostUnregister", unsafe { calls::cuMemHostUnregister(address as *mut c_void) })
    }

    /// A pool of the driver's own that keeps all of its memory until it is trimmed and that `peers` can use too.
    pub(crate) fn pool_create(&self, peers: &[i32]) -> Result<u64, ProviderError> {
        let _current = self.enter_relaxed()?;
        let properties = PoolProperties {
            kind: ALLOCATION_PINNED,
            handle_types: 0,
            location: Location::device(self.device()),
            win32_attributes: std::ptr::null_mut(),
            reserved: [0; 64],
        };
        let mut pool = 0;
        // SAFETY: the parameters are locals.
        self.check("cuMemPoolCreate", unsafe { calls::cuMemPoolCreate(&raw mut pool, &raw const properties) })?;
        let mut threshold = u64::MAX;
        let access = access(peers);
        // SAFETY: the pool was just made; the attribute's value is a 64-bit integer.
        let made = self
            .check("cuMemPoolSetAttribute", unsafe {
                calls::cuMemPoolSetAttribute(
                    pool,
                    PoolAttribute::ReleaseThreshold as i32,
                    (&raw mut threshold).cast::<c_void>(),
                )
            })
            .and_then(|()| {
                if access.is_empty() {
                    return Ok(());
                }
                // SAFETY: as above; the array lives to the end of the call.
                self.check("cuMemPoolSetAccess", unsafe {
                    calls::cuMemPoolSetAccess(pool, access.as_ptr(), access.len())
                })
            });
        if made.is_err() {
            // SAFETY: nobody else knows the pool yet.
            let _ = unsafe { calls::cuMemPoolDestroy(pool) };
        }
        made.map(|()| pool)
    }

    /// Makes the pool's highest figure what it holds now.
    ///
    /// # Safety
    /// The pool lives.
    pub(crate) unsafe fn pool_forget_peak(&self, pool: u64) -> Result<(), ProviderError> {
        let mut zero = 0_u64;
        // SAFETY: the caller's promise; the attribute's value is a 64-bit integer.
        self.check("cuMemPoolSetAttribute", unsafe {
            calls::cuMemPoolSetAttribute(pool, PoolAttribute::ReservedHigh as i32, (&raw mut zero).cast::<c_void>())
        })
    }

    /// # Safety
    /// The pool lives.
    pub(crate) unsafe fn pool_trim(&self, pool: u64, keep: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuMemPoolTrimTo", unsafe {
            calls::cuMemPoolTrimTo(pool, usize::try_from(keep).unwrap_or(usize::MAX))
        })
    }

    /// # Safety
    /// The pool lives.
    pub(crate) unsafe fn pool_attribute(&self, pool: u64, attribute: PoolAttribute) -> Result<u64, ProviderError> {
        let mut value = 0_u64;
        // SAFETY: the caller's promise; all attributes named by the type are 64-bit integers.
        self.check("cuMemPoolGetAttribute", unsafe {
            calls::cuMemPoolGetAttribute(pool, attribute as i32, (&raw mut value).cast::<c_void>())
        })?;
        Ok(value)
    }

    /// # Safety
    /// The pool and the stream live.
    pub(crate) unsafe fn pool_allocate(&self, pool: u64, bytes: u64, stream: Target) -> Result<u64, ProviderError> {
        let _current = self.enter_for(stream)?;
        let mut address = 0;
        // SAFETY: the caller's promise; the out parameter is a local.
        self.check("cuMemAllocAsync", unsafe {
            calls::cuMemAllocFromPoolAsync(&raw mut address, bytes as usize, pool, stream.handle())
        })?;
        Ok(address)
    }

    /// # Safety
    /// The address came from [`Context::pool_allocate`], is freed once, and all of its uses come before in the
    /// stream's order.
    pub(crate) unsafe fn pool_free(&self, address: u64, stream: Target) -> Result<(), ProviderError> {
        let _current = self.enter_for(stream)?;
        // SAFETY: the caller's promise.
        self.check("cuMemFreeAsync", unsafe { calls::cuMemFreeAsync(address, stream.handle()) })
    }
}
