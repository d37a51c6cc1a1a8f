//! A replay on one thread: the calls it makes, the figures it reports, and that it loses nothing when it fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::{AllocError, Device, DeviceAllocator, LayoutError, ReleaseError, Stream, TransferError};
use alloc_trace::{Action, Profile, Replay, ReplayError, Touch};

use crate::support::{Call, Model, random_rows, row, trace};

use Action::{Allocate, Free};

#[test]
fn the_calls_are_those_of_the_log_and_what_lives_at_the_end_is_released() {
    let rows = [
        row(1, Allocate, 16, 100, 5),
        row(1, Allocate, 32, 200, 6),
        row(1, Free, 16, 100, 6),
        row(1, Allocate, 16, 0, 5),
    ];
    let trace = trace(&rows);
    let model = Model::new();
    let reports = Replay::new(&trace).passes(2).run(&model).unwrap();
    let (five, six) = (Stream::from_raw(5), Stream::from_raw(6));
    let pass = [
        Call::Allocate(100, five),
        Call::Allocate(200, six),
        Call::Release(100, six),
        Call::Allocate(0, five),
        Call::Release(200, six),
        Call::Release(0, five),
    ];
    assert_eq!(model.books().calls, [pass, pass].concat());
    assert!(model.books().living.is_empty());
    assert_eq!(reports.iter().map(|report| (report.pass, report.operations)).collect::<Vec<_>>(), [(1, 6), (2, 6)]);
}

#[test]
fn the_report_is_the_difference_between_two_statistics() {
    let trace = trace(&random_rows(1, 2000, 1, 2));
    let profile = Profile::of(&trace);
    let model = Model::new();
    let reports = Replay::new(&trace).passes(3).run(&model).unwrap();
    for report in &reports {
        assert_eq!(report.allocations, profile.allocations);
        assert_eq!(report.operations, 2 * profile.allocations);
        assert_eq!((report.misses(), report.hits(), report.moves()), (profile.allocations, 0, 0));
        assert_eq!(report.provider_calls().create, profile.allocations);
        assert_eq!(report.provider_calls().release, profile.allocations);
        assert_eq!(report.peak_live, profile.peak_live_bytes);
        assert_eq!(report.after.requested.peak, profile.peak_live_bytes);
        assert_eq!(report.reserved_at_end(), Some(0));
        assert!(report.elapsed.as_nanos() > 0 && report.ns_per_operation() > 0.0);
    }
    // In the first pass the peak is exact. The model gives all back, so that later passes have an upper bound.
    assert_eq!(reports[0].peak_reserved(), Some(model.books().statistics.reserved.peak));
    assert_eq!(reports[1].peak_reserved(), Some(model.books().statistics.reserved.peak));
    let ratio = reports[0].reserved_ratio().unwrap();
    assert!(ratio >= 1.0 && (ratio - reports[0].after.reserved.peak as f64 / profile.peak_live_bytes as f64) == 0.0);
}

#[test]
fn random_programs_leave_nothing_behind_through_a_trait_object_too() {
    for seed in 1..10 {
        let rows = random_rows(seed, 1500, 4, 3);
        let trace = trace(&rows);
        let model = Model::new();
        let object: &dyn DeviceAllocator = &model;
        Replay::new(&trace).passes(2).run(object).unwrap();
        let books = model.books();
        assert!(books.living.is_empty());
        let logged: Vec<_> = rows
            .iter()
            .map(|row| match row.action {
                Allocate => Call::Allocate(row.bytes, row.stream),
                _ => Call::Release(row.bytes, row.stream),
            })
            .collect();
        assert_eq!(books.calls[..rows.len()], logged);
        assert_eq!(books.calls[books.calls.len() / 2..][..rows.len()], logged);
    }
}

#[test]
fn a_failure_at_any_allocation_releases_all_and_says_where() {
    let rows = random_rows(3, 300, 1, 2);
    let trace = trace(&rows);
    let allocations: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].action == Allocate).collect();
    for (number, &at) in (0_u64..).zip(&allocations) {
        let model = Model::failing_at(number);
        let error = Replay::new(&trace).run(&model).unwrap_err();
        let ReplayError::Allocate { pass, operation, bytes, stream, living, source } = error else { panic!("{error}") };
        assert_eq!((pass, operation as usize, bytes, stream), (1, at, rows[at].bytes, rows[at].stream));
        let frees = rows[..at].iter().filter(|row| row.action == Free).count() as u64;
        assert_eq!(living, number - frees);
        assert!(matches!(source, AllocError::OutOfMemory(figures) if figures.requested == bytes));
        assert!(model.books().living.is_empty(), "allocation {number}");
    }
    let model = Model::failing_at(allocations.len() as u64);
    let error = Replay::new(&trace).passes(2).run(&model).unwrap_err();
    assert!(matches!(error, ReplayError::Allocate { pass: 2, operation: 0, living: 0, .. }));
}

#[test]
fn a_refused_release_ends_the_replay_and_releases_the_others() {
    let rows = random_rows(5, 200, 1, 1);
    let trace = trace(&rows);
    let total = trace.blocks().len() as u64;
    for number in 0..total {
        let model = Model::refusing_at(number);
        let error = Replay::new(&trace).run(&model).unwrap_err();
        let ReplayError::Release { pass: 1, operation, source: ReleaseError::Foreign { .. } } = error else {
            panic!("{error}")
        };
        assert!(operation as usize <= rows.len());
        assert_eq!(model.books().living.len(), 1, "only the block that was refused is left");
    }
}

#[test]
fn touching_writes_to_every_page_of_every_block() {
    let trace = trace(&random_rows(6, 500, 1, 1));
    let filled = trace.blocks().iter().filter(|block| block.bytes > 0).count() as u64;
    let model = Model::new();
    Replay::new(&trace).touch(Touch::Pages).run(&model).unwrap();
    assert_eq!(model.books().touched_blocks, filled);
    let model = Model::new();
    Replay::new(&trace).run(&model).unwrap();
    assert_eq!(model.books().touched_blocks, 0);
}

#[test]
fn a_hook_touches_what_the_processor_cannot() {
    let trace = trace(&random_rows(7, 500, 1, 1));
    let device = Device::cuda(0);
    let error = Replay::new(&trace).touch(Touch::Pages).run(&Model::on(device)).unwrap_err();
    assert!(matches!(error, ReplayError::NotHostAccessible { device: refused } if refused == device));

    let bytes = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&bytes);
    let hook = Touch::With(Arc::new(move |block, _| {
        seen.fetch_add(block.size(), Ordering::Relaxed);
        Ok(())
    }));
    Replay::new(&trace).touch(hook).run(&Model::on(device)).unwrap();
    assert_eq!(u128::from(bytes.load(Ordering::Relaxed)), Profile::of(&trace).total_bytes);

    let left = Arc::new(AtomicU64::new(10));
    let hook = Touch::With(Arc::new(move |_, _| match left.fetch_sub(1, Ordering::Relaxed) {
        1 => Err(TransferError::Unsupported { from: Device::CPU, to: Device::cuda(0) }),
        _ => Ok(()),
    }));
    let model = Model::on(device);
    let error = Replay::new(&trace).touch(hook).run(&model).unwrap_err();
    assert!(matches!(error, ReplayError::Touch { pass: 1, .. }));
    assert!(model.books().living.is_empty());
}

#[test]
fn real_streams_must_be_given() {
    let trace = trace(&[row(1, Allocate, 16, 100, 0xabc), row(1, Free, 16, 100, 0)]);
    let device = Device::cuda(0);
    let error = Replay::new(&trace).run(&Model::on(device)).unwrap_err();
    assert!(matches!(error, ReplayError::Streams { expected: 2, given: 0, .. }));
    let error = Replay::new(&trace).streams([Stream::DEFAULT]).run(&Model::on(device)).unwrap_err();
    assert!(matches!(error, ReplayError::Streams { expected: 2, given: 1, .. }));

    let model = Model::on(device);
    let (first, second) = (Stream::from_raw(1), Stream::with_identity(2, 7));
    Replay::new(&trace).streams([first, second]).run(&model).unwrap();
    assert_eq!(model.books().calls, [Call::Allocate(100, first), Call::Release(100, second)]);
}

#[test]
fn a_block_beyond_every_layout_is_an_error_before_anything_is_allocated() {
    let trace = trace(&[row(1, Allocate, 16, 8, 0), row(1, Allocate, 32, u64::MAX - 8, 0)]);
    let model = Model::new();
    let error = Replay::new(&trace).run(&model).unwrap_err();
    assert!(matches!(error, ReplayError::Layout { operation: 1, source: LayoutError::Overflow { .. } }));
    assert!(model.books().calls.is_empty());
}

#[test]
fn an_empty_trace_replays_to_nothing() {
    let reports = Replay::new(&trace(&[])).passes(2).run(&Model::new()).unwrap();
    assert_eq!((reports.len(), reports[0].operations, reports[0].reserved_ratio()), (2, 0, None));
}
