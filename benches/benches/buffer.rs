//! Buffers made and dropped: what ownership costs over the allocator itself.

// A bench that can't go on has nobody to report to.
#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::sync::Arc;

use alloc_core::AllocatorHandle;
use benches::allocators::host_pool;
use buffer::Buffer;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn create_and_drop(criterion: &mut Criterion) {
    let shared = AllocatorHandle::from(Arc::new(host_pool(20 << 20, false).expect("a pool")));
    // Lives as long as the process, like a global allocator.
    let global = AllocatorHandle::Global(Box::leak(Box::new(host_pool(20 << 20, false).expect("a pool"))));
    let mut group = criterion.benchmark_group("buffer");
    for bytes in [512_u64, 64 << 10, 1 << 20, 20 << 20] {
        for (name, handle) in [("global allocator", &global), ("shared allocator", &shared)] {
            group.bench_with_input(BenchmarkId::new(name, bytes), &bytes, |bencher, &bytes| {
                bencher.iter(|| drop(black_box(Buffer::new(handle.clone(), black_box(bytes)).expect("a buffer"))));
            });
        }
    }
    group.finish();
}

criterion_group!(benches_of_buffers, create_and_drop);
criterion_main!(benches_of_buffers);
