//! Handles of physical memory that cross to other processes as file descriptors.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use alloc_core::ProviderError;

use super::calls::{self, AllocationProperties, Location};
use super::context::Context;
use super::memory::POSIX_FILE_DESCRIPTOR;

impl Context {
    /// A file descriptor of the memory behind a handle.
    ///
    /// # Safety
    /// The handle came from [`Context::create`] with the ability, and is not released.
    pub(crate) unsafe fn export(&self, handle: u64) -> Result<OwnedFd, ProviderError> {
        let _current = self.enter_relaxed()?;
        let mut file: i32 = -1;
        // SAFETY: the caller's promise; for this kind of handle the driver writes a file descriptor, an `int`.
        self.check("cuMemExportToShareableHandle", unsafe {
            calls::cuMemExportToShareableHandle((&raw mut file).cast::<c_void>(), handle, POSIX_FILE_DESCRIPTOR, 0)
        })?;
        // SAFETY: the driver opened it for the caller, who owns it from now on.
        Ok(unsafe { OwnedFd::from_raw_fd(file) })
    }

    /// A handle of the memory behind a file descriptor, which stays the caller's. It is released with
    /// [`Context::release`].
    pub(crate) fn import(&self, file: BorrowedFd<'_>) -> Result<u64, ProviderError> {
        let _current = self.enter_relaxed()?;
        let mut handle = 0;
        // For this kind of handle the pointer is the number of the file descriptor.
        let shareable = std::ptr::without_provenance_mut(file.as_raw_fd() as usize);
        // SAFETY: the file descriptor is open; the driver says so if it is one of something else. The out parameter
        // is a local.
        self.check("cuMemImportFromShareableHandle", unsafe {
            calls::cuMemImportFromShareableHandle(&raw mut handle, shareable, POSIX_FILE_DESCRIPTOR)
        })?;
        Ok(handle)
    }

    /// The driver's number of the device whose memory a handle is.
    ///
    /// # Safety
    /// The handle came from [`Context::create`] or [`Context::import`], and is not released.
    pub(crate) unsafe fn home_of(&self, handle: u64) -> Result<i32, ProviderError> {
        let _current = self.enter_relaxed()?;
        let mut properties = AllocationProperties {
            kind: 0,
            handle_types: 0,
            location: Location { kind: 0, id: 0 },
            win32_meta_data: std::ptr::null_mut(),
            compression: 0,
            gpu_direct_rdma_capable: 0,
            usage: 0,
            reserved: [0; 4],
        };
        // SAFETY: the caller's promise; the out parameter is a local.
        self.check("cuMemGetAllocationPropertiesFromHandle", unsafe {
            calls::cuMemGetAllocationPropertiesFromHandle(&raw mut properties, handle)
        })?;
        Ok(properties.location.id)
    }
}
