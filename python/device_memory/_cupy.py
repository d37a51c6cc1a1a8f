"""CuPy on our memory."""

from typing import Any

from . import _library
from ._library import OutOfMemory, Unavailable

#: CuPy's destructor of streams, while ours is in its place.
_original_del: Any = None


def enable_cupy() -> None:
    """Has CuPy allocate device memory from our pools, for arrays that are made from now on.

    Arrays are allocated for the stream that is current, and freed in its order. An array that another stream uses
    needs ``device_memory.record_stream(array.data.ptr, stream.ptr)`` before it goes. Streams of CuPy tell our pools
    when they are destroyed; a stream that CuPy only borrows (``ExternalStream``) is told of with
    ``device_memory.retire_stream``.
    """
    global _original_del
    try:
        import cupy
    except ImportError as error:
        raise Unavailable("CuPy is not installed") from error
    if not _library.has_cuda():
        raise Unavailable("this library of device_memory was built without CUDA")

    def malloc(size: int, device: int) -> int:
        try:
            return _library.allocate(size, device, cupy.cuda.get_current_stream().ptr)
        except OutOfMemory as error:
            figures = _library.statistics(device)
            refusal = cupy.cuda.memory.OutOfMemoryError(size, figures["allocated"], figures["limit"] or 0)
            refusal.args = (str(error),)
            raise refusal from None

    def free(pointer: int, device: int) -> None:
        _library.free(pointer)

    allocator = cupy.cuda.PythonFunctionAllocator(malloc, free)
    cupy.cuda.set_allocator(allocator.malloc)
    if _original_del is None:
        _original_del = cupy.cuda.Stream.__del__
        cupy.cuda.Stream.__del__ = _retire_and_destroy


def disable_cupy() -> None:
    """Gives CuPy the pool that it has by default. Arrays in our memory stay there until they go."""
    try:
        import cupy
    except ImportError as error:
        raise Unavailable("CuPy is not installed") from error
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


def _retire_and_destroy(stream: Any) -> None:
    """Tells our pools of a stream before CuPy destroys it."""
    try:
        if stream.ptr > 2:  # 0 to 2 are default streams, which stay
            device = getattr(stream, "device_id", 0)
            _library.retire_stream(stream.ptr, max(device, 0))
    finally:
        _original_del(stream)
