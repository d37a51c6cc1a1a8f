//! The allocator of each device, made on first use, with what the C interface asks of it beyond the contract.

use std::fmt::Debug;
use std::sync::{Mutex, OnceLock, PoisonError};

use alloc_core::{
    AllocError, Device, DeviceAllocator, DeviceKind, DeviceMemory, ProviderError, ProviderErrorKind, Snapshot, Stream,
    registry,
};
use alloc_cpu::HostOptions;
use alloc_cuda::{DeviceOptions, DeviceProvider, PinnedMethod, PinnedProvider};
use alloc_pool::{ConfigError, Pool, PoolConfig, PoolError};

use crate::failure::Failure;
use crate::index::Owner;
use crate::leaks::{self, Traced};
use crate::live::Live;
use crate::peers::{self, PeerAccess};

/// The kinds of devices, in the order of the numbers that C has for them, from 1 on.
const KINDS: [DeviceKind; 3] = [DeviceKind::CPU, DeviceKind::CUDA, DeviceKind::CUDA_PINNED];
const ORDINALS: usize = 32;
/// How much of a CUDA device is left to the driver, in bytes.
const HEADROOM: &str = "ALLOC_CUDA_HEADROOM";
/// The part of the device that this is by default: a choice, some 320 MiB of 80 GiB.
const HEADROOM_PART: u64 = 256;
/// Owners below this are the heaps of devices.
pub(crate) const HEAPS: Owner = (KINDS.len() * ORDINALS) as Owner;
/// Owners from here on are private pools. Those in between are heaps once more, for blocks that somebody has who frees them by
/// himself, and nobody else by pointer.
pub(crate) const POOLS: Owner = 2 * HEAPS;

/// What a device's allocator can be told and asked beyond the contract.
trait Controls: Debug + Send + Sync {
    fn limit(&self) -> Option<u64>;
    /// `false` if the allocator has none that can be set.
    fn set_limit(&self, limit: Option<u64>) -> bool;
    fn reset_peaks(&self) -> bool;
    fn memory(&self) -> Option<DeviceMemory>;
    /// `None` if where its memory is can't be known.
    fn snapshot(&self) -> Option<Snapshot>;
    /// Lets another CUDA device reach the memory.
    fn open_to(&self, peer: u16) -> Result<(), ProviderError>;
}

impl<P: PeerAccess> Controls for &'static Pool<P> {
    fn limit(&self) -> Option<u64> {
        Pool::limit(self)
    }
    fn set_limit(&self, limit: Option<u64>) -> bool {
        Pool::set_limit(self, limit);
        true
    }
    fn reset_peaks(&self) -> bool {
        Pool::reset_peaks(self);
        true
    }
    fn memory(&self) -> Option<DeviceMemory> {
        self.provider().memory().ok()
    }
    fn snapshot(&self) -> Option<Snapshot> {
        Some(Pool::snapshot(self))
    }
    fn open_to(&self, peer: u16) -> Result<(), ProviderError> {
        self.provider().open_to(peer)
    }
}

/// The device of an allocator that the program installed before the first call, of which no more is known.
#[derive(Debug)]
struct Installed(Device);

impl Controls for Installed {
    fn limit(&self) -> Option<u64> {
        None
    }
    fn set_limit(&self, _limit: Option<u64>) -> bool {
        false
    }
    fn reset_peaks(&self) -> bool {
        false
    }
    fn memory(&self) -> Option<DeviceMemory> {
        None
    }
    fn snapshot(&self) -> Option<Snapshot> {
        None
    }
    fn open_to(&self, _peer: u16) -> Result<(), ProviderError> {
        let name = "the program's own allocator decides who reaches its memory";
        Err(ProviderError::new(self.0, "open_to", ProviderErrorKind::Unsupported, name))
    }
}

/// A device's memory.
#[derive(Debug)]
pub(crate) struct Heap {
    pub(crate) device: Device,
    pub(crate) owner: Owner,
    pub(crate) live: Live,
    /// What is left to the device's driver.
    pub(crate) headroom: u64,
    /// The allocator once more, if it knows where its blocks come from.
    pub(crate) traced: Option<&'static Traced>,
    allocator: &'static dyn DeviceAllocator,
    controls: Box<dyn Controls>,
}

impl Heap {
    #[inline]
    pub(crate) fn allocator(&self) -> &'static dyn DeviceAllocator {
        self.allocator
    }

    /// Counts a request that failed, if memory was what it wanted.
    pub(crate) fn count_failure(&self, error: &AllocError) {
        if error.is_out_of_memory() {
            self.live.fail();
        }
    }

    /// C has 0 for no limit. One that leaves no memory is said as a byte, which leaves none either.
    pub(crate) fn limit(&self) -> Option<u64> {
        self.controls.limit().map(|limit| limit.max(1))
    }

    pub(crate) fn set_limit(&self, limit: Option<u64>) -> Result<(), Failure> {
        let foreign = Failure::Foreign { what: "the limit", device: self.device };
        self.controls.set_limit(limit).then_some(()).ok_or(foreign)
    }

    pub(crate) fn reset_peaks(&self) -> Result<(), Failure> {
        self.live.reset_peak();
        let foreign = Failure::Foreign { what: "the peaks", device: self.device };
        self.controls.reset_peaks().then_some(()).ok_or(foreign)
    }

    /// Has the allocator hold at least so many bytes, if it holds any beyond blocks in use; how many it holds.
    pub(crate) fn grow_to(&self, bytes: u64, stream: Stream) -> Result<u64, Failure> {
        let held = self.allocator.grow_to(bytes, stream);
        Ok(held.inspect_err(|error| self.count_failure(error))?)
    }

    pub(crate) fn memory(&self) -> Option<DeviceMemory> {
        self.controls.memory()
    }

    pub(crate) fn snapshot(&self) -> Option<Snapshot> {
        self.controls.snapshot()
    }

    pub(crate) fn open_to(&self, peer: u16) -> Result<(), ProviderError> {
        self.controls.open_to(peer)
    }
}

static TABLE: [OnceLock<Heap>; HEAPS as usize] = [const { OnceLock::new() }; HEAPS as usize];

/// The device that C names by two numbers.
#[inline]
pub(crate) fn device(kind: i32, ordinal: i32) -> Result<Device, Failure> {
    // Failures are made where they are needed: every call comes through here.
    let bad_kind = || Failure::InvalidArgument { what: "kind of device", value: kind.into() };
    let named = usize::try_from(kind).ok().and_then(|kind| KINDS.get(kind.checked_sub(1)?));
    let named = named.ok_or_else(bad_kind)?;
    let bad_ordinal = || Failure::InvalidArgument { what: "device number", value: ordinal.into() };
    let most = if *named == DeviceKind::CPU { 1 } else { ORDINALS };
    let ordinal = usize::try_from(ordinal).ok().filter(|ordinal| *ordinal < most).ok_or_else(bad_ordinal)?;
    Ok(Device::new(*named, ordinal as u16))
}

/// The number by which C knows the kind of a device.
#[inline]
pub(crate) fn kind_number(device: Device) -> i32 {
    KINDS.iter().position(|kind| *kind == device.kind()).map_or(0, |place| place as i32 + 1)
}

/// The number of the device's heap, which may not be made yet.
#[inline]
pub(crate) fn owner_of(device: Device) -> Owner {
    let kind = kind_number(device).max(1) as usize - 1;
    (kind * ORDINALS + usize::from(device.ordinal()) % ORDINALS) as Owner
}

/// Whether that is the number of a heap of the host's memory.
#[inline]
pub(crate) fn is_of_host(owner: Owner) -> bool {
    usize::from(owner) < ORDINALS
}

/// The device whose heap has this number, or would have it.
pub(crate) fn device_numbered(owner: Owner) -> Option<Device> {
    let (kind, ordinal) = (usize::from(owner) / ORDINALS, usize::from(owner) % ORDINALS);
    KINDS.get(kind).map(|kind| Device::new(*kind, ordinal as u16))
}

/// The heap that has this number, if it was made.
#[inline]
pub(crate) fn by_owner(owner: Owner) -> Option<&'static Heap> {
    TABLE.get(usize::from(owner))?.get()
}

/// The number of a heap for blocks that nobody frees by pointer.
pub(crate) fn lent(owner: Owner) -> Owner {
    HEAPS + owner
}

/// Whether nobody frees the blocks with this number by pointer.
pub(crate) fn is_lent(owner: Owner) -> bool {
    (HEAPS..POOLS).contains(&owner)
}

/// The heap of a device, if it was made.
#[inline]
pub(crate) fn by_device(device: Device) -> Option<&'static Heap> {
    by_owner(owner_of(device))
}

/// All heaps that were made.
pub(crate) fn all() -> impl Iterator<Item = &'static Heap> {
    TABLE.iter().filter_map(OnceLock::get)
}

/// The heap of a device.
#[inline]
pub(crate) fn heap(device: Device) -> Result<&'static Heap, Failure> {
    match by_device(device) {
        Some(heap) => Ok(heap),
        None => make(device),
    }
}

/// Whether the device, which is there, has a heap already or would get one over an allocator that is there.
pub(crate) fn is_open(device: Device) -> Result<bool, Failure> {
    if by_device(device).is_some() || registry::get(device).is_some() {
        return Ok(true);
    }
    if device.kind() != DeviceKind::CPU && device.ordinal() >= alloc_cuda::device_count()? {
        return Err(Failure::NoDevice { device });
    }
    Ok(false)
}

#[cold]
fn make(device: Device) -> Result<&'static Heap, Failure> {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let owner = owner_of(device);
    if let Some(heap) = by_owner(owner) {
        return Ok(heap);
    }
    let is_traced = leaks::wants_backtraces()?;
    let mut made = None;
    let registered = registry::get_or_try_init(device, || new_pool(device, &mut made)).map_err(AllocError::from)?;
    let ours = made.is_some() && device.kind() == DeviceKind::CUDA;
    let headroom = if ours { headroom(device)? } else { 0 };
    let (allocator, controls) = made.unwrap_or_else(|| (registered, Box::new(Installed(device))));
    let traced = is_traced.then(|| leaks::trace(allocator));
    let allocator = traced.map_or(allocator, |traced| traced);
    let heap = Heap { device, owner, live: Live::default(), headroom, traced, allocator, controls };
    peers::open_to_each_other(&heap, all());
    Ok(TABLE[usize::from(owner)].get_or_init(|| heap))
}

/// A pool of this library's own.
type Own = (&'static dyn DeviceAllocator, Box<dyn Controls>);

/// A pool that lives as long as the process, for the registry and, with all that it can do, for us.
fn new_pool(device: Device, made: &mut Option<Own>) -> Result<Box<dyn DeviceAllocator>, AllocError> {
    let config = PoolConfig::from_env().map_err(PoolError::from)?;
    match device.kind() {
        DeviceKind::CPU => {
            let options = HostOptions::from_env().map_err(PoolError::from)?;
            let pool = alloc_cpu::pool().options(options).config(config).build()?;
            Ok(keep(pool, made))
        }
        DeviceKind::CUDA => {
            let mut options = DeviceOptions::default().headroom(headroom(device)?);
            options.addressing = peers::addressing(device)?;
            let provider = DeviceProvider::new(device.ordinal(), &options)?;
            Ok(keep(Pool::new(provider, config)?, made))
        }
        _ => {
            let provider = PinnedProvider::new(device.ordinal(), PinnedMethod::default())?;
            Ok(keep(Pool::new(provider, config)?, made))
        }
    }
}

/// What is left to a CUDA device's driver. Kernels of libraries are loaded when they are first launched, and a program that
/// has filled the card would fail there, in a place where nobody expects it.
pub(crate) fn headroom(device: Device) -> Result<u64, AllocError> {
    match std::env::var(HEADROOM) {
        Ok(value) => alloc_pool::parse_bytes(&value).ok_or_else(|| {
            let error =
                ConfigError::Environment { variable: HEADROOM, value, expected: "number of bytes, such as 0 or 512M" };
            PoolError::from(error).into()
        }),
        Err(_) => Ok(alloc_cuda::device_info(device.ordinal())?.total_memory / HEADROOM_PART),
    }
}

fn keep<P: PeerAccess>(pool: Pool<P>, made: &mut Option<Own>) -> Box<dyn DeviceAllocator> {
    let pool: &'static Pool<P> = Box::leak(Box::new(pool));
    *made = Some((pool, Box::new(pool)));
    Box::new(pool)
}
