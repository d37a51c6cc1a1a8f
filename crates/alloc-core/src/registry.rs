//! The allocators of this process: one for each device, made on first use.
//!
//! Backends put their process-wide allocator here ([`get_or_try_init`]); a program that wants another for a device
//! [`install`]s it before the first use. An allocator that is registered lives as long as the process, so
//! [`AllocatorHandle::Global`](crate::AllocatorHandle::Global) refers to it without a reference count.
//!
//! Looking one up takes no lock and writes no shared memory.
//!
//! ```
//! use alloc_core::registry::{self, InitError};
//! use alloc_core::{AllocError, AllocatorHandle, Device, SimulatedAllocator};
//!
//! let device = Device::cuda(7).simulated();
//! assert!(registry::get(device).is_none());
//! let made = registry::get_or_try_init(device, || {
//!     Ok::<_, AllocError>(Box::new(SimulatedAllocator::new(device, 1 << 30)))
//! })?;
//! let found = registry::get(device).expect("it was made above");
//! assert!(std::ptr::eq(made, found));
//! let handle = AllocatorHandle::from(found);
//! assert_eq!(handle.device(), device);
//! # Ok::<(), InitError<AllocError>>(())
//! ```

use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::ThreadId;

use thiserror::Error;

use crate::{AllocError, Device, DeviceAllocator, DeviceKind, ProviderError, ProviderErrorKind};

static REGISTRY: Registry = Registry::new();

/// The allocator of a device, if there is one yet.
pub fn get(device: Device) -> Option<&'static dyn DeviceAllocator> {
    REGISTRY.get(device)
}

/// The allocator of a device; made by `make` if there is none yet.
///
/// Of several threads that come at once, one makes it and the others wait for that. If it fails, or panics, nothing
/// is registered, and the next of those that wait tries with its own `make`. `make` may use the registry for other
/// devices. (Two threads whose `make`s wait for each other's device would wait for ever: let the dependence point
/// one way, as that of pinned memory on the host's does.)
///
/// # Errors
/// [`InitError`]: `make` failed, made an allocator of another device, or asked for the very device that it is making.
pub fn get_or_try_init<E>(
    device: Device,
    make: impl FnOnce() -> Result<Box<dyn DeviceAllocator>, E>,
) -> Result<&'static dyn DeviceAllocator, InitError<E>> {
    REGISTRY.get_or_try_init(device, make)
}

/// Makes `allocator` the one of `device`, before anyone has used another.
///
/// To wrap the usual allocator of a backend, make one, wrap it in an [adaptor](crate::adaptor), and install that.
///
/// # Errors
/// [`InstallError`] with the allocator in it, if there is one already or it is of another device.
pub fn install(device: Device, allocator: Box<dyn DeviceAllocator>) -> Result<(), InstallError> {
    REGISTRY.install(device, allocator)
}

/// All allocators registered so far: CPU, CUDA and pinned memory by ordinal, then other kinds in the order of their
/// first mention.
pub fn all() -> Vec<&'static dyn DeviceAllocator> {
    REGISTRY.all()
}

/// No allocator could be had.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InitError<E> {
    /// Making it failed.
    #[error(transparent)]
    Make(E),
    /// What was made hands out memory of another device.
    #[error("an allocator of {made} was made for {device}")]
    WrongDevice {
        /// The device that was asked for.
        device: Device,
        /// The device of what was made.
        made: Device,
    },
    /// The making of a device's allocator asked for that same allocator.
    #[error("making the allocator of {device} asked for it")]
    Recursive {
        /// The device.
        device: Device,
    },
}

/// For backends whose own functions return [`AllocError`]: what is not an error of `make` is a defect of the backend,
/// and becomes a [`ProviderError`] of the kind [`InvalidArgument`](ProviderErrorKind::InvalidArgument).
impl From<InitError<AllocError>> for AllocError {
    fn from(error: InitError<AllocError>) -> Self {
        let name = error.to_string().into();
        let device = match error {
            InitError::Make(error) => return error,
            InitError::WrongDevice { device, .. } | InitError::Recursive { device } => device,
        };
        let kind = ProviderErrorKind::InvalidArgument;
        ProviderError { device, call: "registry::get_or_try_init", code: 0, name, kind }.into()
    }
}

/// An allocator that was not installed. It is handed back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum InstallError {
    /// The device has one already, and someone may hold it.
    #[error("{device} has an allocator already")]
    AlreadyInstalled {
        /// The device.
        device: Device,
        /// What was to be installed.
        rejected: Box<dyn DeviceAllocator>,
    },
    /// It hands out memory of another device.
    #[error("an allocator of {} can't be installed for {device}", .rejected.device())]
    WrongDevice {
        /// The device that it was to be installed for.
        device: Device,
        /// What was to be installed.
        rejected: Box<dyn DeviceAllocator>,
    },
    /// This thread is making the device's allocator at this moment.
    #[error("the allocator of {device} is being made")]
    BeingMade {
        /// The device.
        device: Device,
        /// What was to be installed.
        rejected: Box<dyn DeviceAllocator>,
    },
}

/// The kinds of devices whose slots are found by their codes, which follow one another.
const KINDS: [DeviceKind; 3] = [DeviceKind::CPU, DeviceKind::CUDA, DeviceKind::CUDA_PINNED];
const ORDINALS: usize = 32;

struct Registry {
    usual: [[Slot; ORDINALS]; KINDS.len()],
    /// A list that only grows, so it is read without a lock. It is short: devices of other kinds are few.
    others: OnceLock<Box<Node>>,
}

struct Node {
    device: Device,
    slot: Slot,
    next: OnceLock<Box<Node>>,
}

impl Registry {
    const fn new() -> Self {
        Self { usual: [const { [const { Slot::new() }; ORDINALS] }; KINDS.len()], others: OnceLock::new() }
    }

    fn usual_slot(&self, device: Device) -> Option<&Slot> {
        let kind = usize::from(device.kind().code()).checked_sub(usize::from(KINDS[0].code()))?;
        if *KINDS.get(kind)? != device.kind() {
            return None;
        }
        self.usual.get(kind)?.get(usize::from(device.ordinal()))
    }

    fn get(&self, device: Device) -> Option<&'static dyn DeviceAllocator> {
        match self.usual_slot(device) {
            Some(slot) => slot.get(),
            None => self.nodes().find(|node| node.device == device)?.slot.get(),
        }
    }

    fn nodes(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(self.others.get(), |node| node.next.get()).map(|node| &**node)
    }

    fn slot(&self, device: Device) -> &Slot {
        if let Some(slot) = self.usual_slot(device) {
            return slot;
        }
        let mut link = &self.others;
        loop {
            let node = link.get_or_init(|| Box::new(Node { device, slot: Slot::new(), next: OnceLock::new() }));
            if node.device == device {
                return &node.slot;
            }
            link = &node.next;
        }
    }

    fn get_or_try_init<E>(
        &self,
        device: Device,
        make: impl FnOnce() -> Result<Box<dyn DeviceAllocator>, E>,
    ) -> Result<&'static dyn DeviceAllocator, InitError<E>> {
        if let Some(allocator) = self.get(device) {
            return Ok(allocator);
        }
        match self.slot(device).claim() {
            Claim::Filled(allocator) => Ok(allocator),
            Claim::Recursive => Err(InitError::Recursive { device }),
            Claim::Ours(claimed) => {
                let allocator = make().map_err(InitError::Make)?;
                let made = allocator.device();
                if made != device {
                    return Err(InitError::WrongDevice { device, made });
                }
                tracing::debug!(%device, "made the allocator of this process");
                Ok(claimed.fill(allocator))
            }
        }
    }

    fn install(&self, device: Device, allocator: Box<dyn DeviceAllocator>) -> Result<(), InstallError> {
        if allocator.device() != device {
            return Err(InstallError::WrongDevice { device, rejected: allocator });
        }
        match self.slot(device).claim() {
            Claim::Filled(_) => Err(InstallError::AlreadyInstalled { device, rejected: allocator }),
            Claim::Recursive => Err(InstallError::BeingMade { device, rejected: allocator }),
            Claim::Ours(claimed) => {
                claimed.fill(allocator);
                Ok(())
            }
        }
    }

    fn all(&self) -> Vec<&'static dyn DeviceAllocator> {
        let usual = self.usual.iter().flatten();
        usual.chain(self.nodes().map(|node| &node.slot)).filter_map(Slot::get).collect()
    }
}

/// The place of one device's allocator.
struct Slot {
    allocator: OnceLock<&'static dyn DeviceAllocator>,
    /// Who is making it. Not a lock held while it is made: the maker must be told from those who wait.
    maker: Mutex<Option<ThreadId>>,
    settled: Condvar,
}

enum Claim<'a> {
    Filled(&'static dyn DeviceAllocator),
    Ours(Claimed<'a>),
    Recursive,
}

/// The right to fill a slot; given up when dropped.
struct Claimed<'a>(&'a Slot);

impl Slot {
    const fn new() -> Self {
        Self { allocator: OnceLock::new(), maker: Mutex::new(None), settled: Condvar::new() }
    }

    fn get(&self) -> Option<&'static dyn DeviceAllocator> {
        self.allocator.get().copied()
    }

    fn maker(&self) -> MutexGuard<'_, Option<ThreadId>> {
        self.maker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while another thread is at it.
    fn claim(&self) -> Claim<'_> {
        let me = std::thread::current().id();
        let mut maker = self.maker();
        loop {
            if let Some(allocator) = self.get() {
                return Claim::Filled(allocator);
            }
            match *maker {
                None => {
                    *maker = Some(me);
                    return Claim::Ours(Claimed(self));
                }
                Some(thread) if thread == me => return Claim::Recursive,
                Some(_) => maker = self.settled.wait(maker).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

impl Claimed<'_> {
    /// Leaks the allocator: it is to live as long as the process.
    fn fill(self, allocator: Box<dyn DeviceAllocator>) -> &'static dyn DeviceAllocator {
        // Nobody else fills the slot while it is claimed, and it was empty when it was.
        *self.0.allocator.get_or_init(|| Box::leak(allocator))
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        *self.0.maker() = None;
        self.0.settled.notify_all();
    }
}

#[cfg(test)]
mod tests;
