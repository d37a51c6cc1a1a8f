//! Statistics and snapshots: as a struct for C, and as JSON for everybody.

use alloc_core::{Gauge, Snapshot};
use serde_json::{Value, json};

use crate::arenas::{self, Living};
use crate::heaps::{self, Heap};
use crate::index::{Entry, INDEX, Owner};
use crate::memory::device_of;

/// The figures of a device's pool, in bytes except where a name says otherwise. New fields are added at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::NoUninit)]
#[repr(C)]
#[non_exhaustive]
pub struct Statistics {
    /// Bytes that callers hold.
    pub allocated: u64,
    /// The most they have held, exactly.
    pub allocated_peak: u64,
    /// The sum of all that was allocated.
    pub allocated_total: u64,
    /// Number of allocations.
    pub allocation_count: u64,
    /// Bytes that callers hold, with the rounding of the pool; memory of private pools counts as a whole.
    pub in_use: u64,
    /// The most of that.
    pub in_use_peak: u64,
    /// Physical memory held from the device.
    pub reserved: u64,
    /// The most of that.
    pub reserved_peak: u64,
    /// Freed small blocks that wait in the caches of threads.
    pub cached: u64,
    /// Freed blocks that wait for work on other streams.
    pub parked: u64,
    /// The most of that.
    pub parked_peak: u64,
    /// The largest block that can be served without a call to the device.
    pub largest_free: u64,
    /// Bytes never to be reused, since the end of their work can't be known.
    pub leaked: u64,
    /// Number of allocations served by the cache of a thread.
    pub hits: u64,
    /// Number of times that no free memory fitted an allocation; one that is tried again, as memory runs out, counts each time.
    pub misses: u64,
    /// Number of times that pages were moved to another address.
    pub moves: u64,
    /// Number of frees that were refused by the pool.
    pub rejected_frees: u64,
    /// Number of calls to the device's driver that manage memory.
    pub memory_calls: u64,
    /// Number of all calls to it.
    pub calls: u64,
    /// The most physical memory to hold; 0 for no limit.
    pub limit: u64,
    /// Free memory of the device; 0 where that is not known.
    pub device_free: u64,
    /// All memory of the device; 0 where that is not known.
    pub device_total: u64,
    /// Number of blocks that callers hold.
    pub block_count: u64,
    /// Number of allocations that failed for want of memory.
    pub failure_count: u64,
}

impl Statistics {
    pub(crate) fn of(heap: &Heap) -> Self {
        // First, as they lack what is in the figures by then.
        let [bytes, requests] = heap.live.lacking();
        let figures = heap.allocator().statistics();
        let memory = heap.memory();
        Self {
            allocated: heap.live.current(),
            allocated_peak: heap.live.peak(),
            allocated_total: figures.requested.total.saturating_add_signed(bytes),
            allocation_count: figures.requested.count.saturating_add_signed(requests),
            in_use: figures.in_use.current,
            in_use_peak: figures.in_use.peak,
            reserved: figures.reserved.current,
            reserved_peak: figures.reserved.peak,
            cached: figures.cached,
            parked: figures.parked.current,
            parked_peak: figures.parked.peak,
            largest_free: figures.largest_free,
            leaked: figures.leaked,
            hits: figures.hits,
            misses: figures.misses,
            moves: figures.moves,
            rejected_frees: figures.rejected_releases,
            memory_calls: figures.provider_calls.memory(),
            calls: figures.provider_calls.all(),
            limit: heap.limit().unwrap_or(0),
            device_free: memory.map_or(0, |memory| memory.free),
            device_total: memory.map_or(0, |memory| memory.total),
            block_count: heap.live.blocks(),
            failure_count: heap.live.failures(),
        }
    }
}

fn gauge(gauge: &Gauge) -> Value {
    json!({ "current": gauge.current, "peak": gauge.peak, "total": gauge.total, "count": gauge.count })
}

/// The figures as JSON: those of [`Statistics`] by its names, and the pool's own gauges under `pool`.
pub(crate) fn statistics_json(heap: &Heap) -> String {
    let flat = Statistics::of(heap);
    let figures = heap.allocator().statistics();
    let calls = figures.provider_calls;
    json!({
        "device": heap.device.to_string(),
        "allocated": flat.allocated,
        "allocated_peak": flat.allocated_peak,
        "allocated_total": flat.allocated_total,
        "allocation_count": flat.allocation_count,
        "in_use": flat.in_use,
        "in_use_peak": flat.in_use_peak,
        "reserved": flat.reserved,
        "reserved_peak": flat.reserved_peak,
        "cached": flat.cached,
        "parked": flat.parked,
        "parked_peak": flat.parked_peak,
        "largest_free": flat.largest_free,
        "leaked": flat.leaked,
        "hits": flat.hits,
        "misses": flat.misses,
        "moves": flat.moves,
        "rejected_frees": flat.rejected_frees,
        "memory_calls": flat.memory_calls,
        "calls": flat.calls,
        "limit": heap.limit(),
        "device_free": heap.memory().map(|memory| memory.free),
        "block_count": flat.block_count,
        "failure_count": flat.failure_count,
        "device_total": heap.memory().map(|memory| memory.total),
        "pool": {
            "requested": gauge(&figures.requested),
            "in_use": gauge(&figures.in_use),
            "reserved": gauge(&figures.reserved),
            "parked": gauge(&figures.parked),
            "calls": {
                "reserve": calls.reserve, "create": calls.create, "map": calls.map, "unmap": calls.unmap,
                "release": calls.release, "record": calls.record, "query": calls.query, "wait": calls.wait,
            },
        },
    })
    .to_string()
}

/// PyTorch's name of the private pool that an owner is; zeros for a heap.
fn pool_of(owner: Owner) -> [u64; 2] {
    #[cfg(feature = "cuda")]
    if let Some((first, second)) = crate::torch::id_of(owner) {
        return [first, second];
    }
    let _ = owner;
    [0; 2]
}

fn block_json((entry, pool): &(Entry, [u64; 2])) -> Value {
    json!({
        "address": entry.block.address().get(),
        "size": entry.block.size(),
        "stream": entry.stream.handle(),
        "private_pool": entry.owner >= heaps::POOLS,
        "pool": pool,
        "shared": entry.shared,
    })
}

/// The living blocks of a device in the order of addresses, where its memory is, and its figures, as JSON.
pub(crate) fn snapshot_json(heap: &Heap) -> String {
    let pool = heap.snapshot();
    let private = private_snapshots(heap);
    let mut blocks = Vec::new();
    INDEX.for_each(|entry| {
        if device_of(entry.owner) == Some(heap.device) {
            // Now, as its pool may go before all is written.
            let pool = pool_of(entry.owner);
            blocks.push((entry, pool));
        }
    });
    let living: Living = blocks.iter().map(|(entry, _)| entry.block.address().get()).collect();
    let mut text = format!("{{\"device\":{},\"statistics\":{},", json!(heap.device.to_string()), statistics_json(heap));
    match pool {
        Some(pool) => arenas::write(&mut text, &pool, &living),
        None => text.push_str("\"arenas\":null"),
    }
    text.push_str(",\"private_pools\":");
    arenas::write_list(&mut text, &private, |text, (id, snapshot)| {
        *text += &format!("{{\"pool\":{},", json!(id));
        arenas::write(text, snapshot, &living);
        text.push('}');
    });
    text.push_str(",\"blocks\":");
    arenas::write_list(&mut text, &blocks, |text, block| *text += &block_json(block).to_string());
    text.push('}');
    text
}

/// Where the memory of the device's private pools is, and PyTorch's names of them.
pub(crate) fn private_snapshots(heap: &Heap) -> Vec<([u64; 2], Snapshot)> {
    #[cfg(feature = "cuda")]
    if heap.device.kind() == alloc_core::DeviceKind::CUDA {
        let named = |((first, second), snapshot)| ([first, second], snapshot);
        return crate::torch::snapshots(heap.device.ordinal()).into_iter().map(named).collect();
    }
    let _ = heap;
    Vec::new()
}
