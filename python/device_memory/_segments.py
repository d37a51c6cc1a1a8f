"""Our snapshots in the form of PyTorch's: segments, and the blocks in each."""

from bisect import bisect_left
from typing import Any, Dict, Iterator, List, Tuple

#: PyTorch's name of the memory that belongs to no pool of the program's.
_NO_POOL = (0, 0)


def _block(address: int, size: int, requested: int, state: str) -> Dict[str, Any]:
    return {"address": address, "size": size, "requested_size": requested, "state": state, "frames": []}


def _slots(piece: Dict[str, Any], requested: Dict[int, int]) -> Iterator[Dict[str, Any]]:
    """Each slot that somebody has, or that waits for other streams; the others as far as they are side by side."""
    size, idle = piece["slot_size"], None
    for place, letter in enumerate(piece["slots"]):
        address = piece["address"] + place * size
        if letter in "up":
            if idle is not None:
                yield idle
                idle = None
            state = "active_allocated" if letter == "u" else "active_pending_free"
            yield _block(address, size, requested.get(address, size), state)
        elif idle is None:
            idle = _block(address, size, 0, "inactive")
        else:
            idle["size"] += size
    if idle is not None:
        yield idle


def _blocks(piece: Dict[str, Any], requested: Dict[int, int]) -> List[Dict[str, Any]]:
    kind, address, size = piece["kind"], piece["address"], piece["size"]
    if kind == "slab":
        return list(_slots(piece, requested))
    if kind == "block":
        return [_block(address, size, piece["requested"], "active_allocated")]
    # Free memory that several streams used is nobody's until all of them are done with it, as what is parked is.
    if kind == "parked" or len(piece.get("users", ())) > 1:
        # The viewer takes what nobody asked for of such a block for rounding.
        return [_block(address, size, piece.get("requested", size), "active_pending_free")]
    return [_block(address, size, 0, "inactive")]


def _segment(device: int, pool: Tuple[int, int], blocks: List[Dict[str, Any]], kind: str, stream: int) -> Dict[str, Any]:
    def total(key: str, *states: str) -> int:
        return sum(block[key] for block in blocks if block["state"] in states)

    return {
        "device": device,
        "address": blocks[0]["address"],
        "stream": stream,
        "total_size": sum(block["size"] for block in blocks),
        "allocated_size": total("size", "active_allocated"),
        "active_size": total("size", "active_allocated", "active_pending_free"),
        "requested_size": total("requested_size", "active_allocated", "active_pending_free"),
        "segment_type": kind,
        "segment_pool_id": pool,
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }


def _stream_of(pieces: List[Dict[str, Any]]) -> int:
    """Most of whose memory it is: PyTorch has a stream for a segment, our pool one for each block."""
    sizes: Dict[int, int] = {}
    for piece in pieces:
        stream = piece.get("stream")
        if stream is not None:
            sizes[stream] = sizes.get(stream, 0) + piece["size"]
    return max(sizes, key=lambda stream: (sizes[stream], -stream), default=0)


def _of_arenas(
    device: int, pool: Tuple[int, int], arenas: Any, requested: Dict[int, int], elsewhere: List[Tuple[int, int]]
) -> Iterator[Dict[str, Any]]:
    """A segment for each run, but for the blocks that are ``elsewhere``, at which runs are cut."""
    for run in (run for arena in arenas for run in arena["runs"]):
        parts: List[List[Dict[str, Any]]] = [[]]
        for piece in run["pieces"]:
            if piece["kind"] == "block" and _overlaps(piece, elsewhere):
                parts.append([])
            else:
                parts[-1].append(piece)
        for pieces in filter(None, parts):
            kind = "small" if any(piece["kind"] == "slab" for piece in pieces) else "large"
            blocks = [block for piece in pieces for block in _blocks(piece, requested)]
            yield _segment(device, pool, blocks, kind, _stream_of(pieces))


def _overlaps(piece: Dict[str, Any], ranges: List[Tuple[int, int]]) -> bool:
    """Whether it meets one of the ranges, which are in the order of addresses and apart from each other."""
    start, end = piece["address"], piece["address"] + piece["size"]
    before_its_end = bisect_left(ranges, (end,))
    return before_its_end > 0 and ranges[before_its_end - 1][1] > start


def _of_blocks(device: int, blocks: List[Dict[str, Any]]) -> Iterator[Dict[str, Any]]:
    """The living blocks alone, each as a segment: of a program's own allocator no more is known."""
    for block in blocks:
        held = _block(block["address"], block["size"], block["size"], "active_allocated")
        yield _segment(device, tuple(block["pool"]), [held], "large", block["stream"])


def of(snapshot: Dict[str, Any], device: int, wanted: Tuple[int, int] = _NO_POOL) -> List[Dict[str, Any]]:
    """The segments of a snapshot of ours, or those of one private pool: each run of addresses that have memory is one."""
    if snapshot.get("arenas") is None:
        segments = _of_blocks(device, snapshot["blocks"])
    else:
        requested = {block["address"]: block["size"] for block in snapshot["blocks"]}
        private = {tuple(pool["pool"]): pool["arenas"] for pool in snapshot["private_pools"]}
        runs = [run for arenas in private.values() for arena in arenas for run in arena["runs"]]
        # What a private pool has is a block of the device's own, too.
        elsewhere = sorted((run["address"], run["address"] + run["size"]) for run in runs)
        named = [(_NO_POOL, snapshot["arenas"], elsewhere), *((name, arenas, []) for name, arenas in private.items())]
        segments = (
            segment
            for name, arenas, others in named
            for segment in _of_arenas(device, name, arenas, requested, others)
        )
    found = (segment for segment in segments if wanted in (_NO_POOL, segment["segment_pool_id"]))
    return sorted(found, key=lambda segment: segment["address"])
