//! The driver's own stream-ordered pool behind the allocator contract.

use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::{
    AllocError, Block, Device, DeviceAllocator, Layout, OutOfMemory, ProviderError, ProviderErrorKind, ReleaseError,
    Statistics, Stream, StreamSet, Transfer,
};

use crate::books::{Birth, Books, DRIVER_ALIGN, Living};

use crate::driver::context::Attribute;
use crate::driver::error::{STREAM_CAPTURE_UNSUPPORTED, error, is_of_capture};
use crate::driver::memory::PoolAttribute;
use crate::driver::stream::Target;
use crate::driver::{Context, Event};
use crate::put_off;
use crate::transfer::CudaTransfer;

/// `cuMemAllocAsync` and `cuMemFreeAsync` over a pool of its own that keeps its memory until it is trimmed.
///
/// Every call costs a driver call, which is what it is measured against; blocks may be used in graphs that capture
/// their allocation. Blocks still in use when this is dropped stay valid
/// and are never freed. Dropping it waits for the device's work, gives the memory back and keeps the empty driver pool
/// for the next allocator of the process.
///
/// ```
/// use alloc_core::{DeviceAllocator, Layout, Stream, StreamSet};
/// use alloc_cuda::AsyncAllocator;
///
/// if alloc_cuda::is_available() {
///     let allocator = AsyncAllocator::new(0)?;
///     let block = allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
///     // SAFETY: nothing uses the block.
///     unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct AsyncAllocator {
    context: &'static Context,
    transfer: &'static CudaTransfer,
    pool: u64,
    /// The driver's numbers of the peers that the pool gives access.
    access: Vec<i32>,
    books: Mutex<Books>,
}

/// A driver pool that no allocator uses, with nothing in it. Pools are kept for later allocators and never destroyed:
/// driver 580 (CUDA 13.0) deadlocks when `cuMemPoolDestroy` meets `cuEventSynchronize` on another thread, also after
/// all work was waited for.
#[derive(Debug)]
struct SparePool {
    ordinal: u16,
    access: Vec<i32>,
    pool: u64,
}

static SPARE_POOLS: Mutex<Vec<SparePool>> = Mutex::new(Vec::new());

fn spare_pools() -> MutexGuard<'static, Vec<SparePool>> {
    SPARE_POOLS.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AsyncAllocator {
    /// An allocator of the memory of the device `ordinal`.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unavailable`] without CUDA, a driver or such a device,
    /// [`ProviderErrorKind::Unsupported`] if the device has no memory pools; else what the driver reports.
    pub fn new(ordinal: u16) -> Result<Self, ProviderError> {
        Self::with_peers(ordinal, &[])
    }

    /// As [`AsyncAllocator::new`], with access for the devices `peers`.
    ///
    /// # Errors
    /// As [`AsyncAllocator::new`], and [`ProviderErrorKind::Unsupported`] if a peer can't reach the device.
    pub fn with_peers(ordinal: u16, peers: &[u16]) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        let unsupported = |call, name: &'static str| {
            ProviderError::new(context.name(), call, ProviderErrorKind::Unsupported, name).with_code(801)
        };
        if !context.has(Attribute::MemoryPools)? {
            return Err(unsupported("cuMemPoolCreate", "the device has no memory pools"));
        }
        let mut access = Vec::new();
        for peer in peers.iter().filter(|peer| **peer != ordinal) {
            let peer = Context::open(*peer)?;
            if !peer.can_access(context.device())? {
                return Err(unsupported("cuDeviceCanAccessPeer", "the peer can't reach the device"));
            }
            access.push(peer.device());
        }
        let transfer = CudaTransfer::of(ordinal)?;
        let spare = {
            let mut spare = spare_pools();
            let found = spare.iter().position(|spare| spare.ordinal == ordinal && spare.access == access);
            found.map(|index| spare.swap_remove(index).pool)
        };
        let pool = spare.map_or_else(|| context.pool_create(&access), Ok)?;
        Ok(Self { context, transfer, pool, access, books: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn figure(&self, attribute: PoolAttribute) -> u64 {
        // SAFETY: the pool lives as long as this.
        unsafe { self.context.pool_attribute(self.pool, attribute) }.unwrap_or(0)
    }

    fn out_of_memory(&self, requested: u64) -> AllocError {
        let memory = self.context.memory().ok();
        let in_use = self.lock().statistics.in_use.current;
        let reserved = self.figure(PoolAttribute::Reserved);
        let mut figures = OutOfMemory::new(self.device(), requested);
        figures.in_use = in_use;
        figures.reserved = reserved;
        // The driver does not say; what it holds and could still get is the most that it can be.
        figures.largest_free = memory.map_or(0, |memory| memory.free) + reserved.saturating_sub(in_use);
        figures.device_free = memory.map(|memory| memory.free);
        figures.device_total = memory.map(|memory| memory.total);
        figures.into()
    }

    /// The point that a stream has come to. Of one that is being captured there is none that could be waited for later.
    ///
    /// # Safety
    /// The stream lives.
    unsafe fn point_of(&self, stream: Stream) -> Result<Event, ProviderError> {
        // SAFETY: the caller's promise.
        if unsafe { self.context.stream_is_capturing(Target::of(stream)) }? {
            return Err(error(self.device(), "cuEventRecord", STREAM_CAPTURE_UNSUPPORTED));
        }
        // SAFETY: as above.
        unsafe { Event::record(self.context, stream) }
    }

    /// Makes `stream` come after every other stream that may use a block, then gives the block to the driver.
    fn free(&self, living: &Living, stream: Stream, uses: &StreamSet) -> Result<(), ProviderError> {
        match &living.birth {
            // The stream itself, or one of the uses.
            Birth::Stream(_) => {}
            // SAFETY: the caller of `release` names a living stream.
            Birth::Past(event) => unsafe { event.make_wait(self.context, stream) }?,
            Birth::Lost(error) => return Err(error.clone()),
        }
        for other in uses.iter() {
            if other != stream {
                // SAFETY: streams that are named to an allocator live until they are retired.
                let event = unsafe { Event::record(self.context, other) }?;
                // SAFETY: as above.
                unsafe { event.make_wait(self.context, stream) }?;
            }
        }
        // SAFETY: the block left the books, so it is freed once; every use comes before in the stream's order.
        unsafe { self.context.pool_free(living.base, Target::of(stream)) }
    }
}

// SAFETY: the driver gives memory out once, in the order of the stream; enough was asked for to align the address in it. A
// release orders its stream after all uses of the block. What is not released stays.
unsafe impl DeviceAllocator for AsyncAllocator {
    fn device(&self) -> Device {
        self.context.name()
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let (size, align) = (layout.size(), layout.align().max(DRIVER_ALIGN));
        if size == 0 {
            return self.lock().enter_empty(self.device(), align, stream);
        }
        // At most 2^63 - 1 + 2^63 - 256: a layout's size rounded up to its alignment fits in 63 bits.
        let held = size + (align - DRIVER_ALIGN);
        // SAFETY: the pool lives as long as this; a stream that is named to an allocator lives.
        let base = match unsafe { self.context.pool_allocate(self.pool, held, Target::of(stream)) } {
            Ok(base) => base,
            Err(error) if error.kind == ProviderErrorKind::OutOfMemory => return Err(self.out_of_memory(size)),
            Err(error) => return Err(error.into()),
        };
        let living = Living { address: base.next_multiple_of(align), size, base, held, birth: Birth::Stream(stream) };
        let mut books = self.lock();
        books.statistics.provider_calls.create += 1;
        Ok(books.enter(living))
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        let living = {
            let mut books = self.lock();
            let left = books.leave(self.device(), block);
            match &left {
                Ok(living) => books.statistics.provider_calls.release += u64::from(living.held > 0),
                Err(_) => books.statistics.rejected_releases += 1,
            }
            let mut living = left?;
            match living.birth {
                Birth::Stream(born) if living.held > 0 && born != stream && !uses.contains(born) => {
                    // The caller does not vouch for this stream, so another thread may be about to end it.
                    // SAFETY: the books say that it is not retired yet, and to retire it takes their lock.
                    living.birth = Birth::of(unsafe { Event::record(self.context, born) });
                }
                _ => {}
            }
            living
        };
        if living.held == 0 {
            return Ok(());
        }
        self.free(&living, stream, uses).map_err(|source| {
            self.lock().statistics.leaked += living.held;
            tracing::warn!(%source, bytes = living.held, "a block was leaked, since its use can't be known");
            ReleaseError::Leaked { block, source }
        })
    }

    fn statistics(&self) -> Statistics {
        let (current, peak) = (self.figure(PoolAttribute::Reserved), self.figure(PoolAttribute::ReservedHigh));
        let mut statistics = self.lock().statistics;
        statistics.reserved.current = current;
        statistics.reserved.peak = peak.max(current);
        statistics
    }

    /// Gives nothing back while a stream is captured. What that means for captures of others [`PrivatePool`](crate::PrivatePool)
    /// says.
    fn trim(&self, keep: u64) -> u64 {
        let before = self.figure(PoolAttribute::Reserved);
        if before <= keep {
            return 0;
        }
        // What was freed in stream order is given back only when the streams have come past it.
        match put_off::settle(self.context) {
            Ok(()) => {}
            Err(error) if is_of_capture(&error) => {
                tracing::debug!(%error, "nothing is trimmed while a stream is captured");
                return 0;
            }
            Err(error) => tracing::debug!(%error, "trimming without having waited"),
        }
        // The driver keeps at least as much as it is told to, in units of its own (32 MiB); the promise is at most.
        for keep in [keep, 0] {
            if self.figure(PoolAttribute::Reserved) <= keep {
                break;
            }
            // SAFETY: the pool lives as long as this.
            if let Err(error) = unsafe { self.context.pool_trim(self.pool, keep) } {
                tracing::debug!(%error, "the driver's pool was not trimmed");
            }
        }
        before.saturating_sub(self.figure(PoolAttribute::Reserved))
    }

    fn transfer(&self) -> &dyn Transfer {
        self.transfer
    }

    fn retire_stream(&self, stream: Stream) {
        let mut books = self.lock();
        if !books.any_born_on(stream) {
            return;
        }
        // SAFETY: the stream lives until this returns.
        let birth = Birth::of(unsafe { self.point_of(stream) });
        books.replace_birth(stream, &birth);
        drop(books);
        if let Birth::Lost(error) = &birth {
            tracing::warn!(%error, "a stream was retired and its work can't be known");
        }
    }
}

impl Drop for AsyncAllocator {
    fn drop(&mut self) {
        let (living, leaked) = {
            let books = self.lock();
            (books.living(), books.statistics.leaked)
        };
        if living > 0 {
            tracing::warn!(living, device = %self.device(), "an allocator was dropped with blocks in use");
        }
        self.trim(0);
        if living > 0 || leaked > 0 {
            return;
        }
        // What could not be trimmed, as while a stream is captured, is the next allocator's and not lost.
        // SAFETY: the pool lives, and nothing of it is in use. At worst the next allocator's peak is too high.
        let _ = unsafe { self.context.pool_forget_peak(self.pool) };
        spare_pools().push(SparePool {
            ordinal: self.context.ordinal(),
            access: std::mem::take(&mut self.access),
            pool: self.pool,
        });
    }
}
