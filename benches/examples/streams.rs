//! What a pair of calls takes where many streams allocate and release in turn, on a provider that only keeps books: of streams that
//! are idle whenever they are asked, and of such as always have work.
//!
//! `cargo run --release -p benches --example streams [STREAMS...]`

use std::io::Write;
use std::time::Instant;

use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
use alloc_core::{DeviceAllocator, Layout, Stream};
use alloc_pool::{Pool, PoolConfig};
use anyhow::Error;
use benches::table::Table;
use benches::workload::release;

const STREAMS: [u64; 6] = [16, 63, 64, 100, 200, 500];
const SIZES: [(&str, u64); 2] = [("64 B", 64), ("1 MiB", 1 << 20)];
/// Rounds in which each stream comes once, before it counts and then.
const WARM: u64 = 4;
const ROUNDS: u64 = 20;
const PASSES: usize = 3;

fn main() -> anyhow::Result<()> {
    let mut header = vec!["streams".to_owned()];
    for (size, _) in SIZES {
        header.extend(["idle", "busy"].map(|state| format!("{size}, {state}")));
    }
    let mut table = Table::new("Nanoseconds for a pair of calls, and questions asked in it", header);
    let mut counts = std::env::args().skip(1).map(|count| count.parse()).collect::<Result<Vec<u64>, _>>()?;
    if counts.is_empty() {
        counts.extend(STREAMS);
    }
    for streams in counts {
        let mut row = vec![streams.to_string()];
        for (_, bytes) in SIZES {
            for are_busy in [false, true] {
                let mut passes = (0..PASSES).map(|_| pass(streams, bytes, are_busy)).collect::<Result<Vec<_>, _>>()?;
                passes.sort_by(|one, other| one.0.total_cmp(&other.0));
                let (nanoseconds, questions) = passes[PASSES / 2];
                row.push(format!("{nanoseconds:.0}, {questions:.2}"));
            }
        }
        table.row(row);
    }
    write!(std::io::stdout().lock(), "{table}")?;
    Ok(())
}

/// Nanoseconds and questions for each pair. Streams that are busy have memory of their own, as all had a block at the same time.
fn pass(streams: u64, bytes: u64, are_busy: bool) -> anyhow::Result<(f64, f64)> {
    let provider = SimulatedProvider::new(SimulatedConfig { capacity: 1 << 40, ..SimulatedConfig::default() });
    let pool = Pool::new(provider.clone(), PoolConfig::default())?;
    let layout = Layout::bytes(bytes)?;
    let all = || (1..=streams).map(Stream::from_raw);
    if are_busy {
        let blocks = all().map(|stream| pool.allocate(layout, stream)).collect::<Result<Vec<_>, _>>()?;
        for (block, stream) in blocks.into_iter().zip(all()) {
            // Work that never comes to its end.
            provider.submit(stream, block.address(), block.size());
            release(&pool, block, stream)?;
        }
    }
    let round =
        || all().try_for_each(|stream| release(&pool, pool.allocate(layout, stream)?, stream).map_err(Error::from));
    (0..WARM).try_for_each(|_| round())?;
    let before = provider.calls().query;
    let start = Instant::now();
    (0..ROUNDS).try_for_each(|_| round())?;
    let pairs = (ROUNDS * streams) as f64;
    let nanoseconds = start.elapsed().as_nanos() as f64 / pairs;
    Ok((nanoseconds, (provider.calls().query - before) as f64 / pairs))
}
