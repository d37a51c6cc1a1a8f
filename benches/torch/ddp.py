"""GPT-2 trained on all GPUs by DistributedDataParallel, one process a GPU, natively and on ours: losses, step times, memory.

    python3 ddp.py [--world N] [--steps N] [--batch N] [--seconds S] [--json FILE]

`--world` is the number of GPUs unless told otherwise; with one, NCCL has nobody to talk to, and the rest is the same. Before
it trains, each rank checks an all-reduce and an all-gather of tensors in its memory; with several GPUs, one process with all
of them hands tensors from each to each first. Losses have to be native ones, rank by rank, as `compare.py` judges them.
Two native runs and one on ours take turns from step to step.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import tempfile

# Multicast over NVLink is left alone: a program that uses it badly takes GPUs from everybody else on the host.
os.environ["NCCL_NVLS_ENABLE"] = "0"
os.environ["TORCH_SYMM_MEM_DISABLE_MULTICAST"] = "1"
os.environ["NVSHMEM_DISABLE_NVLS"] = "1"

import runner  # first: it sets what PyTorch reads when it is imported

import time

import torch
import torch.distributed as dist

import compare
import deterministic
import device_memory
import turns
import workloads

GIB = 1 << 30


def check_collectives(rank, world):
    """An all-reduce and an all-gather of whole numbers, which are exact in any order."""
    count = 1 << 22
    mine = torch.arange(count, device="cuda", dtype=torch.float32) % 1000 + rank
    total = mine.clone()
    dist.all_reduce(total)
    gathered = torch.empty(world * count, device="cuda")
    dist.all_gather_into_tensor(gathered, mine)
    base = torch.arange(count, device="cuda", dtype=torch.float32) % 1000
    wrong = int((total != base * world + sum(range(world))).sum())
    for other, part in enumerate(gathered.chunk(world)):
        wrong += int((part != base + other).sum())
    return wrong


def train(rank, world, allocator, store, steps, batch, player):
    """What one process does; its results as plain values."""
    runner.use(allocator)
    torch.cuda.set_device(rank)
    deterministic.ask_for(deterministic.USUAL)
    runner.seed()
    dist.init_process_group("nccl", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        wrong = check_collectives(rank, world)
        model = torch.nn.parallel.DistributedDataParallel(workloads._gpt2(), device_ids=[rank])
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        # Every rank has batches of its own.
        torch.manual_seed(7 + rank)
        losses, times = [], []
        player.ready()
        for _ in range(steps):
            player.begin()
            torch.cuda.synchronize()
            start = time.perf_counter()
            losses.append(workloads._gpt2_step(model, optimizer, batch, 512))
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
            player.end()
        stats = torch.cuda.memory_stats()
        result = {
            "rank": rank,
            "world": world,
            "allocator": allocator,
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
            "device": torch.cuda.get_device_name(),
            "wrong": wrong,
            "losses": [float(loss).hex() for loss in losses],
            "times_ms": times,
            "step_ms": statistics.median(times[runner.settling(len(times)) :]),
            "peak_live": min(stats["requested_bytes.all.peak"], stats["allocated_bytes.all.peak"]),
            "peak_reserved": stats["reserved_bytes.all.peak"],
        }
        if allocator == "ours":
            figures = device_memory.statistics(rank)
            result["pool"] = {key: figures[key] for key in ("misses", "moves", "rejected_frees", "leaked")}
        return result
    finally:
        # First, as the other ranks may not be there any more for what follows.
        player.leave()
        dist.destroy_process_group()


def hand_over(world, allocator):
    """One process with all devices: tensors go from each to each, one of them in use on a stream meanwhile."""
    runner.use(allocator)
    wrong = 0
    for source in range(world):
        for target in range(world):
            if source == target:
                continue
            for count in (1, 1000, (7 << 20) + 3):
                sent = torch.arange(count, device=f"cuda:{source}", dtype=torch.int32) * 3 + source
                got = sent.to(f"cuda:{target}", non_blocking=True)
                sent.zero_()
                del sent
                wrong += int((got != torch.arange(count, device=f"cuda:{target}", dtype=torch.int32) * 3 + source).sum())
    return {"wrong": wrong, "allocator": allocator}


def run(world, allocators, steps, batch, timeout):
    """All ranks of all allocators, which take turns from step to step; answers by allocator and rank, and what failed."""
    deadline = runner.elapsed() + timeout
    with tempfile.TemporaryDirectory() as folder:
        groups, started = [], []
        for number, allocator in enumerate(allocators):
            store = os.path.join(folder, str(number))
            players = [turns.Player() for _ in range(world)]
            work = [functools.partial(train, rank, world, allocator, store, steps, batch, player)
                    for rank, player in enumerate(players)]
            groups.append(players)
            started.append([runner.start(part, ends=player.ends()) for part, player in zip(work, players)])
        turns.referee(groups, lambda: deadline - runner.elapsed())
        answers = [[runner.finish(child, deadline) for child in children] for children in started]
    failed = [f"{allocator}, rank {rank}: {runner.failure(answer)}" for allocator, ranks in zip(allocators, answers)
              for rank, answer in enumerate(ranks) if runner.failure(answer)]
    return answers, failed


def slowest(answers):
    """Each step's time: that of its slowest rank."""
    return [max(times) for times in zip(*(answer["times_ms"] for answer in answers))]


def judge(native, ours):
    """What the runs of both allocators say, each a list of answers by rank, and whether ours are as they should be."""
    lines, holds = [], True
    wrong = sum(answer["wrong"] for answers in native + ours for answer in answers)
    if wrong:
        lines.append(f"collectives: {wrong} elements are wrong")
        holds = False
    for rank in range(len(native[0])):
        by_rank = [[answers[rank] for answers in runs] for runs in (native, ours)]
        losses, noise, away = compare.verdict(*by_rank)
        holds = holds and losses != "DIFFER"
        lines.append(f"rank {rank}: losses {losses} ({away:.1e} from native, native runs {noise:.1e} apart)")
    steps = [[slowest(answers) for answers in runs] for runs in (native, ours)]
    ratio, noise, native_ms = compare.side_by_side(steps[1], steps[0])
    lines.append(f"step: {native_ms:.2f} ms natively, ours {ratio:.4f} of it; one native run {noise:.4f} of the other")
    for name, runs in (("native", native), ("ours", ours)):
        each = [answer for answers in runs for answer in answers]
        reserved = max(answer["peak_reserved"] / answer["peak_live"] for answer in each)
        lines.append(f"{name}: reserved/live {reserved:.3f}, live {each[0]['peak_live'] / GIB:.2f} GiB")
    pools = [answer["pool"] for answers in ours for answer in answers]
    if any(pool["rejected_frees"] or pool["leaked"] for pool in pools):
        lines.append(f"frees were refused, or memory leaked: {pools}")
        holds = False
    return lines, holds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=int)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=150.0, help="for everything; what takes longer is ended")
    parser.add_argument("--json", help="where every answer is written, a line each")
    options = parser.parse_args()
    runner.import_for(["gpt2_train"])
    world = options.world or torch.cuda.device_count()
    if world < 1:
        sys.exit("ddp: there is no GPU")
    runs, lines = {"native": [], "ours": []}, []
    for allocator in runs if world > 1 else ():
        answer = runner.in_child(30, hand_over, world, allocator)
        text = runner.failure(answer) or (f"{answer['wrong']} elements are wrong" if answer["wrong"] else None)
        print(f"{runner.elapsed():5.0f} s  one process, tensors across devices, {allocator}: {text or 'right'}", flush=True)
        lines += [f"tensors across devices, {allocator}: {text}"[:300]] if text else []
    # Native twice: how much those differ is how much means nothing.
    allocators = ["native", "ours", "native"]
    answers, failed = run(world, allocators, options.steps, options.batch, max(options.seconds - runner.elapsed(), 10.0))
    lines += [text[:300] for text in failed]
    for allocator, ranks in zip(allocators, answers):
        if any(runner.failure(answer) for answer in ranks):
            continue
        runs[allocator].append(ranks)
        if options.json:
            with open(options.json, "a") as file:
                file.writelines(json.dumps(answer) + "\n" for answer in ranks)
        print(f"{runner.elapsed():5.0f} s  {world} x {allocator}: {max(rank['step_ms'] for rank in ranks):.2f} ms a step")
    holds = bool(runs["native"]) and bool(runs["ours"]) and not lines
    if runs["native"] and runs["ours"]:
        first = runs["native"][0][0]
        lines.append(f"{world} x {first['device']}, NCCL {first['nccl']}, {options.steps} steps of batch {options.batch}")
        found, right = judge(runs["native"], runs["ours"])
        lines += found
        holds = holds and right
    runner.summarize(lines + [f"ddp: {'hold' if holds else 'FAIL'} ({runner.elapsed():.0f} s)"])
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
