//! What would damage memory of others is refused.

use alloc_core::{Address, AddressRange, MemoryProvider, ProviderErrorKind};
use alloc_cpu::{HostOptions, HostProvider};

const PAGE: u64 = 2 << 20;

#[track_caller]
fn assert_invalid<T: std::fmt::Debug>(result: Result<T, alloc_core::ProviderError>, call: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.kind, error.call, error.code), (ProviderErrorKind::InvalidArgument, call, 22));
}

#[test]
fn sizes_that_are_not_whole_are_refused() {
    let provider = HostProvider::new(HostOptions::new()).unwrap();
    for bytes in [0, 1, PAGE - 1, PAGE + 4096, u64::MAX] {
        assert_invalid(provider.create(bytes), "create");
        assert_invalid(provider.reserve(bytes), "reserve");
    }
    assert_eq!(provider.created_bytes(), 0);
}

#[test]
fn nothing_is_mapped_outside_a_reserved_range() {
    let provider = HostProvider::new(HostOptions::new()).unwrap();
    let range = provider.reserve(4 * PAGE).unwrap();
    let pages = provider.create(2 * PAGE).unwrap();
    let start = range.start.get();
    let local = Box::new(0u8);
    let foreign = [
        0,
        (std::ptr::from_ref(&*local).expose_provenance() as u64) & !(PAGE - 1),
        start - PAGE,
        start + 3 * PAGE,
        start + 4 * PAGE,
        start + 4096,
        !(PAGE - 1),
    ];
    for at in foreign.map(Address::new) {
        // SAFETY: these calls break the contract on purpose; the check that is tested refuses them.
        unsafe {
            assert_invalid(provider.map(at, &pages, 2 * PAGE), "map");
            assert_invalid(provider.unmap(at, 2 * PAGE), "unmap");
        }
    }
    // SAFETY: as above for the wrong sizes and ranges; the last two calls keep the contract.
    unsafe {
        assert_invalid(provider.map(range.start, &pages, PAGE), "map");
        assert_invalid(provider.unmap(range.start, 0), "unmap");
        assert_invalid(provider.unreserve(AddressRange { start: range.start, bytes: PAGE }), "unreserve");
        provider.release(pages, 2 * PAGE).unwrap();
        provider.unreserve(range).unwrap();
        assert_invalid(provider.unreserve(range), "unreserve");
    }
}

#[test]
fn pages_of_another_provider_are_refused() {
    let ours = HostProvider::new(HostOptions::new()).unwrap();
    let other = HostProvider::new(HostOptions::new()).unwrap();
    let range = ours.reserve(PAGE).unwrap();
    let pages = other.create(PAGE).unwrap();
    // SAFETY: these calls break the contract on purpose; the check that is tested refuses them.
    unsafe {
        assert_invalid(ours.map(range.start, &pages, PAGE), "map");
        assert_invalid(ours.release(pages, PAGE), "release");
    }
    assert_eq!((ours.created_bytes(), other.created_bytes()), (0, PAGE));
    // SAFETY: nothing was mapped.
    unsafe { ours.unreserve(range) }.unwrap();
}
