//! What was never freed, told on the standard error at the end of the process, if the environment asks for it.
//!
//! At that time other threads may still run, and the driver may be gone: nothing here calls it, makes a pool, or waits for
//! the books of one. Living blocks are in the index, which is read without a lock. Who wants to know where they come from
//! has the heaps' allocators wrapped, so that nobody else pays for it.

mod end;
mod places;
mod table;
mod traced;

pub(crate) use traced::Traced;

use std::sync::OnceLock;

use alloc_core::{AllocError, Block, Device, DeviceAllocator};
use alloc_pool::{ConfigError, PoolError};

use crate::heaps;
use crate::index::{INDEX, Owner};
use crate::memory;
use places::Places;
use table::Table;

const VARIABLE: &str = "ALLOC_LEAK_REPORT";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Off,
    Table,
    Backtraces,
}

/// What was asked for, and of which process. Set when the first heap is made.
#[derive(Clone, Copy, Debug)]
struct Asked {
    report: Report,
    process: u32,
}

static ASKED: OnceLock<Asked> = OnceLock::new();

fn parse(value: &str) -> Option<Report> {
    match value {
        "off" => Some(Report::Off),
        "table" => Some(Report::Table),
        "backtrace" => Some(Report::Backtraces),
        _ => None,
    }
}

fn asked() -> Result<Asked, AllocError> {
    if let Some(asked) = ASKED.get() {
        return Ok(*asked);
    }
    let report = match std::env::var_os(VARIABLE).map(|value| value.to_string_lossy().into_owned()) {
        None => Report::Off,
        Some(value) => parse(&value).ok_or_else(|| {
            let expected = "kind of report: `off`, `table` or `backtrace`";
            PoolError::from(ConfigError::Environment { variable: VARIABLE, value, expected })
        })?,
    };
    Ok(*ASKED.get_or_init(|| Asked { report, process: std::process::id() }))
}

/// To be called before a heap is made: from then on the process reports at its end, if that is asked for. Whether the heap's
/// blocks are to be known with their backtraces.
pub(crate) fn wants_backtraces() -> Result<bool, AllocError> {
    Ok(asked()?.report == Report::Backtraces)
}

/// An allocator that knows where its blocks come from, as long as the process lives.
pub(crate) fn trace(allocator: &'static dyn DeviceAllocator) -> &'static Traced {
    Box::leak(Box::new(Traced::new(allocator)))
}

/// What the process's end is told by [`end`].
fn report_at_end() -> Option<String> {
    let asked = ASKED.get().filter(|asked| asked.report != Report::Off)?;
    // A child that was forked has its parent's blocks, which are not its own to free.
    (asked.process == std::process::id()).then(|| report(asked))
}

fn report(asked: &Asked) -> String {
    let mut table = Table::default();
    INDEX.for_each(|entry| table.add(device_of(entry.owner), &entry));
    let mut text = format!("device_memory, process {}: {table}\n", asked.process);
    if asked.report == Report::Backtraces {
        for (device, traced) in heaps::all().filter_map(|heap| Some((heap.device, heap.traced?))) {
            text += &origins(device, traced);
        }
    }
    text
}

/// The device of a block, if nobody has to be waited for to know it.
fn device_of(owner: Owner) -> Option<Device> {
    #[cfg(feature = "cuda")]
    if owner >= heaps::POOLS {
        return crate::torch::device_if_free(owner);
    }
    memory::device_of(owner)
}

/// Where the blocks of a device come from.
fn origins(device: Device, traced: &Traced) -> String {
    let mut blocks: Vec<Block> = Vec::new();
    INDEX.for_each(|entry| {
        if device_of(entry.owner) == Some(device) {
            blocks.push(entry.block);
        }
    });
    match traced.origins(&blocks) {
        _ if blocks.is_empty() => String::new(),
        Some(origins) => format!("{device}, by where they come from:{}\n", Places::new(&origins, blocks.len())),
        None => format!("{device}: another thread had the books of where they come from\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_asked_for_by_its_kind() {
        assert_eq!(parse("off"), Some(Report::Off));
        assert_eq!(parse("table"), Some(Report::Table));
        assert_eq!(parse("backtrace"), Some(Report::Backtraces));
        for value in ["", "1", "Table", "table "] {
            assert_eq!(parse(value), None, "{value:?}");
        }
    }
}
