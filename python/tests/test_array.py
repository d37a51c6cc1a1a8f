"""Arrays for consumers of DLPack: NumPy and PyTorch where they are installed, and none."""

import gc
import subprocess
import sys
import unittest

import device_memory
from device_memory import MisuseError, OutOfMemory

try:
    import numpy
except ImportError:
    numpy = None
try:
    import torch
except ImportError:
    torch = None


def held():
    return device_memory.statistics(kind="cpu")["pool"]["requested"]["current"]


class Arrays(unittest.TestCase):
    def setUp(self):
        gc.collect()
        self.before = held()

    def tearDown(self):
        gc.collect()
        self.assertEqual(held(), self.before, "memory was lost")

    def test_an_array_that_nobody_takes_goes_back(self):
        for versioned in (False, True):
            array = device_memory.zeros((100, 10), kind="cpu", versioned=versioned)
            self.assertEqual(held(), self.before + 4000)
            self.assertEqual(array.__dlpack_device__(), (1, 0))
            del array
            self.assertEqual(held(), self.before)

    def test_a_capsule_that_nobody_takes_goes_back(self):
        for versioned in (False, True):
            capsule = device_memory.zeros(1000, kind="cpu", versioned=versioned).__dlpack__(max_version=(1, 0))
            self.assertEqual(held(), self.before + 4000)
            del capsule
            self.assertEqual(held(), self.before)

    def test_a_capsule_may_go_while_an_exception_is_on_its_way(self):
        for versioned in (False, True):
            with self.assertRaisesRegex(TypeError, "PyCapsule"):
                int(device_memory.zeros(1000, kind="cpu", versioned=versioned).__dlpack__(max_version=(1, 0)))
            self.assertEqual(held(), self.before)

    def test_a_capsule_may_outlive_the_interpreter(self):
        # What modules refer to that the interpreter itself needs goes last.
        program = """
import sys
import device_memory

sys.kept = device_memory.zeros(1000, kind="cpu").__dlpack__(max_version=(1, 0))
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        self.assertEqual((ended.returncode, ended.stderr), (0, ""))

    def test_an_array_is_taken_once(self):
        array = device_memory.zeros(8, kind="cpu")
        with self.assertRaisesRegex(BufferError, "versioned=False"):
            array.__dlpack__()
        with self.assertRaisesRegex(BufferError, "not copied"):
            array.__dlpack__(max_version=(1, 0), copy=True)
        array.__dlpack__(max_version=(1, 0))
        with self.assertRaisesRegex(BufferError, "taken"):
            array.__dlpack__(max_version=(1, 0))

    @unittest.skipUnless(device_memory.device_count() > 0, "there is no device, not even a fake one")
    def test_an_array_is_handed_to_the_stream_that_the_consumer_names(self):
        for made_for, name, recorded in ((0, None, False), (0, -1, False), (0, 1, True), (2, 2, False), (2, 1, True)):
            for versioned in (False, True):
                array = device_memory.zeros(8, stream=made_for, versioned=versioned)
                capsule = array.__dlpack__(stream=name, max_version=(1, 0))
                blocks = device_memory.snapshot()["blocks"]
                self.assertEqual([block["shared"] for block in blocks], [recorded], (made_for, name))
                del capsule
                self.assertEqual(device_memory.snapshot()["blocks"], [])
        with self.assertRaises(MisuseError):
            device_memory.zeros(8).__dlpack__(stream=-2, max_version=(1, 0))

    def test_nonsense_is_refused(self):
        for arguments in ({"shape": -1}, {"shape": (1 << 40, 1 << 40)}, {"shape": 1, "dtype": "decimal"}):
            with self.assertRaises(MisuseError):
                device_memory.zeros(**arguments, kind="cpu")
        with self.assertRaises(MisuseError):
            device_memory.zeros([1] * 65, kind="cpu")
        with self.assertRaises(OutOfMemory):
            device_memory.zeros(1 << 55, kind="cpu")

    @unittest.skipIf(numpy is None, "NumPy is not installed")
    def test_numpy_reads_and_writes(self):
        for dtype in ("int8", "uint16", "float32", "float64", "complex64", "bool"):
            array = numpy.from_dlpack(device_memory.zeros((3, 5), dtype, kind="cpu"))
            self.assertEqual((array.shape, str(array.dtype)), ((3, 5), dtype))
            self.assertFalse(array.any())
            array[1, 2] = 1
            self.assertEqual(array.sum(), 1)
            self.assertEqual(held(), self.before + array.nbytes)
            del array

    @unittest.skipIf(numpy is None, "NumPy is not installed")
    def test_what_numpy_does_not_take_goes_back(self):
        with self.assertRaisesRegex((BufferError, RuntimeError), "dtype"):
            numpy.from_dlpack(device_memory.zeros(8, "bfloat16", kind="cpu"))

    @unittest.skipIf(torch is None, "PyTorch is not installed")
    def test_torch_reads_and_writes(self):
        for versioned in (False, True):
            tensor = torch.from_dlpack(device_memory.zeros((4, 4), "bfloat16", kind="cpu", versioned=versioned))
            self.assertEqual((tuple(tensor.shape), tensor.dtype), ((4, 4), torch.bfloat16))
            tensor += 2
            self.assertEqual(tensor.sum().item(), 32)
            del tensor


if __name__ == "__main__":
    unittest.main()
