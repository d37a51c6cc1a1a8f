//! Copies and fills do the same on one thread and on many.

use alloc_core::{Address, Device, Place, ProviderErrorKind, Stream, Transfer, TransferError};
use alloc_cpu::HostTransfer;

fn place(memory: &mut [u8]) -> Place {
    Place { device: Device::CPU, address: Address::new(memory.as_mut_ptr().expose_provenance() as u64) }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

#[test]
fn shared_work_equals_single_work() {
    for threads in [1, 2, 3, 8] {
        let transfer = HostTransfer::with_threads(threads).parallel_from(1);
        assert_eq!(transfer.threads(), threads);
        for length in [0, 1, 4095, 300_000, 5_000_001] {
            let mut from = pattern(length + 2);
            let mut to = vec![0xAA; length + 2];
            let (source, target) = (place(&mut from[1..]), place(&mut to[1..]));
            // SAFETY: both have `length` bytes from there on, and nothing else uses them.
            unsafe { transfer.copy(source, target, length as u64, Stream::from_raw(4)) }.unwrap();
            assert_eq!(to[1..=length], from[1..=length]);
            assert_eq!((to[0], to[length + 1]), (0xAA, 0xAA), "nothing beside the copy is touched");
            // SAFETY: as above.
            unsafe { transfer.fill(target, length as u64, 0x3C, Stream::DEFAULT) }.unwrap();
            assert!(to[1..=length].iter().all(|&byte| byte == 0x3C));
            assert_eq!((to[0], to[length + 1]), (0xAA, 0xAA), "nothing beside the fill is touched");
        }
        transfer.synchronize(Stream::DEFAULT).unwrap();
    }
}

#[test]
fn every_pair_of_host_memories_can_be_copied() {
    let transfer = HostTransfer::shared();
    assert!(transfer.can_copy(Device::CPU, Device::cuda_pinned(1)) && transfer.can_copy(Device::CPU, Device::CPU));
    assert!(!transfer.can_copy(Device::CPU, Device::cuda(0)) && !transfer.can_copy(Device::cuda(0), Device::CPU));
    let device = Place { device: Device::cuda(0), address: Address::new(4096) };
    let host = Place { device: Device::CPU, address: Address::new(4096) };
    // SAFETY: nothing is copied or filled: the devices are refused first.
    unsafe {
        let copied = transfer.copy(device, host, 1, Stream::DEFAULT);
        assert_eq!(copied, Err(TransferError::Unsupported { from: Device::cuda(0), to: Device::CPU }));
        let filled = transfer.fill(device, 1, 0, Stream::DEFAULT);
        assert_eq!(filled, Err(TransferError::Unsupported { from: Device::CPU, to: Device::cuda(0) }));
    }
}

#[test]
fn places_that_no_memory_has_are_errors() {
    let transfer = HostTransfer::shared();
    let mut memory = [0u8; 8];
    let good = place(&mut memory);
    let at = |address| Place { device: Device::CPU, address: Address::new(address) };
    for (bad, bytes) in [(at(0), 8), (at(u64::MAX - 3), 8), (good, u64::MAX), (good, 1 << 63)] {
        // SAFETY: these places break the contract on purpose; the check that is tested refuses them.
        unsafe {
            for result in [
                transfer.copy(good, bad, bytes, Stream::DEFAULT),
                transfer.copy(bad, good, bytes, Stream::DEFAULT),
                transfer.fill(bad, bytes, 1, Stream::DEFAULT),
            ] {
                let Err(TransferError::Provider(error)) = result else { panic!("{result:?}") };
                assert_eq!(error.kind, ProviderErrorKind::InvalidArgument);
            }
        }
    }
    assert_eq!(memory, [0; 8]);
}

#[test]
fn large_copies_from_many_threads_stay_apart() {
    let transfer = HostTransfer::with_threads(4).parallel_from(1 << 20);
    std::thread::scope(|scope| {
        for thread in 0..3usize {
            let transfer = &transfer;
            scope.spawn(move || {
                for round in 0..4 {
                    let length = (2 << 20) + thread * 1000 + round;
                    let mut from = pattern(length);
                    let mut to = vec![0; length];
                    let (source, target) = (place(&mut from), place(&mut to));
                    // SAFETY: both have `length` bytes, and nothing else uses them.
                    unsafe { transfer.copy(source, target, length as u64, Stream::DEFAULT) }.unwrap();
                    assert!(from == to);
                }
            });
        }
    });
}
