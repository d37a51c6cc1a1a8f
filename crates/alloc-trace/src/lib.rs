//! Allocation traces of real programs: load, check, profile, save and replay them.
//!
//! The format is the log of [RMM](https://github.com/rapidsai/rmm)'s logging adaptor, plain or compressed with gzip
//! or zstd (feature `compression`, on by default): one row per allocation or release,
//! `Thread,Time,Action,Pointer,Size,Stream`.
//!
//! - [`Reader`] streams the rows of a file, [`Writer`] writes them.
//! - [`Trace`] is a whole recording with its blocks matched up; [`Policy`] says what happens to rows that don't match.
//! - [`Profile`] says what the program did: live bytes over time, the peak, sizes, streams.
//! - [`Replay`] drives any [`DeviceAllocator`](alloc_core::DeviceAllocator) with a trace at full speed and reports
//!   what it cost.
//! - [`Picture`] is a page that shows what a program did, and where a pool has its memory.
//!
//! ```
//! use alloc_trace::{Policy, Profile, Reader, Trace};
//!
//! let log = "\
//! Thread,Time,Action,Pointer,Size,Stream
//! 1,00:00:00.000002,allocate,0x7f0000000000,4096,0x0
//! 1,00:00:00.000005,allocate,0x7f0000001000,512,0x0
//! 1,00:00:00.000009,free,0x7f0000000000,4096,0x0
//! ";
//! let trace = Trace::from_rows(Reader::new(log.as_bytes())?, Policy::Strict)?;
//! let profile = Profile::of(&trace);
//! assert_eq!((profile.peak_live_bytes, profile.live_bytes_at_end), (4608, 512));
//! # Ok::<(), alloc_trace::TraceError>(())
//! ```

mod compression;
mod error;
mod ledger;
mod picture;
mod profile;
mod reader;
mod replay;
mod row;
mod trace;
mod writer;

pub use compression::Compression;
pub use error::{ReplayError, RowProblem, TraceError};
pub use ledger::{Anomalies, Anomaly, Policy, validate};
pub use picture::Picture;
pub use profile::{LivePoint, Profile, SizeClass, StreamProfile, ThreadProfile};
pub use reader::Reader;
pub use replay::{PassReport, Replay, Threading, Touch, TouchHook};
pub use row::{Action, Row};
pub use trace::{Operation, OperationKind, Trace, TracedBlock};
pub use writer::Writer;
