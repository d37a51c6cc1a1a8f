"""Native PyTorch against ours: losses, step times and memory of the six workloads, in one table.

    python3 compare.py [--json FILE] [--rounds N] [--expandable] [NAME...]

Each round runs a workload natively and on our memory, in processes of their own, one after the other. Losses that two
native runs have in common bit for bit have to be ours as well; others may differ from native ones by as much as those
differ among themselves, twice.
"""

import argparse
import json
import statistics
import sys
import time

import runner
from workloads import WORKLOADS

GIB = 1 << 30
NAMES = ["gpt2_train", "maskrcnn_train", "moe_train", "gnn_sampled", "llama_generate", "prefetch_streams"]


def distance(one, two):
    """The mean difference of two runs' losses relative to their size; 0 if they are equal bit for bit."""
    if one["losses"] == two["losses"]:
        return 0.0
    if len(one["losses"]) != len(two["losses"]):  # one of them stopped early
        return float("inf")
    pairs = [(float.fromhex(a), float.fromhex(b)) for a, b in zip(one["losses"], two["losses"])]
    return statistics.fmean(abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in pairs)


def verdict(native, ours):
    """Whether our losses are native ones, in a word, and the two distances."""
    noise = max([distance(a, b) for a in native for b in native] or [0.0])
    away = max(distance(a, b) for a in ours for b in native)
    if away == 0.0:
        return "equal", noise, away
    # Runs that are not deterministic drift apart: the noise of few runs is a sample.
    return ("noise" if noise > 0 and away <= 2 * noise else "DIFFER"), noise, away


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--json", help="where every run is written, a line each")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--expandable", action="store_true", help="PyTorch's expandable segments as well")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload is named {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    began = time.time()
    runner.import_all()
    out = open(options.json, "w") if options.json else None
    allocators = ["native", "ours"] + (["expandable"] if options.expandable else [])
    lines, bad = [], 0
    for name in options.names:
        runs = {allocator: [] for allocator in allocators}
        for _ in range(options.rounds):
            for allocator in allocators:
                answer = runner.run(name, allocator)
                if out:
                    print(json.dumps(answer), file=out, flush=True)
                if answer.get("failed") or answer.get("out_of_memory"):
                    print(name, allocator, answer.get("failed") or answer["out_of_memory"], file=sys.stderr)
                    bad += 1
                else:
                    runs[allocator].append(answer)
        if not runs["native"] or not runs["ours"]:
            continue
        losses, noise, away = verdict(runs["native"], runs["ours"])
        native_ms = statistics.median(run["step_ms"] for run in runs["native"])
        spread = [run["step_ms"] / native_ms for run in runs["native"]]
        row = [name, losses, f"{away:.1e}/{noise:.1e}", f"{native_ms:.2f}", f"{max(spread) - min(spread):.3f}"]
        for allocator in allocators[1:]:
            other = runs[allocator]
            if other:
                row.append(f"{statistics.median(run['step_ms'] for run in other) / native_ms:.3f}")
        live = max(run["peak_live"] for run in runs["native"])
        row.append(f"{live / GIB:.2f}")
        for allocator in allocators:
            if runs[allocator]:
                worst = max(run["peak_reserved"] / run["peak_live"] for run in runs[allocator])
                row.append(f"{worst:.3f}")
        bad += losses == "DIFFER"
        lines.append(row)
        print(f"{time.time() - began:5.0f} s: {name}", file=sys.stderr, flush=True)
    head = ["workload", "losses", "off/noise", "native ms", "spread"]
    head += [f"{allocator} time" for allocator in allocators[1:]] + ["live GiB"]
    head += [f"{allocator} res/live" for allocator in allocators]
    table = [head] + lines
    widths = [max(len(row[column]) for row in table if column < len(row)) for column in range(len(head))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print("time: median step over native's; res/live: peak reserved over peak live bytes, the worst run")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
