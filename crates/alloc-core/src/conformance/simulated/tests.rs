//! Every rule of the simulation is broken once, and kept once.

use super::*;
use crate::{AddressRange, MemoryProvider, Place, ProviderErrorKind::OutOfMemory};

const A: Stream = Stream::from_raw(1);
const B: Stream = Stream::from_raw(2);
const C: Stream = Stream::from_raw(3);
const PAGE: u64 = 2 << 20;

fn reserved(pages: u64) -> (SimulatedProvider, AddressRange) {
    let provider = SimulatedProvider::mapped(8 * PAGE);
    let range = provider.reserve(pages * PAGE).unwrap();
    (provider, range)
}

/// SAFETY of the helpers below: the simulation has no memory, so that no misuse can do harm.
fn map(provider: &SimulatedProvider, at: Address, physical: &SimulatedPhysical, bytes: u64) -> bool {
    // SAFETY: see above.
    unsafe { provider.map(at, physical, bytes) }.is_ok()
}

fn unmap(provider: &SimulatedProvider, at: Address, bytes: u64) -> bool {
    // SAFETY: see above.
    unsafe { provider.unmap(at, bytes) }.is_ok()
}

fn release(provider: &SimulatedProvider, physical: SimulatedPhysical, bytes: u64) -> bool {
    // SAFETY: see above.
    unsafe { provider.release(physical, bytes) }.is_ok()
}

fn unreserve(provider: &SimulatedProvider, range: AddressRange) -> bool {
    // SAFETY: see above.
    unsafe { provider.unreserve(range) }.is_ok()
}

fn page(range: AddressRange, n: u64) -> Address {
    range.start.checked_add(n * PAGE).unwrap()
}

#[track_caller]
fn assert_violation(provider: &SimulatedProvider, part: &str) {
    let violations = provider.violations();
    assert!(violations.last().is_some_and(|last| last.contains(part)), "no '{part}' in {violations:?}");
}

#[test]
fn the_way_of_a_page_leaves_clean_books() {
    let (provider, range) = reserved(4);
    let physical = provider.create(2 * PAGE).unwrap();
    assert!(map(&provider, page(range, 1), &physical, 2 * PAGE) && !provider.is_backed(range.start, PAGE));
    assert!(provider.is_backed(page(range, 1), 2 * PAGE) && !provider.is_backed(page(range, 1), 2 * PAGE + 1));
    assert_eq!(provider.physical_at(page(range, 2)), Some((physical.id(), PAGE)));
    assert_eq!((provider.physical_bytes(), provider.mapped_bytes(), provider.live_handles()), (2 * PAGE, 2 * PAGE, 1));
    assert!(unmap(&provider, page(range, 1), 2 * PAGE));
    assert!(release(&provider, physical, 2 * PAGE));
    assert!(unreserve(&provider, range));
    assert_eq!((provider.physical_bytes(), provider.peak_physical_bytes()), (0, 2 * PAGE));
    let calls = provider.calls();
    assert_eq!((calls.reserve, calls.create, calls.map, calls.unmap, calls.release), (1, 1, 1, 1, 1));
    assert_eq!(provider.fallible_calls(), 6);
    provider.assert_all_returned();
}

#[test]
fn an_alias_is_a_second_way_to_the_same_bytes() {
    let (provider, range) = reserved(4);
    let physical = provider.create(PAGE).unwrap();
    assert!(map(&provider, page(range, 0), &physical, PAGE) && map(&provider, page(range, 3), &physical, PAGE));
    assert_eq!(provider.physical_at(page(range, 0)), provider.physical_at(page(range, 3)));
    provider.submit(A, page(range, 0), 100);
    provider.submit(B, page(range, 3), 100);
    assert_violation(&provider, "overlap without ordering");
}

#[test]
fn bad_maps_are_violations() {
    let (provider, range) = reserved(4);
    let (one, two) = (provider.create(PAGE).unwrap(), provider.create(2 * PAGE).unwrap());
    assert!(map(&provider, page(range, 1), &one, PAGE));
    assert!(!map(&provider, page(range, 0), &two, 2 * PAGE));
    assert_violation(&provider, "overlap");
    assert!(!map(&provider, page(range, 3), &two, 2 * PAGE));
    assert_violation(&provider, "within one reserved range");
    assert!(!map(&provider, Address::new(range.start.get() + 4096), &two, 2 * PAGE));
    assert_violation(&provider, "misaligned");
    assert!(!map(&provider, page(range, 2), &two, PAGE));
    assert_violation(&provider, "bytes, not");
    let other = SimulatedProvider::mapped(PAGE).create(PAGE).unwrap();
    assert!(!map(&provider, page(range, 2), &other, PAGE));
    assert_violation(&provider, "does not exist here");
    assert_eq!(provider.violations().len(), 5);
}

#[test]
fn ranges_that_lie_next_to_each_other_are_still_two() {
    let (provider, first) = reserved(1);
    let second = provider.reserve(PAGE).unwrap();
    assert_eq!(second.start, page(first, 1));
    let physical = provider.create(2 * PAGE).unwrap();
    assert!(!map(&provider, first.start, &physical, 2 * PAGE));
    assert_violation(&provider, "within one reserved range");
}

#[test]
fn bad_unmaps_releases_and_unreserves_are_violations() {
    let (provider, range) = reserved(4);
    let physical = provider.create(2 * PAGE).unwrap();
    assert!(map(&provider, range.start, &physical, 2 * PAGE));
    assert!(!unmap(&provider, range.start, PAGE) && !unmap(&provider, page(range, 1), PAGE));
    assert_violation(&provider, "not one mapping");
    assert!(!unreserve(&provider, range));
    assert_violation(&provider, "still has a mapping");
    let forged = SimulatedPhysical { id: physical.id };
    assert!(release(&provider, physical, 2 * PAGE));
    assert_violation(&provider, "mappings left");
    assert!(!release(&provider, forged, 2 * PAGE));
    assert_violation(&provider, "released before");
    assert!(unmap(&provider, range.start, 2 * PAGE) && unreserve(&provider, range) && !unreserve(&provider, range));
    assert_violation(&provider, "not reserved so");
}

#[test]
#[should_panic(expected = "1 violations")]
fn an_unclean_provider_fails_its_test() {
    let (provider, range) = reserved(1);
    assert!(!unmap(&provider, range.start, PAGE));
    provider.assert_clean();
}

#[test]
#[should_panic(expected = "not given back: 1 handles")]
fn a_leak_fails_its_test() {
    let provider = SimulatedProvider::default();
    drop(provider.create(PAGE));
    provider.assert_all_returned();
}

#[test]
fn segments_have_addresses_and_do_not_merge() {
    let provider = SimulatedProvider::segmented(4 * PAGE);
    let (one, two) = (provider.create(PAGE).unwrap(), provider.create(PAGE).unwrap());
    let at = provider.segment_address(&one);
    assert_eq!(provider.segment_address(&two).get(), at.get() + PAGE);
    assert!(provider.is_backed(at, PAGE) && !provider.is_backed(at, PAGE + 1));
    provider.submit(A, at, 10);
    assert!(release(&provider, two, PAGE));
    provider.assert_clean();
    assert!(release(&provider, one, PAGE));
    assert_violation(&provider, "not complete");
    assert!(!provider.is_backed(at, 1));
    assert_eq!(provider.reserve(PAGE).unwrap_err().kind, ProviderErrorKind::InvalidArgument);
}

#[test]
fn capacity_and_addresses_run_out_with_an_error() {
    let provider = SimulatedProvider::new(SimulatedConfig {
        capacity: 3 * PAGE,
        address_space: 3 * PAGE,
        ..SimulatedConfig::default()
    });
    let physical = provider.create(2 * PAGE).unwrap();
    assert_eq!(provider.create(2 * PAGE).unwrap_err().kind, OutOfMemory);
    let memory = provider.memory().unwrap();
    assert_eq!((memory.free, memory.total), (PAGE, 3 * PAGE));
    assert!(release(&provider, physical, 2 * PAGE) && provider.create(3 * PAGE).is_ok());
    let ranges = [PAGE, PAGE, PAGE].map(|bytes| provider.reserve(bytes).unwrap());
    assert_eq!(provider.reserve(PAGE).unwrap_err().kind, OutOfMemory);
    assert!(unreserve(&provider, ranges[1]));
    assert_eq!(provider.reserve(PAGE).unwrap().start, ranges[1].start);
    assert_eq!(provider.create(u64::MAX - PAGE + 1).unwrap_err().kind, OutOfMemory);
    provider.assert_clean();
}

#[test]
fn streams_complete_in_order_and_only_when_told() {
    let (provider, range) = reserved(2);
    let physical = provider.create(2 * PAGE).unwrap();
    assert!(map(&provider, range.start, &physical, 2 * PAGE));
    assert!(provider.record(A).unwrap().is_none());
    provider.submit(A, page(range, 0), PAGE);
    let first = provider.record(A).unwrap().unwrap();
    provider.submit(A, page(range, 0), PAGE);
    let second = provider.record(A).unwrap().unwrap();
    assert!(!provider.is_complete(&first).unwrap());
    assert!(provider.complete_next(A));
    assert!(provider.is_complete(&first).unwrap() && !provider.is_complete(&second).unwrap());
    MemoryProvider::synchronize(&provider, &second).unwrap();
    assert!(provider.is_complete(&second).unwrap() && provider.pending(A) == 0 && !provider.complete_next(A));
    assert_eq!(provider.live_events(), 2);
    provider.recycle(first);
    drop(second);
    assert_eq!(provider.live_events(), 0);
    assert_eq!(provider.calls().query, 5);
    provider.assert_clean();
}

#[test]
fn work_that_waits_is_ordered_and_completes_after() {
    let (provider, range) = reserved(2);
    let physical = provider.create(2 * PAGE).unwrap();
    assert!(map(&provider, range.start, &physical, 2 * PAGE));
    provider.submit(A, range.start, PAGE);
    let event = provider.record(A).unwrap().unwrap();
    provider.make_wait(B, &event).unwrap();
    // Nothing was submitted to B, yet what comes after it waits: order is transitive.
    let relayed = provider.record(B).unwrap().unwrap();
    provider.make_wait(C, &relayed).unwrap();
    provider.submit(C, range.start, 10);
    provider.assert_clean();
    assert!(!provider.complete_next(C), "C waits for A through B");
    provider.submit(A, range.start, 10);
    assert_violation(&provider, "overlap without ordering");
    provider.complete_all(C);
    assert_eq!((provider.pending(A), provider.pending(C)), (1, 0));
}

#[test]
fn conflicts_need_the_same_bytes_and_a_write() {
    let (provider, range) = reserved(1);
    let physical = provider.create(PAGE).unwrap();
    assert!(map(&provider, range.start, &physical, PAGE));
    provider.submit(A, range.start, 100);
    provider.submit(B, range.start.checked_add(100).unwrap(), 100);
    provider.submit_read(C, range.start.checked_add(300).unwrap(), 100);
    provider.submit_read(A, range.start.checked_add(300).unwrap(), 100);
    provider.assert_clean();
    provider.submit_read(B, range.start.checked_add(99).unwrap(), 1);
    assert_violation(&provider, "overlap without ordering");
    provider.complete_everything();
    provider.submit(C, range.start, PAGE);
    assert_eq!(provider.violations().len(), 1);
    provider.submit(C, range.start, PAGE + 1);
    assert_violation(&provider, "no memory behind");
}

#[test]
fn a_mapping_in_use_must_stay() {
    let (provider, range) = reserved(2);
    let physical = provider.create(PAGE).unwrap();
    assert!(map(&provider, page(range, 0), &physical, PAGE) && map(&provider, page(range, 1), &physical, PAGE));
    provider.submit(A, page(range, 1), 1);
    assert!(unmap(&provider, page(range, 0), PAGE));
    provider.assert_clean();
    assert!(unmap(&provider, page(range, 1), PAGE));
    assert_violation(&provider, "not complete");
}

#[test]
fn captured_streams_forbid_queries_and_keep_their_memory() {
    let (provider, range) = reserved(1);
    let physical = provider.create(PAGE).unwrap();
    assert!(map(&provider, range.start, &physical, PAGE));
    provider.submit(A, range.start, 1);
    let event = provider.record(A).unwrap().unwrap();
    provider.set_capturing(B, true);
    assert!(provider.is_capturing(B).unwrap() && !provider.is_capturing(A).unwrap());
    provider.is_complete(&event).unwrap();
    MemoryProvider::synchronize(&provider, &event).unwrap();
    provider.make_wait(B, &event).unwrap();
    let captured = provider.record(B).unwrap().unwrap();
    assert_eq!(provider.violations().len(), 4);
    provider.make_wait(B, &captured).unwrap();
    provider.submit(B, range.start, 1);
    provider.set_capturing(B, false);
    assert_eq!((provider.violations().len(), provider.pending(B)), (4, 0));
    provider.submit(A, range.start, 1);
    assert_violation(&provider, "overlap without ordering");
    provider.complete_everything();
    assert!(unmap(&provider, range.start, PAGE));
    assert_violation(&provider, "not complete");
    provider.drop_graph(B);
    assert!(map(&provider, range.start, &physical, PAGE) && unmap(&provider, range.start, PAGE));
    assert_eq!(provider.violations().len(), 6);
}

#[test]
fn the_named_call_fails_and_only_that() {
    let provider = SimulatedProvider::default();
    provider.fail_call(2, ProviderErrorKind::Other);
    provider.fail_call(3, OutOfMemory);
    assert!(provider.memory().is_ok());
    assert_eq!(provider.create(PAGE).unwrap_err().kind, ProviderErrorKind::Other);
    assert_eq!(provider.reserve(PAGE).unwrap_err().kind, OutOfMemory);
    assert!(provider.reserve(PAGE).is_ok());
    provider.fail_always(Some(ProviderErrorKind::Poisoned));
    assert_eq!(provider.create(PAGE).unwrap_err().kind, ProviderErrorKind::Poisoned);
    provider.cancel_failures();
    let physical = provider.create(PAGE).unwrap();
    provider.fail_call(1, ProviderErrorKind::Other);
    assert!(!release(&provider, physical, PAGE));
    assert_eq!((provider.injected_failures(), provider.live_handles(), provider.fallible_calls()), (4, 0, 7));
    provider.assert_clean();
}

#[test]
fn transfers_are_counted_and_checked() {
    let (provider, range) = reserved(1);
    let place = Place { device: SIMULATED, address: range.start };
    let host = Place { device: Device::CPU, address: Address::new(4096) };
    let transfer = provider.transfer();
    assert!(transfer.can_copy(Device::CPU, SIMULATED) && !transfer.can_copy(Device::cuda(0), SIMULATED));
    assert!(!transfer.can_copy(SIMULATED, Device::CPU), "there is nothing to read");
    let physical = provider.create(PAGE).unwrap();
    assert!(map(&provider, range.start, &physical, PAGE));
    // SAFETY: see above.
    unsafe {
        transfer.fill(place, PAGE, 7, A).unwrap();
        transfer.copy(host, place, PAGE, A).unwrap();
        let refused = transfer.copy(place, host, PAGE, A);
        assert_eq!(refused, Err(crate::TransferError::Unsupported { from: SIMULATED, to: Device::CPU }));
        provider.assert_clean();
        transfer.copy(host, place, PAGE + 1, A).unwrap();
    }
    assert_violation(&provider, "no memory behind");
    assert_eq!(provider.transfers(), 3);
}
