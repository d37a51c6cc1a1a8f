//! 2,000 living blocks of 512 B to 16 MiB, one of which is replaced in each step; the same sequence for all.

// A bench that can't go on has nobody to report to.
#![allow(clippy::expect_used)]

use alloc_core::{DeviceAllocator, Stream};
use benches::allocators::{Peer, Visitor};
use benches::workload::{Churn, Churning, OffsetChurning};
use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime};

struct Steps<'a, 'c>(&'a mut BenchmarkGroup<'c, WallTime>, Peer, &'a Churn);

impl Visitor for Steps<'_, '_> {
    type Output = ();

    fn visit<A: DeviceAllocator + 'static>(self, allocator: A) {
        let mut churning = Churning::start(&allocator, Stream::DEFAULT, self.2).expect("the first blocks");
        self.0.bench_function(self.1.to_string(), |bencher| {
            bencher.iter(|| churning.steps(1).expect("a step"));
        });
    }
}

fn churn(criterion: &mut Criterion) {
    let churn = Churn::large();
    let mut group = criterion.benchmark_group("churn");
    for &peer in Peer::DEFAULT {
        peer.visit(churn.most_bytes(), false, Steps(&mut group, peer, &churn)).expect("an allocator");
    }
    let mut offsets = OffsetChurning::start(&churn).expect("the churn fits in 32 bits");
    group.bench_function("offset-allocator", |bencher| bencher.iter(|| assert!(offsets.steps(1))));
    group.finish();
}

criterion_group!(benches_of_churn, churn);
criterion_main!(benches_of_churn);
