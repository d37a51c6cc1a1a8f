//! Reads a log row by row, without ever holding more than one line.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use crate::compression::decode;
use crate::row::{Columns, Row};
use crate::{RowProblem, TraceError};

/// Streams the rows of a log: an iterator that ends after the last row or after the first error.
///
/// Compression is recognised by the first bytes. Text before the header, blank lines, comments (`#`), a byte order
/// mark, carriage returns and the repeated headers of concatenated logs are passed over. A log without a header has
/// its columns in RMM's order. Anything else that is no row is an error with its line number.
///
/// ```
/// use alloc_trace::Reader;
/// let log = "Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00.1,allocate,0x1000,oops,0x0\n";
/// let error = Reader::new(log.as_bytes())?.next().unwrap().unwrap_err();
/// assert_eq!(error.line(), Some(2));
/// # Ok::<(), alloc_trace::TraceError>(())
/// ```
pub struct Reader<'a> {
    input: Box<dyn BufRead + Send + 'a>,
    path: Option<PathBuf>,
    columns: Option<Columns>,
    line: u64,
    buffer: Vec<u8>,
    ended: bool,
}

/// The longest line that is accepted, in bytes; it bounds the memory that a corrupt file can take.
const LONGEST_LINE: usize = 4096;
/// How many lines of text may stand before the header.
const LONGEST_PREAMBLE: u64 = 100;
/// How much of a bad line an error shows, in bytes.
const SHOWN: usize = 120;

impl Reader<'static> {
    /// Opens a file.
    ///
    /// # Errors
    /// [`TraceError::File`] around [`TraceError::Open`] or [`TraceError::Read`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, TraceError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|error| TraceError::Open(error).in_file(path))?;
        let mut reader = Reader::new(file).map_err(|error| error.in_file(path))?;
        reader.path = Some(path.to_path_buf());
        Ok(reader)
    }
}

impl<'a> Reader<'a> {
    /// Reads from anything, buffered here.
    ///
    /// # Errors
    /// [`TraceError::Read`] if the first bytes can't be read, or say that what follows is compressed in a way that this build does not
    /// [support](crate::Compression::is_supported).
    pub fn new(input: impl Read + Send + 'a) -> Result<Self, TraceError> {
        let input = decode(input).map_err(|source| TraceError::Read { line: 1, source })?;
        Ok(Self { input, path: None, columns: None, line: 0, buffer: Vec::new(), ended: false })
    }

    /// The line that was read last, counted from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    fn next_row(&mut self) -> Result<Option<Row>, TraceError> {
        let mut first_text = None;
        loop {
            if !self.read_line()? {
                return match (&self.columns, first_text) {
                    (Some(_), _) => Ok(None),
                    (None, Some((line, text))) => Err(TraceError::NoHeader { line, text }),
                    (None, None) => Err(TraceError::Empty),
                };
            }
            let line = trim_line(self.line, &self.buffer);
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            if let Some(columns) = &self.columns {
                match columns.parse(self.line, line) {
                    Ok(row) => return Ok(Some(row)),
                    Err(_) if Columns::of_header(line) == Some(Ok(columns.clone())) => continue,
                    Err(problem) => return Err(TraceError::Row { line: self.line, problem, text: shorten(line) }),
                }
            }
            if let Some(header) = Columns::of_header(line) {
                let columns = header.map_err(|column| TraceError::MissingColumn { line: self.line, column })?;
                self.columns = Some(columns);
            } else if first_text.is_none()
                && let Ok(row) = Columns::STANDARD.parse(self.line, line)
            {
                self.columns = Some(Columns::STANDARD);
                return Ok(Some(row));
            } else if self.line >= LONGEST_PREAMBLE {
                let (line, text) = first_text.unwrap_or_else(|| (self.line, shorten(line)));
                return Err(TraceError::NoHeader { line, text });
            } else if first_text.is_none() {
                first_text = Some((self.line, shorten(line)));
            }
        }
    }

    /// Reads the next line into the buffer; false at the end.
    fn read_line(&mut self) -> Result<bool, TraceError> {
        self.buffer.clear();
        let at = self.line + 1;
        let read = (&mut self.input)
            .take(LONGEST_LINE as u64 + 1)
            .read_until(b'\n', &mut self.buffer)
            .map_err(|source| TraceError::Read { line: at, source })?;
        if read == 0 {
            return Ok(false);
        }
        self.line = at;
        if read > LONGEST_LINE {
            let problem = RowProblem::LineTooLong { limit: LONGEST_LINE };
            return Err(TraceError::Row { line: at, problem, text: shorten(&self.buffer) });
        }
        Ok(true)
    }
}

impl Iterator for Reader<'_> {
    type Item = Result<Row, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.next_row().map_err(|error| match &self.path {
            Some(path) => error.in_file(path),
            None => error,
        });
        self.ended = !matches!(row, Ok(Some(_)));
        row.transpose()
    }
}

impl std::iter::FusedIterator for Reader<'_> {}

impl fmt::Debug for Reader<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("path", &self.path)
            .field("columns", &self.columns)
            .field("line", &self.line)
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

fn trim_line(number: u64, line: &[u8]) -> &[u8] {
    const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
    let line = if number == 1 { line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line) } else { line };
    line.trim_ascii()
}

fn shorten(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(SHOWN)]).into_owned()
}
