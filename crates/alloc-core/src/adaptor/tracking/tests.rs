use std::sync::Mutex;

use super::*;
use crate::{Address, Place, SimulatedAllocator, Transfer};

/// An allocator without books: like `free`, it believes whatever it is told.
#[derive(Debug, Default)]
struct Credulous {
    released: Mutex<Vec<Block>>,
}

// SAFETY: the device is simulated.
unsafe impl DeviceAllocator for Credulous {
    fn device(&self) -> Device {
        Device::CPU.simulated()
    }
    /// The same address, size and id every time.
    fn allocate(&self, layout: Layout, _stream: Stream) -> Result<Block, AllocError> {
        Ok(Block::from_parts(Address::new(4096), layout.size(), BlockId::from_bits(0)))
    }
    unsafe fn release(&self, block: Block, _stream: Stream, _uses: &StreamSet) -> Result<(), ReleaseError> {
        self.released.lock().unwrap().push(block);
        Ok(())
    }
    fn statistics(&self) -> Statistics {
        Statistics::default()
    }
    fn trim(&self, _keep: u64) -> u64 {
        0
    }
    fn transfer(&self) -> &dyn Transfer {
        unreachable!("nothing is copied: {:?}", Place { device: Device::CPU.simulated(), address: Address::new(0) })
    }
}

#[derive(Debug, Default)]
pub(super) struct Recorder {
    rejected: Mutex<Vec<ReleaseError>>,
    left: Mutex<Vec<(u64, u64)>>,
}

impl Recorder {
    /// Blocks and bytes that were said to be left, each time.
    pub(super) fn left(&self) -> Vec<(u64, u64)> {
        self.left.lock().unwrap().clone()
    }
}

impl EventHook for Recorder {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        match event {
            AllocatorEvent::RejectedRelease(error) => self.rejected.lock().unwrap().push((*error).clone()),
            AllocatorEvent::BlocksLeft { count, bytes } => self.left.lock().unwrap().push((*count, *bytes)),
            _ => {}
        }
    }
}

pub(super) fn simulated() -> SimulatedAllocator {
    SimulatedAllocator::new(Device::CPU, 1 << 20)
}

pub(super) fn allocate(allocator: &impl DeviceAllocator, size: u64) -> Block {
    allocator.allocate(Layout::bytes(size).unwrap(), Stream::DEFAULT).unwrap()
}

pub(super) fn release(allocator: &impl DeviceAllocator, block: Block) -> Result<(), ReleaseError> {
    // SAFETY: no memory is behind these blocks, so nothing uses it.
    unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }
}

#[test]
fn double_and_foreign_releases_never_reach_an_allocator_without_books() {
    let recorder = Arc::new(Recorder::default());
    let allocator = Tracking::new(Credulous::default()).with_event_hook(Arc::clone(&recorder) as Arc<dyn EventHook>);
    let device = Device::CPU.simulated();
    let block = allocate(&allocator, 64);
    let altered = Block::from_parts(block.address(), 65, block.id());
    let foreign = allocate(&Tracking::new(simulated()), 64);
    assert_eq!(release(&allocator, altered), Err(ReleaseError::Foreign { device, block: altered }));
    assert_eq!(release(&allocator, foreign), Err(ReleaseError::Foreign { device, block: foreign }));
    release(&allocator, block).unwrap();

    // The address lives again in a block of the same parts: only the id tells the stale one.
    let again = allocate(&allocator, 64);
    assert_eq!(again.address(), block.address());
    assert_eq!(release(&allocator, block), Err(ReleaseError::Stale { device, block }));
    assert_eq!((allocator.living(), allocator.inner().released.lock().unwrap().len()), (1, 1));
    release(&allocator, again).unwrap();

    assert_eq!(allocator.statistics().rejected_releases, 3);
    assert_eq!(recorder.rejected.lock().unwrap().len(), 3);
    drop(allocator);
    assert!(recorder.left.lock().unwrap().is_empty());
}

#[test]
fn leaks_carry_what_is_known_and_come_oldest_first() {
    let allocator = Tracking::new(simulated());
    let first = allocate(&allocator, 100);
    let mark = allocator.sequence();
    let stream = Stream::from_raw(9);
    std::thread::scope(|scope| {
        let loader = std::thread::Builder::new().name("loader".into());
        let loaded =
            loader.spawn_scoped(scope, || allocator.allocate(Layout::new(30, 512).unwrap(), stream).unwrap()).unwrap();
        assert_eq!(loaded.join().unwrap().size(), 30);
    });
    let gone = allocate(&allocator, 1);
    release(&allocator, gone).unwrap();

    let leaks = allocator.leaks();
    assert_eq!(leaks.iter().map(|leak| leak.sequence).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((leaks[0].block, leaks[0].stream), (first, Stream::DEFAULT));
    assert_eq!((leaks[1].block.size(), leaks[1].align, leaks[1].stream), (30, 512, stream));
    assert_eq!(leaks[1].thread.name(), Some("loader"));
    assert_ne!(leaks[1].thread.number(), leaks[0].thread.number());
    assert!(leaks[0].age >= leaks[1].age);
    assert!(leaks.iter().all(|leak| leak.backtrace.is_none()));
    let since: Vec<u64> = allocator.leaks_since(mark).iter().map(|leak| leak.sequence).collect();
    assert_eq!(since, [1]);
    for leak in leaks {
        release(&allocator, leak.block).unwrap();
    }
    assert!(allocator.leaks().is_empty());
    assert_eq!(allocator.inner().statistics().requested.current, 0);
}

#[test]
fn blocks_from_one_stack_share_their_backtrace() {
    let allocator = Tracking::new(simulated()).with_backtraces(true);
    let blocks: Vec<Block> = (0..3).map(|_| allocate(&allocator, 10)).collect();
    let _elsewhere = allocate(&allocator, 20);
    let backtraces: Vec<_> = allocator.leaks().into_iter().map(|leak| leak.backtrace.unwrap()).collect();
    let shared: Vec<bool> = backtraces.iter().map(|backtrace| Arc::ptr_eq(backtrace, &backtraces[0])).collect();
    assert_eq!(shared, [true, true, true, false]);
    let sites: Vec<(u64, u64)> = allocator.report().sites().iter().map(|site| (site.count, site.bytes)).collect();
    assert_eq!(sites, [(3, 30), (1, 20)]);
    for block in blocks {
        release(&allocator, block).unwrap();
    }
    assert_eq!((allocator.living(), allocator.report().sites().len()), (1, 1));
}

#[test]
fn the_report_groups_by_place() {
    let plain = Tracking::new(simulated());
    for size in [10, 10, 500] {
        let _ = allocate(&plain, size);
    }
    let report = plain.report();
    assert_eq!((report.count(), report.bytes(), report.sites().len()), (3, 520, 2));
    assert_eq!((report.sites()[0].bytes, report.sites()[1].count), (500, 2));
    let text = report.to_string();
    assert!(
        text.starts_with("3 blocks of 520 bytes in use on simulated_cpu:0\n1 block of 500 bytes, oldest "),
        "{text}"
    );
}

#[test]
fn what_is_left_is_told_at_the_end() {
    let recorder = Arc::new(Recorder::default());
    let inner = Arc::new(simulated());
    let hook = Arc::clone(&recorder) as Arc<dyn EventHook>;
    let allocator = Tracking::new(Arc::clone(&inner)).with_event_hook(hook);
    let _ = (allocate(&allocator, 7), allocate(&allocator, 8));
    drop(allocator);
    assert_eq!(*recorder.left.lock().unwrap(), [(2, 15)]);
    assert_eq!(inner.statistics().requested.current, 15);
}

#[test]
fn a_block_that_the_inner_allocator_refuses_stays_in_the_books() {
    let inner = Arc::new(simulated());
    let allocator = Tracking::new(Arc::clone(&inner));
    let block = allocate(&allocator, 10);
    // Released around the adaptor.
    release(&inner, Block::from_parts(block.address(), 10, BlockId::from_bits(0))).unwrap();
    let refused = release(&allocator, block);
    assert_eq!(refused, Err(ReleaseError::Stale { device: Device::CPU.simulated(), block }));
    assert_eq!((allocator.living(), allocator.statistics().rejected_releases), (1, 1));
}

#[test]
fn threads_releasing_each_others_blocks_leave_nothing() {
    // Room for all blocks at once, should the receiver fall behind.
    let allocator = Tracking::new(SimulatedAllocator::new(Device::CPU, 1 << 24));
    let (send, receive) = std::sync::mpsc::channel::<Block>();
    std::thread::scope(|scope| {
        let allocator = &allocator;
        for _ in 0..3 {
            let send = send.clone();
            scope.spawn(move || (0..2000).for_each(|i| send.send(allocate(allocator, i % 7)).unwrap()));
        }
        drop(send);
        // Each block is released twice by the receiver: exactly one of the two is refused.
        for block in receive {
            release(allocator, block).unwrap();
            assert!(matches!(release(allocator, block), Err(ReleaseError::Stale { .. })));
        }
    });
    assert_eq!((allocator.living(), allocator.sequence()), (0, 6000));
    assert_eq!(allocator.statistics().rejected_releases, 6000);
    assert_eq!(allocator.inner().statistics().requested.current, 0);
}
