//! Which addresses are reserved, which memory exists, and which is mapped where.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Addressing, ProviderCalls, ProviderError, ProviderErrorKind, Stream};

use super::failures::Failures;
use super::streams::{Access, SimulatedEvent, Streams};
use super::{SimulatedConfig, SimulatedPhysical};

/// A piece of physical memory that something touches, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) physical: u64,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Extent {
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        self.physical == other.physical
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

#[derive(Debug)]
struct View {
    bytes: u64,
    physical: u64,
}

#[derive(Debug)]
struct Handle {
    bytes: u64,
    views: u64,
    segment: Option<u64>,
}

/// Numbers of physical memory are unique in the process, so that memory of another provider is recognised.
static NEXT_PHYSICAL: AtomicU64 = AtomicU64::new(1);

#[derive(Debug)]
pub(super) struct Books {
    config: SimulatedConfig,
    /// Reserved ranges (and segments): bytes by first address.
    ranges: BTreeMap<u64, u64>,
    views: BTreeMap<u64, View>,
    handles: HashMap<u64, Handle>,
    cursor: u64,
    physical_bytes: u64,
    peak_physical_bytes: u64,
    violations: Vec<String>,
    pub(super) calls: ProviderCalls,
    pub(super) failures: Failures,
    pub(super) streams: Streams,
    pub(super) transfers: u64,
}

impl Books {
    pub(super) fn new(config: SimulatedConfig) -> Self {
        Self {
            config,
            ranges: BTreeMap::new(),
            views: BTreeMap::new(),
            handles: HashMap::new(),
            cursor: config.address_base,
            physical_bytes: 0,
            peak_physical_bytes: 0,
            violations: Vec::new(),
            calls: ProviderCalls::default(),
            failures: Failures::default(),
            streams: Streams::default(),
            transfers: 0,
        }
    }

    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }

    pub(super) fn physical_bytes(&self) -> u64 {
        self.physical_bytes
    }

    pub(super) fn peak_physical_bytes(&self) -> u64 {
        self.peak_physical_bytes
    }

    pub(super) fn mapped_bytes(&self) -> u64 {
        self.views.values().map(|view| view.bytes).sum()
    }

    pub(super) fn reserved_addresses(&self) -> u64 {
        self.ranges.values().sum()
    }

    pub(super) fn live_handles(&self) -> usize {
        self.handles.len()
    }

    pub(super) fn violation(&mut self, message: String) {
        self.violations.push(message);
    }

    fn refuse(&mut self, call: &'static str, message: String) -> ProviderError {
        self.violation(format!("{call}: {message}"));
        self.error(call, "SIMULATED_INVALID_ARGUMENT", ProviderErrorKind::InvalidArgument)
    }

    fn error(&self, call: &'static str, name: &'static str, kind: ProviderErrorKind) -> ProviderError {
        let code = match kind {
            ProviderErrorKind::InvalidArgument => 1,
            ProviderErrorKind::OutOfMemory => 2,
            _ => 999,
        };
        ProviderError { device: self.config.device, call, code, name: Cow::Borrowed(name), kind }
    }

    /// Counts a call that may fail, and fails it if a test said so.
    pub(super) fn enter(&mut self, call: &'static str) -> Result<(), ProviderError> {
        match self.failures.next() {
            Some(kind) => Err(self.error(call, "SIMULATED_FAILURE", kind)),
            None => Ok(()),
        }
    }

    fn is_granular(&self, number: u64) -> bool {
        number.is_multiple_of(self.config.granularity)
    }

    fn is_mapped_addressing(&self) -> bool {
        self.config.addressing == Addressing::Mapped
    }

    /// Free addresses. Fresh ones as long as there are any, so that a stale address is not valid again soon. Ranges
    /// lie next to each other, so that an engine that merges across them is found out.
    fn find_addresses(&self, bytes: u64) -> Option<u64> {
        let limit = self.config.address_base.checked_add(self.config.address_space)?;
        let fits = |start: u64, end: u64| end.checked_sub(start).is_some_and(|gap| gap >= bytes);
        if fits(self.cursor, limit) {
            return Some(self.cursor);
        }
        let mut start = self.config.address_base;
        for (range, length) in &self.ranges {
            if fits(start, *range) {
                return Some(start);
            }
            start = range + length;
        }
        fits(start, limit).then_some(start)
    }

    fn take_addresses(&mut self, bytes: u64) -> Option<u64> {
        let start = self.find_addresses(bytes)?;
        self.cursor = self.cursor.max(start + bytes);
        self.ranges.insert(start, bytes);
        Some(start)
    }

    pub(super) fn reserve(&mut self, bytes: u64) -> Result<u64, ProviderError> {
        self.calls.reserve += 1;
        self.enter("reserve")?;
        if !self.is_mapped_addressing() {
            return Err(self.refuse("reserve", "segments bring their own addresses".into()));
        }
        if bytes == 0 || !self.is_granular(bytes) {
            return Err(self.refuse("reserve", format!("{bytes} bytes are no multiple of the granularity")));
        }
        self.take_addresses(bytes)
            .ok_or_else(|| self.error("reserve", "SIMULATED_OUT_OF_ADDRESSES", ProviderErrorKind::OutOfMemory))
    }

    pub(super) fn unreserve(&mut self, start: u64, bytes: u64) -> Result<(), ProviderError> {
        self.enter("unreserve")?;
        if !self.is_mapped_addressing() || self.ranges.get(&start) != Some(&bytes) {
            return Err(self.refuse("unreserve", format!("{bytes} bytes at {start:#x} were not reserved so")));
        }
        if let Some((at, _)) = self.first_view(start, bytes) {
            return Err(self.refuse("unreserve", format!("{start:#x} still has a mapping at {at:#x}")));
        }
        self.ranges.remove(&start);
        Ok(())
    }

    pub(super) fn create(&mut self, bytes: u64) -> Result<SimulatedPhysical, ProviderError> {
        self.calls.create += 1;
        self.enter("create")?;
        if bytes == 0 || !self.is_granular(bytes) {
            return Err(self.refuse("create", format!("{bytes} bytes are no multiple of the granularity")));
        }
        let out_of_memory = |books: &Self, name| books.error("create", name, ProviderErrorKind::OutOfMemory);
        if self.config.capacity - self.physical_bytes < bytes {
            return Err(out_of_memory(self, "SIMULATED_OUT_OF_MEMORY"));
        }
        let id = NEXT_PHYSICAL.fetch_add(1, Ordering::Relaxed);
        let mut handle = Handle { bytes, views: 0, segment: None };
        if !self.is_mapped_addressing() {
            let Some(address) = self.take_addresses(bytes) else {
                return Err(out_of_memory(self, "SIMULATED_OUT_OF_ADDRESSES"));
            };
            self.views.insert(address, View { bytes, physical: id });
            handle.segment = Some(address);
        }
        self.handles.insert(id, handle);
        self.physical_bytes += bytes;
        self.peak_physical_bytes = self.peak_physical_bytes.max(self.physical_bytes);
        Ok(SimulatedPhysical { id })
    }

    pub(super) fn release(&mut self, id: u64, bytes: u64) -> Result<(), ProviderError> {
        self.calls.release += 1;
        let entered = self.enter("release");
        let Some(handle) = self.handles.remove(&id) else {
            return Err(self.refuse("release", format!("physical {id} was not created here, or released before")));
        };
        self.physical_bytes -= handle.bytes;
        if handle.bytes != bytes {
            self.violation(format!("release: physical {id} has {} bytes, not {bytes}", handle.bytes));
        }
        if handle.views > 0 {
            self.violation(format!("release: physical {id} has {} mappings left", handle.views));
        }
        let user = self.streams.unfinished().find_map(|(stream, work)| {
            work.extents.iter().any(|extent| extent.physical == id).then_some((stream, work.address, work.bytes))
        });
        if let Some((stream, address, bytes)) = user {
            self.violation(format!(
                "release: work on {stream:?} with {bytes} bytes at {address:#x} in physical {id} is not complete"
            ));
        }
        if let Some(address) = handle.segment {
            self.views.remove(&address);
            self.ranges.remove(&address);
        }
        entered
    }

    pub(super) fn map(&mut self, at: u64, id: u64, bytes: u64) -> Result<(), ProviderError> {
        self.calls.map += 1;
        self.enter("map")?;
        if !self.is_mapped_addressing() {
            return Err(self.refuse("map", "segments can't be mapped".into()));
        }
        match self.handles.get(&id).map(|handle| handle.bytes) {
            None => return Err(self.refuse("map", format!("physical {id} does not exist here"))),
            Some(own) if own != bytes => {
                return Err(self.refuse("map", format!("physical {id} has {own} bytes, not {bytes}")));
            }
            Some(_) => {}
        }
        if !self.is_granular(at) {
            return Err(self.refuse("map", format!("{at:#x} is misaligned")));
        }
        let end = at.checked_add(bytes);
        let range = self.ranges.range(..=at).next_back().map(|(start, length)| start + length);
        if !matches!((end, range), (Some(end), Some(limit)) if end <= limit) {
            return Err(self.refuse("map", format!("{bytes} bytes at {at:#x} are not within one reserved range")));
        }
        if let Some((other, view)) = self.first_view(at, bytes) {
            let physical = view.physical;
            return Err(
                self.refuse("map", format!("{bytes} bytes at {at:#x} overlap physical {physical} at {other:#x}"))
            );
        }
        self.views.insert(at, View { bytes, physical: id });
        if let Some(handle) = self.handles.get_mut(&id) {
            handle.views += 1;
        }
        Ok(())
    }

    pub(super) fn unmap(&mut self, at: u64, bytes: u64) -> Result<(), ProviderError> {
        self.calls.unmap += 1;
        self.enter("unmap")?;
        let physical = match self.views.get(&at) {
            Some(view) if view.bytes == bytes && self.is_mapped_addressing() => view.physical,
            _ => return Err(self.refuse("unmap", format!("{bytes} bytes at {at:#x} are not one mapping"))),
        };
        let user = self
            .streams
            .unfinished()
            .find(|(_, work)| work.address < at + bytes && at < work.address.saturating_add(work.bytes))
            .map(|(stream, work)| (stream, work.address, work.bytes));
        if let Some((stream, address, length)) = user {
            self.violation(format!(
                "unmap: work on {stream:?} with {length} bytes at {address:#x} in the mapping at {at:#x} is not complete"
            ));
        }
        self.views.remove(&at);
        if let Some(handle) = self.handles.get_mut(&physical) {
            handle.views -= 1;
        }
        Ok(())
    }

    pub(super) fn segment_address(&mut self, id: u64) -> u64 {
        match self.handles.get(&id).and_then(|handle| handle.segment) {
            Some(address) => address,
            None => {
                self.violation(format!("segment_address: physical {id} is no segment of this provider"));
                0
            }
        }
    }

    /// The first mapping that overlaps the range.
    fn first_view(&self, at: u64, bytes: u64) -> Option<(u64, &View)> {
        let before = self.views.range(..=at).next_back().filter(|(start, view)| *start + view.bytes > at);
        let within = || self.views.range(at..at.saturating_add(bytes)).next();
        before.or_else(within).map(|(start, view)| (*start, view))
    }

    /// The physical memory behind a range, or `None` if not every byte has some.
    pub(super) fn resolve(&self, address: u64, bytes: u64) -> Option<Vec<Extent>> {
        let end = address.checked_add(bytes)?;
        let mut extents = Vec::new();
        let mut at = address;
        while at < end {
            let (start, view) = self.views.range(..=at).next_back()?;
            let stop = (start + view.bytes).min(end);
            if stop <= at {
                return None;
            }
            extents.push(Extent { physical: view.physical, offset: at - start, bytes: stop - at });
            at = stop;
        }
        let one_segment = self.is_mapped_addressing() || extents.len() <= 1;
        one_segment.then_some(extents)
    }

    pub(super) fn submit(&mut self, stream: Stream, address: u64, bytes: u64, access: Access) {
        let Some(extents) = self.resolve(address, bytes) else {
            self.violation(format!("submit: {bytes} bytes at {address:#x} on {stream:?} have no memory behind them"));
            return;
        };
        if let Some(other) = self.streams.submit(stream, address, bytes, extents, access) {
            self.violation(format!(
                "submit: overlap without ordering: {bytes} bytes at {address:#x} on {stream:?} are still touched by \
                 work on {other:?}"
            ));
        }
    }

    pub(super) fn record(&mut self, stream: Stream) -> Result<Option<SimulatedEvent>, ProviderError> {
        self.calls.record += 1;
        self.enter("record")?;
        if self.streams.is_capturing(stream) {
            self.violation(format!("record: {stream:?} is being captured"));
        }
        Ok(self.streams.record(stream))
    }

    pub(super) fn is_complete(&mut self, event: &SimulatedEvent) -> Result<bool, ProviderError> {
        self.calls.query += 1;
        self.enter("is_complete")?;
        self.check_no_capture("is_complete");
        Ok(self.streams.is_complete(event))
    }

    /// Says no while any stream is captured: a backend may forbid the question then.
    pub(super) fn is_idle(&mut self, stream: Stream) -> Result<bool, ProviderError> {
        self.calls.query += 1;
        self.enter("is_idle")?;
        if self.streams.captured_stream().is_some() {
            return Ok(false);
        }
        let point = self.streams.record(stream);
        Ok(point.is_none_or(|point| self.streams.is_complete(&point)))
    }

    pub(super) fn synchronize(&mut self, event: &SimulatedEvent) -> Result<(), ProviderError> {
        self.calls.query += 1;
        self.enter("synchronize")?;
        self.check_no_capture("synchronize");
        self.streams.synchronize(event);
        Ok(())
    }

    pub(super) fn make_wait(&mut self, stream: Stream, event: &SimulatedEvent) -> Result<(), ProviderError> {
        self.calls.wait += 1;
        self.enter("make_wait")?;
        if self.streams.is_capturing(stream) && !event.is_captured() {
            self.violation(format!("make_wait: {stream:?} is being captured, the event is from before"));
        }
        self.streams.make_wait(stream, event);
        Ok(())
    }

    fn check_no_capture(&mut self, call: &'static str) {
        if let Some(stream) = self.streams.captured_stream() {
            self.violation(format!("{call}: {stream:?} is being captured"));
        }
    }

    /// Counts a transfer that touches `bytes` bytes at `address`.
    pub(super) fn transfer(&mut self, address: u64, bytes: u64) {
        if self.resolve(address, bytes).is_none() {
            self.violation(format!("transfer: {bytes} bytes at {address:#x} have no memory behind them"));
        }
    }
}
