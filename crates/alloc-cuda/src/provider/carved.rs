//! Segments carved out of another allocator's memory, which keep their place until the last of them may go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloc_core::{
    Address, AddressRange, Addressing, AllocError, AllocatorHandle, Block, Device, DeviceKind, DeviceMemory, Layout,
    MemoryProvider, ProviderError, ProviderErrorKind, Stream, StreamSet, Transfer,
};

use crate::driver::{Context, Event};
use crate::stream::CudaStream;
use crate::transfer::CudaTransfer;

/// The kind of a private pool's device towards the engine. Pools of one device give each other memory under pressure;
/// this one neither asks nor is asked.
const PRIVATE: DeviceKind = DeviceKind::new(0x8002, false);

/// The unit of segments: that of the device's own pages.
const GRANULARITY: u64 = 2 << 20;

/// What provider and pool both know.
#[derive(Debug, Default)]
pub(crate) struct Carvings {
    /// Segments that the engine has given back; they wait for it to ask again.
    kept: Mutex<Vec<Block>>,
    /// What the source said when it had no segment to give.
    refusal: Mutex<Option<AllocError>>,
    /// No work uses the segments any more, so they may go back to the source.
    quiet: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Carvings {
    /// Lets the segments go back to the source when the provider goes.
    pub(crate) fn release_on_drop(&self) {
        self.quiet.store(true, Ordering::Release);
    }

    /// The source's own words for the last failure.
    pub(crate) fn take_refusal(&self) -> Option<AllocError> {
        lock(&self.refusal).take()
    }
}

/// Supplies an engine with segments that are blocks of another allocator.
#[derive(Debug)]
pub(crate) struct CarvedProvider {
    context: &'static Context,
    transfer: &'static CudaTransfer,
    source: AllocatorHandle,
    /// Segments are taken on a stream that nobody else has: what comes from the source is complete or is waited for.
    stream: CudaStream,
    carvings: Arc<Carvings>,
}

impl CarvedProvider {
    pub(crate) fn new(ordinal: u16, source: AllocatorHandle, carvings: Arc<Carvings>) -> Result<Self, ProviderError> {
        let context = Context::open(ordinal)?;
        let (transfer, stream) = (CudaTransfer::of(ordinal)?, CudaStream::new(ordinal)?);
        Ok(Self { context, transfer, source, stream, carvings })
    }

    /// Returns once nothing runs on the stream of the segments, so that any stream may use them.
    fn settle(&self) -> Result<(), ProviderError> {
        if super::is_idle(self.context, self.stream.stream())? {
            return Ok(());
        }
        self.stream.synchronize()
    }

    /// Gives the source those segments that the engine has given back. Nothing uses them any more.
    pub(crate) fn return_kept(&self) -> u64 {
        let kept = std::mem::take(&mut *lock(&self.carvings.kept));
        let bytes = kept.iter().map(|block| block.size()).sum();
        for block in kept {
            self.give_to_source(block);
        }
        bytes
    }

    fn give_to_source(&self, block: Block) {
        // SAFETY: the block is the source's, taken by this provider and released once; nothing uses it any more.
        if let Err(error) = unsafe { self.source.release(block, self.stream.stream(), StreamSet::EMPTY) } {
            tracing::warn!(%error, "a segment of a private pool could not be given back");
        }
    }

    fn unsupported(&self, call: &'static str) -> ProviderError {
        let (device, kind) = (self.device(), ProviderErrorKind::Unsupported);
        ProviderError::new(device, call, kind, "segments have addresses of their own")
    }
}

// SAFETY: segments are blocks of the source, which keeps its promises until they are released, and that is when the
// provider goes. Events are the driver's, recorded behind the work of the stream.
unsafe impl MemoryProvider for CarvedProvider {
    type Physical = Block;
    type Event = Event;

    fn device(&self) -> Device {
        Device::new(PRIVATE, self.context.ordinal())
    }

    fn addressing(&self) -> Addressing {
        Addressing::Segmented
    }

    fn granularity(&self) -> u64 {
        GRANULARITY
    }

    fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        self.context.memory()
    }

    fn reserve(&self, _bytes: u64) -> Result<AddressRange, ProviderError> {
        Err(self.unsupported("reserve"))
    }

    unsafe fn unreserve(&self, _range: AddressRange) -> Result<(), ProviderError> {
        Err(self.unsupported("unreserve"))
    }

    fn create(&self, bytes: u64) -> Result<Block, ProviderError> {
        {
            let mut kept = lock(&self.carvings.kept);
            let fitting = kept.iter().enumerate().filter(|(_, block)| block.size() >= bytes);
            if let Some(best) = fitting.min_by_key(|(_, block)| block.size()).map(|(index, _)| index) {
                return Ok(kept.swap_remove(best));
            }
        }
        let layout = Layout::new(bytes, GRANULARITY).map_err(AllocError::from);
        let block = layout.and_then(|layout| self.source.allocate(layout, self.stream.stream())).map_err(|error| {
            let kind = if error.is_out_of_memory() { ProviderErrorKind::OutOfMemory } else { ProviderErrorKind::Other };
            let name = error.to_string();
            *lock(&self.carvings.refusal) = Some(error);
            ProviderError::new(self.device(), "allocate a segment", kind, name)
        })?;
        match self.settle() {
            Ok(()) => Ok(block),
            Err(error) => {
                self.give_to_source(block);
                Err(error)
            }
        }
    }

    unsafe fn release(&self, physical: Block, _bytes: u64) -> Result<(), ProviderError> {
        lock(&self.carvings.kept).push(physical);
        Ok(())
    }

    unsafe fn map(&self, _at: Address, _physical: &Block, _bytes: u64) -> Result<(), ProviderError> {
        Err(self.unsupported("map"))
    }

    unsafe fn unmap(&self, _at: Address, _bytes: u64) -> Result<(), ProviderError> {
        Err(self.unsupported("unmap"))
    }

    fn segment_address(&self, physical: &Block) -> Address {
        physical.address()
    }

    work_of_a_context!();
}

impl Drop for CarvedProvider {
    fn drop(&mut self) {
        if self.carvings.quiet.load(Ordering::Acquire) {
            self.return_kept();
            return;
        }
        let bytes: u64 = lock(&self.carvings.kept).iter().map(|block| block.size()).sum();
        if bytes > 0 {
            tracing::warn!(bytes, "a private pool was leaked, since its work can't be waited for");
        }
    }
}
