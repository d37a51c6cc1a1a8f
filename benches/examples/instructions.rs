//! One operation of the pool again and again, for a profiler that counts instructions, or timed.
//!
//! `instructions CASE COUNT` does it; what a run with twice the count has more is the operation's. `instructions CASE
//! COUNT --time` tells the nanoseconds of the fastest of 200 rounds.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use alloc_core::{Block, DeviceAllocator, Layout, Stream};
use alloc_cpu::HostProvider;
use alloc_pool::Pool;
use alloc_trace::Replay;
use anyhow::{Context, anyhow, bail};
use benches::allocators::{NullAllocator, host_pool};
use benches::traces::{self, Extent, NamedTrace};
use benches::workload::{Churn, Churning, OffsetChurning, pairs, release};

const MIB: u64 = 1 << 20;
/// Blocks in a wave or a batch.
const WAVE: usize = 128;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "instructions CASE COUNT [--time]";
    let case = arguments.next().context(usage)?;
    let count: u64 = arguments.next().context(usage)?.parse()?;
    let rounds = if arguments.next().is_some() { 200 } else { 1 };
    let fastest = run(&case, count, rounds)?;
    if rounds > 1 {
        writeln!(std::io::stdout(), "{case}: {fastest:.2} ns")?;
    }
    Ok(())
}

/// The nanoseconds for one operation in the fastest round.
fn fastest(rounds: u32, count: u64, mut work: impl FnMut(u64) -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut least = f64::INFINITY;
    for _ in 0..rounds {
        let start = Instant::now();
        work(count)?;
        least = least.min(start.elapsed().as_secs_f64() * 1e9 / count as f64);
    }
    Ok(least)
}

fn run(case: &str, count: u64, rounds: u32) -> anyhow::Result<f64> {
    let pool = |bytes| host_pool(bytes, false);
    match case {
        "floor-array" => fastest(rounds, count, |count| {
            (0..count).for_each(|_| pop_and_push());
            Ok(())
        }),
        "floor-lock" => fastest(rounds, count, |count| {
            let lock = AtomicBool::new(false);
            for _ in 0..count {
                black_box(black_box(&lock).swap(true, Ordering::Acquire));
                black_box(&lock).store(false, Ordering::Release);
            }
            Ok(())
        }),
        "null" => {
            let (null, layout) = (NullAllocator::default(), Layout::bytes(512)?);
            fastest(rounds, count, |count| Ok(pairs(&null, layout, count)?))
        }
        "small" => pair(&pool(MIB)?, 512, rounds, count),
        "resting" => pair(&pool(64 * MIB)?, 20 * MIB, rounds, count),
        "waves-null" => waves(&NullAllocator::default(), 512, rounds, count),
        "waves" => waves(&pool(MIB)?, 512, rounds, count),
        "large-null" => churn(&NullAllocator::default(), &only_large(), rounds, count),
        "large" => churn(&pool(only_large().most_bytes())?, &only_large(), rounds, count),
        "churn-null" => churn(&NullAllocator::default(), &Churn::large(), rounds, count),
        "churn" => churn(&pool(Churn::large().most_bytes())?, &Churn::large(), rounds, count),
        "churn-offsets" => {
            let mut offsets = OffsetChurning::start(&Churn::large()).context("the churn does not fit in 32 bits")?;
            fastest(rounds, count, |count| if offsets.steps(count) { Ok(()) } else { bail!("full") })
        }
        "handed-over" => handed_over(&pool(256 * MIB)?, 512, rounds, count),
        "handed-over-large" => handed_over(&pool(256 * MIB)?, 128 << 10, rounds, count),
        "growing" => {
            let (pool, layout) = (pool(count * 16 * MIB)?, Layout::bytes(16 * MIB)?);
            fastest(1, count, |count| {
                (0..count).try_for_each(|_| pool.allocate(layout, Stream::DEFAULT).map(|_| ()))?;
                Ok(())
            })
        }
        name => {
            let path = traces::shipped()?.into_iter().find(|path| path.to_string_lossy().contains(name));
            let trace = NamedTrace::load(&path.ok_or_else(|| anyhow!("no case or trace {name}"))?, Extent::Whole)?;
            let pool = pool(trace.peak_live)?;
            let reports = Replay::new(&trace.trace).passes(u32::try_from(count)?).run(&pool)?;
            for report in &reports {
                writeln!(std::io::stdout(), "{report:?}")?;
            }
            Ok(reports.iter().map(alloc_trace::PassReport::ns_per_operation).fold(f64::INFINITY, f64::min))
        }
    }
}

thread_local! {
    static KEPT: RefCell<(usize, [u64; 32])> = const { RefCell::new((16, [0; 32])) };
}

/// What a thread cache can't do without: a block out of an array of the thread's own, and back.
#[inline(never)]
fn pop_and_push() {
    let block = KEPT.with_borrow_mut(|(len, blocks)| {
        *len -= 1;
        blocks[*len & 31]
    });
    let block = black_box(block);
    KEPT.with_borrow_mut(|(len, blocks)| {
        blocks[*len & 31] = block;
        *len += 1;
    });
}

fn pair(pool: &Pool<HostProvider>, bytes: u64, rounds: u32, count: u64) -> anyhow::Result<f64> {
    let layout = Layout::bytes(bytes)?;
    fastest(rounds, count, |count| Ok(pairs(pool, layout, count)?))
}

/// All blocks of a wave are allocated, then all are released: more than a cache keeps.
fn waves<A: DeviceAllocator>(allocator: &A, bytes: u64, rounds: u32, count: u64) -> anyhow::Result<f64> {
    let layout = Layout::bytes(bytes)?;
    let mut wave = Vec::with_capacity(WAVE);
    fastest(rounds, count, |count| {
        for _ in 0..count / WAVE as u64 {
            for _ in 0..WAVE {
                wave.push(allocator.allocate(layout, Stream::DEFAULT)?);
            }
            for block in wave.drain(..) {
                release(allocator, block, Stream::DEFAULT)?;
            }
        }
        Ok(())
    })
}

/// The churn without small blocks.
fn only_large() -> Churn {
    Churn::new(1, 2000, 100_000, (64 << 10) + 1, 16 << 20)
}

fn churn<A: DeviceAllocator>(allocator: &A, churn: &Churn, rounds: u32, count: u64) -> anyhow::Result<f64> {
    let mut churning = Churning::start(allocator, Stream::DEFAULT, churn)?;
    fastest(rounds, count, |count| Ok(churning.steps(count)?))
}

/// One thread allocates, another releases, wave by wave.
fn handed_over(pool: &Pool<HostProvider>, bytes: u64, rounds: u32, count: u64) -> anyhow::Result<f64> {
    let layout = Layout::bytes(bytes)?;
    let (full, emptier) = sync_channel::<Vec<Block>>(4);
    let (back, refill) = sync_channel::<Vec<Block>>(8);
    (0..8).try_for_each(|_| back.send(Vec::with_capacity(WAVE)))?;
    thread::scope(|scope| {
        let consumer = scope.spawn(move || -> anyhow::Result<()> {
            for mut wave in emptier {
                for block in wave.drain(..) {
                    release(pool, block, Stream::DEFAULT)?;
                }
                // The producer may be at its end.
                let _ = back.send(wave);
            }
            Ok(())
        });
        let least = fastest(rounds, count, |count| {
            for _ in 0..count / WAVE as u64 {
                let mut wave = refill.recv()?;
                for _ in 0..WAVE {
                    wave.push(pool.allocate(layout, Stream::DEFAULT)?);
                }
                full.send(wave)?;
            }
            Ok(())
        });
        drop(full);
        drop(refill);
        consumer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        least
    })
}
