//! Which backend makes a copy, and the copies and fills themselves.
//!
//! In general: the destination's backend is asked first and the source's second, but one of plain host memory last,
//! since it knows nothing of a device's streams. Where both memories are the processor's and no backend is at hand,
//! the processor copies.

use std::mem::MaybeUninit;

use alloc_core::{Device, DeviceKind, Stream, Transfer, TransferError};

use crate::BufferError;
use crate::ledger::Intent;
use crate::order::{Side, When, submit};
use crate::raw::{self, Backing, Span};

/// Who makes a copy.
enum Path<'a> {
    /// A backend.
    Backend {
        transfer: &'a dyn Transfer,
        /// The device whose allocator's backend it is, if it is an allocator's.
        home: Option<Device>,
        /// The stream of that side.
        stream: Stream,
    },
    /// The processor, once all work on both sides is done.
    Processor,
}

impl<'a> Span<'a> {
    fn transfer(&self) -> Option<&'a dyn Transfer> {
        match self.backing() {
            Backing::Buffer { buffer, .. } => Some(buffer.allocator().transfer()),
            Backing::External { transfer } => transfer,
        }
    }

    fn stream(&self) -> Stream {
        match self.backing() {
            Backing::Buffer { buffer, .. } => buffer.stream(),
            Backing::External { .. } => Stream::DEFAULT,
        }
    }

    /// How many bytes from the start on are known to be initialised.
    pub(crate) fn initialised(&self) -> u64 {
        match self.backing() {
            Backing::Buffer { buffer, offset } => buffer.state().extent.run(offset, self.len()),
            Backing::External { .. } => self.len(),
        }
    }

    /// An error unless all bytes are known to be initialised.
    pub(crate) fn require_initialised(&self) -> Result<(), BufferError> {
        let initialised = self.initialised();
        if initialised < self.len() {
            return Err(BufferError::Uninitialised { start: 0, end: self.len(), initialised });
        }
        Ok(())
    }

    /// Enters that the bytes past `initialised` are about to become undefined.
    fn expect_initialised(&self, initialised: u64) {
        if let Backing::Buffer { buffer, offset } = self.backing()
            && initialised < self.len()
        {
            buffer.state().extent.remove(offset + initialised, self.len() - initialised);
        }
    }

    /// Enters that the first `initialised` bytes are written, or will be before anyone can look.
    fn set_initialised(&self, initialised: u64) {
        if let Backing::Buffer { buffer, offset } = self.backing() {
            buffer.state().extent.insert(offset, initialised);
        }
    }
}

fn choose<'a>(from: &Span<'a>, to: &Span<'a>) -> Result<Path<'a>, TransferError> {
    let (source, destination) = (from.place().device, to.place().device);
    let is_plain_host = |device: Device| device.kind() == DeviceKind::CPU;
    let candidates = if is_plain_host(destination) && !is_plain_host(source) { [from, to] } else { [to, from] };
    for side in candidates {
        if let Some(transfer) = side.transfer()
            && transfer.can_copy(source, destination)
        {
            let home = match side.backing() {
                Backing::Buffer { .. } => Some(side.place().device),
                Backing::External { .. } => None,
            };
            return Ok(Path::Backend { transfer, home, stream: side.stream() });
        }
    }
    if source.is_host_accessible() && destination.is_host_accessible() {
        return Ok(Path::Processor);
    }
    Err(TransferError::Unsupported { from: source, to: destination })
}

/// Copies as many bytes as the shorter one has; `to` is held exclusively by the caller. Returns their count.
pub(crate) fn copy(from: &Span<'_>, to: &Span<'_>, when: When) -> Result<u64, BufferError> {
    let bytes = from.len().min(to.len());
    let (Some(from), Some(mut to)) = (from.part(0..bytes), to.part(0..bytes)) else {
        return Ok(0);
    };
    if bytes == 0 {
        return Ok(0);
    }
    let initialised = from.initialised();
    if matches!(to.backing(), Backing::External { .. }) {
        // The owner of external memory reads it without asking.
        from.require_initialised()?;
    }
    match choose(&from, &to)? {
        Path::Processor => {
            from.settle(Intent::Read)?;
            to.settle(Intent::Write)?;
            to.expect_initialised(initialised);
            raw::copy_on_host(&from, &mut to)?;
        }
        Path::Backend { transfer, home, stream } => {
            let stream = match when {
                When::Finished => stream,
                When::On(stream) => stream,
            };
            let knows_stream = |span: &Span<'_>| {
                let at = span.place().device;
                home == Some(at) || transfer.shares_stream(stream, at)
            };
            let sides = [
                Side::copied(&from, Intent::Read, knows_stream(&from)),
                Side::copied(&to, Intent::Write, knows_stream(&to)),
            ];
            submit(transfer, stream, sides, when, || {
                to.expect_initialised(initialised);
                raw::submit_copy(transfer, &from, &to, stream)
            })?;
        }
    }
    to.set_initialised(initialised);
    Ok(bytes)
}

/// The same between memories of equal length only.
pub(crate) fn copy_exact(from: &Span<'_>, to: &Span<'_>, when: When) -> Result<(), BufferError> {
    if from.len() != to.len() {
        return Err(BufferError::LengthMismatch { destination_bytes: to.len(), source_bytes: from.len() });
    }
    copy(from, to, when).map(drop)
}

/// Sets all bytes; `to` is held exclusively by the caller.
pub(crate) fn fill(to: &Span<'_>, value: u8, when: When) -> Result<(), BufferError> {
    if to.len() == 0 {
        return Ok(());
    }
    let device = to.place().device;
    match (to.backing(), to.transfer()) {
        (Backing::External { .. }, _) if device.is_host_accessible() => {
            let mut to = *to;
            to.host_bytes_mut()?.fill(MaybeUninit::new(value));
        }
        (_, None) => return Err(BufferError::NoTransfer { device }),
        (_, Some(transfer)) => {
            let stream = match when {
                When::Finished => to.stream(),
                When::On(stream) => stream,
            };
            submit(transfer, stream, [Side::filled(to)], when, || raw::submit_fill(transfer, to, value, stream))?;
        }
    }
    to.set_initialised(to.len());
    Ok(())
}
