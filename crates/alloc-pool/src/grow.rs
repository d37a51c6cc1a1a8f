//! Memory that is made before it is needed.

use std::sync::Arc;

use alloc_core::{AllocError, Layout, MemoryProvider, Stream};

use crate::cache;
use crate::miss::Purpose;
use crate::placement::heap::{Ask, Tag, TagSet, own_set};
use crate::placement::units::UNIT_SHIFT;
use crate::pool::{Inner, Pool};

impl<P: MemoryProvider> Pool<P> {
    /// Has the pool hold at least so many bytes of physical memory, made now in place of when it is first needed; returns how many
    /// it holds. The counterpart of [`trim`](alloc_core::DeviceAllocator::trim): a program that knows what it will need pays for
    /// it before its first request.
    ///
    /// The memory is free, for blocks of every size and stream, and is kept as what was in use once is. Pieces are as large as
    /// those of a pool that has had so many bytes in use, and up to so many the pool grows before it moves pages. `stream` is one that
    /// the program works on: memory that is free already, and that others used last, is waited for there. Nothing counts as
    /// in use by this; each piece that is made counts as a miss. Beyond a
    /// [`release_threshold`](crate::PoolConfig::release_threshold) it goes back at the next release.
    ///
    /// # Errors
    /// [`AllocError::OutOfMemory`], with nothing made, for more than the limit or than the device has in all. If others have too much
    /// of that, what could be made stays, as free memory.
    /// [`AllocError::Provider`] for what the backend reports.
    ///
    /// # Example
    /// ```
    /// use alloc_core::{DeviceAllocator, Layout, Stream};
    ///
    /// let pool = alloc_pool::Pool::new(alloc_core::conformance::SimulatedProvider::default(), Default::default())?;
    /// let held = pool.grow_to(64 << 20, Stream::DEFAULT)?;
    /// assert!(held >= 64 << 20);
    ///
    /// let misses = pool.statistics().misses;
    /// let block = pool.allocate(Layout::bytes(48 << 20)?, Stream::DEFAULT)?;
    /// assert_eq!(pool.statistics().misses, misses);
    /// # drop(block);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// As `initial_pool_size` of RMM's `pool_memory_resource`, at any time.
    #[doc(alias = "preallocate")]
    #[doc(alias = "prewarm")]
    #[doc(alias = "initial_pool_size")]
    pub fn grow_to(&self, bytes: u64, stream: Stream) -> Result<u64, AllocError> {
        Inner::grow_to(&self.inner, bytes, stream)
    }
}

impl<P: MemoryProvider> Inner<P> {
    fn grow_to(this: &Arc<Self>, bytes: u64, stream: Stream) -> Result<u64, AllocError> {
        if this.limit().is_some_and(|limit| bytes > limit) || this.is_beyond_device(bytes) {
            return Err(this.fail(bytes));
        }
        let (before, held) = {
            let mut pages = this.lock_pages();
            (pages.raise_peak(bytes >> UNIT_SHIFT), pages.reserved.current)
        };
        if held >= bytes {
            return Ok(held);
        }
        let grown = Self::make_pieces(this, bytes, stream);
        if let (Err(_), Some(before)) = (&grown, before) {
            this.lock_pages().take_back_peak(bytes >> UNIT_SHIFT, before);
        }
        grown
    }

    fn make_pieces(this: &Arc<Self>, bytes: u64, stream: Stream) -> Result<u64, AllocError> {
        let seat = match cache::with(this.cache_key(stream), |cache| cache.seat) {
            Some(seat) => seat,
            None => Self::join(this, stream)?.0,
        };
        // Blocks of a piece each, which nobody has: they take what is free, and then what is made.
        let mut claimed = Vec::new();
        let outcome = loop {
            let reserved = this.lock_pages().reserved.current;
            if reserved >= bytes {
                break Ok(());
            }
            match this.claim_piece((seat.arena, seat.tag), stream, bytes, bytes - reserved) {
                Ok(node) => claimed.push(node),
                Err(error) => break Err(error),
            }
        };
        for &(arena, node) in &claimed {
            if let Some(arena) = this.arena(arena) {
                arena.lock().heap.release(node);
            }
        }
        // Not of the piece that was wanted last, and not while the others were held.
        outcome.map_err(|error: AllocError| if error.is_out_of_memory() { this.exhausted(bytes) } else { error })?;
        // What a captured stream used can't be asked for.
        if !this.driver.provider().is_capturing(stream).unwrap_or(true) {
            this.note_unused(own_set(seat.tag));
        }
        Ok(this.lock_pages().reserved.current)
    }

    /// A block of a piece of a pool that has had so many `bytes` in use, or of what is `left` to be made: its arena and node.
    fn claim_piece(
        &self,
        (arena, tag): (u32, Tag),
        stream: Stream,
        bytes: u64,
        left: u64,
    ) -> Result<(u32, u32), AllocError> {
        let piece = (bytes / u64::from(self.config.pieces_per_peak)).min(self.config.max_piece).min(left);
        let piece = piece.max(1).next_multiple_of(self.granularity);
        let ask = Ask { tag, ..self.large_ask(Layout::bytes(piece)?, stream)? };
        let free = self.arena(arena).and_then(|owner| owner.lock().heap.allocate(ask));
        match free {
            Some(node) => Ok((arena, node)),
            None => self.miss(arena, stream, (ask, None), piece, Purpose::Block),
        }
    }

    /// Notes of what these streams used last, as far as they are idle, that anybody may have it. Else others would have to ask, and
    /// perhaps wait for what was submitted meanwhile.
    fn note_unused(&self, tags: TagSet) {
        let stamps: Vec<u64> = self.arenas.iter().map(|arena| arena.lock().heap.now()).collect();
        let idle = self.idle_tags(tags);
        for (arena, stamp) in self.arenas.iter().zip(stamps) {
            arena.lock().heap.note_complete(idle, stamp);
        }
    }
}
