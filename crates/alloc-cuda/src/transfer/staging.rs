//! Pageable host memory through page-locked chunks.
//!
//! The driver copies pageable memory through a small buffer with one thread, at a sixth of the link's speed. Here
//! several threads fill (or empty) large chunks while the device copies others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use alloc_core::{ProviderError, Stream};

use crate::driver::stream::Target;
use crate::driver::{Context, Event};
use crate::provider::{PinnedMemory, PinnedMethod};

/// Copies up to this size use chunks of this size.
const SMALL: u64 = 64 << 10;
/// Larger ones use these.
const LARGE: u64 = 4 << 20;
const SMALL_CHUNKS: u64 = 64;
const LARGE_CHUNKS: u64 = 64;
/// Chunks are made in lots of this many bytes.
const LOT: u64 = 32 << 20;
const SMALL_LOT: u64 = SMALL * SMALL_CHUNKS;
const MAX_THREADS: u64 = 12;

/// The chunks of one device.
#[derive(Debug)]
pub(super) struct Staging {
    context: &'static Context,
    small: Ring,
    large: Ring,
}

/// The address of a chunk. Chunks live as long as the process.
type Chunk = u64;

#[derive(Debug)]
struct Ring {
    chunk: u64,
    lot: u64,
    limit: u64,
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Chunk>,
    /// Oldest first.
    busy: VecDeque<Busy>,
    /// Chunks that are there, also in use; those that were lost are not.
    made: u64,
}

/// A chunk that the device still reads, in the order of a stream.
#[derive(Debug)]
struct Busy {
    chunk: Chunk,
    stream: Stream,
    done: Event,
}

impl State {
    /// A chunk whose copy is done, if there is any.
    fn take_done(&mut self) -> Result<Option<Chunk>, ProviderError> {
        // One stream may be far behind the others, and what comes after that on the same stream is not done either.
        let mut behind: Vec<Stream> = Vec::new();
        for index in 0..self.busy.len() {
            let Busy { stream, done, .. } = &self.busy[index];
            if behind.contains(stream) {
                continue;
            }
            if done.is_complete()? {
                return Ok(self.busy.remove(index).map(|busy| busy.chunk));
            }
            behind.push(*stream);
        }
        Ok(None)
    }
}

impl Ring {
    fn new(chunk: u64, lot: u64, limit: u64) -> Self {
        Self { chunk, lot, limit, state: Mutex::default(), freed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk that nobody uses: a free one, one whose copy is done, a new one, or the next to become free.
    fn obtain(&self, context: &Context) -> Result<Chunk, ProviderError> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.free.pop() {
                return Ok(chunk);
            }
            match state.take_done() {
                Ok(Some(chunk)) => return Ok(chunk),
                Ok(None) => {}
                Err(error) => {
                    // Whether the device still reads it can't be known now; the next may ask again, and those who wait
                    // are to hear of it too.
                    self.freed.notify_one();
                    return Err(error);
                }
            }
            if state.made < self.limit {
                match PinnedMemory::new(context, self.lot, PinnedMethod::Registered) {
                    // Dropped without being released, its memory stays: chunks are kept for the rest of the process.
                    Ok(lot) => {
                        let count = self.lot / self.chunk;
                        state.made += count;
                        state.free.extend((0..count).map(|index| lot.address() + index * self.chunk));
                        self.freed.notify_all();
                        continue;
                    }
                    Err(error) if state.made == 0 => return Err(error),
                    // What there is has to do, as if this were the limit.
                    Err(_) => {}
                }
            }
            if let Some(oldest) = state.busy.pop_front() {
                drop(state);
                return match oldest.done.synchronize() {
                    Ok(()) => Ok(oldest.chunk),
                    Err(error) => {
                        self.lock().busy.push_front(oldest);
                        self.freed.notify_one();
                        Err(error)
                    }
                };
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn put_back(&self, chunk: Chunk) {
        self.lock().free.push(chunk);
        self.freed.notify_one();
    }

    fn put_back_after(&self, chunk: Chunk, stream: Stream, done: Event) {
        self.lock().busy.push_back(Busy { chunk, stream, done });
        self.freed.notify_one();
    }

    /// Gives up a chunk that the device may use for ever. Another may be made in its place, and those who wait for one find out
    /// whether that is so.
    fn lose(&self) {
        let mut state = self.lock();
        state.made = state.made.saturating_sub(1);
        self.freed.notify_all();
    }
}

impl Staging {
    pub(super) fn new(context: &'static Context) -> Self {
        Self { context, small: Ring::new(SMALL, SMALL_LOT, SMALL_CHUNKS), large: Ring::new(LARGE, LOT, LARGE_CHUNKS) }
    }

    /// Whether several threads share in a copy of so many bytes.
    pub(super) fn takes_threads(bytes: u64) -> bool {
        bytes > LARGE
    }

    fn ring(&self, bytes: u64) -> &Ring {
        if bytes <= SMALL { &self.small } else { &self.large }
    }

    /// Copies from pageable memory; it has been read when this returns, with an error too.
    ///
    /// # Safety
    /// `from` is `bytes` bytes of host memory, `to` of memory that the stream's device reaches until it has come past
    /// the copy.
    pub(super) unsafe fn upload(&self, from: u64, to: u64, bytes: u64, stream: Stream) -> Result<(), ProviderError> {
        let ring = self.ring(bytes);
        in_parallel(bytes, ring.chunk, |offset, length| {
            let chunk = ring.obtain(self.context)?;
            // SAFETY: the chunk is ours and as long; the caller vouches for the source.
            unsafe {
                std::ptr::copy_nonoverlapping((from + offset) as *const u8, chunk as *mut u8, length as usize);
            }
            // SAFETY: the chunk stays as it is until the event below is complete; the caller vouches for the target.
            if let Err(error) = unsafe { self.context.copy(to + offset, chunk, length, Target::of(stream)) } {
                ring.put_back(chunk);
                return Err(error);
            }
            // SAFETY: the caller says that the stream lives, and it does not capture, or the copy would have failed.
            match unsafe { Event::record(self.context, stream) } {
                Ok(event) => ring.put_back_after(chunk, stream, event),
                // When the device is done with the chunk can't be known: it is lost, unless the stream can be waited
                // for.
                Err(error) => {
                    // SAFETY: as above.
                    match unsafe { self.context.stream_synchronize(Target::of(stream)) } {
                        Ok(()) => ring.put_back(chunk),
                        Err(_) => ring.lose(),
                    }
                    return Err(error);
                }
            }
            Ok(())
        })
    }

    /// Copies to pageable memory; it has been written when this returns, and is written no more after an error.
    ///
    /// # Safety
    /// `from` is `bytes` bytes that the stream's device reaches, `to` of host memory.
    pub(super) unsafe fn download(&self, from: u64, to: u64, bytes: u64, stream: Stream) -> Result<(), ProviderError> {
        let ring = self.ring(bytes);
        in_parallel(bytes, ring.chunk, |offset, length| {
            let chunk = ring.obtain(self.context)?;
            // SAFETY: the chunk is ours and as long, and is not touched before the copy is done.
            if let Err(error) = unsafe { self.context.copy(chunk, from + offset, length, Target::of(stream)) } {
                ring.put_back(chunk);
                return Err(error);
            }
            // SAFETY: the caller says that the stream lives.
            let done = match unsafe { Event::record(self.context, stream) } {
                Ok(event) => event.synchronize(),
                // SAFETY: as above.
                Err(_) => unsafe { self.context.stream_synchronize(Target::of(stream)) },
            };
            if let Err(error) = done {
                // The device may still write to the chunk.
                ring.lose();
                return Err(error);
            }
            // SAFETY: the device is done with the chunk; the caller vouches for the target.
            unsafe {
                std::ptr::copy_nonoverlapping(chunk as *const u8, (to + offset) as *mut u8, length as usize);
            }
            ring.put_back(chunk);
            Ok(())
        })
    }
}

/// Calls `each` for every chunk of `bytes` bytes with its offset and length, on as many threads as pay. The first
/// error ends it; all calls are over when this returns.
fn in_parallel(
    bytes: u64,
    chunk: u64,
    each: impl Fn(u64, u64) -> Result<(), ProviderError> + Sync,
) -> Result<(), ProviderError> {
    let chunks = bytes.div_ceil(chunk);
    let next = AtomicU64::new(0);
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= chunks {
                return Ok(());
            }
            let offset = index * chunk;
            if let Err(error) = each(offset, chunk.min(bytes - offset)) {
                next.store(chunks, Ordering::Relaxed);
                return Err(error);
            }
        }
    };
    if chunks == 1 {
        // The system reads files to say how many cores there are, which takes longer than a small copy.
        return work();
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let threads = chunks.min(MAX_THREADS).min(cores);
    std::thread::scope(|scope| {
        // Fewer threads than wished for do the same work.
        let others: Vec<_> =
            (1..threads).map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut result = work();
        for other in others {
            if let Ok(Err(error)) = other.join() {
                result = Err(error);
            }
        }
        result
    })
}
