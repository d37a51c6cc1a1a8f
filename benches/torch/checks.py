"""What PyTorch and CuPy programs can do on our memory, each check in a process of its own.

    python3 checks.py [--slow] [--native] [CHECK...]

`--slow` adds those that compile. A check that fails is run again on PyTorch's own allocator, if it can be: what fails
there too is no failure of ours. `--native` runs all that can be on that allocator, and nothing else.
"""

import argparse
import importlib
import sys
import time

import runner

import torch

import device_memory

#: All checks; those that compile; those that PyTorch's own allocator can be asked to pass.
CHECKS, SLOW, ALSO_NATIVE = {}, set(), set()
MIB = 1 << 20
#: Seconds after which a check has failed, whatever it is doing.
TIMEOUT, SLOW_TIMEOUT = 60, 120

#: The allocator of this process.
allocator = "ours"


def registered_in(table):
    """A decorator that notes functions by their names."""

    def add(function):
        table[function.__name__] = function
        return function

    return add


check = registered_in(CHECKS)


def slow(function):
    SLOW.add(function.__name__)
    return function


def also_native(function):
    ALSO_NATIVE.add(function.__name__)
    return function


def held():
    """Bytes that blocks and pools of graphs keep from everybody else."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return device_memory.statistics()["in_use"] if allocator == "ours" else torch.cuda.memory_reserved()


def expect(condition, what):
    if not condition:
        raise AssertionError(what)


def model_and_input(seed=3):
    torch.manual_seed(seed)
    layers = [layer for _ in range(4) for layer in (torch.nn.Linear(512, 512), torch.nn.GELU())]
    return torch.nn.Sequential(*layers).cuda(), torch.randn(64, 512, device="cuda")


def churn():
    """Allocates, fills and frees what would overwrite memory that is not held."""
    for size in (1, 3, 17, 64, 200):
        held = [torch.full((size * MIB // 4,), 1e9, device="cuda") for _ in range(3)]
        del held
    torch.cuda.synchronize()


@check
def exceptions_are_pytorchs_own():
    device_memory.enable_torch()
    torch.zeros(1, device="cuda")
    support = device_memory._library.library().devmem_torch_exceptions()
    expect(support == 2, f"only support {support}: see symbols.py for what this PyTorch exports")


@check
def too_late_is_said_clearly():
    torch.zeros(1, device="cuda")
    try:
        device_memory.enable_torch()
    except device_memory.TooLate as error:
        expect("enable_torch" in str(error), str(error))
    else:
        raise AssertionError("it was too late, and nothing was said")


@check
def running_out_can_be_caught():
    device_memory.enable_torch()
    kept = torch.ones(64 * MIB // 4, device="cuda")
    device_memory.set_limit(256 * MIB)
    for _ in range(3):
        try:
            torch.empty(1024 * MIB, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError as error:
            text = str(error)
        else:
            raise AssertionError("a gigabyte does not fit 256 MiB")
        for part in ("CUDA out of memory. Tried to allocate 1.00 GiB", "in use", "free", "limit is 256.00 MiB"):
            expect(part in text, f"{part!r} is not in {text!r}")
    print("   ", text)
    expect(kept.sum().item() == 64 * MIB // 4, "what was there stays")
    half = torch.ones(96 * MIB // 4, device="cuda")
    expect(half.sum().item() == 96 * MIB // 4, "what fits still fits")
    device_memory.set_limit(None)
    torch.empty(1024 * MIB, dtype=torch.uint8, device="cuda")
    expect(torch.cuda.memory_stats()["num_ooms"] == 3, "failures are counted")


@check
@also_native
def running_out_in_backward_can_be_caught():
    runner.use(allocator)
    x = torch.randn(4096, 4096, device="cuda", requires_grad=True)
    y = x
    for _ in range(4):
        y = (y @ x).relu()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    runner.limit_memory(allocator, torch.cuda.memory_reserved() + 8 * MIB)
    try:
        y.sum().backward()
    except torch.OutOfMemoryError:
        pass
    else:
        raise AssertionError("there was no room for gradients")
    runner.limit_memory(allocator, torch.cuda.get_device_properties(0).total_memory)
    del y
    x.grad = None
    (x * 2).sum().backward()
    expect(x.grad.eq(2).all().item(), "the program goes on")


@check
@also_native
def the_whole_card_can_be_filled():
    runner.use(allocator)
    ones = torch.ones(1000, device="cuda")
    tensors, free = [], torch.cuda.mem_get_info()[0]
    for size in (1024 * MIB, 64 * MIB, 2 * MIB):
        try:
            while True:
                tensors.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError as error:
            text = str(error)
    left = torch.cuda.mem_get_info()[0]
    print("   ", text)
    share = sum(tensor.numel() for tensor in tensors) / free
    expect(share > 0.95, f"only {share:.3f} of what was free could be had")
    # Kernels that were not launched before are loaded now, into memory that the driver has to find.
    del tensors[-2:]
    expect(ones.sum().item() == 1000, "a kernel can be loaded while the card is full")
    expect(ones.sort().values[0].item() == 1, "and larger ones")
    tensors.clear()
    x = torch.ones(512, 512, device="cuda")
    expect((x @ x)[0, 0].item() == 512, "the program goes on")
    print(f"    {share:.4f} of what was free was had; {left / MIB:.0f} MiB were left to the driver", flush=True)


@check
def reports_answer():
    device_memory.enable_torch()
    x = torch.zeros(10 * MIB, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    expect(torch.cuda.memory_allocated() == 10 * MIB, torch.cuda.memory_allocated())
    expect(torch.cuda.memory_reserved() >= 10 * MIB, torch.cuda.memory_reserved())
    y = torch.zeros(90 * MIB, dtype=torch.uint8, device="cuda")
    del y
    expect(torch.cuda.max_memory_allocated() == 100 * MIB, torch.cuda.max_memory_allocated())
    torch.cuda.reset_peak_memory_stats()
    expect(torch.cuda.max_memory_allocated() == 10 * MIB, "peaks are counted anew")
    before = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    expect(torch.cuda.memory_reserved() < before, "free memory goes back")
    torch.cuda.memory_summary()
    torch.cuda.reset_accumulated_memory_stats()
    snapshot = torch.cuda.memory_snapshot()
    blocks = [block for segment in snapshot for block in segment["blocks"] if block["address"] == x.data_ptr()]
    expect([(block["requested_size"], block["state"]) for block in blocks] == [(10 * MIB, "active_allocated")], snapshot)
    traces = torch.cuda.memory._snapshot()["device_traces"]
    expect(len(traces) == torch.cuda.device_count(), "PyTorch's viewer takes the devices from there")
    torch.cuda.set_per_process_memory_fraction(0.01)
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.empty(total // 50, dtype=torch.uint8, device="cuda")
    except torch.OutOfMemoryError:
        pass
    else:
        raise AssertionError("a fraction limits")
    expect(torch.empty(0, device="cuda").data_ptr() == 0, "an empty tensor has no address, as with PyTorch's own")


@check
def memory_made_beforehand_is_what_tensors_get():
    device_memory.enable_torch()
    held = device_memory.grow_to(512 * MIB)
    torch.cuda.init()
    expect(held >= 512 * MIB and torch.cuda.memory_reserved() == held, f"{torch.cuda.memory_reserved()} of {held} bytes are there")
    expect(torch.cuda.max_memory_allocated() == 0, "nobody has it")
    before = device_memory.statistics()["memory_calls"]
    tensors = {size: torch.full((size * MIB // 4,), float(size), device="cuda") for size in (200, 3, 90, 150)}
    with torch.cuda.stream(torch.cuda.Stream()):
        tensors[40] = torch.full((40 * MIB // 4,), 40.0, device="cuda")
    torch.cuda.synchronize()
    calls = device_memory.statistics()["memory_calls"] - before
    expect(calls < 20, f"{calls} calls for memory: small blocks alone have some moved to where they live")
    expect(all(tensor.eq(float(size)).all().item() for size, tensor in tensors.items()), "each has its own contents")


@check
@also_native
def a_recorded_stream_is_waited_for():
    runner.use(allocator)
    side, value = torch.cuda.Stream(), 7.0
    out = torch.empty(8 * MIB, device="cuda")
    for _ in range(20):
        x = torch.full((8 * MIB,), value, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            torch.cuda._sleep(20_000_000)
            x.record_stream(side)
            out.copy_(x, non_blocking=True)
        del x
        # If this got the memory before the copy was done, the copy would show it.
        torch.full((8 * MIB,), -1.0, device="cuda")
        side.synchronize()
        expect(out.eq(value).all().item(), "memory was reused while another stream read it")
    if allocator == "ours":
        expect(device_memory.statistics()["parked_peak"] >= 32 * MIB, "recorded blocks are parked")


@check
@also_native
def a_graph_replays_what_eager_computes():
    runner.use(allocator)
    model, static = model_and_input()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def step():
        optimizer.zero_grad(set_to_none=False)
        loss = model(static).square().mean()
        loss.backward()
        optimizer.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in range(4):
        torch.manual_seed(seed)
        fresh = torch.randn(64, 512, device="cuda")
        static.copy_(fresh)
        graph.replay()
        replayed = captured.item()
        grads = [parameter.grad.clone() for parameter in model.parameters()]
        churn()
        torch.cuda.empty_cache()
        eager = step().item()
        expect(replayed == eager, f"{replayed} is not {eager}")
        pairs = zip(grads, model.parameters())
        expect(all(torch.equal(grad, parameter.grad) for grad, parameter in pairs), "gradients differ")
    # cuBLAS was first used on the graph's stream during the capture: PyTorch keeps its workspace, in the graph's pool.
    before = held()
    del captured, grads
    graph.reset()
    after = held()
    torch._C._cuda_clearCublasWorkspaces()
    without = held()
    print(f"    a graph gave {(before - after) / MIB:.1f} MiB back, workspaces {(after - without) / MIB:.1f} MiB")
    expect(without <= after < before, f"the graph's memory goes back: {before}, {after}, {without}")


@check
@also_native
def graphs_share_a_pool():
    runner.use(allocator)
    pool, static = torch.cuda.graph_pool_handle(), torch.randn(1 << 20, device="cuda")
    graphs, outcomes = [], []
    for number in range(3):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            outcomes.append(((static * (number + 1)).relu() + 1).sum())
        graphs.append(graph)
    for value in (1.0, -2.0):
        static.fill_(value)
        for number, (graph, outcome) in enumerate(zip(graphs, outcomes)):
            graph.replay()
            churn()
            wanted = (max(value * (number + 1), 0.0) + 1) * (1 << 20)
            expect(outcome.item() == wanted, f"graph {number}: {outcome.item()} is not {wanted}")
    graphs[0].reset()
    graphs[1].replay()
    expect(outcomes[1].item() == 1 << 20, "the others stay")


@check
@also_native
def a_graph_reuses_its_temporaries():
    runner.use(allocator)
    static = torch.randn(16 * MIB, device="cuda")
    before = held()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = static
        for _ in range(30):
            y = y * 1.01
    grew = held() - before
    expect(grew < 6 * 64 * MIB, f"{grew / MIB} MiB for 30 temporaries of 64 MiB, of which two live at a time")
    graph.replay()


@check
@also_native
def graphed_callables_work():
    runner.use(allocator)
    model, x = model_and_input()

    def outcome(function):
        given = x.clone().requires_grad_()
        found = function(given)
        found.square().sum().backward()
        gradients = [given.grad] + [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        return [found.detach()] + gradients

    # Nothing of this may keep autograd's nodes: those remember the default stream, which nothing captured may wait for.
    wanted = outcome(model)
    graphed = torch.cuda.make_graphed_callables(model, (x.clone().requires_grad_(),))
    churn()
    for _ in range(3):
        pairs = zip(outcome(graphed), wanted)
        expect(all(torch.equal(found, want) for found, want in pairs), "a graphed module computes what it did")


@check
def pools_of_memory_work():
    device_memory.enable_torch()
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    before = device_memory.statistics()["in_use"]
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = torch.ones(8 * MIB, device="cuda")
    y = torch.ones(MIB, device="cuda")
    blocks = {block["address"]: block["private_pool"] for block in device_memory.snapshot()["blocks"]}
    expect(blocks[x.data_ptr()] and not blocks[y.data_ptr()], "tensors are in the pool that was named")
    expect(pool.use_count() == 1, pool.use_count())
    address = x.data_ptr()
    del x
    torch.empty(8 * MIB, device="cuda")
    with torch.cuda.use_mem_pool(pool):
        x = torch.ones(8 * MIB, device="cuda")
    expect(x.data_ptr() == address, "the pool keeps its memory")
    del pool
    expect(x.sum().item() == 8 * MIB, "tensors outlive their pool")
    del x, y
    torch.cuda.empty_cache()
    expect(device_memory.statistics()["in_use"] <= before, device_memory.statistics()["in_use"] - before)


@check
@slow
def compiled_graphs_compute_what_eager_does():
    device_memory.enable_torch()
    model, x = model_and_input()
    plain = torch.compile(model)
    graphed = torch.compile(model, mode="reduce-overhead")
    with torch.no_grad():
        for seed in range(5):
            torch.manual_seed(seed)
            x = torch.randn(64, 512, device="cuda")
            wanted, eager = plain(x), model(x)
            found = graphed(x).clone()
            churn()
            expect(torch.equal(found, wanted), "graphs change nothing that the compiler computes")
            expect(torch.allclose(found, eager, atol=1e-4), "and that is what eager computes")
    expect(any(block["private_pool"] for block in device_memory.snapshot()["blocks"]), "a graph was captured")


@check
def misuse_is_refused():
    device_memory.enable_torch()
    x = torch.ones(1000, device="cuda")
    pointer = device_memory.allocate(1 << 20)
    device_memory.free(pointer)
    for bad in (pointer, pointer + 512, 0x1200):
        try:
            device_memory.free(bad)
        except device_memory.MisuseError:
            continue
        raise AssertionError(f"{bad:#x} was freed")
    expect(x.sum().item() == 1000, "and nothing was harmed")


@check
def cupy_lives_in_our_memory():
    import cupy

    device_memory.enable_cupy()
    x = cupy.arange(1 << 20, dtype=cupy.float32)
    expect(device_memory.block_info(x.data.ptr).size == 4 << 20, "the block is ours")
    expect(float(x.sum()) == float((1 << 20) * ((1 << 20) - 1) / 2) or abs(float(x.mean()) - 524287.5) < 1, "sums")
    live = device_memory.statistics()["allocated"]
    y = x * 2
    expect(device_memory.statistics()["allocated"] > live, "temporaries too")
    del x, y
    expect(device_memory.statistics()["allocated"] < live, "and they go back")
    for _ in range(50):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            z = cupy.ones(1 << 20, dtype=cupy.float32)
            z += 1
        stream.synchronize()
        expect(float(z[12345]) == 2.0, "streams come and go")
        del z, stream
    device_memory.set_limit(256 * MIB)
    try:
        cupy.empty(1 << 30, dtype=cupy.uint8)
    except cupy.cuda.memory.OutOfMemoryError as error:
        expect("limit is 256.00 MiB" in str(error), str(error))
    else:
        raise AssertionError("a gigabyte does not fit 256 MiB")
    device_memory.set_limit(None)
    device_memory.disable_cupy()
    cupy.ones(10)


@check
def torch_and_cupy_share_arrays():
    import cupy

    device_memory.enable_torch()
    device_memory.enable_cupy()
    x = torch.arange(1000, device="cuda", dtype=torch.float32)
    torch.cuda.synchronize()
    y = cupy.from_dlpack(x)
    expect(y.data.ptr == x.data_ptr(), "no copy")
    y += 1
    cupy.cuda.runtime.deviceSynchronize()
    expect(x[10].item() == 11.0, "one memory")
    z = torch.from_dlpack(cupy.ones(1000, dtype=cupy.float32))
    expect(z.sum().item() == 1000.0, "and the other way")


@check
def arrays_of_ours_are_taken_on_any_stream():
    device_memory.enable_torch()
    side = torch.cuda.Stream()
    for made_for in (0, side.cuda_stream):
        for stream in (torch.cuda.default_stream(), side):
            with torch.cuda.stream(stream):
                x = torch.from_dlpack(device_memory.zeros((1 << 20,), stream=made_for))
                pointer = x.data_ptr()
                expect(x.sum().item() == 0.0, "zeros")
                torch.cuda._sleep(20_000_000)
                x += 1
                kept = x.sum()
                del x
            # What it had goes to its own stream first, which must not write before the sum was taken.
            with torch.cuda.stream(side if made_for else torch.cuda.default_stream()):
                again = torch.full((1 << 20,), 7.0, device="cuda")
            torch.cuda.synchronize()
            expect(kept.item() == float(1 << 20), f"the sum, with {again.data_ptr() == pointer=}")


def run_check(module, name, on):
    global allocator
    allocator = on
    importlib.import_module(module).CHECKS[name]()


def attempt(module, name, on):
    """Runs a check in a process of its own: how it failed, or `None`, and the seconds that it took."""
    began = time.time()
    answer = runner.in_child(SLOW_TIMEOUT if name in SLOW else TIMEOUT, run_check, module, name, on)
    return answer.get("failed"), time.time() - began


def main(module, table, description):
    """Runs the checks of a module's table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="CHECK")
    parser.add_argument("--slow", action="store_true")
    parser.add_argument("--native", action="store_true")
    parser.add_argument("--seconds", type=float, default=300.0, help="after these no other check is begun")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in table]
    if unknown:
        parser.error(f"no check is named {', '.join(unknown)}; there are {', '.join(table)}")
    names = options.names or [name for name in table if options.slow or name not in SLOW]
    if options.native:
        names = [name for name in names if name in ALSO_NATIVE]
    failed, as_native, held_up = [], [], 0
    for name in names:
        if runner.elapsed() > options.seconds:
            failed.append(f"FAIL {name}: there was no time left for it")
            continue
        text, seconds = attempt(module, name, "native" if options.native else "ours")
        verdict = "ok  " if text is None else "FAIL"
        if text and name in ALSO_NATIVE and not options.native:
            natively, _ = attempt(module, name, "native")
            if natively:
                verdict = "BOTH"
                text += "\nand natively\n" + natively
        print(f"{verdict} {name} ({seconds:.1f} s)", flush=True)
        held_up += text is None
        if text:
            last = runner.failure({"failed": text})
            (as_native if verdict == "BOTH" else failed).append(f"{verdict} {name}: {last}"[:200])
            print("    " + text.strip().replace("\n", "\n    "), flush=True)
    also = f", {len(as_native)} fail natively too" if as_native else ""
    lines = (failed + as_native)[:12]
    runner.summarize(lines + [f"{module}: {held_up} of {len(names)} hold{also} ({runner.elapsed():.0f} s)"])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    # By its own name, so that a process that starts from nothing finds the checks.
    import checks

    checks.main("checks", checks.CHECKS, __doc__)
