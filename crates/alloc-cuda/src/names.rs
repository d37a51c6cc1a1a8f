//! What allocators call the streams of others, of which only a handle is known.
//!
//! A driver hands out the handle of a destroyed stream again. An allocator that took the new stream for the old one, which it was
//! told has ended, would not wait for its work. So a handle that comes back after its stream was retired is another name.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::Stream;

use crate::driver::stream::{PER_THREAD, thread_number};

/// By handle of a stream that was retired, the identity of the next one that has it.
static SUCCESSORS: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());
/// Whether there are any.
static HAS_SUCCESSORS: AtomicBool = AtomicBool::new(false);

/// An identity that no other stream of the process gets, but for default ones of threads.
pub(crate) fn next_identity() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn successors() -> MutexGuard<'static, BTreeMap<u64, u64>> {
    SUCCESSORS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What allocators call the stream that has this handle (`CUstream`, or `cudaStream_t`) at present: for
/// `CU_STREAM_PER_THREAD` that of the calling thread, and for a handle that came back after its stream was
/// [retired](retire_stream) another stream than before.
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
    if handle == PER_THREAD || HAS_SUCCESSORS.load(Ordering::Acquire) {
        return look_up(handle);
    }
    Stream::from_raw(handle)
}

#[cold]
#[inline(never)]
fn look_up(handle: u64) -> Stream {
    if handle == PER_THREAD {
        return Stream::with_identity(PER_THREAD, thread_number());
    }
    successors().get(&handle).map_or(Stream::from_raw(handle), |&identity| Stream::with_identity(handle, identity))
}

/// Has the next stream of that handle called otherwise, if this is what the handle's stream is called at present. The default
/// streams never end.
pub(crate) fn end(stream: Stream) {
    let handle = stream.handle();
    if handle <= PER_THREAD {
        return;
    }
    let mut successors = successors();
    if successors.get(&handle).copied().unwrap_or(0) == stream.identity() {
        successors.insert(handle, next_identity());
        HAS_SUCCESSORS.store(true, Ordering::Release);
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
