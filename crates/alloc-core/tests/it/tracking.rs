//! Where blocks come from. Not beside the adaptor, whose own frames a report leaves out.

use alloc_core::adaptor::Tracking;
use alloc_core::{Block, Device, DeviceAllocator, Layout, SimulatedAllocator, Stream};

#[inline(never)]
fn leak_here(allocator: &impl DeviceAllocator) -> Block {
    allocator.allocate(Layout::bytes(1000).unwrap(), Stream::DEFAULT).unwrap()
}

#[test]
fn a_report_with_backtraces_groups_by_place() {
    let tracking = Tracking::new(SimulatedAllocator::new(Device::CPU, 1 << 20)).with_backtraces(true);
    for _ in 0..3 {
        let _ = leak_here(&tracking);
    }
    let _ = tracking.allocate(Layout::bytes(1).unwrap(), Stream::DEFAULT).unwrap();
    let report = tracking.report();
    assert_eq!(report.sites().len(), 2, "{report}");
    assert_eq!((report.sites()[0].count, report.sites()[0].bytes), (3, 3000));
    let first = report.sites()[0].site.lines().next().unwrap();
    assert!(first.contains("leak_here"), "{report}");
}
