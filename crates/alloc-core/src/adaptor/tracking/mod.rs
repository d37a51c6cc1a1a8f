//! Knows every living block.

mod end;
mod report;
mod stacks;

pub use end::ReportAtEnd;
pub use report::{Leak, LeakReport, LeakSite};

use std::backtrace::Backtrace;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dashmap::DashMap;

use self::stacks::Stacks;
use crate::adaptor::ThreadTag;
use crate::{
    AllocError, AllocatorEvent, Block, BlockId, Device, DeviceAllocator, EventHook, Layout, ReleaseError, Statistics,
    Stream, StreamSet, forward_allocator,
};

/// Keeps a record of every living block: size, age, thread, stream, sequence number and, if asked for, the backtrace
/// of its allocation.
///
/// - [`leaks`](Tracking::leaks) lists the living blocks, [`report`](Tracking::report) sums them up by where they come
///   from, [`sequence`](Tracking::sequence) marks a point for [`leaks_since`](Tracking::leaks_since).
/// - A release of a foreign block or a second release of the same is refused before it reaches the inner allocator,
///   so plain allocators without books of their own become safe against them. For this the blocks carry ids of the
///   adaptor, never used twice, instead of the inner allocator's.
/// - If blocks are left when it is dropped, [`AllocatorEvent::BlocksLeft`] goes to the hook and the report to
///   `tracing`, as a warning. For one that is never dropped, [`report_at_end`](Tracking::report_at_end) does so.
///
/// A call costs an access to a sharded map more, and a backtrace costs some microseconds.
///
/// ```
/// use alloc_core::adaptor::Tracking;
/// use alloc_core::{Device, DeviceAllocator, Layout, ReleaseError, SimulatedAllocator, Stream, StreamSet};
///
/// let allocator = Tracking::new(SimulatedAllocator::new(Device::CPU, 1 << 20)).with_backtraces(true);
/// let kept = allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
/// let block = allocator.allocate(Layout::bytes(50)?, Stream::DEFAULT)?;
/// // SAFETY: nothing uses the block; the second release shows that it is refused.
/// let (first, second) = unsafe {
///     let first = allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY);
///     (first, allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY))
/// };
/// assert!(first.is_ok());
/// assert_eq!(second, Err(ReleaseError::Stale { device: Device::CPU.simulated(), block }));
///
/// let leaks = allocator.leaks();
/// assert_eq!((leaks.len(), leaks[0].block), (1, kept));
/// println!("{}", allocator.report());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Tracking<A: DeviceAllocator> {
    books: Books,
    inner: A,
}

/// Dropped before the inner allocator is; reports then what is left.
#[derive(Debug)]
struct Books {
    device: Device,
    /// The upper bits of all ids, so that a block of another `Tracking` is foreign here.
    tag: u64,
    next: AtomicU64,
    living: DashMap<u64, Living>,
    rejected: AtomicU64,
    backtraces: Option<Stacks>,
    hook: Option<Arc<dyn EventHook>>,
    /// What was told last: the number of the next allocation and how many blocks lived. If neither has changed, the blocks are
    /// the same.
    told: Mutex<Option<(u64, u64)>>,
}

#[derive(Debug)]
struct Living {
    /// The block as the inner allocator knows it.
    block: Block,
    align: u64,
    stream: Stream,
    thread: ThreadTag,
    since: Instant,
    backtrace: Option<Arc<Backtrace>>,
}

/// Enough for 2^48 allocations by each of 2^16 adaptors before an id comes again.
const SEQUENCE_BITS: u32 = 48;
const SEQUENCE_MASK: u64 = (1 << SEQUENCE_BITS) - 1;

impl<A: DeviceAllocator> Tracking<A> {
    /// Tracks the blocks of `inner`, without backtraces.
    pub fn new(inner: A) -> Self {
        static TAGS: AtomicU64 = AtomicU64::new(1);
        let books = Books {
            device: inner.device(),
            tag: TAGS.fetch_add(1, Ordering::Relaxed) << SEQUENCE_BITS,
            next: AtomicU64::new(0),
            living: DashMap::new(),
            rejected: AtomicU64::new(0),
            backtraces: None,
            hook: None,
            told: Mutex::new(None),
        };
        Self { books, inner }
    }

    /// Whether to capture a backtrace at every allocation, whatever `RUST_BACKTRACE` says. A backtrace is kept once for all
    /// blocks that come from the same stack, and its frames are resolved to names only when it, or a report, is shown.
    #[must_use]
    pub fn with_backtraces(mut self, backtraces: bool) -> Self {
        self.books.backtraces = backtraces.then(Stacks::default);
        self
    }

    /// Whom to tell of refused releases and of blocks left at the end.
    #[must_use]
    pub fn with_event_hook(mut self, hook: Arc<dyn EventHook>) -> Self {
        self.books.hook = Some(hook);
        self
    }

    /// The living blocks, oldest first.
    pub fn leaks(&self) -> Vec<Leak> {
        self.books.leaks_since(0)
    }

    /// The sequence number of the next allocation: a mark for [`leaks_since`](Self::leaks_since).
    pub fn sequence(&self) -> u64 {
        self.books.next.load(Ordering::Relaxed)
    }

    /// The living blocks allocated since [`sequence`](Self::sequence) had this value, oldest first.
    pub fn leaks_since(&self, sequence: u64) -> Vec<Leak> {
        self.books.leaks_since(sequence)
    }

    /// Number of living blocks.
    pub fn living(&self) -> u64 {
        self.books.living.len() as u64
    }

    /// The living blocks summed up by where they come from: by backtrace if these are captured, else by size, thread
    /// and stream.
    pub fn report(&self) -> LeakReport {
        LeakReport::new(self.books.device, &self.leaks())
    }

    /// The allocator inside. Blocks of this adaptor can't be released to it.
    pub const fn inner(&self) -> &A {
        &self.inner
    }
}

impl Books {
    fn leaks_since(&self, sequence: u64) -> Vec<Leak> {
        let mut leaks: Vec<Leak> = self
            .living
            .iter()
            .filter(|entry| entry.key() & SEQUENCE_MASK >= sequence)
            .map(|entry| entry.value().as_leak(*entry.key()))
            .collect();
        leaks.sort_unstable_by_key(|leak| leak.sequence);
        leaks
    }

    fn insert(&self, block: Block, layout: Layout, stream: Stream) -> Block {
        let sequence = self.next.fetch_add(1, Ordering::Relaxed) & SEQUENCE_MASK;
        let id = self.tag | sequence;
        #[expect(clippy::manual_map, reason = "the frame of `map` would be the first of each")]
        let backtrace = match &self.backtraces {
            Some(stacks) => Some(stacks.capture(|| self.living.len())),
            None => None,
        };
        let thread = ThreadTag::current();
        let living = Living { block, align: layout.align(), stream, thread, since: Instant::now(), backtrace };
        let outer = living.outer(id);
        self.living.insert(id, living);
        outer
    }

    /// Takes a block out, or says why it is none of ours.
    fn remove(&self, block: Block) -> Result<Living, ReleaseError> {
        let id = block.id().to_bits();
        if let Some((_, living)) = self.living.remove_if(&id, |id, living| living.outer(*id) == block) {
            return Ok(living);
        }
        let handed_out = id & !SEQUENCE_MASK == self.tag && id & SEQUENCE_MASK < self.next.load(Ordering::Relaxed);
        let altered = self.living.contains_key(&id);
        let device = self.device;
        Err(if handed_out && !altered {
            ReleaseError::Stale { device, block }
        } else {
            ReleaseError::Foreign { device, block }
        })
    }

    fn reject(&self, error: ReleaseError) -> ReleaseError {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        if let Some(hook) = &self.hook {
            hook.on_event(self.device, &AllocatorEvent::RejectedRelease(&error));
        }
        error
    }
}

impl Living {
    /// The block as callers know it.
    fn outer(&self, id: u64) -> Block {
        Block::from_parts(self.block.address(), self.block.size(), BlockId::from_bits(id))
    }

    fn as_leak(&self, id: u64) -> Leak {
        Leak {
            block: self.outer(id),
            align: self.align,
            stream: self.stream,
            thread: self.thread.clone(),
            age: self.since.elapsed(),
            sequence: id & SEQUENCE_MASK,
            backtrace: self.backtrace.clone(),
        }
    }
}

impl Books {
    /// Tells the hook and `tracing` of living blocks, unless they were told of the same ones last, and whoever reads the
    /// text of any.
    fn tell(&self, to: Option<&mut dyn Write>) {
        let next = self.next.load(Ordering::Relaxed);
        let leaks = self.leaks_since(0);
        let count = leaks.len() as u64;
        let bytes = leaks.iter().fold(0u64, |sum, leak| sum.saturating_add(leak.block.size()));
        let state = Some((next, count));
        let before = std::mem::replace(&mut *self.told.lock().unwrap_or_else(PoisonError::into_inner), state);
        let is_news = count > 0 && before != state;
        let is_traced = is_news && tracing::enabled!(tracing::Level::WARN);
        // A report resolves backtraces, which is slow: not for nobody.
        if is_traced || to.is_some() {
            let report = LeakReport::new(self.device, &leaks);
            if is_traced {
                tracing::warn!(device = %self.device, count, bytes, "blocks still in use\n{report}");
            }
            if let Some(to) = to
                && let Err(error) = to.write_all(format!("{report}\n").as_bytes()).and_then(|()| to.flush())
            {
                tracing::debug!(device = %self.device, %error, "the report of blocks in use could not be written");
            }
        }
        if let Some(hook) = self.hook.as_ref().filter(|_| is_news) {
            hook.on_event(self.device, &AllocatorEvent::BlocksLeft { count, bytes });
        }
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        self.tell(None);
    }
}

// SAFETY: blocks come from the inner allocator, which keeps the promises, and are handed on with their address and size:
// only the id is another.
unsafe impl<A: DeviceAllocator> DeviceAllocator for Tracking<A> {
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let block = self.inner.allocate(layout, stream)?;
        Ok(self.books.insert(block, layout, stream))
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        let living = self.books.remove(block).map_err(|error| self.books.reject(error))?;
        let inner_block = living.block;
        // SAFETY: the inner allocator handed this block out, and removing it from the books makes this the one
        // release of it. The caller vouches for its uses.
        let result = unsafe { self.inner.release(inner_block, stream, uses) };
        result.map_err(|error| match error {
            ReleaseError::Foreign { device, .. } => {
                self.books.living.insert(block.id().to_bits(), living);
                ReleaseError::Foreign { device, block }
            }
            ReleaseError::Stale { device, .. } => {
                self.books.living.insert(block.id().to_bits(), living);
                ReleaseError::Stale { device, block }
            }
            ReleaseError::Leaked { source, .. } => ReleaseError::Leaked { block, source },
        })
    }

    /// Those of the inner allocator, with the releases refused here counted in.
    fn statistics(&self) -> Statistics {
        let mut statistics = self.inner.statistics();
        let rejected = self.books.rejected.load(Ordering::Relaxed);
        statistics.rejected_releases = statistics.rejected_releases.saturating_add(rejected);
        statistics
    }

    forward_allocator!(self => self.inner; device, trim, grow_to, transfer, retire_stream);
}

#[cfg(test)]
mod tests;
