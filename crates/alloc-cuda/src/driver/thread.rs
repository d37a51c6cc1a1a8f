//! Threads, each with a default stream of its own that ends with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A thread that has a number.
struct Thread {
    number: u64,
    system: System,
}

thread_local!(static THREAD: Thread = Thread { number: next_number(), system: System::current() });

/// The threads that are ending.
static ENDING: Mutex<Vec<(u64, System)>> = Mutex::new(Vec::new());
static ANY_ENDING: AtomicBool = AtomicBool::new(false);

fn lock() -> MutexGuard<'static, Vec<(u64, System)>> {
    ENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn next_number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A number of the calling thread that no other thread of the process gets. What still runs as its values are destroyed gets
/// another each time, and so is taken for another thread, which is slower and no less safe.
pub(crate) fn thread_number() -> u64 {
    THREAD.try_with(|thread| thread.number).unwrap_or_else(|_| next_number())
}

/// Whether [`take_ended`] may have something.
#[inline]
pub(crate) fn any_ending() -> bool {
    ANY_ENDING.load(Ordering::Acquire)
}

/// The numbers of threads that have ended since this was last called.
pub(crate) fn take_ended() -> Vec<u64> {
    let mut ending = lock();
    let (still, ended): (Vec<_>, Vec<_>) = ending.drain(..).partition(|(_, system)| system.is_there());
    *ending = still;
    ANY_ENDING.store(!ending.is_empty(), Ordering::Release);
    ended.into_iter().map(|(number, _)| number).collect()
}

impl Drop for Thread {
    /// No more than a note: the thread may be in the middle of anything.
    fn drop(&mut self) {
        lock().push((self.number, self.system));
        ANY_ENDING.store(true, Ordering::Release);
    }
}

/// A thread as the system knows it. Other values of a thread are destroyed after its number, and may submit work and release
/// blocks then; so a thread has ended only when the system says so.
#[derive(Clone, Copy, Debug)]
struct System(#[cfg(target_os = "linux")] libc::c_long);

#[cfg(target_os = "linux")]
impl System {
    fn current() -> Self {
        // SAFETY: no preconditions.
        Self(unsafe { libc::syscall(libc::SYS_gettid) })
    }

    /// Also if another thread has got its place since.
    fn is_there(self) -> bool {
        // SAFETY: no preconditions; signal 0 is none, and only looks for the thread.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::c_long::from(libc::getpid()), self.0, 0) == 0 }
    }
}

#[cfg(not(target_os = "linux"))]
impl System {
    fn current() -> Self {
        Self()
    }

    fn is_there(self) -> bool {
        false
    }
}
