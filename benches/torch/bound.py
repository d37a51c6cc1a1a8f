"""The least time that the device lets a step of prefetch_streams take within so many of its live bytes, whatever the allocator.

    python3 bound.py [--held RATIO] [--host RATIO] [--seconds S] [--step US...]

A step's copy needs its destination from its first byte to the end of the step's last use of it, and the work of a step needs
four blocks of that size at a time. These are facts of the program. What the copies and the work of each size take on this device
is measured, each by itself and at its best. A model then runs the program in the time of the device alone, with every liberty
that an allocator could wish for: memory that never falls into pieces and costs nothing, in any place and in no time; knowledge of
all sizes to come; streams that wait for each other to the moment; a host that submits a step's work at once. It obeys one rule:
no more bytes are used at a time than the ratio allows. What it takes, no allocator can be below that leaves the host's part of a
step as it is natively, nor, in the last column, one that cuts this down to `--host` of it.

`--step` gives the native step times to answer for, besides the one measured here: the host's part of them differs from core to
core. How well the model describes the device is told by the first line: many steps that the host had submitted beforehand, with
all the memory they want, natively and in the model.
"""

import argparse
import json
import random
import statistics
import sys

import runner
import torch
from workloads import WORKLOADS

NAME = "prefetch_streams"
COLUMNS = 2048
LAYERS = 4
#: Blocks of a step's size in use while a layer's product becomes the next one's input: what was copied, the input, the
#: product, and the output.
BLOCKS_OF_WORK = 4
#: While the last output is summed up: that, and what was copied.
BLOCKS_OF_SUM = 2
#: Cycles for which a stream is held up, so that what is behind it is submitted before it begins.
HOLD_UP = 2_000_000
#: Steps that are submitted before the device begins, and cycles that they take to submit at the most.
UNHELD_STEPS = 50
HOLD_UP_STEPS = 100_000_000


def behind_a_delay(stream, submit):
    """Microseconds on the device between the events that `submit` records on the stream."""
    with torch.cuda.stream(stream):
        torch.cuda._sleep(HOLD_UP)
        events = submit()
    torch.cuda.synchronize()
    return [one.elapsed_time(other) * 1e3 for one, other in zip(events, events[1:])]


def event():
    """A recorded event."""
    recorded = torch.cuda.Event(enable_timing=True)
    recorded.record()
    return recorded


def measure_costs(rows, weights):
    """By number of rows: what the copy, the layers, and the sum take by themselves, at their best of several times."""
    stream, costs = torch.cuda.Stream(), {}
    for count in sorted(set(rows)):
        host = torch.rand(count, COLUMNS).pin_memory()

        def once():
            begun = event()
            x = host.to("cuda", non_blocking=True)
            copied = event()
            y = x
            for weight in weights:
                y = torch.relu(y @ weight)
            worked = event()
            y.sum(1)
            return [begun, copied, worked, event()]

        runs = [behind_a_delay(stream, once) for _ in range(6)]
        costs[count] = [min(times) for times in zip(*runs[1:])]
    return costs


def run_natively(steps):
    """What the program does natively: rows of each step, microseconds of a step, live bytes, and what each size costs."""
    drawn, choice = [], random.choice

    def note(items):
        item = choice(items)
        drawn.append(item.shape[0])
        return item

    random.choice = note
    try:
        found = runner.measure(NAME, "native", steps=steps)
    finally:
        random.choice = choice
    if found["out_of_memory"]:
        raise RuntimeError(found["out_of_memory"])
    weights = [torch.rand(COLUMNS, COLUMNS, device="cuda") / COLUMNS for _ in range(LAYERS)]
    costs = measure_costs(drawn, weights)
    del weights
    found.update(rows=drawn, costs=costs, step_us=found["step_ms"] * 1e3, unheld_us=run_unheld())
    return found


def run_unheld():
    """Microseconds of a step for the device alone, which begins when the host has submitted the first so many steps."""
    function, _, _ = WORKLOADS[NAME]
    runner.seed()
    step = function(1.0)
    times, same = [], random.getstate()
    for _ in range(4):
        random.setstate(same)
        torch.cuda.synchronize()
        gate = torch.cuda.Stream()
        with torch.cuda.stream(gate):
            torch.cuda._sleep(HOLD_UP_STEPS)
            begun = event()
        for stream in streams_of(step):
            stream.wait_stream(gate)
        torch.cuda.current_stream().wait_stream(gate)
        for _ in range(UNHELD_STEPS):
            step()
        for stream in streams_of(step):
            torch.cuda.current_stream().wait_stream(stream)
        done = event()
        torch.cuda.synchronize()
        times.append(begun.elapsed_time(done) * 1e3 / UNHELD_STEPS)
    return min(times)


def streams_of(step):
    """The streams of a built step."""
    return next(cell.cell_contents for name, cell in zip(step.__code__.co_freevars, step.__closure__) if name == "streams")


class Model:
    """The program in the time of the device: copies one after the other, and so the work; both at the same time."""

    def __init__(self, rows, costs, wait_every):
        self.sizes = [count * COLUMNS * 4 for count in rows]
        self.costs = [costs[count] for count in rows]
        self.wait_every = wait_every

    def step(self, host, bytes_at_most=None):
        """Microseconds of a step if the host takes so many to submit one."""
        copied = worked = now = 0.0
        # When the layers, and all of a step's work, are done.
        layers, ends = [], []
        for number, (size, (copy, work, summing)) in enumerate(zip(self.sizes, self.costs)):
            begin = max(copied, now)
            if bytes_at_most is not None:
                begin = max(begin, self.room(number, bytes_at_most, begin, layers, ends))
            copied = begin + copy
            layers.append(max(worked, copied) + work)
            worked = layers[-1] + summing
            ends.append(worked)
            now += host
            if (number + 1) % self.wait_every == 0:
                now = max(now, worked)
        return max(now, worked) / len(self.sizes)

    def room(self, number, bytes_at_most, begin, layers, ends):
        """When there is room for a step's copy: not before each earlier step has, or has had, all that it needs besides
        what was copied after its own."""
        since, after = begin, self.sizes[number]
        for earlier in range(number - 1, -1, -1):
            if ends[earlier] <= begin:
                break
            size = self.sizes[earlier]
            if BLOCKS_OF_WORK * size + after > bytes_at_most:
                since = max(since, layers[earlier])
            if BLOCKS_OF_SUM * size + after > bytes_at_most:
                since = max(since, ends[earlier])
            after += size
        return since

    def host_of(self, step):
        """The host's part of a step that takes so long with all the memory it wants."""
        low, high = 0.0, step
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.step(middle) < step else (low, middle)
        return high


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held", type=float, default=1.05, help="bytes held over live bytes (1.05)")
    parser.add_argument("--host", type=float, default=0.97, help="an allocator's host part over native's (0.97)")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--steps", type=int, default=1501)
    parser.add_argument("--step", type=float, nargs="*", default=[], metavar="US", help="native step times to answer for")
    options = parser.parse_args()
    found = runner.in_child(options.seconds, run_natively, options.steps)
    if "step_us" not in found:
        sys.exit(f"bound: {runner.failure(found)}")
    _, _, wait_every = WORKLOADS[NAME]
    model = Model(found["rows"], found["costs"], wait_every)
    live = found["peak_live"]
    others = live - BLOCKS_OF_WORK * max(model.sizes)
    at_most = options.held * live - others
    first = Model(found["rows"][:UNHELD_STEPS], found["costs"], wait_every)
    lines = [f"device alone       {found['unheld_us']:.0f} us a step, in the model {first.step(0.0):.0f}",
             f"held at most       {options.held} of {live} live bytes, of which {others} are none of the steps'",
             f"{'native us':>9} {'host us':>8} {'least of native':>16} {f'host {options.host}':>10}"]
    table = []
    for native in sorted({*options.step, found["step_us"]}):
        host = model.host_of(native)
        least, with_less = (model.step(host * part, at_most) / native for part in (1.0, options.host))
        mark = "  (measured here)" if native == found["step_us"] else ""
        lines.append(f"{native:9.0f} {host:8.0f} {least:16.3f} {with_less:10.3f}{mark}")
        table.append({"native_us": native, "host_us": host, "least": least, "least_with_less_host": with_less})
    runner.summarize(lines)
    copies, works = ([cost[part] for cost in model.costs] for part in (0, 1))
    print(json.dumps({"copy_us": statistics.fmean(copies), "work_us": statistics.fmean(works),
                      "native_us": found["step_us"], "live": live, "table": table}), flush=True)


if __name__ == "__main__":
    main()
