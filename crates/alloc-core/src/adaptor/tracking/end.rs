//! The report of an allocator that nobody drops, made when its user says.

use std::fmt;
use std::io::Write;

use super::{Books, Tracking};
use crate::DeviceAllocator;

/// Reports the blocks that are still in use when it is dropped; made by [`Tracking::report_at_end`].
///
/// The end of `main` is the place for that, or of what else is to leave nothing behind. Not a callback of `atexit`: by then
/// what a subscriber of `tracing` or a hook needs, as the locals of threads, may be gone. So `std::process::exit` makes no
/// report: drop it before.
#[must_use = "it reports when it is dropped, which is at once if nobody keeps it"]
pub struct ReportAtEnd<'a> {
    books: &'a Books,
    to: Option<Box<dyn Write + Send + 'a>>,
}

impl<A: DeviceAllocator> Tracking<A> {
    /// Has the blocks that are in use when the result is dropped told to the hook and to `tracing`, as a drop of the
    /// allocator itself does. For allocators that are never dropped: those of the [registry](crate::registry), and such as
    /// a forgotten buffer keeps alive. If the allocator is dropped later, and has the same blocks, they are not told again.
    ///
    /// ```
    /// use alloc_core::adaptor::Tracking;
    /// use alloc_core::{Device, DeviceAllocator, Layout, SimulatedAllocator, Stream, registry};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let device = Device::cuda(1).simulated();
    ///     let tracking = Tracking::new(SimulatedAllocator::new(device, 1 << 30)).with_backtraces(true);
    ///     let tracking: &'static _ = Box::leak(Box::new(tracking));
    ///     registry::install(device, Box::new(tracking))?;
    ///     let _report = tracking.report_at_end().to(std::io::stderr());
    ///
    ///     let allocator = registry::get(device).expect("it was installed above");
    ///     let _forgotten = allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
    ///     Ok(()) // here the standard error gets "1 block of 1000 bytes in use", and where it was allocated
    /// }
    /// ```
    pub fn report_at_end(&self) -> ReportAtEnd<'_> {
        ReportAtEnd { books: &self.books, to: None }
    }
}

impl<'a> ReportAtEnd<'a> {
    /// Has the report written as text as well, also if nothing is in use: silence then means that it was not made. A failure
    /// to write goes to `tracing`, at debug level.
    pub fn to(mut self, writer: impl Write + Send + 'a) -> Self {
        self.to = Some(Box::new(writer));
        self
    }
}

impl Drop for ReportAtEnd<'_> {
    fn drop(&mut self) {
        self.books.tell(self.to.as_deref_mut().map(|to| to as &mut dyn Write));
    }
}

impl fmt::Debug for ReportAtEnd<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReportAtEnd").field("device", &self.books.device).field("writes", &self.to.is_some()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::super::tests::{Recorder, allocate, release, simulated};
    use super::*;
    use crate::EventHook;

    /// A place for text that can be looked at while somebody writes there.
    #[derive(Clone, Debug, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Page {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
        }
    }

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_in_use_is_told_though_the_allocator_lives_on() {
        let (recorder, page) = (Arc::new(Recorder::default()), Page::default());
        let tracking = Tracking::new(simulated()).with_event_hook(Arc::clone(&recorder) as Arc<dyn EventHook>);
        let block = allocate(&tracking, 100);
        let gone = allocate(&tracking, 7);
        let report = tracking.report_at_end().to(page.clone());
        release(&tracking, gone).unwrap();
        assert_eq!((page.take(), recorder.left()), (String::new(), vec![]));
        drop(report);
        let text = page.take();
        assert!(text.starts_with("1 block of 100 bytes in use on simulated_cpu:0\n"), "{text}");
        assert!(text.ends_with('\n') && !text.ends_with("\n\n"), "{text:?}");
        assert_eq!(recorder.left(), [(1, 100)]);

        release(&tracking, block).unwrap();
        drop(tracking.report_at_end().to(page.clone()));
        assert_eq!(page.take(), "no blocks in use on simulated_cpu:0\n");
        assert_eq!(recorder.left(), [(1, 100)]);
    }

    #[test]
    fn the_same_blocks_are_not_told_twice() {
        let (recorder, page) = (Arc::new(Recorder::default()), Page::default());
        let tracking = Tracking::new(simulated()).with_event_hook(Arc::clone(&recorder) as Arc<dyn EventHook>);
        let block = allocate(&tracking, 100);
        drop(tracking.report_at_end());
        drop(tracking.report_at_end().to(page.clone()));
        assert_eq!(recorder.left(), [(1, 100)]);
        assert!(page.take().starts_with("1 block of 100 bytes"), "who asks for the text gets it");
        // As many, but another.
        release(&tracking, block).unwrap();
        let _ = allocate(&tracking, 200);
        drop(tracking.report_at_end());
        assert_eq!(recorder.left(), [(1, 100), (1, 200)]);
        drop(tracking);
        assert_eq!(recorder.left(), [(1, 100), (1, 200)]);
    }

    #[test]
    fn a_writer_that_fails_does_no_harm() {
        #[derive(Debug)]
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let recorder = Arc::new(Recorder::default());
        let tracking = Tracking::new(simulated()).with_event_hook(Arc::clone(&recorder) as Arc<dyn EventHook>);
        let _ = allocate(&tracking, 100);
        drop(tracking.report_at_end().to(Closed));
        assert_eq!(recorder.left(), [(1, 100)]);
    }
}
