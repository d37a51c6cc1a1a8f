"""Records what programs allocate and release natively, for replays: RMM's CSV, compressed by gzip.

    python3 record.py [--steps N] [--rows N] [--out DIR] [--jobs N] [--seconds S] [NAME...]

Each of the programs of `programs.py`, or those that are named, runs in a process of its own on PyTorch's own allocator, a few
at the same time, for so many steps, or until there are so many rows. Numbers are seeded: but for times and addresses a
recording is the same each time, as far as the program is deterministic. `cargo xtask bench --trace` reads the files.

The line of a program has its steps and rows, the most bytes that it had requested at a time, and what PyTorch reserved at the
most over that. What is released counts as requested until all streams that used it are done.
"""

import argparse
import csv
import gzip
import os
import random
import select
import sys

import runner
import torch
from programs import PROGRAMS

GIB = 1 << 30
HEADER = ("Thread", "Time", "Action", "Pointer", "Size", "Stream")
#: Entries of PyTorch's history for each row: a release has two of them, and segments have their own.
ENTRIES_PER_ROW = 4
#: Entries besides, for the step with which the rows are complete. What no longer fits displaces the oldest.
SPARE_ENTRIES = 2_000_000


def seed():
    """The same random numbers each time, not those of the workloads."""
    random.seed(11)
    torch.manual_seed(11)


def clock(microseconds):
    """A time as RMM writes it."""
    seconds, fraction = divmod(microseconds, 1_000_000)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}.{fraction:06}"


def rows_of(history, most):
    """The first so many rows of a recording, from the entries of PyTorch's history.

    A release counts from where the program asks for it, and has the size that was requested. One of a block that is not known
    is left out."""
    living, count = {}, 0
    for entry in history:
        if count == most:
            return
        if entry["action"] == "alloc":
            action, size = "allocate", entry["size"]
            living[entry["addr"]] = size
        elif entry["action"] == "free_requested" and entry["addr"] in living:
            action, size = "free", living.pop(entry["addr"])
        else:
            continue
        time = clock(entry["time_us"] - history[0]["time_us"])
        yield 1, time, action, hex(entry["addr"]), size, hex(entry["stream"])
        count += 1


def write(path, rows):
    """Writes a recording, which is there when it is whole; the number of its rows."""
    part, count = f"{path}.part", 0
    with gzip.open(part, "wt", compresslevel=6, newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        for row in rows:
            writer.writerow(row)
            count += 1
    os.replace(part, path)
    return count


def calls_so_far():
    """How often this process has allocated and released."""
    figures = torch.cuda.memory_stats_as_nested_dict()["allocation"]["all"]
    return figures["allocated"] + figures["freed"]


def record(name, steps, rows, path):
    """Runs a program in this process and writes its recording; what it did, as plain values."""
    # The runner asks for it, so that cuBLAS is deterministic; programs have it as a rule as it comes.
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    function, usual_steps, _ = PROGRAMS[name]
    seed()
    torch.zeros(1, device="cuda")
    entries = ENTRIES_PER_ROW * rows + SPARE_ENTRIES
    before, done = calls_so_far(), 0
    torch.cuda.memory._record_memory_history(enabled="all", context=None, stacks="python", max_entries=entries)
    step = function()
    while done < (steps or usual_steps) and calls_so_far() - before < rows:
        step(done)
        done += 1
    torch.cuda.synchronize()
    # The figures are of what was recorded.
    stats = torch.cuda.memory_stats()
    history = torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]
    torch.cuda.memory._record_memory_history(enabled=None)
    if len(history) >= entries:
        raise RuntimeError(f"one step has so many rows that the first of {len(history)} entries are lost")
    return {
        "steps": done,
        "rows": write(path, rows_of(history, rows)),
        "requested": stats["requested_bytes.all.peak"],
        "reserved": stats["reserved_bytes.all.peak"],
    }


def line_of(name, answer):
    """What is printed of a program."""
    text = runner.failure(answer)
    if text:
        return f"{name}: {text}"
    ratio = answer["reserved"] / answer["requested"]
    return (
        f"{name}: {answer['steps']} steps, {answer['rows']} rows, peak {answer['requested'] / GIB:.3f} GiB requested, "
        f"native reserved/requested {ratio:.3f}"
    )


def record_all(options):
    """Records all that is asked for, at most so many at the same time; how many succeeded."""
    waiting, running, good = list(options.names), {}, 0
    while waiting or running:
        while waiting and len(running) < options.jobs:
            name = waiting.pop(0)
            path = os.path.join(options.out, f"{name}.csv.gz")
            child, pipe = runner.start(record, name, options.steps, options.rows, path)
            running[pipe] = (name, child)
        # Whoever has something to say is about to end.
        ready, _, _ = select.select(list(running), [], [], max(options.seconds - runner.elapsed(), 0.0))
        for pipe in ready or list(running):
            name, child = running.pop(pipe)
            answer = runner.finish((child, pipe), options.seconds)
            good += runner.failure(answer) is None
            print(f"{runner.elapsed():5.0f} s  {line_of(name, answer)}", flush=True)
        if not ready:
            for name in waiting:
                print(f"{runner.elapsed():5.0f} s  {name}: there was no time left for it", flush=True)
            waiting.clear()
    return good


def positive(text):
    """A number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(PROGRAMS), metavar="NAME")
    parser.add_argument("--steps", type=positive, help="at the most, of each program; each has its own number by default")
    parser.add_argument("--rows", type=positive, default=120_000, help="at the most, of each recording (120000)")
    parser.add_argument("--out", default=os.environ.get("OUT") or "recordings", metavar="DIR", help="($OUT, or recordings)")
    parser.add_argument("--jobs", type=positive, default=4, help="programs at the same time, at the most (4)")
    parser.add_argument("--seconds", type=float, default=300.0, help="for everything; what takes longer is ended (300)")
    options = parser.parse_args()
    # One that is named twice would be written by two at the same time.
    options.names = list(dict.fromkeys(options.names))
    unknown = [name for name in options.names if name not in PROGRAMS]
    if unknown:
        parser.error(f"no program is named {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    os.makedirs(options.out, exist_ok=True)
    runner.import_for(options.names)
    good = record_all(options)
    verdict = f"{good} of {len(options.names)} programs are recorded in {options.out}"
    runner.summarize([f"record: {verdict} ({runner.elapsed():.0f} s)"])
    sys.exit(0 if good == len(options.names) else 1)


if __name__ == "__main__":
    # By the module's own name, under which a child that starts from nothing finds what it is to call.
    import record as module

    module.main()
