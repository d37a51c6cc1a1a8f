//! A callback on failure, and another try.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::reentrancy::{Entered, next_id};
use crate::{AllocError, Block, DeviceAllocator, Layout, Stream, forward_allocator};

/// Is asked to free memory when there is none left. Implemented by closures `Fn(&AllocError, u64) -> bool`.
pub trait OnFailure: Send + Sync {
    /// A request for `bytes` bytes failed with `error`. Returns whether memory was freed, so that asking again may
    /// help.
    fn on_failure(&self, error: &AllocError, bytes: u64) -> bool;
}

impl<F: Fn(&AllocError, u64) -> bool + Send + Sync> OnFailure for F {
    fn on_failure(&self, error: &AllocError, bytes: u64) -> bool {
        self(error, bytes)
    }
}

/// Calls back when memory runs out, and asks again if the callback says that it freed some.
///
/// Called for errors that [`AllocError::is_out_of_memory`] is true of. The callback runs in the thread that asked,
/// with no lock held: it may release blocks to this same allocator, and allocate from it. An allocation that fails
/// inside of the callback is not brought before the callback again, but fails at once.
///
/// The callback is asked until the request succeeds, until it returns `false`, or until it has promised in vain for
/// [`max_retries`](Self::max_retries) times in one request; then the last error is returned. Without this bound a
/// callback that always returns `true` would never end. The idea is that of RMM's `failure_callback_resource_adaptor`.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use alloc_core::adaptor::RetryOnFailure;
/// use alloc_core::{AllocError, Block, Device, DeviceAllocator, Layout, SimulatedAllocator, Stream, StreamSet};
///
/// let device = Arc::new(SimulatedAllocator::new(Device::CPU, 4096));
/// let cache: Mutex<Vec<Block>> = Mutex::new(vec![device.allocate(Layout::bytes(4096)?, Stream::DEFAULT)?]);
///
/// let inner = Arc::clone(&device);
/// let allocator = RetryOnFailure::new(Arc::clone(&device), move |_: &AllocError, _: u64| {
///     let Some(block) = cache.lock().unwrap().pop() else { return false };
///     // SAFETY: cached blocks are idle, and this one has left the cache.
///     unsafe { inner.release(block, Stream::DEFAULT, StreamSet::EMPTY) }.is_ok()
/// });
/// assert!(allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT).is_ok());
/// assert!(allocator.allocate(Layout::bytes(4000)?, Stream::DEFAULT).is_err());
/// assert_eq!((allocator.retries(), allocator.failures()), (1, 1));
/// # Ok::<(), AllocError>(())
/// ```
pub struct RetryOnFailure<A, F> {
    id: u64,
    max_retries: u32,
    retries: AtomicU64,
    failures: AtomicU64,
    callback: F,
    inner: A,
}

impl<A, F: OnFailure> RetryOnFailure<A, F> {
    /// How often one request is made again unless said otherwise.
    pub const DEFAULT_MAX_RETRIES: u32 = 64;

    /// Calls `callback` when `inner` has no memory left.
    pub fn new(inner: A, callback: F) -> Self {
        Self {
            id: next_id(),
            max_retries: Self::DEFAULT_MAX_RETRIES,
            retries: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            callback,
            inner,
        }
    }

    /// Makes one request again at most `max_retries` times.
    #[must_use]
    pub fn with_max_retries(mut self, max_retries: u32) -> Self {
        self.max_retries = max_retries;
        self
    }

    /// How often one request is made again at most.
    pub const fn max_retries(&self) -> u32 {
        self.max_retries
    }

    /// How often a request was made again, over all requests.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// How many requests failed for good for want of memory.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The allocator inside.
    pub const fn inner(&self) -> &A {
        &self.inner
    }
}

impl<A: DeviceAllocator, F: OnFailure> RetryOnFailure<A, F> {
    #[cold]
    fn retry(&self, mut error: AllocError, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        for _ in 0..self.max_retries {
            let freed = {
                let Some(_entered) = Entered::enter(self.id) else { break };
                self.callback.on_failure(&error, layout.size())
            };
            if !freed {
                break;
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            match self.inner.allocate(layout, stream) {
                Ok(block) => return Ok(block),
                Err(next) if next.is_out_of_memory() => error = next,
                Err(other) => return Err(other),
            }
        }
        self.failures.fetch_add(1, Ordering::Relaxed);
        Err(error)
    }
}

// SAFETY: blocks come from the inner allocator, which keeps the promises, and are handed on as they are.
unsafe impl<A: DeviceAllocator, F: OnFailure> DeviceAllocator for RetryOnFailure<A, F> {
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        match self.inner.allocate(layout, stream) {
            Err(error) if error.is_out_of_memory() => self.retry(error, layout, stream),
            result => result,
        }
    }

    forward_allocator!(self => self.inner; device, release, statistics, trim, grow_to, transfer, retire_stream);
}

impl<A: fmt::Debug, F> fmt::Debug for RetryOnFailure<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryOnFailure")
            .field("max_retries", &self.max_retries)
            .field("retries", &self.retries)
            .field("failures", &self.failures)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex, OnceLock};

    use super::*;
    use crate::{Device, SimulatedAllocator, StreamSet};

    fn bytes(size: u64) -> Layout {
        Layout::bytes(size).unwrap()
    }

    #[test]
    fn a_callback_that_always_promises_is_stopped_by_the_bound() {
        let calls = AtomicU64::new(0);
        let device = SimulatedAllocator::new(Device::CPU, 256);
        let _full = device.allocate(bytes(256), Stream::DEFAULT).unwrap();
        let allocator = RetryOnFailure::new(device, |error: &AllocError, size: u64| {
            assert!(matches!(error, AllocError::OutOfMemory(figures) if figures.requested == 100));
            assert_eq!(size, 100);
            calls.fetch_add(1, Ordering::Relaxed);
            true
        })
        .with_max_retries(5);
        assert!(matches!(allocator.allocate(bytes(100), Stream::DEFAULT), Err(AllocError::OutOfMemory(_))));
        assert_eq!((allocator.retries(), allocator.failures()), (5, 1));
        drop(allocator);
        assert_eq!(calls.into_inner(), 5);
    }

    #[test]
    fn errors_that_memory_cannot_cure_are_not_brought_before_the_callback() {
        let allocator = RetryOnFailure::new(SimulatedAllocator::new(Device::CPU, 256), |_: &AllocError, _: u64| {
            panic!("asked in vain")
        });
        assert!(matches!(allocator.allocate(bytes(1000), Stream::DEFAULT), Err(AllocError::TooLarge { .. })));
        assert_eq!((allocator.retries(), allocator.failures()), (0, 0));
    }

    type Callback = Box<dyn Fn(&AllocError, u64) -> bool + Send + Sync>;

    #[test]
    fn the_callback_may_release_to_and_allocate_from_the_same_allocator() {
        static ALLOCATOR: OnceLock<RetryOnFailure<SimulatedAllocator, Callback>> = OnceLock::new();
        let held = Arc::new(Mutex::new(Vec::new()));
        let cache = Arc::clone(&held);
        let depth = Arc::new(AtomicU64::new(0));
        let deepest = Arc::clone(&depth);
        let callback: Callback = Box::new(move |_, _| {
            deepest.fetch_add(1, Ordering::Relaxed);
            let allocator = ALLOCATOR.get().unwrap();
            // This fails, and at once, instead of calling back without end.
            assert!(allocator.allocate(bytes(1024), Stream::DEFAULT).is_err());
            let Some(block) = cache.lock().unwrap().pop() else { return false };
            // SAFETY: nothing uses simulated memory.
            unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }.is_ok()
        });
        let allocator =
            ALLOCATOR.get_or_init(|| RetryOnFailure::new(SimulatedAllocator::new(Device::CPU, 1024), callback));
        for _ in 0..4 {
            held.lock().unwrap().push(allocator.allocate(bytes(256), Stream::DEFAULT).unwrap());
        }
        let block = allocator.allocate(bytes(512), Stream::DEFAULT).unwrap();
        assert_eq!(block.size(), 512);
        assert_eq!(depth.load(Ordering::Relaxed), 2);
        assert_eq!(allocator.retries(), 2);
        assert_eq!(allocator.statistics().requested.current, 1024);
    }
}
