//! The simplest allocator that keeps every promise, and the same one with a flaw that the suite has to find.

use std::alloc::Layout as HostLayout;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use alloc_core::{
    Address, AllocError, Block, BlockId, Device, DeviceAllocator, Layout, OutOfMemory, ReleaseError, Statistics,
    Stream, StreamSet, Transfer,
};

use super::transfer::LateTransfer;

/// What is wrong with a [`Reference`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Hands a living block's memory out again, now and then.
    HandsOutTwice,
    /// Never aligns to more than a page.
    ForgetsAlignment,
    /// Says that a block just above a power of two is as large as the power.
    RoundsDown,
    /// Gives all blocks of no bytes the same address.
    SharesZeroAddress,
    /// Calculates sizes in 32 bits.
    WrapsSizes,
    /// Says in an error that one byte was asked for.
    ForgetsRequest,
    /// Overwrites the oldest living block, now and then.
    Scribbles,
    /// Does not count every release.
    LosesBytes,
    /// Accepts a second release.
    AcceptsDoubleRelease,
    /// Says of a block released before that it is foreign.
    BlamesOthers,
    /// Finds blocks by their address alone.
    IgnoresGeneration,
    /// Finds blocks by their id alone.
    IgnoresParts,
    /// Puts a block released by another thread into the free list twice.
    RacesRemoteReleases,
    /// Loses the memory of a block released by another thread.
    LosesRemoteReleases,
    /// Takes a block back on its own stream only.
    RefusesOtherStreams,
    /// Reuses memory at once on any stream.
    ReusesEarly,
    /// Does not look at the streams that a release names.
    IgnoresUses,
    /// Forgets the blocks of a retired stream.
    ForgetsRetired,
    /// Has no end.
    IgnoresCapacity,
    /// Loses memory at each refusal.
    LosesOnRefusal,
    /// Does not give one stream's free memory to another before it refuses.
    HoardsByStream,
    /// Says in an error that nothing is in use.
    ForgetsInUse,
    /// Trims nothing.
    KeepsOnTrim,
    /// Says that it trimmed more than it did.
    OverstatesTrim,
    /// Says that it trimmed less than it did.
    UnderstatesTrim,
    /// Says so twice only, as if others had it give memory back meanwhile. That is no flaw.
    TwiceRelieved,
    /// Clears blocks in use when it trims.
    TrimsInUse,
    /// Caches blocks by thread for all allocators together.
    RemembersDead,
}

/// A host allocator with a free list of blocks by size.
#[derive(Debug)]
pub struct Reference {
    flaw: Option<Flaw>,
    capacity: u64,
    books: Mutex<Books>,
    transfer: LateTransfer,
}

#[derive(Debug, Default)]
struct Books {
    living: BTreeMap<u64, Living>,
    free: HashMap<(u64, u64), Vec<Free>>,
    /// All memory from the host, by address.
    owned: HashMap<u64, HostLayout>,
    next_id: u64,
    releases: u64,
    lost: u64,
    trims: u64,
    statistics: Statistics,
}

#[derive(Clone, Copy, Debug)]
struct Living {
    block: Block,
    footprint: u64,
    align: u64,
    stream: Stream,
    thread: ThreadId,
}

#[derive(Clone, Copy, Debug)]
struct Free {
    address: u64,
    stream: Stream,
}

thread_local! {
    static REMEMBERED: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

const REMEMBERED_SIZE: u64 = 4096;

impl Reference {
    pub fn new(capacity: u64) -> Self {
        Self { flaw: None, capacity, books: Mutex::default(), transfer: LateTransfer::default() }
    }

    pub fn flawed(capacity: u64, flaw: Flaw) -> Self {
        let mut reference = Self::new(capacity);
        reference.flaw = Some(flaw);
        reference
    }

    fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn out_of_memory(&self, books: &Books, layout: Layout) -> AllocError {
        let in_use = books.statistics.in_use.current;
        let requested = if self.has(Flaw::ForgetsRequest) { 1 } else { layout.size() };
        let mut figures = OutOfMemory::new(Device::CPU, requested);
        figures.in_use = if self.has(Flaw::ForgetsInUse) { 0 } else { in_use };
        figures.reserved = books.statistics.reserved.current;
        figures.limit = Some(self.capacity);
        figures.into()
    }

    /// Memory of just this size: free memory, or the host's.
    fn find(&self, books: &mut Books, layout: Layout, footprint: u64, align: u64, stream: Stream) -> Option<u64> {
        if self.has(Flaw::SharesZeroAddress) && layout.size() == 0 {
            return Some(align);
        }
        if self.has(Flaw::HandsOutTwice) && books.next_id % 20 == 19 {
            let fits = |living: &&Living| living.footprint >= footprint && living.align >= align;
            if let Some(living) = books.living.values().find(fits) {
                return Some(living.block.address().get());
            }
        }
        if let Some(free) = books.free.get_mut(&(footprint, align)).and_then(Vec::pop) {
            return Some(free.address);
        }
        if !self.has(Flaw::IgnoresCapacity) && !books.has_room(self.capacity, footprint) {
            let hoards = self.has(Flaw::HoardsByStream);
            books.give_back(0, |free| !hoards || free.stream == stream);
            if !books.has_room(self.capacity, footprint) {
                if self.has(Flaw::LosesOnRefusal) {
                    books.lost += self.capacity / 100;
                }
                return None;
            }
        }
        books.take(footprint, align)
    }
}

impl Books {
    fn has_room(&self, capacity: u64, footprint: u64) -> bool {
        capacity.saturating_sub(self.lost).saturating_sub(self.statistics.reserved.current) >= footprint
    }

    fn take(&mut self, footprint: u64, align: u64) -> Option<u64> {
        let layout = HostLayout::from_size_align(footprint as usize, align as usize).ok()?;
        // SAFETY: the footprint is not zero.
        let pointer = unsafe { std::alloc::alloc(layout) };
        if pointer.is_null() {
            return None;
        }
        let address = pointer.expose_provenance() as u64;
        self.owned.insert(address, layout);
        self.statistics.reserved.add(footprint);
        Some(address)
    }

    fn give_back(&mut self, keep: u64, chosen: impl Fn(&Free) -> bool) {
        let Self { free, owned, statistics, .. } = self;
        for free in free.values_mut() {
            free.retain(|free| {
                if statistics.reserved.current <= keep || !chosen(free) {
                    return true;
                }
                if let Some(layout) = owned.remove(&free.address) {
                    statistics.reserved.sub(layout.size() as u64);
                    // SAFETY: the memory is of this layout and no block has it, since it was free.
                    unsafe { std::alloc::dealloc(pointer(free.address), layout) };
                }
                false
            });
        }
    }
}

/// Not zero, and with room to grow a little, for the flaw that hands out the same memory twice.
fn footprint(size: u64) -> u64 {
    (size + 1).next_multiple_of(64)
}

fn pointer(address: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address as usize)
}

// SAFETY: without a flaw, memory is the heap's and in one block at a time, and reused once the work of all streams named at
// its release is done. A flaw breaks a promise on purpose; only the suite uses such an allocator, through raw addresses
// of memory that the heap has not been given back.
unsafe impl DeviceAllocator for Reference {
    fn device(&self) -> Device {
        Device::CPU
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let mut books = self.books();
        if self.has(Flaw::RemembersDead)
            && layout.size() == REMEMBERED_SIZE
            && let Some(block) = REMEMBERED.with_borrow_mut(Vec::pop)
        {
            books.statistics.requested.add(block.size());
            books.statistics.in_use.add(footprint(block.size()));
            return Ok(block);
        }
        let size = if self.has(Flaw::WrapsSizes) { u64::from(layout.size() as u32) } else { layout.size() };
        if size > self.capacity {
            let requested = if self.has(Flaw::ForgetsRequest) { 1 } else { layout.size() };
            return Err(AllocError::TooLarge { device: Device::CPU, requested, maximum: self.capacity });
        }
        let footprint = footprint(size);
        let most = if self.has(Flaw::ForgetsAlignment) { 4096 } else { u64::MAX };
        let align = layout.align().min(most);
        let Some(mut address) = self.find(&mut books, layout, footprint, align, stream) else {
            return Err(self.out_of_memory(&books, layout));
        };
        if align < layout.align() && address.is_multiple_of(layout.align()) {
            // Host memory is aligned by chance at times; the flaw is there all the same.
            address += 1;
        }
        let rounded = layout.size().max(2) - 1;
        let size = if self.has(Flaw::RoundsDown) && rounded.is_power_of_two() { rounded } else { layout.size() };
        let id = books.next_id;
        books.next_id += 1;
        let block = Block::from_parts(Address::new(address), size, BlockId::from_bits(id));
        books.living.insert(id, Living { block, footprint, align, stream, thread: thread::current().id() });
        books.statistics.requested.add(layout.size());
        books.statistics.in_use.add(footprint);
        Ok(block)
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        let mut books = self.books();
        if self.has(Flaw::RemembersDead)
            && block.size() == REMEMBERED_SIZE
            && REMEMBERED.with_borrow(|blocks| blocks.len() < 2)
        {
            books.statistics.requested.sub(block.size());
            books.statistics.in_use.sub(footprint(block.size()));
            REMEMBERED.with_borrow_mut(|blocks| blocks.push(block));
            return Ok(());
        }
        let mut id = block.id().to_bits();
        if self.has(Flaw::IgnoresGeneration) {
            let same = |living: &&Living| living.block.address() == block.address();
            id = books.living.values().find(same).map_or(id, |living| living.block.id().to_bits());
        }
        let alike = |own: &Living| {
            (own.block.address(), own.block.size()) == (block.address(), block.size()) || self.has(Flaw::IgnoresParts)
        };
        let living = match books.living.get(&id).copied() {
            Some(living) if alike(&living) => living,
            None if id < books.next_id && self.has(Flaw::AcceptsDoubleRelease) => return Ok(()),
            other => {
                books.statistics.rejected_releases += 1;
                let stale = other.is_none() && id < books.next_id && !self.has(Flaw::BlamesOthers);
                let device = Device::CPU;
                return Err(if stale {
                    ReleaseError::Stale { device, block }
                } else {
                    ReleaseError::Foreign { device, block }
                });
            }
        };
        if self.has(Flaw::RefusesOtherStreams) && stream != living.stream {
            return Err(ReleaseError::Foreign { device: Device::CPU, block });
        }
        books.living.remove(&id);
        books.releases += 1;
        if !(self.has(Flaw::LosesBytes) && books.releases % 10 == 9) {
            books.statistics.requested.sub(block.size());
        }
        books.statistics.in_use.sub(living.footprint);
        let named = |other| other == living.stream || other == stream || uses.contains(other);
        match self.flaw {
            Some(Flaw::ReusesEarly) => {}
            Some(Flaw::IgnoresUses) => self.transfer.finish(|other| other == living.stream),
            _ => self.transfer.finish(named),
        }
        if self.has(Flaw::Scribbles)
            && books.releases % 16 == 15
            && let Some(living) = books.living.values().find(|living| living.block.size() > 0)
        {
            // SAFETY: the flaw is only in the contents: the byte lies in living memory.
            unsafe {
                let byte = pointer(living.block.address().get());
                *byte = (*byte).wrapping_add(1);
            }
        }
        let shared = self.has(Flaw::HandsOutTwice)
            && books.living.values().any(|other| other.block.address() == block.address());
        let remote = living.thread != thread::current().id();
        let copies = match self.flaw {
            Some(Flaw::SharesZeroAddress) if block.size() == 0 => 0,
            Some(Flaw::LosesRemoteReleases) if remote => 0,
            Some(Flaw::RacesRemoteReleases) if remote => 2,
            _ if shared => 0,
            _ => 1,
        };
        let free = Free { address: living.block.address().get(), stream };
        let list = books.free.entry((living.footprint, living.align)).or_default();
        list.extend(std::iter::repeat_n(free, copies));
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        self.books().statistics
    }

    fn trim(&self, keep: u64) -> u64 {
        self.transfer.finish(|_| true);
        let mut books = self.books();
        let before = books.statistics.reserved.current;
        if !self.has(Flaw::KeepsOnTrim) {
            books.give_back(keep, |_| true);
        }
        if self.has(Flaw::TrimsInUse) {
            for living in books.living.values() {
                // SAFETY: the flaw is only in the contents: the bytes are those of living memory.
                unsafe { pointer(living.block.address().get()).write_bytes(0, living.footprint as usize) };
            }
        }
        books.trims += 1;
        let given_back = before - books.statistics.reserved.current;
        if self.has(Flaw::UnderstatesTrim) || self.has(Flaw::TwiceRelieved) && books.trims <= 2 {
            return given_back / 2;
        }
        given_back + u64::from(self.has(Flaw::OverstatesTrim))
    }

    fn transfer(&self) -> &dyn Transfer {
        &self.transfer
    }

    fn retire_stream(&self, stream: Stream) {
        if self.has(Flaw::ForgetsRetired) {
            self.books().living.retain(|_, living| living.stream != stream);
        }
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        if self.has(Flaw::RemembersDead) {
            // A thread may still have some of it, and the flaw must not crash the test.
            return;
        }
        for (address, layout) in self.books().owned.drain() {
            // SAFETY: the memory is of this layout, and an allocator's blocks end with it.
            unsafe { std::alloc::dealloc(pointer(address), layout) };
        }
    }
}
