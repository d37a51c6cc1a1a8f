//! The driver's plain allocator behind the contract.

use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::{
    AllocError, Block, Device, DeviceAllocator, Layout, OutOfMemory, ProviderError, ProviderErrorKind, ReleaseError,
    Statistics, Stream, StreamSet, Transfer,
};

use crate::books::{Birth, Books, DRIVER_ALIGN, Living};
use crate::driver::{Context, Event};
use crate::transfer::CudaTransfer;

/// `cuMemAlloc` for every block and `cuMemFree` for every release, with nothing kept in between: what pools are
/// measured against, and a tool for finding misuse.
///
/// A release waits for the work of the whole device, as `cuMemFree` does.
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
    books: Mutex<Books>,
}

impl DirectAllocator {
    /// An allocator of the memory of the device `ordinal`.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unavailable`] without CUDA, a driver or such a device; else what the driver reports.
    pub fn new(ordinal: u16) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        Ok(Self { context, transfer: CudaTransfer::of(ordinal)?, books: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn out_of_memory(&self, requested: u64) -> AllocError {
        let memory = self.context.memory().ok();
        let in_use = self.lock().statistics.in_use.current;
        OutOfMemory {
            device: self.device(),
            requested,
            in_use,
            reserved: in_use,
            largest_free: 0,
            parked: 0,
            limit: None,
            device_free: memory.map(|memory| memory.free),
            device_total: memory.map(|memory| memory.total),
        }
        .into()
    }

    fn free(&self, living: &Living, stream: Stream, uses: &StreamSet) -> Result<(), ProviderError> {
        // The driver waits for its own device; streams of another, which only `uses` can name, are waited for here.
        for other in uses.iter().filter(|other| *other != stream) {
            // SAFETY: streams that are named to an allocator live until they are retired.
            unsafe { Event::record(self.context, other) }?.synchronize()?;
        }
        // What is queued on this device is waited for explicitly too: that `cuMemFree` waits is only its habit.
        self.context.synchronize()?;
        // SAFETY: the block left the books, so it is freed once, and no work uses it.
        unsafe { self.context.free(living.base) }
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
        let base = match self.context.allocate(held) {
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
        let freed = self.free(&living, stream, uses);
        let mut books = self.lock();
        match freed {
            Ok(()) => {
                books.statistics.reserved.sub(living.held);
                Ok(())
            }
            Err(source) => {
                books.statistics.leaked += living.held;
                drop(books);
                tracing::warn!(%source, bytes = living.held, "a block was leaked, since its use can't be known");
                Err(ReleaseError::Leaked { block, source })
            }
        }
    }

    fn statistics(&self) -> Statistics {
        self.lock().statistics
    }

    fn trim(&self, _keep: u64) -> u64 {
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        self.transfer
    }
}
