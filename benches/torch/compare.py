"""Native PyTorch against ours: losses, step times and memory of the six workloads, or of any, in one table.

    python3 compare.py [--json FILE] [--rounds N] [--seconds S] [--expandable] [--programs] [NAME...]

Each round runs every workload in three processes at the same time, two natively and one on our memory, which take turns from
step to step (`turns.py`). Losses that native runs have in common bit for bit have to be ours as well. If two native runs
differ, all are asked for more determinism; if they still do, ours may differ from native runs by as much as as many
pairs of those differ among themselves, and there are four native runs at least.
"""

import argparse
import itertools
import json
import statistics
import sys

import runner
from deterministic import STRICT, USUAL
from programs import PROGRAMS
from workloads import WORKLOADS

GIB = 1 << 30
NAMES = ["prefetch_streams", "gnn_sampled", "gpt2_train", "moe_train", "maskrcnn_train", "llama_generate"]
#: Steps of a round, where they are not a workload's usual ones: more, as the median of few says little and a pool may take a
#: hundred to come to rest; fewer of programs whose usual number is that of a recording.
STEPS = {
    "gpt2_train": 80, "moe_train": 60, "maskrcnn_train": 40, "llama_generate": 12,
    "resnet_train": 60, "unet_diffusion": 72, "bert_varlen": 72, "lstm_lm": 100, "dlrm": 120, "kv_serving": 120,
    "checkpointed": 60, "pipeline_streams": 330, "two_workers": 4001, "pointcloud": 240, "beam": 4, "video3d": 160,
}  # fmt: skip
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


def side_by_side(ours, native):
    """From the times of the same steps, a list for each of our runs and two for each of them of native ones: the median of
    our time over the mean of both native ones, that of one native time over the other, and the native time."""
    ratios, noise, usual = [], [], []
    for number, times in enumerate(ours):
        steps = list(zip(times, *native[2 * number : 2 * number + 2]))
        for our, one, other in steps[runner.settling(len(steps)) :]:
            ratios.append(our / statistics.fmean((one, other)))
            noise.append(one / other)
            usual += (one, other)
    return statistics.median(ratios), statistics.median(noise), statistics.median(usual)


class Budget:
    """What is left of the time, and how long each workload's rounds take."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.taken = {}

    def left(self):
        return self.seconds - runner.elapsed()

    def run(self, name, allocators, steps, level):
        """A round's answers, by allocator; `None` if there is no time for one."""
        # A first round loads libraries, which the others then find in memory.
        usual = self.taken.get(name, 40.0)
        if self.left() < min(usual, 20.0) or (name in self.taken and self.left() < 1.2 * usual):
            return None
        began = runner.elapsed()
        timeout = min(self.left(), 3 * usual + 15)
        answers = runner.run_in_turns(name, allocators, timeout=timeout, steps=steps, level=level, seconds=15.0)
        if not any(runner.failure(answer) for answer in answers):
            self.taken[name] = runner.elapsed() - began
        return answers


class Workload:
    """All rounds of one workload."""

    def __init__(self, name, others):
        # Natively twice: how much those differ is how much means nothing.
        self.name, self.allocators = name, ["native", "ours", "native", *others]
        self.wrong, self.level = {}, USUAL
        self.forget()

    def forget(self):
        self.runs = {allocator: [] for allocator in self.allocators}

    def add(self, budget, out):
        """One more round; whether there was time for it."""
        answers = budget.run(self.name, self.allocators, STEPS.get(self.name), self.level)
        if answers is None:
            return False
        for answer in answers:
            if out:
                print(json.dumps(answer), file=out, flush=True)
            allocator, text = answer["allocator"], runner.failure(answer)
            if text:
                self.wrong[allocator] = f"{self.name} {allocator}: {text}"
                print(answer.get("failed") or text, file=sys.stderr, flush=True)
                continue
            if not answer["times_ms"]:
                self.wrong[allocator] = f"{self.name} {allocator}: no step came to its end in time"
                continue
            lacks = answer["not_deterministic"]
            print(
                f"{runner.elapsed():5.0f} s  {self.name} {allocator}: {answer['steps']} steps, {answer['step_ms']:.2f} ms, "
                f"reserved/live {answer['peak_reserved'] / answer['peak_live']:.3f}, retries {answer['retries']}"
                + (f", {lacks} is not deterministic" if lacks else ""),
                flush=True,
            )
        if not self.wrong:
            for answer in answers:
                self.runs[answer["allocator"]].append(answer)
        return not self.wrong

    def settle_level(self, budget, out):
        """A round: if both native runs differ, once more with all determinism there is."""
        if not self.add(budget, out) or not self.is_noisy():
            return
        usual, self.level = self.runs, STRICT
        self.forget()
        if not self.add(budget, out) and not self.wrong:
            self.runs, self.level = usual, USUAL

    def is_noisy(self):
        return max(noise_of(self.runs["native"]) or [0.0]) > 0

    def row(self):
        """A line of the table, and whether the losses are as they should be."""
        native = self.runs["native"]
        losses, off, away = verdict(native, self.runs["ours"])
        times = {allocator: [run["times_ms"] for run in runs] for allocator, runs in self.runs.items()}
        _, noise, native_ms = side_by_side(times["ours"], times["native"])
        cells = [self.name, losses, f"{away:.1e}/{off:.1e}", str(len(self.runs["ours"]))]
        cells += [str(min(run["steps"] for run in native)), f"{native_ms:.2f}", f"{noise:.3f}"]
        kinds = list(self.runs)
        cells += [f"{side_by_side(times[allocator], times['native'])[0]:.3f}" for allocator in kinds[1:]]
        cells.append(f"{max(run['peak_live'] for run in native) / GIB:.2f}")
        worst = [max(run["peak_reserved"] / run["peak_live"] for run in self.runs[allocator]) for allocator in kinds]
        return cells + [f"{ratio:.3f}" for ratio in worst], losses != "DIFFER"


def head(kinds):
    cells = ["workload", "losses", "off/noise", "rounds", "steps", "native ms", "native/native"]
    cells += [f"{allocator}/native" for allocator in kinds[1:]] + ["live GiB"]
    return cells + [f"{allocator} res/live" for allocator in kinds]


def collect(workloads, options, budget, out):
    """Rounds over all workloads, as long as there is time."""
    for workload in workloads:
        workload.settle_level(budget, out)
    for number in range(1, max(options.rounds, RUNS_FOR_NOISE // 2)):
        for workload in workloads:
            if not workload.wrong and (number < options.rounds or workload.is_noisy()):
                workload.add(budget, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", help="where every run is written, a line each")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=240.0, help="for everything; rounds that don't fit are left out")
    parser.add_argument("--expandable", action="store_true", help="PyTorch's expandable segments as well")
    parser.add_argument("--programs", action="store_true", help="the thirteen of programs.py, and what is named")
    options = parser.parse_args()
    options.names += PROGRAMS if options.programs else [] if options.names else NAMES
    options.names = list(dict.fromkeys(options.names))
    known = [*WORKLOADS, *PROGRAMS]
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no workload is named {', '.join(unknown)}; there are {', '.join(known)}")
    runner.import_for(options.names)
    print(f"{runner.elapsed():5.0f} s  everything is imported", flush=True)
    others = ["expandable"] if options.expandable else []
    workloads = [Workload(name, others) for name in options.names]
    budget = Budget(options.seconds)
    out = open(options.json, "w") if options.json else None
    collect(workloads, options, budget, out)
    table, wrong, good = [head(["native", "ours", *others])], [], 0
    for workload in workloads:
        wrong += workload.wrong.values()
        if workload.runs["ours"]:
            cells, right = workload.row()
            table.append(cells)
            good += right and not workload.wrong
        elif not workload.wrong:
            wrong.append(f"{workload.name}: there was no time left for it")
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in table]
    lines += ["ours/native: median over steps of our time over the mean of both native ones, done right before or after;"]
    lines += ["native/native: the same of one over the other; res/live: peak reserved over peak live bytes, the worst run"]
    lines += [text[:200] for text in wrong[:10]]
    lines += [f"compare: the losses of {good} of {len(workloads)} workloads are as they should be "
              f"({runner.elapsed():.0f} s)"]
    runner.summarize(lines)
    sys.exit(0 if good == len(workloads) else 1)


if __name__ == "__main__":
    main()
