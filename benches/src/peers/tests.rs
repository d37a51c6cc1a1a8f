use std::time::Duration;

use alloc_core::adaptor::Limited;
use alloc_core::{DeviceAllocator, Stream};
use alloc_cpu::HostProvider;
use alloc_pool::Pool;

use super::plan::RandomAllocations;
use super::producer_consumer::Kind;
use super::*;
use crate::allocators::host_pool;
use crate::workload::{Churning, WorkloadError};

const SHORT: Schedule = Schedule { warm: Duration::from_millis(1), round: Duration::from_millis(4), rounds: 2 };

type Workload<A> = (&'static str, fn(&A, &[Stream]) -> Result<u64, WorkloadError>);

fn workloads<A: DeviceAllocator>() -> Vec<Workload<A>> {
    vec![
        ("pair", |allocator, streams| Ok(pair::run(allocator, streams[0], 4096, SHORT)?.ops)),
        ("churn", |allocator, streams| {
            let mut churning = Churning::start(allocator, streams[0], &plan::churn())?;
            Ok(SHORT.measure(|units| churning.steps(units))?.ops)
        }),
        ("random", |allocator, streams| {
            let plan = RandomAllocations::new(4, 500);
            Ok(random_allocations::pass(allocator, streams[0], &plan, random_allocations::LIMIT)?.ops)
        }),
        ("threads", |allocator, streams| Ok(threads::run(allocator, streams, SHORT)?.ops)),
        ("producer/consumer", |allocator, streams| {
            Ok(producer_consumer::run(allocator, streams, Kind::TwoThreads, SHORT)?.ops)
        }),
        ("ring", |allocator, streams| {
            Ok(producer_consumer::run(allocator, streams, Kind::OneThreadThroughTheRing, SHORT)?.ops)
        }),
        ("batch", |allocator, streams| {
            Ok(producer_consumer::run(allocator, streams, Kind::OneThreadBatchByBatch, SHORT)?.ops)
        }),
        ("larson", |allocator, streams| Ok(larson::run(allocator, streams, SHORT)?.ops)),
        ("xmalloc", |allocator, streams| Ok(xmalloc::run(allocator, streams, SHORT)?.ops)),
    ]
}

fn streams() -> [Stream; 2] {
    [1, 2].map(Stream::from_raw)
}

fn pool() -> Pool<HostProvider> {
    host_pool(1 << 33, false).unwrap()
}

#[test]
fn every_workload_works_and_releases_all_its_blocks() {
    for (name, run) in workloads() {
        let pool = pool();
        let ops = run(&pool, &streams()).unwrap();
        assert!(ops > 0, "{name}");
        let requested = pool.statistics().requested;
        assert_eq!(requested.current, 0, "{name}");
        // Warming up and what is not whole at the end come on top.
        assert!(requested.count >= if name == "random" { 500 } else { ops }, "{name}: {ops}, {requested:?}");
    }
}

#[test]
fn every_workload_releases_all_its_blocks_when_an_allocation_fails() {
    for (name, run) in workloads() {
        // Too little even for a pair.
        let limited = Limited::new(pool(), if name == "pair" { 1024 } else { 1 << 20 });
        let outcome = run(&limited, &streams());
        assert!(matches!(outcome, Err(WorkloadError::Allocate(_))), "{name}: {outcome:?}");
        assert_eq!(limited.statistics().requested.current, 0, "{name}");
    }
}
