//! Device memory that several processes use.

use std::os::fd::{AsFd, OwnedFd};

use alloc_core::{Address, Device, ProviderError, ProviderErrorKind};

use crate::driver::Context;
use crate::driver::context::Attribute;
use crate::driver::error::is_of_capture;
use crate::driver::memory::Abilities;
use crate::put_off;

/// Memory that could not be made, handed over or opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShareError {
    /// The device, or this system, hands no memory to other processes by file descriptor.
    #[error("{device} can't hand memory to other processes by file descriptor")]
    Unsupported {
        /// The device.
        device: Device,
    },
    /// A device that is to use the memory can't reach it.
    #[error("{peer} can't reach the memory of {device}")]
    Unreachable {
        /// Whose memory it is.
        device: Device,
        /// Who was to use it.
        peer: Device,
    },
    /// Memory can't have this size, or the memory that was opened has another.
    #[error("the size of the memory can't be {bytes} bytes")]
    Size {
        /// The size that was asked for.
        bytes: u64,
    },
    /// The file descriptor is none of device memory, or of memory that this process can't open.
    #[error("the file descriptor leads to no memory that {device} can open: {source}")]
    NotMemory {
        /// The device.
        device: Device,
        /// What the driver said.
        source: ProviderError,
    },
    /// The driver failed otherwise.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// `CUDA_ERROR_UNKNOWN`.
const UNKNOWN: i64 = 999;

/// Device memory of its own that other processes can open, or that another process made.
///
/// One process makes it and [exports](ShareableMemory::export) a file descriptor, which crosses to the other over a
/// Unix socket (`SCM_RIGHTS`) together with [`ShareableMemory::bytes`]; the other [imports](ShareableMemory::import) it.
/// Each has the memory at an address of its own. It lives until the last of them has dropped it and the last
/// descriptor is closed, whoever goes first.
///
/// It is no block of a pool: pages of a pool hold other blocks too, which nobody else is to see.
///
/// The driver orders nothing between processes. Who has written waits for its stream before it tells the other.
/// Dropping waits for the work of all devices that have access, as `cuMemFree` does, and then unmaps. While a stream is captured
/// that is put off; what it means for captures of others [`PrivatePool`](crate::PrivatePool) says.
///
/// ```
/// use alloc_cuda::ShareableMemory;
///
/// if alloc_cuda::is_available() && alloc_cuda::device_info(0)?.shareable {
///     let memory = ShareableMemory::new(0, 1 << 20, &[])?;
///     let (file, bytes) = (memory.export()?, memory.bytes());
///     // ... send both to another process, which calls:
///     let opened = ShareableMemory::import(0, &file, bytes)?;
///     assert_eq!(opened.device(), memory.device());
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ShareableMemory {
    /// The device that made the mapping.
    context: &'static Context,
    /// The devices that have access, by ordinal; whose memory it is comes first.
    users: Vec<u16>,
    handle: u64,
    address: u64,
    bytes: u64,
    imported: bool,
}

const ABILITIES: Abilities = Abilities { rdma: false, shareable: true };

impl ShareableMemory {
    /// At least `bytes` bytes of the device `ordinal`, rounded up to the driver's unit, which the devices `peers` of this
    /// process can use too.
    ///
    /// # Errors
    /// [`ShareError`]: the device hands out no memory, a peer can't reach it, the size is none; or what the driver
    /// reports, out of memory included.
    pub fn new(ordinal: u16, bytes: u64, peers: &[u16]) -> Result<Self, ShareError> {
        let context = Context::open(ordinal)?;
        require_support(context)?;
        let mut users = vec![ordinal];
        for peer in peers.iter().filter(|peer| **peer != ordinal) {
            require_reach(Context::open(*peer)?, context.device())?;
            users.push(*peer);
        }
        let abilities = Abilities { rdma: context.has(Attribute::RdmaWithVirtualMemory)?, ..ABILITIES };
        let granularity = context.granularity(abilities)?;
        let rounded = bytes.checked_next_multiple_of(granularity).filter(|rounded| *rounded > 0);
        let bytes = rounded.ok_or(ShareError::Size { bytes })?;
        let handle = context.create(bytes, abilities)?;
        Ok(Self::mapped(context, users, handle, bytes, granularity, false)?)
    }

    /// Memory that another process, or this one, exported, for the device `ordinal` to use. `bytes` is what
    /// [`ShareableMemory::bytes`] says there. The file descriptor stays the caller's and may be closed afterwards.
    ///
    /// # Errors
    /// [`ShareError`]: the device opens no memory, the file descriptor is none of memory, the size is another, the
    /// device can't reach the one whose memory it is; or what the driver reports.
    pub fn import(ordinal: u16, file: impl AsFd, bytes: u64) -> Result<Self, ShareError> {
        let context = Context::open(ordinal)?;
        require_support(context)?;
        let granularity = context.granularity(ABILITIES)?;
        if bytes == 0 || !bytes.is_multiple_of(granularity) {
            return Err(ShareError::Size { bytes });
        }
        let handle = context.import(file.as_fd()).map_err(|source| match source.kind {
            // Drivers say "unknown" of a descriptor that leads to no memory, and the context lives on.
            ProviderErrorKind::Poisoned if source.code != UNKNOWN => source.into(),
            ProviderErrorKind::OutOfMemory => source.into(),
            _ => ShareError::NotMemory { device: context.name(), source },
        })?;
        Self::users_of(context, handle).and_then(|users| {
            Self::mapped(context, users, handle, bytes, granularity, true).map_err(|error| match error.kind {
                // The addresses for it, or the mapping of all of it.
                ProviderErrorKind::InvalidArgument | ProviderErrorKind::Unsupported
                    if error.call != "cuMemSetAccess" =>
                {
                    ShareError::Size { bytes }
                }
                _ => error.into(),
            })
        })
    }

    /// The devices that are to have access to memory that was imported; its own first. On an error the handle is
    /// released.
    fn users_of(context: &'static Context, handle: u64) -> Result<Vec<u16>, ShareError> {
        // SAFETY: the handle was just imported.
        let found = unsafe { context.home_of(handle) }.map_err(ShareError::from).and_then(|home| {
            if home == context.device() {
                return Ok(vec![context.ordinal()]);
            }
            require_reach(context, home)?;
            Ok(vec![home as u16, context.ordinal()])
        });
        if found.is_err() {
            // SAFETY: nobody else knows the handle.
            let _ = unsafe { context.release(handle) };
        }
        found
    }

    /// Maps a handle at addresses of its own. On an error it is released.
    fn mapped(
        context: &'static Context,
        users: Vec<u16>,
        handle: u64,
        bytes: u64,
        granularity: u64,
        imported: bool,
    ) -> Result<Self, ProviderError> {
        let access: Vec<i32> = users.iter().map(|user| i32::from(*user)).collect();
        let mapped = context.reserve(bytes, granularity).and_then(|address| {
            // SAFETY: the addresses were just reserved; the driver checks the size of a handle that was imported.
            unsafe { context.map(address, bytes, handle, &access) }.map(|()| address).map_err(|failed| {
                // Addresses where something stays are lost with it.
                if !failed.stays {
                    // SAFETY: just reserved, and nothing is mapped there.
                    let _ = unsafe { context.unreserve(address, bytes) };
                }
                failed.error
            })
        });
        match mapped {
            Ok(address) => Ok(Self { context, users, handle, address, bytes, imported }),
            Err(error) => {
                // SAFETY: nobody else knows the handle.
                let _ = unsafe { context.release(handle) };
                Err(error)
            }
        }
    }

    /// A file descriptor for another process, any number of them. It keeps the memory alive; programs that are
    /// executed don't inherit it.
    ///
    /// # Errors
    /// What the driver reports, or the system where a process has too many files open.
    pub fn export(&self) -> Result<OwnedFd, ShareError> {
        // SAFETY: the handle is this one's, and can be exported.
        let file = unsafe { self.context.export(self.handle) }?;
        // The driver does not say whether its own is inherited; a copy of the standard library's is not.
        file.try_clone().map_err(|error| {
            let code = error.raw_os_error().map_or(0, i64::from);
            let failed = ProviderError::new(self.device(), "dup", ProviderErrorKind::Other, error.to_string());
            ShareError::Provider(failed.with_code(code))
        })
    }

    /// The device whose memory it is.
    pub fn device(&self) -> Device {
        Device::cuda(self.users.first().copied().unwrap_or(self.context.ordinal()))
    }

    /// Where this process has it.
    pub fn address(&self) -> Address {
        Address::new(self.address)
    }

    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it was opened here, not made.
    pub fn is_imported(&self) -> bool {
        self.imported
    }

    /// The memory as a buffer whose first use is on `stream`. Dropped, the buffer waits for the work that was declared to
    /// it, and the memory goes as it always does. All bytes count as initialised, since another process may have
    /// written them.
    ///
    /// `allocator` copies and fills it, and is where a [`resize`](buffer::Buffer::resize) past the end moves the bytes
    /// to: [`global`](crate::global), say.
    ///
    /// # Errors
    /// [`BufferError::DeviceMismatch`](buffer::BufferError::DeviceMismatch) if the allocator's memory is another
    /// device's; the memory is dropped then.
    #[cfg(feature = "buffer")]
    pub fn into_buffer(
        self,
        allocator: impl Into<alloc_core::AllocatorHandle>,
        stream: alloc_core::Stream,
    ) -> Result<buffer::Buffer, buffer::BufferError> {
        let (allocator, expected) = (allocator.into(), self.device());
        let found = allocator.device();
        if found != expected {
            return Err(buffer::BufferError::DeviceMismatch { expected, found });
        }
        let (address, bytes) = (self.address(), self.bytes);
        // SAFETY: the mapping is this one's alone in this process and lasts as long as the owner. What other processes
        // write meanwhile changes bytes that only copies of the driver read.
        let mut buffer =
            unsafe { buffer::Buffer::external(allocator, address, bytes, stream, buffer::ExternalOwner::keep(self)) };
        // SAFETY: memory of the device has some bytes or others, and the host sees copies of them only.
        unsafe { buffer.assume_init(bytes) };
        Ok(buffer)
    }
}

/// What is left of memory that was dropped.
struct Mapping {
    context: &'static Context,
    users: Vec<u16>,
    handle: u64,
    address: u64,
    bytes: u64,
}

impl Mapping {
    /// Goes once all work of the devices that have access is done, later if a capture is in the way.
    fn go(self) {
        for ordinal in &self.users {
            // A device of which nobody has the context has no work, but others may have it without this library.
            let user = match Context::in_use(*ordinal) {
                Ok(Some(user)) => user,
                Ok(None) => continue,
                Err(error) => return self.leak(&error),
            };
            match put_off::settle(user) {
                Ok(()) => {}
                Err(error) if is_of_capture(&error) => return put_off::put_off(user, move || self.go()),
                Err(error) => return self.leak(&error),
            }
        }
        if let Err(error) = self.unmap() {
            self.leak(&error);
        }
    }

    fn leak(&self, error: &ProviderError) {
        let bytes = self.bytes;
        tracing::warn!(%error, bytes, "shareable memory was leaked, since its use can't be known");
    }

    /// To be called once all work of the devices that have access is done.
    fn unmap(&self) -> Result<(), ProviderError> {
        // SAFETY: mapped by `ShareableMemory::mapped`, and unmapped here only, when no work uses it.
        unsafe { self.context.unmap(self.address, self.bytes) }?;
        // SAFETY: reserved there too, given back here only, and nothing is mapped any more.
        let unreserved = unsafe { self.context.unreserve(self.address, self.bytes) };
        // The memory goes even if its addresses don't.
        // SAFETY: the handle is this one's and released here only.
        unreserved.and(unsafe { self.context.release(self.handle) })
    }
}

impl Drop for ShareableMemory {
    fn drop(&mut self) {
        let users = std::mem::take(&mut self.users);
        Mapping { context: self.context, users, handle: self.handle, address: self.address, bytes: self.bytes }.go();
    }
}

fn require_support(context: &Context) -> Result<(), ShareError> {
    let supported =
        context.has(Attribute::VirtualMemoryManagement)? && context.has(Attribute::FileDescriptorHandles)?;
    if supported { Ok(()) } else { Err(ShareError::Unsupported { device: context.name() }) }
}

fn require_reach(peer: &Context, device: i32) -> Result<(), ShareError> {
    if peer.can_access(device)? {
        return Ok(());
    }
    Err(ShareError::Unreachable { device: Device::cuda(device as u16), peer: peer.name() })
}
