//! Copies and fills of host memory, through buffers and, for comparison, by the language itself.

// A bench that can't go on has nobody to report to.
#![allow(clippy::expect_used)]

use std::sync::Arc;

use alloc_core::AllocatorHandle;
use benches::allocators::host_pool;
use buffer::Buffer;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const BYTES: [u64; 5] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20];

fn copy(criterion: &mut Criterion) {
    let handle = AllocatorHandle::from(Arc::new(host_pool(1 << 30, true).expect("a pool")));
    let mut group = criterion.benchmark_group("copy");
    group.sample_size(20);
    for bytes in BYTES {
        group.throughput(Throughput::Bytes(bytes));
        let source = Buffer::zeroed(handle.clone(), bytes).expect("a buffer");
        let mut target = Buffer::zeroed(handle.clone(), bytes).expect("a buffer");
        group.bench_function(BenchmarkId::new("Buffer::copy_from", bytes), |bencher| {
            bencher.iter(|| assert_eq!(target.copy_from(&source).expect("a copy"), bytes));
        });
        group.bench_function(BenchmarkId::new("Buffer::fill", bytes), |bencher| {
            bencher.iter(|| target.fill(7).expect("a fill"));
        });
        let plain = vec![1_u8; bytes as usize];
        let mut other = vec![2_u8; bytes as usize];
        group.bench_function(BenchmarkId::new("slice::copy_from_slice", bytes), |bencher| {
            bencher.iter(|| std::hint::black_box(&mut other).copy_from_slice(std::hint::black_box(&plain)));
        });
    }
    group.finish();
}

criterion_group!(benches_of_copies, copy);
criterion_main!(benches_of_copies);
