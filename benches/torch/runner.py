"""Runs workloads, each in a process of its own that starts with everything imported.

    python3 runner.py NAME [--allocator native|expandable|ours] [--steps N] [--seconds S] [--scale X] [--limit BYTES]

prints one line of JSON. Other scripts call `run` and `run_together`. With START=spawn in the environment processes start
from nothing instead, which takes longer, and helps where an import touches the GPU.
"""

import argparse
import functools
import gc
import json
import os
import pickle
import random
import re
import select
import signal
import statistics
import subprocess
import sys
import time
import traceback

#: When this process started, near enough: before the imports that take long.
BEGAN = time.monotonic()

# Before torch is imported. The first makes cuBLAS deterministic; the second lets this process say whether there is a GPU
# without touching it, so that its children can.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

import deterministic
import device_memory
import turns
from programs import PROGRAMS, as_workload
from workloads import WORKLOADS

ALLOCATORS = ("native", "expandable", "ours")
#: Fewer steps than these say nothing, however long they take.
MIN_STEPS = 4


def use(allocator):
    """Chooses the allocator of this process."""
    if allocator == "ours":
        device_memory.enable_torch()
    elif allocator == "expandable":
        # The variable for this is read when PyTorch is imported.
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def limit_memory(allocator, limit):
    """Limits the memory that the process holds to the same bytes, whatever the allocator."""
    if allocator == "ours":
        device_memory.set_limit(limit)
    else:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(limit / total, 0)


def elapsed():
    """Seconds since this process started."""
    return time.monotonic() - BEGAN


def seed():
    """The same random numbers in every process, on every device."""
    random.seed(7)
    torch.manual_seed(7)


def build(function, scale, level, result):
    """A workload's step, and the outcome of its first one, which shows whether determinism is to be had."""
    deterministic.ask_for(level)
    for _ in range(2):
        seed()
        step = function(scale)
        torch.cuda.synchronize()
        began = time.perf_counter()
        try:
            outcome = step()
        except RuntimeError as error:
            operation = deterministic.lacks_version(error)
            if operation is None:
                raise
            result["not_deterministic"] = operation
            deterministic.settle_for_less()
            del step
            torch.cuda.reset_peak_memory_stats()
            continue
        torch.cuda.synchronize()
        return step, outcome, time.perf_counter() - began
    raise RuntimeError("a workload asks for determinism again")


def figures_of(allocator):
    """What memory was held, as plain values."""
    stats = torch.cuda.memory_stats()
    # PyTorch's own allocator counts as requested what it may not reuse yet, since another stream does, and as allocated
    # what the program holds, rounded up. The program's own is less than either.
    found = {
        "peak_live": min(stats["requested_bytes.all.peak"], stats["allocated_bytes.all.peak"]),
        "peak_requested": stats["requested_bytes.all.peak"],
        "peak_reserved": stats["reserved_bytes.all.peak"],
        "retries": stats["num_alloc_retries"],
    }
    if allocator == "ours":
        figures = device_memory.statistics()
        keys = ("hits", "misses", "moves", "memory_calls", "calls", "rejected_frees", "leaked", "in_use_peak")
        found["pool"] = {key: figures[key] for key in keys}
        found["pool"].update(parked_peak=figures["parked_peak"], by_call=figures["pool"]["calls"])
    return found


def measure(name, allocator, steps=None, scale=1.0, limit=None, seconds=None, level=deterministic.USUAL, player=None):
    """Runs a workload in this process; what it did, as plain values. After `seconds` of steps no other is begun. With a
    player of `turns`, between two waits for the device it has its turn."""
    function, usual_steps, wait_every = as_workload(name) if name in PROGRAMS else WORKLOADS[name]
    steps = steps or usual_steps
    use(allocator)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.zeros(1, device="cuda")
    if limit is not None:
        limit_memory(allocator, limit)
    result = {"name": name, "allocator": allocator, "scale": scale, "limit": limit, "level": level}
    result.update(out_of_memory=None, not_deterministic=None)
    outcomes, times, begun = [], [], time.perf_counter()
    try:
        step, outcome, first = build(function, scale, level, result)
        outcomes.append(outcome)
        spent = 0.0
        if player:
            # Not sooner: processes that start at the same time would wait for each other.
            turns.share_a_core()
            player.ready()
        for number in range(1, steps):
            if number % wait_every == 1 % wait_every:
                if player:
                    player.begin()
                start = time.perf_counter()
            outcomes.append(step())
            if number % wait_every == 0:
                torch.cuda.synchronize()
                took = time.perf_counter() - start
                times.append(took / wait_every * 1e3)
                spent += took
                if player:
                    player.end()
                if seconds is not None and spent > seconds and number + 1 >= MIN_STEPS:
                    break
        torch.cuda.synchronize()
        result.update(first_ms=first * 1e3)
    except torch.OutOfMemoryError as error:
        result["out_of_memory"] = str(error)
    finally:
        if player:
            player.leave()
    settled = times[settling(len(times)) :]
    result.update(
        steps=len(outcomes),
        seconds=time.perf_counter() - begun,
        losses=[float(outcome).hex() for outcome in outcomes],
        times_ms=times,
        step_ms=statistics.median(settled) if settled else None,
        **figures_of(allocator),
    )
    return result


def settling(count):
    """How many of so many times are left out: libraries are loaded, and pools grow, in the first steps."""
    return count // 4


def import_for(names):
    """Imports what takes long, so that no child has to. One that can't be imported fails when it is run.

    torchvision and torch_geometric are left to the children: what they import starts CUDA, which no fork survives.
    """
    for name in names:
        try:
            if name.startswith("gpt2"):
                from transformers import GPT2LMHeadModel  # noqa: F401
            elif name.startswith(("llama", "beam")):
                from transformers import LlamaForCausalLM  # noqa: F401
            elif name.startswith("moe"):
                from transformers import MixtralForCausalLM  # noqa: F401
            elif name.startswith("bert"):
                from transformers import BertForMaskedLM  # noqa: F401
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr, flush=True)


def summarize(lines):
    """Prints what a script found, and notes it for the end of all scripts."""
    text = "\n".join(lines) + "\n"
    print(text, end="", flush=True)
    if os.environ.get("TORCH_SUMMARY"):
        with open(os.environ["TORCH_SUMMARY"], "a") as file:
            file.write(text)


def failure(answer):
    """Why a run has no result, in a line; `None` if it has one."""
    text = answer.get("failed") or answer.get("out_of_memory")
    if not text:
        return None
    lines = text.strip().splitlines()
    # PyTorch's errors go on with advice after the line that names them.
    named = [line for line in lines if re.match(r"[\w.]+(Error|Interrupt|Exit|TooLate|Unavailable|Failure|Memory): ", line)]
    return (named or lines)[-1]


def _answer(pipe, function, arguments):
    """Calls `function` and sends what it returns, or how it failed."""
    try:
        answer = function(*arguments)
    except BaseException:
        answer = {"failed": traceback.format_exc()}
    with os.fdopen(pipe, "wb") as pipe:
        pickle.dump(answer, pipe)
    sys.stdout.flush()
    sys.stderr.flush()
    # Interpreter and driver are not torn down: nothing of theirs is measured.
    os._exit(0)


def start(function, *arguments, ends=()):
    """Calls `function` in a child; the child's number and the end of the pipe that its answer comes from. `ends` are those of
    other pipes that it needs."""
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    if os.environ.get("START") == "spawn":
        code = "import sys, pickle, runner; runner._answer(int(sys.argv[1]), *pickle.load(sys.stdin.buffer))"
        child = subprocess.Popen([sys.executable, "-c", code, str(write)], stdin=subprocess.PIPE, pass_fds=(write, *ends))
        pickle.dump((function, arguments), child.stdin)
        child.stdin.close()
        os.close(write)
        return child.pid, read
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    os.close(read)
    _answer(write, function, arguments)


def finish(started, deadline):
    """The answer of a child, or {"failed": text}. At `deadline`, in seconds as `elapsed` counts, the child is ended."""
    child, read = started
    parts, in_time = [], True
    with os.fdopen(read, "rb", buffering=0) as pipe:
        while in_time:
            in_time = bool(select.select([pipe], [], [], max(deadline - elapsed(), 0.0))[0])
            part = pipe.read(1 << 20) if in_time else b""
            if not part:
                break
            parts.append(part)
    if not in_time:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not in_time:
        return {"failed": "it took too long and was ended"}
    if not parts:
        return {"failed": f"the process ended with status {status} and said nothing"}
    return pickle.loads(b"".join(parts)) or {}


def in_child(timeout, function, *arguments):
    """Calls a function in a process of its own; its answer, or {"failed": text}."""
    return finish(start(function, *arguments), elapsed() + timeout)


def run(name, allocator, timeout, **options):
    """`measure` in a process of its own."""
    answer = in_child(timeout, functools.partial(measure, name, allocator, **options))
    return {"name": name, "allocator": allocator, **answer}


def run_in_turns(name, allocators, timeout, **options):
    """`measure` in a process for each of the allocators, which take turns from step to step; their answers."""
    deadline = elapsed() + timeout
    players = [turns.Player() for _ in allocators]
    parts = [functools.partial(measure, name, allocator, player=player, **options)
             for allocator, player in zip(allocators, players)]
    started = [start(part, ends=player.ends()) for part, player in zip(parts, players)]
    turns.referee([[player] for player in players], lambda: deadline - elapsed())
    answers = [finish(child, deadline) for child in started]
    return [{"name": name, "allocator": allocator, **answer} for allocator, answer in zip(allocators, answers)]


def run_together(count, name, allocator, timeout, **options):
    """`measure` in several processes at the same time."""
    deadline = elapsed() + timeout
    started = [start(functools.partial(measure, name, allocator, **options)) for _ in range(count)]
    return [finish(child, deadline) for child in started]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted([*WORKLOADS, *PROGRAMS]))
    parser.add_argument("--allocator", choices=ALLOCATORS, default="ours")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--level", type=int, choices=(0, 1, 2), default=deterministic.USUAL, help="of determinism")
    options = parser.parse_args()
    answer = measure(**vars(options))
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
