//! Where the reserved bytes of a pool are when it holds the most, trace by trace, in percent of the peak of live bytes.
//!
//! `cargo run --release -p benches --example bytes [TRACE...]`

use std::io::Write;
use std::path::PathBuf;

use alloc_core::{DeviceAllocator, Layout, StreamSet};
use alloc_pool::Breakdown;
use alloc_trace::OperationKind;
use anyhow::ensure;
use benches::allocators::host_pool;
use benches::table::Table;
use benches::traces::{self, Extent, NamedTrace};

fn main() -> anyhow::Result<()> {
    let mut paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    if paths.is_empty() {
        paths = traces::shipped()?;
    }
    let parts = ["reserved", "live", "units", "classes", "slots", "in pages", "in pieces", "pieces"];
    let mut table = Table::new("Percent of peak live, when the most is reserved", ["trace"].into_iter().chain(parts));
    for path in paths {
        let trace = NamedTrace::load(&path, Extent::Whole)?;
        let most = at_the_peak(&trace)?;
        let Breakdown { reserved, requested, rounding_of_large, rounding_of_small, .. } = most;
        let free = [most.slots, most.within_pages, most.within_pieces, most.free_pieces];
        let sum = requested + rounding_of_large + rounding_of_small + free.iter().sum::<u64>();
        ensure!(sum == reserved, "the parts of {most:?} don't add up");
        let percent = |bytes: u64| format!("{:.2}", bytes as f64 / trace.peak_live as f64 * 100.0);
        let figures = [reserved, requested, rounding_of_large, rounding_of_small].into_iter().chain(free);
        table.row([trace.name.clone()].into_iter().chain(figures.map(percent)));
    }
    write!(std::io::stdout().lock(), "{table}")?;
    Ok(())
}

/// Replays the trace once; where the bytes were when they last rose to a new peak.
fn at_the_peak(trace: &NamedTrace) -> anyhow::Result<Breakdown> {
    let pool = host_pool(trace.peak_live, false)?;
    let mut blocks = vec![None; trace.trace.blocks().len()];
    let mut most = Breakdown::default();
    let mut created = 0;
    for operation in trace.trace.operations() {
        let index = operation.block as usize;
        let bytes = trace.trace.blocks()[index].bytes;
        let stream = trace.trace.streams()[operation.stream as usize];
        match operation.kind {
            OperationKind::Allocate => {
                blocks[index] = Some(pool.allocate(Layout::bytes(bytes)?, stream)?);
                let now = pool.statistics();
                if now.provider_calls.create != created {
                    created = now.provider_calls.create;
                    if now.reserved.current > most.reserved {
                        most = pool.breakdown();
                    }
                }
            }
            OperationKind::Release => {
                if let Some(block) = blocks[index].take() {
                    // SAFETY: the block is released once, and no work is submitted.
                    unsafe { pool.release(block, stream, StreamSet::EMPTY)? };
                }
            }
        }
    }
    Ok(most)
}
