//! One allocator and one trace in a process of its own.

use std::process::{Command, Stdio};

use alloc_core::DeviceAllocator;
use alloc_trace::{PassReport, Replay, ReplayError, Threading, Touch};
use anyhow::{Context, bail};
use benches::allocators::{Peer, Visitor};
use benches::record::{ReplayRecord, print_json};
use benches::traces::NamedTrace;

use crate::options::Options;
use crate::records;

/// Starts a process that replays the trace through the allocator; returns its records.
///
/// # Errors
/// If it can't be started, fails, or says what can't be understood.
pub fn start(peer: Peer, options: &Options, trace: &NamedTrace) -> anyhow::Result<Vec<ReplayRecord>> {
    let program = std::env::current_exe().context("this program's own file")?;
    let mut command = Command::new(program);
    command.arg("--worker").arg(peer.to_string()).arg("--passes").arg(options.passes().to_string());
    command.arg("--trace").arg(&trace.path);
    let flags = [
        ("--touch", options.touch),
        ("--whole", options.whole),
        ("--threads", options.threads),
        ("--quick", options.quick),
    ];
    for (flag, set) in flags {
        if set {
            command.arg(flag);
        }
    }
    let output = command.stderr(Stdio::piped()).output().context("can't start the process that replays")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", output.status, said.trim());
    }
    let lines = String::from_utf8(output.stdout).context("the records")?;
    let records = lines.lines().map(|line| {
        let record: ReplayRecord = serde_json::from_str(line).context("a record")?;
        // That process knows of one trace, and not what tells it from others.
        Ok(ReplayRecord { trace: trace.name.clone(), ..record })
    });
    records.collect()
}

/// Replays and prints the records: what the process does that was started.
///
/// # Errors
/// What the trace, the allocator and the replay report.
pub fn work(peer: Peer, options: &Options) -> anyhow::Result<()> {
    for path in &options.traces {
        let trace = NamedTrace::load(path, options.extent())?;
        let replay = Replay::new(&trace.trace)
            .passes(options.passes())
            .threading(if options.threads { Threading::PerRecordedThread } else { Threading::One })
            .touch(if options.touch { Touch::Pages } else { Touch::No });
        let reports = peer.visit(trace.peak_live, options.touch, RunReplay(&replay))??;
        records(peer, options.touch, &trace, &reports).iter().try_for_each(print_json)?;
    }
    Ok(())
}

struct RunReplay<'a>(&'a Replay<'a>);

impl Visitor for RunReplay<'_> {
    type Output = Result<Vec<PassReport>, ReplayError>;

    fn visit<A: DeviceAllocator + 'static>(self, allocator: A) -> Self::Output {
        self.0.run(&allocator)
    }
}
