//! One promise under test: every block goes through here, so that every block is checked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    Address, AllocError, Block, Device, DeviceAllocator, Layout, Place, ReleaseError, Statistics, Stream, StreamSet,
};

use super::breach::Expected;
use super::ledger::Ledger;
use super::rng::{Rng, scramble};
use super::suite::Inspect;
use super::{Breach, Broken, Options, Promise, Suite, contents};

/// What became of a promise that was not broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "kept or not asked for; a promise that is broken is an error")]
pub enum Verdict {
    /// It was checked and kept.
    Kept,
    /// It was not checked: the options say that the allocator doesn't make it, or lack what checking it takes.
    NotPromised(&'static str),
}

/// A living block and what the suite knows of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    pub(super) block: Block,
    pub(super) stream: Stream,
    tag: u64,
}

pub(super) struct Trial<'a> {
    pub(super) suite: &'a Suite,
    pub(super) options: &'a Options,
    pub(super) allocator: Arc<dyn DeviceAllocator>,
    inspect: Option<Inspect>,
    ledger: Mutex<Ledger>,
    promise: Promise,
    step: AtomicU64,
    before: Statistics,
}

impl<'a> Trial<'a> {
    pub(super) fn new(
        suite: &'a Suite,
        promise: Promise,
        allocator: Arc<dyn DeviceAllocator>,
        inspect: Option<Inspect>,
    ) -> Self {
        let before = allocator.statistics();
        Self {
            suite,
            options: suite.options(),
            allocator,
            inspect,
            ledger: Mutex::new(Ledger::default()),
            promise,
            step: AtomicU64::new(0),
            before,
        }
    }

    pub(super) fn promise(&self) -> Promise {
        self.promise
    }

    /// Random numbers for this promise, and for one thread of it.
    pub(super) fn rng(&self, thread: u64) -> Rng {
        Rng::new(self.options.seed ^ scramble(self.promise as u64 ^ (thread << 32)))
    }

    pub(super) fn broken(&self, breach: Breach) -> Broken {
        Broken {
            promise: self.promise,
            seed: self.options.seed,
            step: self.step.load(Ordering::Relaxed),
            breach: Box::new(breach),
        }
    }

    pub(super) fn layout(&self, size: u64) -> Result<Layout, Broken> {
        self.aligned(size, Layout::DEFAULT_ALIGN)
    }

    pub(super) fn aligned(&self, size: u64, align: u64) -> Result<Layout, Broken> {
        Layout::new(size, align).map_err(|error| self.broken(Breach::Layout { error }))
    }

    /// The stream with this number, counted round.
    pub(super) fn stream(&self, number: usize) -> Stream {
        let streams = &self.options.streams;
        if streams.is_empty() { Stream::DEFAULT } else { streams[number % streams.len()] }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of the blocks that are alive.
    pub(super) fn live_bytes(&self) -> u64 {
        self.ledger().bytes()
    }

    fn count_step(&self) -> u64 {
        self.step.fetch_add(1, Ordering::Relaxed)
    }

    /// Asks for a block and checks all that can be seen of it from outside. The inner error is the allocator's.
    pub(super) fn try_allocate(&self, layout: Layout, stream: Stream) -> Result<Result<Held, AllocError>, Broken> {
        let tag = scramble(self.options.seed ^ self.count_step());
        let block = match self.allocator.allocate(layout, stream) {
            Ok(block) => block,
            Err(error) => return Ok(Err(error)),
        };
        self.check_shape(block, layout).map_err(|breach| self.broken(breach))?;
        self.ledger().insert(block).map_err(|breach| self.broken(breach))?;
        if let Some(inspect) = &self.inspect {
            inspect(&block).map_err(|reason| self.broken(Breach::Inspection { block, reason }))?;
        }
        Ok(Ok(Held { block, stream, tag }))
    }

    fn check_shape(&self, block: Block, layout: Layout) -> Result<(), Breach> {
        if block.size() != layout.size() {
            return Err(Breach::WrongSize { block, asked: layout.size() });
        }
        if !block.address().is_aligned_to(layout.align()) {
            return Err(Breach::Misaligned { block, align: layout.align() });
        }
        Ok(())
    }

    /// Asks for a block that must be served, without touching it.
    pub(super) fn allocate(&self, layout: Layout, stream: Stream) -> Result<Held, Broken> {
        self.try_allocate(layout, stream)?.map_err(|error| self.broken(Breach::Refused { layout, error }))
    }

    /// Asks for a block that must be served, and writes to it on its stream.
    pub(super) fn take(&self, layout: Layout, stream: Stream) -> Result<Held, Broken> {
        let held = self.allocate(layout, stream)?;
        self.write(&held, stream)?;
        Ok(held)
    }

    /// Checks what was written, and gives the block back on its stream.
    pub(super) fn give(&self, held: Held) -> Result<(), Broken> {
        self.verify(&held, held.stream)?;
        self.release(held, held.stream, StreamSet::EMPTY)
    }

    pub(super) fn give_all(&self, held: impl IntoIterator<Item = Held>) -> Result<(), Broken> {
        held.into_iter().try_for_each(|held| self.give(held))
    }

    /// Gives a living block back. All uses of it were on the streams named here, or on its own.
    pub(super) fn release(&self, held: Held, stream: Stream, uses: &StreamSet) -> Result<(), Broken> {
        // Another thread may be handed the memory before `release` returns.
        self.ledger().remove(&held.block);
        self.raw_release(held.block, stream, uses).map_err(|error| self.broken(Breach::ReleaseRefused { error }))
    }

    /// A release that the allocator may well have to refuse.
    pub(super) fn raw_release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        self.count_step();
        // SAFETY: living blocks are released here once, with the streams that used them. Any other block is one that
        // the options say is recognised and refused.
        unsafe { self.allocator.release(block, stream, uses) }
    }

    fn place(&self, block: &Block, offset: u64) -> Place {
        // The ledger has checked that no block wraps.
        Place { device: self.allocator.device(), address: Address::new(block.address().get() + offset) }
    }

    /// Writes the block's own pattern on `stream`.
    pub(super) fn write(&self, held: &Held, stream: Stream) -> Result<(), Broken> {
        if !self.options.contents {
            return Ok(());
        }
        for window in contents::windows(held.block.size()) {
            let bytes = contents::pattern(held.tag, &window);
            let from = Place { device: Device::CPU, address: host_address(bytes.as_ptr()) };
            let to = self.place(&held.block, window.start);
            // SAFETY: the bytes are pageable host memory, so that they have been read when this returns; the window
            // lies within a living block that no other work uses.
            unsafe { self.allocator.transfer().copy(from, to, bytes.len() as u64, stream) }
                .map_err(|error| self.broken(Breach::Transfer { error }))?;
        }
        Ok(())
    }

    /// Reads the block on `stream` and compares.
    pub(super) fn verify(&self, held: &Held, stream: Stream) -> Result<(), Broken> {
        if !self.options.contents {
            return Ok(());
        }
        for window in contents::windows(held.block.size()) {
            let expected = contents::pattern(held.tag, &window);
            let mut found = vec![0_u8; expected.len()];
            let to = Place { device: Device::CPU, address: host_address(found.as_mut_ptr()) };
            let from = self.place(&held.block, window.start);
            // SAFETY: the bytes are pageable host memory, so that they have been written when this returns; the
            // window lies within a living block that no other work writes to.
            unsafe { self.allocator.transfer().copy(from, to, found.len() as u64, stream) }
                .map_err(|error| self.broken(Breach::Transfer { error }))?;
            if let Some(at) = expected.iter().zip(&found).position(|(expected, found)| expected != found) {
                let offset = window.start + at as u64;
                let (expected, found) = (expected[at], found[at]);
                return Err(self.broken(Breach::Contents { block: held.block, offset, expected, found }));
            }
        }
        Ok(())
    }

    /// Fills the whole block on `stream`, and does not wait for it. What was written before is gone.
    pub(super) fn fill(&self, held: &Held, value: u8, stream: Stream) -> Result<(), Broken> {
        if !self.options.contents {
            return Ok(());
        }
        // SAFETY: the block is alive, and is released only with this stream named; no other work uses it.
        unsafe { self.allocator.transfer().fill(self.place(&held.block, 0), held.block.size(), value, stream) }
            .map_err(|error| self.broken(Breach::Transfer { error }))
    }

    /// Waits for the work of a stream.
    pub(super) fn synchronize(&self, stream: Stream) -> Result<(), Broken> {
        self.allocator.transfer().synchronize(stream).map_err(|error| self.broken(Breach::Transfer { error }))
    }

    pub(super) fn synchronize_all(&self) -> Result<(), Broken> {
        self.options.streams.iter().try_for_each(|stream| self.synchronize(*stream))
    }

    /// Checks one figure of the statistics.
    pub(super) fn expect(&self, figure: &'static str, found: u64, expected: Expected) -> Result<(), Broken> {
        if expected.admits(found) { Ok(()) } else { Err(self.broken(Breach::Figure { figure, expected, found })) }
    }

    /// Checks that the statistics say what the shadow map says. For moments when no other thread is at work.
    pub(super) fn check_figures(&self) -> Result<(), Broken> {
        if !self.options.statistics {
            return Ok(());
        }
        let (now, live) = (self.allocator.statistics(), self.live_bytes());
        let requested = self.before.requested.current + live;
        self.expect("requested.current", now.requested.current, Expected::Exactly(requested))?;
        self.expect("in_use.current", now.in_use.current, Expected::AtLeast(self.before.in_use.current + live))?;
        self.expect("requested.peak", now.requested.peak, Expected::AtLeast(now.requested.current))?;
        self.expect("leaked", now.leaked, Expected::Exactly(self.before.leaked))
    }

    /// Checks that the statistics are where they were before the promise was tried, with no block alive.
    pub(super) fn check_balance(&self) -> Result<(), Broken> {
        self.check_figures()?;
        if self.options.statistics {
            let in_use = self.allocator.statistics().in_use.current;
            self.expect("in_use.current", in_use, Expected::Exactly(self.before.in_use.current))?;
        }
        Ok(())
    }
}

fn host_address<T>(pointer: *const T) -> Address {
    Address::new(pointer.expose_provenance() as u64)
}
