//! A limit on the bytes in use.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{AllocError, Block, DeviceAllocator, Layout, ReleaseError, Stream, StreamSet, forward_allocator};

/// Refuses what would bring the bytes in use above a limit.
///
/// Counted are the bytes that callers asked for, not their rounding and not what a pool holds in reserve. A request
/// takes its bytes from the limit before it goes to the inner allocator and puts them back if that fails, so that no
/// number of threads together ever passes the limit. Memory that the inner allocator had to give up
/// ([`ReleaseError::Leaked`]) stays counted.
///
/// The count is one atomic number shared by all threads.
///
/// ```
/// use alloc_core::adaptor::Limited;
/// use alloc_core::{AllocError, Device, DeviceAllocator, Layout, SimulatedAllocator, Stream};
///
/// let allocator = Limited::new(SimulatedAllocator::new(Device::CPU, 1 << 30), 1000);
/// let block = allocator.allocate(Layout::bytes(600)?, Stream::DEFAULT)?;
/// let refused = allocator.allocate(Layout::bytes(401)?, Stream::DEFAULT);
/// assert_eq!(
///     refused,
///     Err(AllocError::LimitReached { device: Device::CPU.simulated(), requested: 401, in_use: 600, limit: 1000 })
/// );
/// allocator.set_limit(1001);
/// assert!(allocator.allocate(Layout::bytes(401)?, Stream::DEFAULT).is_ok());
/// assert_eq!(allocator.in_use(), 1001);
/// # Ok::<(), AllocError>(())
/// ```
#[derive(Debug)]
pub struct Limited<A> {
    limit: AtomicU64,
    in_use: AtomicU64,
    peak: AtomicU64,
    inner: A,
}

impl<A> Limited<A> {
    /// Limits `inner` to `limit` bytes in use.
    pub const fn new(inner: A, limit: u64) -> Self {
        Self { limit: AtomicU64::new(limit), in_use: AtomicU64::new(0), peak: AtomicU64::new(0), inner }
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Sets the limit in bytes and returns the one before. Blocks in use stay, also where they exceed the new limit:
    /// requests are refused until enough of them are released.
    pub fn set_limit(&self, limit: u64) -> u64 {
        self.limit.swap(limit, Ordering::Relaxed)
    }

    /// Bytes counted against the limit.
    pub fn in_use(&self) -> u64 {
        self.in_use.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever counted against the limit; requests that then failed inside are included.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    /// The allocator inside.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    /// Reserves `bytes`, or returns the bytes in use and the limit that they would have passed. Not added first and
    /// undone on excess: a request that is refused must never make another fail that fits. Acquire pairs with the
    /// release of bytes put back: whoever takes them finds them gone from the inner allocator too.
    fn reserve(&self, bytes: u64) -> Result<Reserved<'_>, (u64, u64)> {
        let limit = self.limit();
        let fits = |in_use: u64| in_use.checked_add(bytes).filter(|sum| *sum <= limit);
        let before =
            self.in_use.fetch_update(Ordering::Acquire, Ordering::Relaxed, fits).map_err(|in_use| (in_use, limit))?;
        let now = before + bytes;
        if now > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(now, Ordering::Relaxed);
        }
        Ok(Reserved { in_use: &self.in_use, bytes })
    }
}

/// Bytes taken from the limit; put back when dropped, also when the inner allocator panics.
struct Reserved<'a> {
    in_use: &'a AtomicU64,
    bytes: u64,
}

impl Reserved<'_> {
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        put_back(self.in_use, self.bytes);
    }
}

/// Counts bytes out. A block that went around the adaptor must not make the count wrap, neither when it is released nor
/// when the bytes are missing that it took with it.
fn put_back(in_use: &AtomicU64, bytes: u64) {
    let _ = in_use.fetch_update(Ordering::Release, Ordering::Relaxed, |in_use| Some(in_use.saturating_sub(bytes)));
}

// SAFETY: blocks come from the inner allocator, which keeps the promises, and are handed on as they are.
unsafe impl<A: DeviceAllocator> DeviceAllocator for Limited<A> {
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let requested = layout.size();
        let reserved = self.reserve(requested).map_err(|(in_use, limit)| AllocError::LimitReached {
            device: self.inner.device(),
            requested,
            in_use,
            limit,
        })?;
        let block = self.inner.allocate(layout, stream)?;
        reserved.keep();
        Ok(block)
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        // SAFETY: the caller's promises are those that the inner allocator asks for.
        unsafe { self.inner.release(block, stream, uses) }?;
        put_back(&self.in_use, block.size());
        Ok(())
    }

    forward_allocator!(self => self.inner; device, statistics, trim, grow_to, transfer, retire_stream);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::{BlockId, Device, SimulatedAllocator};

    const LIMIT: u64 = 10_000;

    fn limited(capacity: u64) -> Limited<SimulatedAllocator> {
        Limited::new(SimulatedAllocator::new(Device::CPU, capacity), LIMIT)
    }

    fn bytes(size: u64) -> Layout {
        Layout::bytes(size).unwrap()
    }

    fn release(allocator: &impl DeviceAllocator, block: Block) -> Result<(), ReleaseError> {
        // SAFETY: no memory is behind simulated blocks, so nothing uses them.
        unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }
    }

    #[test]
    fn the_limit_itself_fits_and_one_byte_more_is_refused() {
        let allocator = limited(1 << 20);
        let block = allocator.allocate(bytes(LIMIT), Stream::DEFAULT).unwrap();
        let refused =
            AllocError::LimitReached { device: Device::CPU.simulated(), requested: 1, in_use: LIMIT, limit: LIMIT };
        assert_eq!(allocator.allocate(bytes(1), Stream::DEFAULT), Err(refused.clone()));
        assert!(refused.is_out_of_memory());
        assert!(allocator.allocate(bytes(0), Stream::DEFAULT).is_ok());
        release(&allocator, block).unwrap();
        assert_eq!((allocator.in_use(), allocator.peak()), (0, LIMIT));
        assert!(allocator.allocate(bytes(LIMIT), Stream::DEFAULT).is_ok());
    }

    #[test]
    fn sizes_that_overflow_the_count_are_refused() {
        let allocator = limited(1 << 20);
        allocator.set_limit(u64::MAX);
        let _one = allocator.allocate(bytes(1), Stream::DEFAULT).unwrap();
        allocator.in_use.store(u64::MAX, Ordering::Relaxed);
        let refused = allocator.allocate(bytes(1), Stream::DEFAULT);
        assert!(matches!(refused, Err(AllocError::LimitReached { in_use: u64::MAX, limit: u64::MAX, .. })));
    }

    #[test]
    fn failures_inside_take_nothing_from_the_limit() {
        let allocator = limited(4096);
        assert!(matches!(allocator.allocate(bytes(5000), Stream::DEFAULT), Err(AllocError::TooLarge { .. })));
        assert_eq!(allocator.in_use(), 0);
        let block = allocator.allocate(bytes(100), Stream::DEFAULT).unwrap();
        let foreign = Block::from_parts(block.address(), 100, BlockId::from_bits(99));
        assert!(matches!(release(&allocator, foreign), Err(ReleaseError::Foreign { .. })));
        assert_eq!(allocator.in_use(), 100);
        release(&allocator, block).unwrap();
        assert!(matches!(release(&allocator, block), Err(ReleaseError::Stale { .. })));
        assert_eq!(allocator.in_use(), 0);
    }

    #[test]
    fn a_block_that_went_around_does_not_wrap_the_count() {
        use crate::adaptor::RetryOnFailure;
        use std::sync::{Mutex, OnceLock};

        type Callback = fn(&AllocError, u64) -> bool;
        static ALLOCATOR: OnceLock<Limited<RetryOnFailure<SimulatedAllocator, Callback>>> = OnceLock::new();
        static AROUND: Mutex<Option<Block>> = Mutex::new(None);
        // Taken from inside and given back to the adaptor, while that holds bytes for a request that then fails.
        let callback: Callback = |_, _| {
            let block = AROUND.lock().unwrap().take();
            block.is_some_and(|block| release(ALLOCATOR.get().unwrap(), block).is_ok())
        };
        let device = SimulatedAllocator::new(Device::CPU, 4096);
        let allocator = ALLOCATOR.get_or_init(|| Limited::new(RetryOnFailure::new(device, callback), LIMIT));
        let _rest = allocator.inner().allocate(bytes(3072), Stream::DEFAULT).unwrap();
        *AROUND.lock().unwrap() = Some(allocator.inner().allocate(bytes(1024), Stream::DEFAULT).unwrap());
        assert!(allocator.allocate(bytes(2048), Stream::DEFAULT).is_err());
        assert_eq!(allocator.in_use(), 0);
        assert!(allocator.allocate(bytes(1000), Stream::DEFAULT).is_ok());
    }

    #[test]
    fn a_lower_limit_keeps_blocks_and_refuses_until_they_go() {
        let allocator = limited(1 << 20);
        let block = allocator.allocate(bytes(5000), Stream::DEFAULT).unwrap();
        assert_eq!(allocator.set_limit(100), LIMIT);
        let refused = allocator.allocate(bytes(1), Stream::DEFAULT);
        assert!(matches!(refused, Err(AllocError::LimitReached { in_use: 5000, limit: 100, .. })));
        release(&allocator, block).unwrap();
        assert!(allocator.allocate(bytes(100), Stream::DEFAULT).is_ok());
    }

    #[test]
    fn threads_together_never_pass_the_limit_and_refusals_disturb_nobody() {
        let allocator = limited(1 << 30);
        let passed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (allocator, passed) = (&allocator, &passed);
                scope.spawn(move || {
                    for i in 0..5_000u64 {
                        // Three threads of small requests always fit together; the fourth always asks too much.
                        let size = if thread == 3 { LIMIT + 1 } else { 1 + (i * 7 + thread) % (LIMIT / 3) };
                        let block = allocator.allocate(bytes(size), Stream::DEFAULT);
                        if allocator.inner().statistics().requested.current > LIMIT {
                            passed.store(true, Ordering::Relaxed);
                        }
                        match block {
                            Ok(block) => release(allocator, block).unwrap(),
                            Err(_) => assert_eq!(thread, 3, "a request that fits was refused"),
                        }
                    }
                });
            }
        });
        assert!(!passed.into_inner());
        assert_eq!(allocator.in_use(), 0);
        assert!(allocator.peak() <= LIMIT);
    }
}
