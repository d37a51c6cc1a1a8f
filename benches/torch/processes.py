"""Several processes on one GPU at the same time: their losses are those of a native process that is alone.

    python3 processes.py [--count N] [--steps N] [--seconds S] [NAME]
"""

import argparse
import statistics
import sys

import runner
from deterministic import STRICT, USUAL


def agree(one, two):
    """Whether two runs have the same losses, as far as both have come."""
    one, two = one.get("losses", []), two.get("losses", [])
    count = min(len(one), len(two))
    return count >= runner.MIN_STEPS and one[:count] == two[:count]


def difference(one, two):
    """Where the losses of two runs part, in words."""
    for step, (left, right) in enumerate(zip(one.get("losses", []), two.get("losses", []))):
        if left != right:
            return f"step {step}: {float.fromhex(left):.9g} against {float.fromhex(right):.9g}"
    return f"{len(one.get('losses', []))} and {len(two.get('losses', []))} steps, equal as far as both go"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="gpt2_train")
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="for everything; what takes longer is ended")
    options = parser.parse_args()
    runner.import_for([options.name])

    def left(share):
        return max(options.seconds - runner.elapsed(), 1.0) * share

    def alone(level, share):
        limits = {"timeout": left(share), "steps": options.steps, "seconds": left(share) / 2, "level": level}
        return runner.run(options.name, "native", **limits)

    # What one process has alone, twice: a program whose losses differ then is asked for all determinism there is.
    for level in (USUAL, STRICT):
        first, again = alone(level, 0.25), alone(level, 0.25)
        repeats = agree(first, again)
        if repeats or left(1.0) < options.seconds / 2:
            break
    lines, equal = [f"one alone, twice: {'equal' if repeats else difference(first, again)} (determinism {level})"], {}
    lines += [f"one alone: {runner.failure(answer)}"[:200] for answer in (first, again) if runner.failure(answer)]
    for allocator, share in (("ours", 0.5), ("native", 1.0)):
        limits = {"timeout": left(share), "steps": options.steps, "seconds": left(share) / 2, "level": level}
        answers = runner.run_together(options.count, options.name, allocator, **limits)
        texts = {runner.failure(answer) for answer in answers} - {None}
        equal[allocator] = sum(agree(answer, first) for answer in answers)
        times = [answer["step_ms"] for answer in answers if answer.get("step_ms")]
        steps = min(len(answer.get("losses", [])) for answer in answers)
        held = sum(answer.get("peak_reserved", 0) for answer in answers) / (1 << 30)
        median = f"{statistics.median(times):.2f} ms a step" if times else "no step"
        line = f"{options.count} x {options.name}, {allocator}: {equal[allocator]} have the losses of one alone in {steps} "
        line += f"steps; {median}, {held:.2f} GiB reserved together"
        print(line, flush=True)
        lines += [line] + [text[:200] for text in sorted(texts)]
        if equal[allocator] < options.count:
            lines.append(f"  {allocator}, the first against one alone: {difference(answers[0], first)}")
    verdict = "hold" if equal["ours"] == options.count else "FAIL"
    if verdict == "FAIL" and equal["native"] <= equal["ours"]:
        verdict += ", and no better natively"
    runner.summarize(lines + [f"processes: {verdict} ({runner.elapsed():.0f} s)"])
    sys.exit(0 if equal["ours"] == options.count else 1)


if __name__ == "__main__":
    main()
