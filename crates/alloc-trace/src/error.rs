//! What can be wrong with a trace, and what can go wrong while one is replayed.

use std::io;
use std::path::PathBuf;

use alloc_core::{AllocError, Device, LayoutError, ReleaseError, Stream, TransferError};
use thiserror::Error;

use crate::Anomaly;

/// A trace that could not be read, written or accepted.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// Something is wrong with a file: the inner error says what.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: Box<TraceError>,
    },
    /// The file could not be opened or made.
    #[error("can't open: {0}")]
    Open(#[source] io::Error),
    /// Reading failed, or a compressed stream is damaged or ends too early.
    #[error("line {line}: can't read on: {source}")]
    Read {
        /// The line that was being read, counted from 1.
        line: u64,
        /// The failure. Its kind is [`io::ErrorKind::UnexpectedEof`] for a compressed stream that was cut off.
        source: io::Error,
    },
    /// Writing failed.
    #[error("can't write: {0}")]
    Write(#[source] io::Error),
    /// No header was found, and the first line is no row either.
    #[error("line {line}: neither a header nor a row: {text:?}")]
    NoHeader {
        /// The line at which the search was given up, counted from 1.
        line: u64,
        /// The line, shortened.
        text: String,
    },
    /// There is nothing in the file: neither a header nor rows.
    #[error("the file is empty")]
    Empty,
    /// A header that lacks a column which can't be done without.
    #[error("line {line}: the header has no column {column}")]
    MissingColumn {
        /// The header's line, counted from 1.
        line: u64,
        /// The column.
        column: &'static str,
    },
    /// A row that can't be understood.
    #[error("line {line}: {problem}: {text:?}")]
    Row {
        /// The row's line, counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: RowProblem,
        /// The line, shortened.
        text: String,
    },
    /// A row that contradicts those before it, under [`Policy::Strict`](crate::Policy::Strict).
    #[error(transparent)]
    Inconsistent(#[from] Anomaly),
    /// The bytes live at one time exceed 64 bits.
    #[error("line {line}: the live bytes exceed 64 bits")]
    LiveOverflow {
        /// The row's line, counted from 1.
        line: u64,
    },
    /// More operations, blocks, streams or threads than 32 bits can number.
    #[error("line {line}: the trace is too long to number its operations in 32 bits")]
    TooLong {
        /// The row's line, counted from 1.
        line: u64,
    },
}

impl TraceError {
    /// The error itself, without the file that it happened in.
    pub fn root(&self) -> &Self {
        match self {
            Self::File { error, .. } => error.root(),
            other => other,
        }
    }

    /// The line it is about, counted from 1, where there is one.
    pub fn line(&self) -> Option<u64> {
        match self.root() {
            Self::Read { line, .. }
            | Self::NoHeader { line, .. }
            | Self::MissingColumn { line, .. }
            | Self::Row { line, .. }
            | Self::LiveOverflow { line }
            | Self::TooLong { line } => Some(*line),
            Self::Inconsistent(anomaly) => Some(anomaly.line()),
            _ => None,
        }
    }

    pub(crate) fn in_file(self, path: impl Into<PathBuf>) -> Self {
        Self::File { path: path.into(), error: Box::new(self) }
    }
}

/// What is wrong with a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// It has fewer or more fields than the header.
    #[error("{found} fields where {expected} were expected")]
    Fields {
        /// Fields in the header.
        expected: usize,
        /// Fields in the row.
        found: usize,
    },
    /// The thread is not a number of 64 bits.
    #[error("the thread is not a number")]
    Thread,
    /// The time is neither `hours:minutes:seconds` nor seconds.
    #[error("the time can't be read")]
    Time,
    /// The action is none of `allocate`, `free`, `allocate failure`.
    #[error("the action is unknown")]
    Action,
    /// The pointer is not a hexadecimal number of 64 bits.
    #[error("the pointer is not a hexadecimal number of 64 bits")]
    Pointer,
    /// The size is not a decimal number of 64 bits.
    #[error("the size is not a decimal number of 64 bits")]
    Size,
    /// The stream is not a hexadecimal number of 64 bits.
    #[error("the stream is not a hexadecimal number of 64 bits")]
    Stream,
    /// The line is longer than any row can be.
    #[error("the line is longer than {limit} bytes")]
    LineTooLong {
        /// The longest line accepted, in bytes.
        limit: usize,
    },
}

/// A replay that could not be made or could not go on. Every block that it had allocated was released again, except
/// one that the allocator itself refused to take back.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// A block of the trace is larger than any layout.
    #[error("operation {operation}: {source}")]
    Layout {
        /// Index of the operation in the trace.
        operation: u32,
        /// What is wrong with its size.
        source: LayoutError,
    },
    /// An allocation failed.
    #[error("pass {pass}, operation {operation}: allocating {bytes} bytes on {stream:?} failed: {source}")]
    Allocate {
        /// The pass, counted from 1.
        pass: u32,
        /// Index of the operation in the trace.
        operation: u32,
        /// Bytes asked for.
        bytes: u64,
        /// The stream it was asked for on.
        stream: Stream,
        /// How many blocks were living; all of them were released.
        living: u64,
        /// The failure.
        source: AllocError,
    },
    /// A release was refused.
    #[error("pass {pass}, operation {operation}: releasing failed: {source}")]
    Release {
        /// The pass, counted from 1.
        pass: u32,
        /// Index of the operation in the trace; the number of operations for blocks that were still live at the end.
        operation: u32,
        /// The refusal.
        source: ReleaseError,
    },
    /// Writing to a block failed in the hook of [`Touch::With`](crate::Touch::With).
    #[error("pass {pass}, operation {operation}: touching the block failed: {source}")]
    Touch {
        /// The pass, counted from 1.
        pass: u32,
        /// Index of the operation in the trace.
        operation: u32,
        /// The failure.
        source: TransferError,
    },
    /// Pages were to be touched by the processor, which can't reach the device's memory.
    #[error("the processor can't write to the memory of {device}; touch it with a hook")]
    NotHostAccessible {
        /// The allocator's device.
        device: Device,
    },
    /// The trace names streams, and the device's streams are real ones: the caller must say which stand for them.
    #[error("{expected} streams must be given to replay this trace on {device}, not {given}")]
    Streams {
        /// The allocator's device.
        device: Device,
        /// How many streams the trace has.
        expected: usize,
        /// How many were given.
        given: usize,
    },
    /// A thread could not be started.
    #[error("can't start a thread: {0}")]
    Spawn(#[source] std::io::Error),
}
