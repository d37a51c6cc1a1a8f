"""Native PyTorch against ours: losses, step times and memory of the six workloads, in one table.

    python3 compare.py [--json FILE] [--rounds N] [--seconds S] [--expandable] [NAME...]

Each round runs every workload natively and on our memory, in processes of their own, one after the other, in turn the
one and the other first. Losses that native runs have in common bit for bit have to be ours as well. If two native runs
differ, both are asked for more determinism; if they still do, ours may differ from native runs by as much as as many
pairs of those differ among themselves, and there are four native runs at least.
"""

import argparse
import itertools
import json
import statistics
import sys

import runner
from deterministic import STRICT, USUAL
from workloads import WORKLOADS

GIB = 1 << 30
NAMES = ["prefetch_streams", "gnn_sampled", "gpt2_train", "moe_train", "maskrcnn_train", "llama_generate"]
#: Native runs that a workload needs whose losses differ from run to run.
RUNS_FOR_NOISE = 4


def distance(one, two):
    """The mean difference of two runs' losses relative to their size; 0 if they are equal bit for bit.

    Of runs that did not come equally far in their time, what both did is compared."""
    count = min(len(one["losses"]), len(two["losses"]))
    if one["losses"][:count] == two["losses"][:count]:
        return 0.0
    pairs = [(float.fromhex(a), float.fromhex(b)) for a, b in zip(one["losses"], two["losses"])]
    return statistics.fmean(abs(a - b) / max(abs(a), abs(b), 1e-30) for a, b in pairs)


def noise_of(runs):
    """The distances of all pairs of runs."""
    return [distance(a, b) for a, b in itertools.combinations(runs, 2)]


def verdict(native, ours):
    """Whether our losses are native ones, in a word, and the two distances."""
    among = noise_of(native)
    noise = max(among or [0.0])
    pairs = [distance(a, native[(first + shift) % len(native)]) for shift in range(len(native))
             for first, a in enumerate(ours)]
    if max(pairs) == 0.0:
        return "equal", noise, 0.0
    # The largest of many distances is larger than that of few: as many are compared.
    away = max(pairs[: max(len(among), 1)]) if noise > 0 else max(pairs)
    return ("noise" if 0 < away <= noise else "DIFFER"), noise, away


def typical(runs):
    """Each step's time: the median of the runs."""
    return [statistics.median(times) for times in zip(*(run["times_ms"] for run in runs))]


def ratio(runs, against):
    """The median over settled steps of one's time over the other's: the same step does the same work."""
    pairs = list(zip(typical(runs), typical(against)))
    return statistics.median(one / other for one, other in pairs[runner.settling(len(pairs)) :])


def spread(runs):
    """How much slower than all of them the slowest run is than the fastest."""
    each = [ratio([run], runs) for run in runs]
    return max(each) - min(each)


class Budget:
    """What is left of the time, and how long each workload's runs take."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.taken = {}

    def left(self):
        return self.seconds - runner.elapsed()

    def run(self, name, allocator, steps, level):
        # A first run loads libraries, which the others then find in memory.
        usual = self.taken.get(name, 25.0)
        if self.left() < min(usual, 10.0) or (name in self.taken and self.left() < 1.2 * usual):
            return None
        began = runner.elapsed()
        timeout = min(self.left(), 3 * usual + 15)
        answer = runner.run(name, allocator, timeout=timeout, steps=steps, level=level, seconds=30.0)
        if not runner.failure(answer):
            self.taken[name] = runner.elapsed() - began
        return answer


class Workload:
    """All runs of one workload."""

    def __init__(self, name, allocators):
        self.name, self.allocators = name, allocators
        self.runs = {allocator: [] for allocator in allocators}
        self.wrong, self.level, self.steps = {}, USUAL, None

    def add(self, allocator, budget, out):
        """One more run; whether there was time for it."""
        if allocator in self.wrong:
            return True
        answer = budget.run(self.name, allocator, self.steps, self.level)
        if answer is None:
            return False
        if out:
            print(json.dumps(answer), file=out, flush=True)
        text = runner.failure(answer)
        if text:
            self.wrong[allocator] = f"{self.name} {allocator}: {text}"
            print(answer.get("failed") or text, file=sys.stderr, flush=True)
            return True
        self.runs[allocator].append(answer)
        self.steps = self.steps or answer["steps"]
        lacks = answer["not_deterministic"]
        print(
            f"{runner.elapsed():5.0f} s  {self.name} {allocator}: {answer['steps']} steps, {answer['step_ms']:.2f} ms, "
            f"reserved/live {answer['peak_reserved'] / answer['peak_live']:.3f}, retries {answer['retries']}"
            + (f", {lacks} is not deterministic" if lacks else ""),
            flush=True,
        )
        return True

    def settle_level(self, budget, out):
        """Two native runs: if they differ, once more with all determinism there is."""
        for level in (USUAL, STRICT):
            self.level, self.runs["native"] = level, []
            if not (self.add("native", budget, out) and self.add("native", budget, out)):
                return
            if self.wrong or max(noise_of(self.runs["native"])) == 0.0:
                return

    def is_noisy(self):
        return max(noise_of(self.runs["native"]) or [0.0]) > 0

    def row(self):
        """A line of the table, and whether the losses are as they should be."""
        native = self.runs["native"]
        losses, noise, away = verdict(native, self.runs["ours"])
        native_ms = statistics.median(run["step_ms"] for run in native)
        cells = [self.name, losses, f"{away:.1e}/{noise:.1e}", f"{len(native)}/{len(self.runs['ours'])}"]
        cells += [str(self.steps), f"{native_ms:.2f}", f"{spread(native):.3f}"]
        for allocator in self.allocators[1:]:
            runs = self.runs[allocator]
            cells.append(f"{ratio(runs, native):.3f}" if runs else "-")
        cells.append(f"{spread(self.runs['ours']):.3f}")
        cells.append(f"{max(run['peak_live'] for run in native) / GIB:.2f}")
        for allocator in self.allocators:
            worst = [run["peak_reserved"] / run["peak_live"] for run in self.runs[allocator]]
            cells.append(f"{max(worst):.3f}" if worst else "-")
        return cells, losses != "DIFFER"


def head(allocators):
    cells = ["workload", "losses", "off/noise", "runs", "steps", "native ms", "native spread"]
    cells += [f"{allocator} time" for allocator in allocators[1:]] + ["ours spread", "live GiB"]
    return cells + [f"{allocator} res/live" for allocator in allocators]


def collect(workloads, options, budget, out):
    """Rounds over all workloads, as long as there is time."""
    for workload in workloads:
        workload.settle_level(budget, out)
        for allocator in workload.allocators[1:]:
            workload.add(allocator, budget, out)
    for number in range(1, options.rounds):
        for workload in workloads:
            # The first round had two native runs, so that the second begins with ours.
            order = workload.allocators[::-1] if number % 2 else workload.allocators
            for allocator in order:
                if allocator != "native" or number > 1 or workload.is_noisy():
                    workload.add(allocator, budget, out)
    for workload in workloads:
        while workload.is_noisy() and len(workload.runs["native"]) < RUNS_FOR_NOISE:
            if not workload.add("native", budget, out):
                break


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--json", help="where every run is written, a line each")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=240.0, help="for everything; runs that don't fit are left out")
    parser.add_argument("--expandable", action="store_true", help="PyTorch's expandable segments as well")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in WORKLOADS]
    if unknown:
        parser.error(f"no workload is named {', '.join(unknown)}; there are {', '.join(WORKLOADS)}")
    runner.import_for(options.names)
    print(f"{runner.elapsed():5.0f} s  everything is imported", flush=True)
    allocators = ["native", "ours"] + (["expandable"] if options.expandable else [])
    workloads = [Workload(name, allocators) for name in options.names]
    budget = Budget(options.seconds)
    out = open(options.json, "w") if options.json else None
    collect(workloads, options, budget, out)
    table, wrong, good = [head(allocators)], [], 0
    for workload in workloads:
        wrong += workload.wrong.values()
        if workload.runs["native"] and workload.runs["ours"]:
            cells, right = workload.row()
            table.append(cells)
            good += right and not workload.wrong
        elif not workload.wrong:
            wrong.append(f"{workload.name}: there was no time left for it")
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    lines += ["time: median over steps of a step's time over the native one's, each the median of the runs; spread: of"]
    lines += ["single runs; res/live: peak reserved over peak live bytes, the worst run; runs: natively and on ours"]
    lines += [text[:200] for text in wrong[:10]]
    lines += [f"compare: the losses of {good} of {len(workloads)} workloads are as they should be "
              f"({runner.elapsed():.0f} s)"]
    runner.summarize(lines)
    sys.exit(0 if good == len(workloads) else 1)


if __name__ == "__main__":
    main()
