//! A provider that keeps books instead of memory.

mod books;
mod failures;
mod provider;
mod streams;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Address, Addressing, Device, DeviceKind, ProviderCalls, ProviderErrorKind, Stream};

use books::Books;
use provider::SimulatedTransfer;
use streams::Access;
pub use streams::SimulatedEvent;

/// The device of a [`SimulatedProvider`], unless its configuration names another. The code of its kind is DLPack's
/// for an extension.
pub const SIMULATED: Device = Device::new(DeviceKind::new(12, false), 0).simulated();

/// How a [`SimulatedProvider`] behaves. New fields come with versions that are compatible by their number, so write it
/// with `..SimulatedConfig::default()` at the end.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::exhaustive_structs, reason = "written with `..SimulatedConfig::default()`, as its doc says")]
pub struct SimulatedConfig {
    /// The device that it stands for: it says that it is the [simulated](Device::simulated) one.
    pub device: Device,
    /// Whether memory is mapped into reserved ranges or comes as segments.
    pub addressing: Addressing,
    /// The unit of memory and mappings in bytes, a power of two of at least 4096. 2 MiB by default, as on CUDA.
    pub granularity: u64,
    /// How many bytes of physical memory there are. 16 GiB by default.
    pub capacity: u64,
    /// The first address that it hands out, a multiple of the granularity.
    pub address_base: u64,
    /// How many bytes of addresses there are. 128 TiB by default.
    pub address_space: u64,
    /// Whether it says that [`is_idle_dear`](crate::MemoryProvider::is_idle_dear). Not by default.
    pub is_idle_dear: bool,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        Self {
            device: SIMULATED,
            addressing: Addressing::Mapped,
            granularity: 2 << 20,
            capacity: 16 << 30,
            address_base: 0x7000_0000_0000,
            address_space: 128 << 40,
            is_idle_dear: false,
        }
    }
}

/// Physical memory of a [`SimulatedProvider`]: a number that no other has.
#[derive(Debug)]
pub struct SimulatedPhysical {
    id: u64,
}

impl SimulatedPhysical {
    /// The number, unique in the process.
    pub fn id(&self) -> u64 {
        self.id
    }
}

/// A [`MemoryProvider`](crate::MemoryProvider) with no memory behind it, to test engines with.
///
/// A breach of the provider's contract is recorded as a violation, never a panic: the call is refused as a driver
/// would refuse it, and [`assert_clean`](Self::assert_clean) fails later. Violations are
/// - ranges and sizes that are misaligned, overlap, or are not what was reserved, created or mapped;
/// - physical memory released twice or with mappings left, addresses given back with mappings left;
/// - memory unmapped or released while work that touches it is not complete;
/// - work on two streams that touches the same physical memory with nothing that orders them;
/// - calls that are illegal while a stream is being captured.
///
/// Streams are queues of work. A test [submits](Self::submit) work that touches memory and says when it is
/// [complete](Self::complete_next); nothing completes by itself, except that
/// [`synchronize`](crate::MemoryProvider::synchronize) completes what it waits for.
///
/// Clones are handles to the same provider, so a test keeps one while a pool owns another.
///
/// ```
/// use alloc_core::conformance::SimulatedProvider;
/// use alloc_core::{MemoryProvider, Stream};
///
/// let provider = SimulatedProvider::default();
/// let page = provider.granularity();
/// let range = provider.reserve(4 * page)?;
/// let physical = provider.create(page)?;
/// // SAFETY: the range is reserved and empty, and the page is as large as it was created.
/// unsafe { provider.map(range.start, &physical, page)? };
/// assert!(provider.is_backed(range.start, page));
///
/// let stream = Stream::from_raw(1);
/// provider.submit(stream, range.start, 100);
/// // Too early: the work is not complete.
/// // SAFETY: the simulation has no memory that could be misused.
/// unsafe { provider.unmap(range.start, page)? };
/// assert!(provider.violations()[0].contains("not complete"));
/// # Ok::<(), alloc_core::ProviderError>(())
/// ```
#[derive(Clone)]
pub struct SimulatedProvider {
    config: SimulatedConfig,
    books: Arc<Mutex<Books>>,
    transfer: SimulatedTransfer,
}

impl SimulatedProvider {
    /// A provider that behaves as `config` says.
    ///
    /// # Panics
    /// If the granularity is not a power of two of at least 4096, or the base is no multiple of it.
    pub fn new(config: SimulatedConfig) -> Self {
        let config = SimulatedConfig { device: config.device.simulated(), ..config };
        assert!(config.granularity.is_power_of_two() && config.granularity >= 4096, "{config:?}");
        assert!(config.address_base.is_multiple_of(config.granularity), "{config:?}");
        let books = Arc::new(Mutex::new(Books::new(config)));
        let transfer = SimulatedTransfer { device: config.device, books: Arc::clone(&books) };
        Self { config, books, transfer }
    }

    /// A provider with `capacity` bytes that are mapped into reserved ranges.
    pub fn mapped(capacity: u64) -> Self {
        Self::new(SimulatedConfig { capacity, ..SimulatedConfig::default() })
    }

    /// A provider with `capacity` bytes that come as segments.
    pub fn segmented(capacity: u64) -> Self {
        Self::new(SimulatedConfig { capacity, addressing: Addressing::Segmented, ..SimulatedConfig::default() })
    }

    /// How it behaves.
    pub fn config(&self) -> &SimulatedConfig {
        &self.config
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The breaches of the contract so far, in order.
    pub fn violations(&self) -> Vec<String> {
        self.books().violations().to_vec()
    }

    /// # Panics
    /// If there was a violation; the message lists them.
    #[track_caller]
    pub fn assert_clean(&self) {
        let violations = self.violations();
        assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
    }

    /// For the end of a test, when the engine is gone.
    ///
    /// # Panics
    /// If there was a violation, or if memory, mappings, addresses or events were not given back.
    #[track_caller]
    pub fn assert_all_returned(&self) {
        self.assert_clean();
        let left = (self.live_handles(), self.mapped_bytes(), self.reserved_addresses(), self.live_events());
        assert!(
            left == (0, 0, 0, 0),
            "not given back: {} handles, {} mapped bytes, {} bytes of addresses, {} events",
            left.0,
            left.1,
            left.2,
            left.3
        );
    }

    /// Calls so far, failed ones included.
    pub fn calls(&self) -> ProviderCalls {
        self.books().calls
    }

    /// All calls so far that could have failed: those of [`calls`](Self::calls), and to give addresses back, to ask
    /// for free memory and to ask about capture.
    pub fn fallible_calls(&self) -> u64 {
        self.books().failures.calls()
    }

    /// Makes the `n`-th fallible call from now fail with `kind`: 1 is the next. What fails has no effect, except
    /// that memory whose release fails is gone all the same.
    pub fn fail_call(&self, n: u64, kind: ProviderErrorKind) {
        self.books().failures.fail_call(n, kind);
    }

    /// Makes every fallible call fail with `kind` from now on, until told `None`.
    pub fn fail_always(&self, kind: Option<ProviderErrorKind>) {
        self.books().failures.fail_always(kind);
    }

    /// Forgets failures that are still to come, and ends [`fail_always`](Self::fail_always).
    pub fn cancel_failures(&self) {
        self.books().failures.cancel();
    }

    /// How many failures were injected so far.
    pub fn injected_failures(&self) -> u64 {
        self.books().failures.injected()
    }

    /// Bytes of physical memory handed out.
    pub fn physical_bytes(&self) -> u64 {
        self.books().physical_bytes()
    }

    /// The most that [`physical_bytes`](Self::physical_bytes) has been.
    pub fn peak_physical_bytes(&self) -> u64 {
        self.books().peak_physical_bytes()
    }

    /// Bytes of addresses that have memory behind them; memory that is mapped twice counts twice.
    pub fn mapped_bytes(&self) -> u64 {
        self.books().mapped_bytes()
    }

    /// Bytes of addresses that are reserved.
    pub fn reserved_addresses(&self) -> u64 {
        self.books().reserved_addresses()
    }

    /// Pieces of physical memory handed out and not released.
    pub fn live_handles(&self) -> usize {
        self.books().live_handles()
    }

    /// Events recorded that were neither recycled nor dropped.
    pub fn live_events(&self) -> usize {
        self.books().streams.live_events()
    }

    /// Copies and fills so far.
    pub fn transfers(&self) -> u64 {
        self.books().transfers
    }

    /// Whether every byte of the range has memory behind it (and, of segments, lies in a single one).
    pub fn is_backed(&self, address: Address, bytes: u64) -> bool {
        self.books().resolve(address.get(), bytes).is_some()
    }

    /// The physical memory behind an address, and the offset in it in bytes.
    pub fn physical_at(&self, address: Address) -> Option<(u64, u64)> {
        let extents = self.books().resolve(address.get(), 1)?;
        extents.first().map(|extent| (extent.physical, extent.offset))
    }

    /// Submits work to `stream` that writes `bytes` bytes at `address`. It is a violation if these have no memory
    /// behind them, or if work of another stream that touches the same memory is neither complete nor ordered before
    /// this by [`make_wait`](crate::MemoryProvider::make_wait).
    pub fn submit(&self, stream: Stream, address: Address, bytes: u64) {
        self.books().submit(stream, address.get(), bytes, Access::Write);
    }

    /// As [`submit`](Self::submit), for work that only reads: two reads need no order.
    pub fn submit_read(&self, stream: Stream, address: Address, bytes: u64) {
        self.books().submit(stream, address.get(), bytes, Access::Read);
    }

    /// Completes the oldest work of `stream`. False if there is none, or if it waits for work of another stream.
    pub fn complete_next(&self, stream: Stream) -> bool {
        self.books().streams.complete_next(stream)
    }

    /// Completes all work of `stream`, and what that waits for on other streams.
    pub fn complete_all(&self, stream: Stream) {
        self.books().streams.complete_all(stream);
    }

    /// Completes the work of all streams.
    pub fn complete_everything(&self) {
        self.books().streams.complete_everything();
    }

    /// How much work of `stream` is not complete.
    pub fn pending(&self, stream: Stream) -> usize {
        self.books().streams.pending(stream)
    }

    /// Begins or ends the capture of `stream`. Work submitted meanwhile is not run: it stands for a graph, which
    /// touches its memory until [`drop_graph`](Self::drop_graph).
    ///
    /// While a stream is captured it is a violation to record an event on it, to make it wait for an event that was
    /// recorded before, and to query or wait for any event.
    pub fn set_capturing(&self, stream: Stream, capturing: bool) {
        self.books().streams.set_capturing(stream, capturing);
    }

    /// Says that the graph of what was captured on `stream` is gone.
    pub fn drop_graph(&self, stream: Stream) {
        self.books().streams.drop_graph(stream);
    }
}

impl Default for SimulatedProvider {
    fn default() -> Self {
        Self::new(SimulatedConfig::default())
    }
}

impl fmt::Debug for SimulatedProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let books = self.books();
        f.debug_struct("SimulatedProvider")
            .field("config", &self.config)
            .field("physical_bytes", &books.physical_bytes())
            .field("mapped_bytes", &books.mapped_bytes())
            .field("violations", &books.violations().len())
            .finish_non_exhaustive()
    }
}
