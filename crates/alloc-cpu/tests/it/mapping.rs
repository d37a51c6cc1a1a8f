//! Pages are seen wherever they are mapped, and go back to the system when released.

use alloc_core::{Addressing, MemoryProvider};
use alloc_cpu::{HostOptions, HostProvider, HugePages};

use crate::bytes::{fill, holds, read, write};

const PAGE: u64 = 2 << 20;

fn provider() -> HostProvider {
    HostProvider::new(HostOptions::new().huge_pages(HugePages::Off)).unwrap()
}

#[test]
fn ranges_are_aligned_and_given_back() {
    let provider = provider();
    assert_eq!((provider.addressing(), provider.granularity()), (Addressing::Mapped, PAGE));
    for bytes in [PAGE, 3 * PAGE, 1 << 40] {
        let range = provider.reserve(bytes).unwrap();
        assert!(range.start.is_aligned_to(PAGE) && range.bytes == bytes);
        // SAFETY: nothing is mapped in the range.
        unsafe { provider.unreserve(range) }.unwrap();
    }
}

#[test]
fn two_views_of_one_page_are_one_memory() {
    let provider = provider();
    let range = provider.reserve(64 * PAGE).unwrap();
    let pages = provider.create(2 * PAGE).unwrap();
    let (here, there) = (range.start, range.start.checked_add(10 * PAGE).unwrap());
    // SAFETY: the addresses are the range's and free, the sizes those of the pages.
    unsafe {
        provider.map(here, &pages, 2 * PAGE).unwrap();
        provider.map(there, &pages, 2 * PAGE).unwrap();
    }
    write(here, PAGE + 5, b"written here");
    assert_eq!(read(there, PAGE + 5, 12), b"written here");
    write(there, 2 * PAGE - 3, b"end");
    assert_eq!(read(here, 2 * PAGE - 3, 3), b"end");
    // SAFETY: each mapping is removed once and used no more.
    unsafe {
        provider.unmap(here, 2 * PAGE).unwrap();
        assert_eq!(read(there, PAGE + 5, 12), b"written here", "the other view stays");
        provider.unmap(there, 2 * PAGE).unwrap();
        provider.release(pages, 2 * PAGE).unwrap();
        provider.unreserve(range).unwrap();
    }
}

#[test]
fn contents_move_with_the_pages() {
    let provider = provider();
    let range = provider.reserve(64 * PAGE).unwrap();
    let at = |index: u64| range.start.checked_add(index * PAGE).unwrap();
    let mut pages: Vec<_> = (0..8u64).map(|index| (provider.create(PAGE).unwrap(), index)).collect();
    for (page, place) in &pages {
        // SAFETY: every page gets a free place of its own.
        unsafe { provider.map(at(*place), page, PAGE) }.unwrap();
        fill(at(*place), PAGE, 1 + *place as u8);
    }
    for round in 1..4u64 {
        for (index, (page, place)) in pages.iter_mut().enumerate() {
            let next = round * 9 + index as u64;
            // SAFETY: the old place is used no more and the new one is free.
            unsafe {
                provider.unmap(at(*place), PAGE).unwrap();
                provider.map(at(next), page, PAGE).unwrap();
            }
            *place = next;
        }
    }
    for (index, (page, place)) in pages.into_iter().enumerate() {
        assert!(holds(at(place), PAGE, 1 + index as u8));
        // SAFETY: the mapping and the pages are used no more.
        unsafe {
            provider.unmap(at(place), PAGE).unwrap();
            provider.release(page, PAGE).unwrap();
        }
    }
    // SAFETY: nothing is mapped any more.
    unsafe { provider.unreserve(range) }.unwrap();
}

#[test]
fn untouched_memory_costs_nothing_and_released_memory_goes_back() {
    let provider = provider();
    let range = provider.reserve(8 * PAGE).unwrap();
    let pages = provider.create(4 * PAGE).unwrap();
    // SAFETY: the addresses are the range's and free, the size that of the pages.
    unsafe { provider.map(range.start, &pages, 4 * PAGE) }.unwrap();
    assert_eq!((provider.created_bytes(), provider.resident_bytes().unwrap()), (4 * PAGE, 0));
    fill(range.start, 3 * PAGE, 9);
    assert_eq!(provider.resident_bytes().unwrap(), 3 * PAGE);
    // SAFETY: mapping and pages are used no more.
    unsafe {
        provider.unmap(range.start, 4 * PAGE).unwrap();
        assert_eq!(provider.resident_bytes().unwrap(), 3 * PAGE, "unmapping keeps the contents");
        provider.release(pages, 4 * PAGE).unwrap();
    }
    assert_eq!((provider.created_bytes(), provider.resident_bytes().unwrap()), (0, 0));
    // SAFETY: nothing is mapped any more.
    unsafe { provider.unreserve(range) }.unwrap();
}

#[test]
fn released_pages_never_show_old_contents() {
    let provider = provider();
    let range = provider.reserve(2 * PAGE).unwrap();
    for round in 0..3 {
        let pages = provider.create(PAGE).unwrap();
        // SAFETY: the addresses are free, and mapping and pages are used no more when they are given back.
        unsafe {
            provider.map(range.start, &pages, PAGE).unwrap();
            assert!(holds(range.start, PAGE, 0), "round {round}");
            fill(range.start, PAGE, 0xEE);
            provider.unmap(range.start, PAGE).unwrap();
            provider.release(pages, PAGE).unwrap();
        }
    }
    // SAFETY: nothing is mapped any more.
    unsafe { provider.unreserve(range) }.unwrap();
}

#[test]
fn threads_create_map_and_release_at_once() {
    let provider = provider();
    let range = provider.reserve(256 * PAGE).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let provider = &provider;
            scope.spawn(move || {
                let at = range.start.checked_add(thread * 64 * PAGE).unwrap();
                for round in 0..50u64 {
                    let bytes = (1 + (round + thread) % 3) * PAGE;
                    let pages = provider.create(bytes).unwrap();
                    // SAFETY: each thread maps in its own part of the range.
                    unsafe {
                        provider.map(at, &pages, bytes).unwrap();
                        write(at, bytes - 8, &(thread << 32 | round).to_ne_bytes());
                        assert_eq!(read(at, bytes - 8, 8), (thread << 32 | round).to_ne_bytes());
                        provider.unmap(at, bytes).unwrap();
                        provider.release(pages, bytes).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!((provider.created_bytes(), provider.resident_bytes().unwrap()), (0, 0));
    // SAFETY: nothing is mapped any more.
    unsafe { provider.unreserve(range) }.unwrap();
}

#[test]
fn work_of_a_host_is_complete_at_once() {
    let provider = provider();
    assert!(provider.record(alloc_core::Stream::from_raw(3)).unwrap().is_none());
    assert!(!provider.is_capturing(alloc_core::Stream::DEFAULT).unwrap());
}
