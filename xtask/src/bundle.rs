//! `cargo xtask bundle --cuda`: the GPU's tests, benches and examples in one folder, for a machine that has a driver
//! and nothing else; and the same run directly where a machine has Rust and a GPU.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Deserialize;

use crate::workspace::Workspace;
use crate::{bench, cargo, peers, wheel};

/// The most that a bundle may weigh.
const MAX_BYTES: u64 = 60 << 20;

/// What to bundle, and where to.
#[derive(Args, Debug)]
pub struct Options {
    /// For machines with a CUDA driver; needs no toolkit here
    #[arg(long, required = true)]
    cuda: bool,

    /// The folder, made anew [default: bundle]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// A folder with the wheels librmm and rapids-logger unpacked, for the peers' bench
    #[arg(long, value_name = "DIR")]
    rmm: Option<PathBuf>,
}

/// What `cargo build` says about a file that it made.
#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

/// What is built: arguments for cargo, and the names in the bundle by cargo's names and kinds.
pub struct Part {
    /// For cargo.
    pub arguments: &'static [&'static str],
    /// A name and a kind of cargo's, and the file in the bundle.
    pub files: &'static [(&'static str, &'static str, &'static str)],
}

const PARTS: &[Part] = &[
    Part {
        arguments: &["test", "--no-run", "--package", "alloc-cuda", "--features", "cudarc", "--lib", "--test", "it"],
        files: &[("alloc_cuda", "lib", "unit-tests"), ("it", "test", "tests")],
    },
    Part {
        arguments: &["build", "--package", "alloc-cuda", "--features", "cudarc", "--examples"],
        files: &[("devices", "example", "devices"), ("nvrtc_kernel", "example", "nvrtc-kernel")],
    },
    Part {
        arguments: &[
            "build",
            "--package",
            "benches",
            "--features",
            "devices",
            "--bin",
            "cuda_replay",
            "--bin",
            "cuda_copy",
            "--bin",
            "cuda_devices",
        ],
        files: &[("cuda_replay", "bin", "replay"), ("cuda_copy", "bin", "copies"), ("cuda_devices", "bin", "several")],
    },
    peers::OURS,
];

/// The script of a bundle.
const SCRIPT: &str = "run.sh";

/// What the script of every bundle begins with, and no other.
const RUN_BEGINS: &str = "#!/bin/sh\n# Runs what is in this folder on a GPU";

const RUN: &str = r#"#!/bin/sh
# Runs what is in this folder on a GPU: run.sh test [ARGUMENTS], run.sh bench [--trace FILE...] [--json],
# run.sh copies [--json], run.sh peers [--quick] [--bench NAME...] [--traces DIR] [--out FILE], run.sh sanitizer [ARGUMENTS],
# run.sh torch [all|checks|torch_tests|compare|limits|processes|ddp|bound|record|symbols [ARGUMENTS]], run.sh devices
# [--quick] [PART...]. The machine needs a CUDA driver; peers needs a C++ compiler and a CUDA toolkit too, sanitizer
# compute-sanitizer, torch and devices a Python with PyTorch and what its programs use; torch alone is torch all, which
# takes 8 minutes and leaves its outputs in $OUT.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
ALLOC_CUDA_TEST_GPU=1
export ALLOC_CUDA_TEST_GPU
usage() {
    sed -n '2,7s/^# //p' "$0" >&2
    exit 2
}
python=${PYTHON:-python3}
# The wheel in a folder that is found by Python, and that goes when this ends.
with_wheel() {
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --no-deps --no-index --target "$site" "$here"/python/*.whl
    export PYTHONPATH="$site:$here/torch" PYTHONDONTWRITEBYTECODE=1
}
# NCCL under the name that programs look for: PyTorch's, where the system has none.
with_nccl() {
    ldconfig -p 2>/dev/null | grep -q 'libnccl\.so ' && return
    found=$("$python" -c 'import glob, nvidia.nccl as n; print(*glob.glob(list(n.__path__)[0] + "/lib/libnccl.so*"))' 2>/dev/null || :)
    found=${found%% *}
    [ -n "$found" ] || return 0
    ln -s "$found" "$site/libnccl.so"
    export LD_LIBRARY_PATH="$site:${found%/*}${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
}
[ $# -ge 1 ] || usage
command=$1
shift
"$here/devices" >&2 || { echo "run.sh: there is no GPU to run on" >&2; exit 1; }
case $command in
test)
    "$here/unit-tests"
    "$here/tests" "$@"
    if ldconfig -p 2>/dev/null | grep -q libnvrtc.so || [ -n "${LD_LIBRARY_PATH:-}" ]; then
        "$here/nvrtc-kernel"
    else
        echo "nvrtc-kernel is left out: NVRTC is not installed" >&2
    fi
    ;;
bench)
    named=no
    for argument in "$@"; do
        case $argument in --trace | --trace=*) named=yes ;; esac
    done
    if [ $named = yes ]; then
        exec "$here/replay" "$@"
    fi
    exec "$here/replay" "$@" --trace "$here"/traces/*.csv.zst
    ;;
copies)
    exec "$here/copies" "$@"
    ;;
peers)
    exec "$here/peers/run.sh" "$@"
    ;;
sanitizer)
    sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    [ -x "$sanitizer" ] || { echo "run.sh: compute-sanitizer is not installed" >&2; exit 1; }
    # Errors of the driver's calls are what some tests provoke, and assert, and two have a kernel trap. Filling the card
    # touches nothing.
    exec "$sanitizer" --tool memcheck --report-api-errors no --error-exitcode 1 "$here/tests" --test-threads 1 \
        --skip errors::a_real_card_is_filled --skip devices::a_context_breaks --skip devices::a_process_breaks "$@"
    ;;
torch)
    with_wheel
    if [ "${1:-all}" != all ]; then
        script=$1
        shift
        "$python" "$here/torch/$script.py" "$@"
    else
        failed=0
        out=${OUT:-$site}
        mkdir -p "$out"
        TORCH_SUMMARY=$out/torch-summary.txt
        export TORCH_SUMMARY
        : >"$TORCH_SUMMARY"
        # What matters most first, each with as many seconds as it may take at the most.
        for part in "170 checks --slow --seconds 150" "280 compare --seconds 240 --json $out/compare.jsonl" \
            "110 limits --seconds 90" "80 processes --seconds 60" "100 torch_tests --seconds 80"; do
            # Words are to be split here.
            # shellcheck disable=SC2086
            set -- $part
            most=$1 name=$2
            shift 2
            echo "== $name"
            timeout --kill-after=10 "$most" "$python" "$here/torch/$name.py" "$@" >"$out/$name.txt" 2>&1 || failed=1
            grep -q "^$name: " "$TORCH_SUMMARY" || {
                echo "$name: ended early" >>"$TORCH_SUMMARY"
                failed=1
            }
            tail -n 4 "$out/$name.txt"
        done
        echo "== summary"
        cat "$TORCH_SUMMARY"
        exit $failed
    fi
    ;;
devices)
    # All that two devices or more show, and of it what one can. Each part has its own time, its own file in $OUT (or here),
    # and a line at the end; one that fails stops no other. Multicast over NVLink stays off.
    export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
    quick=
    if [ "${1:-}" = --quick ]; then
        quick=--quick
        shift
    fi
    for name in "$@"; do
        case $name in tests | copies | hot-path | nccl | ddp) ;; *) usage ;; esac
    done
    out=${OUT:-devices-results}
    mkdir -p "$out"
    with_wheel
    with_nccl
    failed=0
    : >"$out/devices-summary.txt"
    wanted=" $* "
    part() {
        name=$1 seconds=$2
        shift 2
        case $wanted in "  " | *" $name "*) ;; *) return 0 ;; esac
        echo "== $name"
        began=$(date +%s) code=0
        timeout -k 5 "$seconds" "$@" >"$out/devices-$name.txt" 2>&1 || code=$?
        cat "$out/devices-$name.txt"
        [ $code = 0 ] || failed=1
        echo "$name: exit code $code after $(($(date +%s) - began)) of $seconds s" >>"$out/devices-summary.txt"
    }
    part tests 150 "$here/tests" --nocapture --test-threads 1 devices:: crossings:: processes:: peers:: context::
    part copies 90 "$here/several" $quick copies
    part hot-path 30 "$here/several" $quick hot-path
    part nccl 90 "$here/several" $quick nccl
    if [ -n "$quick" ]; then
        part ddp 60 "$python" "$here/torch/ddp.py" --steps 8 --seconds 55 \
            --json "$out/devices-ddp.jsonl"
    else
        part ddp 200 "$python" "$here/torch/ddp.py" --seconds 190 --json "$out/devices-ddp.jsonl"
    fi
    echo "== summary"
    cat "$out/devices-summary.txt"
    exit $failed
    ;;
*)
    usage
    ;;
esac
"#;

/// Builds everything and puts it into the folder.
///
/// # Errors
/// What cargo and the file system report; a bundle that weighs too much.
pub fn run(workspace: &Workspace, options: &Options) -> anyhow::Result<()> {
    ensure!(options.cuda, "there is nothing to bundle but --cuda");
    let out = options.out.clone().unwrap_or_else(|| workspace.root().join("bundle"));
    prepare(&out)?;
    peers::bundle(workspace, options.rmm.as_deref(), &out.join("peers"))?;
    for part in PARTS {
        let built = build(workspace, part)?;
        for (name, kind, file) in part.files {
            let executable = built
                .get(&((*name).to_owned(), (*kind).to_owned()))
                .with_context(|| format!("cargo made no {kind} named {name}"))?;
            copy(executable, &out.join(file))?;
        }
    }
    let traces = out.join("traces");
    fs::create_dir(&traces).with_context(|| traces.display().to_string())?;
    copy_all(&workspace.root().join("benches/traces"), &traces, "zst")?;
    wheel::build(workspace, &wheel::Options { out: Some(out.join("python")), without_cuda: false })?;
    let torch = out.join("torch");
    fs::create_dir(&torch).with_context(|| torch.display().to_string())?;
    copy_all(&workspace.root().join("benches/torch"), &torch, "py")?;
    let bytes = weigh(&out)?;
    eprintln!("{} weighs {:.1} MiB", out.display(), bytes as f64 / f64::from(1 << 20));
    ensure!(bytes <= MAX_BYTES, "the bundle weighs more than {} MiB", MAX_BYTES >> 20);
    Ok(())
}

/// `cargo xtask test --cuda`: the tests on this machine's GPU.
///
/// # Errors
/// If there is none, or a test fails.
pub fn test(workspace: &Workspace, arguments: &[OsString]) -> anyhow::Result<()> {
    need_gpu(workspace)?;
    let mut command = cargo::cargo(workspace);
    command.args(["test", "--release", "--package", "alloc-cuda", "--features", "cudarc", "--"]).args(arguments);
    cargo::run(command.env("ALLOC_CUDA_TEST_GPU", "1"))
}

/// `cargo xtask bench --cuda`: the replay on this machine's GPU, with `copies` page-locked memory and copies, with `devices`
/// several GPUs, with
/// `peers` the peers' bench.
///
/// # Errors
/// If there is none, or the replay fails.
pub fn bench(workspace: &Workspace, arguments: &[OsString]) -> anyhow::Result<()> {
    need_gpu(workspace)?;
    match arguments.split_first() {
        Some((first, rest)) if first == "peers" => peers::bench(workspace, true, rest),
        _ => cargo::run(&mut bench_command(workspace, arguments)?),
    }
}

fn bench_command(workspace: &Workspace, arguments: &[OsString]) -> anyhow::Result<Command> {
    let (binary, feature, arguments) = match arguments.split_first() {
        Some((first, rest)) if first == "copies" => ("cuda_copy", "cuda", rest),
        Some((first, rest)) if first == "devices" => ("cuda_devices", "devices", rest),
        _ => ("cuda_replay", "cuda", arguments),
    };
    let mut command = bench::command(workspace, &["run", "--release"], &["--bin", binary], &[feature], arguments)?;
    // Multicast over NVLink stays off.
    command.env("NCCL_NVLS_ENABLE", "0");
    Ok(command)
}

fn need_gpu(workspace: &Workspace) -> anyhow::Result<()> {
    let mut command = cargo::cargo(workspace);
    command.args(["run", "--release", "--package", "alloc-cuda", "--features", "cudarc", "--example", "devices"]);
    cargo::run(&mut command).context("--cuda needs a GPU, and there is none")
}

/// A folder with nothing but the script. One that holds something else than a bundle is left alone: scripts of that name
/// are common, so what it says decides. It comes first, so that a bundle that was not finished is known for one.
fn prepare(out: &Path) -> anyhow::Result<()> {
    let script = out.join(SCRIPT);
    if out.exists() {
        let is_bundle = fs::read_to_string(&script).is_ok_and(|text| text.starts_with(RUN_BEGINS));
        let is_empty = out.is_dir() && fs::read_dir(out)?.next().is_none();
        ensure!(is_bundle || is_empty, "{} is there and is no bundle", out.display());
        fs::remove_dir_all(out).with_context(|| out.display().to_string())?;
    }
    fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    fs::write(&script, RUN).with_context(|| script.display().to_string())?;
    make_executable(&script)
}

/// The executables that a part makes, by name and kind.
///
/// # Errors
/// If cargo reports one.
pub fn build(workspace: &Workspace, part: &Part) -> anyhow::Result<BTreeMap<(String, String), PathBuf>> {
    let mut command: Command = cargo::cargo(workspace);
    command.args(part.arguments).args(["--release", "--message-format", "json-render-diagnostics"]);
    command.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo").stderr(Stdio::inherit());
    eprintln!("$ {}", cargo::display(&command));
    let output = command.output().context("cargo could not be started")?;
    if !output.status.success() {
        bail!("`{}` ended with {}", cargo::display(&command), output.status);
    }
    let mut built = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Message>(line) else { continue };
        if let (true, Some(target), Some(executable)) =
            (message.reason == "compiler-artifact", message.target, message.executable)
        {
            built.extend(target.kind.into_iter().map(|kind| ((target.name.clone(), kind), executable.clone())));
        }
    }
    Ok(built)
}

/// Copies the files of a folder whose names end like that.
fn copy_all(from: &Path, to: &Path, extension: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        if path.is_file()
            && path.extension().is_some_and(|found| found == extension)
            && let Some(name) = path.file_name()
        {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

/// Copies a file.
///
/// # Errors
/// What the file system reports.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Lets everybody run a file.
///
/// # Errors
/// What the file system reports.
#[cfg(unix)]
pub fn make_executable(file: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;

    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).with_context(|| file.display().to_string())
}

/// Nothing: files need no permission to be run here.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn make_executable(_file: &Path) -> anyhow::Result<()> {
    Ok(())
}

fn weigh(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        bytes += if about.is_dir() { weigh(&entry.path())? } else { about.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    #[test]
    fn relative_paths_are_meant_from_where_the_caller_stands() -> anyhow::Result<()> {
        let workspace = Workspace::load()?;
        // Tests stand in the folder of their package.
        let here = env::current_dir()?;
        assert_ne!(here, workspace.root());
        for (words, binary) in [(["--trace", "a b.csv"], "cuda_replay"), (["copies", "--json"], "cuda_copy")] {
            let command = bench_command(&workspace, &words.map(OsString::from))?;
            assert_eq!(command.get_current_dir(), Some(here.as_path()));
            assert!(command.get_args().any(|argument| argument == binary));
            assert!(command.get_args().last().is_some_and(|last| last == words[1]));
        }
        Ok(())
    }

    /// Runs the script of a bundle whose programs, Python among them, do nothing and succeed.
    #[cfg(target_os = "linux")]
    fn run_script(folder: &Path, out: &str, arguments: &[&str]) -> anyhow::Result<std::process::Output> {
        prepare(folder)?;
        fs::create_dir(folder.join("python"))?;
        for program in ["devices", "tests", "several", "python/python3"] {
            fs::write(folder.join(program), "#!/bin/sh\n")?;
            make_executable(&folder.join(program))?;
        }
        let mut command = Command::new("sh");
        command.arg(folder.join(SCRIPT)).args(arguments);
        command.env("PYTHON", folder.join("python/python3")).env("OUT", folder.join(out));
        Ok(command.output()?)
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_script_refuses_parts_that_there_are_not() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let known = run_script(folder.path(), "out", &["devices", "--quick", "copies", "tests"])?;
        assert!(known.status.success(), "{known:?}");
        let summary = fs::read_to_string(folder.path().join("out/devices-summary.txt"))?;
        assert_eq!(summary.lines().filter(|line| line.contains("exit code 0")).count(), 2, "{summary}");
        let unknown = run_script(folder.path(), "out", &["devices", "copy"])?;
        assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
        Ok(())
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_program_that_says_nothing_has_failed() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let output = run_script(folder.path(), "not/there/yet", &["torch"])?;
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let summary = fs::read_to_string(folder.path().join("not/there/yet/torch-summary.txt"))?;
        assert!(summary.lines().count() == 5 && summary.contains("checks: ended early"), "{summary}");
        Ok(())
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_left_alone() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("thesis.tex"), "years of work")?;
        assert!(prepare(folder.path()).is_err());
        fs::write(folder.path().join(SCRIPT), "#!/bin/sh\n# Runs LaTeX.\n")?;
        assert!(prepare(folder.path()).is_err(), "a script of the same name makes no bundle");
        assert!(folder.path().join("thesis.tex").exists());
        Ok(())
    }

    #[test]
    fn a_bundle_is_made_anew_even_if_it_was_not_finished() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        prepare(folder.path())?;
        fs::write(folder.path().join("tests"), "")?;
        prepare(folder.path())?;
        assert!(!folder.path().join("tests").exists());
        assert_eq!(weigh(folder.path())?, RUN.len() as u64);
        Ok(())
    }
}
