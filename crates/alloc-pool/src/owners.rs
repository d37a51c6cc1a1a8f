//! The threads that may own something: each that uses a pool is one, until it ends.

use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::asymmetric;
use crate::bias::{Bias, Owner};

/// As many owners as there ever were threads at a time; what a thread leaves behind is the next one's.
static OWNERS: Mutex<Owners> = Mutex::new(Owners { all: Vec::new(), free: Vec::new() });

struct Owners {
    all: Vec<&'static Owner>,
    free: Vec<&'static Owner>,
}

thread_local! {
    static ME: Cell<Option<&'static Owner>> = const { Cell::new(None) };
}

fn owners() -> MutexGuard<'static, Owners> {
    OWNERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread, if it may own something.
#[inline(always)]
pub(crate) fn me() -> Option<&'static Owner> {
    ME.get()
}

/// From now on the calling thread may own something, if the system has what that takes. It has to [`leave`].
pub(crate) fn join() {
    if ME.get().is_some() || !asymmetric::is_available() {
        return;
    }
    let mut owners = owners();
    let owner = owners.free.pop().or_else(|| {
        let number = u32::try_from(owners.all.len() + 1).ok().filter(|&number| number < u32::MAX)?;
        // As many as there are threads at a time, for as long as the process lives.
        let owner: &'static Owner = Box::leak(Box::new(Owner::new(number)));
        owners.all.push(owner);
        // Room for all to come back, so that a thread that ends needs no heap.
        let made = owners.all.len();
        owners.free.reserve(made);
        Some(owner)
    });
    ME.set(owner);
}

/// The calling thread owns nothing any more: what was its own is the next one's who gets its number.
pub(crate) fn leave() {
    if let Some(owner) = ME.take() {
        owners().free.push(owner);
    }
}

/// Takes something from its owner, whoever that is. Returns whether there was one.
pub(crate) fn revoke(bias: &Bias) -> bool {
    bias.revoke(|token| owners().all.get((token as usize).checked_sub(1)?).copied())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_one_threads_at_a_time() {
        if !asymmetric::is_available() {
            return;
        }
        let token = || {
            assert!(me().is_none());
            join();
            let token = me().map(Owner::token);
            join();
            assert_eq!(me().map(Owner::token), token);
            token
        };
        std::thread::scope(|scope| {
            let (first, is_first) = std::sync::mpsc::channel();
            let (second, is_second) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || {
                first.send(token()).unwrap();
                is_second.recv().unwrap();
                leave();
                assert!(me().is_none());
            });
            let of_first = is_first.recv().unwrap();
            let of_second = scope.spawn(move || {
                let of_second = token();
                leave();
                of_second
            });
            assert_ne!(of_first, of_second.join().unwrap());
            second.send(()).unwrap();
        });
    }

    #[test]
    fn what_is_revoked_is_shared() {
        if !asymmetric::is_available() {
            return;
        }
        std::thread::spawn(|| {
            join();
            let (bias, me) = (Bias::new(), me().unwrap());
            assert!(bias.is_shared() && bias.enter(me).is_none());
            bias.give(me);
            assert!(bias.enter(me).is_some() && !bias.is_shared() && bias.is_of(me));
            assert!(revoke(&bias) && !revoke(&bias));
            assert!(bias.is_shared() && bias.enter(me).is_none());
            leave();
        })
        .join()
        .unwrap();
    }
}
