//! Work on buffers and the streams that it must come after: the one way by which this crate submits copies and fills.

use std::sync::MutexGuard;

use alloc_core::{DeviceKind, Stream, Transfer, TransferError};

use crate::buffer::State;
use crate::ledger::{Conflicts, Intent};
use crate::raw::{Backing, Span};
use crate::{Buffer, BufferError};

/// When a copy or a fill is to be done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// Before the call returns.
    Finished,
    /// In the order of a stream.
    On(Stream),
}

impl Buffer {
    /// Makes `stream` wait for what conflicts with the intended work. As of when it comes after that.
    pub(crate) fn order_on(&self, stream: Stream, intent: Intent) -> Result<u64, BufferError> {
        // Nearly always there is nothing to wait for, and to see that takes less than to collect it.
        let clear = self.known_state()?.ledger.is_clear_on(stream, self.stream(), intent);
        match clear {
            Some(as_of) => Ok(as_of),
            None => Ok(self.order_after_conflicts_on(stream, intent)?.as_of),
        }
    }

    /// The same, and what conflicted.
    pub(crate) fn order_after_conflicts_on(&self, stream: Stream, intent: Intent) -> Result<Conflicts, BufferError> {
        let conflicts = self.known_state()?.ledger.conflicts_on(stream, self.stream(), intent);
        for earlier in conflicts.streams.iter() {
            self.allocator().transfer().order_after(stream, earlier)?;
        }
        Ok(conflicts)
    }

    /// Waits for what conflicts with what the host intends.
    pub(crate) fn settle(&self, intent: Intent) -> Result<(), BufferError> {
        let conflicts = self.known_state()?.ledger.conflicts_on_host(self.stream(), intent);
        for stream in conflicts.streams.iter() {
            self.allocator().transfer().synchronize(stream)?;
        }
        if !conflicts.streams.is_empty() {
            self.state().ledger.finish(None, self.stream(), intent, conflicts.as_of);
        }
        Ok(())
    }

    /// The books, unless work is under way that they don't know.
    fn known_state(&self) -> Result<MutexGuard<'_, State>, BufferError> {
        let state = self.state();
        if state.ledger.is_unfinished() {
            return Err(BufferError::Unfinished { device: self.device() });
        }
        Ok(state)
    }
}

impl Span<'_> {
    /// Waits for what conflicts with what the host intends.
    pub(crate) fn settle(&self, intent: Intent) -> Result<(), BufferError> {
        match self.backing() {
            Backing::Buffer { buffer, .. } => buffer.settle(intent),
            Backing::External { .. } => Ok(()),
        }
    }
}

/// One memory that work uses.
#[derive(Debug)]
pub(crate) struct Side<'a> {
    backing: Backing<'a>,
    intent: Intent,
    /// The memory's own allocator knows the stream.
    knows_stream: bool,
    /// The work has left the memory when its submission returns.
    leaves_at_once: bool,
}

impl<'a> Side<'a> {
    /// A memory that is filled through its own allocator.
    pub(crate) fn filled(span: &Span<'a>) -> Self {
        Self { backing: span.backing(), intent: Intent::Write, knows_stream: true, leaves_at_once: false }
    }

    /// A memory that is copied from or to; of the host's memory [`Transfer::copy`] promises to leave it at once.
    pub(crate) fn copied(span: &Span<'a>, intent: Intent, knows_stream: bool) -> Self {
        let leaves_at_once = span.place().device.kind() == DeviceKind::CPU;
        Self { backing: span.backing(), intent, knows_stream, leaves_at_once }
    }

    /// Orders the work after what conflicts with it, and says what its submission entails.
    fn prepare(&self, stream: Stream) -> Result<Entails<'a>, BufferError> {
        let Backing::Buffer { buffer, .. } = self.backing else {
            return Ok(if self.leaves_at_once { Entails::Nothing } else { Entails::Wait });
        };
        if !self.knows_stream {
            buffer.settle(self.intent)?;
            return Ok(if self.leaves_at_once { Entails::Nothing } else { Entails::WaitOrLeak(buffer) });
        }
        let as_of = buffer.order_on(stream, self.intent)?;
        if self.leaves_at_once {
            return Ok(Entails::Nothing);
        }
        Ok(Entails::Declare { buffer, stream, intent: self.intent, as_of })
    }
}

/// What work that was submitted entails for a memory.
#[derive(Clone, Copy, Debug)]
enum Entails<'a> {
    /// The work has left the memory.
    Nothing,
    /// The work must be over before the borrow is.
    Wait,
    /// The work must be over before the call is, or the memory can never be reused.
    WaitOrLeak(&'a Buffer),
    /// The work is entered in the books.
    Declare { buffer: &'a Buffer, stream: Stream, intent: Intent, as_of: u64 },
}

/// Work that was perhaps submitted. Whether the submission returns, fails or unwinds, the books are told of it.
#[derive(Debug)]
struct Submitted<'a>(Entails<'a>);

impl Submitted<'_> {
    const fn must_wait(&self) -> bool {
        matches!(self.0, Entails::Wait | Entails::WaitOrLeak(_))
    }

    /// Says that the host has waited for the work.
    fn finish(&mut self) {
        if let Entails::Declare { buffer, stream, intent, as_of } = self.0 {
            buffer.state().ledger.finish(Some(stream), buffer.stream(), intent, as_of);
        }
        self.0 = Entails::Nothing;
    }
}

impl Drop for Submitted<'_> {
    fn drop(&mut self) {
        match self.0 {
            Entails::Nothing | Entails::Wait => {}
            Entails::WaitOrLeak(buffer) => buffer.state().ledger.set_unfinished(),
            Entails::Declare { buffer, stream, intent, as_of } => {
                buffer.state().ledger.declare_ordered(stream, buffer.stream(), intent, as_of);
            }
        }
    }
}

/// Submits `work` on `sides` to `stream` after all that conflicts with it, and declares it; waits for it where it is
/// asked to, and where a side could not be told of it otherwise.
pub(crate) fn submit<const N: usize>(
    transfer: &dyn Transfer,
    stream: Stream,
    sides: [Side<'_>; N],
    when: When,
    work: impl FnOnce() -> Result<(), TransferError>,
) -> Result<(), BufferError> {
    let mut entails = [Entails::Nothing; N];
    for (slot, side) in entails.iter_mut().zip(&sides) {
        *slot = side.prepare(stream)?;
    }
    let mut submitted = entails.map(Submitted);
    let outcome = work();
    if matches!(when, When::Finished) || submitted.iter().any(Submitted::must_wait) {
        let waited = transfer.synchronize(stream);
        if waited.is_ok() {
            submitted.iter_mut().for_each(Submitted::finish);
        }
        outcome.and(waited)?;
    } else {
        outcome?;
    }
    Ok(())
}
