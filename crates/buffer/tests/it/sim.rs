//! A simulated machine: allocators over the system's heap whose transfers keep a log, and devices whose work waits in
//! the queues of streams until somebody waits for it, so that a use that came too early or too late shows.
//!
//! The machine notes as violations: work on memory that is not living, two pieces of work on the same bytes without
//! an order between them, and releases that don't name a stream whose work still uses the block.

use std::alloc::{Layout as HeapLayout, alloc, dealloc};
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use alloc_core::*;

pub const GPU: Device = Device::new(DeviceKind::new(77, false), 0);
pub const GPU_PEER: Device = Device::new(DeviceKind::new(77, false), 1);
pub const PINNED: Device = Device::new(DeviceKind::new(78, true), 0);
pub const OTHER: Device = Device::new(DeviceKind::new(99, false), 0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Copies at once, between all memories that the processor reaches, and knows no streams.
    Host,
    /// Copies among GPUs, pinned and host memory in the order of streams.
    Gpu,
    /// Another vendor's device, with streams of its own; it reaches the GPU's memory too.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Allocate { device: Device, size: u64, stream: Stream },
    Release { device: Device, size: u64, stream: Stream, uses: Vec<Stream> },
    Copy { by: Backend, from: Device, to: Device, bytes: u64, stream: Stream },
    Fill { by: Backend, to: Device, bytes: u64, stream: Stream },
    Synchronize { by: Backend, stream: Stream },
    Order { by: Backend, stream: Stream, after: Stream },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Allocate,
    Release,
    Copy,
    Fill,
    Synchronize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    Error,
    Panic,
}

type Queue = (Backend, Stream);

#[derive(Clone, Debug)]
enum Work {
    Copy { from: u64, to: u64, bytes: u64 },
    Fill { to: u64, bytes: u64, value: u8 },
    Wait { on: Queue, up_to: u64 },
}

impl Work {
    fn reads(&self) -> Option<Range<u64>> {
        match *self {
            Self::Copy { from, bytes, .. } => Some(from..from + bytes),
            _ => None,
        }
    }

    fn writes(&self) -> Option<Range<u64>> {
        match *self {
            Self::Copy { to, bytes, .. } | Self::Fill { to, bytes, .. } => Some(to..to + bytes),
            Self::Wait { .. } => None,
        }
    }

    fn touches(&self, range: &Range<u64>) -> bool {
        self.reads().into_iter().chain(self.writes()).any(|used| overlap(&used, range))
    }

    fn races_with(&self, other: &Self) -> bool {
        let meet = |a: Option<Range<u64>>, b: Option<Range<u64>>| a.zip(b).is_some_and(|(a, b)| overlap(&a, &b));
        meet(self.writes(), other.writes()) || meet(self.writes(), other.reads()) || meet(self.reads(), other.writes())
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[derive(Debug)]
struct Slot {
    address: u64,
    heap: HeapLayout,
    size: u64,
    device: Device,
    backend: Backend,
    birth: Stream,
    released: bool,
}

impl Slot {
    fn range(&self) -> Range<u64> {
        self.address..self.address + self.size.max(1)
    }
}

#[derive(Debug, Default)]
struct World {
    slots: HashMap<u64, Slot>,
    next_id: u64,
    /// Work not yet done, with its position in the stream.
    queues: HashMap<Queue, VecDeque<(u64, Work)>>,
    submitted: HashMap<Queue, u64>,
    log: Vec<Event>,
    failures: HashMap<Call, (u32, Failure)>,
    violations: Vec<String>,
}

impl World {
    /// Does the work of a queue up to a position, and what it waits for.
    fn run(&mut self, queue: Queue, up_to: u64) {
        while let Some((at, _)) = self.queues.get(&queue).and_then(VecDeque::front) {
            if *at > up_to {
                break;
            }
            let (_, work) = self.queues.get_mut(&queue).and_then(VecDeque::pop_front).unwrap();
            self.perform(work);
        }
        self.free_idle();
    }

    fn perform(&mut self, work: Work) {
        match work {
            // SAFETY: the memory is from the heap or a borrowed slice, as `Transfer` asks; blocks with work waiting
            // are not freed before it is done.
            Work::Copy { from, to, bytes } => unsafe {
                let from = std::ptr::with_exposed_provenance::<u8>(from as usize);
                let to = std::ptr::with_exposed_provenance_mut::<u8>(to as usize);
                std::ptr::copy_nonoverlapping(from, to, bytes as usize);
            },
            // SAFETY: as above.
            Work::Fill { to, bytes, value } => unsafe {
                std::ptr::with_exposed_provenance_mut::<u8>(to as usize).write_bytes(value, bytes as usize);
            },
            Work::Wait { on, up_to } => self.run(on, up_to),
        }
    }

    fn free_idle(&mut self) {
        let busy: Vec<Work> = self.queues.values().flatten().map(|(_, work)| work.clone()).collect();
        self.slots.retain(|_, slot| {
            let keep = !slot.released || busy.iter().any(|work| work.touches(&slot.range()));
            if !keep {
                // SAFETY: allocated with this layout, released once, and no work waits that uses it.
                unsafe { dealloc(std::ptr::with_exposed_provenance_mut(slot.address as usize), slot.heap) };
            }
            keep
        });
    }

    /// Whether work submitted to `queue` now comes after the work at `target`.
    fn is_after(&self, queue: Queue, up_to: u64, target: (Queue, u64)) -> bool {
        if queue == target.0 && target.1 <= up_to {
            return true;
        }
        self.queues.get(&queue).is_some_and(|waiting| {
            waiting.iter().filter(|(at, _)| *at <= up_to).any(|(_, work)| match work {
                Work::Wait { on, up_to } => self.is_after(*on, *up_to, target),
                _ => false,
            })
        })
    }

    fn submit(&mut self, queue: Queue, work: Work) {
        let mut races = Vec::new();
        for (other, waiting) in &self.queues {
            for (at, earlier) in waiting {
                if work.races_with(earlier) && !self.is_after(queue, u64::MAX, (*other, *at)) {
                    races.push(format!("{work:?} on {queue:?} races with {earlier:?} on {other:?}"));
                }
            }
        }
        for used in work.reads().into_iter().chain(work.writes()) {
            if self.slots.values().any(|slot| slot.released && overlap(&slot.range(), &used)) {
                races.push(format!("{work:?} on {queue:?} uses released memory"));
            }
        }
        self.violations.extend(races);
        let position = self.submitted.entry(queue).or_default();
        *position += 1;
        self.queues.entry(queue).or_default().push_back((*position, work));
    }

    /// Takes an injected failure of a call, if it is due.
    fn fails(&mut self, call: Call) -> Option<Failure> {
        let (calls, failure) = self.failures.get_mut(&call)?;
        *calls -= 1;
        let failure = (*calls == 0).then_some(*failure)?;
        self.failures.remove(&call);
        Some(failure)
    }
}

/// The machine; clones are handles to the same one.
#[derive(Clone, Debug, Default)]
pub struct Machine(Arc<Mutex<World>>);

impl Machine {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn allocator(&self, device: Device) -> Arc<SimAllocator> {
        let backend = match device.kind().code() {
            1 => Backend::Host,
            77 | 78 => Backend::Gpu,
            _ => Backend::Other,
        };
        Arc::new(SimAllocator { device, transfer: SimTransfer { machine: self.clone(), backend } })
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets the `nth` next call of a kind fail (1 is the next one).
    pub fn fail(&self, call: Call, nth: u32, failure: Failure) {
        self.world().failures.insert(call, (nth, failure));
    }

    pub fn log(&self) -> Vec<Event> {
        self.world().log.clone()
    }

    pub fn clear_log(&self) {
        self.world().log.clear();
    }

    pub fn releases(&self) -> Vec<(Device, Stream, Vec<Stream>)> {
        let release = |event| match event {
            Event::Release { device, stream, uses, .. } => Some((device, stream, uses)),
            _ => None,
        };
        self.log().into_iter().filter_map(release).collect()
    }

    pub fn copies(&self) -> Vec<(Backend, Device, Device, u64, Stream)> {
        let copy = |event| match event {
            Event::Copy { by, from, to, bytes, stream } => Some((by, from, to, bytes, stream)),
            _ => None,
        };
        self.log().into_iter().filter_map(copy).collect()
    }

    pub fn synchronised(&self) -> Vec<Stream> {
        let wait = |event| match event {
            Event::Synchronize { stream, .. } => Some(stream),
            _ => None,
        };
        self.log().into_iter().filter_map(wait).collect()
    }

    pub fn orders(&self) -> Vec<(Stream, Stream)> {
        let order = |event| match event {
            Event::Order { stream, after, .. } => Some((stream, after)),
            _ => None,
        };
        self.log().into_iter().filter_map(order).collect()
    }

    /// How many pieces of work wait on all streams.
    pub fn waiting(&self) -> usize {
        self.world().queues.values().flatten().filter(|(_, work)| !matches!(work, Work::Wait { .. })).count()
    }

    /// Blocks that nobody released.
    pub fn living(&self) -> usize {
        self.world().slots.values().filter(|slot| !slot.released).count()
    }

    /// Does all work.
    pub fn run_all(&self) {
        let mut world = self.world();
        let queues: Vec<Queue> = world.queues.keys().copied().collect();
        for queue in queues {
            world.run(queue, u64::MAX);
        }
    }

    /// Bytes of a device's memory as they are at this moment.
    pub fn peek(&self, address: Address, len: usize) -> Vec<u8> {
        let _world = self.world();
        // SAFETY: tests ask only for memory that is living, which is from the heap.
        unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(address.get() as usize), len) }.to_vec()
    }

    /// All work is done, nothing was violated, and every block was released.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.run_all();
        assert_eq!(self.world().violations, Vec::<String>::new());
        assert_eq!(self.living(), 0, "blocks leaked");
    }

    pub fn violations(&self) -> usize {
        self.world().violations.len()
    }
}

fn error(device: Device, call: &'static str) -> ProviderError {
    ProviderError::new(device, call, ProviderErrorKind::Other, "INJECTED").with_code(700)
}

#[derive(Debug)]
pub struct SimAllocator {
    device: Device,
    transfer: SimTransfer,
}

// SAFETY: a block is an allocation of the heap to itself, freed when it is released and no work in a queue uses it. The
// device's memory is the host's, whether or not its kind says so.
unsafe impl DeviceAllocator for SimAllocator {
    fn device(&self) -> Device {
        self.device
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let mut world = self.transfer.machine.world();
        if world.fails(Call::Allocate).is_some() {
            return Err(error(self.device, "allocate").into());
        }
        if layout.size() > 1 << 40 {
            let (device, requested) = (self.device, layout.size());
            return Err(AllocError::TooLarge { device, requested, maximum: 1 << 40 });
        }
        let heap = HeapLayout::from_size_align(layout.size().max(1) as usize, layout.align() as usize).unwrap();
        // SAFETY: the size is not zero.
        let pointer = unsafe { alloc(heap) };
        assert!(!pointer.is_null());
        // SAFETY: just allocated with this size. A pattern shows who reads what was never written.
        unsafe { pointer.write_bytes(0xa5, heap.size()) };
        let address = pointer.expose_provenance() as u64;
        world.next_id += 1;
        let id = world.next_id;
        let (device, size, backend) = (self.device, layout.size(), self.transfer.backend);
        world.slots.insert(id, Slot { address, heap, size, device, backend, birth: stream, released: false });
        world.log.push(Event::Allocate { device, size, stream });
        Ok(Block::from_parts(Address::new(address), size, BlockId::from_bits(id)))
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        let mut world = self.transfer.machine.world();
        let failure = world.fails(Call::Release);
        if failure == Some(Failure::Panic) {
            drop(world);
            panic!("injected into release");
        }
        let id = block.id().to_bits();
        let device = self.device;
        let Some(slot) = world.slots.get(&id) else {
            world.violations.push(format!("{block:?} released, but not living"));
            return Err(ReleaseError::Stale { device, block });
        };
        if slot.device != device || slot.address != block.address().get() || slot.size != block.size() {
            world.violations.push(format!("{block:?} released to {device}, but it is from elsewhere"));
            return Err(ReleaseError::Foreign { device, block });
        }
        let (range, birth, backend) = (slot.range(), slot.birth, slot.backend);
        let named =
            |queue: Queue| queue.0 == backend && (queue.1 == stream || queue.1 == birth || uses.contains(queue.1));
        let missed: Vec<String> = world
            .queues
            .iter()
            .filter(|(queue, waiting)| !named(**queue) && waiting.iter().any(|(_, work)| work.touches(&range)))
            .map(|(queue, _)| format!("{block:?} released while {queue:?} uses it"))
            .collect();
        world.violations.extend(missed);
        if let Some(slot) = world.slots.get_mut(&id) {
            if slot.released {
                world.violations.push(format!("{block:?} released twice"));
                return Err(ReleaseError::Stale { device, block });
            }
            slot.released = true;
        }
        world.log.push(Event::Release { device, size: block.size(), stream, uses: uses.iter().collect() });
        world.free_idle();
        match failure {
            Some(_) => Err(ReleaseError::Leaked { block, source: error(device, "release") }),
            None => Ok(()),
        }
    }

    fn statistics(&self) -> Statistics {
        Statistics::default()
    }

    fn trim(&self, _keep: u64) -> u64 {
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        &self.transfer
    }
}

#[derive(Debug)]
pub struct SimTransfer {
    machine: Machine,
    backend: Backend,
}

impl SimTransfer {
    fn fail(&self, call: Call, world: &mut World) -> Result<(), TransferError> {
        match world.fails(call) {
            None => Ok(()),
            Some(Failure::Error) => Err(error(GPU, "transfer").into()),
            Some(Failure::Panic) => panic!("injected into transfer"),
        }
    }
}

// SAFETY: work is done in the order of its stream, at once if a place is the host's, at the latest when it is waited for. A
// wait in a queue is done after what it waits for. The GPU's streams mean the same to its peers and pinned memory.
unsafe impl Transfer for SimTransfer {
    fn can_copy(&self, from: Device, to: Device) -> bool {
        let reaches = |device: Device| match self.backend {
            Backend::Host => device.is_host_accessible(),
            Backend::Gpu => matches!(device.kind().code(), 1 | 77 | 78),
            Backend::Other => matches!(device.kind().code(), 1 | 77 | 99),
        };
        [from, to].into_iter().all(|device| !device.is_simulated() && reaches(device))
    }

    unsafe fn copy(&self, from: Place, to: Place, bytes: u64, stream: Stream) -> Result<(), TransferError> {
        let mut world = self.machine.world();
        self.fail(Call::Copy, &mut world)?;
        assert!(self.can_copy(from.device, to.device) && bytes > 0);
        let queue = (self.backend, stream);
        world.log.push(Event::Copy { by: self.backend, from: from.device, to: to.device, bytes, stream });
        world.submit(queue, Work::Copy { from: from.address.get(), to: to.address.get(), bytes });
        // Memory of the host is left when this returns.
        if [from, to].iter().any(|place| place.device == Device::CPU) {
            world.run(queue, u64::MAX);
        }
        Ok(())
    }

    unsafe fn fill(&self, to: Place, bytes: u64, value: u8, stream: Stream) -> Result<(), TransferError> {
        let mut world = self.machine.world();
        self.fail(Call::Fill, &mut world)?;
        assert!(bytes > 0);
        world.log.push(Event::Fill { by: self.backend, to: to.device, bytes, stream });
        world.submit((self.backend, stream), Work::Fill { to: to.address.get(), bytes, value });
        Ok(())
    }

    fn synchronize(&self, stream: Stream) -> Result<(), TransferError> {
        let mut world = self.machine.world();
        self.fail(Call::Synchronize, &mut world)?;
        world.log.push(Event::Synchronize { by: self.backend, stream });
        world.run((self.backend, stream), u64::MAX);
        Ok(())
    }

    fn order_after(&self, stream: Stream, earlier: Stream) -> Result<(), TransferError> {
        let mut world = self.machine.world();
        world.log.push(Event::Order { by: self.backend, stream, after: earlier });
        let on = (self.backend, earlier);
        let up_to = world.submitted.get(&on).copied().unwrap_or(0);
        world.submit((self.backend, stream), Work::Wait { on, up_to });
        Ok(())
    }

    fn shares_stream(&self, _stream: Stream, device: Device) -> bool {
        self.backend == Backend::Gpu && matches!(device.kind().code(), 77 | 78)
    }
}

/// Counts error events of the library.
pub mod reports {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    struct Count(Arc<AtomicUsize>);

    impl Subscriber for Count {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::ERROR && metadata.target().starts_with("buffer")
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, _: &Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    /// How many errors are reported while `f` runs.
    pub fn count(f: impl FnOnce()) -> usize {
        let count = Arc::new(AtomicUsize::new(0));
        tracing::subscriber::with_default(Count(Arc::clone(&count)), f);
        count.load(Ordering::Relaxed)
    }
}
