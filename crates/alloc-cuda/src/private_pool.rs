//! A pool of its own for the memory of captured graphs.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use alloc_core::{
    AllocError, AllocatorHandle, Block, Device, DeviceAllocator, Layout, ProviderError, ProviderErrorKind,
    ReleaseError, Snapshot, Statistics, Stream, StreamSet, Transfer,
};
use alloc_pool::{Pool, PoolConfig};

use crate::driver::Context;
use crate::driver::error::is_of_capture;
use crate::global::tell_of_retired_streams;
use crate::provider::{CarvedProvider, Carvings};
use crate::put_off;

/// A pool whose memory stays where it is, and its own, until the pool goes.
///
/// A captured graph remembers addresses, so what it uses must not move, and nobody else may have it, as long as the
/// graph can be launched. A private pool takes segments from another allocator, the process's pool, say, and reuses
/// within them what is released, in the order of streams, as a capture needs to keep its temporaries small. Nothing
/// moves, and nothing goes back to the other allocator before the pool is dropped, which waits for the device, unless
/// [`PrivatePool::give_back_unused`] is called.
///
/// While a stream is captured a device can't be waited for: the driver refuses, and ends the capture. So if a
/// [capture of this crate](crate::CudaStream::capture) is in progress nothing of the kind is tried, and the memory of a dropped pool
/// goes back when a device is next waited for, at the latest with [`give_back_put_off`](crate::give_back_put_off). Captures that
/// others began are not known here: don't drop a pool while there is one in the device's primary context.
///
/// For a graph whose temporaries need no reuse, [`Recorder::allocator`](crate::Recorder::allocator) is simpler.
///
/// ```
/// use alloc_core::{DeviceAllocator, Layout, StreamSet};
/// use alloc_cuda::{CudaStream, PrivatePool};
///
/// if alloc_cuda::is_available() {
///     let pool = PrivatePool::new(0, alloc_cuda::global(0)?.into())?;
///     let stream = CudaStream::new(0)?;
///     let first = pool.allocate(Layout::bytes(1 << 20)?, stream.stream())?;
///     // SAFETY: nothing uses the block.
///     unsafe { pool.release(first, stream.stream(), StreamSet::EMPTY) }?;
///     let second = pool.allocate(Layout::bytes(1 << 20)?, stream.stream())?;
///     assert_eq!(first.address(), second.address());
///     // SAFETY: as above.
///     unsafe { pool.release(second, stream.stream(), StreamSet::EMPTY) }?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PrivatePool {
    context: &'static Context,
    carvings: Arc<Carvings>,
    /// Shared with those who tell it of retired streams, also after it was dropped during a capture.
    pool: ManuallyDrop<Arc<Pool<CarvedProvider>>>,
}

impl PrivatePool {
    /// A pool of the device `ordinal` over memory of `source`, which is an allocator of the same device. Streams of this crate tell
    /// it when they go.
    ///
    /// # Errors
    /// [`ProviderErrorKind::Unavailable`] without CUDA, a driver or such a device; [`ProviderErrorKind::InvalidArgument`] if the source
    /// hands out other memory than the device's; else what the driver reports.
    pub fn new(ordinal: u16, source: AllocatorHandle) -> Result<Self, AllocError> {
        let context = Context::open(ordinal)?;
        // Blocks of it are told to be the device's, and safe code believes that.
        if source.device() != context.name() {
            let name = format!("the source is an allocator of {}", source.device());
            let kind = ProviderErrorKind::InvalidArgument;
            return Err(ProviderError::new(context.name(), "allocate a segment", kind, name).into());
        }
        let carvings = Arc::new(Carvings::default());
        let provider = CarvedProvider::new(ordinal, source, Arc::clone(&carvings))?;
        // Segments are never moved, so there is nothing to be gained by holding back.
        let config = PoolConfig { growth_slack: 0.0, growth_slack_moving: 0.0, arenas: 1, ..PoolConfig::default() };
        let pool = Arc::new(Pool::new(provider, config)?);
        tell_of_retired_streams(&pool);
        Ok(Self { context, carvings, pool: ManuallyDrop::new(pool) })
    }

    /// Where the pool's memory is, piece by piece: see [`Pool::snapshot`]. What it took from the other allocator is a block there.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = self.pool.snapshot();
        snapshot.device = self.device();
        snapshot
    }

    /// Gives back the segments that no living block lies in, once nobody launches the graphs any more that used them:
    /// how many bytes. Waits for all work of the device, and does nothing where that can't be waited for, as while a
    /// stream is being captured. What lives stays, and what is allocated afterwards comes from new segments.
    ///
    /// As dropping the pool, this ends captures that others began.
    ///
    /// # Safety
    /// No graph that was captured with memory of this pool is launched from now on, except for those that use living
    /// blocks only.
    pub unsafe fn give_back_unused(&self) -> u64 {
        if let Err(error) = put_off::settle(self.context) {
            tracing::debug!(%error, "a private pool keeps its memory: the device can't be waited for");
            return 0;
        }
        self.pool.trim(0);
        self.pool.provider().return_kept()
    }

    /// The error for who asked for `bytes` bytes: with the source's figures, and the device by its own name.
    fn error(&self, error: AllocError, bytes: u64) -> AllocError {
        let refusal = self.carvings.take_refusal();
        let mut error = error;
        if let (true, Some(refusal)) = (error.is_out_of_memory(), refusal) {
            error = refusal;
        }
        match &mut error {
            AllocError::TooLarge { device, .. } => *device = self.device(),
            AllocError::LimitReached { device, requested, .. } => (*device, *requested) = (self.device(), bytes),
            AllocError::OutOfMemory(figures) => (figures.device, figures.requested) = (self.device(), bytes),
            AllocError::Provider(error) => error.device = self.device(),
            _ => {}
        }
        error
    }
}

// SAFETY: blocks come from the pool within, which keeps the promises.
unsafe impl DeviceAllocator for PrivatePool {
    fn device(&self) -> Device {
        self.context.name()
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        self.pool.allocate(layout, stream).map_err(|error| self.error(error, layout.size()))
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.pool.release(block, stream, uses) }.map_err(|error| match error {
            ReleaseError::Foreign { block, .. } => ReleaseError::Foreign { device: self.device(), block },
            ReleaseError::Stale { block, .. } => ReleaseError::Stale { device: self.device(), block },
            error => error,
        })
    }

    fn statistics(&self) -> Statistics {
        self.pool.statistics()
    }

    /// Gives nothing of its own back: graphs may use all of it. What others left goes.
    fn trim(&self, _keep: u64) -> u64 {
        put_off::retry(self.context);
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        self.pool.transfer()
    }

    fn retire_stream(&self, stream: Stream) {
        self.pool.retire_stream(stream);
    }
}

impl Drop for PrivatePool {
    /// Waits for all work of the device, then gives the memory back; on a later occasion if a capture is in the way. What can't be
    /// waited for otherwise is leaked.
    fn drop(&mut self) {
        // SAFETY: the field is not used after this.
        let pool = unsafe { ManuallyDrop::take(&mut self.pool) };
        match put_off::settle(self.context) {
            Ok(()) => self.carvings.release_on_drop(),
            Err(error) if is_of_capture(&error) => {
                let carvings = Arc::clone(&self.carvings);
                // The engine asks its streams when it goes, so that goes later too.
                put_off::put_off(self.context, move || {
                    carvings.release_on_drop();
                    drop(pool);
                });
            }
            Err(error) => tracing::warn!(%error, "a private pool can't wait for the device"),
        }
    }
}
