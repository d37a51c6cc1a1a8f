"""Which of the C++ symbols that our exceptions are made of this PyTorch exports, and from where.

    python3 symbols.py
"""

import ctypes
import os
import sys

import torch

import device_memory

LIBRARIES = ["libc10_cuda.so", "libtorch_cuda.so", "libc10.so", "libstdc++.so.6"]
STRING = "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
SYMBOLS = {
    "the constructor of c10::Error": f"_ZN3c105ErrorC1ENS_14SourceLocationE{STRING}",
    "the type of c10::OutOfMemoryError": "_ZTIN3c1016OutOfMemoryErrorE",
    "the virtual functions of c10::OutOfMemoryError": "_ZTVN3c1016OutOfMemoryErrorE",
    "c10::detail::torchCheckFail": "_ZN3c106detail14torchCheckFailEPKcS2_jS2_",
    "the constructor of std::string": f"_Z{STRING[:-1]}C1EPKcmRKS3_",
    "the destructor of std::string": f"_Z{STRING[:-1]}D1Ev",
    "__cxa_allocate_exception": "__cxa_allocate_exception",
    "__cxa_throw": "__cxa_throw",
}


def main():
    print("PyTorch", torch.__version__)
    loaded = {}
    for name in LIBRARIES:
        try:
            loaded[name] = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        except OSError:
            print(f"{name} is not loaded")
    missing = 0
    for what, symbol in SYMBOLS.items():
        found = [name for name, library in loaded.items() if hasattr(library, symbol)]
        missing += not found
        print(f"{what}: {', '.join(found) or 'MISSING ' + symbol}")
    support = device_memory._library.library().devmem_torch_exceptions()
    print(f"support {support}: " + ["none", "RuntimeError", "torch.OutOfMemoryError"][support])
    sys.exit(1 if missing else 0)


if __name__ == "__main__":
    main()
