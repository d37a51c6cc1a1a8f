//! Calls out to code of others that must not call itself without end.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that nothing else of this process has.
pub(crate) fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

thread_local! {
    static ACTIVE: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Proof that this thread is inside the call `id`, until dropped.
pub(crate) struct Entered(u64);

impl Entered {
    /// Enters the call `id`, or `None` if this thread is inside it already (or is ending).
    pub(crate) fn enter(id: u64) -> Option<Self> {
        let entered = ACTIVE.try_with(|active| {
            let mut active = active.borrow_mut();
            let new = !active.contains(&id);
            if new {
                active.push(id);
            }
            new
        });
        // Made only where the thread did enter: dropping one leaves the call.
        matches!(entered, Ok(true)).then(|| Self(id))
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // A thread whose locals are gone has nothing left to unmark.
        let _ = ACTIVE.try_with(|active| active.borrow_mut().retain(|id| *id != self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_entered_once_by_each_thread() {
        let (first, second) = (next_id(), next_id());
        let entered = Entered::enter(first);
        assert!(entered.is_some());
        assert!(Entered::enter(first).is_none());
        assert!(Entered::enter(first).is_none(), "a refused entry left the call");
        assert!(Entered::enter(second).is_some());
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(Entered::enter(first).is_some()));
        });
        drop(entered);
        assert!(Entered::enter(first).is_some());
    }
}
