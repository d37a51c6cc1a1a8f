//! What a program did with its memory.

use std::collections::HashSet;
use std::time::Duration;

use crate::{OperationKind, Trace};

/// What a trace says about the program that made it. Exact: no figure is sampled.
///
/// ```
/// use alloc_trace::{Policy, Profile, Reader, Trace};
/// let log = "\
/// Thread,Time,Action,Pointer,Size,Stream
/// 1,00:00:00.0,allocate,0x1000,1000,0x0
/// 1,00:00:00.1,allocate,0x2000,24,0x1
/// 1,00:00:00.2,free,0x1000,1000,0x1
/// ";
/// let profile = Profile::of(&Trace::from_rows(Reader::new(log.as_bytes())?, Policy::Strict)?);
/// assert_eq!((profile.peak_live_bytes, profile.peak_operation), (1024, 1));
/// assert_eq!(profile.streams[1].foreign_releases, 1);
/// # Ok::<(), alloc_trace::TraceError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Profile {
    /// Number of allocations.
    pub allocations: u64,
    /// Number of releases.
    pub releases: u64,
    /// Bytes of all allocations together.
    pub total_bytes: u128,
    /// The most bytes that lived at one time.
    pub peak_live_bytes: u64,
    /// Index of the operation that reached it first.
    pub peak_operation: u32,
    /// The most blocks that lived at one time.
    pub peak_live_blocks: u64,
    /// Bytes in blocks that were never released.
    pub live_bytes_at_end: u64,
    /// Number of blocks that were never released.
    pub live_blocks_at_end: u64,
    /// Number of different sizes.
    pub distinct_sizes: u64,
    /// How many blocks there were of each size, from small to large; empty classes are left out.
    pub sizes: Vec<SizeClass>,
    /// By stream, as [`Trace::streams`] numbers them.
    pub streams: Vec<StreamProfile>,
    /// By thread, as [`Trace::threads`] numbers them.
    pub threads: Vec<ThreadProfile>,
}

/// Blocks of similar size: those of zero bytes, or those from a power of two to just below the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SizeClass {
    /// The smallest size in the class, in bytes.
    pub from: u64,
    /// The largest size in the class, in bytes.
    pub to: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// Their bytes together.
    pub bytes: u128,
}

/// One stream's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamProfile {
    /// Number of allocations on the stream.
    pub allocations: u64,
    /// Number of releases on the stream.
    pub releases: u64,
    /// Releases on this stream of blocks that were born on another.
    pub foreign_releases: u64,
    /// Bytes of all allocations on the stream.
    pub total_bytes: u128,
    /// The most bytes of blocks born on the stream that lived at one time.
    pub peak_live_bytes: u64,
}

/// One thread's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadProfile {
    /// Number of allocations by the thread.
    pub allocations: u64,
    /// Number of releases by the thread.
    pub releases: u64,
    /// Releases by this thread of blocks that another allocated.
    pub foreign_releases: u64,
}

/// The state after one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LivePoint {
    /// Index of the operation.
    pub operation: u32,
    /// When it was done, as the recorder has it.
    pub time: Duration,
    /// Bytes that live after it.
    pub live_bytes: u64,
    /// Number of blocks that live after it.
    pub live_blocks: u64,
}

impl Trace {
    /// Live bytes over time: the state after every operation.
    pub fn live(&self) -> impl Iterator<Item = LivePoint> + '_ {
        let (mut live_bytes, mut live_blocks) = (0, 0);
        (0_u32..).zip(self.operations()).map(move |(operation, done)| {
            let bytes = self.blocks()[done.block as usize].bytes;
            match done.kind {
                OperationKind::Allocate => {
                    live_bytes += bytes;
                    live_blocks += 1;
                }
                OperationKind::Release => {
                    live_bytes -= bytes;
                    live_blocks -= 1;
                }
            }
            LivePoint { operation, time: done.time, live_bytes, live_blocks }
        })
    }

    /// Live bytes over time in at most `points` points, for a picture: the operations are divided evenly, and each
    /// part is shown by its highest point, so that no peak is lost.
    pub fn timeline(&self, points: usize) -> Vec<LivePoint> {
        let part = self.operations().len().div_ceil(points.max(1)).max(1);
        let mut timeline: Vec<LivePoint> = Vec::with_capacity(self.operations().len().div_ceil(part));
        for (index, point) in self.live().enumerate() {
            match timeline.last_mut() {
                Some(last) if index % part != 0 => {
                    if point.live_bytes > last.live_bytes {
                        *last = point;
                    }
                }
                _ => timeline.push(point),
            }
        }
        timeline
    }
}

impl Profile {
    /// The profile of a trace.
    pub fn of(trace: &Trace) -> Self {
        let mut profile = Self {
            streams: vec![StreamProfile::default(); trace.streams().len()],
            threads: vec![ThreadProfile::default(); trace.threads().len()],
            ..Self::default()
        };
        let mut live_by_stream = vec![0_u64; trace.streams().len()];
        for (operation, point) in trace.operations().iter().zip(trace.live()) {
            let block = trace.blocks()[operation.block as usize];
            let born = trace.operations()[block.allocated as usize];
            let stream = &mut profile.streams[operation.stream as usize];
            let thread = &mut profile.threads[operation.thread as usize];
            let live = &mut live_by_stream[born.stream as usize];
            match operation.kind {
                OperationKind::Allocate => {
                    *live += block.bytes;
                    profile.allocations += 1;
                    profile.total_bytes += u128::from(block.bytes);
                    stream.allocations += 1;
                    stream.total_bytes += u128::from(block.bytes);
                    stream.peak_live_bytes = stream.peak_live_bytes.max(*live);
                    thread.allocations += 1;
                }
                OperationKind::Release => {
                    *live -= block.bytes;
                    profile.releases += 1;
                    stream.releases += 1;
                    stream.foreign_releases += u64::from(born.stream != operation.stream);
                    thread.releases += 1;
                    thread.foreign_releases += u64::from(born.thread != operation.thread);
                }
            }
            if point.live_bytes > profile.peak_live_bytes {
                profile.peak_live_bytes = point.live_bytes;
                profile.peak_operation = point.operation;
            }
            profile.peak_live_blocks = profile.peak_live_blocks.max(point.live_blocks);
            (profile.live_bytes_at_end, profile.live_blocks_at_end) = (point.live_bytes, point.live_blocks);
        }
        profile.count_sizes(trace);
        profile
    }

    fn count_sizes(&mut self, trace: &Trace) {
        // Class 0 is that of zero bytes; class n holds the sizes of n bits.
        let mut classes: [SizeClass; 65] = std::array::from_fn(|bits| SizeClass {
            from: if bits == 0 { 0 } else { 1 << (bits - 1) },
            to: if bits == 0 { 0 } else { u64::MAX >> (64 - bits) },
            blocks: 0,
            bytes: 0,
        });
        let mut distinct = HashSet::new();
        for block in trace.blocks() {
            let class = &mut classes[(u64::BITS - block.bytes.leading_zeros()) as usize];
            class.blocks += 1;
            class.bytes += u128::from(block.bytes);
            distinct.insert(block.bytes);
        }
        self.distinct_sizes = distinct.len() as u64;
        self.sizes = classes.into_iter().filter(|class| class.blocks > 0).collect();
    }

    /// Number of operations: allocations and releases.
    pub fn operations(&self) -> u64 {
        self.allocations + self.releases
    }
}
