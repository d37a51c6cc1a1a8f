//! What it costs that other devices have access: nothing on a warm pool, and what the driver takes when pages are made.

use std::cell::Cell;
use std::hint::black_box;
use std::time::{Duration, Instant};

use alloc_core::{DeviceAllocator, Layout, StreamSet};
use alloc_cuda::{CudaStream, DeviceOptions};
use alloc_pool::PoolConfig;
use anyhow::ensure;
use benches::timing::Effort;

use crate::{Bench, are_peers};

pub(crate) fn run(bench: &Bench) -> anyhow::Result<()> {
    let peers: Vec<u16> = (1..bench.count).filter(|other| are_peers(0, *other)).collect();
    if peers.is_empty() {
        bench.say("hot path: open pools are left out, as device 0 has no peer");
    }
    let stream = CudaStream::new(0)?;
    let closed = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default())?;
    let open = alloc_cuda::device_pool(0, &DeviceOptions::default().peers(peers.clone()), PoolConfig::default())?;
    let effort = Effort { rounds: if bench.options.quick { 15 } else { 101 }, round: Duration::from_millis(4) };
    for bytes in [4096, 1 << 20, 64 << 20] {
        let failed = Cell::new(false);
        let layout = Layout::bytes(bytes)?;
        let pairs = |pool: &dyn DeviceAllocator, units: u64| {
            for _ in 0..units {
                let Ok(block) = pool.allocate(layout, stream.stream()) else {
                    failed.set(true);
                    return;
                };
                // SAFETY: nobody uses the block.
                let released = unsafe { pool.release(black_box(block), stream.stream(), StreamSet::EMPTY) };
                failed.set(failed.get() || released.is_err());
            }
        };
        let reference = effort.ns_per_unit(|units| pairs(&*closed, units)) * 1e-9;
        bench.note("hot path", ("allocate and release, warm", "closed"), bytes, reference, (None, None))?;
        if !peers.is_empty() {
            let ratio = effort.ratio(|units| pairs(&*open, units), |units| pairs(&*closed, units));
            let case = ("allocate and release, warm", "open to all peers");
            bench.note("hot path", case, bytes, reference * ratio, (None, Some(reference)))?;
        }
        ensure!(!failed.get(), "an allocation failed");
    }
    // Pages anew: create, map, give access, and all of it back.
    let cold = [(&closed, "closed"), (&open, "open to all peers")];
    let bytes = 256 << 20;
    let times = bench.turns::<2>(|who| {
        let pool = cold[who].0;
        pool.trim(0);
        let start = Instant::now();
        let block = pool.allocate(Layout::bytes(bytes)?, stream.stream())?;
        let taken = start.elapsed().as_secs_f64();
        // SAFETY: nobody uses the block.
        unsafe { pool.release(block, stream.stream(), StreamSet::EMPTY) }?;
        Ok(taken)
    })?;
    for (who, seconds) in times.into_iter().enumerate().filter(|(who, _)| *who == 0 || !peers.is_empty()) {
        let reference = (who > 0).then_some(times[0]);
        bench.note("hot path", ("allocate, cold", cold[who].1), bytes, seconds, (None, reference))?;
    }
    Ok(())
}
