//! Several threads, each with 200 living blocks of 512 B to 1 MiB, on streams of their own and on one together.

// A bench that can't go on has nobody to report to.
#![allow(clippy::expect_used)]

use alloc_core::DeviceAllocator;
use benches::allocators::{Peer, Visitor};
use benches::workload::{StreamChoice, churn_on_threads};
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime,
};

struct Threads<'a, 'c>(&'a mut BenchmarkGroup<'c, WallTime>, Peer, StreamChoice);

impl Visitor for Threads<'_, '_> {
    type Output = ();

    fn visit<A: DeviceAllocator + 'static>(self, allocator: A) {
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let counts = (0..).map(|power| 1 << power).take_while(|&count| count <= processors.max(2));
        for threads in counts {
            self.0.throughput(Throughput::Elements(u64::from(threads)));
            self.0.bench_with_input(BenchmarkId::new(self.1.to_string(), threads), &threads, |bencher, &threads| {
                bencher.iter_custom(|units| {
                    // A start of threads is worth thousands of steps: fewer would measure the start.
                    let steps = units.max(10_000);
                    let time = churn_on_threads(&allocator, threads, self.2, steps).expect("the steps");
                    time.mul_f64(units as f64 / steps as f64)
                });
            });
        }
    }
}

fn threads(criterion: &mut Criterion) {
    for (name, streams) in [("threads, own streams", StreamChoice::Own), ("threads, one stream", StreamChoice::Shared)]
    {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(20);
        for &peer in Peer::DEFAULT {
            peer.visit(1 << 30, false, Threads(&mut group, peer, streams)).expect("an allocator");
        }
        group.finish();
    }
}

criterion_group!(benches_of_threads, threads);
criterion_main!(benches_of_threads);
