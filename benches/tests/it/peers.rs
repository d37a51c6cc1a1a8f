//! The peers' bench without a GPU: this workspace's program over host memory, the C++ programs over the C library's
//! heap, and the script that runs both.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use benches::peers::{PeerRecord, golden};

const OURS: &str = env!("CARGO_BIN_EXE_peers");

fn ours(arguments: &[&str]) -> Output {
    Command::new(OURS).args(arguments).output().unwrap()
}

fn text(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

fn records(text: &str) -> Vec<PeerRecord> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers")
}

fn compiler() -> Option<String> {
    let name = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    if Command::new(&name).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Some(name);
    }
    eprintln!("skipped: there is no C++ compiler `{name}`");
    None
}

/// Builds one of the C++ programs; `None` without a compiler.
fn compile(program: &str, folder: &Path) -> Option<PathBuf> {
    let out = folder.join(program);
    let mut command = Command::new(compiler()?);
    command.args(["-std=c++20", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread"]);
    let output = command.arg(sources().join(format!("{program}.cpp"))).arg("-o").arg(&out).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(out)
}

/// What has to be the same for all allocators: workloads, cases, passes, threads, streams, units, bytes alive.
fn outline(records: &[PeerRecord]) -> Vec<String> {
    let line = |record: &PeerRecord| {
        let PeerRecord { bench, case, pass, threads, streams, unit, peak_live, .. } = record;
        format!("{bench} {case} {pass:?} {threads} {streams} {unit} {peak_live:?}")
    };
    records.iter().map(line).collect()
}

#[test]
fn the_pool_over_host_memory_runs_all_workloads() {
    let trace = benches::traces::folder().join("prefetch_streams.csv.zst");
    let output = ours(&["--backend", "cpu", "--quick", "--trace", trace.to_str().unwrap()]);
    let records = records(text(&output));
    let benches: BTreeSet<&str> = records.iter().map(|record| record.bench.as_str()).collect();
    let all = ["churn", "larson", "pair", "producer_consumer", "random", "replay", "threads", "xmalloc"];
    assert_eq!(benches, BTreeSet::from(all));
    for record in &records {
        assert_eq!((record.backend.as_str(), record.allocator.as_str()), ("cpu", "alloc-pool"));
        assert!(record.ops > 0 && record.elapsed_ns > 0 && record.complete && record.error.is_none(), "{record:?}");
        assert!(record.ns_per_op.unwrap() > 0.0 && record.ops_per_second.unwrap() > 0.0);
        assert!(record.peak_reserved.unwrap() >= record.peak_live.unwrap_or(0), "{record:?}");
        assert_eq!(record.pass.is_some(), matches!(record.bench.as_str(), "replay" | "random"));
    }
    let replays: Vec<_> = records.iter().filter(|record| record.bench == "replay").collect();
    assert_eq!(replays.iter().map(|record| record.pass).collect::<Vec<_>>(), [Some(1), Some(2), Some(3)]);
    assert!(replays.iter().all(|record| record.case == "prefetch_streams" && record.streams == 4));
    // 20,000 rows, and what lives after them.
    assert!((20_000..21_000).contains(&replays[0].ops), "{}", replays[0].ops);
}

#[test]
fn a_workload_that_fails_is_a_record_and_the_next_is_run() {
    let output = ours(&["--backend", "cpu", "--quick", "--bench", "replay", "--bench", "churn", "--trace", "no.csv"]);
    assert!(!output.status.success());
    let records = records(std::str::from_utf8(&output.stdout).unwrap());
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].case.as_str(), records[0].complete, records[0].ns_per_op), ("no", false, None));
    assert!(records[0].error.as_ref().unwrap().contains("no.csv"), "{records:?}");
    assert_eq!((records[1].bench.as_str(), records[1].complete), ("churn", true));
}

#[test]
fn both_languages_draw_the_same_sequences() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile("golden", folder.path()) else { return };
    let output = Command::new(program).output().unwrap();
    assert_eq!(text(&output), golden::lines());
    assert_eq!(text(&ours(&["--golden"])), golden::lines());
}

#[test]
fn a_peers_program_runs_the_same_cases_and_writes_the_same_lines() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile("heap", folder.path()) else { return };
    let trace = benches::traces::folder().join("prefetch_streams.csv.zst");
    let trace = trace.to_str().unwrap();
    let csv = folder.path().join("csv");
    text(&ours(&["--quick", "--trace", trace, "--write-csv", csv.to_str().unwrap()]));
    let ours = records(text(&ours(&["--backend", "cpu", "--quick", "--trace", trace])));
    let output = Command::new(program).arg("--quick").arg("--trace").arg(csv.join("prefetch_streams.csv")).output();
    let heap = records(text(&output.unwrap()));
    assert_eq!(outline(&heap), outline(&ours));
    for (one, other) in heap.iter().zip(&ours) {
        assert_eq!((one.allocator.as_str(), one.peak_reserved), ("heap", None));
        assert!(one.ops > 0 && one.ns_per_op.unwrap() > 0.0 && one.complete);
        // Passes are over whole sequences; rounds are as long as the clock says.
        assert!(one.pass.is_none() || one.ops == other.ops, "{one:?} {other:?}");
    }
}

#[test]
fn a_peers_program_survives_a_workload_that_fails() {
    let folder = tempfile::tempdir().unwrap();
    let Some(program) = compile("heap", folder.path()) else { return };
    let csv = folder.path().join("vast.csv");
    std::fs::write(&csv, format!("1,00:00:00.1,allocate,0x1000,{},0x0\n", 1_u64 << 60)).unwrap();
    let mut command = Command::new(program);
    command.args(["--quick", "--bench", "replay", "--bench", "churn", "--trace"]).arg(&csv).arg("no\"such.csv");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let records = records(std::str::from_utf8(&output.stdout).unwrap());
    let errors: Vec<_> = records.iter().map(|record| record.error.as_deref()).collect();
    assert_eq!(errors, [Some("std::bad_alloc"), Some("cannot open no\"such.csv"), None]);
}

#[test]
#[cfg(unix)]
fn the_script_runs_everything_and_prints_one_table() {
    if compiler().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.jsonl");
    let mut command = Command::new("sh");
    command.arg(sources().join("run.sh")).args(["--cpu", "--quick", "--bench", "pair", "--bench", "threads", "--out"]);
    command.arg(&results).env("PEERS_OURS", OURS).env("PEERS_BUILD", folder.path().join("build"));
    let output = command.output().unwrap();
    let table = text(&output);
    for part in ["The pool and its peers", "alloc-pool", "heap", "512 B", "2 threads", "The bars are for a GPU."] {
        assert!(table.contains(part), "{part} is missing in\n{table}");
    }
    // Lines of a GPU are measured against the bars.
    let of_a_gpu = folder.path().join("gpu.jsonl");
    std::fs::write(&of_a_gpu, std::fs::read_to_string(&results).unwrap().replace("\"cpu\"", "\"cuda\"")).unwrap();
    let shown = ours(&["--table", of_a_gpu.to_str().unwrap()]);
    for part in ["Bars", "pair up to 64 KiB", "at least 15", "not measured"] {
        assert!(text(&shown).contains(part), "{part} is missing in\n{}", text(&shown));
    }
    // The pool runs before and after its peer, in each of the two workloads.
    let records = records(&std::fs::read_to_string(results).unwrap());
    let mut allocators: Vec<&str> = records.iter().map(|record| record.allocator.as_str()).collect();
    allocators.dedup();
    assert_eq!(allocators, ["alloc-pool", "heap", "alloc-pool", "heap", "alloc-pool"]);
}
