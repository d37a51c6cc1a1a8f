//! The replay program: its JSON, its tables, its options, and how it fails.

use std::fs;
use std::process::{Command, Output};

use alloc_trace::{Policy, Trace};
use serde_json::Value;

fn replay(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_replay")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A trace file of three allocations, 12 KiB live at most.
fn small_trace(folder: &tempfile::TempDir) -> String {
    let path = folder.path().join("small.trace.csv");
    let log = "Thread,Time,Action,Pointer,Size,Stream\n\
               1,00:00:00.1,allocate,0x1000,4096,0x0\n\
               2,00:00:00.2,allocate,0x2000,8192,0x7\n\
               1,00:00:00.3,free,0x2000,8192,0x7\n\
               1,00:00:00.4,allocate,0x2000,100,0x0\n";
    fs::write(&path, log).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn json_has_one_object_a_line_with_the_promised_fields() {
    let folder = tempfile::tempdir().unwrap();
    let trace = small_trace(&folder);
    let output =
        replay(&["--trace", &trace, "--json", "--passes", "2", "--allocator", "original", "--allocator", "system"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let records: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Two allocators and the loop itself, two passes each.
    assert_eq!(records.len(), 6);
    let of = |allocator: &str, pass: u64| {
        records.iter().find(|record| record["allocator"] == allocator && record["pass"] == pass).unwrap()
    };
    for record in &records {
        assert_eq!(
            (&record["bench"], &record["backend"], &record["trace"]),
            (&"replay".into(), &"cpu".into(), &"small".into())
        );
        assert_eq!((&record["ops"], &record["peak_live"]), (&6.into(), &12288.into()));
        assert!(record["ns_per_op"].as_f64().unwrap() > 0.0);
        assert_eq!(
            (&record["device"], &record["threads"], &record["touch"]),
            (&"cpu:0".into(), &1.into(), &false.into())
        );
    }
    let (first, second) = (of("original", 1), of("original", 2));
    assert_eq!(first["provider_calls"]["create"], 2);
    assert_eq!(second["provider_calls"]["create"], 0);
    for kind in ["map", "unmap", "release"] {
        assert_eq!(first["provider_calls"][kind], 0);
    }
    assert_eq!((&first["peak_reserved"], &first["reserved_ratio"]), (&12288.into(), &1.0.into()));
    assert!(of("system", 1)["peak_reserved"].is_null() && of("system", 1)["provider_calls"].is_null());
}

#[test]
fn the_tables_name_traces_allocators_and_ratios() {
    let folder = tempfile::tempdir().unwrap();
    let output = replay(&["--trace", &small_trace(&folder), "--quick", "--touch"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tables = text(&output.stdout);
    for part in ["small", "pool", "system", "mimalloc", "original", "geometric mean", "over the pool's"] {
        assert!(tables.contains(part), "{part} is missing in\n{tables}");
    }
}

#[test]
fn traces_that_share_a_name_have_a_row_each() {
    let folder = tempfile::tempdir().unwrap();
    let path = |device: u32| folder.path().join(format!("log.dev{device}.csv")).to_str().unwrap().to_owned();
    let (one, two) = (path(0), path(1));
    fs::write(&one, "1,00:00:00.1,allocate,0x1000,4096,0x0\n").unwrap();
    fs::write(&two, "1,00:00:00.1,allocate,0x1000,8192,0x0\n").unwrap();
    let output = replay(&["--allocator", "system", "--trace", &one, &two]);
    let tables = text(&output.stdout);
    for (name, live) in [("log.dev0.csv", "4.00 KiB"), ("log.dev1.csv", "8.00 KiB")] {
        assert!(tables.lines().any(|line| line.starts_with(name) && line.contains(live)), "{name} in\n{tables}");
    }
    let output = replay(&["--allocator", "system", "--json", "--passes", "1", "--trace", &one, &two]);
    let records: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let peaks: Vec<_> = records.iter().map(|record| (&record["trace"], &record["peak_live"])).collect();
    let (one, two) = (("log.dev0.csv".into(), 4096.into()), ("log.dev1.csv".into(), 8192.into()));
    assert_eq!(peaks, [(&one.0, &one.1), (&one.0, &one.1), (&two.0, &two.1), (&two.0, &two.1)]);
}

#[test]
fn a_quick_run_says_what_it_left_out() {
    let trace = benches::traces::folder().join("prefetch_streams.csv.zst");
    let output = replay(&["--quick", "--allocator", "original", "--trace", trace.to_str().unwrap()]);
    let tables = text(&output.stdout);
    assert!(tables.contains("Only the first 20000 rows of prefetch_streams were replayed."), "{tables}");
}

#[test]
fn a_trace_that_does_not_fit_is_left_out_when_pages_are_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.csv");
    let log = format!("1,00:00:00.1,allocate,0x1000,{},0x0\n", 1_u64 << 45);
    fs::write(&path, log).unwrap();
    let path = path.to_str().unwrap();
    let output = replay(&["--trace", path, &small_trace(&folder), "--touch", "--allocator", "system"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let tables = text(&output.stdout);
    assert!(tables.contains("huge is left out: its peak of 32.00 TiB"), "{tables}");
    assert!(tables.contains("small"));
}

#[test]
fn recorded_threads_are_threads() {
    let folder = tempfile::tempdir().unwrap();
    let output = replay(&["--trace", &small_trace(&folder), "--json", "--threads", "--allocator", "system"]);
    let records: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(!records.is_empty() && records.iter().all(|record| record["threads"] == 2));
}

#[test]
fn a_corrupt_trace_and_a_missing_one_are_clear_errors() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("corrupt.csv");
    fs::write(&path, "Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00.1,allocate,0x1000,lots,0x0\n").unwrap();
    let output = replay(&["--trace", path.to_str().unwrap()]);
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains("corrupt.csv") && said.contains("line 2"), "{said}");

    let output = replay(&["--trace", "there/is/no/such.csv"]);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("such.csv"));
}

#[test]
fn an_allocator_that_fails_is_named_and_the_exit_code_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vast.csv");
    fs::write(&path, format!("1,00:00:00.1,allocate,0x1000,{},0x0\n", 1_u64 << 60)).unwrap();
    let output = replay(&["--trace", path.to_str().unwrap(), "--allocator", "original"]);
    assert!(!output.status.success());
    assert!(text(&output.stdout).contains("vast FAILED through original"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("out of memory"), "{}", text(&output.stderr));
}

#[test]
fn contradictions_in_a_trace_are_repaired_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.csv.gz");
    let log = "1,00:00:00.1,allocate,0x1000,64,0x0\n1,00:00:00.2,free,0x9000,64,0x0\n";
    let rows = alloc_trace::Reader::new(log.as_bytes()).unwrap();
    let mut writer = alloc_trace::Writer::create(&path).unwrap();
    rows.for_each(|row| writer.write(&row.unwrap()).unwrap());
    writer.finish().unwrap();
    assert!(Trace::load(&path, Policy::Strict).is_err());
    let output = replay(&["--trace", path.to_str().unwrap(), "--allocator", "system"]);
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("odd was repaired: 1 frees of unknown pointers"), "{}", text(&output.stdout));
}
