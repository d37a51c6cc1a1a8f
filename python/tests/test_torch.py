"""What the package asks of PyTorch and CuPy, with stand-ins for both."""

import ctypes
import importlib.util
import sys
import types
import unittest
from unittest import mock

import device_memory
from device_memory import _cupy, _library, _torch
from device_memory import TooLate, Unavailable


class RawAllocator:
    """PyTorch's C++ object: it notes what it is given."""

    def __init__(self):
        self.hooks = {}

    def __getattr__(self, name):
        if name in _torch._HOOKS:
            return lambda address: self.hooks.__setitem__(name, address)
        raise AttributeError(name)


def fake_torch(initialized=False, refuses=False, cuda="13.0"):
    """As much of PyTorch as `enable_torch` touches."""
    torch = types.ModuleType("torch")
    raw = RawAllocator()

    class CUDAPluggableAllocator:
        def __init__(self, path, alloc, free):
            library = ctypes.CDLL(path)
            self.functions = [getattr(library, alloc), getattr(library, free)]

        def allocator(self):
            return raw

    def change_current_allocator(allocator):
        if refuses:
            raise RuntimeError("Can't swap an already initialized allocator")
        torch.current = allocator

    memory = types.SimpleNamespace(
        CUDAPluggableAllocator=CUDAPluggableAllocator, change_current_allocator=change_current_allocator, MemPool=None
    )
    torch.__version__ = "2.11.0"
    torch.version = types.SimpleNamespace(cuda=cuda)
    torch.raw, torch.current = raw, None
    torch.cuda = types.SimpleNamespace(
        is_initialized=lambda: initialized,
        memory=memory,
        MemPool=None,
        current_device=lambda: 0,
        graph_pool_handle=lambda: (0, 9),
    )
    torch._C = types.SimpleNamespace(**{name: None for name in ("_cuda_memoryStats", "_cuda_resetPeakMemoryStats")})
    return torch


class Isolated(unittest.TestCase):
    def setUp(self):
        self.addCleanup(setattr, _torch, "_enabled", _torch._enabled)
        self.addCleanup(sys.meta_path.__setitem__, slice(None), list(sys.meta_path))
        _torch._enabled = None

    def with_modules(self, **modules):
        patch = mock.patch.dict(sys.modules, modules)
        patch.start()
        self.addCleanup(patch.stop)


@unittest.skipUnless(_library.has_cuda(), "the library was built without CUDA")
class Torch(Isolated):
    def test_every_hook_is_set_once(self):
        torch = fake_torch()
        self.with_modules(torch=torch)
        device_memory.enable_torch()
        device_memory.enable_torch()
        self.assertEqual(set(torch.raw.hooks), set(_torch._HOOKS))
        self.assertTrue(all(torch.raw.hooks.values()))
        self.assertTrue(device_memory.is_torch_enabled())
        self.assertIs(torch.cuda.MemPool, device_memory.MemPool)
        self.assertIs(torch._C._cuda_memoryStats, device_memory.torch_memory_stats)
        self.assertFalse(hasattr(torch._C, "_cuda_memorySnapshot"), "what PyTorch lacks is not added")

    def test_what_is_not_wanted_is_left_alone(self):
        torch = fake_torch()
        self.with_modules(torch=torch)
        device_memory.enable_torch(reports=False, mem_pool=False, cudagraph_trees=True)
        self.assertIsNone(torch.cuda.MemPool)
        self.assertIsNone(torch._C._cuda_memoryStats)
        self.assertFalse(any(isinstance(finder, _torch._AfterImport) for finder in sys.meta_path))

    def test_too_late_is_said_clearly(self):
        for torch in (fake_torch(initialized=True), fake_torch(refuses=True)):
            self.with_modules(torch=torch)
            with self.assertRaisesRegex(TooLate, "right after the imports"):
                device_memory.enable_torch()
            self.assertFalse(device_memory.is_torch_enabled())
            self.assertIsNone(torch._C._cuda_memoryStats)

    def test_a_pytorch_without_cuda_is_refused(self):
        self.with_modules(torch=fake_torch(cuda=None))
        with self.assertRaisesRegex(Unavailable, "without CUDA"):
            device_memory.enable_torch()

    def test_trees_are_turned_off_when_they_are_loaded(self):
        self.with_modules(torch=fake_torch())
        device_memory.enable_torch()
        finder = sys.meta_path[0]
        self.assertIsInstance(finder, _torch._AfterImport)
        self.assertIsNone(finder.find_spec("json.tool"))
        config = types.SimpleNamespace(triton=types.SimpleNamespace(cudagraph_trees=True))
        finder.then(config)
        self.assertFalse(config.triton.cudagraph_trees)

    def test_a_module_is_changed_after_its_import(self):
        sys.modules.pop("this", None)
        self.addCleanup(sys.modules.pop, "this", None)
        sys.meta_path.insert(0, _torch._AfterImport("this", lambda module: setattr(module, "changed", True)))
        with mock.patch("builtins.print"):
            self.assertIsNotNone(importlib.util.find_spec("this"), "who only looks imports nothing")
            import this
        self.assertTrue(this.changed)
        self.assertFalse(any(isinstance(finder, _torch._AfterImport) for finder in sys.meta_path))

    def test_trees_that_are_loaded_are_turned_off(self):
        config = types.ModuleType("torch._inductor.config")
        config.triton = types.SimpleNamespace(cudagraph_trees=True)
        self.with_modules(**{"torch": fake_torch(), "torch._inductor.config": config})
        device_memory.enable_torch()
        self.assertFalse(config.triton.cudagraph_trees)


@unittest.skipUnless(_library.has_cuda() and device_memory.device_count() > 0, "there is no device, not even a fake one")
class Device(Isolated):
    def test_figures_go_by_pytorchs_names(self):
        pointer = device_memory.allocate(3 << 20)
        nested = device_memory.torch_memory_stats(0)
        self.assertEqual(nested["allocated_bytes"]["all"]["current"], 3 << 20)
        self.assertEqual(nested["requested_bytes"]["all"]["peak"], nested["allocated_bytes"]["all"]["peak"])
        self.assertGreaterEqual(nested["reserved_bytes"]["all"]["current"], 3 << 20)
        self.assertEqual(nested["allocation"]["all"]["current"], 1)
        snapshot = _torch._torch_snapshot()
        segments, traces = snapshot["segments"], snapshot["device_traces"]
        self.assertEqual(traces, [[]] * device_memory.device_count(), "the viewer has no other list of devices")
        held = [block for part in segments for block in part["blocks"] if block["state"] == "active_allocated"]
        self.assertEqual([(block["address"], block["requested_size"]) for block in held], [(pointer, 3 << 20)])
        reserved = nested["reserved_bytes"]["all"]["current"]
        self.assertEqual(sum(part["total_size"] for part in segments), reserved)
        device_memory.free(pointer)

    def test_a_snapshot_of_a_pool_has_its_blocks(self):
        library, pool = _library.library(), _torch._PoolId(0, 77)
        library.devmem_torch_alloc.restype = ctypes.c_void_p
        outside = device_memory.allocate(1 << 20)
        library.devmem_torch_begin_allocate_to_pool(0, pool, None)
        inside = library.devmem_torch_alloc(ctypes.c_ssize_t(1 << 20), 0, None)
        library.devmem_torch_end_allocate_to_pool(0, pool)

        def found(name):
            segments = _torch._torch_snapshot(name)["segments"]
            held = [(part, block) for part in segments for block in part["blocks"]]
            allocated = [(part, block) for part, block in held if block["state"] == "active_allocated"]
            self.assertEqual(sum(part["allocated_size"] for part in segments), len(allocated) << 20)
            return {block["address"]: part["segment_pool_id"] for part, block in allocated}

        self.assertEqual(found((0, 77)), {inside: (0, 77)})
        self.assertEqual(found((0, 78)), {})
        self.assertEqual(found((0, 77, True)), {inside: (0, 77)})
        for everything in (None, (0, 0), (0, 0, False)):
            self.assertEqual(found(everything), {inside: (0, 77), outside: (0, 0)})
        device_memory.free(inside)
        device_memory.free(outside)
        library.devmem_torch_release_pool(0, pool)

    def test_what_is_accumulated_is_counted_from_the_reset(self):
        torch = fake_torch()
        torch._C._cuda_resetAccumulatedMemoryStats = None
        self.with_modules(torch=torch)
        self.addCleanup(_torch._baselines.clear)
        device_memory.enable_torch()
        kept = device_memory.allocate(3 << 20)
        torch._C._cuda_resetAccumulatedMemoryStats(0)
        reset = device_memory.torch_memory_stats(0)
        for name in ("allocation", "allocated_bytes", "active", "active_bytes", "reserved_bytes"):
            self.assertEqual((reset[name]["all"]["allocated"], reset[name]["all"]["freed"]), (0, 0), name)
        self.assertEqual((reset["num_device_alloc"], reset["num_device_free"]), (0, 0))
        self.assertEqual(reset["allocated_bytes"]["all"]["current"], 3 << 20)
        device_memory.free(device_memory.allocate(5 << 20))
        device_memory.free(kept)
        after = device_memory.torch_memory_stats(0)["allocated_bytes"]["all"]
        self.assertEqual((after["current"], after["allocated"], after["freed"]), (0, 5 << 20, 8 << 20))

    @unittest.skipUnless(device_memory.device_count() > 1, "there is one device")
    def test_reports_open_no_device(self):
        device_memory.free(device_memory.allocate(100))
        other = device_memory.device_count() - 1
        names = ("_cuda_resetAccumulatedMemoryStats", "_cuda_memorySnapshot", "_cuda_getMemoryFraction")
        torch = fake_torch()
        vars(torch._C).update(dict.fromkeys(names))
        self.with_modules(torch=torch)
        device_memory.enable_torch()
        self.assertEqual(device_memory.torch_memory_stats(other).keys(), device_memory.torch_memory_stats(0).keys())
        self.assertEqual(torch._C._cuda_memoryStats(other)["reserved_bytes"]["all"]["peak"], 0)
        torch._C._cuda_resetPeakMemoryStats(other)
        torch._C._cuda_resetAccumulatedMemoryStats(other)
        self.assertEqual(torch._C._cuda_getMemoryFraction(other), 1.0)
        self.assertIsInstance(torch._C._cuda_memorySnapshot(None)["segments"], list)
        self.assertTrue(_library.is_open(0))
        self.assertFalse(_library.is_open(other))

    def test_a_pool_has_users(self):
        torch = fake_torch()
        self.with_modules(torch=torch)
        device_memory.enable_torch()
        pool = torch.cuda.MemPool()
        self.assertEqual((pool.id, pool.use_count()), ((0, 9), 1))
        again = torch.cuda.MemPool()
        self.assertEqual(pool.use_count(), 2)
        del again
        self.assertEqual(pool.use_count(), 1)
        with self.assertRaises(NotImplementedError):
            torch.cuda.MemPool(use_on_oom=True)

    def test_cupy_allocates_on_the_current_stream(self):
        class Refusal(MemoryError):
            def __init__(self, size, total, limit=0):
                super().__init__(f"{size} {total} {limit}")

        class Stream:
            ptr, device_id, destroyed = 0, 0, []

            def __del__(self):
                Stream.destroyed.append(self.ptr)

        functions = {}

        class PythonFunctionAllocator:
            def __init__(self, malloc, free):
                functions.update(malloc=malloc, free=free)

            def malloc(self, size):
                raise AssertionError("not called here")

        cupy = types.ModuleType("cupy")
        cupy.cuda = types.SimpleNamespace(
            Stream=Stream,
            PythonFunctionAllocator=PythonFunctionAllocator,
            get_current_stream=lambda: types.SimpleNamespace(ptr=0),
            memory=types.SimpleNamespace(OutOfMemoryError=Refusal),
            set_allocator=lambda malloc: functions.__setitem__("set", malloc),
        )
        self.with_modules(cupy=cupy)
        self.addCleanup(setattr, _cupy, "_original_del", None)
        device_memory.enable_cupy()
        device_memory.enable_cupy()
        self.assertIn("set", functions)
        pointer = functions["malloc"](5000, 0)
        self.assertEqual(device_memory.block_info(pointer), ("cuda", 0, 5000, 0))
        functions["free"](pointer, 0)
        device_memory.set_limit(8 << 20)
        self.addCleanup(device_memory.set_limit, None)
        with self.assertRaisesRegex(Refusal, "limit is 8.00 MiB"):
            functions["malloc"](64 << 20, 0)
        stream = Stream()
        del stream
        self.assertEqual(Stream.destroyed, [0], "streams are still destroyed, once")


if __name__ == "__main__":
    unittest.main()
