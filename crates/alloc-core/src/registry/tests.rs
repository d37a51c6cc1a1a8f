use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{Layout, LayoutError, SimulatedAllocator, Stream, forward_allocator};

const THREADS: usize = 16;
const OWN_KIND: DeviceKind = DeviceKind::new(500, false);

fn simulated(device: Device) -> Box<dyn DeviceAllocator> {
    Box::new(Posing { device, inner: SimulatedAllocator::new(device, 1 << 20) })
}

/// A simulated allocator that says it is one of a real device.
#[derive(Debug)]
struct Posing {
    device: Device,
    inner: SimulatedAllocator,
}

// SAFETY: it has no memory behind its blocks, and these tests don't follow their addresses.
unsafe impl DeviceAllocator for Posing {
    fn device(&self) -> Device {
        self.device
    }

    forward_allocator!(self => self.inner; allocate, release, statistics, trim, grow_to, transfer, retire_stream);
}

fn address(allocator: &'static dyn DeviceAllocator) -> usize {
    std::ptr::from_ref(allocator).cast::<()>().addr()
}

#[test]
fn many_threads_at_once_get_one_allocator_made_once() {
    for device in [Device::CPU, Device::cuda(3), Device::cuda(31), Device::cuda(32), Device::new(OWN_KIND, 9)] {
        let registry = Registry::new();
        let makes = AtomicUsize::new(0);
        let start = Barrier::new(THREADS);
        let addresses: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        let made = registry.get_or_try_init(device, || {
                            makes.fetch_add(1, Ordering::Relaxed);
                            std::thread::yield_now();
                            Ok::<_, AllocError>(simulated(device))
                        });
                        address(made.unwrap())
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(makes.into_inner(), 1, "{device}");
        assert!(addresses.iter().all(|a| *a == addresses[0]), "{device}");
        assert_eq!(registry.get(device).map(address), Some(addresses[0]));
        assert_eq!(registry.all().len(), 1);
    }
}

#[test]
fn when_making_fails_the_next_in_line_tries_and_each_gets_its_own_error() {
    let registry = Registry::new();
    let device = Device::cuda(0);
    let tries = AtomicUsize::new(0);
    let start = Barrier::new(THREADS);
    let failed: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let result = registry.get_or_try_init(device, || {
                        // The first five fail.
                        match tries.fetch_add(1, Ordering::Relaxed) {
                            number @ 0..5 => Err(LayoutError::Alignment { align: number as u64 }),
                            _ => Ok(simulated(device)),
                        }
                    });
                    match result {
                        Ok(_) => 0,
                        Err(InitError::Make(LayoutError::Alignment { align: 0..5 })) => 1,
                        Err(other) => panic!("{other}"),
                    }
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((failed, tries.into_inner()), (5, 6));
    assert!(registry.get(device).is_some());
}

#[test]
fn a_panic_in_the_making_leaves_the_slot_for_others() {
    let registry = Registry::new();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = registry.get_or_try_init::<AllocError>(Device::CPU, || panic!("on purpose"));
    }));
    assert!(panicked.is_err());
    assert!(registry.get(Device::CPU).is_none());
    assert!(registry.get_or_try_init(Device::CPU, || Ok::<_, AllocError>(simulated(Device::CPU))).is_ok());
}

#[test]
fn making_may_use_other_devices_but_not_its_own() {
    let registry = Registry::new();
    let device = Device::cuda_pinned(0);
    let made = registry.get_or_try_init(device, || {
        registry.get_or_try_init(Device::CPU, || Ok(simulated(Device::CPU)))?;
        registry.get_or_try_init(device, || Ok(simulated(device)))?;
        Ok::<_, InitError<AllocError>>(simulated(device))
    });
    let error = made.map(address).unwrap_err();
    assert_eq!(error, InitError::Make(InitError::Recursive { device }));
    let installed = registry.get_or_try_init(device, || {
        let refused = registry.install(device, simulated(device));
        assert!(matches!(refused, Err(InstallError::BeingMade { .. })));
        Ok::<_, AllocError>(simulated(device))
    });
    assert!(installed.is_ok() && registry.get(Device::CPU).is_some());
}

#[test]
fn an_allocator_of_another_device_is_refused() {
    let registry = Registry::new();
    let made = registry.get_or_try_init(Device::cuda(1), || Ok::<_, AllocError>(simulated(Device::cuda(2))));
    let error = made.map(address).unwrap_err();
    assert_eq!(error, InitError::WrongDevice { device: Device::cuda(1), made: Device::cuda(2) });
    assert!(matches!(
        AllocError::from(error),
        AllocError::Provider(ProviderError { kind: ProviderErrorKind::InvalidArgument, .. })
    ));
    let refused = registry.install(Device::cuda(1), simulated(Device::CPU)).unwrap_err();
    assert_eq!(refused.to_string(), "an allocator of cpu:0 can't be installed for cuda:1");
    assert!(registry.all().is_empty());
}

#[test]
fn what_is_installed_first_stays_and_the_refused_comes_back() {
    let registry = Registry::new();
    registry.install(Device::CPU, simulated(Device::CPU)).unwrap();
    let first = registry.get(Device::CPU).map(address);
    let used = registry.get_or_try_init::<AllocError>(Device::CPU, || panic!("made in vain"));
    assert_eq!(used.ok().map(address), first);
    let Err(InstallError::AlreadyInstalled { device, rejected }) =
        registry.install(Device::CPU, simulated(Device::CPU))
    else {
        panic!("installed twice")
    };
    assert_eq!(device, Device::CPU);
    assert!(rejected.allocate(Layout::bytes(10).unwrap(), Stream::DEFAULT).is_ok());
    assert_eq!(registry.get(Device::CPU).map(address), first);
}

#[test]
fn devices_are_kept_apart_and_listed_in_order() {
    let registry = Registry::new();
    let lookalike = Device::new(DeviceKind::new(DeviceKind::CUDA.code(), true), 0);
    let devices = [
        Device::CPU,
        Device::cuda(0),
        Device::cuda(1),
        Device::cuda_pinned(0),
        Device::new(OWN_KIND, 1),
        Device::new(OWN_KIND, 0),
        Device::cuda(40_000),
        lookalike,
        Device::CPU.simulated(),
    ];
    for (made, device) in devices.into_iter().enumerate() {
        assert!(registry.get(device).is_none(), "{device:?}");
        registry.install(device, simulated(device)).unwrap();
        assert_eq!(registry.all().len(), made + 1);
    }
    let listed: Vec<Device> = registry.all().into_iter().map(|allocator| allocator.device()).collect();
    assert_eq!(listed, devices);
}
