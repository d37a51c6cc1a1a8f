//! System calls on pages and addresses, the system's heap, and copies: nearly all that needs `unsafe`.
//!
//! The functions here are thin, so that each proof is short; what is decided, is decided in the safe modules.

mod bytes;
mod file;
mod heap;
mod range;

pub(crate) use bytes::ByteWork;
pub(crate) use file::PageFile;
pub(crate) use heap::{heap_allocate, heap_release};
pub(crate) use range::{NodePolicy, ReservedRange};

use std::borrow::Cow;

use alloc_core::{Device, ProviderError, ProviderErrorKind};

/// A system call that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SysError {
    pub(crate) call: &'static str,
    pub(crate) errno: i32,
}

impl SysError {
    /// The failure that the calling thread's `errno` holds.
    fn last(call: &'static str) -> Self {
        Self { call, errno: std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }
    }

    pub(crate) fn into_provider_error(self, device: Device) -> ProviderError {
        ProviderError::new(device, self.call, errno_kind(self.errno), errno_name(self.errno))
            .with_code(self.errno.into())
    }
}

fn offset(bytes: u64, call: &'static str) -> Result<libc::off_t, SysError> {
    libc::off_t::try_from(bytes).map_err(|_| SysError { call, errno: libc::EFBIG })
}

/// Runs a call that returns zero or sets `errno`, again if a signal broke it off.
fn check(call: &'static str, mut run: impl FnMut() -> libc::c_int) -> Result<(), SysError> {
    loop {
        if run() == 0 {
            return Ok(());
        }
        let error = SysError::last(call);
        if error.errno != libc::EINTR {
            return Err(error);
        }
    }
}

fn errno_kind(errno: i32) -> ProviderErrorKind {
    match errno {
        libc::ENOMEM | libc::ENOSPC | libc::EAGAIN | libc::EMFILE | libc::ENFILE => ProviderErrorKind::OutOfMemory,
        libc::EINVAL | libc::EBADF | libc::EFAULT => ProviderErrorKind::InvalidArgument,
        libc::ENOSYS | libc::EOPNOTSUPP | libc::EPERM | libc::EACCES => ProviderErrorKind::Unsupported,
        _ => ProviderErrorKind::Other,
    }
}

fn errno_name(errno: i32) -> Cow<'static, str> {
    Cow::Borrowed(match errno {
        libc::ENOMEM => "ENOMEM",
        libc::ENOSPC => "ENOSPC",
        libc::EAGAIN => "EAGAIN",
        libc::EMFILE => "EMFILE",
        libc::ENFILE => "ENFILE",
        libc::EINVAL => "EINVAL",
        libc::EBADF => "EBADF",
        libc::EFAULT => "EFAULT",
        libc::ENOSYS => "ENOSYS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EPERM => "EPERM",
        libc::EACCES => "EACCES",
        libc::EFBIG => "EFBIG",
        libc::EBUSY => "EBUSY",
        libc::EIO => "EIO",
        other => return Cow::Owned(std::io::Error::from_raw_os_error(other).to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_keep_call_and_code() {
        let error = SysError { call: "mmap", errno: libc::ENOMEM }.into_provider_error(Device::CPU);
        assert_eq!((error.call, error.code), ("mmap", i64::from(libc::ENOMEM)));
        assert_eq!((&*error.name, error.kind), ("ENOMEM", ProviderErrorKind::OutOfMemory));
        let odd = SysError { call: "mbind", errno: libc::EXDEV }.into_provider_error(Device::CPU);
        assert_eq!((odd.code, odd.kind), (i64::from(libc::EXDEV), ProviderErrorKind::Other));
        assert!(!odd.name.is_empty());
    }
}
