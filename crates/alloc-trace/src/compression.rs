//! Compressed files: recognised by their first bytes when read, chosen by name when written.
//!
//! Without the feature `compression` they are still recognised, and refused.

use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

#[cfg(feature = "compression")]
use flate2::{bufread::MultiGzDecoder, write::GzEncoder};

/// How a trace file is compressed. All kinds are always known; to read and write them takes the feature `compression`, which is on
/// by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all.
    #[default]
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// Zstandard (RFC 8878).
    Zstd,
}

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

impl Compression {
    /// What the first bytes of a file say.
    ///
    /// ```
    /// use alloc_trace::Compression;
    /// assert_eq!(Compression::of_bytes(b"Thread,Time"), Compression::None);
    /// assert_eq!(Compression::of_bytes(&[0x1f, 0x8b, 8, 0]), Compression::Gzip);
    /// ```
    pub fn of_bytes(first: &[u8]) -> Self {
        let is_skippable_frame = matches!(first, [low, 0x2a, 0x4d, 0x18, ..] if low & 0xf0 == 0x50);
        if first.starts_with(&GZIP_MAGIC) {
            Self::Gzip
        } else if first.starts_with(&ZSTD_MAGIC) || is_skippable_frame {
            Self::Zstd
        } else {
            Self::None
        }
    }

    /// What the name of a file to be written asks for: `.gz`, `.zst`, or else nothing.
    pub fn of_name(path: &Path) -> Self {
        match path.extension().and_then(OsStr::to_str) {
            Some("gz") => Self::Gzip,
            Some("zst" | "zstd") => Self::Zstd,
            _ => Self::None,
        }
    }

    /// Whether this build reads and writes it. Files without compression can always be read and written.
    pub const fn is_supported(self) -> bool {
        matches!(self, Self::None) || cfg!(feature = "compression")
    }

    /// [`Self::is_supported`], or the error that says why not.
    pub(crate) fn check(self) -> io::Result<()> {
        if self.is_supported() { Ok(()) } else { Err(self.unsupported()) }
    }

    fn unsupported(self) -> io::Error {
        let why = format!("compressed ({self:?}), and alloc-trace was built without its feature `compression`");
        io::Error::new(io::ErrorKind::Unsupported, why)
    }
}

const BUFFER: usize = 64 * 1024;

/// The plain bytes of what `compressed` gives, whatever it is compressed with.
pub(crate) fn decode<'a>(mut compressed: impl Read + Send + 'a) -> io::Result<Box<dyn BufRead + Send + 'a>> {
    let mut first = [0; 4];
    let mut len = 0;
    while len < first.len() {
        match compressed.read(&mut first[len..]) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let whole = BufReader::with_capacity(BUFFER, io::Cursor::new(first).take(len as u64).chain(compressed));
    Ok(match Compression::of_bytes(&first[..len]) {
        Compression::None => Box::new(whole),
        #[cfg(feature = "compression")]
        Compression::Gzip => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(whole))),
        #[cfg(feature = "compression")]
        Compression::Zstd => Box::new(BufReader::with_capacity(BUFFER, zstd::Decoder::with_buffer(whole)?)),
        #[cfg(not(feature = "compression"))]
        other => return Err(other.unsupported()),
    })
}

/// Compresses what is written to it.
pub(crate) enum Encoder<W: Write> {
    Plain(W),
    #[cfg(feature = "compression")]
    Gzip(GzEncoder<W>),
    #[cfg(feature = "compression")]
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    pub(crate) fn new(into: W, compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(into),
            #[cfg(feature = "compression")]
            Compression::Gzip => Self::Gzip(GzEncoder::new(into, flate2::Compression::default())),
            #[cfg(feature = "compression")]
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(into, zstd::DEFAULT_COMPRESSION_LEVEL)?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
            #[cfg(not(feature = "compression"))]
            other => return Err(other.unsupported()),
        })
    }

    /// Writes what is left and hands the inner writer back.
    pub(crate) fn finish(self) -> io::Result<W> {
        let mut inner = match self {
            Self::Plain(inner) => inner,
            #[cfg(feature = "compression")]
            Self::Gzip(encoder) => encoder.finish()?,
            #[cfg(feature = "compression")]
            Self::Zstd(encoder) => encoder.finish()?,
        };
        inner.flush()?;
        Ok(inner)
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(inner) => inner.write(bytes),
            #[cfg(feature = "compression")]
            Self::Gzip(encoder) => encoder.write(bytes),
            #[cfg(feature = "compression")]
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(inner) => inner.flush(),
            #[cfg(feature = "compression")]
            Self::Gzip(encoder) => encoder.flush(),
            #[cfg(feature = "compression")]
            Self::Zstd(encoder) => encoder.flush(),
        }
    }
}

#[cfg(all(test, not(feature = "compression")))]
mod tests {
    use std::fs;

    use crate::{Policy, Trace, TraceError, Writer};

    use super::*;

    #[test]
    fn compressed_files_are_told_and_refused() {
        let log = b"Thread,Time,Action,Pointer,Size,Stream\n1,00:00:00.1,allocate,0x1000,64,0x0\n";
        assert_eq!(crate::Reader::new(&log[..]).unwrap().count(), 1);
        for first in [&GZIP_MAGIC[..], &ZSTD_MAGIC] {
            let Err(TraceError::Read { line: 1, source }) = crate::Reader::new(first) else { panic!("{first:?}") };
            assert_eq!(source.kind(), io::ErrorKind::Unsupported);
            assert!(source.to_string().contains("`compression`"), "{source}");
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["t.csv.gz", "t.csv.zst"] {
            let path = folder.path().join(name);
            fs::write(&path, "what was there").unwrap();
            let refused = Writer::create(&path).map(drop).unwrap_err();
            assert!(matches!(refused.root(), TraceError::Open(error) if error.kind() == io::ErrorKind::Unsupported));
            assert_eq!(fs::read(&path).unwrap(), b"what was there");
        }
        let plain = folder.path().join("t.csv");
        fs::write(&plain, log).unwrap();
        assert_eq!(Trace::load(&plain, Policy::Strict).unwrap().blocks().len(), 1);
        assert!(Writer::new(Vec::new(), Compression::Gzip).is_err() && !Compression::Zstd.is_supported());
    }
}
