//! What can go wrong, as a code and as a text; and the last text of each thread.

use std::cell::RefCell;
use std::ffi::{CStr, CString};

use buffer::BufferError;
use buffer_dlpack::{DlpackError, Refused};

use alloc_core::{
    AllocError, Device, DeviceKind, OutOfMemory, ProviderError, ProviderErrorKind, ReleaseError, TransferError,
};

use crate::heaps;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
#[non_exhaustive]
pub enum Status {
    /// It did what it says.
    Ok = 0,
    /// No memory, after everything that could be given back was.
    OutOfMemory = 1,
    /// An argument makes no sense.
    InvalidArgument = 2,
    /// A pointer that no block starts at.
    UnknownPointer = 3,
    /// A pointer that was freed before.
    DoubleFree = 4,
    /// A pointer to memory of another device than the one named.
    WrongDevice = 5,
    /// A pointer to a block of another size than the one named.
    WrongSize = 6,
    /// There is no such device, no driver, or the library was built without support for it.
    Unavailable = 7,
    /// The device or its driver failed. Memory whose use can't be known any more is leaked, never reused.
    DeviceFailure = 8,
    /// An error in this library.
    Internal = 9,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{}", explain(.0))]
    Alloc(#[from] AllocError),
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Release(#[from] ReleaseError),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error("{address:#x} is not where a block starts")]
    UnknownPointer { address: u64 },
    #[error("{address:#x} was freed before")]
    DoubleFree { address: u64 },
    #[error("{address:#x} is memory of {device}, not of {named}")]
    WrongDevice { address: u64, device: Device, named: Device },
    #[error("the block at {address:#x} has {size} bytes, not {named}")]
    WrongSize { address: u64, size: u64, named: u64 },
    #[error("{address:#x} is the memory of a tensor, which gives it back itself")]
    Lent { address: u64 },
    #[error("{what} {value} makes no sense")]
    InvalidArgument { what: &'static str, value: i64 },
    #[cfg(feature = "cuda")]
    #[error("{fraction} is no fraction of a device's memory")]
    Fraction { fraction: f64 },
    #[error("there is no {device}")]
    NoDevice { device: Device },
    #[error("{what} is a null pointer")]
    Null { what: &'static str },
    #[error("{what} of {device} can't be changed: its allocator was installed by the program")]
    Foreign { what: &'static str, device: Device },
    #[error("{}", explain_buffer(.error))]
    Buffer { error: Box<BufferError> },
    #[error("{message}")]
    Dlpack { message: String },
    #[error("a panic was caught: {message}")]
    Panic { message: String },
}

impl Failure {
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Alloc(error) if error.is_out_of_memory() => Status::OutOfMemory,
            Self::Alloc(AllocError::TooLarge { .. }) => Status::OutOfMemory,
            Self::Alloc(AllocError::Provider(error))
            | Self::Provider(error)
            | Self::Transfer(TransferError::Provider(error)) => Self::of_provider(error),
            Self::Alloc(_) | Self::InvalidArgument { .. } | Self::Null { .. } => Status::InvalidArgument,
            #[cfg(feature = "cuda")]
            Self::Fraction { .. } => Status::InvalidArgument,
            Self::UnknownPointer { .. } | Self::Lent { .. } | Self::Release(ReleaseError::Foreign { .. }) => {
                Status::UnknownPointer
            }
            Self::DoubleFree { .. } | Self::Release(ReleaseError::Stale { .. }) => Status::DoubleFree,
            Self::Release(ReleaseError::Leaked { .. }) => Status::DeviceFailure,
            Self::Release(_) | Self::Panic { .. } => Status::Internal,
            Self::WrongDevice { .. } => Status::WrongDevice,
            Self::WrongSize { .. } => Status::WrongSize,
            Self::NoDevice { .. } | Self::Foreign { .. } | Self::Transfer(_) => Status::Unavailable,
            Self::Buffer { error } => match &**error {
                BufferError::Alloc(error) => Self::Alloc(error.clone()).status(),
                _ => Status::DeviceFailure,
            },
            Self::Dlpack { .. } => Status::InvalidArgument,
        }
    }

    fn of_provider(error: &ProviderError) -> Status {
        match error.kind {
            ProviderErrorKind::OutOfMemory => Status::OutOfMemory,
            ProviderErrorKind::InvalidArgument => Status::InvalidArgument,
            ProviderErrorKind::Unavailable | ProviderErrorKind::Unsupported => Status::Unavailable,
            _ => Status::DeviceFailure,
        }
    }
}

impl From<BufferError> for Failure {
    fn from(error: BufferError) -> Self {
        Self::Buffer { error: Box::new(error) }
    }
}

impl From<DlpackError> for Failure {
    fn from(error: DlpackError) -> Self {
        match error {
            DlpackError::Buffer(error) => error.into(),
            error => Self::Dlpack { message: error.to_string() },
        }
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        refused.error.into()
    }
}

fn explain_buffer(error: &BufferError) -> String {
    match error {
        BufferError::Alloc(error) => explain(error),
        other => other.to_string(),
    }
}

/// An allocation's error in words that help whoever reads a training program's log.
fn explain(error: &AllocError) -> String {
    match error {
        AllocError::OutOfMemory(figures) => out_of_memory(figures),
        AllocError::TooLarge { device, requested, maximum } => {
            format!("{} A block can have at most {}.", tried(*device, *requested), human(*maximum))
        }
        other => other.to_string(),
    }
}

/// The first words, which are PyTorch's: programs look for them.
fn tried(device: Device, bytes: u64) -> String {
    let first = if device.kind() == DeviceKind::CUDA { "CUDA out of memory." } else { "Out of memory." };
    format!("{first} Tried to allocate {} on {device}.", human(bytes))
}

fn out_of_memory(figures: &OutOfMemory) -> String {
    let mut text = tried(figures.device, figures.requested);
    if let (Some(free), Some(total)) = (figures.device_free, figures.device_total) {
        text += &format!(" The device has {} of which {} is free", human(total), human(free));
        let headroom = heaps::by_device(figures.device).map_or(0, |heap| heap.headroom);
        if headroom > 0 {
            text += &format!(", {} of it for the driver", human(headroom.min(free)));
        }
        text += ".";
    }
    let unused = figures.reserved.saturating_sub(figures.in_use);
    text += &format!(
        " This process's pool holds {}: {} in use, {} free, the largest free block {}",
        human(figures.reserved),
        human(figures.in_use),
        human(unused),
        human(figures.largest_free)
    );
    if figures.parked > 0 {
        text += &format!(", {} waiting for work on other streams", human(figures.parked));
    }
    text += ".";
    if let Some(limit) = figures.limit {
        text += &format!(" Its limit is {}.", human(limit));
    }
    text += match () {
        () if figures.device_total.is_some_and(|total| total > 0 && figures.requested > total) => {
            " That is more than the device has in all: nothing that is freed would make room for it."
        }
        () if figures.limit.is_some_and(|limit| figures.in_use.saturating_add(figures.requested) > limit) => {
            " The request and what is in use exceed that limit: raise it, or free something and try again."
        }
        () if figures.parked > figures.requested => " Much of it waits for unfinished work: synchronise and try again.",
        () => " Free pages were moved and given back before this failed: free something and try again.",
    };
    text
}

/// Bytes as people say them.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift > 0 {
            return format!("{:.2} {unit}", bytes as f64 / (1_u64 << shift) as f64);
        }
    }
    format!("{bytes} bytes")
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Keeps the text for the calling thread and tells `tracing`.
pub(crate) fn note(failure: &Failure) -> Status {
    let status = failure.status();
    match status {
        Status::OutOfMemory | Status::Unavailable => tracing::debug!(?status, "{failure}"),
        _ => tracing::warn!(?status, "{failure}"),
    }
    let mut text = failure.to_string().into_bytes();
    text.retain(|byte| *byte != 0);
    let text = CString::new(text).unwrap_or_default();
    let _ = LAST.try_with(|last| last.try_borrow_mut().map(|mut last| *last = text));
    status
}

/// The text of the calling thread's last failure; empty if there was none. It stays valid until the next failure of
/// this thread.
pub(crate) fn last() -> *const std::ffi::c_char {
    LAST.try_with(|last| last.try_borrow().map_or(c"".as_ptr(), |last| last.as_ptr())).unwrap_or(c"".as_ptr())
}

/// The name of a status.
pub(crate) fn name(status: i32) -> &'static CStr {
    const NAMES: [&CStr; 10] = [
        c"ok",
        c"out of memory",
        c"invalid argument",
        c"unknown pointer",
        c"double free",
        c"wrong device",
        c"wrong size",
        c"unavailable",
        c"device failure",
        c"internal error",
    ];
    usize::try_from(status).ok().and_then(|status| NAMES.get(status)).copied().unwrap_or(c"unknown status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_said_in_the_largest_unit_that_fits() {
        assert_eq!(human(1023), "1023 bytes");
        assert_eq!(human(1536), "1.50 KiB");
        assert_eq!(human(79 << 30), "79.00 GiB");
    }

    #[test]
    fn out_of_memory_says_what_is_in_the_way() {
        let mut figures = OutOfMemory::new(Device::cuda(0), 4 << 30);
        figures.in_use = 6 << 30;
        figures.reserved = 7 << 30;
        figures.largest_free = 1 << 30;
        figures.limit = Some(8 << 30);
        figures.device_free = Some(60 << 30);
        figures.device_total = Some(79 << 30);
        let failure = Failure::Alloc(figures.clone().into());
        assert_eq!(failure.status(), Status::OutOfMemory);
        let text = failure.to_string();
        for part in ["cuda:0", "4.00 GiB", "limit is 8.00 GiB", "79.00 GiB of which 60.00 GiB", "exceed that limit"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let mut beyond = figures.clone();
        beyond.requested = 80 << 30;
        let text = Failure::Alloc(beyond.into()).to_string();
        assert!(text.contains("more than the device has") && !text.contains("try again"), "{text}");
        let mut parked = figures;
        parked.parked = 5 << 30;
        parked.limit = None;
        assert!(Failure::Alloc(parked.into()).to_string().contains("synchronise"));
    }

    #[test]
    fn the_last_text_is_that_of_this_thread() {
        note(&Failure::UnknownPointer { address: 0x1234 });
        std::thread::spawn(|| note(&Failure::DoubleFree { address: 1 })).join().unwrap();
        LAST.with(|last| assert!(last.borrow().to_str().unwrap().contains("0x1234")));
    }
}
