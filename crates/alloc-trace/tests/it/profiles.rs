//! The profile is exact: the same as a naive count that looks at all living blocks after every row.

use std::collections::{BTreeMap, BTreeSet};

use alloc_trace::{Action, Profile};

use crate::support::{random_rows, row, trace};

#[test]
fn a_profile_equals_a_naive_count() {
    for seed in 1..20 {
        let rows = random_rows(seed, 700, 3, 3);
        let trace = trace(&rows);
        let profile = Profile::of(&trace);

        let mut living: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        let mut live = Vec::new();
        let mut peak_by_stream: BTreeMap<u64, u64> = BTreeMap::new();
        for row in &rows {
            match row.action {
                Action::Allocate => {
                    living.insert(row.pointer.get(), (row.bytes, row.stream.handle()));
                }
                _ => {
                    living.remove(&row.pointer.get());
                }
            }
            live.push((living.values().map(|block| block.0).sum::<u64>(), living.len() as u64));
            for stream in 0..3 {
                let bytes = living.values().filter(|block| block.1 == stream).map(|block| block.0).sum();
                let peak = peak_by_stream.entry(stream).or_default();
                *peak = (*peak).max(bytes);
            }
        }
        assert!(trace.live().map(|point| (point.live_bytes, point.live_blocks)).eq(live.iter().copied()));
        let peak = live.iter().map(|point| point.0).max().unwrap();
        assert_eq!(profile.peak_live_bytes, peak);
        assert_eq!(profile.peak_operation as usize, live.iter().position(|point| point.0 == peak).unwrap());
        assert_eq!(profile.peak_live_blocks, live.iter().map(|point| point.1).max().unwrap());
        assert_eq!((profile.live_bytes_at_end, profile.live_blocks_at_end), *live.last().unwrap());

        let allocated: Vec<u64> =
            rows.iter().filter(|row| row.action == Action::Allocate).map(|row| row.bytes).collect();
        assert_eq!(profile.allocations, allocated.len() as u64);
        assert_eq!(profile.operations(), rows.len() as u64);
        assert_eq!(profile.total_bytes, allocated.iter().map(|&bytes| u128::from(bytes)).sum::<u128>());
        assert_eq!(profile.distinct_sizes, allocated.iter().collect::<BTreeSet<_>>().len() as u64);
        for class in &profile.sizes {
            let inside = || allocated.iter().filter(|&&bytes| class.from <= bytes && bytes <= class.to);
            assert_eq!(class.blocks, inside().count() as u64);
            assert_eq!(class.bytes, inside().map(|&bytes| u128::from(bytes)).sum::<u128>());
        }
        assert_eq!(profile.sizes.iter().map(|class| class.blocks).sum::<u64>(), profile.allocations);
        for (stream, part) in trace.streams().iter().zip(&profile.streams) {
            assert_eq!(part.peak_live_bytes, peak_by_stream[&stream.handle()]);
        }
        assert_eq!(profile.streams.iter().map(|part| part.releases).sum::<u64>(), profile.releases);
        assert_eq!(profile.threads.iter().map(|part| part.allocations).sum::<u64>(), profile.allocations);
    }
}

#[test]
fn size_classes_meet_at_powers_of_two_up_to_the_limit() {
    let sizes = [0, 1, 2, 3, 4, 1023, 1024, 1 << 62];
    let rows: Vec<_> = (1..).zip(sizes).map(|(at, bytes)| row(1, Action::Allocate, at * 16, bytes, 0)).collect();
    let profile = Profile::of(&trace(&rows));
    let classes: Vec<_> = profile.sizes.iter().map(|class| (class.from, class.to, class.blocks)).collect();
    assert_eq!(
        classes,
        [(0, 0, 1), (1, 1, 1), (2, 3, 2), (4, 7, 1), (512, 1023, 1), (1024, 2047, 1), (1 << 62, (1 << 63) - 1, 1)]
    );
}

#[test]
fn a_timeline_is_short_and_keeps_the_peak() {
    let trace = trace(&random_rows(9, 1000, 1, 1));
    let profile = Profile::of(&trace);
    for points in [1, 7, 64, 5000] {
        let timeline = trace.timeline(points);
        assert!(!timeline.is_empty() && timeline.len() <= points);
        assert_eq!(timeline.iter().map(|point| point.live_bytes).max(), Some(profile.peak_live_bytes));
        assert!(timeline.is_sorted_by_key(|point| point.operation));
    }
}

#[test]
fn an_empty_trace_has_an_empty_profile() {
    let trace = trace(&[]);
    assert_eq!(Profile::of(&trace), Profile::default());
    assert!(trace.timeline(10).is_empty());
}
