//! What a backend supplies to the pooling engine.

use std::fmt::Debug;

use crate::{Address, AddressRange, Device, ProviderError, Stream, Transfer};

/// How a backend's physical memory gets its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "the engine knows these two")]
pub enum Addressing {
    /// Address ranges are reserved, and physical memory is mapped anywhere in them, also at several places at once.
    Mapped,
    /// Each piece of physical memory is a segment that comes with an address of its own and keeps it.
    Segmented,
}

/// Free and total memory of a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "what every backend can say, and writes")]
pub struct DeviceMemory {
    /// Free at this moment.
    pub free: u64,
    /// In all; 0 where that is not known. A pool refuses a request for more without a try.
    pub total: u64,
}

/// Physical memory, addresses and events of one device. The engine never dereferences what it gets from here.
///
/// A backend is a crate that implements this and [`Transfer`]; pooling, stream rules, statistics and the conformance
/// suite come with the engine. Calls may come from any thread, several at a time, and leave no trace in the calling
/// thread (its current device stays what it was).
///
/// # Safety
/// The engine hands out this memory under the promises of [`DeviceAllocator`](crate::DeviceAllocator), so it must be
/// there. An implementation promises:
///
/// - A range from [`reserve`](MemoryProvider::reserve) is aligned as said there and used by nobody else until it is
///   given back.
/// - Each piece of physical memory is apart from all others. From the `Ok` of [`map`](MemoryProvider::map) until
///   [`unmap`](MemoryProvider::unmap), or as a segment until [`release`](MemoryProvider::release), it is valid for
///   reads and writes at its address by work of the device, and by the processor if the device is
///   [host-accessible](Device::is_host_accessible); its address then has exposed provenance. All its mappings show
///   the same bytes. A segment's address is a multiple of the granularity and stays the same.
/// - Events tell the truth: [`record`](MemoryProvider::record) says `None`,
///   [`is_complete`](MemoryProvider::is_complete) says yes and [`synchronize`](MemoryProvider::synchronize) returns
///   `Ok` only if the work is complete, and after [`make_wait`](MemoryProvider::make_wait) has returned `Ok` work does
///   wait.
/// - Device, addressing and granularity are always the same, and [`transfer`](MemoryProvider::transfer) copies and
///   fills this memory. Moving the provider changes nothing.
///
/// Nothing is promised of the addresses of a [simulated](Device::is_simulated) device.
pub unsafe trait MemoryProvider: Debug + Send + Sync + 'static {
    /// Owns a piece of physical memory, until [`MemoryProvider::release`].
    type Physical: Debug + Send + 'static;
    /// A point in a stream's work.
    type Event: Debug + Send + Sync + 'static;

    /// The device.
    fn device(&self) -> Device;

    /// How physical memory gets its addresses.
    fn addressing(&self) -> Addressing;

    /// The unit of physical memory and of mappings in bytes: a power of two, at least 4096.
    fn granularity(&self) -> u64;

    /// Free and total memory of the device.
    ///
    /// # Errors
    /// What the backend reports.
    fn memory(&self) -> Result<DeviceMemory, ProviderError>;

    /// Reserves `bytes` bytes of addresses (a multiple of the granularity, and aligned to it) with no memory behind
    /// them. Called only with [`Addressing::Mapped`].
    ///
    /// # Errors
    /// What the backend reports.
    fn reserve(&self, bytes: u64) -> Result<AddressRange, ProviderError>;

    /// Gives a reserved range back.
    ///
    /// # Errors
    /// What the backend reports.
    ///
    /// # Safety
    /// The range came from [`MemoryProvider::reserve`], nothing is mapped in it, and it is given back once.
    unsafe fn unreserve(&self, range: AddressRange) -> Result<(), ProviderError>;

    /// Takes `bytes` bytes of physical memory (a multiple of the granularity) from the device.
    ///
    /// # Errors
    /// What the backend reports; [`ProviderErrorKind::OutOfMemory`](crate::ProviderErrorKind::OutOfMemory) where
    /// giving memory back may help.
    fn create(&self, bytes: u64) -> Result<Self::Physical, ProviderError>;

    /// Gives physical memory back to the device.
    ///
    /// # Errors
    /// What the backend reports; the memory counts as given back all the same.
    ///
    /// # Safety
    /// It came from [`MemoryProvider::create`] of this provider with the same `bytes`, no mapping of it is left,
    /// and no work uses it (for [`Addressing::Segmented`]: the same of the segment).
    unsafe fn release(&self, physical: Self::Physical, bytes: u64) -> Result<(), ProviderError>;

    /// Maps all of `physical` at `at`, readable and writable. Its other mappings stay as they are. Called only with
    /// [`Addressing::Mapped`].
    ///
    /// # Errors
    /// What the backend reports; nothing is mapped then.
    ///
    /// # Safety
    /// `at` is a multiple of the granularity within a reserved range, nothing is mapped in the `bytes` bytes from
    /// it on, and `bytes` is the size that `physical` was created with.
    unsafe fn map(&self, at: Address, physical: &Self::Physical, bytes: u64) -> Result<(), ProviderError>;

    /// Removes one mapping, leaving the addresses reserved. Called only with [`Addressing::Mapped`].
    ///
    /// # Errors
    /// What the backend reports.
    ///
    /// # Safety
    /// `at` and `bytes` are those of one earlier [`MemoryProvider::map`], and no work uses the mapping.
    unsafe fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError>;

    /// Where a segment lies. Called only with [`Addressing::Segmented`].
    fn segment_address(&self, physical: &Self::Physical) -> Address;

    /// Marks the point that `stream` has been submitted up to. `None` says that all of its work is complete.
    ///
    /// # Errors
    /// What the backend reports.
    fn record(&self, stream: Stream) -> Result<Option<Self::Event>, ProviderError>;

    /// Whether all work before the event is complete.
    ///
    /// # Errors
    /// What the backend reports.
    fn is_complete(&self, event: &Self::Event) -> Result<bool, ProviderError>;

    /// Whether all work submitted to the stream so far is known to be complete. `false` where that may not be asked at
    /// present: while the stream is being captured, and while any is if the backend then forbids the question.
    /// Backends that can ask a stream without an event had better.
    ///
    /// # Errors
    /// What the backend reports.
    fn is_idle(&self, stream: Stream) -> Result<bool, ProviderError> {
        if self.is_capturing(stream)? {
            return Ok(false);
        }
        let Some(event) = self.record(stream)? else { return Ok(true) };
        let complete = self.is_complete(&event);
        self.recycle(event);
        complete
    }

    /// Whether [`is_idle`](Self::is_idle) takes several times as long as [`record`](Self::record) and
    /// [`make_wait`](Self::make_wait) together. Engines may then wait for streams that are always idle in place of asking
    /// them.
    fn is_idle_dear(&self) -> bool {
        false
    }

    /// Makes work that is submitted to `stream` from now on wait for the event.
    ///
    /// # Errors
    /// What the backend reports.
    fn make_wait(&self, stream: Stream, event: &Self::Event) -> Result<(), ProviderError>;

    /// Blocks the calling thread until the event is complete.
    ///
    /// # Errors
    /// What the backend reports.
    fn synchronize(&self, event: &Self::Event) -> Result<(), ProviderError>;

    /// Takes an event back for reuse.
    fn recycle(&self, event: Self::Event) {
        drop(event);
    }

    /// Whether work submitted to `stream` is at present being captured (into a CUDA graph) instead of run.
    ///
    /// # Errors
    /// What the backend reports.
    fn is_capturing(&self, stream: Stream) -> Result<bool, ProviderError> {
        let _ = stream;
        Ok(false)
    }

    /// What copies and fills this memory.
    fn transfer(&self) -> &dyn Transfer;
}
