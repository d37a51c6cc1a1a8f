//! Bias: what many threads may change with compare-and-swap, and one thread nearly always does, it changes with plain
//! loads and stores until another one comes.
//!
//! A locked instruction takes as long as all the rest of a hit. So a slab's generations, and the block on standby of an
//! arena, may have an *owner*: the thread that had them made. It says that it is busy, looks whether it is the owner
//! still, and if so changes what it likes, for nobody else does. Whoever else wants to change something *revokes* the
//! bias first: he takes the ownership away, has every processor notice ([`asymmetric::heavy`]), and waits until the
//! owner is not busy. After that all threads, the old owner among them, use compare-and-swap. This is biased locking
//! (Kawachiya, Koseki, Onodera: "Lock reservation", 2002; Russell, Detlefs: "Eliminating synchronization-related atomic
//! operations with biased locking and bulk rebiasing", 2006), applied to single words.

use std::sync::{Mutex, PoisonError};

use crate::asymmetric;
use crate::primitive::{AtomicBool, AtomicU32, Ordering};

/// Nobody owns it: compare-and-swap.
const SHARED: u32 = 0;
/// It is being taken from its owner.
const REVOKED: u32 = u32::MAX;

/// A thread that may own something. In a cache line of its own, as the thread writes it all the time.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Owner {
    token: u32,
    /// Whether the thread is changing something that it owns, or is about to look whether it does.
    busy: AtomicBool,
}

/// Says until it is dropped that its thread is the only one to change something.
#[derive(Debug)]
pub(crate) struct Alone<'a>(&'a Owner);

/// Whose something is.
#[derive(Debug)]
pub(crate) struct Bias(AtomicU32);

impl Owner {
    /// The owner of this number, from one on. No two threads may use it at a time.
    pub(crate) fn new(number: u32) -> Self {
        Self { token: number, busy: AtomicBool::new(false) }
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn token(&self) -> u32 {
        self.token
    }
}

impl Drop for Alone<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // Release: whoever finds the thread not busy finds all that it changed.
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Bias {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(SHARED))
    }

    /// Lets the owner change what is biased to him, without calls to anything that may wait. `None` if it is not.
    #[inline(always)]
    pub(crate) fn enter<'a>(&self, me: &'a Owner) -> Option<Alone<'a>> {
        me.busy.store(true, Ordering::Relaxed);
        // Either the load finds the bias revoked, or whoever revokes it finds the thread busy.
        asymmetric::light();
        let alone = Alone(me);
        (self.0.load(Ordering::Relaxed) == me.token).then_some(alone)
    }

    /// Whether all threads use compare-and-swap.
    #[inline(always)]
    pub(crate) fn is_shared(&self) -> bool {
        // Acquire: after the last of what an owner did alone.
        self.0.load(Ordering::Acquire) == SHARED
    }

    /// Whether it is this thread's.
    pub(crate) fn is_of(&self, me: &Owner) -> bool {
        self.0.load(Ordering::Relaxed) == me.token
    }

    /// Makes the thread the owner, if there is none. To be called where no compare-and-swap of another thread can
    /// succeed any more but after it has met the new owner.
    pub(crate) fn give(&self, me: &Owner) {
        let _ = self.0.compare_exchange(SHARED, me.token, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Takes it from its owner, if there is one: from now on it is shared. Returns whether there was one.
    #[cold]
    #[inline(never)]
    pub(crate) fn revoke<'a>(&self, find: impl FnOnce(u32) -> Option<&'a Owner>) -> bool {
        static REVOKING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = REVOKING.lock().unwrap_or_else(PoisonError::into_inner);
        self.revoke_alone(find)
    }

    /// The same for whoever is the only one to revoke.
    pub(crate) fn revoke_alone<'a>(&self, find: impl FnOnce(u32) -> Option<&'a Owner>) -> bool {
        let token = self.0.load(Ordering::Acquire);
        if token == SHARED {
            return false;
        }
        self.0.store(REVOKED, Ordering::Relaxed);
        asymmetric::heavy();
        if let Some(owner) = find(token) {
            while owner.busy.load(Ordering::Acquire) {
                crate::primitive::yield_now();
            }
        }
        self.0.store(SHARED, Ordering::Release);
        true
    }
}
