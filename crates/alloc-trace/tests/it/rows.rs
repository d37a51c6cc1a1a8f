//! The forms that logs take, and the line numbers of those that are malformed.

use alloc_trace::{Action, Policy, Reader, Row, RowProblem, Trace, TraceError};

use crate::support::HEADER;

fn rows(log: &str) -> Vec<Row> {
    Reader::new(log.as_bytes()).unwrap().map(Result::unwrap).collect()
}

fn first_error(log: &str) -> TraceError {
    Reader::new(log.as_bytes()).unwrap().find_map(Result::err).unwrap()
}

#[test]
fn a_preamble_comments_blank_lines_and_carriage_returns_are_passed_over() {
    let log = "\u{feff}recorded by a tool\nof some kind, version 2\n\nThread,Time,Action,Pointer,Size,Stream\r\n\
               # a comment\r\n\r\n1,00:00:00.5,allocate,0x10,5,0x0\r\n1,00:00:00.6,free,0x10,5,0x0";
    let rows = rows(log);
    assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [7, 8]);
    assert_eq!(rows[1].action, Action::Free);
}

#[test]
fn a_log_without_a_header_has_the_usual_columns() {
    let rows = rows("1979932,14:21:19.998533,allocate,0x30a000000,256,0x2\n");
    assert_eq!((rows[0].thread, rows[0].bytes, rows[0].stream.handle()), (1_979_932, 256, 2));
    assert_eq!(rows[0].time.as_micros(), ((14 * 60 + 21) * 60 + 19) * 1_000_000 + 998_533);
}

#[test]
fn columns_are_found_by_their_names() {
    let found = rows("size,note,Pointer,ACTION\n77,x,0xab,allocate\n");
    assert_eq!((found[0].bytes, found[0].pointer.get(), found[0].thread), (77, 0xab, 0));
    let error = first_error("Thread,Time,Action,Pointer,Stream\n");
    assert!(matches!(error, TraceError::MissingColumn { line: 1, column: "Size" }));
}

#[test]
fn failed_allocations_are_counted_and_are_no_operations() {
    let log = format!(
        "{HEADER}1,00:00:00.1,allocate,0x10,5,0x0\n1,00:00:00.2,allocate failure,(nil),999,0x0\n\
         1,00:00:00.2,allocate failure,0x0,999,0\n1,00:00:00.3,free,0x10,5,0x0\n"
    );
    let trace = Trace::from_rows(Reader::new(log.as_bytes()).unwrap(), Policy::Strict).unwrap();
    assert_eq!((trace.operations().len(), trace.failures(), trace.anomalies().count()), (2, 2, 0));
}

#[test]
fn a_bad_row_anywhere_is_an_error_with_its_line() {
    let good = "1,00:00:00.1,allocate,0x10,5,0x0\n";
    for (bad, problem) in [
        ("1,00:00:00.1,allocate,0x10,5\n", RowProblem::Fields { expected: 6, found: 5 }),
        ("1,00:00:00.1,Allocate!,0x10,5,0x0\n", RowProblem::Action),
        ("1,00:00:00.1,free,0xzz,5,0x0\n", RowProblem::Pointer),
        ("1,00:00:00.1,free,0x10,5.5,0x0\n", RowProblem::Size),
        ("1,00:00:00.1,free,0x10,99999999999999999999,0x0\n", RowProblem::Size),
        ("1,soon,free,0x10,5,0x0\n", RowProblem::Time),
        ("\u{0}\u{0}\u{0}\n", RowProblem::Fields { expected: 6, found: 1 }),
    ] {
        for before in [0, 1, 7] {
            let error = first_error(&format!("{HEADER}{}{bad}{good}", good.repeat(before)));
            let TraceError::Row { line, problem: found, text } = error else { panic!("{error}") };
            assert_eq!((line, found), (before as u64 + 2, problem));
            assert_eq!(text, bad.trim_end());
        }
    }
}

#[test]
fn the_first_row_of_a_log_without_a_header_may_not_be_malformed() {
    let error = first_error("1,00:00:00.1,allocate,0x10\n1,00:00:00.1,allocate,0x10,5,0x0\n");
    assert!(matches!(error, TraceError::NoHeader { line: 1, .. }), "{error}");
}
