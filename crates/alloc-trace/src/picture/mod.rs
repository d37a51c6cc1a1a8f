//! A page that shows what a program did with its memory, and where a pool has it.

mod map;
mod spans;
mod text;
mod timeline;

use std::collections::BTreeMap;
use std::fmt;

use alloc_core::{Gauge, Snapshot, Statistics};

use crate::Trace;
use text::{Bytes, Escaped, Grouped};

/// A page of HTML: the timeline of a trace, the map of a pool's memory, or both. It is one file, asks nothing of the network,
/// runs no script, and is at most some megabytes long, however large the trace and the pool are.
///
/// [`Display`](fmt::Display) writes it. All tags are closed, so that programs for XML read it as well as browsers do.
///
/// ```
/// use alloc_trace::{Picture, Policy, Reader, Trace};
///
/// let log = "Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00.1,allocate,0x1000,4096,0x0\n";
/// let trace = Trace::from_rows(Reader::new(log.as_bytes())?, Policy::Strict)?;
/// let page = Picture::new("one <block>").trace(&trace).to_string();
/// assert!(page.contains("<title>one &lt;block&gt;</title>") && page.contains("peak 4.00 KiB"));
/// # Ok::<(), alloc_trace::TraceError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a picture is nothing until it is written"]
pub struct Picture<'a> {
    title: String,
    trace: Option<&'a Trace>,
    reserved: BTreeMap<u32, u64>,
    maps: Vec<(String, &'a Snapshot)>,
}

impl<'a> Picture<'a> {
    /// A page with a title and nothing else.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), trace: None, reserved: BTreeMap::new(), maps: Vec::new() }
    }

    /// Shows the live bytes of a trace over its operations, and what lived at the peak. The line has some thousand points, each
    /// of which is the highest of its part of the operations.
    pub fn trace(mut self, trace: &'a Trace) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Shows what an allocator reserved for the trace: bytes, from the operation on that the index stands for. Points may come in
    /// any order, of several for one operation the last one holds, and where nothing changed none is needed. Without a trace nothing
    /// is shown.
    pub fn reserved(mut self, points: impl IntoIterator<Item = (u32, u64)>) -> Self {
        self.reserved.extend(points);
        self
    }

    /// Shows the map of a pool's memory, and its figures, below what is there already.
    pub fn snapshot(mut self, caption: impl Into<String>, snapshot: &'a Snapshot) -> Self {
        self.maps.push((caption.into(), snapshot));
        self
    }
}

impl fmt::Display for Picture<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let title = Escaped(&self.title);
        writeln!(f, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>{title}</title>")?;
        writeln!(f, "<meta name=\"viewport\" content=\"width=device-width\"/>")?;
        writeln!(f, "<style>\n{}</style></head>\n<body><h1>{title}</h1>", include_str!("style.css"))?;
        if let Some(trace) = self.trace {
            timeline::write(f, trace, &self.reserved)?;
        }
        for (caption, snapshot) in &self.maps {
            map::write(f, snapshot, caption)?;
            write_statistics(f, &snapshot.statistics)?;
        }
        writeln!(f, "</body></html>")
    }
}

fn write_statistics(f: &mut fmt::Formatter<'_>, figures: &Statistics) -> fmt::Result {
    writeln!(f, "<table class=\"figures\"><tr><th></th><th>now</th><th>peak</th></tr>")?;
    let gauges: [(&str, &Gauge); 4] = [
        ("asked for", &figures.requested),
        ("the same with rounding", &figures.in_use),
        ("reserved", &figures.reserved),
        ("waiting for other streams", &figures.parked),
    ];
    for (name, gauge) in gauges {
        let (now, peak) = (Bytes(gauge.current), Bytes(gauge.peak));
        writeln!(f, "<tr><th>{name}</th><td>{now}</td><td>{peak}</td></tr>")?;
    }
    writeln!(f, "<tr><th>largest free</th><td>{}</td></tr>", Bytes(figures.largest_free))?;
    let counts = [
        ("allocations", figures.requested.count),
        ("served by thread caches", figures.hits),
        ("misses", figures.misses),
        ("moves of pages", figures.moves),
        ("calls for memory", figures.provider_calls.memory()),
    ];
    for (name, count) in counts {
        writeln!(f, "<tr><th>{name}</th><td>{}</td></tr>", Grouped(count))?;
    }
    writeln!(f, "</table>")
}
