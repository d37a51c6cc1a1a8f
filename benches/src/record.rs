//! One line of results, as `--json` prints it.

use std::io::{self, Write};

use alloc_core::ProviderCalls;
use alloc_trace::PassReport;
use serde::{Deserialize, Serialize};

use crate::allocators::Peer;
use crate::traces::NamedTrace;

/// One pass of one trace through one allocator. Bytes, except where a name says otherwise. Figures that the allocator
/// doesn't know are `null`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReplayRecord {
    /// `replay`.
    pub bench: String,
    /// `cpu`.
    pub backend: String,
    /// The device.
    pub device: String,
    /// The allocator.
    pub allocator: String,
    /// The trace.
    pub trace: String,
    /// The pass, counted from 1.
    pub pass: u32,
    /// On how many threads.
    pub threads: u32,
    /// Whether every page was written to.
    pub touch: bool,
    /// Allocations and releases.
    pub ops: u64,
    /// Time of the pass.
    pub elapsed_ns: u64,
    /// Time per operation.
    pub ns_per_op: f64,
    /// The most bytes that lived at one time in the recording.
    pub peak_live: u64,
    /// The most bytes handed out at one time, rounding included, up to this pass.
    pub peak_in_use: Option<u64>,
    /// The most physical memory held in this pass.
    pub peak_reserved: Option<u64>,
    /// Physical memory held after this pass.
    pub reserved_at_end: Option<u64>,
    /// `peak_reserved` over `peak_live`.
    pub reserved_ratio: Option<f64>,
    /// Allocations served by a thread cache.
    pub hits: Option<u64>,
    /// Allocations that no free memory fitted.
    pub misses: Option<u64>,
    /// Calls to the device.
    pub provider_calls: Option<Calls>,
    /// Rows of the trace that contradicted others and were repaired.
    pub repaired_rows: u64,
}

/// Calls to the device in one pass, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Physical memory created.
    pub create: u64,
    /// Mapped.
    pub map: u64,
    /// Unmapped.
    pub unmap: u64,
    /// Given back.
    pub release: u64,
    /// Address ranges reserved.
    pub reserve: u64,
    /// Events recorded.
    pub record: u64,
    /// Events asked about.
    pub query: u64,
    /// Streams made to wait.
    pub wait: u64,
}

impl From<ProviderCalls> for Calls {
    fn from(calls: ProviderCalls) -> Self {
        let ProviderCalls { reserve, create, map, unmap, release, record, query, wait, .. } = calls;
        Self { create, map, unmap, release, reserve, record, query, wait }
    }
}

impl ReplayRecord {
    /// The record of a pass.
    pub fn new(peer: Peer, device: String, touch: bool, trace: &NamedTrace, report: &PassReport) -> Self {
        let known = peer.knows_reserved();
        Self {
            bench: "replay".to_owned(),
            backend: "cpu".to_owned(),
            device,
            allocator: peer.to_string(),
            trace: trace.name.clone(),
            pass: report.pass,
            threads: report.threads,
            touch,
            ops: report.operations,
            elapsed_ns: u64::try_from(report.elapsed.as_nanos()).unwrap_or(u64::MAX),
            ns_per_op: report.ns_per_operation(),
            peak_live: report.peak_live,
            peak_in_use: report.peak_in_use().filter(|_| known),
            peak_reserved: report.peak_reserved().filter(|_| known),
            reserved_at_end: report.reserved_at_end().filter(|_| known),
            reserved_ratio: report.reserved_ratio().filter(|_| known),
            hits: known.then(|| report.hits()),
            misses: known.then(|| report.misses()),
            provider_calls: known.then(|| report.provider_calls().into()),
            repaired_rows: trace.anomalies().count(),
        }
    }
}

/// One result of the small benches.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MicroRecord {
    /// `pair`, `churn`, `threads` or `buffer`.
    pub bench: String,
    /// `cpu`.
    pub backend: String,
    /// The allocator.
    pub allocator: String,
    /// What varies within the bench: a size, or a number of threads.
    pub case: String,
    /// Time for one unit of work (an allocation and a release together).
    pub ns: f64,
    /// Units of work a second, all threads together.
    pub per_second: f64,
}

/// Prints a record as one line of JSON.
///
/// # Errors
/// If standard output can't be written to.
pub fn print_json(record: &impl Serialize) -> io::Result<()> {
    let mut output = io::stdout().lock();
    serde_json::to_writer(&mut output, record)?;
    output.write_all(b"\n")?;
    output.flush()
}
