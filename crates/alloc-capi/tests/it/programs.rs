//! Programs that load the shared library: in C, in C++ and in Python, where this machine has the means.

use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder where cargo puts the library that it builds for these tests.
pub(crate) fn libraries() -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let folder = executable.parent().unwrap().to_owned();
    let library = folder.join("libdevice_memory.so");
    assert!(library.exists(), "{} is missing", library.display());
    folder
}

pub(crate) fn is_there(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("left out: `{program}` is not installed");
    }
    found
}

#[track_caller]
fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} ended with {}:\n{text}", output.status);
    text
}

fn compile(compiler: &str, source: &Path, to: &Path) {
    compile_with(compiler, &[], source, to);
}

pub(crate) fn compile_with(compiler: &str, arguments: &[&str], source: &Path, to: &Path) {
    let libraries = libraries();
    let mut command = Command::new(compiler);
    command
        .args(["-Wall", "-Wextra", "-Werror", "-I"])
        .arg(root().join("include"))
        .args(arguments)
        .arg(source)
        .arg("-o")
        .arg(to);
    command.arg("-L").arg(&libraries).arg("-ldevice_memory");
    succeed(command.arg(format!("-Wl,-rpath,{}", libraries.display())));
}

#[test]
fn the_example_in_c_runs() {
    if !is_there("cc") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("quickstart");
    compile("cc", &root().join("examples/quickstart.c"), &program);
    let text = succeed(Command::new(program).env("LD_LIBRARY_PATH", libraries()));
    assert!(text.contains("Out of memory.") && text.contains("given back"), "{text}");
}

#[test]
fn nothing_but_the_interface_is_exported() {
    if !is_there("nm") {
        return;
    }
    let text = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(libraries().join("libdevice_memory.so")));
    let symbols: Vec<&str> = text.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    assert!(symbols.contains(&"devmem_free"));
    let foreign: Vec<_> = symbols.iter().filter(|symbol| !symbol.starts_with("devmem_")).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[cfg(all(feature = "cuda", target_os = "linux"))]
#[test]
fn a_filter_of_cpp_says_which_pool() {
    if !is_there("c++") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("filter");
    compile("c++", &root().join("tests/it/filter.cpp"), &program);
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", libraries()).env("ALLOC_CUDA_DRIVER", crate::harness::fake_library());
    succeed(&mut command);
}

#[test]
fn the_package_for_python_keeps_its_promises() {
    if !is_there("python3") {
        return;
    }
    let python = root().join("../../python");
    let mut command = Command::new("python3");
    command.args(["-B", "-m", "unittest", "discover", "-s", "tests"]).current_dir(&python);
    command.env("PYTHONPATH", &python).env("DEVICE_MEMORY_LIBRARY", libraries().join("libdevice_memory.so"));
    #[cfg(all(feature = "cuda", target_os = "linux"))]
    command.env("ALLOC_CUDA_DRIVER", crate::harness::fake_library());
    let text = succeed(&mut command);
    assert!(text.contains("OK"), "{text}");
}
