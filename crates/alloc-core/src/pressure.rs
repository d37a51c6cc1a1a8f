//! What can be freed when a device runs out of memory: idle memory of other pools, and what the program gives up.
//!
//! A pool [`register`]s what it can give back. When another pool of the same device runs out, it calls [`relieve`]
//! first, and [`call_back`] if that is not enough: functions of the program ([`on_pressure`]) that may release
//! blocks. After each the pool asks the device again.
//!
//! No lock is held while others are called, so they may allocate, release, register and unregister. Whoever calls
//! must hold no lock either that those who are called might want.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use alloc_core::pressure::{self, Relieve};
//! use alloc_core::Device;
//!
//! struct Idle(Mutex<u64>);
//! impl Relieve for Idle {
//!     fn relieve(&self, bytes: u64) -> u64 {
//!         let mut idle = self.0.lock().unwrap();
//!         let given = bytes.min(*idle);
//!         *idle -= given;
//!         given
//!     }
//! }
//!
//! let device = Device::cuda(5);
//! let (one, other) = (Arc::new(Idle(Mutex::new(100))), Arc::new(Idle(Mutex::new(1000))));
//! let asking = pressure::register(device, Arc::downgrade(&one) as _);
//! let _registered = pressure::register(device, Arc::downgrade(&other) as _);
//! assert_eq!(pressure::relieve(device, 700, Some(asking.id())), 700);
//! assert_eq!((*one.0.lock().unwrap(), *other.0.lock().unwrap()), (100, 300));
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::reentrancy::{Entered, next_id};
use crate::{Device, OutOfMemory};

/// Gives idle memory back to its device on request.
pub trait Relieve: Send + Sync {
    /// Gives at least `bytes` bytes of physical memory back to the device if it can, and returns how many it gave.
    /// Called from any thread, while some other pool is out of memory.
    fn relieve(&self, bytes: u64) -> u64;
}

/// Names a registered [`Relieve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RelieverId(u64);

/// Keeps a [`Relieve`] registered until dropped. A call that has begun in another thread may outlast that.
#[derive(Debug)]
#[must_use = "dropping it takes the registration back"]
pub struct Registration {
    id: RelieverId,
}

/// Keeps a callback registered until dropped. A call that has begun in another thread may outlast that.
/// `std::mem::forget` keeps it registered as long as the process lives.
#[derive(Debug)]
#[must_use = "dropping it takes the callback back"]
pub struct CallbackGuard {
    id: u64,
}

type Callback = dyn Fn(&OutOfMemory) -> bool + Send + Sync;

struct Entry<T> {
    id: u64,
    device: Device,
    called: T,
}

/// What is registered, oldest first.
struct List<T>(Mutex<Vec<Entry<T>>>);

static RELIEVERS: List<Weak<dyn Relieve>> = List::new();
static CALLBACKS: List<Arc<Callback>> = List::new();

impl<T: Clone> List<T> {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&self, device: Device, called: T) -> u64 {
        let id = next_id();
        self.entries().push(Entry { id, device, called });
        id
    }

    fn remove(&self, id: u64) {
        let removed = {
            let mut entries = self.entries();
            entries.iter().position(|entry| entry.id == id).map(|at| entries.remove(at))
        };
        // Outside of the lock: what a callback has captured may use this module as it is dropped.
        drop(removed);
    }

    /// Copies, so that the lock is not held while they are called.
    fn of(&self, device: Device) -> Vec<(u64, T)> {
        let entries = self.entries();
        entries.iter().filter(|entry| entry.device == device).map(|entry| (entry.id, entry.called.clone())).collect()
    }
}

/// Registers what a pool of `device` can give back, until the registration or the pool is dropped.
///
/// The weak reference may be one that `Arc::new_cyclic` lends, so a pool can hold its own registration.
pub fn register(device: Device, reliever: Weak<dyn Relieve>) -> Registration {
    Registration { id: RelieverId(RELIEVERS.insert(device, reliever)) }
}

/// Asks the pools of `device`, other than the `asking` one, to give memory back until `bytes` are freed, and returns
/// the bytes freed: 0 if there was nothing, and perhaps more than asked for.
///
/// The asking pool is also left out where it asks from within another's [`Relieve::relieve`] on the same thread.
pub fn relieve(device: Device, bytes: u64, asking: Option<RelieverId>) -> u64 {
    let _asking = asking.map(|asking| Entered::enter(asking.0));
    let mut freed = 0u64;
    for (id, reliever) in RELIEVERS.of(device) {
        if freed >= bytes {
            break;
        }
        let Some(reliever) = reliever.upgrade() else { continue };
        let Some(_entered) = Entered::enter(id) else { continue };
        freed = freed.saturating_add(reliever.relieve(bytes - freed));
    }
    if freed > 0 {
        tracing::debug!(%device, wanted = bytes, freed, "other pools gave memory back");
    }
    freed
}

/// Registers a function that is called when an allocator of `device` has no memory left, and nothing idle could be
/// given back. It returns whether it freed something, upon which the allocator tries again, and asks again if that
/// fails.
///
/// It runs in the thread that asked for memory, and may release to and allocate from any allocator. It is not called
/// again from within itself: what it can't allocate fails at once.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
/// use alloc_core::{Device, OutOfMemory, pressure};
///
/// static CACHE_DROPPED: AtomicBool = AtomicBool::new(false);
/// let device = Device::cuda(6);
/// let guard = pressure::on_pressure(device, |error| {
///     println!("{} bytes wanted on {}", error.requested, error.device);
///     !CACHE_DROPPED.swap(true, Ordering::Relaxed)
/// });
/// // What an allocator does:
/// let error = OutOfMemory::new(device, 10);
/// assert!(pressure::call_back(&error));
/// assert!(!pressure::call_back(&error));
/// ```
pub fn on_pressure(device: Device, callback: impl Fn(&OutOfMemory) -> bool + Send + Sync + 'static) -> CallbackGuard {
    CallbackGuard { id: CALLBACKS.insert(device, Arc::new(callback)) }
}

/// Calls the functions that were registered for `error.device`, in the order of registration; returns whether any of
/// them freed something. All are called, so that each has its share.
///
/// For allocators: ask while this returns `true`, but not for ever, for a callback may promise in vain.
pub fn call_back(error: &OutOfMemory) -> bool {
    let mut freed = false;
    for (id, callback) in CALLBACKS.of(error.device) {
        let Some(_entered) = Entered::enter(id) else { continue };
        freed |= callback(error);
    }
    freed
}

impl Registration {
    /// The name by which the pool is left out when it asks itself.
    pub const fn id(&self) -> RelieverId {
        self.id
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        RELIEVERS.remove(self.id.0);
    }
}

impl Drop for CallbackGuard {
    fn drop(&mut self) {
        CALLBACKS.remove(self.id);
    }
}

impl fmt::Display for RelieverId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// The tests share the process-wide lists, so each uses a device of its own.
    fn device(ordinal: u16) -> Device {
        Device::new(crate::DeviceKind::new(900, false), ordinal)
    }

    fn error(device: Device) -> OutOfMemory {
        OutOfMemory {
            device,
            requested: 100,
            in_use: 1,
            reserved: 2,
            largest_free: 3,
            parked: 4,
            limit: None,
            device_free: Some(5),
            device_total: Some(6),
        }
    }

    #[derive(Default)]
    struct Idle {
        bytes: AtomicU64,
        calls: AtomicU64,
    }

    impl Idle {
        fn of(bytes: u64) -> Arc<Self> {
            Arc::new(Self { bytes: AtomicU64::new(bytes), ..Self::default() })
        }

        fn left(&self) -> u64 {
            self.bytes.load(Ordering::Relaxed)
        }
    }

    impl Relieve for Idle {
        fn relieve(&self, bytes: u64) -> u64 {
            self.calls.fetch_add(1, Ordering::Relaxed);
            let idle = self.bytes.load(Ordering::Relaxed);
            self.bytes.fetch_sub(idle.min(bytes), Ordering::Relaxed);
            idle.min(bytes)
        }
    }

    fn register_idle(device: Device, idle: &Arc<Idle>) -> Registration {
        register(device, Arc::downgrade(idle) as Weak<dyn Relieve>)
    }

    #[test]
    fn others_give_as_much_as_is_needed_and_the_asking_pool_nothing() {
        let device = device(0);
        let pools = [Idle::of(100), Idle::of(200), Idle::of(400), Idle::of(800)];
        let registrations: Vec<Registration> = pools.iter().map(|pool| register_idle(device, pool)).collect();
        let elsewhere = Idle::of(1000);
        let _elsewhere = register_idle(super::tests::device(1), &elsewhere);
        assert_eq!(relieve(device, 250, Some(registrations[0].id())), 250);
        assert_eq!(pools.each_ref().map(|pool| pool.left()), [100, 0, 350, 800]);
        assert_eq!(pools[3].calls.load(Ordering::Relaxed), 0, "asked without need");
        assert_eq!(relieve(device, 10_000, Some(registrations[0].id())), 1150);
        assert_eq!(relieve(device, 10_000, None), 100);
        assert_eq!(relieve(device, 10_000, None), 0);
        assert_eq!((elsewhere.left(), elsewhere.calls.load(Ordering::Relaxed)), (1000, 0));
        assert_eq!(relieve(device, 0, None), 0);
    }

    #[test]
    fn dropped_pools_and_registrations_are_not_asked() {
        let device = device(2);
        let (gone, taken_back, there) = (Idle::of(10), Idle::of(20), Idle::of(40));
        let _gone = register_idle(device, &gone);
        let registration = register_idle(device, &taken_back);
        let _there = register_idle(device, &there);
        drop(gone);
        drop(registration);
        assert_eq!(relieve(device, 1000, None), 40);
        assert_eq!(taken_back.left(), 20);
    }

    /// A pool that holds its registration and, asked for memory, asks the others in turn.
    struct Chained {
        device: Device,
        registration: Registration,
        idle: Idle,
    }

    impl Relieve for Chained {
        fn relieve(&self, bytes: u64) -> u64 {
            let own = self.idle.relieve(bytes);
            own + super::relieve(self.device, bytes - own, Some(self.registration.id()))
        }
    }

    #[test]
    fn pools_that_ask_each_other_come_to_an_end_and_free_everything() {
        let device = device(3);
        let pools: Vec<Arc<Chained>> = (0..4)
            .map(|_| {
                Arc::new_cyclic(|this: &Weak<Chained>| Chained {
                    device,
                    registration: register(device, this.clone() as Weak<dyn Relieve>),
                    idle: Idle { bytes: AtomicU64::new(10), ..Idle::default() },
                })
            })
            .collect();
        assert_eq!(relieve(device, 1000, Some(pools[0].registration.id())), 30);
        assert!(pools[1..].iter().all(|pool| pool.idle.left() == 0));
        assert_eq!((pools[0].idle.left(), pools[0].idle.calls.load(Ordering::Relaxed)), (10, 0));
        drop(pools);
        assert!(RELIEVERS.of(device).is_empty());
    }

    #[test]
    fn callbacks_are_asked_in_order_until_their_guard_goes() {
        let device = device(4);
        let order = Arc::new(Mutex::new(Vec::new()));
        let callback = |name: u8, freed: bool| {
            let order = Arc::clone(&order);
            on_pressure(device, move |error| {
                assert_eq!((error.requested, error.device_total), (100, Some(6)));
                order.lock().unwrap().push(name);
                freed
            })
        };
        let guards = [callback(1, false), callback(2, true), callback(3, false)];
        assert!(call_back(&error(device)));
        assert_eq!(*order.lock().unwrap(), [1, 2, 3]);
        let [first, second, _third] = guards;
        drop((first, second));
        assert!(!call_back(&error(device)));
        assert_eq!(*order.lock().unwrap(), [1, 2, 3, 3]);
        assert!(!call_back(&error(super::tests::device(5))));
    }

    #[test]
    fn a_callback_may_use_this_module_and_is_not_called_from_within_itself() {
        let device = device(6);
        static OWN: OnceLock<Mutex<Option<CallbackGuard>>> = OnceLock::new();
        let calls = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&calls);
        let guard = on_pressure(device, move |error| {
            count.fetch_add(1, Ordering::Relaxed);
            assert!(!call_back(error));
            let idle = Idle::of(7);
            let _registered = register_idle(error.device, &idle);
            assert_eq!(relieve(error.device, 100, None), 7);
            // It takes itself back.
            drop(OWN.get().unwrap().lock().unwrap().take());
            true
        });
        OWN.get_or_init(|| Mutex::new(Some(guard)));
        assert!(call_back(&error(device)));
        assert!(!call_back(&error(device)));
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn threads_that_register_and_ask_at_once_free_each_byte_once() {
        let device = device(7);
        let freed = AtomicU64::new(0);
        let pools = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let idle = Arc::new(AllAtOnce(AtomicU64::new(3)));
                        let registered = register(device, Arc::downgrade(&idle) as Weak<dyn Relieve>);
                        pools.lock().unwrap().push(idle);
                        freed.fetch_add(relieve(device, 4, Some(registered.id())), Ordering::Relaxed);
                    }
                });
            }
        });
        let left: u64 = pools.lock().unwrap().iter().map(|pool| pool.0.load(Ordering::Relaxed)).sum();
        assert_eq!(left + freed.into_inner(), 3 * 1500);
        assert!(RELIEVERS.of(device).is_empty());
    }

    struct AllAtOnce(AtomicU64);

    impl Relieve for AllAtOnce {
        fn relieve(&self, _bytes: u64) -> u64 {
            self.0.swap(0, Ordering::Relaxed)
        }
    }
}
