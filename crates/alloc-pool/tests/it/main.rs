//! What the pool promises, shown over a provider that keeps books instead of memory.
//!
//! Small files, one for each promise. Under `--cfg loom` there is nothing here: `tests/loom.rs` has the models.
#![cfg(not(loom))]
// The helpers of tests are tests, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod adjust;
mod bad_input;
mod breakdown;
mod conformance;
mod crowd;
mod events;
mod failures;
mod figures;
mod heap_calls;
mod pages;
mod snapshot;
mod state_machine;
mod streams;
mod support;
mod threads;
mod traced;
