//! What allocators call the streams of others, of which only a handle is known.
//!
//! A driver hands out the handle of a destroyed stream again. An allocator that took the new stream for the old one, which it was
//! told has ended, would not wait for its work. So a handle that comes back after its stream was retired is another name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use alloc_core::Stream;

use crate::driver::stream::PER_THREAD;
use crate::driver::thread::{self, thread_number};
use crate::ending;

/// How many handles of streams that were retired are found without a lock. A program has few streams at a time, and drivers use
/// handles again.
const PLACES: usize = 1 << 9;
/// With more of them in use, to find out that a handle is not there takes too long.
const MOST: usize = PLACES / 2;

/// A handle whose stream was retired, and the identity of the next one that has it.
struct Place {
    handle: AtomicU64,
    identity: AtomicU64,
}

/// All such handles.
struct Successors {
    /// Found by a hash, and then one after the other. A handle stays where it is; 0 is none.
    places: [Place; PLACES],
    /// What found no place.
    rest: Mutex<Rest>,
    has_any: AtomicBool,
    has_rest: AtomicBool,
}

#[derive(Default)]
struct Rest {
    places_taken: usize,
    identities: BTreeMap<u64, u64>,
}

static SUCCESSORS: Successors = Successors::new();

impl Successors {
    const fn new() -> Self {
        Self {
            places: [const { Place { handle: AtomicU64::new(0), identity: AtomicU64::new(0) } }; PLACES],
            rest: Mutex::new(Rest { places_taken: 0, identities: BTreeMap::new() }),
            has_any: AtomicBool::new(false),
            has_rest: AtomicBool::new(false),
        }
    }

    /// The place of the handle, or the one that it would have.
    fn place(&self, handle: u64) -> &Place {
        let first = handle.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.trailing_zeros());
        let mut at = first as usize;
        // Half of them are free.
        while ![0, handle].contains(&self.places[at].handle.load(Ordering::Acquire)) {
            at = (at + 1) % PLACES;
        }
        &self.places[at]
    }

    /// The identity of the stream that has this handle at present: 0 if none that had it was retired.
    fn identity(&self, handle: u64) -> u64 {
        let place = self.place(handle);
        if place.handle.load(Ordering::Acquire) == handle {
            return place.identity.load(Ordering::Acquire);
        }
        if !self.has_rest.load(Ordering::Acquire) {
            return 0;
        }
        let rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        rest.identities.get(&handle).copied().unwrap_or(0)
    }

    /// Gives the next stream of the handle another identity, if this is that of the present one.
    fn end(&self, handle: u64, identity: u64) {
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let place = self.place(handle);
        let has_place = place.handle.load(Ordering::Acquire) == handle;
        let present = if has_place {
            place.identity.load(Ordering::Acquire)
        } else {
            rest.identities.get(&handle).copied().unwrap_or(0)
        };
        if present != identity {
            return;
        }
        if has_place {
            place.identity.store(next_identity(), Ordering::Release);
        } else if rest.places_taken < MOST && present == 0 {
            rest.places_taken += 1;
            place.identity.store(next_identity(), Ordering::Relaxed);
            // Last, for whoever finds it to find the identity.
            place.handle.store(handle, Ordering::Release);
        } else {
            rest.identities.insert(handle, next_identity());
            self.has_rest.store(true, Ordering::Release);
        }
        self.has_any.store(true, Ordering::Release);
    }
}

/// An identity that no other stream of the process gets, but for default ones of threads.
pub(crate) fn next_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What allocators call the stream that has this handle (`CUstream`, or `cudaStream_t`) at present: for
/// `CU_STREAM_PER_THREAD` that of the calling thread, and for a handle that came back after its stream was
/// [retired](retire_stream) another stream than before. It takes no lock, unless a program has retired hundreds of streams that
/// all had different handles, or other threads with default streams have ended, which are retired first. Streams of this crate are
/// called what they [say](crate::CudaStream::stream).
///
/// ```
/// use alloc_core::Stream;
/// use alloc_cuda::{retire_stream, stream_named};
///
/// let before = stream_named(0x7f00_1234);
/// assert_eq!(before, Stream::from_raw(0x7f00_1234));
/// retire_stream(before);
/// assert_ne!(stream_named(0x7f00_1234), before);
/// ```
#[inline]
pub fn stream_named(handle: u64) -> Stream {
    if handle == PER_THREAD || SUCCESSORS.has_any.load(Ordering::Acquire) {
        return look_up(handle);
    }
    Stream::from_raw(handle)
}

#[cold]
#[inline(never)]
fn look_up(handle: u64) -> Stream {
    if handle == PER_THREAD {
        if thread::any_ending() {
            ending::retire_default_streams();
        }
        return Stream::with_identity(PER_THREAD, thread_number());
    }
    if handle < PER_THREAD {
        return Stream::from_raw(handle);
    }
    Stream::with_identity(handle, SUCCESSORS.identity(handle))
}

/// Has the next stream of that handle called otherwise, if this is what the handle's stream is called at present. The default
/// streams of threads have other names by themselves, and the legacy one never ends.
pub(crate) fn end(stream: Stream) {
    if stream.handle() > PER_THREAD {
        SUCCESSORS.end(stream.handle(), stream.identity());
    }
}

/// Tells every allocator of CUDA memory that a stream of somebody else's is about to be destroyed: the process's pools, and
/// those that [asked for it](crate::tell_of_retired_streams). `stream` is what [`stream_named`] says.
///
/// Streams of this crate that are owned or kept alive do it by themselves.
pub fn retire_stream(stream: Stream) {
    crate::global::retire(stream);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_that_comes_back_is_another_stream() {
        const HANDLE: u64 = 0xdead_0001;
        let first = stream_named(HANDLE);
        assert_eq!(first, Stream::from_raw(HANDLE));
        end(first);
        let second = stream_named(HANDLE);
        assert_eq!(second.handle(), HANDLE);
        assert_ne!(second, first);
        // What has ended before, and what was never called by its handle alone, ends nothing more.
        end(first);
        end(Stream::with_identity(HANDLE, u64::MAX));
        assert_eq!(stream_named(HANDLE), second);
        end(second);
        assert!(![first, second].contains(&stream_named(HANDLE)));
        assert_eq!(stream_named(0xdead_0002), Stream::from_raw(0xdead_0002));
    }

    #[test]
    fn any_number_of_handles_may_come_back() {
        let successors = Successors::new();
        let handles = || (1..=4 * PLACES as u64).map(|number| number << 4);
        handles().for_each(|handle| successors.end(handle, 0));
        let mut identities: Vec<u64> = handles().map(|handle| successors.identity(handle)).collect();
        for handle in handles().step_by(3) {
            let before = successors.identity(handle);
            successors.end(handle, before);
            identities.push(successors.identity(handle));
        }
        let count = identities.len();
        identities.sort_unstable();
        identities.dedup();
        assert!(identities.len() == count && !identities.contains(&0), "each stream has a name of its own");
        assert_eq!(successors.identity(7), 0);
    }

    #[test]
    fn default_streams_never_end() {
        for handle in 0..=PER_THREAD {
            let stream = stream_named(handle);
            end(stream);
            assert_eq!(stream_named(handle), stream);
        }
        let other = std::thread::spawn(|| stream_named(PER_THREAD)).join().unwrap_or_default();
        assert_ne!(other, stream_named(PER_THREAD));
    }
}
