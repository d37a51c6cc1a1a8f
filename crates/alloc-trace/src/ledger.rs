//! Keeps the books of which blocks live while rows go by, and notices rows that contradict them.

use std::collections::HashMap;
use std::fmt;

use alloc_core::Address;
use thiserror::Error;

use crate::{Action, Row, TraceError};

/// What happens to rows that contradict those before them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Policy {
    /// The first one is an error.
    #[default]
    Strict,
    /// They are counted and repaired: a release of an unknown pointer is left out, a block whose address is
    /// allocated again is released first, and a release has the size of its allocation.
    Lenient,
}

/// A row that contradicts those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Anomaly {
    /// A release of an address at which no block lives.
    #[error("line {line}: free of {pointer:?}, where no block lives")]
    UnknownFree {
        /// The row's line, counted from 1.
        line: u64,
        /// The address.
        pointer: Address,
    },
    /// An allocation at an address at which a block lives.
    #[error("line {line}: allocate at {pointer:?}, where the block of line {first} still lives")]
    DoubleAllocate {
        /// The row's line, counted from 1.
        line: u64,
        /// The line of the block that lives there.
        first: u64,
        /// The address.
        pointer: Address,
    },
    /// A release with another size than the allocation had.
    #[error("line {line}: free of {pointer:?} with {freed} bytes, allocated with {allocated}")]
    SizeMismatch {
        /// The row's line, counted from 1.
        line: u64,
        /// The address.
        pointer: Address,
        /// Bytes in the allocation's row.
        allocated: u64,
        /// Bytes in the release's row.
        freed: u64,
    },
}

impl Anomaly {
    /// The row's line, counted from 1.
    pub fn line(&self) -> u64 {
        match *self {
            Self::UnknownFree { line, .. } | Self::DoubleAllocate { line, .. } | Self::SizeMismatch { line, .. } => {
                line
            }
        }
    }
}

/// How many rows contradicted others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Anomalies {
    /// Releases of addresses at which no block lived.
    pub unknown_frees: u64,
    /// Allocations at addresses at which a block lived.
    pub double_allocations: u64,
    /// Releases with another size than the allocation's.
    pub size_mismatches: u64,
    /// The first of them all.
    pub first: Option<Anomaly>,
}

impl Anomalies {
    /// All of them.
    pub fn count(&self) -> u64 {
        self.unknown_frees + self.double_allocations + self.size_mismatches
    }

    fn add(&mut self, anomaly: Anomaly) {
        match anomaly {
            Anomaly::UnknownFree { .. } => self.unknown_frees += 1,
            Anomaly::DoubleAllocate { .. } => self.double_allocations += 1,
            Anomaly::SizeMismatch { .. } => self.size_mismatches += 1,
        }
        self.first.get_or_insert(anomaly);
    }
}

impl fmt::Display for Anomalies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} frees of unknown pointers, {} double allocations, {} sizes that differ",
            self.unknown_frees, self.double_allocations, self.size_mismatches
        )
    }
}

/// Checks a log without keeping it: memory grows with the blocks that live at one time only.
///
/// # Errors
/// What the rows themselves report.
///
/// ```
/// use alloc_trace::{Reader, validate};
/// let log = "Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00.1,free,0x1000,64,0x0\n";
/// let anomalies = validate(Reader::new(log.as_bytes())?)?;
/// assert_eq!((anomalies.unknown_frees, anomalies.count()), (1, 1));
/// assert_eq!(anomalies.first.unwrap().line(), 2);
/// # Ok::<(), alloc_trace::TraceError>(())
/// ```
pub fn validate(rows: impl IntoIterator<Item = Result<Row, TraceError>>) -> Result<Anomalies, TraceError> {
    let mut ledger = Ledger::new(Policy::Lenient);
    for row in rows {
        ledger.enter(&row?)?;
    }
    Ok(ledger.anomalies)
}

/// A living block.
#[derive(Clone, Copy, Debug)]
struct Living {
    block: u32,
    bytes: u64,
    line: u64,
}

/// What a row amounts to, with blocks numbered in the order of their allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The next block begins to live; one that lived at its address ends first.
    Allocate {
        block: u32,
        evicted: Option<u32>,
    },
    Release {
        block: u32,
    },
    Nothing,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    policy: Policy,
    living: HashMap<u64, Living>,
    /// Blocks of zero bytes at address 0, of which there may be many: RMM gives them no memory.
    empty: Vec<u32>,
    next_block: u32,
    live_bytes: u64,
    pub(crate) anomalies: Anomalies,
    pub(crate) failures: u64,
}

impl Ledger {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            living: HashMap::new(),
            empty: Vec::new(),
            next_block: 0,
            live_bytes: 0,
            anomalies: Anomalies::default(),
            failures: 0,
        }
    }

    pub(crate) fn enter(&mut self, row: &Row) -> Result<Entry, TraceError> {
        match row.action {
            Action::Allocate => self.allocate(row),
            Action::Free => self.release(row),
            Action::AllocateFailure => {
                self.failures += 1;
                Ok(Entry::Nothing)
            }
        }
    }

    fn allocate(&mut self, row: &Row) -> Result<Entry, TraceError> {
        let block = self.next_block;
        let next_block = block.checked_add(1).ok_or(TraceError::TooLong { line: row.line })?;
        if row.pointer.get() == 0 && row.bytes == 0 {
            self.empty.push(block);
            self.next_block = next_block;
            return Ok(Entry::Allocate { block, evicted: None });
        }
        let before = self.living.get(&row.pointer.get()).copied();
        if let Some(before) = before {
            self.note(Anomaly::DoubleAllocate { line: row.line, first: before.line, pointer: row.pointer })?;
        }
        self.live_bytes = (self.live_bytes - before.map_or(0, |before| before.bytes))
            .checked_add(row.bytes)
            .ok_or(TraceError::LiveOverflow { line: row.line })?;
        self.living.insert(row.pointer.get(), Living { block, bytes: row.bytes, line: row.line });
        self.next_block = next_block;
        Ok(Entry::Allocate { block, evicted: before.map(|before| before.block) })
    }

    fn release(&mut self, row: &Row) -> Result<Entry, TraceError> {
        let Some(living) = self.living.remove(&row.pointer.get()) else {
            if row.pointer.get() == 0 {
                return Ok(self.empty.pop().map_or(Entry::Nothing, |block| Entry::Release { block }));
            }
            self.note(Anomaly::UnknownFree { line: row.line, pointer: row.pointer })?;
            return Ok(Entry::Nothing);
        };
        self.live_bytes -= living.bytes;
        if living.bytes != row.bytes {
            let (allocated, freed) = (living.bytes, row.bytes);
            self.note(Anomaly::SizeMismatch { line: row.line, pointer: row.pointer, allocated, freed })?;
        }
        Ok(Entry::Release { block: living.block })
    }

    fn note(&mut self, anomaly: Anomaly) -> Result<(), TraceError> {
        match self.policy {
            Policy::Strict => Err(TraceError::Inconsistent(anomaly)),
            Policy::Lenient => {
                self.anomalies.add(anomaly);
                Ok(())
            }
        }
    }
}
