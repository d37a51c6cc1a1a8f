//! Work captured from a stream, with the memory that it uses.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alloc_core::{
    AllocError, AllocatorHandle, Block, Device, DeviceAllocator, Layout, ProviderError, ReleaseError, Statistics,
    Stream, StreamSet, Transfer,
};

use crate::driver::{Context, Event};
use crate::ending;
use crate::stream::CudaStream;

/// A CUDA graph captured from a stream, ready to be launched any number of times, and the owner of what it uses.
///
/// A graph remembers addresses. So whatever lives at them has to stay until the graph is gone: hand buffers to
/// [`Recorder::keep`], and take temporary ones from [`Recorder::allocator`], whose blocks go back to the pool with the
/// graph and not before. Dropping the graph waits for its launches.
///
/// ```
/// use alloc_core::{Device, DeviceAllocator, Layout, Place, Transfer};
/// use alloc_cuda::{CudaStream, CudaTransfer};
///
/// if alloc_cuda::is_available() {
///     let stream = CudaStream::new(0)?;
///     let pool = alloc_cuda::global(0)?;
///     let (graph, block) = stream.capture(|recorder| -> Result<_, Box<dyn std::error::Error>> {
///         let memory = recorder.allocator(pool.into());
///         let block = memory.allocate(Layout::bytes(4096)?, stream.stream())?;
///         let place = Place { device: Device::cuda(0), address: block.address() };
///         // SAFETY: the graph keeps the block as long as it can be launched.
///         unsafe { CudaTransfer::of(0)?.fill(place, 4096, 1, stream.stream()) }?;
///         Ok(block)
///     })?;
///     graph.launch(&stream)?;
///     graph.launch(&stream)?;
///     stream.synchronize()?;
///     drop(graph);
///     # let _ = block;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct CapturedGraph {
    context: &'static Context,
    executable: u64,
    launches: Mutex<Launches>,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Launches {
    /// The last launch on each stream, with the stream's device.
    last: Vec<(u16, Stream, Event)>,
    /// Why it is not known when the graph is used for the last time.
    endless: Option<Endless>,
}

/// Why what a graph keeps has to stay.
#[derive(Clone, Copy)]
enum Endless {
    /// It is part of another one, which may be launched for ever.
    Captured,
    /// It was launched, and that launch can't be waited for.
    Unwatched,
}

/// What a graph keeps alive.
#[derive(Default)]
struct Memory {
    values: Vec<Box<dyn Any + Send>>,
    /// Blocks that were released while the graph could still use them.
    released: Vec<(AllocatorHandle, Block, Stream, StreamSet)>,
    /// The graph is gone: releases go straight to the allocator.
    over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the closure of [`CudaStream::capture`] gets.
pub struct Recorder {
    memory: Arc<Mutex<Memory>>,
}

impl Recorder {
    /// Keeps a value (a buffer, say) until the graph is gone.
    pub fn keep(&self, value: impl Any + Send) {
        lock(&self.memory).values.push(Box::new(value));
    }

    /// An allocator for blocks that the captured work uses. What is released to it stays untouched until the graph is
    /// gone; then it goes back to `inner`. Blocks that outlive the graph are released to `inner` as usual.
    pub fn allocator(&self, inner: AllocatorHandle) -> Arc<dyn DeviceAllocator> {
        Arc::new(GraphAllocator { inner, memory: Arc::clone(&self.memory) })
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("kept", &lock(&self.memory).values.len()).finish()
    }
}

/// A capture that came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CaptureError<E> {
    /// The closure failed.
    #[error("{0}")]
    Work(E),
    /// The driver failed, or refused something that was done during the capture.
    #[error("capture failed: {0}")]
    Driver(ProviderError),
}

impl CudaStream {
    /// Captures the work that `work` submits to this stream (and to streams that are made to wait for it) instead of
    /// running it, and makes a graph of it. Other threads are not affected, but that nobody waits for a whole device meanwhile: it
    /// begins once such a wait that is under way is over, and what needs one goes [later](crate::give_back_put_off).
    ///
    /// # Errors
    /// [`CaptureError::Work`] with the closure's error, [`CaptureError::Driver`] with the driver's: the stream is the
    /// legacy default stream, is captured already, or something was called that can't be captured.
    pub fn capture<R, E>(
        &self,
        work: impl FnOnce(&Recorder) -> Result<R, E>,
    ) -> Result<(CapturedGraph, R), CaptureError<E>> {
        /// Gives back what a capture kept that came to nothing.
        struct Abandon<'a>(&'a Mutex<Memory>);
        impl Drop for Abandon<'_> {
            fn drop(&mut self) {
                Memory::end(self.0).give_back();
            }
        }
        /// Ends the capture, also when the closure panics.
        struct Capture<'a>(&'a CudaStream);
        impl Capture<'_> {
            fn end(self) -> Result<u64, ProviderError> {
                let stream = self.0;
                std::mem::forget(self);
                // SAFETY: the stream lives as long as its `CudaStream`.
                unsafe { stream.context().end_capture(stream.target()) }
            }
        }
        impl Drop for Capture<'_> {
            fn drop(&mut self) {
                // SAFETY: as above.
                if let Ok(graph) = unsafe { self.0.context().end_capture(self.0.target()) } {
                    // SAFETY: the graph was just made, and nobody else knows it.
                    let _ = unsafe { self.0.context().destroy_graph(graph) };
                }
            }
        }

        let context = self.context();
        let recorder = Recorder { memory: Arc::default() };
        // Whatever becomes of the capture but a graph, what was kept for one is let go.
        let abandon = Abandon(&recorder.memory);
        // The stream and what it needs must go before the memory: kept values may be the last owners of a stream.
        // SAFETY: the stream lives as long as this.
        unsafe { context.begin_capture(self.target()) }.map_err(CaptureError::Driver)?;
        let capture = Capture(self);
        let result = work(&recorder);
        let ended = match &result {
            Ok(_) => capture.end().map(Some),
            Err(_) => {
                drop(capture);
                Ok(None)
            }
        };
        ending::end_overdue();
        let value = result.map_err(CaptureError::Work)?;
        let graph = ended.map_err(CaptureError::Driver)?.unwrap_or(0);
        // SAFETY: the graph was just made.
        let executable = unsafe { context.instantiate(graph) };
        // SAFETY: the graph is destroyed once; the executable one does not need it.
        let _ = unsafe { context.destroy_graph(graph) };
        let executable = executable.map_err(CaptureError::Driver)?;
        std::mem::forget(abandon);
        Ok((CapturedGraph { context, executable, launches: Mutex::default(), memory: recorder.memory }, value))
    }
}

impl CapturedGraph {
    /// Submits the captured work to `stream`, which may be another than the one it was captured from.
    ///
    /// Streams of other work that uses the same memory have to be ordered by the caller, as with any work. Launched to a stream that
    /// is being captured, the graph becomes a part of another one, whose end nobody knows here: what this one keeps then stays for
    /// the rest of the process.
    ///
    /// # Errors
    /// What the driver reports. The work may run all the same; if that can be neither noted nor waited for, what the graph keeps stays
    /// for the rest of the process, too.
    pub fn launch(&self, stream: &CudaStream) -> Result<(), ProviderError> {
        // One launch after the other, so that the event kept is that of the last.
        let mut launches = lock(&self.launches);
        let is_captured = stream.is_capturing()?;
        // A default stream is that of its own device, which need not be the graph's.
        // SAFETY: graph and stream live, and so does what the graph uses: dropping the graph waits for the event.
        unsafe { stream.context().launch_graph(self.executable, stream.target()) }?;
        if is_captured {
            launches.endless = Some(Endless::Captured);
            return Ok(());
        }
        // SAFETY: the stream lives.
        let event = match unsafe { Event::record(stream.context(), stream.stream()) } {
            Ok(event) => event,
            Err(error) => {
                if stream.synchronize().is_err() {
                    launches.endless = Some(Endless::Unwatched);
                }
                return Err(error);
            }
        };
        // All devices call their default streams the same.
        let (device, stream) = (stream.context().ordinal(), stream.stream());
        launches.last.retain(|(on, launched, _)| (*on, *launched) != (device, stream));
        launches.last.push((device, stream, event));
        Ok(())
    }

    /// The driver's handle (`CUgraphExec`).
    pub fn handle(&self) -> u64 {
        self.executable
    }
}

impl Memory {
    /// What is kept so far; nothing is from now on. Under one lock, lest a release in between is kept by nobody.
    fn end(memory: &Mutex<Self>) -> Self {
        std::mem::replace(&mut *lock(memory), Self { over: true, ..Self::default() })
    }

    fn give_back(self) {
        drop(self.values);
        for (allocator, block, stream, uses) in self.released {
            // SAFETY: the release was promised by whoever asked for it, and the graph that stood in its way is gone.
            if let Err(error) = unsafe { allocator.release(block, stream, &uses) } {
                tracing::warn!(%error, "a block of a graph could not be given back");
            }
        }
    }
}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        let (known, endless) = {
            let launches = lock(&self.launches);
            (launches.last.iter().try_for_each(|(.., event)| event.synchronize()), launches.endless)
        };
        let memory = Memory::end(&self.memory);
        match known.map(|()| endless) {
            Ok(Some(endless)) => {
                let reason = match endless {
                    Endless::Captured => "the graph is part of another",
                    Endless::Unwatched => "a launch of it can't be waited for",
                };
                tracing::warn!(reason, "a graph and its memory were leaked");
                std::mem::forget(memory);
            }
            Ok(None) => {
                // SAFETY: the graph is ours and no launch of it runs. A failure leaves nothing to be done.
                let _ = unsafe { self.context.destroy_executable(self.executable) };
                memory.give_back();
            }
            Err(error) => {
                tracing::warn!(%error, "a graph and its memory were leaked, since its launches can't be waited for");
                std::mem::forget(memory);
            }
        }
    }
}

impl fmt::Debug for CapturedGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let memory = lock(&self.memory);
        f.debug_struct("CapturedGraph")
            .field("device", &self.context.name())
            .field("executable", &self.executable)
            .field("kept", &memory.values.len())
            .field("released", &memory.released.len())
            .finish()
    }
}

/// Holds releases back while the graph lives.
struct GraphAllocator {
    inner: AllocatorHandle,
    memory: Arc<Mutex<Memory>>,
}

impl fmt::Debug for GraphAllocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GraphAllocator").field("inner", &self.inner).finish()
    }
}

// SAFETY: blocks come from the allocator within, which keeps the promises, and go back to it later than they are released.
unsafe impl DeviceAllocator for GraphAllocator {
    fn device(&self) -> Device {
        self.inner.device()
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        self.inner.allocate(layout, stream)
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        let mut memory = lock(&self.memory);
        if memory.over {
            drop(memory);
            // SAFETY: the caller's promise is the one asked for.
            return unsafe { self.inner.release(block, stream, uses) };
        }
        if memory.released.iter().any(|(_, released, ..)| *released == block) {
            return Err(ReleaseError::Stale { device: self.device(), block });
        }
        memory.released.push((self.inner.clone(), block, stream, uses.clone()));
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        self.inner.statistics()
    }

    fn trim(&self, keep: u64) -> u64 {
        self.inner.trim(keep)
    }

    fn transfer(&self) -> &dyn Transfer {
        self.inner.transfer()
    }

    fn retire_stream(&self, stream: Stream) {
        self.inner.retire_stream(stream);
    }
}
