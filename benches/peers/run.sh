#!/bin/sh
# Runs the workloads through the pool and its peers on this machine's GPU, and prints one table with ratios.
#
#     run.sh [--quick] [--cpu] [--bench NAME]... [--traces DIR] [--out FILE]
#
# --quick takes seconds and shows that everything works; --cpu runs the pool over host memory against the C library's
# heap, without a GPU; --bench runs one workload alone; --traces replays the recordings of another folder (RMM's CSV, plain,
# .gz or .zst; no two of one name, and none with a blank in it); --out keeps the results, one JSON object a line.
#
# PyTorch takes part if `python3 -c 'import torch'` works, RMM if its wheels (librmm and rapids-logger, unpacked into
# one folder) are in the folder that RMM_ROOT names, in the folder `rmm` beside this script, or among Python's packages.
# Their programs are built with c++ (CXX names another) and the headers of a CUDA toolkit (CUDA_HOME names it).
# PEERS_OURS names the pool's program, PEERS_BUILD a folder for what is built.
#
# All take turns, workload by workload and recording by recording: a machine that others use too changes its pace within
# seconds. What one thread does takes three turns (six where it takes a second, two where it takes long), of which the fastest
# counts; else the pool runs before, among and after its peers.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
ours=${PEERS_OURS:-$here/ours}
build=${PEERS_BUILD:-$here/build}
cxx=${CXX:-c++}
cuda=${CUDA_HOME:-/usr/local/cuda}
backend=cuda
quick=
benches=
traces=$here/../traces
out=
failed=

usage() {
    sed -n '2,5s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

say() {
    echo "peers: $*" >&2
}

while [ $# -gt 0 ]; do
    case $1 in
    --quick) quick=--quick ;;
    --cpu) backend=cpu ;;
    --bench)
        [ $# -ge 2 ] || usage
        benches="$benches $2"
        shift
        ;;
    --traces)
        [ $# -ge 2 ] || usage
        traces=$2
        shift
        ;;
    --out)
        [ $# -ge 2 ] || usage
        out=$2
        shift
        ;;
    *) usage ;;
    esac
    shift
done

[ -x "$ours" ] || { say "$ours is not there: PEERS_OURS names the pool's program"; exit 1; }
mkdir -p "$build"
out=${out:-$build/results.jsonl}
: >"$out"

set --
for file in "$traces"/*.csv "$traces"/*.csv.gz "$traces"/*.csv.zst; do
    if [ -f "$file" ]; then set -- "$@" "$file"; fi
done
[ $# -ge 1 ] || { say "there are no recordings in $traces"; exit 1; }

# Plain CSV is what the peers' programs read.
csv=$(mktemp -d "$build/csv.XXXXXX")
trap 'rm -rf "$csv"' EXIT
"$ours" $quick --write-csv "$csv" --trace "$@"

# Runs a program, adding its results. One that fails does not keep the others from running.
run() {
    name=$1
    shift
    say "$bench $recording: $name"
    started=$(date +%s)
    code=0
    if command -v timeout >/dev/null 2>&1; then
        timeout 300 "$@" >>"$out" || code=$?
    else
        "$@" >>"$out" || code=$?
    fi
    took=$(($(date +%s) - started))
    if [ "$code" -eq 0 ]; then
        say "$name took $took s"
    else
        say "$name ended with $code after $took s; its last results may be missing"
        failed="$failed $name,"
    fi
}

# Runs one program, by the name that its results carry, on the workload and the recordings at hand.
# shellcheck disable=SC2086 # lists of words
run_one() {
    case $1 in
    alloc-pool) run "$1" "$ours" --backend $backend $quick --bench $bench --trace "$csv"/$recording.csv ;;
    heap) run_peer "$1" "$build/heap" ;;
    torch) run_peer "$1" env -u PYTORCH_CUDA_ALLOC_CONF -u PYTORCH_ALLOC_CONF "$build/torch" torch ;;
    torch-expandable)
        run_peer "$1" env -u PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True \
            "$build/torch" torch-expandable
        ;;
    rmm-*) run_peer "$1" env "LD_LIBRARY_PATH=$libraries:${LD_LIBRARY_PATH:-}" "$build/rmm" "${1#rmm-}" ;;
    esac
}

# shellcheck disable=SC2086
run_peer() {
    name=$1
    shift
    run "$name" "$@" $quick --bench $bench --trace "$csv"/$recording.csv
}

# Builds a program; false, with a word about it, if that does not work.
compile() {
    program=$1
    shift
    say "building $program"
    if "$cxx" -std=c++20 -O2 -pthread "$here/$program.cpp" -o "$build/$program" "$@" 2>"$build/$program.log"; then
        return 0
    fi
    say "$program could not be built, and is left out:"
    head -n 20 "$build/$program.log" >&2
    return 1
}

# The runtime's library, whatever its version, and its headers.
cudart=
cuda_include=
find_cuda() {
    python_cuda=$(python3 -c 'import nvidia.cu13 as m; print(list(m.__path__)[0])' 2>/dev/null || true)
    for folder in "$cuda" "$python_cuda"; do
        [ -n "$folder" ] && [ -f "$folder/include/cuda_runtime_api.h" ] || continue
        for library in "$folder"/lib64/libcudart.so "$folder"/lib/libcudart.so "$folder"/lib64/libcudart.so.* \
            "$folder"/lib/libcudart.so.*; do
            if [ -f "$library" ]; then
                cudart=$library
                cuda_include=$folder/include
                return 0
            fi
        done
    done
    say "there is no CUDA toolkit in $cuda (CUDA_HOME names another): PyTorch and RMM are left out"
    return 1
}

peers_of_torch() {
    torch=$(python3 -c 'import torch; print(torch.__path__[0])' 2>/dev/null) || {
        say "PyTorch is left out: python3 -c 'import torch' fails"
        return 0
    }
    say "PyTorch $(python3 -c 'import torch; print(getattr(torch, "__version__", "of unknown version"))') in $torch"
    compile torch -isystem "$torch/include" -isystem "$cuda_include" -L"$torch/lib" -Wl,--no-as-needed -lc10 \
        -lc10_cuda "$cudart" "-Wl,-rpath,$torch/lib" "-Wl,-rpath,$(dirname "$cudart")" || return 0
    peers="$peers torch torch-expandable"
}

peers_of_rmm() {
    packages=$(python3 -c 'import os, librmm; print(os.path.dirname(list(librmm.__path__)[0]))' 2>/dev/null || true)
    rmm=
    for folder in "${RMM_ROOT:-}" "$here/rmm" "$packages"; do
        if [ -n "$folder" ] && [ -f "$folder/librmm/lib64/librmm.so" ]; then
            rmm=$folder
            break
        fi
    done
    [ -n "$rmm" ] || {
        say "RMM is left out: it is not in RMM_ROOT, $here/rmm or Python's packages"
        return 0
    }
    say "RMM $(cat "$rmm/librmm/VERSION" 2>/dev/null || echo "of unknown version") in $rmm"
    libraries=$rmm/librmm/lib64:$rmm/rapids_logger/lib64
    compile rmm -isystem "$rmm/librmm/include" -isystem "$rmm/librmm/include/rapids" \
        -isystem "$rmm/rapids_logger/include" -isystem "$cuda_include" -Wl,--no-as-needed \
        "$rmm/librmm/lib64/librmm.so" "$rmm/rapids_logger/lib64/librapids_logger.so" "$cudart" \
        "-Wl,-rpath,$(dirname "$cudart")" || return 0
    peers="$peers rmm-pool rmm-arena rmm-async"
}

# Everyone's turns at a workload.
turns_at() {
    if [ -n "$quick" ]; then
        echo "alloc-pool $peers alloc-pool"
        return
    fi
    case $1 in
    replay) echo "alloc-pool $peers alloc-pool $peers alloc-pool $peers" ;;
    pair | churn) echo "alloc-pool $peers alloc-pool $peers alloc-pool $peers alloc-pool $peers alloc-pool $peers alloc-pool $peers" ;;
    random) echo "alloc-pool $peers alloc-pool $peers" ;;
    *) echo "alloc-pool $peers" | sed 's/ rmm-pool/ alloc-pool&/; s/$/ alloc-pool/' ;;
    esac
}

peers=
libraries=
if [ $backend = cpu ]; then
    if compile heap; then peers=heap; fi
elif find_cuda; then
    peers_of_torch
    peers_of_rmm
fi
[ -n "$benches" ] || benches="replay pair churn random threads producer_consumer larson xmalloc"
for bench in $benches; do
    recordings='*'
    if [ "$bench" = replay ]; then recordings=$(cd "$csv" && for file in *.csv; do echo "${file%.csv}"; done); fi
    set -f # a star stands for all recordings
    for recording in $recordings; do
        set +f
        for program in $(turns_at "$bench"); do run_one "$program"; done
    done
done
say "the results are in $out"
"$ours" --table "$out"
[ -z "$failed" ] || say "failed at least once:${failed%,}"
case $failed in *" alloc-pool"*) exit 1 ;; esac
