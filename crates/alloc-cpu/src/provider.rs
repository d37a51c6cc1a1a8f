//! Host memory as the pooling engine wants it: physical pages that are mapped, moved and seen at several addresses.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use alloc_core::{
    Address, AddressRange, Addressing, AllocatorEvent, Device, DeviceMemory, EventHook, MemoryProvider, ProviderError,
    Stream, Transfer,
};

use crate::backing::SharedHugePages;
use crate::capacity::{available_memory, total_memory};
use crate::store::{GRANULARITY, Store};
use crate::sys::{ReservedRange, SysError};
use crate::{FallbackReason, HostOptions, HostTransfer, HugePages, NumaPolicy, PageBacking, PageKind, Populate};

/// Host memory whose pages move: a reserved range of addresses, and physical pages from a file that lives in memory
/// (`memfd_create`), mapped wherever they are needed, also at several addresses at once. To the engine it behaves as
/// CUDA's virtual memory management does.
///
/// Every mapping of a page shows the same contents. Memory is shared with child processes that are made by `fork`
/// without `exec`: they see it, and what they write to it is seen here.
///
/// Ordinary streams of a host have no queue, so all work is complete as soon as it is submitted: no event is ever
/// recorded.
///
/// # Why not anonymous memory
/// The kernel makes huge pages of anonymous memory more readily, and `mremap` moves those at 8 us each. But a page of
/// such memory has one address at a time, and the engine leaves stale views standing that become good again without a
/// call. Pages of the file that are made huge at creation ([`Populate::OnCreate`]) serve as well: on a 2-core EPYC
/// under Linux 6.18, creating and first writing 2 MiB costs 210 us (260 with anonymous huge pages, 1,600 with ordinary
/// ones of the file), and after a move to another address the first touch costs 9 us (8 after `mremap`, 540 with
/// ordinary pages).
///
/// ```
/// use alloc_core::MemoryProvider;
/// use alloc_cpu::{HostOptions, HostProvider};
///
/// let provider = HostProvider::new(HostOptions::new().capacity_bytes(64 << 20))?;
/// let range = provider.reserve(1 << 30)?;
/// let pages = provider.create(4 << 20)?;
/// // SAFETY: the address is the reserved range's, nothing is mapped there, and the size is that of the pages.
/// unsafe { provider.map(range.start, &pages, 4 << 20)? };
/// assert_eq!(provider.memory()?.total, 64 << 20);
/// // SAFETY: nothing uses the mapping, then the pages, then the range.
/// unsafe {
///     provider.unmap(range.start, 4 << 20)?;
///     provider.release(pages, 4 << 20)?;
///     provider.unreserve(range)?;
/// }
/// # Ok::<(), alloc_core::ProviderError>(())
/// ```
#[derive(Debug)]
pub struct HostProvider {
    id: u64,
    capacity: u64,
    created: AtomicU64,
    ordinary: Store,
    hugetlb: Option<Store>,
    advise: bool,
    collapse: bool,
    populate: Populate,
    reserved: RwLock<Vec<ReservedRange>>,
    backing: Mutex<PageBacking>,
    hook: Option<Arc<dyn EventHook>>,
    transfer: HostTransfer,
}

/// A piece of physical host memory.
#[derive(Debug)]
pub struct HostPages {
    provider: u64,
    source: Source,
    offset: u64,
    bytes: u64,
}

impl HostPages {
    /// Its size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Which pages it is made of, as far as is known without asking the kernel: the provider's transparent huge
    /// pages count as ordinary ones here.
    pub fn is_hugetlb(&self) -> bool {
        self.source == Source::Hugetlb
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Ordinary,
    Hugetlb,
}

impl HostProvider {
    /// A provider with pages of its own.
    ///
    /// # Errors
    /// What `memfd_create` reports; [`Unsupported`](alloc_core::ProviderErrorKind::Unsupported) or
    /// [`InvalidArgument`](alloc_core::ProviderErrorKind::InvalidArgument) from
    /// `mbind` if the machine does not have the nodes of the memory policy, or the kernel no such policies.
    pub fn new(options: HostOptions) -> Result<Self, ProviderError> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let HostOptions { capacity_bytes, huge_pages, populate, numa, hook } = options;
        let ordinary = Store::new(c"alloc-cpu", false, &numa).map_err(host_error)?;
        let mut provider = Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            capacity: capacity_bytes.or_else(total_memory).unwrap_or(i64::MAX as u64),
            created: AtomicU64::new(0),
            ordinary,
            hugetlb: None,
            advise: false,
            collapse: false,
            populate,
            reserved: RwLock::default(),
            backing: Mutex::new(PageBacking { requested: huge_pages, actual: PageKind::Base, fallback: None }),
            hook,
            transfer: HostTransfer::shared(),
        };
        match huge_pages {
            HugePages::Off => {}
            HugePages::Transparent => provider.plan_transparent(SharedHugePages::of_this_system(), &numa),
            HugePages::Hugetlb => provider.plan_hugetlb(&numa)?,
        }
        Ok(provider)
    }

    fn plan_transparent(&mut self, system: SharedHugePages, numa: &NumaPolicy) {
        let follows_policy = *numa == NumaPolicy::Default;
        self.advise = system == SharedHugePages::Advised;
        self.collapse = self.populate != Populate::Lazy && system != SharedHugePages::Denied && follows_policy;
        let at_first_touch = matches!(system, SharedHugePages::Unasked | SharedHugePages::Advised);
        if self.collapse || at_first_touch {
            self.set_actual(PageKind::TransparentHuge);
        } else if self.populate != Populate::Lazy && !follows_policy {
            self.fall_back(FallbackReason::MemoryPolicy);
        } else {
            self.fall_back(FallbackReason::SharedMemorySetting);
        }
    }

    fn plan_hugetlb(&mut self, numa: &NumaPolicy) -> Result<(), ProviderError> {
        let store = match Store::new(c"alloc-cpu-huge", true, numa) {
            Ok(store) => store,
            Err(error) if error.call == "memfd_create" => {
                self.fall_back(FallbackReason::NoHugetlbPage { errno: error.errno });
                return Ok(());
            }
            Err(error) => return Err(host_error(error)),
        };
        // A page taken and given back shows whether the system's pool has any.
        let probe = store.take(GRANULARITY).map_err(host_error)?;
        let taken = store.file().allocate(probe, GRANULARITY);
        store.give(probe, GRANULARITY).map_err(host_error)?;
        match taken {
            Ok(()) => {
                self.hugetlb = Some(store);
                self.set_actual(PageKind::Hugetlb);
            }
            Err(error) => self.fall_back(FallbackReason::NoHugetlbPage { errno: error.errno }),
        }
        Ok(())
    }

    /// Which pages were wished for, and which serve. A fallback that becomes necessary later shows here too.
    pub fn page_backing(&self) -> PageBacking {
        *self.backing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Physical memory that the system holds for this provider at present, in bytes: what was created and has been
    /// touched or populated.
    ///
    /// # Errors
    /// What `fstat` reports.
    pub fn resident_bytes(&self) -> Result<u64, ProviderError> {
        let mut sum = 0u64;
        for store in std::iter::once(&self.ordinary).chain(&self.hugetlb) {
            sum = sum.saturating_add(store.file().resident().map_err(host_error)?);
        }
        Ok(sum)
    }

    /// Physical memory created and not yet released, in bytes, touched or not.
    pub fn created_bytes(&self) -> u64 {
        self.created.load(Ordering::Relaxed)
    }

    fn set_actual(&self, actual: PageKind) {
        self.backing.lock().unwrap_or_else(PoisonError::into_inner).actual = actual;
    }

    /// Ordinary pages serve from now on, or for once; said the first time.
    fn fall_back(&self, reason: FallbackReason) {
        let wish = {
            let mut backing = self.backing.lock().unwrap_or_else(PoisonError::into_inner);
            if backing.fallback.is_some() {
                return;
            }
            backing.fallback = Some(reason);
            backing.actual = PageKind::Base;
            backing.requested
        };
        let instead = PageKind::Base.name();
        let wish = match wish {
            HugePages::Off => return,
            HugePages::Transparent => {
                // The default wish, which most systems refuse: worth knowing, no cause for alarm.
                tracing::debug!(%reason, instead, "no transparent huge pages for host memory");
                PageKind::TransparentHuge.name()
            }
            HugePages::Hugetlb => {
                tracing::warn!(%reason, instead, "no hugetlb pages for host memory");
                PageKind::Hugetlb.name()
            }
        };
        if let Some(hook) = &self.hook {
            hook.on_event(Device::CPU, &AllocatorEvent::Fallback { wish, instead });
        }
    }

    fn store(&self, source: Source) -> &Store {
        match (source, &self.hugetlb) {
            (Source::Hugetlb, Some(store)) => store,
            _ => &self.ordinary,
        }
    }

    fn charge(&self, bytes: u64) -> Result<(), ProviderError> {
        let charged = self.created.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |created| {
            created.checked_add(bytes).filter(|&sum| sum <= self.capacity)
        });
        charged.map(drop).map_err(|_| host_error(SysError { call: "create", errno: libc::ENOMEM }))
    }

    fn create_hugetlb(&self, bytes: u64) -> Option<u64> {
        let store = self.hugetlb.as_ref()?;
        let taken = store.take(bytes).and_then(|offset| {
            store.file().allocate(offset, bytes).map(|()| offset).inspect_err(|_| {
                // What of it is not given back is found again by whoever takes the range next.
                let _ = store.give(offset, bytes);
            })
        });
        taken.inspect_err(|error| self.fall_back(FallbackReason::NoHugetlbPage { errno: error.errno })).ok()
    }

    fn create_ordinary(&self, bytes: u64) -> Result<u64, SysError> {
        let offset = self.ordinary.take(bytes)?;
        if self.populate == Populate::Lazy {
            return Ok(offset);
        }
        if self.collapse
            && let Err(SysError { call, errno }) = self.ordinary.collapse(offset, bytes)
        {
            self.fall_back(FallbackReason::KernelRefused { call, errno });
        }
        // Where all pages are huge ones by now, this finds nothing to do.
        match self.ordinary.file().allocate(offset, bytes) {
            Ok(()) => Ok(offset),
            Err(error) => {
                let _ = self.ordinary.give(offset, bytes);
                Err(error)
            }
        }
    }

    /// Runs `work` on the reserved range that a mapping lies in; refuses one that lies in none.
    fn with_range<R>(
        &self,
        call: &'static str,
        at: Address,
        bytes: u64,
        work: impl FnOnce(&ReservedRange) -> Result<R, SysError>,
    ) -> Result<R, ProviderError> {
        if !at.is_aligned_to(GRANULARITY) || !is_whole(bytes) {
            return Err(invalid(call));
        }
        let reserved = self.reserved.read().unwrap_or_else(PoisonError::into_inner);
        let range = reserved.iter().find(|range| range.contains(at.get(), bytes)).ok_or_else(|| invalid(call))?;
        work(range).map_err(host_error)
    }
}

fn is_whole(bytes: u64) -> bool {
    bytes != 0 && bytes.is_multiple_of(GRANULARITY)
}

fn host_error(error: SysError) -> ProviderError {
    error.into_provider_error(Device::CPU)
}

fn invalid(call: &'static str) -> ProviderError {
    host_error(SysError { call, errno: libc::EINVAL })
}

// SAFETY: ranges are reserved from the kernel, and stay so until they are given back; pieces of a file in memory are apart
// and mapped where asked, only in a reserved range; a host's work is complete when it is submitted.
unsafe impl MemoryProvider for HostProvider {
    type Physical = HostPages;
    type Event = Infallible;

    fn device(&self) -> Device {
        Device::CPU
    }

    fn addressing(&self) -> Addressing {
        Addressing::Mapped
    }

    fn granularity(&self) -> u64 {
        GRANULARITY
    }

    fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        let left = self.capacity.saturating_sub(self.created_bytes());
        Ok(DeviceMemory { free: available_memory().map_or(left, |free| free.min(left)), total: self.capacity })
    }

    fn reserve(&self, bytes: u64) -> Result<AddressRange, ProviderError> {
        if !is_whole(bytes) {
            return Err(invalid("reserve"));
        }
        let range = ReservedRange::new(bytes, GRANULARITY).map_err(host_error)?;
        let start = Address::new(range.start());
        self.reserved.write().unwrap_or_else(PoisonError::into_inner).push(range);
        Ok(AddressRange { start, bytes })
    }

    unsafe fn unreserve(&self, range: AddressRange) -> Result<(), ProviderError> {
        let is_it = |known: &ReservedRange| known.start() == range.start.get() && known.bytes() == range.bytes;
        let known = {
            let mut reserved = self.reserved.write().unwrap_or_else(PoisonError::into_inner);
            reserved.iter().position(is_it).map(|index| reserved.swap_remove(index))
        };
        known.ok_or_else(|| invalid("unreserve"))?.close().map_err(host_error)
    }

    fn create(&self, bytes: u64) -> Result<HostPages, ProviderError> {
        if !is_whole(bytes) {
            return Err(invalid("create"));
        }
        self.charge(bytes)?;
        let (source, offset) = match self.create_hugetlb(bytes) {
            Some(offset) => (Source::Hugetlb, offset),
            None => match self.create_ordinary(bytes) {
                Ok(offset) => (Source::Ordinary, offset),
                Err(error) => {
                    self.created.fetch_sub(bytes, Ordering::Relaxed);
                    return Err(host_error(error));
                }
            },
        };
        Ok(HostPages { provider: self.id, source, offset, bytes })
    }

    unsafe fn release(&self, physical: HostPages, bytes: u64) -> Result<(), ProviderError> {
        if physical.provider != self.id || physical.bytes != bytes {
            return Err(invalid("release"));
        }
        let given = self.store(physical.source).give(physical.offset, bytes);
        self.created.fetch_sub(bytes, Ordering::Relaxed);
        given.map_err(host_error)
    }

    unsafe fn map(&self, at: Address, physical: &HostPages, bytes: u64) -> Result<(), ProviderError> {
        if physical.provider != self.id || physical.bytes != bytes {
            return Err(invalid("map"));
        }
        let file = self.store(physical.source).file();
        let populate = self.populate == Populate::OnMap;
        let advise = self.advise && physical.source == Source::Ordinary;
        let advised = self.with_range("map", at, bytes, |range| {
            range.map(at.get(), bytes, file, physical.offset, populate)?;
            Ok(if advise { range.advise_huge(at.get(), bytes) } else { Ok(()) })
        })?;
        if let Err(SysError { call, errno }) = advised {
            self.fall_back(FallbackReason::KernelRefused { call, errno });
        }
        Ok(())
    }

    unsafe fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError> {
        self.with_range("unmap", at, bytes, |range| range.unmap(at.get(), bytes))
    }

    /// Pages have no address of their own: the offset in their file, as a number.
    fn segment_address(&self, physical: &HostPages) -> Address {
        Address::new(physical.offset)
    }

    fn record(&self, _stream: Stream) -> Result<Option<Infallible>, ProviderError> {
        Ok(None)
    }

    fn is_complete(&self, event: &Infallible) -> Result<bool, ProviderError> {
        match *event {}
    }

    fn make_wait(&self, _stream: Stream, event: &Infallible) -> Result<(), ProviderError> {
        match *event {}
    }

    fn synchronize(&self, event: &Infallible) -> Result<(), ProviderError> {
        match *event {}
    }

    fn transfer(&self) -> &dyn Transfer {
        &self.transfer
    }
}
