//! One line of results, as this workspace's program and the C++ programs write it.

use serde::{Deserialize, Serialize};

/// One workload, or one pass of it, through one allocator. What is not known, or makes no sense there, is `null`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerRecord {
    /// `replay`, `pair`, `churn`, `random`, `threads`, `producer_consumer`, `larson` or `xmalloc`.
    pub bench: String,
    /// `cuda` or `cpu`.
    pub backend: String,
    /// The device.
    pub device: String,
    /// The allocator: `alloc-pool`, or a peer.
    pub allocator: String,
    /// What varies within the bench: the trace, the size, or the number of threads.
    pub case: String,
    /// How many threads call the allocator at one time.
    pub threads: u32,
    /// On how many streams.
    pub streams: u32,
    /// The pass, counted from 1, where the bench has passes.
    pub pass: Option<u32>,
    /// What one operation is: `call` (an allocation or a release) or `pair` (an allocation and a release).
    pub unit: String,
    /// Operations measured, of all threads together.
    pub ops: u64,
    /// The time that they took.
    pub elapsed_ns: u64,
    /// Time over operations of all threads together, in nanoseconds: of the pass, or of the median round.
    pub ns_per_op: Option<f64>,
    /// Operations a second of all threads together: of the pass, or of the median round.
    pub ops_per_second: Option<f64>,
    /// The most bytes that live at one time.
    pub peak_live: Option<u64>,
    /// The most physical memory held in this pass, or since the allocator was made.
    pub peak_reserved: Option<u64>,
    /// `peak_reserved` over `peak_live`.
    pub reserved_ratio: Option<f64>,
    /// False if a limit of time ended the pass early.
    pub complete: bool,
    /// Why it failed, if it did.
    pub error: Option<String>,
}
