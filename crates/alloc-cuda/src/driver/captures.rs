//! Captures that this library has begun: while one is in progress nobody waits for a whole context.
//!
//! To wait for a context in which a stream is captured fails, and ends that capture as well, whichever thread does it. They are
//! counted for all devices together, as streams of one join a capture of another.

use std::sync::{PoisonError, RwLock};

/// All of this process that were begun here.
pub(super) static CAPTURES: Captures = Captures(RwLock::new(0));

/// How many there are. Whoever waits for a context reads it, so that none begins meanwhile.
#[derive(Debug, Default)]
pub(super) struct Captures(RwLock<usize>);

impl Captures {
    /// Begins one, once nobody waits for a context.
    pub(super) fn begin<E>(&self, begin: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut count = self.0.write().unwrap_or_else(PoisonError::into_inner);
        begin()?;
        *count += 1;
        Ok(())
    }

    /// One has ended, or failed.
    pub(super) fn end(&self) {
        let mut count = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_sub(1);
    }

    /// Runs `wait` unless one is in progress; none begins before it returns.
    pub(super) fn unless_any<T>(&self, wait: impl FnOnce() -> T) -> Option<T> {
        let count = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (*count == 0).then(wait)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn nobody_waits_while_one_is_in_progress() {
        let captures = Captures::default();
        assert_eq!(captures.begin(|| Err(3)), Err(3));
        assert_eq!(captures.unless_any(|| 1), Some(1), "what failed to begin is none");
        captures.begin(|| Ok::<_, ()>(())).unwrap();
        captures.begin(|| Ok::<_, ()>(())).unwrap();
        captures.end();
        assert_eq!(captures.unless_any(|| 1), None);
        captures.end();
        assert_eq!(captures.unless_any(|| 1), Some(1));
    }

    #[test]
    fn none_begins_while_somebody_waits() {
        let captures = Captures::default();
        let (about_to_begin, hear) = mpsc::channel();
        let begun = AtomicBool::new(false);
        std::thread::scope(|scope| {
            captures.unless_any(|| {
                scope.spawn(|| {
                    about_to_begin.send(()).unwrap();
                    captures.begin(|| {
                        begun.store(true, Ordering::Release);
                        Ok::<_, ()>(())
                    })
                });
                hear.recv().unwrap();
                std::thread::sleep(Duration::from_millis(50));
                assert!(!begun.load(Ordering::Acquire));
            });
        });
        assert!(begun.load(Ordering::Acquire));
    }
}
