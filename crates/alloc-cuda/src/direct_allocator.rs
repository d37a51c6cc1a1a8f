//! The driver's plain allocator behind the contract.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloc_core::{
    AllocError, Block, Device, DeviceAllocator, Layout, OutOfMemory, ProviderError, ProviderErrorKind, ReleaseError,
    Statistics, Stream, StreamSet, Transfer,
};

use crate::books::{Birth, Books, DRIVER_ALIGN, Living};
use crate::driver::{Context, Event};
use crate::put_off;
use crate::transfer::CudaTransfer;

/// `cuMemAlloc` for every block and `cuMemFree` for every release, with nothing kept in between: what pools are
/// measured against, and a tool for finding misuse.
///
/// A release waits for the work of the whole device, as `cuMemFree` does. While a stream is captured that is put off, until a later
/// release or [`trim`](DeviceAllocator::trim), or until memory runs out; what it means for captures of others
/// [`PrivatePool`](crate::PrivatePool) says.
///
/// ```
/// use alloc_core::{DeviceAllocator, Layout, Stream, StreamSet};
/// use alloc_cuda::DirectAllocator;
///
/// if alloc_cuda::is_available() {
///     let allocator = DirectAllocator::new(0)?;
///     let block = allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
///     // SAFETY: nothing uses the block.
///     unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DirectAllocator {
    context: &'static Context,
    transfer: &'static CudaTransfer,
    /// What is put off may outlive the allocator.
    books: Arc<Mutex<Books>>,
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives memory back to the driver.
///
/// # Safety
/// The books had it last, so it is freed once, and no work uses it.
unsafe fn free(context: &Context, books: &Mutex<Books>, living: &Living) -> Result<(), ProviderError> {
    // SAFETY: the caller's promise.
    let freed = unsafe { context.free(living.base) };
    match &freed {
        Ok(()) => lock(books).statistics.reserved.sub(living.held),
        Err(source) => leak(books, living, source),
    }
    freed
}

fn leak(books: &Mutex<Books>, living: &Living, source: &ProviderError) {
    lock(books).statistics.leaked += living.held;
    tracing::warn!(%source, bytes = living.held, "a block was leaked, since its use can't be known");
}

impl DirectAllocator {
    /// An allocator of the memory of the device `ordinal`.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unavailable`] without CUDA, a driver or such a device; else what the driver reports.
    pub fn new(ordinal: u16) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        Ok(Self { context, transfer: CudaTransfer::of(ordinal)?, books: Arc::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        lock(&self.books)
    }

    fn out_of_memory(&self, requested: u64) -> AllocError {
        let memory = self.context.memory().ok();
        let in_use = self.lock().statistics.in_use.current;
        let mut figures = OutOfMemory::new(self.device(), requested);
        figures.in_use = in_use;
        figures.reserved = in_use;
        figures.device_free = memory.map(|memory| memory.free);
        figures.device_total = memory.map(|memory| memory.total);
        figures.into()
    }

    /// Waits for the streams that may be another device's, which only `uses` can name: the driver waits for its own device.
    fn wait_for(&self, uses: &StreamSet, stream: Stream) -> Result<(), ProviderError> {
        for other in uses.iter().filter(|other| *other != stream) {
            // SAFETY: streams that are named to an allocator live until they are retired.
            unsafe { Event::record(self.context, other) }?.synchronize()?;
        }
        Ok(())
    }

    fn free(&self, living: Living, stream: Stream, uses: &StreamSet) -> Result<(), ProviderError> {
        let (context, books) = (self.context, Arc::clone(&self.books));
        let waiting = living.clone();
        // What is queued on this device is waited for explicitly too: that `cuMemFree` waits is only its habit.
        let freed = self.wait_for(uses, stream).and_then(|()| {
            put_off::once_idle(context, move || {
                // SAFETY: the block left the books, and all work of the device was waited for.
                unsafe { free(context, &books, &waiting) }
            })
        });
        match freed {
            Ok(freed) => freed.unwrap_or(Ok(())),
            Err(source) => {
                leak(&self.books, &living, &source);
                Err(source)
            }
        }
    }

    /// Memory of the driver, of which what was put off may be a part.
    fn take(&self, bytes: u64) -> Result<u64, ProviderError> {
        match self.context.allocate(bytes) {
            Err(error) if error.kind == ProviderErrorKind::OutOfMemory && put_off::retry(self.context) => {
                self.context.allocate(bytes)
            }
            taken => taken,
        }
    }
}

// SAFETY: the driver gives memory out once; enough was asked for to align the address in it. A release waits for all uses
// of the block before it is freed. What is not released stays.
unsafe impl DeviceAllocator for DirectAllocator {
    fn device(&self) -> Device {
        self.context.name()
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let (size, align) = (layout.size(), layout.align().max(DRIVER_ALIGN));
        if size == 0 {
            return self.lock().enter_empty(self.device(), align, stream);
        }
        // No overflow: a layout's size rounded up to its alignment fits in 63 bits.
        let held = size + (align - DRIVER_ALIGN);
        let base = match self.take(held) {
            Ok(base) => base,
            Err(error) if error.kind == ProviderErrorKind::OutOfMemory => return Err(self.out_of_memory(size)),
            Err(error) => return Err(error.into()),
        };
        let address = base.next_multiple_of(align);
        let mut books = self.lock();
        books.statistics.provider_calls.create += 1;
        books.statistics.reserved.add(held);
        Ok(books.enter(Living { address, size, base, held, birth: Birth::Stream(stream) }))
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        let living = {
            let mut books = self.lock();
            let left = books.leave(self.device(), block);
            match &left {
                Ok(living) => books.statistics.provider_calls.release += u64::from(living.held > 0),
                Err(_) => books.statistics.rejected_releases += 1,
            }
            left?
        };
        if living.held == 0 {
            return Ok(());
        }
        self.free(living, stream, uses).map_err(|source| ReleaseError::Leaked { block, source })
    }

    fn statistics(&self) -> Statistics {
        self.lock().statistics
    }

    /// Gives back what could not be freed while a stream was captured.
    fn trim(&self, _keep: u64) -> u64 {
        let before = self.lock().statistics.reserved.current;
        put_off::retry(self.context);
        before.saturating_sub(self.lock().statistics.reserved.current)
    }

    fn transfer(&self) -> &dyn Transfer {
        self.transfer
    }
}
