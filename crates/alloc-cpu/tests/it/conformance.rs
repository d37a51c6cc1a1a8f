//! The contract's own suite over every allocator of this crate.

use alloc_core::conformance::Options;
use alloc_cpu::{HostOptions, HostPool, HugePages, Populate, SystemAllocator};
use alloc_pool::PoolConfig;

fn pool(options: HostOptions, config: PoolConfig) -> HostPool {
    alloc_cpu::pool().options(options).config(config).build().unwrap()
}

alloc_core::conformance! { system, SystemAllocator::new }

alloc_core::conformance! { pooled, || pool(HostOptions::new(), PoolConfig::default()) }

alloc_core::conformance! {
    pooled_within_a_small_machine,
    || pool(HostOptions::new().capacity_bytes(128 << 20), PoolConfig { thread_cache: 0, ..PoolConfig::default() }),
    Options { capacity: Some(128 << 20), ..Options::default() }
}

alloc_core::conformance! {
    pooled_in_populated_huge_pages,
    || pool(
        HostOptions::new().huge_pages(HugePages::Transparent).populate(Populate::OnMap),
        PoolConfig { growth_slack: 0.0, max_piece: 2 << 20, ..PoolConfig::default() },
    )
}
