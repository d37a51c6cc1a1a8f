"""Our snapshots as PyTorch's memory viewer reads them."""

import random
import unittest

import device_memory
from device_memory import _segments

#: What the viewer asks of a segment and of a block.
SEGMENT = {
    "device",
    "address",
    "stream",
    "total_size",
    "allocated_size",
    "active_size",
    "requested_size",
    "segment_type",
    "segment_pool_id",
    "is_expandable",
    "frames",
    "blocks",
}
BLOCK = {"address", "size", "requested_size", "state", "frames"}
STATES = {"active_allocated", "active_pending_free", "inactive"}


def piece(kind, address, size, **more):
    return {"kind": kind, "address": address, "size": size, **more}


def snapshot(runs, private=(), blocks=()):
    def arenas(runs):
        runs = [{"address": run[0]["address"], "size": sum(p["size"] for p in run), "pieces": run} for run in runs]
        return [{"index": 0, "runs": runs}]

    pools = [{"pool": name, "arenas": arenas(of)} for name, of in private]
    return {"arenas": arenas(runs), "private_pools": pools, "blocks": list(blocks)}


class Segments(unittest.TestCase):
    def check(self, segments):
        """PyTorch's viewer takes blocks to fill their segment, one after the other."""
        ends = 0
        for segment in segments:
            self.assertEqual(segment.keys(), SEGMENT)
            self.assertGreaterEqual(segment["address"], ends)
            end = segment["address"]
            sums = {state: 0 for state in STATES}
            for block in segment["blocks"]:
                self.assertEqual(block.keys(), BLOCK)
                self.assertEqual(block["address"], end)
                self.assertGreaterEqual(block["size"], max(block["requested_size"], 1))
                end += block["size"]
                sums[block["state"]] += block["size"]
            self.assertEqual(end - segment["address"], segment["total_size"])
            self.assertEqual(sums["active_allocated"], segment["allocated_size"])
            self.assertEqual(sums["active_allocated"] + sums["active_pending_free"], segment["active_size"])
            self.assertLessEqual(segment["requested_size"], segment["active_size"])
            self.assertIn(segment["segment_type"], ("small", "large"))
            ends = end

    def test_a_living_pool_is_shown_as_it_is(self):
        numbers = random.Random(3)
        sizes = [numbers.choice((numbers.randrange(1, 65_000), numbers.randrange(1, 3 << 20))) for _ in range(400)]
        pointers = {device_memory.allocate(size, kind="cpu", stream=1 + size % 3): size for size in sizes}
        for pointer in list(pointers)[::3]:
            device_memory.free(pointer)
            del pointers[pointer]
        ours = device_memory.snapshot(kind="cpu")
        segments = _segments.of(ours, 0)
        self.check(segments)
        held = {}
        for block in (block for segment in segments for block in segment["blocks"]):
            if block["state"] == "active_allocated":
                held[block["address"]] = block["requested_size"]
        self.assertEqual(held, {block["address"]: block["size"] for block in ours["blocks"]})
        self.assertEqual({pointer: held[pointer] for pointer in pointers}, pointers)
        total = sum(segment["total_size"] for segment in segments)
        self.assertEqual(total + ours["unplaced"] + ours["lost"], ours["statistics"]["reserved"])
        self.assertEqual({segment["segment_type"] for segment in segments}, {"small", "large"})
        self.assertLess(len(segments), 20, "a run of addresses is one segment")
        for pointer in pointers:
            device_memory.free(pointer)

    def test_each_piece_has_its_state(self):
        run = [
            piece("block", 4096, 1024, requested=1000, stream=7),
            piece("parked", 5120, 512, requested=500, stream=7),
            piece("free", 5632, 512, users=[]),
            piece("free", 6144, 512, users=[7]),
            piece("free", 6656, 512, users=[7, 8]),
            piece("slab", 7168, 8 * 512, slot_size=512, slots="uftcpuff", stream=8),
            piece("unknown", 11264, 512),
        ]
        ours = snapshot([run], blocks=[{"address": 7168, "size": 3}, {"address": 7168 + 5 * 512, "size": 512}])
        (segment,) = _segments.of(ours, 4)
        self.check([segment])
        found = [(b["address"], b["size"], b["requested_size"], b["state"]) for b in segment["blocks"]]
        allocated, pending, inactive = "active_allocated", "active_pending_free", "inactive"
        expected = [
            (4096, 1024, 1000, allocated),
            (5120, 512, 500, pending),
            (5632, 512, 0, inactive),
            (6144, 512, 0, inactive),
            (6656, 512, 512, pending),
            (7168, 512, 3, allocated),
            (7680, 3 * 512, 0, inactive),
            (9216, 512, 512, pending),
            (9728, 512, 512, allocated),
            (10240, 1024, 0, inactive),
            (11264, 512, 0, inactive),
        ]
        self.assertEqual(found, expected)
        self.assertEqual((segment["device"], segment["stream"]), (4, 8), "most of it is the second stream's")
        self.assertEqual(segment["requested_size"], 1000 + 3 + 512 + 500 + 512 + 512, "of what waits, too")

    def test_what_a_private_pool_has_is_there_once(self):
        around = piece("block", 8192, 4096, requested=4096, stream=0)
        before, after = piece("free", 4096, 4096, users=[]), piece("free", 12288, 4096, users=[])
        inside = [piece("block", 8192, 1024, requested=1024, stream=5), piece("free", 9216, 1024, users=[])]
        ours = snapshot([[before, around, after]], private=[([0, 77], [inside])])
        segments = _segments.of(ours, 0)
        self.check(segments)
        found = [(s["address"], s["total_size"], s["segment_pool_id"]) for s in segments]
        self.assertEqual(found, [(4096, 4096, (0, 0)), (8192, 2048, (0, 77)), (12288, 4096, (0, 0))])
        self.assertEqual([s["address"] for s in _segments.of(ours, 0, (0, 77))], [8192])
        self.assertEqual(_segments.of(ours, 0, (0, 78)), [])

    def test_of_many_private_pools_each_block_is_found(self):
        block = lambda place: piece("block", place << 12, 4096, requested=4096, stream=0)
        # Each third block is a pool's, told from the last to the first.
        private = [([0, place], [[block(place)]]) for place in range(3, 60, 3)]
        ours = snapshot([[block(place) for place in range(1, 60)]], private=private[::-1])
        segments = _segments.of(ours, 0)
        self.check(segments)
        found = {s["address"] >> 12: (s["total_size"] >> 12, s["segment_pool_id"]) for s in segments}
        own = {place: (2, (0, 0)) for place in range(1, 60, 3)}
        self.assertEqual(found, {**own, **{place: (1, (0, place)) for place in range(3, 60, 3)}})

    def test_of_another_allocator_the_blocks_are_shown(self):
        block = {"address": 4096, "size": 100, "stream": 3, "pool": [0, 0]}
        ours = {"arenas": None, "private_pools": [], "blocks": [block]}
        segments = _segments.of(ours, 1)
        self.check(segments)
        self.assertEqual([(s["address"], s["total_size"], s["stream"]) for s in segments], [(4096, 100, 3)])
        self.assertEqual(_segments.of(ours, 1, (0, 9)), [])


if __name__ == "__main__":
    unittest.main()
