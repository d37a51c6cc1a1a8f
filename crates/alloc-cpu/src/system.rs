//! The system's allocator behind the contract: the simplest allocator, and the one that others are measured against.

mod slots;
mod tally;

use std::alloc::Layout as HeapLayout;
use std::cell::RefCell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use alloc_core::{
    AllocError, AllocatorEvent, Block, Device, DeviceAllocator, EventHook, Layout, OutOfMemory, ReleaseError,
    Statistics, Stream, StreamSet, Transfer,
};

use self::slots::{NotThere, Removed, SlotTable};
use self::tally::{ThreadTally, Total};
use crate::HostTransfer;
use crate::capacity::{available_memory, total_memory};
use crate::sys::{heap_allocate, heap_release};

/// Aligned memory from the system's heap ([`std::alloc::System`]), one call for each block.
///
/// It keeps a table of living blocks, so that a block released twice, or never given out, is answered with an error.
/// Statistics take what callers asked for as what is in use and reserved, since the heap does not tell what it holds;
/// the heap has nothing to trim. A zero-size block takes one byte of the heap, which makes its address unique. Blocks
/// that live on when the allocator is dropped stay valid, and leak.
///
/// Table and statistics add 17 ns to the 8 or more that an allocation and its release cost together on a 2-core
/// EPYC.
///
/// ```
/// use alloc_core::{DeviceAllocator, Layout, Stream, StreamSet};
/// use alloc_cpu::SystemAllocator;
///
/// let allocator = SystemAllocator::new();
/// let block = allocator.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
/// assert!(block.address().is_aligned_to(256));
/// // SAFETY: nothing uses the block.
/// unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY)? };
/// // SAFETY: nothing uses the block; that it was released before is an error, not damage.
/// assert!(unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }.is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SystemAllocator {
    shared: Arc<Shared>,
    transfer: HostTransfer,
    hook: Option<Arc<dyn EventHook>>,
}

#[derive(Debug)]
struct Shared {
    id: u32,
    table: SlotTable,
    slots: Mutex<FreeSlots>,
    total: Total,
    tallies: Mutex<Vec<Arc<ThreadTally>>>,
    rejected: AtomicU64,
}

#[derive(Debug, Default)]
struct FreeSlots {
    free: Vec<u32>,
    /// Slots from here on have never been used.
    fresh: u32,
}

/// How many slots a thread takes, or gives back, at once.
const BATCH: usize = 64;

/// One thread's share of one allocator.
#[derive(Debug)]
struct Local {
    id: u32,
    shared: Weak<Shared>,
    free: Vec<u32>,
    tally: Arc<ThreadTally>,
}

thread_local! {
    /// The allocators that this thread has used, the last one first.
    static LOCALS: RefCell<Vec<Local>> = const { RefCell::new(Vec::new()) };
}

impl SystemAllocator {
    /// An allocator with a table and statistics of its own.
    pub fn new() -> Self {
        static NEXT_ID: AtomicU32 = AtomicU32::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let shared = Shared {
            id,
            // The multiplier spreads the first generations of consecutive allocators evenly.
            table: SlotTable::new(id.wrapping_mul(0x9E37_79B9)),
            slots: Mutex::default(),
            total: Total::default(),
            tallies: Mutex::default(),
            rejected: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared), transfer: HostTransfer::shared(), hook: None }
    }

    /// Tells `hook` of refused releases and of want of memory.
    #[must_use]
    pub fn with_event_hook(mut self, hook: Arc<dyn EventHook>) -> Self {
        self.hook = Some(hook);
        self
    }

    /// Copies and fills through `transfer` instead of the process's shared one.
    #[must_use]
    pub fn with_transfer(mut self, transfer: HostTransfer) -> Self {
        self.transfer = transfer;
        self
    }

    fn tell(&self, event: &AllocatorEvent<'_>) {
        if let Some(hook) = &self.hook {
            hook.on_event(Device::CPU, event);
        }
    }

    fn out_of_memory(&self, requested: u64) -> AllocError {
        let in_use = self.shared.gauge().current;
        let mut error = OutOfMemory::new(Device::CPU, requested);
        error.in_use = in_use;
        error.reserved = in_use;
        error.device_free = available_memory();
        error.device_total = total_memory();
        self.tell(&AllocatorEvent::OutOfMemory(&error));
        error.into()
    }
}

impl Default for SystemAllocator {
    fn default() -> Self {
        Self::new()
    }
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, FreeSlots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tallies(&self) -> MutexGuard<'_, Vec<Arc<ThreadTally>>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gauge(&self) -> alloc_core::Gauge {
        let tallies = self.tallies();
        self.total.gauge(tallies.iter().map(|tally| &**tally))
    }

    /// Runs `work` on the calling thread's share. `None`, if the thread is ending or is in the middle of this very
    /// function (its heap allocations may come back to us), goes to those who need no share.
    fn with_local<R>(self: &Arc<Self>, work: impl FnOnce(&mut Local) -> R) -> Option<R> {
        LOCALS
            .try_with(|locals| {
                let mut locals = locals.try_borrow_mut().ok()?;
                if locals.first().is_none_or(|first| first.id != self.id) {
                    self.bring_to_front(&mut locals);
                }
                locals.first_mut().map(work)
            })
            .ok()
            .flatten()
    }

    #[cold]
    fn bring_to_front(self: &Arc<Self>, locals: &mut Vec<Local>) {
        locals.retain(|local| local.shared.strong_count() != 0);
        if let Some(index) = locals.iter().position(|local| local.id == self.id) {
            locals.swap(0, index);
            return;
        }
        let tally = Arc::new(ThreadTally::default());
        self.tallies().push(Arc::clone(&tally));
        let free = Vec::with_capacity(2 * BATCH);
        locals.insert(0, Local { id: self.id, shared: Arc::downgrade(self), free, tally });
    }

    /// Moves up to `count` slots to `free`; none if the table can't grow.
    #[cold]
    fn take_slots(&self, free: &mut Vec<u32>, count: usize) {
        let mut slots = self.slots();
        let keep = slots.free.len().saturating_sub(count);
        free.extend(slots.free.drain(keep..));
        // Handed out from the end, so that low numbers, whose memory is warm, come first.
        let start = slots.fresh;
        let mut end = start;
        while free.len() < count && end != u32::MAX && self.table.prepare(end) {
            end += 1;
            free.push(end - 1);
        }
        slots.fresh = end;
    }

    /// A free slot, with `allocated` bytes counted in; `None` if the table can't grow.
    fn take_slot(self: &Arc<Self>, allocated: u64) -> Option<u32> {
        let from_local = self.with_local(|local| {
            if local.free.is_empty() {
                self.take_slots(&mut local.free, BATCH);
            }
            let slot = local.free.pop()?;
            local.tally.add(allocated, &self.total);
            Some(slot)
        });
        from_local.unwrap_or_else(|| {
            let mut one = Vec::with_capacity(1);
            self.take_slots(&mut one, 1);
            let slot = one.pop()?;
            self.total.add(allocated);
            Some(slot)
        })
    }

    /// Takes a slot back and counts `released` bytes out.
    fn give_slot(self: &Arc<Self>, removed: Removed, released: u64) {
        let given = self.with_local(|local| {
            local.tally.sub(released, &self.total);
            if removed.reusable {
                if local.free.len() >= 2 * BATCH {
                    self.slots().free.extend(local.free.drain(..BATCH));
                }
                local.free.push(removed.slot);
            }
        });
        if given.is_none() {
            self.total.sub(released);
            if removed.reusable {
                self.slots().free.push(removed.slot);
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.slots().free.append(&mut self.free);
            let mut tallies = shared.tallies();
            self.tally.close(&shared.total);
            tallies.retain(|tally| !Arc::ptr_eq(tally, &self.tally));
        }
    }
}

// SAFETY: a block is one allocation of the system's heap, of its size and alignment; the table lets it be freed once. A
// host's work is done when it is submitted. What is not released stays.
unsafe impl DeviceAllocator for SystemAllocator {
    fn device(&self) -> Device {
        Device::CPU
    }

    fn allocate(&self, layout: Layout, _stream: Stream) -> Result<Block, AllocError> {
        let heap = heap_layout(layout)?;
        let Some(address) = heap_allocate(heap) else { return Err(self.out_of_memory(layout.size())) };
        let block = self.shared.take_slot(layout.size()).and_then(|slot| {
            // A slot that was taken is prepared, so this does not fail.
            self.shared.table.insert(slot, address as u64, layout.size(), layout.align())
        });
        block.ok_or_else(|| {
            // SAFETY: the memory was allocated just now with this layout, and nobody has seen it.
            unsafe { heap_release(address, heap) };
            self.out_of_memory(layout.size())
        })
    }

    unsafe fn release(&self, block: Block, _stream: Stream, _uses: &StreamSet) -> Result<(), ReleaseError> {
        let device = Device::CPU;
        let removed = self.shared.table.remove(&block).map_err(|reason| {
            let error = match reason {
                NotThere::Foreign => ReleaseError::Foreign { device, block },
                NotThere::Stale => ReleaseError::Stale { device, block },
            };
            self.shared.rejected.fetch_add(1, Ordering::Relaxed);
            self.tell(&AllocatorEvent::RejectedRelease(&error));
            error
        })?;
        // The table says that the block was given out with this size and alignment, so they make a layout again.
        let layout = Layout::new(block.size(), removed.align).map_err(AllocError::from).and_then(heap_layout);
        if let Ok(layout) = layout {
            // SAFETY: the block was in the table, so its address came from the heap with this layout and has not
            // been given back, and now that it is out nobody else gives it back; the caller uses it no more.
            unsafe { heap_release(block.address().get() as usize, layout) };
        }
        self.shared.give_slot(removed, block.size());
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        let gauge = self.shared.gauge();
        let mut statistics = Statistics::default();
        statistics.requested = gauge;
        statistics.in_use = gauge;
        statistics.reserved = gauge;
        statistics.rejected_releases = self.shared.rejected.load(Ordering::Relaxed);
        statistics
    }

    fn trim(&self, _keep: u64) -> u64 {
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        &self.transfer
    }
}

/// The layout for the heap, which knows no empty blocks.
fn heap_layout(layout: Layout) -> Result<HeapLayout, AllocError> {
    let too_large =
        || AllocError::TooLarge { device: Device::CPU, requested: layout.size(), maximum: isize::MAX as u64 };
    let size = usize::try_from(layout.size().max(1)).map_err(|_| too_large())?;
    let align = usize::try_from(layout.align()).map_err(|_| too_large())?;
    HeapLayout::from_size_align(size, align).map_err(|_| too_large())
}
