//! What PyTorch needs beyond allocate and free: private pools for graphs and `MemPool`s, and who allocates from which.

pub(crate) mod filter;
pub(crate) mod throw;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use alloc_core::{
    AllocError, AllocatorHandle, Block, Device, DeviceAllocator, Layout, Snapshot, Stream, StreamSet, forward_allocator,
};
use alloc_cuda::PrivatePool;

use crate::failure::Failure;
use crate::heaps::{self, Heap, POOLS};
use crate::index::{Entry, Owner};
use crate::memory;
use filter::Filter;

/// PyTorch's name of a pool of memory: two numbers.
pub(crate) type PoolId = (u64, u64);

/// A private pool, as long as it has holders or living blocks.
#[derive(Debug)]
struct Private {
    id: PoolId,
    ordinal: u16,
    pool: Arc<PrivatePool>,
    living: AtomicU64,
}

impl Private {
    fn has_free_memory(&self) -> bool {
        let figures = self.pool.statistics();
        figures.reserved.current > figures.in_use.current
    }
}

/// A heap as private pools have it: what they take from it no caller has asked for.
#[derive(Debug)]
struct Source(&'static Heap);

// SAFETY: all is answered by the heap's allocator.
unsafe impl DeviceAllocator for Source {
    fn device(&self) -> Device {
        self.0.device
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let block = self.0.allocator().allocate(layout, stream)?;
        self.0.live.asked_by_a_pool(block.size());
        Ok(block)
    }

    forward_allocator!(self => self.0.allocator(); release, statistics, trim, grow_to, transfer, retire_stream);
}

#[derive(Debug)]
struct Slot {
    private: Arc<Private>,
    /// Graphs and pool objects that may still use the memory.
    holders: u32,
}

impl Slot {
    /// Whether nobody can use the pool any more.
    fn is_idle(&self) -> bool {
        self.holders == 0 && self.private.living.load(Ordering::Acquire) == 0
    }
}

/// Allocations that are to be served from a private pool at present.
#[derive(Debug)]
struct Route {
    id: PoolId,
    ordinal: u16,
    filter: Arc<Filter>,
}

#[derive(Debug)]
struct State {
    /// By number of the owner, less [`POOLS`].
    slots: Vec<Option<Slot>>,
    routes: Vec<Route>,
}

static STATE: Mutex<State> = Mutex::new(State { slots: Vec::new(), routes: Vec::new() });
/// How many routes there are: none, nearly always.
static ROUTES: AtomicUsize = AtomicUsize::new(0);

/// Who gives memory back waits for devices, which ends captures; who begins a route is about to capture. They exclude each other.
/// Taken before [`STATE`].
static WAITING: Mutex<()> = Mutex::new(());

fn lock() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn exclude_waiting() -> MutexGuard<'static, ()> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn find(&self, ordinal: u16, id: PoolId) -> Option<usize> {
        let is_it = |slot: &Option<Slot>| {
            slot.as_ref().is_some_and(|slot| slot.private.id == id && slot.private.ordinal == ordinal)
        };
        self.slots.iter().position(is_it)
    }

    fn by_owner(&self, owner: Owner) -> Option<&Slot> {
        self.slots.get(usize::from(owner.checked_sub(POOLS)?))?.as_ref()
    }

    /// The pool of that name, made if need be, with one more holder.
    fn retain(&mut self, ordinal: u16, id: PoolId) -> Result<(), Failure> {
        if let Some(slot) = self.find(ordinal, id).and_then(|place| self.slots[place].as_mut()) {
            slot.holders += 1;
            return Ok(());
        }
        let source: AllocatorHandle = Arc::new(Source(heaps::heap(Device::cuda(ordinal))?)).into();
        let pool = Arc::new(PrivatePool::new(ordinal, source)?);
        let private = Arc::new(Private { id, ordinal, pool, living: AtomicU64::new(0) });
        let slot = Some(Slot { private, holders: 1 });
        match self.slots.iter().position(Option::is_none) {
            Some(place) => self.slots[place] = slot,
            None if self.slots.len() < usize::from(Owner::MAX - POOLS) => self.slots.push(slot),
            None => return Err(Failure::InvalidArgument { what: "number of private pools", value: id.1 as i64 }),
        }
        Ok(())
    }

    /// Takes out the pools that nobody can use any more.
    fn take_idle(&mut self) -> Vec<Slot> {
        self.slots.iter_mut().filter_map(|slot| slot.take_if(|slot| slot.is_idle())).collect()
    }

    /// The pools that nobody allocates from any more, where blocks live: the workspace of a library, say, whose handle
    /// was first used during a capture.
    fn abandoned(&self) -> Vec<Arc<Private>> {
        let slots = self.slots.iter().flatten().filter(|slot| slot.holders == 0);
        slots.map(|slot| Arc::clone(&slot.private)).filter(|private| private.has_free_memory()).collect()
    }
}

/// Gives back the memory that nobody can use any more: pools without holders and blocks, and what is free in pools
/// without holders. Nothing where there are routes, as work may be captured and devices would have to be waited for. Captures
/// that began without a route are not known, unless this process's Rust code began them through `alloc_cuda`.
pub(crate) fn sweep() {
    let _no_route_begins = exclude_waiting();
    let (idle, abandoned) = {
        let mut state = lock();
        if !state.routes.is_empty() {
            return;
        }
        (state.take_idle(), state.abandoned())
    };
    drop(idle);
    alloc_cuda::give_back_put_off();
    for private in abandoned {
        // SAFETY: without holders there is no graph left that could be launched.
        unsafe { private.pool.give_back_unused() };
    }
}

/// Serves the allocations that `filter` names from a private pool, from now on. No device is waited for as long.
pub(crate) fn begin(ordinal: u16, id: PoolId, filter: Filter) -> Result<(), Failure> {
    let _nobody_waits = exclude_waiting();
    let mut state = lock();
    state.retain(ordinal, id)?;
    state.routes.push(Route { id, ordinal, filter: Arc::new(filter) });
    ROUTES.store(state.routes.len(), Ordering::Release);
    Ok(())
}

/// Ends what [`begin`] began last for this pool. The pool stays.
pub(crate) fn end(ordinal: u16, id: PoolId) -> Result<(), Failure> {
    let route = {
        let mut state = lock();
        let route = state.routes.iter().rposition(|route| route.id == id && route.ordinal == ordinal);
        let route = route.map(|route| state.routes.remove(route));
        ROUTES.store(state.routes.len(), Ordering::Release);
        route
    };
    sweep();
    route.map(drop).ok_or(Failure::InvalidArgument { what: "pool that nothing is allocated to", value: id.1 as i64 })
}

/// One more holder of a pool, which is made if need be.
pub(crate) fn retain(ordinal: u16, id: PoolId) -> Result<(), Failure> {
    lock().retain(ordinal, id)
}

/// One holder less: the memory goes back once there is none, and all blocks are freed.
pub(crate) fn release_pool(ordinal: u16, id: PoolId) -> Result<(), Failure> {
    {
        let mut state = lock();
        let slot = state.find(ordinal, id).and_then(|place| state.slots[place].as_mut());
        let slot = slot.filter(|slot| slot.holders > 0);
        let unknown = Failure::InvalidArgument { what: "pool that nobody holds", value: id.1 as i64 };
        slot.ok_or(unknown)?.holders -= 1;
    }
    sweep();
    Ok(())
}

/// How many hold the pool.
pub(crate) fn holders(ordinal: u16, id: PoolId) -> u32 {
    let state = lock();
    state.find(ordinal, id).and_then(|place| state.slots[place].as_ref()).map_or(0, |slot| slot.holders)
}

/// Whether somebody allocates from a private pool.
#[inline(always)]
pub(crate) fn is_routing() -> bool {
    ROUTES.load(Ordering::Acquire) != 0
}

/// The private pools that an allocation on a device may come from, as their filters say.
#[derive(Debug)]
pub(crate) struct Candidates {
    ordinal: u16,
    pools: Vec<(PoolId, Arc<Filter>)>,
}

impl Candidates {
    pub(crate) fn of(ordinal: u16) -> Self {
        let state = lock();
        let here = state.routes.iter().filter(|route| route.ordinal == ordinal);
        Self { ordinal, pools: here.map(|route| (route.id, Arc::clone(&route.filter))).collect() }
    }

    /// The pool that an allocation of the calling thread on the stream is to come from, if it is a private one. Filters ask the
    /// driver, and throw exceptions of C++ if that refuses: so no lock is held here, and nobody above may catch panics.
    pub(crate) fn choose(self, handle: u64) -> Option<PoolId> {
        self.pools.iter().find(|(_, filter)| filter.accepts(self.ordinal, handle)).map(|(id, _)| *id)
    }
}

/// A block for PyTorch, of the device's own pool.
#[inline(always)]
pub(crate) fn allocate(ordinal: u16, size: u64, handle: u64) -> Result<u64, Failure> {
    let device = Device::cuda(ordinal);
    let heap = heaps::heap(device)?;
    memory::allocate(heap, size, memory::ALIGN, memory::stream(device, handle))
}

/// A pool that has a block more than it knows of, so that it is not taken for idle.
fn enter(ordinal: u16, id: PoolId) -> Option<(Owner, Arc<Private>)> {
    let state = lock();
    let place = state.find(ordinal, id)?;
    let private = Arc::clone(&state.slots[place].as_ref()?.private);
    private.living.fetch_add(1, Ordering::AcqRel);
    Some((POOLS + place as Owner, private))
}

/// A block of a private pool; of the device's own if that is gone.
pub(crate) fn allocate_from(id: PoolId, ordinal: u16, size: u64, handle: u64) -> Result<u64, Failure> {
    let device = Device::cuda(ordinal);
    let (heap, stream) = (heaps::heap(device)?, memory::stream(device, handle));
    let Some((owner, private)) = enter(ordinal, id) else { return allocate(ordinal, size, handle) };
    let address = memory::allocate_from(heap, (owner, &*private.pool), size, stream);
    if address.is_err() {
        private.living.fetch_sub(1, Ordering::AcqRel);
    }
    address
}

/// Gives a block back to its private pool.
///
/// # Safety
/// As [`DeviceAllocator::release`]; the block was taken out of the index.
pub(crate) unsafe fn release(entry: &Entry, stream: Stream, uses: &StreamSet) -> Result<(), Failure> {
    let address = entry.block.address().get();
    let private = lock().by_owner(entry.owner).map(|slot| Arc::clone(&slot.private));
    let private = private.ok_or(Failure::UnknownPointer { address })?;
    heaps::heap(Device::cuda(private.ordinal))?.live.sub(entry.block.size());
    // SAFETY: the caller's promise.
    let released = unsafe { private.pool.release(entry.block, stream, uses) };
    let last = private.living.fetch_sub(1, Ordering::AcqRel) == 1;
    drop(private);
    if last {
        sweep();
    }
    Ok(released?)
}

/// The device of a private pool.
pub(crate) fn device_of(owner: Owner) -> Option<Device> {
    lock().by_owner(owner).map(|slot| Device::cuda(slot.private.ordinal))
}

/// The same without waiting: `None` as well if somebody else has the books.
pub(crate) fn device_if_free(owner: Owner) -> Option<Device> {
    let state = match STATE.try_lock() {
        Ok(state) => state,
        Err(TryLockError::Poisoned(error)) => error.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    state.by_owner(owner).map(|slot| Device::cuda(slot.private.ordinal))
}

/// PyTorch's name of a private pool.
pub(crate) fn id_of(owner: Owner) -> Option<PoolId> {
    lock().by_owner(owner).map(|slot| slot.private.id)
}

/// Where the memory of a device's private pools is.
pub(crate) fn snapshots(ordinal: u16) -> Vec<(PoolId, Snapshot)> {
    let of_device = |slot: &&Slot| slot.private.ordinal == ordinal;
    // Each has a block more than it knows of meanwhile, so that nobody has to give it back here who comes last.
    let enter = |slot: &Slot| {
        slot.private.living.fetch_add(1, Ordering::AcqRel);
        Arc::clone(&slot.private)
    };
    let pools: Vec<_> = lock().slots.iter().flatten().filter(of_device).map(enter).collect();
    let snapshots = pools.iter().map(|private| (private.id, private.pool.snapshot())).collect();
    for private in pools {
        private.living.fetch_sub(1, Ordering::AcqRel);
    }
    let is_any_left = lock().slots.iter().flatten().any(Slot::is_idle);
    if is_any_left {
        sweep();
    }
    snapshots
}

/// Limits the device's pool to a fraction of the device's memory.
pub(crate) fn set_fraction(ordinal: u16, fraction: f64) -> Result<(), Failure> {
    if !(0.0..=1.0).contains(&fraction) {
        return Err(Failure::Fraction { fraction });
    }
    let heap = heaps::heap(Device::cuda(ordinal))?;
    let foreign = Failure::Foreign { what: "the limit", device: heap.device };
    let total = heap.memory().ok_or(foreign)?.total;
    heap.set_limit(Some((total as f64 * fraction) as u64))
}

/// Gives back all memory that is free on any CUDA device.
pub(crate) fn empty_cache() {
    sweep();
    for heap in heaps::all().filter(|heap| heap.device.kind() == alloc_core::DeviceKind::CUDA) {
        heap.allocator().trim(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_may_not_wait_for_the_books_does_not() {
        let (asks, answer) = mpsc::channel();
        let held = lock();
        std::thread::spawn(move || asks.send(device_if_free(POOLS)));
        assert_eq!(answer.recv_timeout(Duration::from_secs(20)), Ok(None));
        drop(held);
    }
}
