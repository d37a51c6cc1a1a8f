//! Writes a log that this crate, RMM's own tools and spreadsheets read.

use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::compression::Encoder;
use crate::{Compression, Row, TraceError};

/// Writes rows in RMM's format. End with [`Writer::finish`]: a compressed file that was only dropped is cut off.
///
/// ```
/// use alloc_trace::{Compression, Reader, Writer};
///
/// let log = "Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00.000001,allocate,0x1000,64,0x0\n";
/// let mut writer = Writer::new(Vec::new(), Compression::Zstd)?;
/// for row in Reader::new(log.as_bytes())? {
///     writer.write(&row?)?;
/// }
/// let compressed = writer.finish()?;
/// assert_eq!(Reader::new(compressed.as_slice())?.count(), 1);
/// # Ok::<(), alloc_trace::TraceError>(())
/// ```
pub struct Writer<W: Write> {
    output: BufWriter<Encoder<W>>,
    compression: Compression,
}

impl Writer<File> {
    /// Makes a file, or overwrites it, compressed as its name asks (`.gz`, `.zst`).
    ///
    /// # Errors
    /// [`TraceError::File`] around [`TraceError::Open`] or [`TraceError::Write`]; nothing is overwritten by a build that does not
    /// [support](Compression::is_supported) what the name asks.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let compression = Compression::of_name(path);
        let file = compression.check().and_then(|()| File::create(path));
        let file = file.map_err(|error| TraceError::Open(error).in_file(path))?;
        Self::new(file, compression).map_err(|error| error.in_file(path))
    }
}

impl<W: Write> Writer<W> {
    /// Writes to anything, buffered here, header first.
    ///
    /// # Errors
    /// [`TraceError::Write`], also for a compression that this build does not [support](Compression::is_supported).
    pub fn new(output: W, compression: Compression) -> Result<Self, TraceError> {
        let mut output = BufWriter::new(Encoder::new(output, compression).map_err(TraceError::Write)?);
        writeln!(output, "Thread,Time,Action,Pointer,Size,Stream").map_err(TraceError::Write)?;
        Ok(Self { output, compression })
    }

    /// Writes one row.
    ///
    /// # Errors
    /// [`TraceError::Write`].
    pub fn write(&mut self, row: &Row) -> Result<(), TraceError> {
        writeln!(self.output, "{row}").map_err(TraceError::Write)
    }

    /// Writes what is left and hands the inner writer back.
    ///
    /// # Errors
    /// [`TraceError::Write`].
    pub fn finish(self) -> Result<W, TraceError> {
        let encoder = self.output.into_inner().map_err(|error| TraceError::Write(error.into_error()))?;
        encoder.finish().map_err(TraceError::Write)
    }
}

impl<W: Write> fmt::Debug for Writer<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("compression", &self.compression).finish_non_exhaustive()
    }
}
