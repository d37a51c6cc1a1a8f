"""What fits: both allocators limited to the same bytes, and the batch that only one of them can train.

    python3 limits.py [--limit GIB] [--steps N] [NAME...]

For each workload the largest scale of its batch is found at which it runs to the end, natively and on our memory.
"""

import argparse
import sys

import runner

GIB = 1 << 30
STEP = 1 / 8


def fits(name, allocator, limit, steps, scale):
    answer = runner.run(name, allocator, steps=steps, scale=scale, limit=limit)
    if answer.get("failed"):
        print(name, allocator, scale, answer["failed"], file=sys.stderr)
        return False
    return answer["out_of_memory"] is None


def largest(name, allocator, limit, steps):
    """The largest scale that runs, in eighths."""
    low, high = 0, 8
    while fits(name, allocator, limit, steps, high * STEP):
        low, high = high, high * 2
        if high > 256:
            break
    while high - low > 1:
        middle = (low + high) // 2
        if fits(name, allocator, limit, steps, middle * STEP):
            low = middle
        else:
            high = middle
    return low * STEP


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["gpt2_lengths"])
    parser.add_argument("--limit", type=float, default=12.0, help="GiB")
    parser.add_argument("--steps", type=int, default=16)
    options = parser.parse_args()
    runner.import_all()
    limit, better = int(options.limit * GIB), 0
    for name in options.names:
        native, ours = (largest(name, allocator, limit, options.steps) for allocator in ("native", "ours"))
        better += ours > native
        print(f"{name}: in {options.limit:g} GiB the batch can be {native:g} of the usual natively, {ours:g} on ours")
    sys.exit(0 if better == len(options.names) else 1)


if __name__ == "__main__":
    main()
