"""Arrays in our memory, for whoever reads DLPack."""

import ctypes
import math
from typing import Any, Optional, Sequence, Tuple, Union

from . import _library
from ._library import MisuseError

#: DLPack's codes and the bits of the types of elements.
_TYPES = {
    **{f"int{bits}": (0, bits) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (1, bits) for bits in (8, 16, 32, 64)},
    **{f"float{bits}": (2, bits) for bits in (16, 32, 64)},
    "bfloat16": (4, 16),
    "complex64": (5, 64),
    "complex128": (5, 128),
    "bool": (6, 8),
}

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

#: Names of capsules that nobody has taken, and where the deleter of the tensor in them is, in pointers.
_NAMES = {b"dltensor": 7, b"dltensor_versioned": 2}


def _delete(pointer: int, deleter: int) -> None:
    """Calls the deleter that a tensor has."""
    function = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_void_p))[deleter]
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)(pointer)


class Array:
    """An array that one consumer may take: ``numpy.from_dlpack(array)``, ``torch.from_dlpack(array)``, and so on."""

    def __init__(self, pointer: int, versioned: bool, device: Tuple[int, int]) -> None:
        self._pointer, self._versioned, self._device = pointer, versioned, device

    def __dlpack_device__(self) -> Tuple[int, int]:
        """DLPack's numbers for the device."""
        return self._device

    def __dlpack__(
        self,
        *,
        stream: Optional[int] = None,
        max_version: Optional[Tuple[int, int]] = None,
        dl_device: Optional[Tuple[int, int]] = None,
        copy: Optional[bool] = None,
    ) -> Any:
        """The array in a capsule, for work on ``stream``, or on the stream that was named when the array was made if none is
        named here: that work comes after the zeros, and the memory waits for it when the array goes.
        """
        if dl_device not in (None, self._device) or copy:
            raise BufferError("arrays of device_memory are not copied")
        if self._versioned and (max_version is None or max_version[0] < 1):
            raise BufferError("this consumer knows no versions of DLPack: make the array with versioned=False")
        if not self._pointer:
            raise BufferError("somebody else has taken this array")
        # -1 is DLPack's number for a consumer that wants no order.
        if self._device[0] == _library.KINDS["cuda"] and stream not in (None, -1):
            handle = _library.number("stream", stream)
            _library.check(_library.library().devmem_dlpack_hand_to(self._pointer, self._versioned, handle))
        pointer, self._pointer = self._pointer, 0
        name = b"dltensor_versioned" if self._versioned else b"dltensor"
        # Of C: Python destroys capsules where no function of its own can run.
        return _new(pointer, name, ctypes.cast(_library.library().devmem_dlpack_drop_capsule, ctypes.c_void_p))

    def __del__(self) -> None:
        pointer, self._pointer = getattr(self, "_pointer", 0), 0
        if pointer:
            _delete(pointer, _NAMES[b"dltensor_versioned" if self._versioned else b"dltensor"])


def zeros(
    shape: Union[int, Sequence[int]],
    dtype: str = "float32",
    device: int = 0,
    stream: int = 0,
    kind: str = "cuda",
    versioned: bool = True,
) -> Array:
    """An array of zeros in our memory, for one consumer of DLPack, whose work runs on ``stream``."""
    if dtype not in _TYPES:
        raise MisuseError(f"{dtype!r} is no type of elements; there are {', '.join(_TYPES)}")
    lengths = [shape] if isinstance(shape, int) else list(shape)
    if any(not 0 <= length < 1 << 63 for length in lengths) or math.prod(lengths) >= 1 << 63:
        raise MisuseError(f"a shape of {shape} makes no sense")
    function = _library.library().devmem_dlpack_zeros
    function.restype = ctypes.c_int32
    tensor, (code, bits) = ctypes.c_void_p(), _TYPES[dtype]
    number, device = _library.named(kind, device)
    _library.check(
        function(
            ctypes.c_int32(number),
            ctypes.c_int32(device),
            ctypes.c_uint8(code),
            ctypes.c_uint8(bits),
            (ctypes.c_int64 * len(lengths))(*lengths),
            ctypes.c_int32(len(lengths)),
            ctypes.c_uint64(_library.number("stream", stream)),
            ctypes.c_int32(versioned),
            ctypes.byref(tensor),
        )
    )
    # To DLPack host memory has no number, whatever device it is page-locked for.
    return Array(tensor.value or 0, versioned, (number, device if kind == "cuda" else 0))
