//! Physical pages, named by their offsets in a file that lives in memory.

use std::ffi::CStr;
use std::sync::{Mutex, PoisonError};

use crate::NumaPolicy;
use crate::offsets::Offsets;
use crate::sys::{NodePolicy, PageFile, ReservedRange, SysError};

/// The unit of physical memory and of mappings in bytes: a huge page of x86-64, and of 64-bit Arm with 4 KiB pages.
pub(crate) const GRANULARITY: u64 = 2 << 20;

/// The file is lengthened by multiples of this many bytes. It is sparse: length costs nothing.
const GROWTH: u64 = 1 << 30;

/// One file and the books of its ranges.
#[derive(Debug)]
pub(crate) struct Store {
    file: PageFile,
    numa: NumaPolicy,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    offsets: Offsets,
    file_length: u64,
}

impl Store {
    pub(crate) fn new(name: &CStr, hugetlb: bool, numa: &NumaPolicy) -> Result<Self, SysError> {
        let store = Self { file: PageFile::new(name, hugetlb)?, numa: numa.clone(), books: Mutex::default() };
        if *numa != NumaPolicy::Default {
            // A policy that the system can't follow is an error now, not at the first allocation.
            let mut books = store.books();
            store.lengthen(&mut books, GRANULARITY)?;
        }
        Ok(store)
    }

    pub(crate) fn file(&self) -> &PageFile {
        &self.file
    }

    /// Takes a range of the file; no page comes with it.
    pub(crate) fn take(&self, bytes: u64) -> Result<u64, SysError> {
        let mut books = self.books();
        let start = books.offsets.take(bytes).ok_or(SysError { call: "ftruncate", errno: libc::EFBIG })?;
        // Not as far as a range was ever taken: that may be one that the file could not be lengthened for.
        let end = start + bytes;
        if end > books.file_length
            && let Err(error) = self.lengthen(&mut books, end)
        {
            books.offsets.give(start, bytes);
            return Err(error);
        }
        Ok(start)
    }

    /// Gives a range that was taken back, and its pages to the system.
    pub(crate) fn give(&self, start: u64, bytes: u64) -> Result<(), SysError> {
        let punched = self.file.punch(start, bytes);
        // Pages that the kernel did not take back are found again by whoever takes the range next.
        self.books().offsets.give(start, bytes);
        punched
    }

    /// Makes huge pages behind a range now, whatever the system's setting for first touch.
    pub(crate) fn collapse(&self, start: u64, bytes: u64) -> Result<(), SysError> {
        const SMALLEST_PAGE: u64 = 4096;
        self.with_view(start, bytes, |view| {
            for huge_page in (view.start()..view.start() + bytes).step_by(GRANULARITY as usize) {
                view.populate(huge_page, SMALLEST_PAGE)?;
            }
            view.collapse(view.start(), bytes)
        })
    }

    fn lengthen(&self, books: &mut Books, end: u64) -> Result<(), SysError> {
        let length = end.checked_next_multiple_of(GROWTH).filter(|&length| length <= i64::MAX as u64).unwrap_or(end);
        self.file.grow_to(length)?;
        let policy = match &self.numa {
            NumaPolicy::Default => None,
            NumaPolicy::Bind(nodes) => Some(NodePolicy::Bind(nodes)),
            NumaPolicy::Interleave(nodes) => Some(NodePolicy::Interleave(nodes)),
            NumaPolicy::Preferred(node) => Some(NodePolicy::Preferred(*node)),
        };
        if let Some(policy) = policy {
            let added = length - books.file_length;
            self.with_view(books.file_length, added, |view| view.bind_nodes(view.start(), added, policy))?;
        }
        books.file_length = length;
        Ok(())
    }

    /// Runs `work` on a passing view of a range.
    fn with_view(
        &self,
        start: u64,
        bytes: u64,
        work: impl FnOnce(&ReservedRange) -> Result<(), SysError>,
    ) -> Result<(), SysError> {
        let view = ReservedRange::new(bytes, GRANULARITY)?;
        view.map(view.start(), bytes, &self.file, start, false)?;
        work(&view)?;
        view.close()
    }

    fn books(&self) -> std::sync::MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_the_file_has_no_room_for_stands_in_the_way_of_no_other() {
        // The view that a policy is set through is more than there are addresses.
        const TOO_MUCH: u64 = 1 << 60;
        for policy in [NumaPolicy::Default, NumaPolicy::Preferred(0)] {
            // A kernel may know no policies.
            let Ok(store) = Store::new(c"test", false, &policy) else { continue };
            assert_eq!(store.take(GRANULARITY), Ok(0));
            match store.take(TOO_MUCH) {
                Ok(start) => store.give(start, TOO_MUCH).unwrap(),
                Err(error) => assert_eq!((error.call, policy == NumaPolicy::Default), ("mmap", false)),
            }
            assert_eq!(store.take(GRANULARITY), Ok(GRANULARITY), "{policy:?}");
            // Past what the file has been lengthened to.
            assert_eq!(store.take(2 * GROWTH), Ok(2 * GRANULARITY), "{policy:?}");
        }
    }
}
