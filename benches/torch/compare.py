"""Native PyTorch against ours: losses, step times and memory of the six workloads, in one table.

    python3 compare.py [--json FILE] [--rounds N] [--seconds S] [--expandable] [NAME...]

Each round runs a workload natively and on our memory, in processes of their own, one after the other. Losses that two
native runs have in common bit for bit have to be ours as well; others may differ from native ones by as much as those
differ among themselves, twice. The first native run says how many steps fit the time; the others do as many.
"""

import argparse
import json
import statistics
import sys

import runner
from workloads import WORKLOADS

GIB = 1 << 30
NAMES = ["gpt2_train", "maskrcnn_train", "moe_train", "gnn_sampled", "llama_generate", "prefetch_streams"]


def distance(one, two):
    """The mean difference of two runs' losses relative to their size; 0 if they are equal bit for bit.

    Of runs that did not come equally far in their time, what both did is compared."""
    count = min(len(one["losses"]), len(two["losses"]))
    if one["losses"][:count] == two["losses"][:count]:
        return 0.0
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


class Budget:
    """Shares what is left of the time among the runs that are left."""

    def __init__(self, seconds, runs):
        self.seconds, self.runs = seconds, runs
        #: What a run takes beyond its steps: a guess until the first has been seen.
        self.around = 5.0

    def left(self):
        return self.seconds - runner.elapsed()

    def run(self, name, allocator, steps):
        share = max(self.left(), 0.0) / max(self.runs, 1)
        self.runs -= 1
        if self.left() < self.around:
            return {"name": name, "allocator": allocator, "failed": "there was no time left for it"}
        began = runner.elapsed()
        # The number of steps is to be that of the first run, unless they take much longer.
        seconds = max(share - self.around, 1.0) * (1 if steps is None else 3)
        # One that hangs is not to cost all others their time.
        timeout = min(self.left(), 3 * self.around + 2 * seconds + 10)
        answer = runner.run(name, allocator, timeout=timeout, steps=steps, seconds=seconds)
        if answer.get("seconds") is not None:
            self.around = max(runner.elapsed() - began - answer["seconds"], 0.0)
        return answer


def compare(name, allocators, options, budget, out):
    """All runs of a workload: the answers that are of use by allocator, and what went wrong."""
    runs, wrong, steps = {allocator: [] for allocator in allocators}, {}, None
    for _ in range(options.rounds):
        for allocator in allocators:
            if allocator in wrong:
                budget.runs -= 1
                continue
            answer = budget.run(name, allocator, steps)
            if out:
                print(json.dumps(answer), file=out, flush=True)
            text = runner.failure(answer)
            if text:
                wrong[allocator] = f"{name} {allocator}: {text}"
                print(answer.get("failed") or text, file=sys.stderr, flush=True)
                continue
            runs[allocator].append(answer)
            steps = steps or answer["steps"]
            print(
                f"{runner.elapsed():5.0f} s  {name} {allocator}: {answer['steps']} steps, {answer['step_ms']:.2f} ms, "
                f"reserved/live {answer['peak_reserved'] / answer['peak_live']:.3f}",
                flush=True,
            )
    return runs, list(wrong.values())


def row(name, runs, allocators):
    """A line of the table, and whether the losses are as they should be."""
    losses, noise, away = verdict(runs["native"], runs["ours"])
    native_ms = statistics.median(run["step_ms"] for run in runs["native"])
    spread = [run["step_ms"] / native_ms for run in runs["native"]]
    cells = [name, losses, f"{away:.1e}/{noise:.1e}", f"{native_ms:.2f}", f"{max(spread) - min(spread):.3f}"]
    for allocator in allocators[1:]:
        times = [run["step_ms"] / native_ms for run in runs[allocator]]
        cells.append(f"{statistics.median(times):.3f}" if times else "-")
    cells.append(f"{max(run['peak_live'] for run in runs['native']) / GIB:.2f}")
    for allocator in allocators:
        worst = [run["peak_reserved"] / run["peak_live"] for run in runs[allocator]]
        cells.append(f"{max(worst):.3f}" if worst else "-")
    return cells, losses != "DIFFER"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--json", help="where every run is written, a line each")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=220.0, help="for everything; runs that don't fit are left out")
    parser.add_argument("--expandable", action="store_true", help="PyTorch's expandable segments as well")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload is named {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    runner.import_for(options.names)
    print(f"{runner.elapsed():5.0f} s  everything is imported", flush=True)
    allocators = ["native", "ours"] + (["expandable"] if options.expandable else [])
    budget = Budget(options.seconds, len(options.names) * options.rounds * len(allocators))
    head = ["workload", "losses", "off/noise", "native ms", "spread"]
    head += [f"{allocator} time" for allocator in allocators[1:]] + ["live GiB"]
    head += [f"{allocator} res/live" for allocator in allocators]
    table, wrong, good = [head], [], 0
    out = open(options.json, "w") if options.json else None
    for name in options.names:
        try:
            runs, failed = compare(name, allocators, options, budget, out)
            wrong += failed
            if runs["native"] and runs["ours"]:
                cells, right = row(name, runs, allocators)
                table.append(cells)
                good += right and not failed
                print("      = " + "  ".join(cells), flush=True)
        except Exception as error:  # the other workloads are to be run
            wrong.append(f"{name}: {type(error).__name__}: {error}")
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    lines += ["time: median step over native's; res/live: peak reserved over peak live bytes, the worst run"]
    lines += [text[:200] for text in wrong[:10]]
    lines += [f"compare: {good} of {len(options.names)} workloads hold ({runner.elapsed():.0f} s)"]
    runner.summarize(lines)
    sys.exit(0 if good == len(options.names) else 1)


if __name__ == "__main__":
    main()
