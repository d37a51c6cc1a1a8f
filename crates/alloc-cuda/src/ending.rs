//! The end of streams: of those that are owned or kept at once, or once the capture is over that a stream is part of, and of
//! default streams some time after their threads.
//!
//! The side streams of a capture may go before it does. An event that is recorded on such a stream is part of the capture, and
//! nobody else can ask or wait for it; so allocators are told of its end later, while its handle is still there.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::Stream;

use crate::driver::Context;
use crate::driver::stream::{PER_THREAD, Target};
use crate::driver::thread;
use crate::{global, names};

/// What is left of a stream that its user has dropped.
pub(crate) struct Ending {
    context: &'static Context,
    stream: Stream,
    /// Who destroys the stream when dropped; without one it is ours to destroy.
    owner: Option<Box<dyn Any + Send + Sync>>,
}

static CAPTURED: Mutex<Vec<Ending>> = Mutex::new(Vec::new());
/// Whether there are any, so that nobody locks for nothing.
static ANY_CAPTURED: AtomicBool = AtomicBool::new(false);

/// How many keep each stream. Who uses a stream that others keep too goes without a word: the last says it.
static KEEPERS: Mutex<BTreeMap<Stream, usize>> = Mutex::new(BTreeMap::new());

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes one who keeps a stream.
pub(crate) fn keep(stream: Stream) {
    *lock(&KEEPERS).entry(stream).or_insert(0) += 1;
}

/// Whether exactly one keeps a stream.
#[cfg(feature = "cudarc")]
pub(crate) fn is_kept_by_one(stream: Stream) -> bool {
    lock(&KEEPERS).get(&stream) == Some(&1)
}

/// Takes one who keeps a stream off the list. Whether that was the last.
fn leave(stream: Stream) -> bool {
    let mut keepers = lock(&KEEPERS);
    match keepers.get_mut(&stream) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        _ => {
            keepers.remove(&stream);
            true
        }
    }
}

/// Ends a stream that was created by this crate.
pub(crate) fn end_owned(context: &'static Context, stream: Stream) {
    end(Ending { context, stream, owner: None });
}

/// Ends what one who [kept](keep) a stream had of it.
pub(crate) fn end_kept(context: &'static Context, stream: Stream, owner: Box<dyn Any + Send + Sync>) {
    let ending = Ending { context, stream, owner: Some(owner) };
    if !leave(stream) || Target::of(stream).is_default() {
        ending.destroy();
    } else {
        end(ending);
    }
}

fn end(ending: Ending) {
    end_overdue();
    if ending.is_captured() {
        lock(&CAPTURED).push(ending);
        ANY_CAPTURED.store(true, Ordering::Release);
    } else {
        ending.retire_and_destroy();
    }
}

/// Ends the streams that are not captured any more, and the default ones of threads that have ended. To be called now and then.
pub(crate) fn end_overdue() {
    if thread::any_ending() {
        retire_default_streams();
    }
    if !ANY_CAPTURED.swap(false, Ordering::AcqRel) {
        return;
    }
    let endings = std::mem::take(&mut *lock(&CAPTURED));
    let (captured, over): (Vec<_>, Vec<_>) = endings.into_iter().partition(Ending::is_captured);
    if !captured.is_empty() {
        lock(&CAPTURED).extend(captured);
        ANY_CAPTURED.store(true, Ordering::Release);
    }
    over.into_iter().for_each(Ending::retire_and_destroy);
}

/// Retires the default streams of threads that have ended, unless the legacy stream, by which they are reached, may not be used
/// at present.
pub(crate) fn retire_default_streams() {
    // SAFETY: a context that is open has this stream.
    let is_legacy_captured =
        |context: &Context| unsafe { context.stream_is_capturing(Target::LEGACY) }.unwrap_or(false);
    if Context::all_opened().any(is_legacy_captured) {
        return;
    }
    for number in thread::take_ended() {
        global::retire(Stream::with_identity(PER_THREAD, number));
    }
}

impl Ending {
    fn is_captured(&self) -> bool {
        // Of a context that is broken nothing can be waited for.
        // SAFETY: the stream lives, for it is ours or its owner is.
        unsafe { self.context.stream_is_capturing(Target::of(self.stream)) }.unwrap_or(false)
    }

    fn retire_and_destroy(self) {
        global::retire(self.stream);
        // Others may know a stream of ours by its handle alone.
        if self.owner.is_none() {
            global::retire(names::stream_named(self.stream.handle()));
        }
        self.destroy();
    }

    fn destroy(self) {
        match self.owner {
            None => {
                // SAFETY: the stream is ours and no pool names it any more. A failure leaves nothing to be done.
                let _ = unsafe { self.context.stream_destroy(self.stream.handle()) };
            }
            Some(owner) => {
                // The owner may make its device current to destroy the stream; the guard puts that right.
                let _current = self.context.enter();
                drop(owner);
            }
        }
    }
}
