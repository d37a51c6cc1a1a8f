//! What programs in C leave behind, and what the standard error gets of it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::programs::{compile_with, is_there, libraries, root};

const TABLE: &str = "\
these blocks were never freed
cpu:0: 4 blocks of 1.01 MiB (1063576 bytes)
    blocks       bytes each         together
         1          1048576         1.00 MiB
         3             5000        14.65 KiB
    by stream: default 1 block of 1.00 MiB, 0x77 3 blocks of 14.65 KiB
";

/// The folder of the programs, compiled once; `None` without a compiler.
fn programs() -> Option<&'static Path> {
    static PROGRAM: OnceLock<Option<tempfile::TempDir>> = OnceLock::new();
    let folder = PROGRAM.get_or_init(|| {
        is_there("cc").then(|| {
            let folder = tempfile::tempdir().unwrap();
            let mut arguments = vec!["-g", "-rdynamic", "-pthread", "-Wl,--as-needed"];
            if cfg!(feature = "cuda") {
                arguments.push("-DDEVMEM_WITH_CUDA");
            }
            for name in ["leaks", "closed"] {
                let source = root().join("tests/it").join(name).with_extension("c");
                compile_with("cc", &arguments, &source, &folder.path().join(name));
            }
            folder
        })
    });
    folder.as_ref().map(|folder| folder.path())
}

/// Runs a program with the variable as said. One that does not end in time is stopped, and fails.
fn run(program: &str, variable: Option<&str>, arguments: &[&str]) -> Option<Output> {
    let mut command = Command::new(programs()?.join(program));
    command.args(arguments).env("LD_LIBRARY_PATH", libraries()).env_remove("ALLOC_LEAK_REPORT");
    if let Some(value) = variable {
        command.env("ALLOC_LEAK_REPORT", value);
    }
    #[cfg(feature = "cuda")]
    command.env("ALLOC_CUDA_DRIVER", crate::harness::fake_library());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("{arguments:?} did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Some(child.wait_with_output().unwrap())
}

/// What is on the standard error of a program that ends well, without the number of the process.
#[track_caller]
fn report(variable: Option<&str>, arguments: &[&str]) -> Option<String> {
    let output = run("leaks", variable, arguments)?;
    let text = String::from_utf8(output.stderr).unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{arguments:?}: {}\n{stdout}{text}", output.status);
    Some(match text.split_once(": ") {
        Some((head, rest)) if head.starts_with("device_memory, process ") => rest.to_owned(),
        _ => text,
    })
}

#[test]
fn what_is_left_is_told_if_asked_for() {
    let Some(silent) = report(None, &["leak"]) else { return };
    assert_eq!(silent, "");
    assert_eq!(report(Some("off"), &["leak"]).unwrap(), "");
    assert_eq!(report(Some("table"), &["leak"]).unwrap(), TABLE);
    assert_eq!(report(Some("table"), &["clean"]).unwrap(), "no block was left\n");
    assert_eq!(report(Some("table"), &["nothing"]).unwrap(), "", "a process without a pool is not spoken of");
}

#[test]
fn what_is_freed_at_the_very_end_is_not_told() {
    if let Some(text) = report(Some("table"), &["late"]) {
        assert_eq!(text, "no block was left\n");
    }
}

#[test]
fn a_library_that_is_closed_tells_once() {
    let library = libraries().join("libdevice_memory.so");
    let Some(output) = run("closed", Some("table"), &[library.to_str().unwrap()]) else { return };
    let text = String::from_utf8_lossy(&output.stderr);
    // When it is closed, or at the end if it has to stay, as one that knows locals of living threads has.
    assert!(output.status.success() && text.contains("closed\n"), "{}: {text}", output.status);
    assert_eq!(text.matches("never freed").count(), 1, "{text}");
    assert!(text.contains("cpu:0: 1 block of 700 bytes"), "{text}");
}

#[test]
fn a_child_that_was_forked_does_not_tell_of_its_parents_blocks() {
    if let Some(text) = report(Some("table"), &["fork"]) {
        assert_eq!(text, TABLE);
    }
}

#[test]
fn a_standard_error_that_nobody_reads_does_no_harm() {
    for end in ["closed", "broken", "full"] {
        if let Some(text) = report(Some("table"), &[end]) {
            assert_eq!(text, "", "{end}");
        }
    }
}

#[test]
fn signals_do_not_keep_it_from_a_late_reader() {
    let Some(output) = run("leaks", Some("table"), &["late reader"]) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("cpu:0: 1 block of 700 bytes"), "{}: {text}", output.status);
}

#[test]
fn threads_that_go_on_do_no_harm() {
    for variable in ["table", "backtrace"].repeat(3) {
        let Some(text) = report(Some(variable), &["threads"]) else { return };
        assert!(text.starts_with("these blocks were never freed\ncpu:0: "), "{text}");
        assert_eq!(text.contains("leak_here"), variable == "backtrace", "{text}");
    }
}

#[test]
fn tensors_are_told_apart() {
    if let Some(text) = report(Some("table"), &["tensor"]) {
        assert!(text.contains("5 blocks of"), "{text}");
        assert!(text.ends_with("\n    of them 1 block of 400 bytes in tensors that nobody let go\n"), "{text}");
    }
}

#[test]
fn with_backtraces_it_says_where_blocks_come_from() {
    let Some(text) = report(Some("backtrace"), &["leak"]) else { return };
    let places = text.strip_prefix(TABLE).unwrap_or_else(|| panic!("{text}"));
    let places = places.strip_prefix("cpu:0, by where they come from:\n1 block of 1.00 MiB, the oldest ");
    let (_, of_three) = places.and_then(|text| text.split_once("\n3 blocks of 14.65 KiB, the oldest ")).unwrap();
    let calls: Vec<&str> = of_three.lines().skip(1).collect();
    assert!(calls[0].starts_with("    devmem_allocate_on"), "{text}");
    let place = calls.iter().position(|call| call.starts_with("    leak_here (")).unwrap_or_else(|| panic!("{text}"));
    assert!(calls[place].contains("leaks.c:") && calls[place + 1].starts_with("    main ("), "{text}");
    assert_eq!(text.matches("leak_here").count(), 1, "one place, one text: {text}");
    assert_eq!(report(Some("backtrace"), &["clean"]).unwrap(), "no block was left\n");
}

#[test]
fn a_kind_of_report_that_there_is_not_is_an_error() {
    let Some(output) = run("leaks", Some("yes"), &["leak"]) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(text.contains("ALLOC_LEAK_REPORT is \"yes\"") && text.contains("`backtrace`"), "{text}");
    assert!(output.stderr.is_empty());
}

#[cfg(feature = "cuda")]
#[test]
fn blocks_of_private_pools_are_told_apart() {
    for variable in ["table", "backtrace"] {
        let Some(text) = report(Some(variable), &["pool"]) else { return };
        let of_card = text.split("\ncuda:0: ").nth(1).unwrap_or_else(|| panic!("{text}"));
        assert!(of_card.starts_with("2 blocks of 8.79 KiB (9000 bytes)\n"), "{text}");
        assert!(of_card.contains("\n    of them 1 block of 2.93 KiB in private pools"), "{text}");
        // The pool's own segment is nobody's block.
        let places = text.split("\ncuda:0, by where they come from:\n").nth(1);
        assert_eq!(places.is_some(), variable == "backtrace", "{text}");
        let Some(places) = places else { continue };
        assert!(places.starts_with("1 block of 5.86 KiB, the oldest "), "{text}");
        assert!(places.lines().nth(1).unwrap().starts_with("    devmem_torch_alloc"), "{text}");
        assert!(places.ends_with("\n1 more, of private pools or freed meanwhile\n"), "{text}");
    }
}
