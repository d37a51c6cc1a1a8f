//! Drives an allocator with the operations of a trace.

mod plan;
mod raw;
mod report;
mod single;
mod threaded;

use std::fmt;
use std::sync::Arc;

use alloc_core::{Block, Device, DeviceAllocator, DeviceKind, Stream, TransferError};

use crate::{ReplayError, Trace};
use raw::{DontTouch, TouchPages, TouchWith};

pub use report::PassReport;

/// Replays a trace through an allocator as fast as it goes, one pass after the other on the same allocator.
///
/// Everything is looked up before the timed part: it is a walk over an array, with one call of the allocator for
/// each operation. Blocks that still live at the end of the recording are released at the end of each pass; those
/// releases are timed and counted too. A release names the stream of its row; no other uses are declared.
///
/// ```
/// use alloc_core::{Device, SimulatedAllocator};
/// use alloc_trace::{Policy, Reader, Replay, Trace};
///
/// let log = "Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00.1,allocate,0x1000,64,0x0\n";
/// let trace = Trace::from_rows(Reader::new(log.as_bytes())?, Policy::Strict)?;
/// let allocator = SimulatedAllocator::new(Device::CPU, 1 << 20);
/// let reports = Replay::new(&trace).passes(2).run(&allocator)?;
/// assert_eq!(reports.len(), 2);
/// // The block that was never released is released at the end of each pass.
/// assert_eq!(reports[1].operations, 2);
/// println!("{:.1} ns per operation", reports[1].ns_per_operation());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is replayed before `run`"]
pub struct Replay<'a> {
    trace: &'a Trace,
    passes: u32,
    threading: Threading,
    touch: Touch,
    streams: Option<Vec<Stream>>,
}

/// On which threads a trace is replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Threading {
    /// All operations on the calling thread, in the order of the log.
    #[default]
    One,
    /// A thread for every recorded one, which does that thread's operations in their order.
    ///
    /// A release by another thread than the one that allocates waits until the block exists. Apart from that the
    /// threads run free, so that more blocks may live at one time than in the recording.
    PerRecordedThread,
}

/// The hook of [`Touch::With`].
pub type TouchHook = Arc<dyn Fn(Block, Stream) -> Result<(), TransferError> + Send + Sync>;

/// What is done with each block once it is allocated, within the timed part.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Touch {
    /// Nothing: the time is the allocator's alone.
    #[default]
    No,
    /// One byte of every 4096 is written by the processor, and the last one, so that page faults count.
    Pages,
    /// This is called with the block and the stream that it was born on; for memory that the processor can't reach.
    With(TouchHook),
}

impl fmt::Debug for Touch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::No => "No",
            Self::Pages => "Pages",
            Self::With(_) => "With(..)",
        })
    }
}

impl<'a> Replay<'a> {
    /// A replay of one pass on the calling thread that touches nothing.
    pub fn new(trace: &'a Trace) -> Self {
        Self { trace, passes: 1, threading: Threading::One, touch: Touch::No, streams: None }
    }

    /// How many passes [`Replay::run`] makes.
    pub fn passes(mut self, passes: u32) -> Self {
        self.passes = passes;
        self
    }

    /// On which threads.
    pub fn threading(mut self, threading: Threading) -> Self {
        self.threading = threading;
        self
    }

    /// What is done with each block.
    pub fn touch(mut self, touch: Touch) -> Self {
        self.touch = touch;
        self
    }

    /// Which streams stand for the recorded ones, in the order of [`Trace::streams`].
    ///
    /// Needed where streams are real: without it the recorded handles are used, which is refused on any device but
    /// a host or a simulated one, unless all of them are the default stream.
    pub fn streams(mut self, streams: impl Into<Vec<Stream>>) -> Self {
        self.streams = Some(streams.into());
        self
    }

    /// Replays. The loop is compiled for the type of the allocator; `&dyn DeviceAllocator` will do as well.
    ///
    /// # Errors
    /// [`ReplayError`]; all blocks that lived were released.
    pub fn run<A: DeviceAllocator + ?Sized>(&self, allocator: &A) -> Result<Vec<PassReport>, ReplayError> {
        let mut reports = Vec::new();
        self.run_with(allocator, |report| reports.push(report.clone()))?;
        Ok(reports)
    }

    /// Replays, calling `on_pass` after each pass.
    ///
    /// # Errors
    /// As [`Replay::run`].
    pub fn run_with<A: DeviceAllocator + ?Sized>(
        &self,
        allocator: &A,
        on_pass: impl FnMut(&PassReport),
    ) -> Result<(), ReplayError> {
        let device = allocator.device();
        let streams = self.resolve_streams(device)?;
        match &self.touch {
            Touch::No => self.dispatch(allocator, &streams, &DontTouch, on_pass),
            Touch::Pages if device.is_host_accessible() => self.dispatch(allocator, &streams, &TouchPages, on_pass),
            Touch::Pages => Err(ReplayError::NotHostAccessible { device }),
            Touch::With(hook) => self.dispatch(allocator, &streams, &TouchWith(&**hook), on_pass),
        }
    }

    fn dispatch<A: DeviceAllocator + ?Sized>(
        &self,
        allocator: &A,
        streams: &[Stream],
        touch: &impl raw::TouchBlock,
        on_pass: impl FnMut(&PassReport),
    ) -> Result<(), ReplayError> {
        match self.threading {
            Threading::One => single::run(self.trace, self.passes, allocator, streams, touch, on_pass),
            Threading::PerRecordedThread => threaded::run(self.trace, self.passes, allocator, streams, touch, on_pass),
        }
    }

    fn resolve_streams(&self, device: Device) -> Result<Vec<Stream>, ReplayError> {
        let recorded = self.trace.streams();
        let refuse = |given| ReplayError::Streams { device, expected: recorded.len(), given };
        match &self.streams {
            Some(streams) if streams.len() == recorded.len() => Ok(streams.clone()),
            Some(streams) => Err(refuse(streams.len())),
            None if device.kind() == DeviceKind::CPU || device.is_simulated() => Ok(recorded.to_vec()),
            None if recorded.iter().all(|&stream| stream == Stream::DEFAULT) => Ok(recorded.to_vec()),
            None => Err(refuse(0)),
        }
    }
}
