//! A whole recording in memory, its blocks matched up and everything numbered densely.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;
use std::time::Duration;

use alloc_core::{Address, Stream};

use crate::ledger::{Entry, Ledger};
use crate::{Action, Anomalies, Policy, Reader, Row, TraceError, Writer};

/// A recording, ready to be profiled or replayed: operations in the order of the log, with blocks, streams and
/// threads numbered from 0.
///
/// ```
/// use alloc_core::{Address, Stream};
/// use alloc_trace::{Action, Policy, Row, Trace};
/// use std::time::Duration;
///
/// let row = |action, pointer, bytes| Row {
///     line: 0,
///     thread: 1,
///     time: Duration::ZERO,
///     action,
///     pointer: Address::new(pointer),
///     bytes,
///     stream: Stream::DEFAULT,
/// };
/// // Addresses are reused, so a pointer names a block only while it lives.
/// let rows = [row(Action::Allocate, 16, 100), row(Action::Free, 16, 100), row(Action::Allocate, 16, 8)];
/// let trace = Trace::from_rows(rows.map(Ok), Policy::Strict)?;
/// assert_eq!((trace.operations().len(), trace.blocks().len()), (3, 2));
/// # Ok::<(), alloc_trace::TraceError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Trace {
    operations: Vec<Operation>,
    blocks: Vec<TracedBlock>,
    streams: Vec<Stream>,
    threads: Vec<u64>,
    anomalies: Anomalies,
    failures: u64,
}

/// One allocation or release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Operation {
    /// When it was done, as the recorder has it.
    pub time: Duration,
    /// Which of the two it is.
    pub kind: OperationKind,
    /// Index of the block in [`Trace::blocks`].
    pub block: u32,
    /// Index of the stream in [`Trace::streams`].
    pub stream: u32,
    /// Index of the thread in [`Trace::threads`].
    pub thread: u32,
}

/// Whether an operation begins or ends the life of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_enums, reason = "there is nothing else to do with a block")]
pub enum OperationKind {
    /// The block begins to live.
    Allocate,
    /// The block ends.
    Release,
}

/// A block from its allocation to its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TracedBlock {
    /// Bytes asked for.
    pub bytes: u64,
    /// Where the recorded allocator placed it.
    pub pointer: Address,
    /// Index of the operation that allocated it.
    pub allocated: u32,
    /// Index of the operation that released it; `None` for a block that lived at the end of the recording.
    pub released: Option<u32>,
}

impl Trace {
    /// Loads a file, plain or compressed.
    ///
    /// # Errors
    /// [`TraceError::File`] around what is wrong with it.
    pub fn load(path: impl AsRef<Path>, policy: Policy) -> Result<Self, TraceError> {
        let path = path.as_ref();
        Self::from_rows(Reader::open(path)?, policy).map_err(|error| match error {
            in_file @ TraceError::File { .. } => in_file,
            other => other.in_file(path),
        })
    }

    /// Makes a trace of rows, such as a [`Reader`] gives.
    ///
    /// # Errors
    /// What the rows report; [`TraceError::Inconsistent`] under [`Policy::Strict`]; [`TraceError::LiveOverflow`] and
    /// [`TraceError::TooLong`] for traces beyond all bounds.
    pub fn from_rows(
        rows: impl IntoIterator<Item = Result<Row, TraceError>>,
        policy: Policy,
    ) -> Result<Self, TraceError> {
        let mut trace = Self::default();
        let mut ledger = Ledger::new(policy);
        let (mut streams, mut threads) = (Numbering::default(), Numbering::default());
        for row in rows {
            let row = row?;
            let entry = ledger.enter(&row)?;
            if entry == Entry::Nothing {
                continue;
            }
            let (Some(stream), Some(thread)) = (streams.number(row.stream), threads.number(row.thread)) else {
                return Err(TraceError::TooLong { line: row.line });
            };
            let (kind, block) = match entry {
                Entry::Allocate { block, evicted } => {
                    if let Some(block) = evicted {
                        let kind = OperationKind::Release;
                        trace.push(&row, Operation { time: row.time, kind, block, stream, thread })?;
                    }
                    (OperationKind::Allocate, block)
                }
                Entry::Release { block } => (OperationKind::Release, block),
                Entry::Nothing => continue,
            };
            trace.push(&row, Operation { time: row.time, kind, block, stream, thread })?;
        }
        trace.streams = streams.values;
        trace.threads = threads.values;
        trace.anomalies = ledger.anomalies;
        trace.failures = ledger.failures;
        Ok(trace)
    }

    fn push(&mut self, row: &Row, operation: Operation) -> Result<(), TraceError> {
        let index = u32::try_from(self.operations.len())
            .ok()
            .filter(|&index| index < u32::MAX)
            .ok_or(TraceError::TooLong { line: row.line })?;
        match operation.kind {
            OperationKind::Allocate => {
                let (bytes, pointer) = (row.bytes, row.pointer);
                self.blocks.push(TracedBlock { bytes, pointer, allocated: index, released: None });
            }
            OperationKind::Release => self.blocks[operation.block as usize].released = Some(index),
        }
        self.operations.push(operation);
        Ok(())
    }

    /// The operations, in the order of the log.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// The blocks, in the order of their allocation.
    pub fn blocks(&self) -> &[TracedBlock] {
        &self.blocks
    }

    /// The streams as they were recorded, in the order of their appearance.
    pub fn streams(&self) -> &[Stream] {
        &self.streams
    }

    /// The threads as the recorder names them, in the order of their appearance.
    pub fn threads(&self) -> &[u64] {
        &self.threads
    }

    /// What was repaired under [`Policy::Lenient`]; nothing under [`Policy::Strict`].
    pub fn anomalies(&self) -> &Anomalies {
        &self.anomalies
    }

    /// How many rows told of a failed allocation. They are no operations.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// The trace as rows again, repaired where it was.
    pub fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        self.operations.iter().map(|operation| {
            let block = self.blocks[operation.block as usize];
            Row {
                line: 0,
                thread: self.threads[operation.thread as usize],
                time: operation.time,
                action: match operation.kind {
                    OperationKind::Allocate => Action::Allocate,
                    OperationKind::Release => Action::Free,
                },
                pointer: block.pointer,
                bytes: block.bytes,
                stream: self.streams[operation.stream as usize],
            }
        })
    }

    /// Saves the trace, compressed as the file's name asks (`.gz`, `.zst`).
    ///
    /// # Errors
    /// [`TraceError::File`] around [`TraceError::Open`] or [`TraceError::Write`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), TraceError> {
        let path = path.as_ref();
        let mut writer = Writer::create(path)?;
        self.rows()
            .try_for_each(|row| writer.write(&row))
            .and_then(|()| writer.finish())
            .map_err(|error| error.in_file(path))?;
        Ok(())
    }
}

/// Numbers values in the order of their appearance.
#[derive(Debug)]
struct Numbering<T> {
    numbers: HashMap<T, u32>,
    values: Vec<T>,
}

impl<T> Default for Numbering<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), values: Vec::new() }
    }
}

impl<T: Copy + Eq + Hash> Numbering<T> {
    fn number(&mut self, value: T) -> Option<u32> {
        if let Some(&number) = self.numbers.get(&value) {
            return Some(number);
        }
        let number = u32::try_from(self.values.len()).ok()?;
        self.numbers.insert(value, number);
        self.values.push(value);
        Some(number)
    }
}
