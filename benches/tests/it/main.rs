//! What the benches promise: the traces are what their description says, a warm pass calls neither the heap nor the
//! provider, the replay program and the one that draws work, and the peers' bench runs the same in both languages.

#![allow(clippy::unwrap_used, clippy::panic)]

mod counting;
mod peers;
mod picture;
mod program;
mod traces;
mod warm;

#[global_allocator]
static HEAP: counting::CountingHeap = counting::CountingHeap;
