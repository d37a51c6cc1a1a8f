"""Several processes on one GPU at the same time: their losses are those of a native process that is alone.

    python3 processes.py [--count N] [NAME]
"""

import argparse
import statistics
import sys

import runner


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="gpt2_train")
    parser.add_argument("--count", type=int, default=4)
    options = parser.parse_args()
    runner.import_all()
    alone = runner.run(options.name, "native")
    equal = 0
    for allocator in ("native", "ours"):
        answers = runner.run_together(options.count, options.name, allocator)
        for answer in answers:
            if answer.get("failed") or answer.get("out_of_memory"):
                print(answer.get("failed") or answer["out_of_memory"], file=sys.stderr)
        good = [answer for answer in answers if answer.get("losses") == alone.get("losses")]
        times = [answer["step_ms"] for answer in answers if answer.get("step_ms")]
        held = sum(answer.get("peak_reserved", 0) for answer in answers) / (1 << 30)
        median = f"{statistics.median(times):.2f} ms a step" if times else "no step"
        print(f"{options.count} x {options.name}, {allocator}: {len(good)} have the losses of one alone; {median}, "
              f"{held:.2f} GiB reserved together")
        equal = len(good)
    sys.exit(0 if equal == options.count else 1)


if __name__ == "__main__":
    main()
