"""PyTorch, CuPy and Python programs on the device memory pools of this package.

Two lines before the first CUDA tensor::

    import device_memory
    device_memory.enable_torch()

From then on every CUDA tensor of the process lives in our pool. PyTorch refuses to report on an allocator that is not
its own; the functions below do, and ``enable_torch`` makes ``torch.cuda.memory_stats`` and its kin answer as well.

Sizes are bytes, devices are numbers of CUDA devices unless ``kind`` says otherwise (``"cuda"``, ``"cpu"`` or
``"pinned"``). Failures are :class:`Error`; its subclasses say which.
"""

from ._array import Array, zeros
from ._library import (
    DeviceFailure,
    Error,
    MisuseError,
    OutOfMemory,
    Unavailable,
    allocate,
    block_info,
    device_count,
    empty_cache,
    free,
    get_limit,
    grow_to,
    has_cuda,
    is_open,
    library_path,
    record_stream,
    reset_peaks,
    retire_stream,
    save_picture,
    set_limit,
    set_memory_fraction,
    snapshot,
    statistics,
)
from ._torch import MemPool, TooLate, enable_torch, is_torch_enabled, torch_memory_stats
from ._cupy import disable_cupy, enable_cupy

__version__ = "0.1.0"

__all__ = [
    "Array",
    "DeviceFailure",
    "Error",
    "MemPool",
    "MisuseError",
    "OutOfMemory",
    "TooLate",
    "Unavailable",
    "allocate",
    "block_info",
    "device_count",
    "disable_cupy",
    "empty_cache",
    "enable_cupy",
    "enable_torch",
    "free",
    "get_limit",
    "grow_to",
    "has_cuda",
    "is_open",
    "is_torch_enabled",
    "library_path",
    "record_stream",
    "reset_peaks",
    "retire_stream",
    "save_picture",
    "set_limit",
    "set_memory_fraction",
    "snapshot",
    "statistics",
    "torch_memory_stats",
    "zeros",
]
