//! Want of memory is an error with the books unchanged, never a surprise later.

use alloc_core::{MemoryProvider, ProviderErrorKind};
use alloc_cpu::{HostOptions, HostProvider};

const PAGE: u64 = 2 << 20;

#[test]
fn the_capacity_is_kept_and_can_be_used_again() {
    let provider = HostProvider::new(HostOptions::new().capacity_bytes(3 * PAGE + 1)).unwrap();
    let two = provider.create(2 * PAGE).unwrap();
    let error = provider.create(2 * PAGE).unwrap_err();
    assert_eq!((error.kind, error.call, &*error.name), (ProviderErrorKind::OutOfMemory, "create", "ENOMEM"));
    assert_eq!(error.code, 12);
    assert_eq!(provider.created_bytes(), 2 * PAGE);
    let memory = provider.memory().unwrap();
    assert_eq!((memory.free, memory.total), (PAGE + 1, 3 * PAGE + 1));
    let one = provider.create(PAGE).unwrap();
    // SAFETY: nothing was mapped.
    unsafe {
        provider.release(two, 2 * PAGE).unwrap();
        provider.release(one, PAGE).unwrap();
    }
    let three = provider.create(3 * PAGE).unwrap();
    // SAFETY: nothing was mapped.
    unsafe { provider.release(three, 3 * PAGE) }.unwrap();
}

#[test]
fn the_machine_is_the_default_capacity() {
    let provider = HostProvider::new(HostOptions::new()).unwrap();
    let memory = provider.memory().unwrap();
    assert!(memory.total >= memory.free && memory.free > 0);
    let beyond = (memory.total / PAGE + 1) * PAGE;
    assert_eq!(provider.create(beyond).unwrap_err().kind, ProviderErrorKind::OutOfMemory);
    assert_eq!(provider.create(!(PAGE - 1)).unwrap_err().kind, ProviderErrorKind::OutOfMemory);
    assert_eq!(provider.created_bytes(), 0);
}

#[test]
fn more_addresses_than_there_are_is_an_error() {
    let provider = HostProvider::new(HostOptions::new()).unwrap();
    for bytes in [1 << 56, !(PAGE - 1)] {
        let error = provider.reserve(bytes).unwrap_err();
        assert_eq!((error.kind, error.call), (ProviderErrorKind::OutOfMemory, "mmap"));
    }
}
