//! Copies and fills between addresses of this process.

use std::ptr::{with_exposed_provenance, with_exposed_provenance_mut};

/// A copy or a fill whose addresses someone has vouched for. It may be done in parts, in any order and by any thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ByteWork {
    kind: Kind,
    to: usize,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Copy { from: usize },
    Fill { value: u8 },
}

impl ByteWork {
    /// Copies `bytes` bytes.
    ///
    /// # Safety
    /// Whenever this work or a part of it runs, `from` is valid for reads and `to` for writes of `bytes` bytes; they
    /// don't overlap; nothing else writes to either, or reads `to`, meanwhile.
    pub(crate) unsafe fn copy(from: usize, to: usize, bytes: usize) -> Self {
        Self { kind: Kind::Copy { from }, to, bytes }
    }

    /// Sets `bytes` bytes to `value`.
    ///
    /// # Safety
    /// Whenever this work or a part of it runs, `to` is valid for writes of `bytes` bytes, which nothing else uses.
    pub(crate) unsafe fn fill(to: usize, bytes: usize, value: u8) -> Self {
        Self { kind: Kind::Fill { value }, to, bytes }
    }

    pub(crate) fn bytes(self) -> usize {
        self.bytes
    }

    /// The part of at most `length` bytes from `offset` on; an empty one where that lies past the end.
    pub(crate) fn part(self, offset: usize, length: usize) -> Self {
        let offset = offset.min(self.bytes);
        let kind = match self.kind {
            Kind::Copy { from } => Kind::Copy { from: from + offset },
            fill @ Kind::Fill { .. } => fill,
        };
        Self { kind, to: self.to + offset, bytes: length.min(self.bytes - offset) }
    }

    /// Does it.
    pub(crate) fn run(self) {
        let to = with_exposed_provenance_mut::<u8>(self.to);
        match self.kind {
            // SAFETY: whoever made the whole vouched for it and so for its parts; bytes have no alignment.
            Kind::Copy { from } => unsafe {
                with_exposed_provenance::<u8>(from).copy_to_nonoverlapping(to, self.bytes);
            },
            // SAFETY: whoever made the whole vouched for it and so for its parts; bytes have no alignment.
            Kind::Fill { value } => unsafe { to.write_bytes(value, self.bytes) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_lie_within_the_whole() {
        // SAFETY: this work is never run.
        let work = unsafe { ByteWork::copy(1000, 5000, 100) };
        let ends = |part: ByteWork| match part.kind {
            Kind::Copy { from } => (from, part.to, part.bytes),
            Kind::Fill { .. } => unreachable!(),
        };
        assert_eq!(ends(work.part(0, 30)), (1000, 5000, 30));
        assert_eq!(ends(work.part(90, 30)), (1090, 5090, 10));
        assert_eq!(ends(work.part(500, 30)), (1100, 5100, 0));
    }
}
