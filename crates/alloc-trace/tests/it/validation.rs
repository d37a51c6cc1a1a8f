//! Rows that contradict each other: an error, or counted and repaired.

use alloc_trace::{Action, Anomaly, OperationKind, Policy, Profile, Row, Trace, TraceError, validate};

use crate::support::row;

use Action::{Allocate, Free};

fn numbered(rows: &[Row]) -> impl Iterator<Item = Result<Row, TraceError>> + '_ {
    (2_u64..).zip(rows).map(|(line, &row)| Ok(Row { line, ..row }))
}

#[test]
fn strict_names_the_first_contradiction() {
    let unknown = [row(1, Allocate, 16, 8, 0), row(1, Free, 32, 8, 0)];
    let error = Trace::from_rows(numbered(&unknown), Policy::Strict).unwrap_err();
    assert!(
        matches!(error, TraceError::Inconsistent(Anomaly::UnknownFree { line: 3, pointer }) if pointer.get() == 32)
    );

    let twice = [row(1, Allocate, 16, 8, 0), row(1, Allocate, 16, 9, 0)];
    let error = Trace::from_rows(numbered(&twice), Policy::Strict).unwrap_err();
    assert!(matches!(error, TraceError::Inconsistent(Anomaly::DoubleAllocate { line: 3, first: 2, .. })));
    assert_eq!(error.line(), Some(3));

    let double_free = [row(1, Allocate, 16, 8, 0), row(1, Free, 16, 8, 0), row(1, Free, 16, 8, 0)];
    let error = Trace::from_rows(numbered(&double_free), Policy::Strict).unwrap_err();
    assert!(matches!(error, TraceError::Inconsistent(Anomaly::UnknownFree { line: 4, .. })));

    let other_size = [row(1, Allocate, 16, 8, 0), row(1, Free, 16, 9, 0)];
    let error = Trace::from_rows(numbered(&other_size), Policy::Strict).unwrap_err();
    assert!(matches!(error, TraceError::Inconsistent(Anomaly::SizeMismatch { line: 3, allocated: 8, freed: 9, .. })));
}

#[test]
fn lenient_counts_and_repairs() {
    let rows = [
        row(1, Free, 64, 8, 0),
        row(1, Allocate, 16, 100, 0),
        row(1, Allocate, 16, 50, 1),
        row(1, Free, 16, 51, 0),
        row(1, Free, 16, 50, 0),
    ];
    let trace = Trace::from_rows(numbered(&rows), Policy::Lenient).unwrap();
    let anomalies = trace.anomalies();
    assert_eq!((anomalies.unknown_frees, anomalies.double_allocations, anomalies.size_mismatches), (2, 1, 1));
    assert!(matches!(anomalies.first, Some(Anomaly::UnknownFree { line: 2, .. })));
    let kinds: Vec<_> = trace.operations().iter().map(|operation| (operation.kind, operation.block)).collect();
    let (born, ended) = (OperationKind::Allocate, OperationKind::Release);
    assert_eq!(kinds, [(born, 0), (ended, 0), (born, 1), (ended, 1)]);
    let profile = Profile::of(&trace);
    assert_eq!((profile.peak_live_bytes, profile.live_bytes_at_end), (100, 0));
    // What was repaired is consistent when it is read again.
    assert_eq!(validate(trace.rows().map(Ok)).unwrap().count(), 0);
    assert_eq!(validate(numbered(&rows)).unwrap(), *anomalies);
}

#[test]
fn many_blocks_of_zero_bytes_may_share_the_null_pointer() {
    let rows = [row(1, Allocate, 0, 0, 0), row(1, Allocate, 0, 0, 0), row(1, Free, 0, 0, 0), row(1, Free, 0, 0, 0)];
    let trace = Trace::from_rows(numbered(&rows), Policy::Strict).unwrap();
    assert_eq!((trace.blocks().len(), trace.operations().len()), (2, 4));
    // Freeing the null pointer once more does nothing, as everywhere.
    let rows = [row(1, Free, 0, 0, 0)];
    assert!(Trace::from_rows(numbered(&rows), Policy::Strict).unwrap().operations().is_empty());
}

#[test]
fn live_bytes_beyond_64_bits_are_an_error() {
    let rows = [row(1, Allocate, 16, u64::MAX, 0), row(1, Allocate, 32, 1, 0)];
    let error = Trace::from_rows(numbered(&rows), Policy::Strict).unwrap_err();
    assert!(matches!(error, TraceError::LiveOverflow { line: 3 }));
}
