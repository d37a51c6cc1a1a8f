//! The system allocator keeps its books, and refuses what is not in them.

use std::sync::{Arc, Mutex};

use alloc_core::{
    AllocError, AllocatorEvent, Block, BlockId, Device, DeviceAllocator, EventHook, Layout, ReleaseError, Stream,
    StreamSet,
};
use alloc_cpu::SystemAllocator;

use crate::bytes::{fill, holds};

fn allocate(allocator: &SystemAllocator, size: u64, align: u64) -> Block {
    allocator.allocate(Layout::new(size, align).unwrap(), Stream::DEFAULT).unwrap()
}

fn release(allocator: &SystemAllocator, block: Block) -> Result<(), ReleaseError> {
    // SAFETY: tests release blocks that nothing uses; wrong ones are refused, which is what they test.
    unsafe { allocator.release(block, Stream::DEFAULT, StreamSet::EMPTY) }
}

#[test]
fn blocks_are_aligned_apart_and_counted() {
    let allocator = SystemAllocator::new();
    let mut blocks = Vec::new();
    for shift in 0..=16 {
        for size in [0, 1, 255, 4096, 100_000] {
            let block = allocate(&allocator, size, 1 << shift);
            assert!(block.address().is_aligned_to(1 << shift));
            assert_eq!(block.size(), size);
            fill(block.address(), size, blocks.len() as u8);
            blocks.push(block);
        }
    }
    let requested = blocks.iter().map(Block::size).sum::<u64>();
    let statistics = allocator.statistics();
    assert_eq!((statistics.requested.current, statistics.requested.count), (requested, blocks.len() as u64));
    let mut addresses: Vec<_> = blocks.iter().map(Block::address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), blocks.len(), "addresses are unique, those of empty blocks included");
    for (index, block) in blocks.into_iter().enumerate() {
        assert!(holds(block.address(), block.size(), index as u8));
        release(&allocator, block).unwrap();
    }
    let statistics = allocator.statistics();
    assert_eq!((statistics.requested.current, statistics.requested.peak), (0, requested));
    assert_eq!((statistics.requested.total, statistics.rejected_releases), (requested, 0));
    assert_eq!(allocator.trim(0), 0);
}

#[derive(Debug, Default)]
struct Seen(Mutex<Vec<String>>);

impl EventHook for Seen {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        self.0.lock().unwrap().push(match event {
            AllocatorEvent::RejectedRelease(ReleaseError::Stale { .. }) => "stale".to_owned(),
            AllocatorEvent::RejectedRelease(ReleaseError::Foreign { .. }) => "foreign".to_owned(),
            AllocatorEvent::OutOfMemory(out) => format!("out of memory for {}", out.requested),
            other => format!("{other:?}"),
        });
    }
}

#[test]
fn wrong_releases_are_refused_and_change_nothing() {
    let seen = Arc::new(Seen::default());
    let allocator = SystemAllocator::new().with_event_hook(seen.clone());
    let block = allocate(&allocator, 1000, 256);
    let kept = allocate(&allocator, 500, 64);
    release(&allocator, block).unwrap();
    assert!(matches!(release(&allocator, block), Err(ReleaseError::Stale { .. })));
    let other = SystemAllocator::new();
    let theirs = allocate(&other, 1000, 256);
    assert!(matches!(release(&allocator, theirs), Err(ReleaseError::Foreign { .. })));
    let invented = Block::from_parts(kept.address(), 500, BlockId::from_bits(u64::MAX));
    assert!(matches!(release(&allocator, invented), Err(ReleaseError::Foreign { .. })));
    let altered = Block::from_parts(kept.address(), 501, kept.id());
    assert!(matches!(release(&allocator, altered), Err(ReleaseError::Foreign { .. })));
    let statistics = allocator.statistics();
    assert_eq!((statistics.requested.current, statistics.rejected_releases), (500, 4));
    assert_eq!(*seen.0.lock().unwrap(), ["stale", "foreign", "foreign", "foreign"]);
    release(&allocator, kept).unwrap();
    release(&other, theirs).unwrap();
}

#[test]
fn of_two_racing_releases_one_succeeds() {
    let allocator = SystemAllocator::new();
    for _ in 0..500 {
        let block = allocate(&allocator, 64, 64);
        let barrier = std::sync::Barrier::new(2);
        let released: usize = std::thread::scope(|scope| {
            let tries = [(); 2].map(|()| {
                scope.spawn(|| {
                    barrier.wait();
                    usize::from(release(&allocator, block).is_ok())
                })
            });
            tries.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(released, 1);
    }
    let statistics = allocator.statistics();
    assert_eq!((statistics.requested.current, statistics.rejected_releases), (0, 500));
}

#[test]
fn impossible_sizes_are_errors_with_the_figures() {
    let seen = Arc::new(Seen::default());
    let allocator = SystemAllocator::new().with_event_hook(seen.clone());
    let held = allocate(&allocator, 100, 1);
    let petabyte = Layout::bytes(1 << 50).unwrap();
    match allocator.allocate(petabyte, Stream::DEFAULT) {
        Err(AllocError::OutOfMemory(out)) => {
            assert_eq!((out.device, out.requested, out.in_use), (Device::CPU, 1 << 50, 100));
            assert!(out.device_total.is_some_and(|total| total > 0));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(*seen.0.lock().unwrap(), [format!("out of memory for {}", 1u64 << 50)]);
    let most = Layout::new(i64::MAX as u64, 1).unwrap();
    assert!(allocator.allocate(most, Stream::DEFAULT).is_err());
    assert_eq!(allocator.statistics().requested.current, 100);
    release(&allocator, held).unwrap();
}

#[test]
fn threads_release_what_others_allocated() {
    let allocator = SystemAllocator::new();
    let (sender, receiver) = std::sync::mpsc::sync_channel::<Block>(64);
    std::thread::scope(|scope| {
        let allocator = &allocator;
        scope.spawn(move || {
            for index in 0..20_000u64 {
                sender.send(allocate(allocator, index % 3000, 16)).unwrap();
            }
        });
        scope.spawn(move || {
            for block in receiver {
                release(allocator, block).unwrap();
            }
        });
    });
    let statistics = allocator.statistics();
    assert_eq!((statistics.requested.current, statistics.requested.count), (0, 20_000));
    assert_eq!(statistics.requested.total, (0..20_000u64).map(|index| index % 3000).sum::<u64>());
}

#[test]
fn several_allocators_on_one_thread_keep_apart() {
    let allocators: Vec<_> = (0..5).map(|_| SystemAllocator::new()).collect();
    let blocks: Vec<_> = (0..200u64).map(|index| allocate(&allocators[index as usize % 5], index, 8)).collect();
    for (index, allocator) in allocators.iter().enumerate() {
        let own = (0..200u64).filter(|size| *size as usize % 5 == index).sum::<u64>();
        assert_eq!(allocator.statistics().in_use.current, own);
    }
    for (index, block) in blocks.into_iter().enumerate() {
        release(&allocators[index % 5], block).unwrap();
    }
    assert!(allocators.iter().all(|allocator| allocator.statistics().in_use.current == 0));
}

#[test]
fn a_block_is_never_counted_twice() {
    const LARGE: u64 = 1 << 30;
    let allocator = SystemAllocator::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..30_000 {
                release(&allocator, allocate(&allocator, LARGE, 16)).unwrap();
            }
        });
        while !writer.is_finished() {
            let in_use = allocator.statistics().in_use;
            assert!(in_use.current <= LARGE && in_use.peak <= LARGE, "{in_use:?}");
        }
    });
}
