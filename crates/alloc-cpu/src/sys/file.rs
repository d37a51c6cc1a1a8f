//! Files that live in memory: stores of physical pages.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{SysError, check, offset};

/// A file that lives in memory: a store of physical pages, named by offsets.
#[derive(Debug)]
pub(crate) struct PageFile {
    fd: OwnedFd,
}

impl PageFile {
    /// An empty file; `hugetlb` takes its pages from the system's pool of 2 MiB pages.
    pub(crate) fn new(name: &CStr, hugetlb: bool) -> Result<Self, SysError> {
        let huge = if hugetlb { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
        // SAFETY: the name ends in a zero byte, and the call touches no other memory of ours.
        let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | huge) };
        if fd < 0 {
            return Err(SysError::last("memfd_create"));
        }
        // SAFETY: the descriptor is new, so nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Makes the file `bytes` long. Only ever called with more than what is in use of it, so no page that is mapped goes
    /// away.
    pub(crate) fn grow_to(&self, bytes: u64) -> Result<(), SysError> {
        let bytes = offset(bytes, "ftruncate")?;
        // SAFETY: the call touches no memory of ours.
        check("ftruncate", || unsafe { libc::ftruncate(self.fd.as_raw_fd(), bytes) })
    }

    /// Takes the physical pages of a range now.
    pub(crate) fn allocate(&self, at: u64, bytes: u64) -> Result<(), SysError> {
        let (at, bytes) = (offset(at, "fallocate")?, offset(bytes, "fallocate")?);
        // SAFETY: the call touches no memory of ours; contents that are there stay.
        check("fallocate", || unsafe { libc::fallocate(self.fd.as_raw_fd(), 0, at, bytes) })
    }

    /// Gives the physical pages of a range back: its contents become zero, in every view.
    pub(crate) fn punch(&self, at: u64, bytes: u64) -> Result<(), SysError> {
        let (at, bytes) = (offset(at, "fallocate")?, offset(bytes, "fallocate")?);
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the call touches no memory that safe code could refer to: views of files are known by number only,
        // and whoever makes a reference of such a number vouches for it.
        check("fallocate", || unsafe { libc::fallocate(self.fd.as_raw_fd(), mode, at, bytes) })
    }

    pub(super) fn descriptor(&self) -> libc::c_int {
        self.fd.as_raw_fd()
    }

    /// The physical memory that the file holds at present, in bytes.
    pub(crate) fn resident(&self) -> Result<u64, SysError> {
        let mut status = std::mem::MaybeUninit::<libc::stat>::zeroed();
        // SAFETY: the buffer is large enough and writable.
        check("fstat", || unsafe { libc::fstat(self.fd.as_raw_fd(), status.as_mut_ptr()) })?;
        // SAFETY: all bytes zero is a valid value, and the call has filled it in.
        let status = unsafe { status.assume_init() };
        Ok(u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512))
    }
}
