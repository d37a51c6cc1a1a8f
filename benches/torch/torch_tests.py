"""What PyTorch's and CuPy's own tests of their allocators ask, as far as a program can ask it, in our words.

    python3 torch_tests.py [--native] [TEST...]

The installed packages come without those tests, and half of them look into pools that are theirs. `torch_tests.md` says
which are restated here, which are in `checks.py`, and why the others can't be.
"""

import gc
import random
import threading

import checks
from checks import MIB, also_native, expect, held

import runner

import torch

import device_memory

CHECKS = {}
check = checks.registered_in(CHECKS)


def live():
    """Bytes that tensors hold."""
    return torch.cuda.memory_allocated()


def begin():
    runner.use(checks.allocator)
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    gc.collect()


def refuses(error, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except error as found:
        return str(found)
    raise AssertionError(f"{function} went through")


@check
@also_native
def statistics_follow_what_is_allocated():
    begin()
    generator, tensors, expected = random.Random(5), [], live()
    torch.cuda.reset_peak_memory_stats()
    peak = expected
    for _ in range(300):
        if tensors and generator.random() < 0.45:
            expected -= tensors.pop(generator.randrange(len(tensors))).numel()
        else:
            size = generator.choice([512, 1024, 64 << 10, 3 << 20, 20 << 20]) * generator.randint(1, 8)
            tensors.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            expected += size
        peak = max(peak, expected)
        expect(live() == expected, f"{live()} bytes are reported, {expected} are held")
        expect(torch.cuda.max_memory_allocated() == peak, f"a peak of {torch.cuda.max_memory_allocated()}, not {peak}")
        expect(torch.cuda.memory_reserved() >= expected, "what is held is reserved")
        expect(torch.cuda.max_memory_reserved() >= torch.cuda.memory_reserved(), "a peak is no less than now")
    stats = torch.cuda.memory_stats()
    for name in ("allocation", "allocated_bytes", "reserved_bytes", "active_bytes"):
        current, freed, allocated = (stats[f"{name}.all.{part}"] for part in ("current", "freed", "allocated"))
        expect(stats[f"{name}.all.peak"] >= current, f"{name}: the peak is less than now")
        expect(current + freed == allocated, f"{name}: {allocated} - {freed} is not {current}")
    nested = torch.cuda.memory_stats_as_nested_dict()
    expect(nested["allocated_bytes"]["all"]["current"] == expected, "nested figures are the same")
    expect("CUDA" in torch.cuda.memory_summary(), "there is a summary")
    tensors.clear()


@check
@also_native
def the_cache_goes_back_and_what_is_held_stays():
    begin()
    kept = torch.full((10 * MIB,), 3, dtype=torch.uint8, device="cuda")
    torch.empty(300 * MIB, dtype=torch.uint8, device="cuda")
    before, free_before = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
    torch.cuda.empty_cache()
    expect(torch.cuda.memory_reserved() <= before - 290 * MIB, "the cache is empty")
    expect(torch.cuda.mem_get_info()[0] >= free_before + 290 * MIB, "and the device has it back")
    expect(kept.eq(3).all().item(), "what is held stays")


@check
@also_native
def a_fraction_limits_and_is_told():
    begin()
    total = torch.cuda.get_device_properties(0).total_memory
    expect(torch.cuda.get_per_process_memory_fraction(0) == 1.0, "at first everything may be had")
    torch.cuda.set_per_process_memory_fraction(0.5, 0)
    expect(abs(torch.cuda.get_per_process_memory_fraction(0) - 0.5) < 1e-6, "a fraction is told")
    for bad in (-0.1, 1.1):
        refuses(ValueError, torch.cuda.set_per_process_memory_fraction, bad, 0)
    refuses(TypeError, torch.cuda.set_per_process_memory_fraction, 1, 0)
    nearly = torch.empty(int(total * 0.499) - torch.cuda.memory_reserved(), dtype=torch.int8, device="cuda")
    del nearly
    torch.cuda.empty_cache()
    refuses(torch.OutOfMemoryError, torch.empty, int(total * 0.5), dtype=torch.int8, device="cuda")
    torch.cuda.set_per_process_memory_fraction(1.0, 0)
    torch.empty(int(total * 0.5), dtype=torch.int8, device="cuda")


@check
@also_native
def absurd_sizes_are_refused_with_a_reason():
    begin()
    text = refuses(torch.OutOfMemoryError, torch.empty, 1 << 50, dtype=torch.int8, device="cuda")
    expect("Tried to allocate 1048576.00 GiB" in text or "1.00 PiB" in text or "1024.00 TiB" in text, text)
    # The largest there is: rounding it up must not wrap.
    refuses(RuntimeError, torch.empty, (1 << 63) - 1, dtype=torch.int8, device="cuda")
    expect(torch.ones(1000, device="cuda").sum().item() == 1000, "the program goes on")


@check
@also_native
def after_running_out_what_is_cached_is_used():
    begin()
    free = torch.cuda.mem_get_info()[0]
    half = torch.empty(int(free * 0.5), dtype=torch.int8, device="cuda")
    del half
    # Pieces of another size: the cached half has to be given up or cut.
    thirds = [torch.empty(int(free * 0.3), dtype=torch.int8, device="cuda") for _ in range(3)]
    expect(len(thirds) == 3, "nine tenths can be had after a half was cached")


@check
@also_native
def a_stream_of_its_own_may_reuse_at_once():
    begin()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        x = torch.empty(10 * MIB, dtype=torch.uint8, device="cuda")
        address = x.data_ptr()
        del x
        x = torch.empty(10 * MIB, dtype=torch.uint8, device="cuda")
    expect(x.data_ptr() == address, "memory freed on a stream is had again there at once")
    torch.cuda.synchronize()


@check
@also_native
def a_recorded_view_is_not_written_before_its_reader_is_done():
    begin()
    side = torch.cuda.Stream()
    x = torch.full((8 * MIB,), 5.0, device="cuda")
    view = x[4 * MIB :]
    expect(view.data_ptr() != x.data_ptr(), "the view begins inside the block")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)
        view.record_stream(side)
        copy = view.clone()
    address = x.data_ptr()
    del x, view
    y = torch.full((8 * MIB,), -1.0, device="cuda")
    # PyTorch's own allocator holds the block back. Ours may hand it out, if it would have to grow, and has this stream wait.
    held_back = y.data_ptr() != address
    waits = not torch.cuda.current_stream().query()
    expect(held_back or waits or side.query(), "the block is had as long as the other stream is busy")
    expect(held_back or checks.allocator == "ours", "the block is not held back")
    side.synchronize()
    expect(copy.eq(5.0).all().item(), "what the other stream read is what was there")
    expect(y.eq(-1.0).all().item(), "and what comes after it is what was written")


@check
@also_native
def recorded_blocks_are_had_when_memory_runs_out():
    begin()
    side = torch.cuda.Stream()
    runner.limit_memory(checks.allocator, torch.cuda.memory_reserved() + 256 * MIB)
    for _ in range(8):
        with torch.cuda.stream(side):
            x = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
        # The stream that it is recorded for is busy, so that the next one does not fit until that is done.
        torch.cuda._sleep(20_000_000)
        x.record_stream(torch.cuda.current_stream())
        del x
    torch.cuda.synchronize()
    expect(torch.cuda.max_memory_reserved() <= torch.cuda.memory_reserved() + 256 * MIB, "within the limit")


@check
@also_native
def pinned_memory_waits_for_its_copy():
    begin()
    cycles = 100_000_000
    for _ in range(3):
        source = torch.full((4 * MIB,), 1.0).pin_memory()
        target = torch.zeros(4 * MIB, device="cuda")
        torch.cuda._sleep(cycles)
        target.copy_(source, non_blocking=True)
        address = source.data_ptr()
        del source
        other = torch.full((4 * MIB,), 2.0).pin_memory()
        expect(other.data_ptr() != address, "page-locked memory is not reused before its copy is done")
        torch.cuda.synchronize()
        expect(target.eq(1.0).all().item(), "the copy has what was there")


@check
@also_native
def tensors_are_freed_by_any_thread():
    begin()
    before, failed = live(), []

    def work(number):
        try:
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream):
                for turn in range(200):
                    x = torch.full(((number + 1) * 1000 + turn,), float(number), device="cuda")
                    box = [x]
                    del x
                    other = threading.Thread(target=box.clear)
                    if turn % 50 == 0:
                        total = box[0].sum().item()
                        if total != number * ((number + 1) * 1000 + turn):
                            failed.append(f"thread {number}: {total}")
                        other.start()
                        other.join()
                    del box
                stream.synchronize()
        except BaseException as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    expect(not failed, failed)
    expect(live() == before, f"{live() - before} bytes are left")


@check
@also_native
def random_traffic_keeps_its_contents():
    begin()
    generator, tensors = random.Random(11), []
    streams = [torch.cuda.current_stream()] + [torch.cuda.Stream() for _ in range(3)]
    for number in range(1500):
        if len(tensors) > 60 or tensors and generator.random() < 0.4:
            x, value, stream = tensors.pop(generator.randrange(len(tensors)))
            with torch.cuda.stream(stream):
                if number % 10 == 0:
                    expect(x.eq(value).all().item(), f"a tensor of {x.numel()} lost its contents")
                del x
        else:
            size = int(2 ** generator.uniform(0, 23))
            stream = generator.choice(streams)
            with torch.cuda.stream(stream):
                tensors.append((torch.full((size,), float(number), device="cuda"), number, stream))
        if number % 400 == 399:
            torch.cuda.empty_cache()
    for x, value, stream in tensors:
        with torch.cuda.stream(stream):
            expect(x.eq(value).all().item(), "a tensor lost its contents")


@check
@also_native
def a_snapshot_has_every_tensor():
    begin()
    tensors = [torch.empty(size, dtype=torch.uint8, device="cuda") for size in (700, 5 * MIB, 40 * MIB)]
    blocks = {}
    for segment in torch.cuda.memory_snapshot():
        expect(segment["total_size"] >= segment["active_size"] >= segment["allocated_size"], segment)
        address = segment["address"]
        for block in segment["blocks"]:
            blocks[block.get("address", address)] = block
            address += block["size"]
    for x in tensors:
        block = blocks.get(x.data_ptr())
        expect(block and block["state"] == "active_allocated" and block["size"] >= x.numel(), f"{x.numel()}: {block}")
    address = tensors[1].data_ptr()
    del tensors[1], x
    states = [b["state"] for s in torch.cuda.memory_snapshot() for b in s["blocks"] if b.get("address") == address]
    expect("active_allocated" not in states, "a freed tensor is not in use")


@check
@also_native
def raw_memory_is_had_and_given_back():
    begin()
    before = live()
    pointer = torch.cuda.caching_allocator_alloc(5 * MIB)
    expect(live() >= before + 5 * MIB, "raw memory is counted")
    torch.cuda.caching_allocator_delete(pointer)
    expect(live() == before, "and goes back")


@check
@also_native
def errors_of_programs_leave_nothing_behind():
    begin()
    before = live()

    def fails():
        x = torch.ones(50 * MIB, dtype=torch.uint8, device="cuda")
        y = x.view(50, MIB)
        return y @ torch.ones(3, device="cuda")

    refuses(RuntimeError, fails)
    gc.collect()
    expect(live() == before, f"{live() - before} bytes are left after an exception")


@check
@also_native
def a_graphs_memory_outlives_the_graph():
    begin()
    x = torch.ones(4 * MIB, device="cuda")
    before = held()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = x * 3
    graph.replay()
    graph.reset()
    del graph
    checks.churn()
    expect(result.eq(3).all().item(), "a result is there after its graph is gone")
    del result
    # Random number generators that were in a capture keep a little.
    expect(held() <= before + 2 * MIB, f"{held() - before} bytes are left of a graph")


@check
@also_native
def graphs_record_streams():
    begin()
    side, out = torch.cuda.Stream(), torch.zeros(MIB, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x = torch.full((MIB,), 4.0, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            y = x + 1
            x.record_stream(side)
        del x
        z = torch.full((MIB,), -9.0, device="cuda")
        torch.cuda.current_stream().wait_stream(side)
        out.copy_(y)
        y.record_stream(torch.cuda.current_stream())
    for _ in range(5):
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        expect(out.eq(5.0).all().item(), "memory was reused within the graph while another branch read it")
    expect(z.eq(-9.0).all().item(), "and the next tensor has its own")


@check
@also_native
def graphs_in_pools_of_their_own_run_side_by_side():
    begin()
    x, graphs = torch.ones(2 * MIB, device="cuda"), []
    streams = [torch.cuda.Stream() for _ in range(2)]
    for number, stream in enumerate(streams):
        graph = torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.graph(graph, stream=stream):
            y = x
            for _ in range(10):
                y = y + (number + 1)
        graphs.append((graph, y))
    torch.cuda.synchronize()
    for _ in range(10):
        for stream, (graph, _) in zip(streams, graphs):
            with torch.cuda.stream(stream):
                graph.replay()
        torch.cuda.synchronize()
        for number, (_, y) in enumerate(graphs):
            expect(y.eq(1 + 10 * (number + 1)).all().item(), "graphs that run at the same time disturb each other")


@check
@also_native
def pools_of_memory_are_apart_by_thread():
    begin()
    pools, found = [torch.cuda.MemPool() for _ in range(2)], {}
    expect(pools[0].id != pools[1].id, "each pool has its own name")
    gate = threading.Barrier(3)

    def work(number):
        with torch.cuda.use_mem_pool(pools[number]):
            gate.wait(20)
            found[number] = torch.full((3 * MIB,), float(number), device="cuda")
            gate.wait(20)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    gate.wait(20)
    outside = torch.full((3 * MIB,), 7.0, device="cuda")
    gate.wait(20)
    for thread in threads:
        thread.join()
    expect(all(found[number].eq(number).all().item() for number in range(2)), "each thread has its own memory")
    expect(outside.eq(7.0).all().item(), "and this thread its own")
    if checks.allocator == "ours":
        private = {block["address"]: block["private_pool"] for block in device_memory.snapshot()["blocks"]}
        expect(private[found[0].data_ptr()] and private[found[1].data_ptr()], "threads allocate from their pools")
        expect(not private[outside.data_ptr()], "this thread does not")


@check
@also_native
def what_a_pool_has_freed_stays_its_own():
    begin()
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        x = torch.empty(30 * MIB, dtype=torch.uint8, device="cuda")
    address = x.data_ptr()
    del x
    torch.cuda.empty_cache()
    outside = [torch.empty(30 * MIB, dtype=torch.uint8, device="cuda") for _ in range(4)]
    if checks.allocator == "ours":
        expect(all(y.data_ptr() != address for y in outside), "a pool's memory is had by nobody else")
    before = held()
    del pool
    gc.collect()
    expect(held() <= before - 29 * MIB, "and goes back with the pool")


@check
def cupys_allocators_nest():
    import cupy

    device_memory.enable_cupy()
    ours = device_memory.statistics()["allocated"]
    x = cupy.zeros(MIB, dtype=cupy.uint8)
    expect(device_memory.statistics()["allocated"] == ours + MIB, "arrays are ours")
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        y = cupy.zeros(MIB, dtype=cupy.uint8)
        expect(pool.used_bytes() == MIB, "another allocator within a block")
    z = cupy.zeros(MIB, dtype=cupy.uint8)
    expect(device_memory.statistics()["allocated"] == ours + 2 * MIB, "and ours again after it")
    expect(pool.used_bytes() == MIB, "the other has its own")
    del x, y, z
    expect(device_memory.statistics()["allocated"] == ours and pool.used_bytes() == 0, "each goes back where it is from")
    device_memory.disable_cupy()


@check
def cupys_slices_hold_their_memory():
    import cupy

    device_memory.enable_cupy()
    before = device_memory.statistics()["allocated"]
    x = cupy.arange(MIB, dtype=cupy.float32)
    part = x[1000:2000]
    expect(part.data.ptr == x.data.ptr + 4000, "a slice is within")
    del x
    cupy.zeros(MIB, dtype=cupy.float32)
    expect(float(part[0]) == 1000.0, "a slice keeps its memory")
    expect(device_memory.statistics()["allocated"] == before + 4 * MIB, "all of it")
    del part
    expect(device_memory.statistics()["allocated"] == before, "and then lets it go")
    expect(cupy.zeros(0).size == 0, "nothing can be had as well")
    device_memory.disable_cupy()


@check
def cupys_streams_reuse_their_own_memory():
    import cupy

    device_memory.enable_cupy()
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
    with streams[0]:
        x = cupy.zeros(4 * MIB, dtype=cupy.uint8)
        address = x.data.ptr
        del x
        x = cupy.zeros(4 * MIB, dtype=cupy.uint8)
        expect(x.data.ptr == address, "a stream has its memory again at once")
    expect(device_memory.block_info(x.data.ptr).stream == streams[0].ptr, "blocks know their stream")
    with streams[1]:
        y = cupy.full(4 * MIB, 7, dtype=cupy.uint8)
    for stream in streams:
        stream.synchronize()
    expect(int(x.sum()) == 0 and int(y[0]) == 7, "streams have memory of their own")
    device_memory.disable_cupy()


@check
def cupys_hooks_see_our_memory():
    import cupy

    device_memory.enable_cupy()

    class Hook(cupy.cuda.memory_hook.MemoryHook):
        name = "Hook"

        def __init__(self):
            self.sizes = []

        def alloc_postprocess(self, **facts):
            self.sizes.append(facts["mem_size"])

    # CuPy's hooks are called by its own pool; an allocator of a program's has none. That is no error either.
    with Hook() as hook:
        x = cupy.ones(MIB, dtype=cupy.uint8)
    expect(int(x[5]) == 1 and sum(hook.sizes) in (0, MIB), hook.sizes)
    device_memory.disable_cupy()


if __name__ == "__main__":
    # By its own name, so that a process that starts from nothing finds the tests.
    import torch_tests

    checks.main("torch_tests", torch_tests.CHECKS, __doc__)
