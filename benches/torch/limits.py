"""What fits: allocators limited to the same bytes, and the batch that only one of them can train.

    python3 limits.py [--limit GIB] [--steps N] [--seconds S] [--parts N] [NAME...]

For each workload the largest scale of its batch is found at which it runs to the end: natively, with PyTorch's expandable
segments, and on our memory, all at the same time in processes of their own. Then the largest that only ours runs is run
once more by all. PyTorch's own allocator is asked as it is: it frees what it has cached and tries
again before it fails, so that what fails there are the pieces between blocks in use.
"""

import argparse
import functools
import sys

import runner
from deterministic import FREE

GIB = 1 << 30
#: The largest scale that is tried.
MOST = 32


class Search:
    """The largest scale that runs, in parts of one: doubled until one does not, then halved between."""

    def __init__(self, parts):
        self.parts, self.low, self.high, self.failed = parts, 0, None, None

    def next(self):
        """What to try, or `None` once it is known."""
        if self.failed or self.low >= MOST * self.parts:
            return None
        if self.high is None:
            return max(self.low * 2, self.parts)
        return (self.low + self.high) // 2 if self.high - self.low > 1 else None

    def hear(self, tried, answer):
        if answer.get("failed"):
            self.failed = runner.failure(answer)
        elif answer["out_of_memory"] is None:
            self.low = max(self.low, tried)
        else:
            self.high = min(self.high or tried, tried)

    def __str__(self):
        found = f"{self.low / self.parts:g}"
        if self.failed:
            return f"{found} ({self.failed})"
        if self.next() is not None:
            return f"at least {found}" + (f" and less than {self.high / self.parts:g}" if self.high else "")
        return found


def trial(name, scales, steps, limit, deadline):
    """Runs each allocator at its scale, all at once; their answers."""
    started = {
        allocator: runner.start(
            functools.partial(runner.measure, name, allocator, steps=steps, scale=scale, limit=limit, level=FREE)
        )
        for allocator, scale in scales.items()
    }
    answers = {allocator: runner.finish(child, deadline) for allocator, child in started.items()}
    for allocator, answer in answers.items():
        outcome = "failed" if answer.get("failed") else "fits" if answer["out_of_memory"] is None else "does not fit"
        held = answer.get("peak_reserved", 0) / GIB
        print(
            f"{runner.elapsed():5.0f} s  {name} {allocator}: {scales[allocator]:g} of the batch {outcome} "
            f"({answer.get('steps', 0)} steps, {held:.2f} GiB, {answer.get('retries', 0)} retries)",
            flush=True,
        )
    return answers


def search(name, options, deadline):
    allocators = ["native", "ours", "expandable"]
    searches, longest = {allocator: Search(options.parts) for allocator in allocators}, 0.0
    while runner.elapsed() + longest < deadline:
        parts = {allocator: found.next() for allocator, found in searches.items() if found.next() is not None}
        if not parts:
            break
        began = runner.elapsed()
        scales = {allocator: tried / options.parts for allocator, tried in parts.items()}
        answers = trial(name, scales, options.steps, int(options.limit * GIB), deadline)
        for allocator, answer in answers.items():
            searches[allocator].hear(parts[allocator], answer)
        longest = max(longest, runner.elapsed() - began)
    return searches, longest


def confirm(name, scale, options, deadline):
    """All allocators at one scale once more: a line on each, and whether ours fits and native does not."""
    answers = trial(name, dict.fromkeys(["native", "ours", "expandable"], scale), options.steps,
                    int(options.limit * GIB), deadline)
    lines = []
    for allocator, answer in answers.items():
        text = runner.failure(answer)
        done = answer.get("steps", 0)
        lines.append(f"  {scale:g}, {allocator}: " + (f"{done} steps, then {text}" if text else f"all {done} steps")[:220])
    fails = answers["native"].get("out_of_memory") is not None
    return lines, fails and runner.failure(answers["ours"]) is None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["gnn_sampled", "moe_train"])
    parser.add_argument("--limit", type=float, default=6.0, help="GiB")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--parts", type=int, default=16, help="how finely the scale is told, in parts of the usual batch")
    parser.add_argument("--seconds", type=float, default=90.0, help="for everything; what takes longer is left open")
    options = parser.parse_args()
    runner.import_for(options.names)
    lines, better = [], 0
    for number, name in enumerate(options.names):
        began = runner.elapsed()
        deadline = began + max(options.seconds - began, 0.0) / (len(options.names) - number)
        # The last of the time is for the run that shows it.
        found, longest = search(name, options, began + (deadline - began) * 0.75)
        native, ours, expandable = found["native"], found["ours"], found["expandable"]
        lines.append(
            f"{name}: in {options.limit:g} GiB the batch can be {native} of the usual natively, {expandable} with "
            f"expandable segments, {ours} on ours"
        )
        if ours.low > native.low and not native.failed:
            # At the very edge a run may need a little more than the one before.
            for parts in sorted({ours.low, max(native.low + 1, (native.low + ours.low) // 2)}, reverse=True):
                if runner.elapsed() + longest > deadline:
                    break
                shown, right = confirm(name, parts / options.parts, options, deadline + longest)
                lines += shown
                if right:
                    better += 1
                    break
    verdict = f"a batch that native PyTorch can't fit trains on ours in {better} of {len(options.names)} workloads"
    runner.summarize(lines + [f"limits: {verdict} ({runner.elapsed():.0f} s)"])
    sys.exit(0 if better else 1)


if __name__ == "__main__":
    main()
