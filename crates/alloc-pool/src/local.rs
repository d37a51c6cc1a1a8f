//! Where a thread's caches live.
//!
//! A thread-local value that is dropped with its thread is reached through a check of its state and a closure that
//! compilers like to leave out of line, which is half of what a hit costs. So the cache that was used last is reached by a
//! thread-local pointer that needs neither, and whoever uses it takes it out of its place: that the place is empty says at
//! once that the thread has none, is ending, or is in the midst of a call. The others are where such values usually are.

use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use crate::cache::Kept;
use crate::caches::Caches;
use crate::owners;

thread_local! {
    static LATEST: Cell<Option<NonNull<Kept>>> = const { Cell::new(None) };
    static OWNER: Owner = const { Owner { caches: RefCell::new(Caches::new()), has_latest: Cell::new(false) } };
}

/// Drops the thread's caches when the thread ends.
struct Owner {
    /// Without the latest, but while [`all`] has them.
    caches: RefCell<Caches>,
    /// Whether there is a latest, in its place or with a call.
    has_latest: Cell<bool>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        drop(take());
        owners::leave();
    }
}

/// Takes the cache that this thread used last out of its place. `None` if there is none, or if a call has it.
#[inline(always)]
pub(crate) fn take() -> Option<Box<Kept>> {
    let kept = LATEST.take()?;
    // SAFETY: what is in the place came from `Box::leak` in `put`, and leaves the place here and nowhere else.
    Some(unsafe { Box::from_raw(kept.as_ptr()) })
}

/// Puts what was [taken](take) back in its place.
#[inline(always)]
pub(crate) fn put(kept: Box<Kept>) {
    LATEST.set(Some(NonNull::from(Box::leak(kept))));
}

/// Calls `with` with all caches of this thread. `None` if they can't be had: the thread is ending, or is in the midst of
/// a call.
pub(crate) fn all<R>(with: impl FnOnce(&mut Caches) -> R) -> Option<R> {
    let with_all = |owner: &Owner| {
        let mut caches = owner.caches.try_borrow_mut().ok()?;
        caches.latest = take();
        if caches.latest.is_none() && owner.has_latest.get() {
            return None;
        }
        let result = with(&mut caches);
        owner.has_latest.set(caches.latest.is_some());
        caches.latest.take().into_iter().for_each(put);
        Some(result)
    };
    OWNER.try_with(with_all).ok().flatten()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_caches_are_with_one_caller_at_a_time() {
        std::thread::spawn(|| {
            assert!(take().is_none());
            assert_eq!(all(|_| all(|_| ())), Some(None));
            assert_eq!(all(|_| ()), Some(()));
        })
        .join()
        .unwrap();
    }
}
