//! Returns: released small blocks on their way from threads that only release to those that allocate.
//!
//! Where one thread allocates and another releases, each block would visit its slab on the way back, whose books both
//! threads write. Kept in batches instead, as TCMalloc's transfer caches do (Ghemawat, Menage: "TCMalloc:
//! thread-caching malloc"), blocks go from cache to cache with a few cache lines a batch.

use crate::cache::{Batch, CachedBlock};
use crate::placement::heap::Tag;
use crate::placement::units::{CLASSES, class_bytes};

/// The most blocks of one class that wait: as many as come and go by chance, for each that overflows goes through its
/// slab's books.
const RETURN_BLOCKS: usize = 256;

#[derive(Debug)]
struct Bin {
    /// The stream that the blocks are for, if there are any.
    tag: Tag,
    blocks: Vec<CachedBlock>,
}

/// The returned blocks of one arena.
#[derive(Debug, Default)]
pub(crate) struct Returns {
    /// By class. Made when a thread first turns out to release only.
    bins: Vec<Bin>,
    bytes: u64,
}

impl Returns {
    /// Keeps blocks of one class and stream, as far as no more than `most` bytes wait here; the others stay in the
    /// batch.
    pub(crate) fn put(&mut self, class: usize, tag: Tag, most: u64, batch: &mut Batch) {
        if self.bins.is_empty() {
            self.bins.extend((0..CLASSES).map(|_| Bin { tag: 0, blocks: Vec::with_capacity(RETURN_BLOCKS) }));
        }
        let Some(bin) = self.bins.get_mut(class) else { return };
        if bin.blocks.is_empty() {
            bin.tag = tag;
        }
        let bytes = class_bytes(class);
        if bin.tag != tag {
            return;
        }
        let within = most.saturating_sub(self.bytes).checked_div(bytes).unwrap_or(u64::MAX);
        let count =
            batch.blocks().len().min(RETURN_BLOCKS - bin.blocks.len()).min(within.try_into().unwrap_or(usize::MAX));
        let keep = batch.blocks().len() - count;
        bin.blocks.extend_from_slice(&batch.blocks()[keep..]);
        batch.truncate(keep);
        self.bytes += count as u64 * bytes;
    }

    /// Adds up to `wanted` blocks of the class and stream to the batch.
    #[inline]
    pub(crate) fn take(&mut self, class: usize, tag: Tag, wanted: usize, batch: &mut Batch) {
        let Some(bin) = self.bins.get_mut(class).filter(|bin| bin.tag == tag) else { return };
        let left = bin.blocks.len().saturating_sub(wanted.min(batch.room()));
        batch.extend(&bin.blocks[left..]);
        self.bytes -= (bin.blocks.len() - left) as u64 * class_bytes(class);
        bin.blocks.truncate(left);
    }

    /// Fills the batch with blocks of any class; `false` if there are none.
    pub(crate) fn empty_into(&mut self, batch: &mut Batch) -> bool {
        let Some((class, bin)) = self.bins.iter_mut().enumerate().find(|(_, bin)| !bin.blocks.is_empty()) else {
            return false;
        };
        while !batch.is_full()
            && let Some(block) = bin.blocks.pop()
        {
            batch.push(block);
            self.bytes -= class_bytes(class);
        }
        true
    }

    /// The blocks that wait.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = CachedBlock> {
        self.bins.iter().flat_map(|bin| &bin.blocks).copied()
    }

    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn batch(count: u32) -> Batch {
        let mut batch = Batch::new();
        (0..count).for_each(|slot| batch.push(CachedBlock::new(0, slot, 0)));
        batch
    }

    #[test]
    fn what_is_returned_is_taken_by_its_own_stream_only() {
        let mut returns = Returns::default();
        let mut first = batch(10);
        returns.put(3, 1, 1 << 20, &mut first);
        assert_eq!((first.blocks().len(), returns.bytes()), (0, 10 * class_bytes(3)));
        let mut other = batch(4);
        returns.put(3, 2, 1 << 20, &mut other);
        assert_eq!(other.blocks().len(), 4, "another stream's blocks of the class do not mix with these");
        let mut taken = Batch::new();
        returns.take(3, 2, 8, &mut taken);
        returns.take(4, 1, 8, &mut taken);
        assert!(taken.blocks().is_empty());
        returns.take(3, 1, 8, &mut taken);
        assert_eq!((taken.blocks().len(), returns.bytes()), (8, 2 * class_bytes(3)));
    }

    #[test]
    fn what_waits_is_bounded_and_can_all_be_had_back() {
        let mut returns = Returns::default();
        let last = CLASSES - 1;
        let mut large = batch(20);
        returns.put(last, 0, 10 * class_bytes(last), &mut large);
        assert_eq!(large.blocks().len(), 10);
        for _ in 0..10 {
            returns.put(1, 0, u64::MAX, &mut batch(32));
        }
        assert_eq!(returns.bytes(), 10 * class_bytes(last) + RETURN_BLOCKS as u64 * class_bytes(1));
        let (mut count, mut out) = (0, Batch::new());
        while returns.empty_into(&mut out) {
            count += out.blocks().len();
            out.clear();
        }
        assert_eq!((count, returns.bytes()), (10 + RETURN_BLOCKS, 0));
    }
}
