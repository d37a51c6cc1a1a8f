//! Memory policies are followed, or refused with the kernel's answer.

use alloc_core::{MemoryProvider, ProviderErrorKind};
use alloc_cpu::{FallbackReason, HostOptions, HostProvider, HugePages, NumaPolicy, Populate};

use crate::bytes::{fill, holds};

const PAGE: u64 = 2 << 20;

fn machine_has_nodes() -> bool {
    std::path::Path::new("/sys/devices/system/node/node0").exists()
}

#[test]
fn policies_over_node_zero_serve_everywhere() {
    if !machine_has_nodes() {
        return;
    }
    for policy in [NumaPolicy::Bind(vec![0]), NumaPolicy::Interleave(vec![0]), NumaPolicy::Preferred(0)] {
        let provider = match HostProvider::new(HostOptions::new().numa(policy.clone())) {
            Ok(provider) => provider,
            // Sandboxes forbid the call; that is said.
            Err(error) => {
                assert_eq!((error.call, error.kind), ("mbind", ProviderErrorKind::Unsupported));
                return;
            }
        };
        let range = provider.reserve(PAGE).unwrap();
        let pages = provider.create(PAGE).unwrap();
        // SAFETY: the range is free; mapping, pages and range are used no more when they are given back.
        unsafe {
            provider.map(range.start, &pages, PAGE).unwrap();
            fill(range.start, PAGE, 3);
            assert!(holds(range.start, PAGE, 3));
            let maps = std::fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
            if let Some(line) = maps.lines().find(|line| line.starts_with(&format!("{:x} ", range.start.get()))) {
                let name = match policy {
                    NumaPolicy::Bind(_) => "bind:0",
                    NumaPolicy::Interleave(_) => "interleave:0",
                    _ => "prefer",
                };
                assert!(line.contains(name), "{line}");
            }
            provider.unmap(range.start, PAGE).unwrap();
            provider.release(pages, PAGE).unwrap();
            provider.unreserve(range).unwrap();
        }
    }
}

#[test]
fn a_node_that_is_not_there_is_an_error() {
    for policy in [NumaPolicy::Bind(vec![1000]), NumaPolicy::Interleave(vec![5000]), NumaPolicy::Bind(vec![])] {
        let error = HostProvider::new(HostOptions::new().numa(policy)).unwrap_err();
        assert_eq!(error.call, "mbind");
        assert!(matches!(error.kind, ProviderErrorKind::InvalidArgument | ProviderErrorKind::Unsupported), "{error}");
        assert_ne!(error.code, 0);
    }
}

#[test]
fn pages_that_would_not_follow_the_policy_are_not_made() {
    let options = HostOptions::new()
        .numa(NumaPolicy::Preferred(0))
        .huge_pages(HugePages::Transparent)
        .populate(Populate::OnCreate);
    let Ok(provider) = HostProvider::new(options) else { return };
    let backing = provider.page_backing();
    // Systems that make shared pages huge at first touch need no help that ignores the policy.
    assert!(matches!(backing.fallback, Some(FallbackReason::MemoryPolicy) | None), "{backing:?}");
}
