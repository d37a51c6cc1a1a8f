//! Memory is taken when the program chose to take it.

use alloc_core::MemoryProvider;
use alloc_cpu::{HostOptions, HostProvider, HugePages, Populate};

const PAGE: u64 = 2 << 20;

fn minor_faults() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().nth(7).unwrap().parse().unwrap()
}

fn touch(address: u64, bytes: u64) {
    for at in (address..address + bytes).step_by(4096) {
        let to = std::ptr::with_exposed_provenance_mut::<u8>(at as usize);
        // SAFETY: the callers below pass memory that they have mapped.
        unsafe { to.write_volatile(1) };
    }
}

/// Resident bytes after creation, and page faults of the first and of the second view.
fn costs(populate: Populate) -> (u64, u64, u64) {
    let provider = HostProvider::new(HostOptions::new().huge_pages(HugePages::Off).populate(populate)).unwrap();
    let range = provider.reserve(16 * PAGE).unwrap();
    let pages = provider.create(4 * PAGE).unwrap();
    let resident = provider.resident_bytes().unwrap();
    let mut faults = [0; 2];
    for (view, faults) in faults.iter_mut().enumerate() {
        let at = range.start.checked_add(view as u64 * 8 * PAGE).unwrap();
        // SAFETY: the range is free there, and the size is that of the pages.
        unsafe { provider.map(at, &pages, 4 * PAGE) }.unwrap();
        let before = minor_faults();
        touch(at.get(), 4 * PAGE);
        *faults = minor_faults() - before;
        // SAFETY: the view is used no more.
        unsafe { provider.unmap(at, 4 * PAGE) }.unwrap();
    }
    // SAFETY: pages and range are used no more.
    unsafe {
        provider.release(pages, 4 * PAGE).unwrap();
        provider.unreserve(range).unwrap();
    }
    assert_eq!(provider.resident_bytes().unwrap(), 0);
    (resident, faults[0], faults[1])
}

#[test]
fn lazy_memory_comes_at_first_touch() {
    let (resident, first, second) = costs(Populate::Lazy);
    assert_eq!(resident, 0);
    assert!(first >= 4 && second >= 4, "{first} and {second} faults");
}

#[test]
fn created_memory_is_there_at_once() {
    let (resident, _, _) = costs(Populate::OnCreate);
    assert_eq!(resident, 4 * PAGE);
}

#[test]
fn mapped_memory_takes_no_fault() {
    let (resident, first, second) = costs(Populate::OnMap);
    assert_eq!(resident, 4 * PAGE);
    assert!(first < 16 && second < 16, "{first} and {second} faults for {} pages", 4 * PAGE / 4096);
}
