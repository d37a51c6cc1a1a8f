//! What the benches of this workspace share: the allocators that are compared, the workloads, the traces, and how
//! results are shown. Not for use elsewhere.

#![allow(clippy::exhaustive_enums, clippy::exhaustive_structs, reason = "nobody else uses it")]

pub mod allocators;
pub mod memory;
pub mod peers;
pub mod picture;
pub mod record;
pub mod table;
pub mod timing;
pub mod traces;
pub mod workload;
