//! The command line.

use std::path::PathBuf;

use benches::allocators::Peer;
use benches::traces::Extent;
use clap::Parser;

/// Replays allocation traces through several allocators and shows time per operation, memory reserved over memory
/// live, and calls to the device.
#[derive(Clone, Debug, Parser)]
#[command(name = "replay")]
pub struct Options {
    /// Replay these traces (RMM's CSV, plain, gzip or zstd) instead of those that come with the workspace
    #[arg(long = "trace", value_name = "FILE", num_args = 1..)]
    pub traces: Vec<PathBuf>,

    /// How often each trace is replayed on the same allocator (default: 3, with --touch 2); times are those of the
    /// second pass
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    passes: Option<u32>,

    /// Write to every page of every block, so that page faults count; only the beginning of each trace is replayed,
    /// up to 16 GiB of allocations
    #[arg(long)]
    pub touch: bool,

    /// Replay whole traces with --touch too: terabytes are written then
    #[arg(long)]
    pub whole: bool,

    /// Replay on a thread for each recorded thread, instead of one for all
    #[arg(long)]
    pub threads: bool,

    /// Compare only these allocators
    #[arg(long = "allocator", value_name = "NAME")]
    allocators: Vec<Peer>,

    /// Two passes over the first 20,000 rows of each trace: to see that everything works
    #[arg(long)]
    pub quick: bool,

    /// Print one JSON object a line for each pass instead of tables
    #[arg(long)]
    pub json: bool,

    /// Do the work of one process: replay through this allocator and print JSON
    #[arg(long, hide = true, value_name = "NAME")]
    pub worker: Option<Peer>,
}

const QUICK_ROWS: usize = 20_000;
const TOUCHED_BYTES: u64 = 16 << 30;

impl Options {
    /// How many passes are made.
    pub fn passes(&self) -> u32 {
        let passes = self.passes.unwrap_or(if self.touch { 2 } else { 3 });
        if self.quick { passes.min(2) } else { passes }
    }

    /// The pass whose times are shown.
    pub fn timed_pass(&self) -> u32 {
        self.passes().min(2)
    }

    /// How much of each trace is replayed.
    pub fn extent(&self) -> Extent {
        match (self.quick, self.touch) {
            (true, _) => Extent::Rows(QUICK_ROWS),
            (false, true) if !self.whole => Extent::Bytes(TOUCHED_BYTES),
            _ => Extent::Whole,
        }
    }

    /// The allocators that are compared, each once. The cost of the loop is measured with them where that makes
    /// sense.
    pub fn peers(&self) -> Vec<Peer> {
        let chosen = if self.allocators.is_empty() { Peer::DEFAULT } else { &self.allocators };
        let mut peers = Vec::new();
        for &peer in chosen.iter().chain(&[Peer::Null]) {
            if !peers.contains(&peer) && (peer.has_memory() || !self.touch) {
                peers.push(peer);
            }
        }
        peers
    }
}
