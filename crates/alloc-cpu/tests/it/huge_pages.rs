//! Huge pages serve where the system has them, and where it has not, that is reported once and memory works.

use std::sync::{Arc, Mutex};

use alloc_core::{AllocatorEvent, Device, EventHook, MemoryProvider};
use alloc_cpu::{FallbackReason, HostOptions, HostProvider, HugePages, PageKind, Populate};

use crate::bytes::{fill, holds};

const PAGE: u64 = 2 << 20;

#[derive(Debug, Default)]
struct Fallbacks(Mutex<Vec<(String, String)>>);

impl EventHook for Fallbacks {
    fn on_event(&self, device: Device, event: &AllocatorEvent<'_>) {
        assert_eq!(device, Device::CPU);
        if let AllocatorEvent::Fallback { wish, instead } = event {
            self.0.lock().unwrap().push(((*wish).to_owned(), (*instead).to_owned()));
        }
    }
}

fn use_pages(provider: &HostProvider) {
    let range = provider.reserve(8 * PAGE).unwrap();
    let handles: Vec<_> = (0..3).map(|_| provider.create(2 * PAGE).unwrap()).collect();
    for (index, pages) in handles.into_iter().enumerate() {
        let at = range.start.checked_add(2 * PAGE * index as u64).unwrap();
        // SAFETY: each place is free, and mapping and pages are used no more when they are given back.
        unsafe {
            provider.map(at, &pages, 2 * PAGE).unwrap();
            fill(at, 2 * PAGE, 0x5A);
            assert!(holds(at, 2 * PAGE, 0x5A));
            provider.unmap(at, 2 * PAGE).unwrap();
            provider.release(pages, 2 * PAGE).unwrap();
        }
    }
    // SAFETY: nothing is mapped any more.
    unsafe { provider.unreserve(range) }.unwrap();
    assert_eq!((provider.created_bytes(), provider.resident_bytes().unwrap()), (0, 0));
}

#[test]
fn what_serves_is_said_and_works_for_every_wish() {
    for (huge_pages, wished) in [
        (HugePages::Off, PageKind::Base),
        (HugePages::Transparent, PageKind::TransparentHuge),
        (HugePages::Hugetlb, PageKind::Hugetlb),
    ] {
        for populate in [Populate::Lazy, Populate::OnCreate, Populate::OnMap] {
            let hook = Arc::new(Fallbacks::default());
            let options = HostOptions::new().huge_pages(huge_pages).populate(populate).event_hook(hook.clone());
            let provider = HostProvider::new(options).unwrap();
            use_pages(&provider);
            let backing = provider.page_backing();
            assert_eq!(backing.requested, huge_pages);
            let told = hook.0.lock().unwrap();
            if backing.fallback.is_some() {
                assert_eq!(backing.actual, PageKind::Base);
                assert_eq!(told.len(), 1, "a fallback is told once: {told:?}");
                assert_eq!(told[0].1, "ordinary pages");
            } else {
                assert_eq!((backing.actual, told.len()), (wished, 0));
            }
        }
    }
}

#[test]
fn a_missing_hugetlb_pool_is_reported() {
    let free = std::fs::read_to_string("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    if free.is_ok_and(|free| free.trim() != "0") {
        return;
    }
    let hook = Arc::new(Fallbacks::default());
    let options = HostOptions::new().huge_pages(HugePages::Hugetlb).event_hook(hook.clone());
    let provider = HostProvider::new(options).unwrap();
    let reason = provider.page_backing().fallback;
    assert!(matches!(reason, Some(FallbackReason::NoHugetlbPage { errno }) if errno != 0), "{reason:?}");
    assert!(reason.unwrap().to_string().contains("hugetlb"));
    assert_eq!(*hook.0.lock().unwrap(), [("hugetlb pages".to_owned(), "ordinary pages".to_owned())]);
}

#[test]
fn pages_made_huge_at_creation_are_huge() {
    let options = HostOptions::new().huge_pages(HugePages::Transparent).populate(Populate::OnCreate);
    let provider = HostProvider::new(options).unwrap();
    let range = provider.reserve(4 * PAGE).unwrap();
    let pages = provider.create(4 * PAGE).unwrap();
    assert_eq!(provider.resident_bytes().unwrap(), 4 * PAGE);
    // SAFETY: the range is free, and the size is that of the pages.
    unsafe { provider.map(range.start, &pages, 4 * PAGE) }.unwrap();
    fill(range.start, 4 * PAGE, 1);
    if provider.page_backing().actual == PageKind::TransparentHuge {
        assert_eq!(huge_bytes_mapped_at(range.start.get()), 4 * PAGE);
    }
    // SAFETY: mapping, pages and range are used no more.
    unsafe {
        provider.unmap(range.start, 4 * PAGE).unwrap();
        provider.release(pages, 4 * PAGE).unwrap();
        provider.unreserve(range).unwrap();
    }
}

fn huge_bytes_mapped_at(address: u64) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let start = format!("{address:x}-");
    let line = smaps.lines().skip_while(|line| !line.starts_with(&start)).find(|line| line.starts_with("ShmemPmd"));
    line.unwrap().split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
