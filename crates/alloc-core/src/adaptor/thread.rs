//! Short names for threads.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Names a thread in logs and reports: a number that counts the threads from 1 in the order in which they first
/// met an adaptor, and the thread's own name if it has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ThreadTag {
    number: u64,
    name: Option<Arc<str>>,
}

thread_local! {
    static CURRENT: ThreadTag = ThreadTag {
        number: {
            static NEXT: AtomicU64 = AtomicU64::new(1);
            NEXT.fetch_add(1, Ordering::Relaxed)
        },
        name: std::thread::current().name().map(Arc::from),
    };
}

impl ThreadTag {
    /// The calling thread's tag. A thread that is ending, and has lost its locals, has the number 0.
    pub fn current() -> Self {
        CURRENT.try_with(Clone::clone).unwrap_or(Self { number: 0, name: None })
    }

    /// The number, without the cost of the name.
    pub(super) fn current_number() -> u64 {
        CURRENT.try_with(|tag| tag.number).unwrap_or(0)
    }

    /// The number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The thread's own name, as it was at the thread's first call.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

impl fmt::Display for ThreadTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "thread {} ({name})", self.number),
            None => write!(f, "thread {}", self.number),
        }
    }
}
