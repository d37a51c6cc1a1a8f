//! The streams that share the last tag: they are asked and waited for by name where it is known whose the memory is.
//!
//! A name that free memory has is mostly that of a living stream, or of one that has ended and whose end is known. If it is
//! neither, that stream is over: it left those that share the tag when its work was complete. It is not asked then, as it may be
//! destroyed, and nor is another that has its name by now, and memory of its own.

use alloc_core::{MemoryProvider, ProviderError, Stream};

use crate::placement::heap::{SHARED_TAG, Sharers};
use crate::pool::Inner;
use crate::streams::Tags;

impl<P: MemoryProvider> Inner<P> {
    /// Whether all work is complete that was submitted so far to the streams that share a tag. One that is busy comes first from then
    /// on, as it may well be next time; one that has ended, and is over, is not asked again.
    pub(crate) fn are_sharers_idle(&self, table: &mut Tags<P::Event>) -> bool {
        let mut index = 0;
        while let Some(&stream) = table.shared.get(index) {
            if !self.is_idle_in(table, stream).unwrap_or(false) {
                table.shared.swap(0, index);
                return false;
            }
            if table.retired.contains(stream) {
                table.shared.swap_remove(index);
            } else {
                index += 1;
            }
        }
        true
    }

    /// Of streams that are known by name, one whose work is not known to be complete.
    pub(crate) fn busy_one_of(&self, table: &mut Tags<P::Event>, sharers: &Sharers) -> Option<Stream> {
        let mut is_busy = |home: Stream| table.may_have_work(home) && !self.is_idle_in(table, home).unwrap_or(false);
        sharers.named().iter().copied().find(|&home| is_busy(home))
    }

    /// Makes `after` wait for all work submitted to these streams so far.
    pub(crate) fn order_after_sharers(
        &self,
        table: &mut Tags<P::Event>,
        sharers: &Sharers,
        after: Stream,
    ) -> Result<(), ProviderError> {
        if !sharers.are_named() {
            return self.order_after_tag(table, SHARED_TAG, after);
        }
        for &home in sharers.named() {
            if !table.may_have_work(home) {
                continue;
            }
            // Whether events may be asked is found out of all streams, which takes longer than to wait for a few.
            self.order_after_in(table, home, after, false)?;
        }
        Ok(())
    }
}

impl<E> Tags<E> {
    /// Whether a stream by that name shares the tag, or did until it ended.
    fn may_have_work(&self, home: Stream) -> bool {
        match self.living_tag(home) {
            Some(tag) => tag == SHARED_TAG,
            None => self.retired.contains(home),
        }
    }
}
