//! Where a thread's caches live.
//!
//! A thread-local value that is dropped with its thread is reached through a check of its state and a closure that
//! compilers like to leave out of line, which is half of what a hit costs. So the value is in a box, which one owner
//! drops with the thread, and the hot path finds it by a thread-local pointer that needs neither.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr::NonNull;

use crate::cache::Caches;

thread_local! {
    static PLACE: Cell<Option<NonNull<RefCell<Caches>>>> = const { Cell::new(None) };
    static OWNER: Owner = const { Owner };
}

/// Drops the thread's caches when the thread ends.
struct Owner;

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(place) = PLACE.take() {
            // SAFETY: the pointer came from `Box::leak` in `make`, is taken out of its place here and nowhere else,
            // and references made from it last no longer than a call on this thread, of which there is none now.
            drop(unsafe { Box::from_raw(place.as_ptr()) });
        }
    }
}

/// A call on this thread, which what it borrows can't outlast. It stays on its thread and its stack.
#[derive(Debug, Default)]
pub(crate) struct Call(PhantomData<*const ()>);

/// This thread's caches. `None` if it has none: it is new, or ending. Without a closure, so that a hit is straight code.
#[inline(always)]
pub(crate) fn current(_call: &Call) -> Option<&RefCell<Caches>> {
    let place = PLACE.get()?;
    // SAFETY: what is in its place is a living box of this thread: `make` puts it there, and only the end of the thread
    // takes it out, after the call that the reference is bound to. Only shared references are ever made of it.
    Some(unsafe { place.as_ref() })
}

/// Gives this thread caches if it has none yet. `false` if the thread is ending.
pub(crate) fn make() -> bool {
    if PLACE.get().is_some() {
        return true;
    }
    let owned = OWNER.try_with(|_| ()).is_ok();
    if owned {
        PLACE.set(Some(NonNull::from(Box::leak(Box::new(RefCell::new(Caches::new()))))));
    }
    owned
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_caches_from_the_first_time_it_asks() {
        std::thread::spawn(|| {
            let call = Call::default();
            assert!(current(&call).is_none());
            assert!(make());
            assert!(current(&call).unwrap().try_borrow_mut().is_ok());
        })
        .join()
        .unwrap();
    }
}
