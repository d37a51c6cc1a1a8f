//! A replay on a thread for every recorded one. Blocks that another thread releases are handed over in slots of
//! atomics.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Instant;

use alloc_core::{Address, Block, BlockId, DeviceAllocator, Stream};

use super::plan::{Call, Failure, ThreadPlan, peak_live};
use super::raw::{TouchBlock, release};
use super::report::PassReport;
use crate::{ReplayError, Trace};

/// A block on its way from the thread that allocates it to the one that releases it.
#[derive(Debug, Default)]
struct Slot {
    address: AtomicU64,
    size: AtomicU64,
    id: AtomicU64,
    /// `2 * pass` once the block exists in that pass, `2 * pass + 1` once it is taken out again.
    state: AtomicU64,
}

impl Slot {
    fn put(&self, block: Block, pass: u32) {
        self.address.store(block.address().get(), Ordering::Relaxed);
        self.size.store(block.size(), Ordering::Relaxed);
        self.id.store(block.id().to_bits(), Ordering::Relaxed);
        self.state.store(2 * u64::from(pass), Ordering::Release);
    }

    fn is_ready(&self, pass: u32) -> bool {
        self.state.load(Ordering::Acquire) == 2 * u64::from(pass)
    }

    /// Takes the block out of a slot that is ready. One thread alone takes from a slot in a pass.
    fn take(&self, pass: u32) -> Block {
        self.state.store(2 * u64::from(pass) + 1, Ordering::Relaxed);
        Block::from_parts(
            Address::new(self.address.load(Ordering::Relaxed)),
            self.size.load(Ordering::Relaxed),
            BlockId::from_bits(self.id.load(Ordering::Relaxed)),
        )
    }
}

/// Lets the threads into the next pass.
#[derive(Debug, Default)]
struct Gate {
    /// The pass that may be made, or `None` once there is none left.
    open: Mutex<Option<u32>>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, pass: Option<u32>) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = pass;
        self.changed.notify_all();
    }

    fn wait_for(&self, pass: u32) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while open.is_some_and(|open| open < pass) {
            open = self.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        open.is_some()
    }
}

/// What a thread says after a pass.
#[derive(Debug)]
struct Finished {
    start: Instant,
    end: Instant,
    failure: Option<(u32, Call, Failure)>,
    panicked: bool,
}

struct Shared<'a, A: ?Sized, T> {
    allocator: &'a A,
    streams: &'a [Stream],
    touch: &'a T,
    slots: Vec<Slot>,
    stop: AtomicBool,
    gate: Gate,
}

pub(super) fn run<A: DeviceAllocator + ?Sized, T: TouchBlock>(
    trace: &Trace,
    passes: u32,
    allocator: &A,
    streams: &[Stream],
    touch: &T,
    mut on_pass: impl FnMut(&PassReport),
) -> Result<(), ReplayError> {
    let plans = ThreadPlan::all(trace)?;
    let operations = plans.iter().map(|plan| plan.calls.len() as u64).sum();
    let peak_live = peak_live(trace);
    let slots = trace.blocks().iter().map(|_| Slot::default()).collect();
    let gate = Gate { open: Mutex::new(Some(0)), changed: Condvar::new() };
    let shared = Shared { allocator, streams, touch, slots, stop: AtomicBool::new(false), gate };

    thread::scope(|scope| {
        let _close = CloseOnDrop(&shared.gate);
        let (sender, receiver) = mpsc::channel();
        for (plan, name) in plans.iter().zip(trace.threads()) {
            let (shared, sender) = (&shared, sender.clone());
            let builder = thread::Builder::new().name(format!("replay {name}"));
            builder.spawn_scoped(scope, move || shared.work(plan, passes, &sender)).map_err(ReplayError::Spawn)?;
        }
        for pass in 1..=passes {
            let before = allocator.statistics();
            shared.gate.set(Some(pass));
            let finished: Vec<Finished> = receiver.iter().take(plans.len()).collect();
            if finished.iter().any(|finished| finished.panicked) {
                // The scope passes the panic on.
                return Ok(());
            }
            let elapsed = finished
                .iter()
                .map(|finished| finished.end)
                .max()
                .zip(finished.iter().map(|finished| finished.start).min())
                .map_or_else(Default::default, |(end, start)| end.duration_since(start));
            let first = finished.into_iter().filter_map(|finished| finished.failure).min_by_key(|failure| failure.0);
            if let Some((operation, call, failure)) = first {
                let living = shared.release_living(trace, pass);
                return Err(failure.into_error(pass, operation, call, streams[call.stream()], living));
            }
            on_pass(&PassReport {
                pass,
                threads: plans.len() as u32,
                operations,
                allocations: trace.blocks().len() as u64,
                elapsed,
                peak_live,
                before,
                after: allocator.statistics(),
            });
        }
        Ok(())
    })
}

/// Lets the threads go home, whichever way the replay ends.
struct CloseOnDrop<'a>(&'a Gate);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.set(None);
    }
}

/// Reports a thread that panics (in the allocator, or in a hook), so that nobody waits for it.
struct ReportPanic<'a>(&'a AtomicBool, &'a mpsc::Sender<Finished>);

impl Drop for ReportPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
            let now = Instant::now();
            let _ = self.1.send(Finished { start: now, end: now, failure: None, panicked: true });
        }
    }
}

impl<A: DeviceAllocator + ?Sized, T: TouchBlock> Shared<'_, A, T> {
    fn work(&self, plan: &ThreadPlan, passes: u32, sender: &mpsc::Sender<Finished>) {
        let _report = ReportPanic(&self.stop, sender);
        for pass in 1..=passes {
            if !self.gate.wait_for(pass) {
                return;
            }
            let start = Instant::now();
            let outcome = self.run_pass(plan, pass);
            let end = Instant::now();
            if sender.send(Finished { start, end, failure: outcome.err(), panicked: false }).is_err() {
                return;
            }
        }
    }

    /// The timed part of one thread.
    #[inline(never)]
    fn run_pass(&self, plan: &ThreadPlan, pass: u32) -> Result<(), (u32, Call, Failure)> {
        for &(operation, call) in &plan.calls {
            let stream = self.streams[call.stream()];
            let slot = &self.slots[call.slot as usize];
            let done = if call.is_release() {
                if !self.wait_until_ready(slot, pass) {
                    return Ok(());
                }
                release(self.allocator, slot.take(pass), stream).map_err(Failure::Release)
            } else {
                if self.stop.load(Ordering::Relaxed) {
                    return Ok(());
                }
                self.allocator.allocate(call.layout, stream).map_err(Failure::Allocate).and_then(|block| {
                    let touched = self.touch.touch(block, stream).map_err(Failure::Touch);
                    slot.put(block, pass);
                    touched
                })
            };
            if let Err(failure) = done {
                self.stop.store(true, Ordering::Relaxed);
                return Err((operation, call, failure));
            }
        }
        Ok(())
    }

    /// Waits until the block exists; false if the replay was stopped before.
    fn wait_until_ready(&self, slot: &Slot, pass: u32) -> bool {
        const SPINS: u32 = 64;
        let mut waited = 0;
        while !slot.is_ready(pass) {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            if waited < SPINS {
                waited += 1;
                std::hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
        true
    }

    /// Releases what lives in a pass that all threads have left; returns how many blocks that were.
    fn release_living(&self, trace: &Trace, pass: u32) -> u64 {
        let mut count = 0;
        for (slot, block) in self.slots.iter().zip(trace.blocks()) {
            if slot.is_ready(pass) {
                count += 1;
                let born = trace.operations()[block.allocated as usize];
                // The failure that ended the replay is the one to report.
                let _ = release(self.allocator, slot.take(pass), self.streams[born.stream as usize]);
            }
        }
        count
    }
}
