//! What the benches promise: the traces are what their description says, a warm pass calls neither the heap nor the
//! provider, and the replay program works.

#![allow(clippy::unwrap_used, clippy::panic)]

mod counting;
mod program;
mod traces;
mod warm;

#[global_allocator]
static HEAP: counting::CountingHeap = counting::CountingHeap;
