//! One row of a log, and how it is read and written.

use std::fmt;
use std::time::Duration;

use alloc_core::{Address, Stream};

use crate::RowProblem;

/// What a row says was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// A block was allocated.
    Allocate,
    /// A block was released.
    Free,
    /// A block was asked for and not given.
    AllocateFailure,
}

/// One row of a log.
///
/// Its `Display` form is the row as RMM writes it.
///
/// ```
/// use alloc_trace::Reader;
/// let log = "Thread,Time,Action,Pointer,Size,Stream\n7,00:01:02.000003,allocate,0x1000,64,0x0\n";
/// let row = Reader::new(log.as_bytes())?.next().unwrap()?;
/// assert_eq!((row.line, row.thread, row.bytes), (2, 7, 64));
/// assert_eq!(row.to_string(), "7,00:01:02.000003,allocate,0x1000,64,0x0");
/// # Ok::<(), alloc_trace::TraceError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "the columns of the format")]
pub struct Row {
    /// The line it was read from, counted from 1; 0 for a row that was made otherwise.
    pub line: u64,
    /// The thread that called, as the recorder names it.
    pub thread: u64,
    /// The time of the call: of day, or since the recording began or the epoch, as the recorder has it.
    pub time: Duration,
    /// What was done.
    pub action: Action,
    /// The address of the block; 0 for a failure.
    pub pointer: Address,
    /// The bytes that were asked for.
    pub bytes: u64,
    /// The stream that was named.
    pub stream: Stream,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.time.as_secs();
        let action = match self.action {
            Action::Allocate => "allocate",
            Action::Free => "free",
            Action::AllocateFailure => "allocate failure",
        };
        write!(
            f,
            "{},{:02}:{:02}:{:02}.{:06},{action},{:#x},{},{:#x}",
            self.thread,
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            self.time.subsec_micros(),
            self.pointer.get(),
            self.bytes,
            self.stream.handle(),
        )
    }
}

/// Where a log has its columns. Thread, time and stream may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    count: usize,
    thread: Option<usize>,
    time: Option<usize>,
    action: usize,
    pointer: usize,
    size: usize,
    stream: Option<usize>,
}

/// The most columns that a log may have.
const MOST_COLUMNS: usize = 32;

impl Columns {
    /// The order in which RMM writes them.
    pub(crate) const STANDARD: Self =
        Self { count: 6, thread: Some(0), time: Some(1), action: 2, pointer: 3, size: 4, stream: Some(5) };

    /// The columns of a header; `None` if the line is not one, the column's name if one is missing.
    pub(crate) fn of_header(line: &[u8]) -> Option<Result<Self, &'static str>> {
        let position = |name: &str| {
            line.split(|&byte| byte == b',').position(|field| field.trim_ascii().eq_ignore_ascii_case(name.as_bytes()))
        };
        let action = position("Action")?;
        let count = line.split(|&byte| byte == b',').count();
        let (Some(pointer), Some(size)) = (position("Pointer"), position("Size")) else {
            return Some(Err(if position("Pointer").is_none() { "Pointer" } else { "Size" }));
        };
        if count > MOST_COLUMNS {
            return None;
        }
        let (thread, time, stream) = (position("Thread"), position("Time"), position("Stream"));
        Some(Ok(Self { count, thread, time, action, pointer, size, stream }))
    }

    /// The row in a line without its line end.
    pub(crate) fn parse(&self, number: u64, line: &[u8]) -> Result<Row, RowProblem> {
        let mut fields = [&line[..0]; MOST_COLUMNS];
        let mut found = 0;
        for field in line.split(|&byte| byte == b',') {
            if let Some(slot) = fields.get_mut(found) {
                *slot = field.trim_ascii();
            }
            found += 1;
        }
        if found != self.count {
            return Err(RowProblem::Fields { expected: self.count, found });
        }
        let action = match fields[self.action] {
            b"allocate" => Action::Allocate,
            b"free" | b"deallocate" => Action::Free,
            b"allocate failure" => Action::AllocateFailure,
            _ => return Err(RowProblem::Action),
        };
        Ok(Row {
            line: number,
            thread: self.thread.map_or(Some(0), |at| parse_thread(fields[at])).ok_or(RowProblem::Thread)?,
            time: self.time.map_or(Some(Duration::ZERO), |at| parse_time(fields[at])).ok_or(RowProblem::Time)?,
            action,
            pointer: Address::new(parse_hex(fields[self.pointer]).ok_or(RowProblem::Pointer)?),
            bytes: parse_decimal(fields[self.size]).ok_or(RowProblem::Size)?,
            stream: self
                .stream
                .map_or(Some(0), |at| parse_hex(fields[at]))
                .map(Stream::from_raw)
                .ok_or(RowProblem::Stream)?,
        })
    }
}

fn parse_decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = char::from(digit).to_digit(10)?;
        value.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// A hexadecimal number with or without `0x`, or `(nil)`, which is how glibc prints a null pointer.
fn parse_hex(digits: &[u8]) -> Option<u64> {
    if digits == b"(nil)" {
        return Some(0);
    }
    let digits = digits.strip_prefix(b"0x").or_else(|| digits.strip_prefix(b"0X")).unwrap_or(digits);
    if digits.is_empty() || digits.len() > 16 {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, &digit| Some(value << 4 | u64::from(char::from(digit).to_digit(16)?)))
}

fn parse_thread(digits: &[u8]) -> Option<u64> {
    if digits.starts_with(b"0x") { parse_hex(digits) } else { parse_decimal(digits) }
}

/// `hours:minutes:seconds`, or seconds alone; the seconds may have a fraction.
fn parse_time(text: &[u8]) -> Option<Duration> {
    let mut parts = text.rsplit(|&byte| byte == b':');
    let seconds = parts.next()?;
    let (whole, fraction) = match seconds.iter().position(|&byte| byte == b'.' || byte == b',') {
        Some(point) => (&seconds[..point], parse_fraction(&seconds[point + 1..])?),
        None => (seconds, 0),
    };
    let mut total = parse_decimal(whole)?;
    if let Some(minutes) = parts.next() {
        let hours = parts.next()?;
        total = parse_decimal(hours)?
            .checked_mul(3600)?
            .checked_add(parse_decimal(minutes)?.checked_mul(60)?)?
            .checked_add(total)?;
    }
    parts.next().is_none().then_some(Duration::new(total, fraction))
}

/// The nanoseconds in the digits after a decimal point; what is finer is cut off.
fn parse_fraction(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some((0..9).fold(0, |value, at| value * 10 + digits.get(at).map_or(0, |digit| u32::from(digit - b'0'))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Row, RowProblem> {
        Columns::STANDARD.parse(1, line.as_bytes())
    }

    #[test]
    fn every_field_has_its_own_problem() {
        let row = |line| parse(line).unwrap_err();
        assert_eq!(row("1,00:00:00.0,allocate,0x1,2"), RowProblem::Fields { expected: 6, found: 5 });
        assert_eq!(row("1,00:00:00.0,allocate,0x1,2,0x0,x"), RowProblem::Fields { expected: 6, found: 7 });
        assert_eq!(row("one,00:00:00.0,allocate,0x1,2,0x0"), RowProblem::Thread);
        assert_eq!(row("1,noon,allocate,0x1,2,0x0"), RowProblem::Time);
        assert_eq!(row("1,00:00,allocate,0x1,2,0x0"), RowProblem::Time);
        assert_eq!(row("1,00:00:00.0,borrow,0x1,2,0x0"), RowProblem::Action);
        assert_eq!(row("1,00:00:00.0,allocate,0xg,2,0x0"), RowProblem::Pointer);
        assert_eq!(row("1,00:00:00.0,allocate,0x10000000000000000,2,0x0"), RowProblem::Pointer);
        assert_eq!(row("1,00:00:00.0,allocate,0x1,-2,0x0"), RowProblem::Size);
        assert_eq!(row("1,00:00:00.0,allocate,0x1,18446744073709551616,0x0"), RowProblem::Size);
        assert_eq!(row("1,00:00:00.0,allocate,0x1,,0x0"), RowProblem::Size);
        assert_eq!(row("1,00:00:00.0,allocate,0x1,2,main"), RowProblem::Stream);
    }

    #[test]
    fn the_forms_that_recorders_write_are_understood() {
        assert_eq!(parse("1,0:0:1,free,ff,18446744073709551615,0").unwrap().bytes, u64::MAX);
        assert_eq!(
            parse("1,1634567890.25,deallocate,0xff,1,2a").unwrap().time,
            Duration::new(1_634_567_890, 250_000_000)
        );
        let failure = parse("1,00:00:00.000001,allocate failure,(nil),9,0x0").unwrap();
        assert_eq!((failure.action, failure.pointer.get(), failure.bytes), (Action::AllocateFailure, 0, 9));
        assert_eq!(parse("0x10,100:59:01.000002, allocate ,0x1,1,0x0").unwrap().thread, 16);
    }

    #[test]
    fn a_row_is_written_as_it_is_read() {
        for line in ["140,23:59:59.999999,allocate,0x7f00,12,0xab", "1,100:00:00.000000,allocate failure,0x0,1,0x0"] {
            assert_eq!(parse(line).unwrap().to_string(), line);
        }
    }
}
