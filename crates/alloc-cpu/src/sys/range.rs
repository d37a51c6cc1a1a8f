//! Ranges of addresses that are ours alone, and what is mapped in them.
//!
//! The calls are safe, since each is confined to a range that the kernel gave to its owner and to nobody else, and
//! since the addresses leave this crate as numbers: whoever makes a pointer or a reference of one vouches for what is
//! mapped there.

use std::ptr::{null_mut, with_exposed_provenance_mut};

use super::{PageFile, SysError, check, offset};

/// Reserved addresses; given back when dropped.
#[derive(Debug)]
pub(crate) struct ReservedRange {
    start: u64,
    bytes: u64,
}

/// Where the pages of a range are to be taken from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NodePolicy<'a> {
    Bind(&'a [u32]),
    Interleave(&'a [u32]),
    Preferred(u32),
}

impl ReservedRange {
    /// Reserves `bytes` bytes of addresses with nothing behind them, aligned to `align`, a power of two that is a
    /// multiple of the page size.
    pub(crate) fn new(bytes: u64, align: u64) -> Result<Self, SysError> {
        const CALL: &str = "mmap";
        let too_large = SysError { call: CALL, errno: libc::ENOMEM };
        let wanted = length(bytes, CALL)?;
        let padded = usize::try_from(align).ok().and_then(|align| wanted.checked_add(align)).ok_or(too_large)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without MAP_FIXED the kernel takes addresses that nobody uses.
        let start = unsafe { libc::mmap(null_mut(), padded, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(SysError::last(CALL));
        }
        let padded = Self { start: start.expose_provenance() as u64, bytes: padded as u64 };
        let aligned = padded.start.next_multiple_of(align);
        let range = Self { start: aligned, bytes };
        let (head, tail) = (aligned - padded.start, padded.end() - range.end());
        // The padding is a range of its own on either side; the three parts are owned in place of the whole.
        std::mem::forget(padded);
        for (start, bytes) in [(aligned - head, head), (range.end(), tail)] {
            if bytes != 0 {
                Self { start, bytes }.close()?;
            }
        }
        Ok(range)
    }

    pub(crate) fn start(&self) -> u64 {
        self.start
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn end(&self) -> u64 {
        self.start + self.bytes
    }

    /// Whether all of `bytes` bytes from `at` on lie in this range.
    pub(crate) fn contains(&self, at: u64, bytes: u64) -> bool {
        at >= self.start && at.checked_add(bytes).is_some_and(|end| end <= self.end())
    }

    /// Gives the addresses back, and says if that fails.
    pub(crate) fn close(self) -> Result<(), SysError> {
        let result = self.unmap_all();
        std::mem::forget(self);
        result
    }

    fn unmap_all(&self) -> Result<(), SysError> {
        let bytes = length(self.bytes, "munmap")?;
        // SAFETY: the range is ours, and both callers end its life with this.
        check("munmap", || unsafe { libc::munmap(pointer(self.start), bytes) })
    }

    /// Maps a range of the file, in place of what was there. `populate` fills the page tables too.
    pub(crate) fn map(&self, at: u64, bytes: u64, file: &PageFile, from: u64, populate: bool) -> Result<(), SysError> {
        const CALL: &str = "mmap";
        let from = offset(from, CALL)?;
        let length = self.part(at, bytes, CALL)?;
        let populate = if populate { libc::MAP_POPULATE } else { 0 };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE | populate;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the addresses lie in this range, so what is replaced is ours.
        let mapped = unsafe { libc::mmap(pointer(at), length, access, flags, file.descriptor(), from) };
        if mapped == libc::MAP_FAILED {
            let error = SysError::last(CALL);
            // Older kernels remove what was there before they fail: close the hole before anyone else gets it.
            let _ = self.unmap(at, bytes);
            return Err(error);
        }
        Ok(())
    }

    /// Puts nothing in place of what is mapped; the addresses stay reserved.
    pub(crate) fn unmap(&self, at: u64, bytes: u64) -> Result<(), SysError> {
        const CALL: &str = "mmap";
        let length = self.part(at, bytes, CALL)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the addresses lie in this range, so what is replaced is ours.
        let mapped = unsafe { libc::mmap(pointer(at), length, libc::PROT_NONE, flags, -1, 0) };
        if mapped == libc::MAP_FAILED { Err(SysError::last(CALL)) } else { Ok(()) }
    }

    /// Asks for transparent huge pages behind a mapping.
    pub(crate) fn advise_huge(&self, at: u64, bytes: u64) -> Result<(), SysError> {
        self.advise("madvise(MADV_HUGEPAGE)", at, bytes, Advice::Huge)
    }

    /// Takes the physical pages of a mapping now, with an error instead of a signal if there are none.
    pub(crate) fn populate(&self, at: u64, bytes: u64) -> Result<(), SysError> {
        self.advise("madvise(MADV_POPULATE_WRITE)", at, bytes, Advice::Populate)
    }

    /// Gathers the pages of a mapping into huge ones now. It needs at least one present page in each huge one.
    pub(crate) fn collapse(&self, at: u64, bytes: u64) -> Result<(), SysError> {
        self.advise("madvise(MADV_COLLAPSE)", at, bytes, Advice::Collapse)
    }

    fn advise(&self, call: &'static str, at: u64, bytes: u64, advice: Advice) -> Result<(), SysError> {
        let bytes = self.part(at, bytes, call)?;
        let advice = match advice {
            Advice::Huge => libc::MADV_HUGEPAGE,
            Advice::Populate => libc::MADV_POPULATE_WRITE,
            Advice::Collapse => libc::MADV_COLLAPSE,
        };
        // SAFETY: the addresses lie in this range, and none of these changes contents.
        check(call, || unsafe { libc::madvise(pointer(at), bytes, advice) })
    }

    /// Sets the policy for the pages behind a mapping. For a view of a file the policy belongs to that part of the
    /// file, and outlives the view.
    pub(crate) fn bind_nodes(&self, at: u64, bytes: u64, policy: NodePolicy<'_>) -> Result<(), SysError> {
        const CALL: &str = "mbind";
        /// The kernel itself knows at most this many nodes.
        const MOST_NODES: u32 = 1024;
        let preferred;
        let (mode, nodes) = match policy {
            NodePolicy::Bind(nodes) => (libc::MPOL_BIND, nodes),
            NodePolicy::Interleave(nodes) => (libc::MPOL_INTERLEAVE, nodes),
            NodePolicy::Preferred(node) => {
                preferred = [node];
                (libc::MPOL_PREFERRED, &preferred[..])
            }
        };
        let mut mask = [0u64; (MOST_NODES / 64) as usize];
        for &node in nodes {
            match mask.get_mut((node / 64) as usize) {
                Some(word) => *word |= 1 << (node % 64),
                None => return Err(SysError { call: CALL, errno: libc::EINVAL }),
            }
        }
        let bytes = self.part(at, bytes, CALL)?;
        // The kernel counts one bit less than it is told.
        let bits = libc::c_ulong::from(MOST_NODES) + 1;
        // A variadic call widens nothing by itself, so every number is as wide as the kernel reads it.
        let (mode, flags) = (libc::c_long::from(mode), 0 as libc::c_long);
        // SAFETY: the addresses lie in this range, the mask has as many bits as said, and contents stay.
        let result = unsafe { libc::syscall(libc::SYS_mbind, pointer(at), bytes, mode, mask.as_ptr(), bits, flags) };
        if result == 0 { Ok(()) } else { Err(SysError::last(CALL)) }
    }

    /// The length of a part for a call, if it is a part of this range.
    fn part(&self, at: u64, bytes: u64, call: &'static str) -> Result<usize, SysError> {
        if self.contains(at, bytes) { length(bytes, call) } else { Err(SysError { call, errno: libc::EINVAL }) }
    }
}

impl Drop for ReservedRange {
    fn drop(&mut self) {
        if let Err(error) = self.unmap_all() {
            tracing::debug!(
                start = self.start,
                bytes = self.bytes,
                ?error,
                "reserved addresses could not be given back"
            );
        }
    }
}

#[derive(Clone, Copy)]
enum Advice {
    Huge,
    Populate,
    Collapse,
}

fn pointer(at: u64) -> *mut libc::c_void {
    with_exposed_provenance_mut(at as usize)
}

fn length(bytes: u64, call: &'static str) -> Result<usize, SysError> {
    usize::try_from(bytes).map_err(|_| SysError { call, errno: libc::ENOMEM })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: u64 = 2 << 20;

    #[test]
    fn calls_are_confined_to_the_range() {
        let range = ReservedRange::new(2 * UNIT, UNIT).unwrap();
        let file = PageFile::new(c"test", false).unwrap();
        file.grow_to(4 * UNIT).unwrap();
        let (start, end) = (range.start(), range.start() + 2 * UNIT);
        for (at, bytes) in [(start - UNIT, UNIT), (start, 3 * UNIT), (end, UNIT), (start, u64::MAX)] {
            let outside = |call| Err(SysError { call, errno: libc::EINVAL });
            assert_eq!(range.map(at, bytes, &file, 0, false), outside("mmap"));
            assert_eq!(range.unmap(at, bytes), outside("mmap"));
            assert_eq!(range.populate(at, bytes), outside("madvise(MADV_POPULATE_WRITE)"));
            assert_eq!(range.bind_nodes(at, bytes, NodePolicy::Preferred(0)), outside("mbind"));
        }
        range.map(start, 2 * UNIT, &file, 0, false).unwrap();
        range.unmap(start, 2 * UNIT).unwrap();
        range.close().unwrap();
    }
}
