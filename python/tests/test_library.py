"""The package on the host's memory, without PyTorch and CuPy."""

import ctypes
import os
import sys
import threading
import unittest
from unittest import mock

import device_memory
from device_memory import MisuseError, OutOfMemory, Unavailable, _library


class Host(unittest.TestCase):
    def test_blocks_are_memory(self):
        pointer = device_memory.allocate(1000, kind="cpu")
        ctypes.memset(pointer, 65, 1000)
        self.assertEqual(ctypes.string_at(pointer, 1000), b"A" * 1000)
        self.assertEqual(device_memory.block_info(pointer), ("cpu", 0, 1000, 0))
        device_memory.free(pointer)
        with self.assertRaisesRegex(MisuseError, "freed before"):
            device_memory.free(pointer)

    def test_misuse_says_what_is_wrong(self):
        for arguments in ({"size": -1}, {"size": 1, "kind": "tpu"}, {"size": 1, "align": 3}, {"size": 1, "device": 5}):
            with self.assertRaises(MisuseError):
                device_memory.allocate(**{"kind": "cpu", **arguments})
        with self.assertRaises(MisuseError):
            device_memory.free(0x1200)
        for limit in (0, -5):
            with self.assertRaises(MisuseError):
                device_memory.set_limit(limit, kind="cpu")
        for fraction in (0, 1.5):
            with self.assertRaises(MisuseError):
                device_memory.set_memory_fraction(fraction, kind="cpu")

    def test_numbers_that_c_has_no_room_for_are_refused(self):
        # Cut off, each of them would do something else than is said.
        too_large = 1 << 64
        pointer = device_memory.allocate(100, kind="cpu")
        calls = (
            lambda: device_memory.allocate(too_large + 100, kind="cpu"),
            lambda: device_memory.allocate(100, device=1 << 32, kind="cpu"),
            lambda: device_memory.allocate(100, stream=-1, kind="cpu"),
            lambda: device_memory.allocate(100, align=too_large, kind="cpu"),
            lambda: device_memory.free(pointer + too_large),
            lambda: device_memory.free(pointer, stream=-1),
            lambda: device_memory.record_stream(pointer, too_large + 1),
            lambda: device_memory.block_info(pointer - too_large),
            lambda: device_memory.empty_cache(keep=-1, kind="cpu"),
            lambda: device_memory.set_limit(too_large + (1 << 30), kind="cpu"),
            lambda: device_memory.retire_stream(-1, kind="cpu"),
            lambda: device_memory.statistics(1 << 32, kind="cpu"),
            lambda: device_memory.zeros((too_large, 0), kind="cpu"),
            lambda: device_memory.zeros(1, device=1 << 32, kind="cpu"),
            lambda: device_memory.zeros(1, stream=-1, kind="cpu"),
        )
        for place, call in enumerate(calls):
            with self.subTest(place), self.assertRaises(MisuseError):
                call()
        with self.assertRaises(TypeError):
            device_memory.allocate(1.5, kind="cpu")
        self.assertIsNone(device_memory.get_limit(kind="cpu"))
        device_memory.free(pointer)

    def test_limits_hold_and_are_lifted(self):
        device_memory.set_limit(32 << 20, kind="cpu")
        try:
            self.assertEqual(device_memory.get_limit(kind="cpu"), 32 << 20)
            with self.assertRaisesRegex(OutOfMemory, "limit is 32.00 MiB") as caught:
                device_memory.allocate(1 << 30, kind="cpu")
            self.assertIsInstance(caught.exception, MemoryError)
            self.assertEqual(caught.exception.status, 1)
        finally:
            device_memory.set_limit(None, kind="cpu")
        self.assertIsNone(device_memory.get_limit(kind="cpu"))

    def test_memory_is_made_beforehand(self):
        held = device_memory.grow_to(64 << 20, kind="cpu")
        before = device_memory.statistics(kind="cpu")
        self.assertGreaterEqual(held, 64 << 20)
        self.assertEqual(before["reserved"], held)
        device_memory.free(device_memory.allocate(48 << 20, kind="cpu"))
        self.assertEqual(device_memory.statistics(kind="cpu")["misses"], before["misses"])
        self.assertEqual(device_memory.grow_to(1, kind="cpu"), held)
        with self.assertRaises(MisuseError):
            device_memory.grow_to(-1, kind="cpu")
        device_memory.set_limit(80 << 20, kind="cpu")
        try:
            with self.assertRaises(OutOfMemory):
                device_memory.grow_to(81 << 20, kind="cpu")
        finally:
            device_memory.set_limit(None, kind="cpu")
        device_memory.empty_cache(kind="cpu")

    def test_statistics_and_snapshot_agree(self):
        pointers = [device_memory.allocate(size, kind="cpu", stream=size) for size in (10, 100_000, 5 << 20)]
        snapshot = device_memory.snapshot(kind="cpu")
        found = {block["address"]: block["size"] for block in snapshot["blocks"]}
        self.assertEqual([found[pointer] for pointer in pointers], [10, 100_000, 5 << 20])
        self.assertEqual(sum(found.values()), snapshot["statistics"]["allocated"])
        self.assertEqual(len(found), snapshot["statistics"]["block_count"])
        device_memory.reset_peaks(kind="cpu")
        figures = device_memory.statistics(kind="cpu")
        self.assertEqual(figures["allocated"], figures["allocated_peak"])
        for pointer in pointers:
            device_memory.free(pointer)
        device_memory.empty_cache(kind="cpu")
        self.assertLess(device_memory.statistics(kind="cpu")["reserved"], figures["reserved"])

    def test_figures_of_no_device_fail_as_all_else_does(self):
        for function in (device_memory.statistics, device_memory.snapshot, device_memory.get_limit):
            for device, kind, error, status in ((5, "cpu", MisuseError, 2), (31, "cuda", Unavailable, 7)):
                with self.subTest(f"{function.__name__} {kind}"), self.assertRaises(error) as caught:
                    function(device, kind)
                self.assertEqual(caught.exception.status, status)

    def test_a_library_that_is_another_is_refused(self):
        for path in ("libc.so.6", "/nowhere/libdevice_memory.so"):
            with mock.patch.dict(os.environ, {_library.LIBRARY_VARIABLE: path}):
                with mock.patch.object(_library, "_loaded", None), self.assertRaises(Unavailable):
                    _library.library()

    def test_pools_are_open_once_they_are_used(self):
        pointer = device_memory.allocate(1, kind="cpu")
        self.assertTrue(device_memory.is_open(kind="cpu"))
        device_memory.free(pointer)

    def test_without_cupy_both_ways_say_so(self):
        with mock.patch.dict(sys.modules, {"cupy": None}):
            for function in (device_memory.enable_cupy, device_memory.disable_cupy):
                with self.subTest(function.__name__), self.assertRaisesRegex(Unavailable, "CuPy is not installed"):
                    function()

    def test_a_long_snapshot_is_whole(self):
        pointers = [device_memory.allocate(64, kind="cpu") for _ in range(2000)]
        self.assertGreaterEqual(len(device_memory.snapshot(kind="cpu")["blocks"]), 2000)
        for pointer in pointers:
            device_memory.free(pointer)

    def test_threads_have_texts_of_their_own(self):
        with self.assertRaises(MisuseError):
            device_memory.free(0x1200)
        thread = threading.Thread(target=lambda: self.assertRaises(MisuseError, device_memory.free, 0x3400))
        thread.start()
        thread.join()
        self.assertIn("0x1200", device_memory._library.last_error())

    def test_streams_are_recorded_and_retired(self):
        pointer = device_memory.allocate(1 << 20, kind="cpu", stream=3)
        device_memory.record_stream(pointer, 4)
        device_memory.free(pointer, stream=5)
        device_memory.retire_stream(3, kind="cpu")


if __name__ == "__main__":
    unittest.main()
