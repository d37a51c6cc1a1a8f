//! A few threads that share the work on large blocks.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};

use crate::sys::ByteWork;

/// Parts of a job are at least this large in bytes, so that taking one costs nothing by comparison.
const SMALLEST_PART: usize = 256 << 10;

/// Parts per thread: more than one, so that a thread that starts late leaves its share to others.
const PARTS_PER_THREAD: usize = 4;

/// Work in parts that any thread may take.
#[derive(Debug)]
struct Job {
    work: ByteWork,
    part_bytes: usize,
    parts: usize,
    /// The next part that nobody has taken.
    next: AtomicUsize,
    /// Parts that are not done yet.
    left: AtomicUsize,
    submitter: Thread,
}

impl Job {
    fn new(work: ByteWork, threads: usize) -> Self {
        let part_bytes = (work.bytes() / (threads * PARTS_PER_THREAD)).next_multiple_of(4096).max(SMALLEST_PART);
        let parts = work.bytes().div_ceil(part_bytes);
        Self {
            work,
            part_bytes,
            parts,
            next: AtomicUsize::new(0),
            left: AtomicUsize::new(parts),
            submitter: thread::current(),
        }
    }

    fn is_taken(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.parts
    }

    /// Does parts until none is left to take.
    fn help(&self) {
        loop {
            let part = self.next.fetch_add(1, Ordering::Relaxed);
            if part >= self.parts {
                return;
            }
            self.work.part(part * self.part_bytes, self.part_bytes).run();
            // Released, so that the submitter, who acquires zero, sees what was written.
            if self.left.fetch_sub(1, Ordering::Release) == 1 {
                self.submitter.unpark();
            }
        }
    }

    fn wait(&self) {
        while self.left.load(Ordering::Acquire) != 0 {
            thread::park();
        }
    }
}

/// Threads that start with the first job and end with the last owner.
#[derive(Debug)]
pub(crate) struct Workers {
    /// How many threads work on a job, the submitter included.
    threads: usize,
    crew: OnceLock<Crew>,
}

#[derive(Debug)]
struct Crew {
    queue: Arc<Queue>,
    handles: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    jobs: VecDeque<Arc<Job>>,
    closed: bool,
}

impl Workers {
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads: threads.max(1), crew: OnceLock::new() }
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// Does the work, shared among the threads. When this returns it is done, and no part of it runs any more. Were
    /// every other thread gone or busy, the calling one would do all of it.
    pub(crate) fn run(&self, work: ByteWork) {
        let job = Arc::new(Job::new(work, self.threads));
        let crew = self.crew.get_or_init(|| Crew::start(self.threads - 1));
        crew.queue.submit(&job);
        job.help();
        job.wait();
    }
}

impl Crew {
    /// Starts up to `threads` threads: fewer if the system has no more.
    fn start(threads: usize) -> Self {
        let queue = Arc::new(Queue::default());
        let start = |index| {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(format!("host-copy-{index}")).spawn(move || queue.serve())
        };
        let handles: Vec<_> = (0..threads).map_while(|index| start(index).ok()).collect();
        if handles.len() < threads {
            tracing::debug!(wanted = threads, started = handles.len(), "fewer threads than wanted for host copies");
        }
        Self { queue, handles }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_all();
        for handle in self.handles.drain(..) {
            let _ = handle.join();
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, job: &Arc<Job>) {
        let mut state = self.state();
        state.jobs.retain(|queued| !queued.is_taken());
        state.jobs.push_back(Arc::clone(job));
        drop(state);
        self.changed.notify_all();
    }

    fn serve(&self) {
        let mut state = self.state();
        loop {
            state.jobs.retain(|queued| !queued.is_taken());
            if let Some(job) = state.jobs.front().cloned() {
                drop(state);
                job.help();
                state = self.state();
            } else if state.closed {
                return;
            } else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_taken_once() {
        for bytes in [1, SMALLEST_PART, SMALLEST_PART + 1, 9_999_999] {
            let mut memory = vec![0u8; bytes];
            let to = memory.as_mut_ptr().expose_provenance();
            // SAFETY: the memory is borrowed by nobody until all parts have run.
            let job = Job::new(unsafe { ByteWork::fill(to, bytes, 1) }, 4);
            let whole = job.parts * job.part_bytes;
            assert!(whole >= bytes && whole - bytes < job.part_bytes);
            job.help();
            job.wait();
            assert!(job.is_taken() && memory.iter().all(|&byte| byte == 1));
        }
    }

    #[test]
    fn many_submitters_share_few_threads() {
        let workers = Workers::new(3);
        thread::scope(|scope| {
            for value in 1..=4u8 {
                let workers = &workers;
                scope.spawn(move || {
                    for round in 0..8 {
                        let mut memory = vec![0u8; 3 * SMALLEST_PART + 17 * round];
                        let to = memory.as_mut_ptr().expose_provenance();
                        // SAFETY: the memory is ours, and borrowed by nobody, until the call below returns.
                        let work = unsafe { ByteWork::fill(to, memory.len(), value) };
                        workers.run(work);
                        assert!(memory.iter().all(|&byte| byte == value));
                    }
                });
            }
        });
    }
}
