"""What fits: both allocators limited to the same bytes, and the batch that only one of them can train.

    python3 limits.py [--limit GIB] [--steps N] [--seconds S] [NAME...]

For each workload the largest scale of its batch is found at which it runs to the end, natively and on our memory, both
at the same time in processes of their own.
"""

import argparse
import functools
import sys

import runner

GIB = 1 << 30
STEP = 1 / 8
#: The largest scale that is tried, in steps.
MOST = 256


class Search:
    """The largest scale that runs, in eighths: doubled until one does not, then halved between."""

    def __init__(self):
        self.low, self.high, self.failed = 0, None, None

    def next(self):
        """What to try, or `None` once it is known."""
        if self.failed or self.low >= MOST:
            return None
        if self.high is None:
            return max(self.low * 2, 8)
        return (self.low + self.high) // 2 if self.high - self.low > 1 else None

    def hear(self, tried, answer):
        if answer.get("failed"):
            self.failed = runner.failure(answer)
        elif answer["out_of_memory"] is None:
            self.low = tried
        else:
            self.high = tried

    def __str__(self):
        found = f"{self.low * STEP:g}"
        if self.failed:
            return f"{found} ({self.failed})"
        if self.next() is not None:
            return f"at least {found}" + (f" and less than {self.high * STEP:g}" if self.high else "")
        return found


def search(name, options, deadline):
    searches, longest = {"native": Search(), "ours": Search()}, 0.0
    while runner.elapsed() + longest < deadline:
        trials = {allocator: found.next() for allocator, found in searches.items() if found.next() is not None}
        if not trials:
            break
        began, started = runner.elapsed(), {}
        for allocator, eighths in trials.items():
            limits = {"steps": options.steps, "scale": eighths * STEP, "limit": int(options.limit * GIB)}
            started[allocator] = runner.start(functools.partial(runner.measure, name, allocator, **limits))
        for allocator, child in started.items():
            answer = runner.finish(child, deadline)
            searches[allocator].hear(trials[allocator], answer)
            outcome = "failed" if answer.get("failed") else "fits" if answer["out_of_memory"] is None else "does not fit"
            scale = trials[allocator] * STEP
            print(f"{runner.elapsed():5.0f} s  {name} {allocator}: {scale:g} of the batch {outcome}", flush=True)
        longest = max(longest, runner.elapsed() - began)
    return searches


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["gpt2_lengths"])
    parser.add_argument("--limit", type=float, default=12.0, help="GiB")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=45.0, help="for everything; what takes longer is left open")
    options = parser.parse_args()
    runner.import_for(options.names)
    lines, better = [], 0
    for number, name in enumerate(options.names):
        began = runner.elapsed()
        deadline = began + max(options.seconds - began, 0.0) / (len(options.names) - number)
        found = search(name, options, deadline)
        native, ours = found["native"], found["ours"]
        better += ours.low > native.low and not native.failed
        lines.append(f"{name}: in {options.limit:g} GiB the batch can be {native} of the usual natively, {ours} on ours")
    verdict = f"more fits for {better} of {len(options.names)} workloads"
    runner.summarize(lines + [f"limits: {verdict} ({runner.elapsed():.0f} s)"])
    sys.exit(0 if better == len(options.names) else 1)


if __name__ == "__main__":
    main()
