"""What a process of Python is said to have left behind, if it is asked."""

import os
import re
import subprocess
import sys
import unittest

TAKES = "import device_memory; kept = [device_memory.allocate(size, kind='cpu') for size in (300, 300, 7)]\n"


def run(program, report=None):
    """What the program wrote to its standard error, without the numbers of processes."""
    environment = {name: value for name, value in os.environ.items() if name != "ALLOC_LEAK_REPORT"}
    if report is not None:
        environment["ALLOC_LEAK_REPORT"] = report
    process = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    text = re.sub(r"^device_memory, process \d+", "device_memory", process.stderr, flags=re.MULTILINE)
    return process.returncode, text


class Leaks(unittest.TestCase):
    def test_blocks_that_nobody_freed_are_told_if_asked_for(self):
        self.assertEqual(run(TAKES), (0, ""))
        status, text = run(TAKES, "table")
        self.assertEqual(status, 0, text)
        self.assertTrue(text.startswith("device_memory: these blocks were never freed\ncpu:0: 3 blocks of 607 bytes"), text)
        self.assertRegex(text, r"\n +2 +300 +600 bytes\n +1 +7 +7 bytes\n")
        status, text = run(TAKES + "for pointer in kept: device_memory.free(pointer)", "table")
        self.assertEqual((status, text), (0, "device_memory: no block was left\n"))

    def test_what_python_lets_go_at_its_end_is_not_told(self):
        program = "import device_memory; array = device_memory.zeros(100, kind='cpu'); capsule = array.__dlpack__(%s)"
        self.assertEqual(run(program % "max_version=(1, 0)", "table"), (0, "device_memory: no block was left\n"))
        # An object that nothing destroys, as those are that a library of C++ keeps for ever.
        keep = "; import ctypes; ctypes.pythonapi.Py_IncRef(ctypes.py_object(capsule))"
        status, text = run(program % "max_version=(1, 0)" + keep, "table")
        self.assertEqual(status, 0, text)
        self.assertIn("of them 1 block of 400 bytes in tensors that nobody let go", text)

    def test_an_exception_does_not_keep_it_from_being_told(self):
        status, text = run(TAKES + "raise ValueError('on purpose')", "table")
        self.assertEqual(status, 1)
        self.assertIn("ValueError: on purpose\ndevice_memory: these blocks were never freed\n", text)

    def test_children_that_are_forked_don_t_tell_of_their_parents_blocks(self):
        program = TAKES + "import os, sys\nif os.fork() == 0: sys.exit()\nos.wait()"
        status, text = run(program, "table")
        self.assertEqual((status, text.count("never freed")), (0, 1), text)

    def test_with_backtraces_the_functions_are_told(self):
        status, text = run(TAKES, "backtrace")
        self.assertEqual(status, 0, text)
        self.assertRegex(text, r"\ncpu:0, by where they come from:\n3 blocks of 607 bytes, the oldest .*\n +devmem_allocate_on")

    def test_a_kind_that_there_is_not_is_an_error(self):
        status, text = run(TAKES, "yes")
        self.assertEqual(status, 1)
        self.assertIn('ALLOC_LEAK_REPORT is "yes"', text)


if __name__ == "__main__":
    unittest.main()
