//! Files: written and read in every compression, and every way in which they can be broken.

use std::fs;
use std::io::{ErrorKind, Write};

use alloc_trace::{Compression, Policy, Reader, RowProblem, Trace, TraceError, Writer};

use crate::support::{HEADER, random_rows, trace};

/// What this build reads and writes.
fn supported() -> Vec<Compression> {
    let all = [Compression::None, Compression::Gzip, Compression::Zstd];
    all.into_iter().filter(|compression| compression.is_supported()).collect()
}

#[test]
fn a_trace_survives_a_round_trip_in_every_compression() {
    let folder = tempfile::tempdir().unwrap();
    let rows = random_rows(1, 3000, 3, 4);
    let original = trace(&rows);
    assert_eq!(supported().len(), if cfg!(feature = "compression") { 3 } else { 1 });
    for compression in supported() {
        let name = match compression {
            Compression::Gzip => "t.csv.gz",
            Compression::Zstd => "t.csv.zst",
            _ => "t.csv",
        };
        let path = folder.path().join(name);
        original.save(&path).unwrap();
        assert_eq!(Compression::of_bytes(&fs::read(&path).unwrap()), compression);
        let loaded = Trace::load(&path, Policy::Strict).unwrap();
        assert_eq!(loaded.operations(), original.operations());
        assert_eq!(loaded.blocks(), original.blocks());
        assert_eq!((loaded.streams(), loaded.threads()), (original.streams(), original.threads()));
        assert!(loaded.rows().eq(rows.iter().copied()));
    }
}

#[cfg(feature = "compression")]
#[test]
fn compression_is_known_by_content_and_not_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let original = trace(&random_rows(2, 100, 1, 1));
    original.save(folder.path().join("t.csv.gz")).unwrap();
    fs::rename(folder.path().join("t.csv.gz"), folder.path().join("t.zst")).unwrap();
    assert_eq!(Trace::load(folder.path().join("t.zst"), Policy::Strict).unwrap().blocks(), original.blocks());
}

#[test]
fn concatenated_members_and_frames_are_one_log() {
    for compression in supported() {
        let mut both = Vec::new();
        for row in &random_rows(3, 2, 1, 1)[..1] {
            for _ in 0..2 {
                let mut writer = Writer::new(both, compression).unwrap();
                writer.write(row).unwrap();
                both = writer.finish().unwrap();
            }
        }
        // The header of the second part is passed over.
        assert_eq!(Reader::new(both.as_slice()).unwrap().map(Result::unwrap).count(), 2, "{compression:?}");
    }
}

#[test]
fn a_compressed_stream_that_was_cut_off_is_an_error_wherever_it_was_cut() {
    let rows = random_rows(4, 5000, 1, 1);
    for compression in supported().into_iter().skip(1) {
        let mut writer = Writer::new(Vec::new(), compression).unwrap();
        rows.iter().for_each(|row| writer.write(row).unwrap());
        let whole = writer.finish().unwrap();
        assert_eq!(Reader::new(whole.as_slice()).unwrap().map(Result::unwrap).count(), rows.len());
        for cut in [whole.len() - 1, whole.len() - 4, whole.len() / 2, 5] {
            let error = read_all(&whole[..cut]).unwrap_err();
            match error {
                TraceError::Read { line, source } => {
                    assert_eq!(source.kind(), ErrorKind::UnexpectedEof, "{compression:?} cut at {cut}");
                    assert!(line >= 1);
                }
                other => panic!("{compression:?} cut at {cut}: {other}"),
            }
        }
    }
}

#[test]
fn a_compressed_stream_with_a_wrong_byte_is_an_error() {
    for compression in supported().into_iter().skip(1) {
        let mut writer = Writer::new(Vec::new(), compression).unwrap();
        random_rows(5, 5000, 1, 1).iter().for_each(|row| writer.write(row).unwrap());
        let mut damaged = writer.finish().unwrap();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0x55;
        assert!(read_all(&damaged).is_err(), "{compression:?}");
    }
}

#[test]
fn a_file_that_is_missing_or_is_a_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.csv");
    let error = Trace::load(&missing, Policy::Strict).unwrap_err();
    assert!(matches!(&error, TraceError::File { path, .. } if *path == missing));
    assert!(matches!(error.root(), TraceError::Open(source) if source.kind() == ErrorKind::NotFound));
    assert!(error.to_string().contains("missing.csv"));

    let error = Trace::load(folder.path(), Policy::Strict).unwrap_err();
    assert!(matches!(error.root(), TraceError::Read { .. } | TraceError::Open(_)), "{error}");

    let error = trace(&[]).save(folder.path().join("no/such/folder.csv")).unwrap_err();
    assert!(matches!(error.root(), TraceError::Open(_)));
}

#[test]
fn a_bad_row_in_a_file_is_named_with_its_line() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    write!(file, "{HEADER}1,00:00:00.1,allocate,0x10,5,0x0\n\n1,00:00:00.1,allocate,0x20,5\n").unwrap();
    let error = Trace::load(file.path(), Policy::Strict).unwrap_err();
    assert_eq!(error.line(), Some(4));
    assert!(matches!(
        error.root(),
        TraceError::Row { problem: RowProblem::Fields { expected: 6, found: 5 }, text, .. } if text.contains("0x20")
    ));
    assert!(error.to_string().contains("line 4"));

    // The reader over the same file gives the good row, the error, and then ends.
    let mut reader = Reader::open(file.path()).unwrap();
    assert!(reader.next().unwrap().is_ok());
    assert_eq!(reader.next().unwrap().unwrap_err().line(), Some(4));
    assert!(reader.next().is_none());
}

#[test]
fn files_that_are_no_logs_are_refused_and_take_no_memory() {
    assert!(matches!(read_all(b"").unwrap_err(), TraceError::Empty));
    assert!(matches!(read_all(b"\n\n").unwrap_err(), TraceError::Empty));
    assert!(matches!(read_all(b"hello\nworld\n").unwrap_err(), TraceError::NoHeader { line: 1, .. }));
    let endless = vec![b'x'; 1 << 20];
    assert!(matches!(
        read_all(&endless).unwrap_err(),
        TraceError::Row { line: 1, problem: RowProblem::LineTooLong { .. }, text } if text.len() < 200
    ));
    let prose = "word\n".repeat(10_000);
    assert!(matches!(read_all(prose.as_bytes()).unwrap_err(), TraceError::NoHeader { line: 1, .. }));
    let binary: Vec<u8> = (0..=255).cycle().take(4000).collect();
    assert!(read_all(&binary).is_err());
}

fn read_all(bytes: &[u8]) -> Result<usize, TraceError> {
    let mut count = 0;
    for row in Reader::new(bytes)? {
        row?;
        count += 1;
    }
    Ok(count)
}
