//! What the driver's result codes mean.

use std::borrow::Cow;
use std::ffi::CStr;

use alloc_core::{Device, ProviderError, ProviderErrorKind};

use super::calls::{self, NOT_BUILT};

pub(crate) const OUT_OF_MEMORY: i32 = 2;
pub(crate) const NEEDS_NEWER_DRIVER: i32 = 36;
pub(crate) const NO_DEVICE: i32 = 100;
pub(crate) const INVALID_DEVICE: i32 = 101;
pub(crate) const INVALID_PTX: i32 = 218;
pub(crate) const INVALID_HANDLE: i32 = 400;
pub(crate) const NOT_READY: i32 = 600;
pub(crate) const PEER_ACCESS_ALREADY_ENABLED: i32 = 704;
pub(crate) const STREAM_CAPTURE_UNSUPPORTED: i32 = 900;
pub(crate) const STREAM_CAPTURE_IMPLICIT: i32 = 906;
pub(crate) const CAPTURED_EVENT: i32 = 907;

/// An error with the driver's own name for the code.
#[cold]
pub(crate) fn error(device: Device, call: &'static str, code: i32) -> ProviderError {
    ProviderError::new(device, call, kind(code), name(code)).with_code(code.into())
}

/// `Ok` for code 0.
#[inline]
pub(crate) fn check(device: Device, call: &'static str, code: i32) -> Result<(), ProviderError> {
    if code == 0 { Ok(()) } else { Err(error(device, call, code)) }
}

/// `Ok(true)` for code 0, `Ok(false)` for "not ready".
#[inline]
pub(crate) fn ready(device: Device, call: &'static str, code: i32) -> Result<bool, ProviderError> {
    match code {
        0 => Ok(true),
        NOT_READY => Ok(false),
        code => Err(error(device, call, code)),
    }
}

fn name(code: i32) -> Cow<'static, str> {
    if code == NOT_BUILT {
        return Cow::Borrowed("built without the feature `cuda` of alloc-cuda");
    }
    let mut text = std::ptr::null();
    // SAFETY: the out parameter is a local. The driver writes null, or leaves it, for a code that it does not know.
    let result = unsafe { calls::cuGetErrorName(code, &raw mut text) };
    if result == 0 && !text.is_null() {
        // SAFETY: the driver returned a C string of its own, which lives as long as the driver does.
        return Cow::Owned(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned());
    }
    Cow::Owned(format!("CUDA_ERROR_{code}"))
}

/// Whether a call was refused on account of a capture, and may succeed once that has ended.
pub(crate) fn is_of_capture(error: &ProviderError) -> bool {
    (i64::from(STREAM_CAPTURE_UNSUPPORTED)..=i64::from(CAPTURED_EVENT)).contains(&error.code)
}

/// What a code means to an allocator. Codes of newer drivers that are not known here are [`ProviderErrorKind::Other`].
pub(crate) fn kind(code: i32) -> ProviderErrorKind {
    match code {
        OUT_OF_MEMORY => ProviderErrorKind::OutOfMemory,
        // Invalid value, context, handle; already mapped, not mapped; already or not registered.
        1 | 201 | 206..=208 | 211 | 400 | 712 | 713 => ProviderErrorKind::InvalidArgument,
        // The driver shuts down; an uncorrectable memory error; a contained error; illegal address; a kernel that
        // ran too long; a destroyed context; an assertion; the device's own faults; a lost launch; a process that MPS has ended;
        // unknown.
        4 | 214 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721 | 810 | 999 => ProviderErrorKind::Poisoned,
        NOT_BUILT => ProviderErrorKind::Unavailable,
        // Not initialised; stub library; driver too old; device taken; no device; invalid device; system not ready or
        // mismatched.
        3 | 34 | 35 | 46 | NO_DEVICE | INVALID_DEVICE | 802..=809 => ProviderErrorKind::Unavailable,
        // The call needs a newer driver; not found; not permitted; not supported; not while a stream captures.
        NEEDS_NEWER_DRIVER | 500 | 800 | 801 | STREAM_CAPTURE_UNSUPPORTED => ProviderErrorKind::Unsupported,
        _ => ProviderErrorKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_tell_memory_arguments_and_broken_contexts_apart() {
        assert_eq!(kind(2), ProviderErrorKind::OutOfMemory);
        assert_eq!(kind(1), ProviderErrorKind::InvalidArgument);
        assert_eq!(kind(700), ProviderErrorKind::Poisoned);
        assert_eq!(kind(719), ProviderErrorKind::Poisoned);
        assert_eq!(kind(810), ProviderErrorKind::Poisoned);
        assert_eq!(kind(100), ProviderErrorKind::Unavailable);
        assert_eq!(kind(801), ProviderErrorKind::Unsupported);
        assert_eq!(kind(12_345), ProviderErrorKind::Other);
    }
}
