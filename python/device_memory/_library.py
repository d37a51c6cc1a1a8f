"""The shared library, through ctypes: one Python function for each that is of use in Python."""

import ctypes
import json
import operator
import os
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Tuple, Union

ABI_VERSION = 1
#: Names another library than the one in this package, for tests.
LIBRARY_VARIABLE = "DEVICE_MEMORY_LIBRARY"
KINDS = {"cpu": 1, "cuda": 2, "pinned": 3}
KIND_NAMES = {number: name for name, number in KINDS.items()}


class Error(RuntimeError):
    """A call that failed; ``status`` is its number in C."""

    status = 9


class OutOfMemory(Error, MemoryError):
    """No memory, after everything that could be given back was."""

    status = 1


class MisuseError(Error, ValueError):
    """An argument that makes no sense, or a pointer that may not be freed (again). Nothing was changed."""


class Unavailable(Error):
    """No such device, no driver, or a library that was built without support for it."""

    status = 7


class DeviceFailure(Error):
    """The device or its driver failed."""

    status = 8


_ERRORS = {
    1: OutOfMemory,
    2: MisuseError,
    3: MisuseError,
    4: MisuseError,
    5: MisuseError,
    6: MisuseError,
    7: Unavailable,
    8: DeviceFailure,
}


class BlockInfo(NamedTuple):
    """What is known of a block."""

    kind: str
    device: int
    size: int
    stream: int


class _BlockInfo(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("ordinal", ctypes.c_int32),
        ("size", ctypes.c_uint64),
        ("stream", ctypes.c_uint64),
    ]


_INT, _U64, _VOID = ctypes.c_int32, ctypes.c_uint64, ctypes.c_void_p
_OUT = ctypes.POINTER(ctypes.c_void_p)
_TEXT = [_INT, _INT, ctypes.c_char_p, ctypes.c_size_t]
_SIGNATURES = {
    "devmem_abi_version": (ctypes.c_uint32, []),
    "devmem_last_error": (ctypes.c_char_p, []),
    "devmem_device_count": (_INT, [_INT, ctypes.POINTER(ctypes.c_uint32)]),
    "devmem_is_open": (_INT, [_INT, _INT, ctypes.POINTER(ctypes.c_int32)]),
    "devmem_allocate_on": (_INT, [_INT, _INT, _U64, _U64, _U64, _OUT]),
    "devmem_free": (_INT, [_VOID]),
    "devmem_free_on": (_INT, [_VOID, _U64]),
    "devmem_record_stream": (_INT, [_VOID, _U64]),
    "devmem_block_info": (_INT, [_VOID, ctypes.POINTER(_BlockInfo)]),
    "devmem_trim": (_INT, [_INT, _INT, _U64, ctypes.POINTER(_U64)]),
    "devmem_grow_to": (_INT, [_INT, _INT, _U64, _U64, ctypes.POINTER(_U64)]),
    "devmem_set_limit": (_INT, [_INT, _INT, _U64]),
    "devmem_limit": (_INT, [_INT, _INT, ctypes.POINTER(_U64)]),
    "devmem_reset_peaks": (_INT, [_INT, _INT]),
    "devmem_retire_stream": (_INT, [_INT, _INT, _U64]),
    "devmem_statistics": (_INT, [_INT, _INT, _VOID, ctypes.c_size_t]),
    "devmem_statistics_json": (ctypes.c_size_t, _TEXT),
    "devmem_snapshot_json": (ctypes.c_size_t, _TEXT),
    "devmem_picture_html": (ctypes.c_size_t, _TEXT),
    "devmem_dlpack_hand_to": (_INT, [_VOID, _INT, _U64]),
    "devmem_dlpack_drop_capsule": (None, [_VOID]),
}

_loaded: Optional[ctypes.CDLL] = None


def library_path() -> str:
    """Where the shared library is."""
    named = os.environ.get(LIBRARY_VARIABLE)
    return named or str(Path(__file__).with_name("libdevice_memory.so"))


def library() -> ctypes.CDLL:
    """The library, loaded at the first call."""
    global _loaded
    if _loaded is None:
        path = library_path()
        try:
            loaded = ctypes.CDLL(path)
        except OSError as error:
            raise Unavailable(f"the library of device_memory can't be loaded: {error}") from error
        # First, as another version may lack what follows.
        version = loaded.devmem_abi_version() if hasattr(loaded, "devmem_abi_version") else None
        if version != ABI_VERSION:
            raise Unavailable(f"{path} has version {version} of the interface; this package knows {ABI_VERSION}")
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name, None)
            if function is None:
                raise Unavailable(f"{path} is older than this package: it has no {name}")
            function.restype, function.argtypes = result, arguments
        _loaded = loaded
    return _loaded


def last_error() -> str:
    """The text of this thread's last failure."""
    text: bytes = library().devmem_last_error()
    return text.decode("utf-8", "replace")


def check(status: int) -> None:
    """Raises what a status says."""
    if status != 0:
        error = _ERRORS.get(status, Error)(last_error())
        error.status = status
        raise error


def kind_number(kind: str) -> int:
    """The number that C has for a kind of device."""
    try:
        return KINDS[kind]
    except KeyError:
        raise MisuseError(f"{kind!r} is no kind of device; there are {', '.join(KINDS)}") from None


def number(what: str, value: int, bits: int = 64) -> int:
    """The value, if C has as many bits for it: ctypes would cut others off, and what is left may make sense."""
    value = operator.index(value)
    if not 0 <= value < 1 << bits:
        raise MisuseError(f"{what} {value} makes no sense")
    return value


def named(kind: str, device: int) -> Tuple[int, int]:
    """The two numbers by which C knows a device."""
    return kind_number(kind), number("device number", device, 31)


def address(pointer: Any) -> Any:
    """The pointer, if it is one; ctypes knows others than numbers."""
    return number("pointer", pointer) if isinstance(pointer, int) else pointer


def has_cuda() -> bool:
    """Whether the library was built for CUDA; that a device is there, :func:`device_count` says."""
    return hasattr(library(), "devmem_torch_alloc")


def device_count(kind: str = "cuda") -> int:
    """Number of devices of a kind; 0 without a driver."""
    count = ctypes.c_uint32()
    check(library().devmem_device_count(kind_number(kind), ctypes.byref(count)))
    return count.value


def is_open(device: int = 0, kind: str = "cuda") -> bool:
    """Whether the device's pool is there already. All other functions make it, with a context on a CUDA device."""
    answer = ctypes.c_int32()
    check(library().devmem_is_open(*named(kind, device), ctypes.byref(answer)))
    return answer.value != 0


def allocate(size: int, device: int = 0, stream: int = 0, align: int = 0, kind: str = "cuda") -> int:
    """A block of ``size`` bytes for work on ``stream``, by its address."""
    numbers = number("size", size), number("alignment", align), number("stream", stream)
    pointer = ctypes.c_void_p()
    check(library().devmem_allocate_on(*named(kind, device), *numbers, ctypes.byref(pointer)))
    return pointer.value or 0


def free(pointer: int, stream: Optional[int] = None) -> None:
    """Frees a block whose last use was on ``stream``, or else on the stream it was allocated for."""
    if stream is None:
        check(library().devmem_free(address(pointer)))
    else:
        check(library().devmem_free_on(address(pointer), number("stream", stream)))


def record_stream(pointer: int, stream: int) -> None:
    """Notes that work on another stream uses the block: once freed, its memory waits for that work."""
    check(library().devmem_record_stream(address(pointer), number("stream", stream)))


def block_info(pointer: int) -> BlockInfo:
    """What is known of the block that starts at ``pointer``."""
    info = _BlockInfo()
    check(library().devmem_block_info(address(pointer), ctypes.byref(info)))
    return BlockInfo(KIND_NAMES.get(info.kind, "?"), info.ordinal, info.size, info.stream)


def empty_cache(device: int = 0, keep: int = 0, kind: str = "cuda") -> int:
    """Gives free memory back until at most ``keep`` bytes are held; returns the bytes given back."""
    given = ctypes.c_uint64()
    check(library().devmem_trim(*named(kind, device), number("bytes to keep", keep), ctypes.byref(given)))
    return given.value


def grow_to(size: int, device: int = 0, stream: int = 0, kind: str = "cuda") -> int:
    """Has the device's pool hold at least ``size`` bytes of memory, made now in place of when it is first needed; returns how many
    it holds. The memory is free for blocks of every size and stream.
    """
    held = ctypes.c_uint64()
    numbers = number("size", size), number("stream", stream)
    check(library().devmem_grow_to(*named(kind, device), *numbers, ctypes.byref(held)))
    return held.value


def set_limit(limit: Optional[int], device: int = 0, kind: str = "cuda") -> None:
    """Sets the most memory to hold, in bytes; ``None`` for no limit."""
    if limit is not None and number("limit", limit) == 0:
        raise MisuseError("a limit of 0 bytes makes no sense")
    check(library().devmem_set_limit(*named(kind, device), limit or 0))


def get_limit(device: int = 0, kind: str = "cuda") -> Optional[int]:
    """The most memory to hold, in bytes; ``None`` for no limit."""
    limit = ctypes.c_uint64()
    check(library().devmem_limit(*named(kind, device), ctypes.byref(limit)))
    return limit.value or None


def set_memory_fraction(fraction: float, device: int = 0, kind: str = "cuda") -> None:
    """Sets the most memory to hold as a fraction of the device's."""
    if not 0 < fraction <= 1:
        raise MisuseError(f"{fraction} is no fraction of a device's memory")
    total = statistics(device, kind)["device_total"]
    if total is None:
        raise Unavailable("the memory of this device is not known")
    set_limit(max(int(total * fraction), 1), device, kind)


def reset_peaks(device: int = 0, kind: str = "cuda") -> None:
    """Counts the peaks of :func:`statistics` from what there is now."""
    check(library().devmem_reset_peaks(*named(kind, device)))


def retire_stream(stream: int, device: int = 0, kind: str = "cuda") -> None:
    """Says that a stream is about to be destroyed."""
    check(library().devmem_retire_stream(*named(kind, device), number("stream", stream)))


def statistics(device: int = 0, kind: str = "cuda") -> Dict[str, Any]:
    """The figures of a device's pool.

    ``allocated`` is what the program holds and ``reserved`` what the pool holds from the device, each with its
    ``_peak``; ``misses``, ``moves`` and ``memory_calls`` say what the pool had to do.
    """
    return _json("devmem_statistics_json", device, kind)


def snapshot(device: int = 0, kind: str = "cuda") -> Dict[str, Any]:
    """All living blocks of a device, in the order of addresses, where its memory is, and the figures.

    ``device_memory.h`` says of ``devmem_snapshot_json`` what is in it.
    """
    return _json("devmem_snapshot_json", device, kind)


def save_picture(path: Union[str, "os.PathLike[str]"], device: int = 0, kind: str = "cuda") -> None:
    """Writes a page of HTML that shows where a device's memory is, piece by piece, with the figures of its pool."""
    page = _text("devmem_picture_html", device, kind)
    Path(path).write_text(page, encoding="utf-8")


def _json(function: str, device: int, kind: str) -> Dict[str, Any]:
    figures: Dict[str, Any] = json.loads(_text(function, device, kind))
    return figures


def _text(function: str, device: int, kind: str) -> str:
    call = getattr(library(), function)
    capacity = 1 << 16
    while True:
        text = ctypes.create_string_buffer(capacity)
        length = call(*named(kind, device), text, capacity)
        if length == 0:
            reason = last_error()
            # Texts come without a status; the same figures as a struct come with one.
            check(library().devmem_statistics(*named(kind, device), text, 0))
            raise Error(reason)
        if length < capacity:
            return text.value.decode()
        capacity = length + (length >> 2) + 1
