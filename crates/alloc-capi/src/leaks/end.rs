//! The end of the process, and a text on its standard error.
//!
//! The function is in the library's list of what runs when it goes, which comes after all that the program and other
//! libraries registered with `atexit`, destructors of C++ among it: those may free blocks, and have by then. It also runs
//! if the library is closed before. What ends the process at once, as `_exit` and signals do, runs nothing.

use std::mem::{MaybeUninit, forget};
use std::panic::catch_unwind;
use std::ptr::null;
use std::time::{Duration, Instant};

/// For how long a standard error that is full, and does not wait for its reader by itself, is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

#[used]
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = at_end;

extern "C" fn at_end() {
    // Nobody above takes a panic, and there is nobody left to be told of one.
    if let Err(panic) = catch_unwind(|| super::report_at_end().map_or((), |text| write(text.as_bytes()))) {
        forget(panic);
    }
}

/// Writes to the standard error, whatever has become of it, without the lock that Rust has for it: a thread that waits for a
/// reader may hold that for ever.
fn write(bytes: &[u8]) {
    let Some(signal) = BrokenPipe::hold_back() else { return };
    let result = write_all(bytes);
    signal.let_through(result == Err(libc::EPIPE));
}

/// The number of the error that ended it.
fn write_all(mut bytes: &[u8]) -> Result<(), i32> {
    while !bytes.is_empty() {
        // SAFETY: the bytes are there to be read. A descriptor that is closed is an error.
        let written = unsafe { libc::write(libc::STDERR_FILENO, bytes.as_ptr().cast(), bytes.len()) };
        match usize::try_from(written) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(_) => match std::io::Error::last_os_error().raw_os_error().unwrap_or(0) {
                libc::EINTR => {}
                libc::EAGAIN if has_room() => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

fn has_room() -> bool {
    let start = Instant::now();
    loop {
        let left = PATIENCE.saturating_sub(start.elapsed());
        let mut stderr = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one descriptor, which is a local.
        match unsafe { libc::poll(&mut stderr, 1, left.as_millis() as i32) } {
            // A signal of the program's: a timer's, say.
            -1 if !left.is_zero() && std::io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            ready => return ready == 1,
        }
    }
}

/// The signal of a pipe without a reader, held back from the calling thread: it would end a process that is about to end
/// well.
struct BrokenPipe {
    alone: libc::sigset_t,
    /// What the thread held back before.
    before: libc::sigset_t,
}

impl BrokenPipe {
    fn hold_back() -> Option<Self> {
        let (mut alone, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: `sigemptyset` makes a set of what is there, and `pthread_sigmask` writes one if it succeeds.
        unsafe {
            libc::sigemptyset(alone.as_mut_ptr());
            libc::sigaddset(alone.as_mut_ptr(), libc::SIGPIPE);
            let alone = alone.assume_init();
            let held = libc::pthread_sigmask(libc::SIG_BLOCK, &alone, before.as_mut_ptr()) == 0;
            held.then(|| Self { alone, before: before.assume_init() })
        }
    }

    /// Puts things back, less the signal of our own write, if there was one.
    fn let_through(self, is_broken: bool) {
        // SAFETY: the sets are made, and locals.
        unsafe {
            if is_broken && libc::sigismember(&self.before, libc::SIGPIPE) == 0 {
                let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                libc::sigtimedwait(&self.alone, null::<libc::siginfo_t>().cast_mut(), &at_once);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, null::<libc::sigset_t>().cast_mut());
        }
    }
}
