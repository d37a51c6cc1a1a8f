"""PyTorch on our memory."""

import collections
import ctypes
import importlib.abc
import importlib.util
import sys
from typing import Any, Dict, List, Optional, Tuple

from . import _library, _segments
from ._library import Error, Unavailable

#: What PyTorch's C++ class takes, and the function of ours for it.
_HOOKS = {
    "set_init_fn": "devmem_torch_init",
    "set_reset_fn": "devmem_torch_reset",
    "set_memory_fraction_fn": "devmem_torch_memory_fraction",
    "set_base_alloc_fn": "devmem_torch_base_alloc",
    "set_record_stream_fn": "devmem_torch_record_stream",
    "set_begin_allocate_to_pool": "devmem_torch_begin_allocate_to_pool",
    "set_end_allocate_to_pool_fn": "devmem_torch_end_allocate_to_pool",
    "set_release_pool": "devmem_torch_release_pool",
}

#: The allocator, kept alive; ``None`` until :func:`enable_torch` was called.
_enabled: Any = None


class TooLate(Error):
    """PyTorch has begun to use CUDA with an allocator of its own, which can't be changed any more."""


def is_torch_enabled() -> bool:
    """Whether PyTorch's CUDA tensors live in our memory."""
    return _enabled is not None


def enable_torch(reports: bool = True, mem_pool: bool = True, cudagraph_trees: bool = False) -> None:
    """Has PyTorch allocate all CUDA memory of this process from our pools.

    Call it before the first CUDA tensor; later it is :class:`TooLate`. Calling it again does nothing.

    PyTorch refuses some requests when its allocator is a pluggable one. Unless told otherwise this puts ours in their
    place:

    - ``reports``: ``torch.cuda.memory_stats``, ``memory_allocated``, ``max_memory_reserved``, ``memory_summary``,
      ``reset_peak_memory_stats``, ``memory_snapshot`` and what else is built on them answer with our figures.
    - ``mem_pool``: ``torch.cuda.MemPool`` is :class:`MemPool`.
    - ``torch.compile`` captures CUDA graphs without ``cudagraph_trees``, as those checkpoint the state of PyTorch's
      own allocator; ``True`` leaves PyTorch's setting alone.
    """
    global _enabled
    if _enabled is not None:
        return
    try:
        import torch
    except ImportError as error:
        raise Unavailable("PyTorch is not installed") from error
    if not _library.has_cuda():
        raise Unavailable("this library of device_memory was built without CUDA")
    if getattr(torch.version, "cuda", None) is None:
        raise Unavailable("this PyTorch was built without CUDA")
    too_late = (
        "PyTorch uses CUDA already, so its allocator can't be changed any more: call device_memory.enable_torch() "
        "right after the imports, before anything is put on a CUDA device, and in each process that uses CUDA"
    )
    if torch.cuda.is_initialized():
        raise TooLate(too_late)
    memory = torch.cuda.memory
    allocator = memory.CUDAPluggableAllocator(_library.library_path(), "devmem_torch_alloc", "devmem_torch_free")
    library, raw = _library.library(), allocator.allocator()
    missing = [setter for setter in _HOOKS if not hasattr(raw, setter)]
    if missing:
        raise Unavailable(f"this PyTorch ({torch.__version__}) takes no {', '.join(missing)}")
    for setter, name in _HOOKS.items():
        getattr(raw, setter)(ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    try:
        memory.change_current_allocator(allocator)
    except RuntimeError as error:
        raise TooLate(too_late) from error
    _enabled = allocator
    if reports:
        _answer_for(torch._C)
    if mem_pool:
        torch.cuda.MemPool = memory.MemPool = MemPool
    if not cudagraph_trees:
        _turn_off_cudagraph_trees()


def _turn_off_cudagraph_trees() -> None:
    name = "torch._inductor.config"

    def turn_off(config: Any) -> None:
        config.triton.cudagraph_trees = False

    loaded = sys.modules.get(name)
    if loaded is not None:
        turn_off(loaded)
    else:
        # To import it for this alone would take seconds.
        sys.meta_path.insert(0, _AfterImport(name, turn_off))


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls a function on a module once that is imported."""

    def __init__(self, name: str, then: Any) -> None:
        self.name, self.then, self._searching = name, then, False

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != self.name or self._searching:
            return None
        self._searching = True
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._searching = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            # Not before: some only look whether there is such a module.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            self.then(module)

        setattr(spec.loader, "exec_module", exec_module)
        return spec


def _none() -> Dict[str, Any]:
    """The figures of a device that nobody has used."""
    pool = {"reserved": {"total": 0}, "in_use": {"total": 0}, "calls": {"create": 0, "release": 0}}
    return collections.defaultdict(int, pool=pool)


#: The figures when the accumulated ones were reset, by device.
_baselines: Dict[int, Dict[str, Any]] = collections.defaultdict(_none)


def _figures(device: int) -> Dict[str, Any]:
    """The device's figures. To ask our pool where there is none yet would make it, and a context with it, and programs
    that use one device of many ask for the figures of all.
    """
    return _library.statistics(device) if _library.is_open(device) else _none()


def torch_memory_stats(device: int = 0) -> Dict[str, Any]:
    """Our figures under the names that ``torch.cuda.memory_stats_as_nested_dict`` has for its own.

    Our pool does not tell small from large blocks in its figures: those of ``small_pool`` and ``large_pool`` are zero.
    What is not counted is zero as well: the peaks of numbers of blocks, and what became of segments.
    """
    figures, base = _figures(device), _baselines[device]

    def since(*path: str) -> int:
        now: Any = figures
        then: Any = base
        for name in path:
            now, then = now[name], then[name]
        return int(now - then)

    def whole(current: int = 0, peak: int = 0, allocated: int = 0, grown: int = 0) -> Dict[str, Dict[str, int]]:
        none = {"current": 0, "peak": 0, "allocated": 0, "freed": 0}
        freed = max(allocated - grown, 0)
        both = {"current": current, "peak": max(peak, current), "allocated": allocated, "freed": freed}
        return {"all": both, "small_pool": dict(none), "large_pool": dict(none)}

    def stat(current: str, peak: int, *total: str) -> Dict[str, Dict[str, int]]:
        # Of what came since the reset, all was freed but what there is more now.
        return whole(figures[current], peak, since(*total), since(current))

    live = stat("allocated", figures["allocated_peak"], "allocated_total")
    blocks = stat("block_count", 0, "allocation_count")
    return {
        "allocation": blocks,
        "allocated_bytes": live,
        "requested_bytes": live,
        "active": blocks,
        "active_bytes": stat("in_use", figures["in_use_peak"], "pool", "in_use", "total"),
        "reserved_bytes": stat("reserved", figures["reserved_peak"], "pool", "reserved", "total"),
        "segment": whole(),
        "inactive_split": whole(),
        "inactive_split_bytes": whole(max(figures["reserved"] - figures["in_use"], 0)),
        "oversize_allocations": whole()["all"],
        "oversize_segments": whole()["all"],
        "num_alloc_retries": 0,
        "num_ooms": since("failure_count"),
        "num_sync_all_streams": 0,
        "num_device_alloc": since("pool", "calls", "create"),
        "num_device_free": since("pool", "calls", "release"),
        "max_split_size": -1,
    }


def _torch_snapshot(pool: Any = None) -> Dict[str, Any]:
    """Our memory, or that of one private pool, in the form of PyTorch's own snapshot, for its memory viewer."""
    # PyTorch 2.11 says as a third number whether it wants traces, of which there are none.
    wanted = tuple(pool or (0, 0))[:2]
    devices, segments = range(_library.device_count()), []
    for device in filter(_library.is_open, devices):
        segments += _segments.of(_library.snapshot(device), device, wanted)
    # The viewer takes the devices from here, and fails without one's trace though it is empty.
    traces: List[List[Any]] = [[] for _ in devices]
    return {"segments": segments, "device_traces": traces, "allocator_settings": {}, "external_annotations": []}


def _answer_for(module: Any) -> None:
    """Puts our figures in the place of those that PyTorch refuses for an allocator that is not its own."""

    def reset_peaks(device: int) -> None:
        if _library.is_open(device):
            _library.reset_peaks(device)

    def reset_accumulated(device: int) -> None:
        _baselines[device] = _figures(device)

    def get_fraction(device: int) -> float:
        if not _library.is_open(device):
            return 1.0
        limit, total = _library.get_limit(device), _library.statistics(device)["device_total"]
        return 1.0 if limit is None or not total else float(limit / total)

    answers = {
        "_cuda_memoryStats": torch_memory_stats,
        "_cuda_resetPeakMemoryStats": reset_peaks,
        "_cuda_resetAccumulatedMemoryStats": reset_accumulated,
        "_cuda_memorySnapshot": _torch_snapshot,
        "_cuda_getMemoryFraction": get_fraction,
    }
    for name, answer in answers.items():
        if hasattr(module, name):
            setattr(module, name, answer)


class _PoolId(ctypes.Structure):
    _fields_ = [("first", ctypes.c_uint64), ("second", ctypes.c_uint64)]


class MemPool:
    """A private pool, for ``torch.cuda.use_mem_pool`` and ``torch.cuda.graph(pool=pool.id)``.

    Its memory stays where it is, and its own, until the pool is gone and all tensors in it are. It takes the place of
    ``torch.cuda.MemPool``, which asks more of its allocator than a pluggable one has.
    """

    def __init__(self, allocator: Optional[Any] = None, use_on_oom: bool = False, no_split: bool = False) -> None:
        if allocator is not None or use_on_oom or no_split:
            raise NotImplementedError("pools of device_memory take no allocator of their own, use_on_oom or no_split")
        if _enabled is None:
            raise Error("call device_memory.enable_torch() first")
        import torch

        self._device = torch.cuda.current_device()
        self._id: Tuple[int, int] = tuple(torch.cuda.graph_pool_handle())
        library = _library.library()
        self._users = library.devmem_torch_pool_users
        self._users.restype, self._users.argtypes = ctypes.c_uint32, [ctypes.c_int, _PoolId]
        self._release = library.devmem_torch_release_pool
        self._release.restype, self._release.argtypes = None, [ctypes.c_int, _PoolId]
        retain = library.devmem_torch_retain_pool
        retain.restype, retain.argtypes = ctypes.c_int32, [ctypes.c_int, _PoolId]
        self._held = False
        _library.check(retain(self._device, _PoolId(*self._id)))
        self._held = True

    @property
    def id(self) -> Tuple[int, int]:
        """PyTorch's name of the pool."""
        return self._id

    @property
    def device(self) -> int:
        """The device that was current when the pool was made."""
        return int(self._device)

    def use_count(self) -> int:
        """How many use the pool: this object, graphs, and blocks of ``use_mem_pool`` that have not ended."""
        return int(self._users(self._device, _PoolId(*self._id)))

    def __del__(self) -> None:
        if getattr(self, "_held", False):
            self._held = False
            self._release(self._device, _PoolId(*self._id))
