//! A log of every call in RMM's CSV format.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use thiserror::Error;

use crate::adaptor::ThreadTag;
use crate::{AllocError, Block, DeviceAllocator, Layout, ReleaseError, Stream, StreamSet, forward_allocator};

/// Writes a row of RMM's CSV log (`Thread,Time,Action,Pointer,Size,Stream`) for every call, for replay and analysis.
///
/// - `Thread` counts the threads from 1 ([`ThreadTag`]), `Time` runs from the making of the adaptor as
///   `HH:MM:SS.microseconds`, `Pointer` and `Stream` (the handle) are hexadecimal, `Size` is the bytes asked for.
/// - `Action` is `allocate`, `allocate failure` (with the pointer `0x0`) or `free`.
/// - A `free` is written before the block is released, as RMM does, so that its row comes before the row of whoever
///   is given the address next. A release that is then refused therefore stands in the log, where a reader that
///   validates finds it as a free of an unknown block.
///
/// Rows are collected in a buffer of 64 KiB and written when it is full, at [`flush`](Logging::flush) and on drop. If
/// writing fails, the calls go on undisturbed: the error is kept for [`error`](Logging::error), nothing more is
/// written, so that no torn row is followed by others, and later rows are counted as lost.
///
/// ```
/// use alloc_core::adaptor::Logging;
/// use alloc_core::{Device, DeviceAllocator, Layout, SimulatedAllocator, Stream, StreamSet};
///
/// let mut log = Vec::new();
/// let allocator = Logging::new(SimulatedAllocator::new(Device::CPU, 1 << 20), &mut log);
/// let block = allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
/// // SAFETY: nothing uses the block, and it is released once.
/// unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }?;
/// drop(allocator);
///
/// let log = String::from_utf8(log)?;
/// let rows: Vec<&str> = log.lines().collect();
/// assert_eq!(rows[0], "Thread,Time,Action,Pointer,Size,Stream");
/// assert!(rows[1].ends_with(",allocate,0x10000000000,1000,0x0"));
/// assert!(rows[2].ends_with(",free,0x10000000000,1000,0x0"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Logging<A, W: Write + Send> {
    log: Mutex<Log<W>>,
    inner: A,
}

/// Why a log ends early.
#[derive(Clone, Debug, Error)]
#[error("the allocation log could not be written, {lost_rows} rows lost: {source}")]
#[non_exhaustive]
pub struct LogError {
    /// The first failure.
    pub source: Arc<io::Error>,
    /// Rows that are not in the log, as far as known: those that were in the buffer when writing failed (some of
    /// these may have been written) and all later ones.
    pub lost_rows: u64,
}

impl<A, W: Write + Send> Logging<A, W> {
    /// Logs the calls to `inner` to `writer`. There is no need for a buffer around the writer.
    pub fn new(inner: A, writer: W) -> Self {
        Self { log: Mutex::new(Log::new(writer)), inner }
    }

    /// Writes out what is in the buffer and flushes the writer.
    ///
    /// # Errors
    /// [`LogError`] if that fails, or if writing failed before.
    pub fn flush(&self) -> Result<(), LogError> {
        let mut log = self.log();
        log.flush();
        log.error().map_or(Ok(()), Err)
    }

    /// The first failure to write, if any, and how many rows were lost.
    pub fn error(&self) -> Option<LogError> {
        self.log().error()
    }

    /// The allocator inside.
    pub const fn inner(&self) -> &A {
        &self.inner
    }

    fn log(&self) -> MutexGuard<'_, Log<W>> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A> Logging<A, File> {
    /// Logs the calls to `inner` to a file, which is created, or emptied if it exists.
    ///
    /// # Errors
    /// What the system reports if the file can't be created.
    pub fn to_file(inner: A, path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::new(inner, File::create(path)?))
    }
}

// SAFETY: blocks come from the inner allocator, which keeps the promises, and are handed on as they are.
unsafe impl<A: DeviceAllocator, W: Write + Send> DeviceAllocator for Logging<A, W> {
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let result = self.inner.allocate(layout, stream);
        match &result {
            Ok(block) => self.log().row("allocate", block.address().get(), block.size(), stream),
            Err(_) => self.log().row("allocate failure", 0, layout.size(), stream),
        }
        result
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        self.log().row("free", block.address().get(), block.size(), stream);
        // SAFETY: the caller's promises are those that the inner allocator asks for.
        unsafe { self.inner.release(block, stream, uses) }
    }

    forward_allocator!(self => self.inner; device, statistics, trim, grow_to, transfer, retire_stream);
}

impl<A: fmt::Debug, W: Write + Send> fmt::Debug for Logging<A, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").field("error", &self.error()).field("inner", &self.inner).finish_non_exhaustive()
    }
}

const BUFFER: usize = 64 << 10;
const LONGEST_ROW: usize = 160;

struct Log<W: Write> {
    writer: W,
    start: Instant,
    buffer: Vec<u8>,
    buffered_rows: u64,
    failure: Option<Arc<io::Error>>,
    lost_rows: u64,
}

impl<W: Write> Log<W> {
    fn new(writer: W) -> Self {
        let mut buffer = Vec::with_capacity(BUFFER);
        buffer.extend_from_slice(b"Thread,Time,Action,Pointer,Size,Stream\n");
        Self { writer, start: Instant::now(), buffer, buffered_rows: 0, failure: None, lost_rows: 0 }
    }

    /// The time is taken here, under the lock, so that rows are in the order of their times.
    fn row(&mut self, action: &str, pointer: u64, size: u64, stream: Stream) {
        if self.buffer.len() + LONGEST_ROW > BUFFER {
            let written = self.writer.write_all(&self.buffer);
            self.settle(written);
        }
        if self.failure.is_some() {
            self.lost_rows += 1;
            return;
        }
        let elapsed = self.start.elapsed();
        let seconds = elapsed.as_secs();
        // Writing to a vector does not fail.
        let _ = writeln!(
            self.buffer,
            "{},{:02}:{:02}:{:02}.{:06},{action},{pointer:#x},{size},{:#x}",
            ThreadTag::current_number(),
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            elapsed.subsec_micros(),
            stream.handle(),
        );
        self.buffered_rows += 1;
    }

    fn flush(&mut self) {
        if self.failure.is_none() {
            let written = self.writer.write_all(&self.buffer).and_then(|()| self.writer.flush());
            self.settle(written);
        }
    }

    fn settle(&mut self, written: io::Result<()>) {
        if let Err(error) = written {
            self.failure = Some(Arc::new(error));
            self.lost_rows += self.buffered_rows;
        }
        self.buffered_rows = 0;
        self.buffer.clear();
    }

    fn error(&self) -> Option<LogError> {
        let source = Arc::clone(self.failure.as_ref()?);
        Some(LogError { source, lost_rows: self.lost_rows })
    }
}

impl<W: Write> Drop for Log<W> {
    fn drop(&mut self) {
        let failed_before = self.failure.is_some();
        self.flush();
        if let (false, Some(error)) = (failed_before, self.error()) {
            tracing::warn!(%error, "the end of an allocation log is missing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, SimulatedAllocator};

    /// A writer whose text can be looked at while the log is open, and which fails after `room` bytes.
    #[derive(Clone)]
    struct Disk {
        written: Arc<Mutex<Vec<u8>>>,
        room: usize,
    }

    impl Disk {
        fn new(room: usize) -> Self {
            Self { written: Arc::default(), room }
        }

        fn text(&self) -> String {
            String::from_utf8(self.written.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut written = self.written.lock().unwrap();
            let fits = bytes.len().min(self.room - written.len());
            written.extend_from_slice(&bytes[..fits]);
            if fits == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(fits) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn bytes(size: u64) -> Layout {
        Layout::bytes(size).unwrap()
    }

    fn pair(allocator: &impl DeviceAllocator, stream: Stream) {
        let block = allocator.allocate(bytes(100), stream).unwrap();
        // SAFETY: nothing uses simulated memory.
        unsafe { allocator.release(block, stream, StreamSet::EMPTY) }.unwrap();
    }

    #[test]
    fn every_row_has_the_six_fields_of_the_format() {
        let disk = Disk::new(usize::MAX);
        let allocator = Logging::new(SimulatedAllocator::new(Device::CPU, 1024), disk.clone());
        pair(&allocator, Stream::from_raw(0x2a97_4400));
        assert!(allocator.allocate(bytes(4000), Stream::DEFAULT).is_err());
        allocator.flush().unwrap();

        let text = disk.text();
        let rows: Vec<Vec<&str>> = text.lines().map(|row| row.split(',').collect()).collect();
        assert_eq!(rows[0], ["Thread", "Time", "Action", "Pointer", "Size", "Stream"]);
        let tails: Vec<String> = rows[1..].iter().map(|row| row[2..].join(",")).collect();
        assert_eq!(
            tails,
            [
                "allocate,0x10000000000,100,0x2a974400",
                "free,0x10000000000,100,0x2a974400",
                "allocate failure,0x0,4000,0x0"
            ]
        );
        for row in &rows[1..] {
            assert!(row[0].parse::<u64>().unwrap() > 0);
            let (clock, micros) = row[1].split_once('.').unwrap();
            assert_eq!((clock.len(), micros.len()), (8, 6), "{}", row[1]);
            assert!(clock.split(':').all(|part| part.len() == 2 && part.parse::<u32>().is_ok()));
        }
    }

    #[test]
    fn rows_are_written_when_the_buffer_is_full_and_the_rest_on_drop() {
        let disk = Disk::new(usize::MAX);
        let allocator = Logging::new(SimulatedAllocator::new(Device::CPU, 1024), disk.clone());
        for _ in 0..1000 {
            pair(&allocator, Stream::DEFAULT);
        }
        let early = disk.text();
        assert!(!early.is_empty() && early.ends_with('\n') && early.lines().count() < 2001);
        drop(allocator);
        let text = disk.text();
        assert_eq!(text.lines().count(), 2001);
        let times: Vec<&str> = text.lines().skip(1).map(|row| row.split(',').nth(1).unwrap()).collect();
        assert!(times.is_sorted());
    }

    #[test]
    fn a_full_disk_is_remembered_and_disturbs_no_allocation() {
        let disk = Disk::new(100);
        let allocator = Logging::new(SimulatedAllocator::new(Device::CPU, 1024), disk.clone());
        for _ in 0..4 {
            pair(&allocator, Stream::DEFAULT);
        }
        assert!(allocator.error().is_none());
        let error = allocator.flush().unwrap_err();
        assert_eq!((error.source.kind(), error.lost_rows), (io::ErrorKind::StorageFull, 8));
        pair(&allocator, Stream::DEFAULT);
        assert_eq!(allocator.error().unwrap().lost_rows, 10);
        assert_eq!(allocator.statistics().requested.count, 5);
        drop(allocator);
        assert_eq!(disk.text().len(), 100);
    }

    #[test]
    fn rows_of_many_threads_replay_without_a_conflict() {
        let disk = Disk::new(usize::MAX);
        let allocator = Logging::new(SimulatedAllocator::new(Device::CPU, 4096), disk.clone());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..2000).for_each(|_| pair(&allocator, Stream::DEFAULT)));
            }
        });
        drop(allocator);
        let text = disk.text();
        let mut living = std::collections::HashSet::new();
        let mut threads = std::collections::HashSet::new();
        for row in text.lines().skip(1) {
            let fields: Vec<&str> = row.split(',').collect();
            threads.insert(fields[0]);
            match fields[2] {
                "allocate" => assert!(living.insert(fields[3]), "{row} is alive"),
                "free" => assert!(living.remove(fields[3]), "{row} is not alive"),
                other => panic!("{other}"),
            }
        }
        assert_eq!((living.len(), threads.len(), text.lines().count()), (0, 4, 16_001));
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error() {
        let missing = std::env::temp_dir().join("no-such-folder-of-alloc-core/log.csv");
        let result = Logging::to_file(SimulatedAllocator::new(Device::CPU, 1024), missing);
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
