//! What a pass cost.

use std::time::Duration;

use alloc_core::{ProviderCalls, Statistics};

/// What one pass of a replay cost.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PassReport {
    /// The pass, counted from 1.
    pub pass: u32,
    /// On how many threads it was made.
    pub threads: u32,
    /// Allocations and releases, those at the end of the pass included.
    pub operations: u64,
    /// Allocations.
    pub allocations: u64,
    /// The time from the first operation to the end of the last.
    pub elapsed: Duration,
    /// The most bytes that lived at one time in the recording: what an allocator without any loss would reserve.
    pub peak_live: u64,
    /// The allocator's figures before the pass.
    pub before: Statistics,
    /// The allocator's figures after the pass.
    pub after: Statistics,
}

impl PassReport {
    /// Nanoseconds per operation (of one thread after the other, however many there are).
    pub fn ns_per_operation(&self) -> f64 {
        self.elapsed.as_secs_f64() * 1e9 / self.operations.max(1) as f64
    }

    /// Allocations in this pass that a thread cache served.
    pub fn hits(&self) -> u64 {
        self.after.hits.saturating_sub(self.before.hits)
    }

    /// Allocations in this pass that no free memory fitted.
    pub fn misses(&self) -> u64 {
        self.after.misses.saturating_sub(self.before.misses)
    }

    /// Times in this pass that pages were moved.
    pub fn moves(&self) -> u64 {
        self.after.moves.saturating_sub(self.before.moves)
    }

    /// Calls to the backend in this pass, by kind.
    pub fn provider_calls(&self) -> ProviderCalls {
        self.after.provider_calls.since(&self.before.provider_calls)
    }

    /// The most bytes that the allocator had handed out, its rounding included, since it was made; `None` if it
    /// doesn't know.
    pub fn peak_in_use(&self) -> Option<u64> {
        (self.after.in_use.peak > 0).then_some(self.after.in_use.peak)
    }

    /// The most physical memory, in bytes, that the allocator held during this pass; `None` if it doesn't know.
    ///
    /// Exact where the pass reached a new peak or took no memory from the device. For a pass that took memory, and
    /// stayed below an earlier peak, it is an upper bound: what was held at first and all that was taken.
    pub fn peak_reserved(&self) -> Option<u64> {
        let (before, after) = (self.before.reserved, self.after.reserved);
        let peak = if after.peak > before.peak {
            after.peak
        } else {
            before.current.saturating_add(after.total.saturating_sub(before.total)).min(after.peak)
        };
        (after.peak > 0).then_some(peak)
    }

    /// Physical memory, in bytes, that the allocator holds after the pass; `None` if it doesn't know.
    pub fn reserved_at_end(&self) -> Option<u64> {
        (self.after.reserved.peak > 0).then_some(self.after.reserved.current)
    }

    /// [`PassReport::peak_reserved`] over [`PassReport::peak_live`]: 1 is an allocator without any loss. `None` if
    /// the allocator doesn't know, or if no byte ever lived.
    pub fn reserved_ratio(&self) -> Option<f64> {
        let peak = self.peak_reserved()?;
        (self.peak_live > 0).then(|| peak as f64 / self.peak_live as f64)
    }
}
