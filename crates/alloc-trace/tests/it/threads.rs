//! A replay with a thread for every recorded one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::ThreadId;

use alloc_core::Stream;
use alloc_trace::{Action, Replay, ReplayError, Threading, Touch};

use crate::support::{Call, Model, random_rows, row, trace};

use Action::{Allocate, Free};

#[test]
fn blocks_are_handed_from_thread_to_thread() {
    for seed in 1..8 {
        let rows = random_rows(seed, 3000, 4, 2);
        let trace = trace(&rows);
        let model = Model::new();
        let reports = Replay::new(&trace)
            .passes(3)
            .threading(Threading::PerRecordedThread)
            .touch(Touch::Pages)
            .run(&model)
            .unwrap();
        let blocks = trace.blocks().len();
        let books = model.books();
        assert!(books.living.is_empty());
        assert_eq!(books.calls.len(), 3 * 2 * blocks);
        let mut allocated: Vec<u64> = books
            .calls
            .iter()
            .filter_map(|call| match call {
                Call::Allocate(bytes, _) => Some(*bytes),
                Call::Release(..) => None,
            })
            .collect();
        let mut expected: Vec<u64> = trace.blocks().iter().map(|block| block.bytes).collect::<Vec<_>>().repeat(3);
        allocated.sort_unstable();
        expected.sort_unstable();
        assert_eq!(allocated, expected);
        for report in reports {
            assert_eq!((report.threads, report.operations), (4, 2 * blocks as u64));
        }
    }
}

#[test]
fn a_pipeline_across_two_threads_keeps_its_order() {
    // Thread 1 allocates everything, thread 2 releases everything.
    let rows: Vec<_> =
        (1..=500).flat_map(|at| [row(1, Allocate, at * 64, at, 1), row(2, Free, at * 64, at, 2)]).collect();
    let model = Model::new();
    Replay::new(&trace(&rows)).passes(2).threading(Threading::PerRecordedThread).run(&model).unwrap();
    let calls = &model.books().calls;
    let of = |stream: u64| {
        calls.iter().filter(move |call| match call {
            Call::Allocate(_, on) | Call::Release(_, on) => *on == Stream::from_raw(stream),
        })
    };
    assert!(of(1).eq(&(1..=500).map(|bytes| Call::Allocate(bytes, Stream::from_raw(1))).collect::<Vec<_>>().repeat(2)));
    assert!(of(2).eq(&(1..=500).map(|bytes| Call::Release(bytes, Stream::from_raw(2))).collect::<Vec<_>>().repeat(2)));
}

#[test]
fn each_recorded_thread_is_one_thread_throughout() {
    let rows = random_rows(11, 400, 3, 3);
    let trace = trace(&rows);
    let seen = Arc::new(std::sync::Mutex::new(Vec::<(Stream, ThreadId)>::new()));
    // One stream for each thread, so that the hook knows whose block it is.
    let rows: Vec<_> =
        trace.rows().map(|row| alloc_trace::Row { stream: Stream::from_raw(row.thread + 1), ..row }).collect();
    let trace = crate::support::trace(&rows);
    let sink = Arc::clone(&seen);
    let hook = Touch::With(Arc::new(move |_, stream| {
        sink.lock().unwrap().push((stream, std::thread::current().id()));
        Ok(())
    }));
    Replay::new(&trace).passes(2).threading(Threading::PerRecordedThread).touch(hook).run(&Model::new()).unwrap();
    let mut pairs = seen.lock().unwrap().clone();
    pairs.sort_by_key(|pair| pair.0);
    pairs.dedup();
    assert_eq!(pairs.len(), 3, "three recorded threads, each on one thread in both passes");
}

#[test]
fn a_failure_in_one_thread_stops_all_and_releases_all() {
    let rows = random_rows(13, 1000, 4, 2);
    let trace = trace(&rows);
    for number in (0..400).step_by(13) {
        let model = Model::failing_at(number);
        let error = Replay::new(&trace).passes(2).threading(Threading::PerRecordedThread).run(&model).unwrap_err();
        let ReplayError::Allocate { pass: 1, operation, bytes, .. } = error else { panic!("{error}") };
        assert_eq!(rows[operation as usize].bytes, bytes);
        assert!(model.books().living.is_empty(), "allocation {number}");
    }
}

#[test]
fn a_panic_of_the_allocator_reaches_the_caller_and_nobody_waits_for_ever() {
    let trace = trace(&random_rows(17, 500, 3, 1));
    let hook = Touch::With(Arc::new(|block, _| if block.size() > 100 { panic!("hook") } else { Ok(()) }));
    let replay = Replay::new(&trace).threading(Threading::PerRecordedThread).touch(hook);
    let model = Model::new();
    assert!(catch_unwind(AssertUnwindSafe(|| replay.run(&model))).is_err());
}
