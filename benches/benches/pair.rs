//! One block, allocated and released again and again.

// A bench that can't go on has nobody to report to.
#![allow(clippy::expect_used)]

use std::alloc::{GlobalAlloc, Layout as HeapLayout};
use std::hint::black_box;

use alloc_core::{DeviceAllocator, Layout};
use benches::allocators::{Peer, Visitor};
use benches::workload::pairs;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, criterion_group, criterion_main, measurement::WallTime};

const BYTES: [u64; 5] = [512, 4 << 10, 64 << 10, 1 << 20, 20 << 20];

struct Pairs<'a, 'c>(&'a mut BenchmarkGroup<'c, WallTime>, Peer);

impl Visitor for Pairs<'_, '_> {
    type Output = ();

    fn visit<A: DeviceAllocator + 'static>(self, allocator: A) {
        for bytes in BYTES {
            let layout = Layout::bytes(bytes).expect("a small layout");
            self.0.bench_with_input(BenchmarkId::new(self.1.to_string(), bytes), &layout, |bencher, &layout| {
                bencher.iter(|| pairs(&allocator, layout, 1).expect("a pair"));
            });
        }
    }
}

fn pair(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pair");
    for &peer in Peer::DEFAULT {
        peer.visit(BYTES[4], false, Pairs(&mut group, peer)).expect("an allocator");
    }
    heap_pair(&mut group, "mimalloc as a heap", mimalloc::MiMalloc);
    #[cfg(feature = "jemalloc")]
    heap_pair(&mut group, "jemalloc as a heap", tikv_jemallocator::Jemalloc);
    group.finish();
}

/// A pair of 64 B through a heap itself: what the pool's pairs are measured against.
fn heap_pair(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, heap: impl GlobalAlloc) {
    let layout = HeapLayout::new::<[u64; 8]>();
    group.bench_function(BenchmarkId::new(name, 64), |bencher| {
        bencher.iter(|| {
            // SAFETY: the layout's size is not zero; what it gives is released once, by the same layout.
            unsafe { heap.dealloc(black_box(heap.alloc(black_box(layout))), layout) };
        });
    });
}

criterion_group!(benches_of_pairs, pair);
criterion_main!(benches_of_pairs);
