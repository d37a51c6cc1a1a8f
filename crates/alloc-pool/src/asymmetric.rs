//! A fence of two unequal halves: one thread, which does something all the time, pays nothing for it, and the other,
//! which hardly ever comes, has the system interrupt all threads of the process.
//!
//! After a store and a [`light`] fence a thread loads what another one stored before its [`heavy`] fence, or that one
//! finds the store. It is what Linux has `membarrier` for, and what its manual describes; where there is no such call,
//! [`is_available`] says so.

#[cfg(loom)]
mod system {
    pub(super) fn light() {
        loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
    }

    pub(super) fn heavy() {
        loom::sync::atomic::fence(loom::sync::atomic::Ordering::SeqCst);
    }

    pub(super) fn is_available() -> bool {
        true
    }
}

#[cfg(all(not(loom), not(miri), target_os = "linux"))]
mod system {
    use std::sync::OnceLock;
    use std::sync::atomic::{Ordering, compiler_fence};
    use std::time::Duration;

    // The numbers of the manual page membarrier(2).
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;

    fn membarrier(command: libc::c_int) -> bool {
        // SAFETY: the call takes two numbers, of which the second means nothing here, and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0) == 0 }
    }

    #[inline(always)]
    pub(super) fn light() {
        compiler_fence(Ordering::SeqCst);
    }

    pub(super) fn heavy() {
        if membarrier(PRIVATE_EXPEDITED) || (membarrier(REGISTER_PRIVATE_EXPEDITED) && membarrier(PRIVATE_EXPEDITED)) {
            return;
        }
        // The system promises success to whoever has registered, so a filter of calls must have come since. All that
        // is waited for is that another processor's stores become visible, which takes it far less than this.
        std::thread::sleep(Duration::from_millis(10));
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    pub(super) fn is_available() -> bool {
        static AVAILABLE: OnceLock<bool> = OnceLock::new();
        *AVAILABLE.get_or_init(|| membarrier(REGISTER_PRIVATE_EXPEDITED) && membarrier(PRIVATE_EXPEDITED))
    }
}

#[cfg(all(not(loom), any(miri, not(target_os = "linux"))))]
mod system {
    use std::sync::atomic::{Ordering, fence};

    pub(super) fn light() {
        fence(Ordering::SeqCst);
    }

    pub(super) fn heavy() {
        fence(Ordering::SeqCst);
    }

    pub(super) fn is_available() -> bool {
        false
    }
}

/// The half that costs nothing: only the compiler has to keep to it.
#[inline(always)]
pub(crate) fn light() {
    system::light();
}

/// The half that costs microseconds.
pub(crate) fn heavy() {
    system::heavy();
}

/// Whether the two together are a fence, and the light one costs nothing.
pub(crate) fn is_available() -> bool {
    system::is_available()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// The two threads store to one word and load the other: both find nothing only if neither fence fences.
    #[test]
    fn one_of_two_finds_the_others_store() {
        if !is_available() {
            return;
        }
        let (mine, theirs, missed) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                let mut found = Vec::new();
                for round in 1..=2000 {
                    barrier.wait();
                    theirs.store(round, Ordering::Relaxed);
                    light();
                    found.push(mine.load(Ordering::Relaxed) == round);
                }
                found
            });
            let mut found = Vec::new();
            for round in 1..=2000 {
                barrier.wait();
                mine.store(round, Ordering::Relaxed);
                heavy();
                found.push(theirs.load(Ordering::Relaxed) == round);
            }
            let others = other.join().unwrap();
            let neither = found.iter().zip(others).filter(|&(&own, other)| !own && !other).count();
            missed.store(neither as u32, Ordering::Relaxed);
        });
        assert_eq!(missed.into_inner(), 0);
    }
}
