//! Device memory: mapped pages where the device can, segments of `cuMemAlloc` where it can't.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::{
    Address, AddressRange, Addressing, Device, DeviceMemory, MemoryProvider, ProviderError, ProviderErrorKind, Stream,
    Transfer,
};

use super::access::Access;
use crate::driver::context::Attribute;
use crate::driver::memory::{Abilities, NotMapped};
use crate::driver::{Context, Event};
use crate::transfer::CudaTransfer;

/// The unit of segments: what the driver itself takes from the device for small allocations.
const SEGMENT_GRANULARITY: u64 = 2 << 20;

/// What to make of a device's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceOptions {
    /// [`Addressing::Mapped`] for pages that can be moved (virtual memory management), [`Addressing::Segmented`] for
    /// `cuMemAlloc`, `None` for the first if the device has it and else the second.
    pub addressing: Option<Addressing>,
    /// Ordinals of other devices whose kernels and copies are to reach the memory directly, from the beginning;
    /// [`DeviceProvider::open_to`] adds more later.
    pub peers: Vec<u16>,
    /// Bytes of the device to leave free for the driver, which needs memory of its own when a kernel is first launched
    /// or needs more local memory than any before. Default: 0.
    pub headroom: u64,
    /// Whether pages can be handed to other processes by file descriptor, as libraries do that register memory for
    /// direct exchange between processes (NCCL). Segments always can, by the driver's older way. Default: no.
    pub shareable: bool,
}

impl DeviceOptions {
    /// Forces one kind of addressing.
    #[must_use]
    pub fn addressing(mut self, addressing: Addressing) -> Self {
        self.addressing = Some(addressing);
        self
    }

    /// Gives other devices access.
    #[must_use]
    pub fn peers(mut self, peers: impl IntoIterator<Item = u16>) -> Self {
        self.peers = peers.into_iter().collect();
        self
    }

    /// Makes pages that can be handed to other processes.
    #[must_use]
    pub fn shareable(mut self, shareable: bool) -> Self {
        self.shareable = shareable;
        self
    }

    /// Leaves bytes of the device to the driver.
    #[must_use]
    pub fn headroom(mut self, bytes: u64) -> Self {
        self.headroom = bytes;
        self
    }
}

/// A piece of device memory: a physical handle, or a segment.
#[derive(Debug)]
pub struct Physical {
    /// The handle, or the address that the driver gave.
    base: u64,
    /// Where the segment starts: a multiple of the granularity.
    start: u64,
}

/// The memory of one CUDA device, for [`alloc_pool::Pool`].
///
/// ```
/// use alloc_core::{Addressing, MemoryProvider};
/// use alloc_cuda::{DeviceOptions, DeviceProvider};
///
/// if alloc_cuda::is_available() {
///     let provider = DeviceProvider::new(0, &DeviceOptions::default().addressing(Addressing::Segmented))?;
///     assert_eq!(provider.addressing(), Addressing::Segmented);
/// }
/// # Ok::<(), alloc_core::ProviderError>(())
/// ```
#[derive(Debug)]
pub struct DeviceProvider {
    context: &'static Context,
    transfer: &'static CudaTransfer,
    addressing: Addressing,
    granularity: u64,
    abilities: Abilities,
    access: Mutex<Access>,
    headroom: u64,
    /// Bytes that may be taken before the device is asked again how much is free.
    unasked: AtomicU64,
}

impl DeviceProvider {
    /// The memory of the device `ordinal`.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unavailable`] without CUDA, a driver or such a device;
    /// [`ProviderErrorKind::Unsupported`] where virtual memory management, the access of a peer or shareable pages are
    /// asked for and the device can't; else what the driver reports.
    pub fn new(ordinal: u16, options: &DeviceOptions) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        let can_map = context.has(Attribute::VirtualMemoryManagement)?;
        let addressing = match options.addressing {
            Some(Addressing::Mapped) if !can_map => {
                return Err(unsupported(context, "cuMemCreate", "the device has no virtual memory management"));
            }
            Some(wanted) => wanted,
            None if can_map => Addressing::Mapped,
            None => Addressing::Segmented,
        };
        let mapped = addressing == Addressing::Mapped;
        let shareable = mapped && options.shareable;
        if shareable && !context.has(Attribute::FileDescriptorHandles)? {
            return Err(unsupported(context, "cuMemCreate", "memory can't be handed to other processes"));
        }
        let abilities = Abilities { rdma: mapped && context.has(Attribute::RdmaWithVirtualMemory)?, shareable };
        let granularity = if mapped { context.granularity(abilities)? } else { SEGMENT_GRANULARITY };
        let transfer = CudaTransfer::of(ordinal)?;
        let (headroom, unasked) = (options.headroom, AtomicU64::new(0));
        let access = Mutex::new(Access::of(context.device()));
        let provider = Self { context, transfer, addressing, granularity, abilities, access, headroom, unasked };
        options.peers.iter().try_for_each(|peer| provider.open_to(*peer))?;
        Ok(provider)
    }

    /// From now on kernels and copies of the device `peer` reach the memory directly: what there is, whether in use or
    /// not, and what is made later, whose making then takes the driver about as long again. Does nothing if they do
    /// already.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unsupported`] if the peer can't reach the device;
    /// [`ProviderErrorKind::Unavailable`] without such a device; else what the driver reports. Then memory made later is
    /// closed to the peer as before.
    ///
    /// ```
    /// use alloc_cuda::{DeviceOptions, DeviceProvider};
    ///
    /// if alloc_cuda::device_count().is_ok_and(|count| count > 1) && alloc_cuda::can_access_peer(1, 0)? {
    ///     let provider = DeviceProvider::new(0, &DeviceOptions::default())?;
    ///     provider.open_to(1)?;
    /// }
    /// # Ok::<(), alloc_core::ProviderError>(())
    /// ```
    pub fn open_to(&self, peer: u16) -> Result<(), ProviderError> {
        let peer = Context::open(peer)?;
        let mut access = self.lock_access();
        if access.includes(peer.device()) {
            return Ok(());
        }
        if !peer.can_access(self.context.device())? {
            return Err(unsupported(self.context, "cuDeviceCanAccessPeer", "the peer can't reach the device"));
        }
        if self.addressing == Addressing::Segmented {
            peer.enable_access_to(self.context)?;
        }
        access.open_views(peer.device(), |at, bytes, devices| {
            // SAFETY: a view stays mapped until `unmap` has taken it out of the list, which the lock keeps it from.
            unsafe { self.context.set_access(at, bytes, devices) }
        })
    }

    fn lock_access(&self) -> MutexGuard<'_, Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes away what remains mapped in a range that is to be used again.
    fn clear(&self, access: &mut Access, address: u64, bytes: u64) -> Result<(), ProviderError> {
        access.clear(address, bytes, |address, bytes| {
            // SAFETY: one mapping of ours that could not be opened, so nobody has used it.
            unsafe { self.context.unmap(address, bytes) }
        })
    }

    /// Refuses what would leave the device less than the headroom. The device is asked when half of what it could spare
    /// has been taken, so seldom; what other processes take in the meantime is noticed late.
    fn keep_headroom(&self, bytes: u64) -> Result<(), ProviderError> {
        let within = |unasked: u64| unasked.checked_sub(bytes);
        if self.headroom == 0 || self.unasked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok() {
            return Ok(());
        }
        let spare = self.context.memory()?.free.saturating_sub(self.headroom);
        match spare.checked_sub(bytes) {
            Some(rest) => {
                self.unasked.store(rest / 2, Ordering::Relaxed);
                Ok(())
            }
            None => {
                let (device, kind) = (self.context.name(), ProviderErrorKind::OutOfMemory);
                let name = "what is free is left to the driver";
                Err(ProviderError::new(device, "cuMemGetInfo", kind, name).with_code(2))
            }
        }
    }

    /// A segment that starts at a multiple of the granularity, as blocks of large alignment need. The driver promises
    /// 256 bytes, but gives large segments the alignment of its pages.
    fn create_segment(&self, bytes: u64) -> Result<Physical, ProviderError> {
        let base = self.context.allocate(bytes)?;
        if base.is_multiple_of(self.granularity) {
            return Ok(Physical { base, start: base });
        }
        // SAFETY: the segment was just allocated, and nobody has used it.
        unsafe { self.context.free(base) }?;
        let base = self.context.allocate(bytes.saturating_add(self.granularity))?;
        Ok(Physical { base, start: base.next_multiple_of(self.granularity) })
    }

    /// Whether network cards and other devices on the bus can reach the memory (GPUDirect RDMA). Segments always can
    /// where the device can.
    pub fn is_rdma_capable(&self) -> bool {
        self.abilities.rdma
    }
}

fn unsupported(context: &Context, call: &'static str, name: &'static str) -> ProviderError {
    ProviderError::new(context.name(), call, ProviderErrorKind::Unsupported, name).with_code(801)
}

// SAFETY: ranges, memory and mappings are the driver's, given out once and readable and writable by the device; a segment
// starts at a multiple of the granularity; events are the driver's, recorded behind the work of the stream.
unsafe impl MemoryProvider for DeviceProvider {
    type Physical = Physical;
    type Event = Event;

    fn device(&self) -> Device {
        self.context.name()
    }

    fn addressing(&self) -> Addressing {
        self.addressing
    }

    fn granularity(&self) -> u64 {
        self.granularity
    }

    fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        self.context.memory()
    }

    fn reserve(&self, bytes: u64) -> Result<AddressRange, ProviderError> {
        self.context.reserve(bytes, self.granularity).map(|start| AddressRange { start: Address::new(start), bytes })
    }

    unsafe fn unreserve(&self, range: AddressRange) -> Result<(), ProviderError> {
        self.clear(&mut self.lock_access(), range.start.get(), range.bytes)?;
        // SAFETY: the caller's promise is the one asked for, and nothing remains there.
        unsafe { self.context.unreserve(range.start.get(), range.bytes) }
    }

    fn create(&self, bytes: u64) -> Result<Physical, ProviderError> {
        self.keep_headroom(bytes)?;
        match self.addressing {
            Addressing::Mapped => self.context.create(bytes, self.abilities).map(|base| Physical { base, start: 0 }),
            Addressing::Segmented => self.create_segment(bytes),
        }
    }

    unsafe fn release(&self, physical: Physical, _bytes: u64) -> Result<(), ProviderError> {
        match self.addressing {
            // SAFETY: it came from `create`, the caller says, and is consumed.
            Addressing::Mapped => unsafe { self.context.release(physical.base) },
            // SAFETY: as above; no work uses the segment.
            Addressing::Segmented => unsafe { self.context.free(physical.base) },
        }
    }

    unsafe fn map(&self, at: Address, physical: &Physical, bytes: u64) -> Result<(), ProviderError> {
        // Locked until the view is in the list, lest a peer that comes in between misses it.
        let mut access = self.lock_access();
        self.clear(&mut access, at.get(), bytes)?;
        // SAFETY: the caller's promise is the one asked for, and nothing remains there.
        match unsafe { self.context.map(at.get(), bytes, physical.base, access.devices()) } {
            Ok(()) => {
                access.add_view(at.get(), bytes);
                Ok(())
            }
            Err(NotMapped { error, stays }) => {
                if stays {
                    access.add_remains(at.get(), bytes);
                }
                Err(error)
            }
        }
    }

    unsafe fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError> {
        let mut access = self.lock_access();
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.context.unmap(at.get(), bytes) }?;
        access.remove_view(at.get());
        Ok(())
    }

    fn segment_address(&self, physical: &Physical) -> Address {
        Address::new(physical.start)
    }

    work_of_a_context!();
}
