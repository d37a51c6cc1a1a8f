//! Buffers over CUDA memory: they copy themselves in every direction, and give their memory back.

use std::sync::Arc;

use alloc_core::{AllocatorHandle, DeviceAllocator};
use alloc_cpu::SystemAllocator;
use alloc_cuda::{AsyncAllocator, CudaStream, DeviceOptions, PinnedMethod};
use alloc_pool::PoolConfig;
use buffer::{Buffer, BufferError};

use super::harness::any_device;

/// A name, and an allocator of that kind of memory.
fn allocators() -> Vec<(&'static str, AllocatorHandle)> {
    let device = |options| alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap();
    vec![
        ("host", AllocatorHandle::from(Arc::new(SystemAllocator::new()) as Arc<dyn DeviceAllocator>)),
        ("device", device(DeviceOptions::default()).into()),
        ("segments", device(DeviceOptions::default().addressing(alloc_core::Addressing::Segmented)).into()),
        ("async", Arc::new(AsyncAllocator::new(0).unwrap()).into()),
        ("pinned", alloc_cuda::pinned_pool(0, PinnedMethod::Registered, PoolConfig::default()).unwrap().into()),
    ]
}

fn pattern(length: u64) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 251) as u8).collect()
}

#[test]
fn contents_travel_between_all_kinds_of_memory() {
    let _device = any_device();
    let stream = CudaStream::new(0).unwrap();
    let all = allocators();
    for (from, source) in &all {
        for (to, target) in &all {
            // The last ones lie in several pages.
            for length in [1, 4096, 70_001, 5 << 20] {
                let sent = pattern(length);
                let source = Buffer::from_slice_on(source.clone(), &sent, stream.stream()).unwrap();
                let mut target = Buffer::zeroed_on(target.clone(), length + 1, stream.stream()).unwrap();
                assert_eq!(target.copy_from_on(&source, stream.stream()).unwrap(), length, "{from} to {to}");
                // The source's memory is not used again before the copy has read it.
                drop(source);
                stream.synchronize().unwrap();
                let mut back = target.to_vec::<u8>().unwrap();
                assert_eq!(back.pop(), Some(0), "{from} to {to}, {length} bytes: one too many was written");
                assert!(back == sent, "{from} to {to}, {length} bytes");
                assert!(matches!(
                    target.copy_from_exact(&Buffer::zeroed(all[0].1.clone(), length).unwrap()),
                    Err(BufferError::LengthMismatch { .. })
                ));
            }
        }
    }
}

#[test]
fn buffers_grow_keep_their_contents_and_give_all_back() {
    let _device = any_device();
    for (name, allocator) in allocators() {
        let mut grown = Buffer::from_slice(allocator.clone(), &pattern(1000)).unwrap();
        for length in [10_000, 3 << 20, 100, 9 << 20] {
            let _ = grown.resize_filled(length, 0xCD).unwrap();
            assert_eq!(grown.len(), length);
        }
        let contents = grown.to_vec::<u8>().unwrap();
        assert!(contents[..100] == pattern(100) && contents[100..].iter().all(|byte| *byte == 0xCD), "{name}");
        grown.fill(0x5A).unwrap();
        assert!(grown.to_vec::<u8>().unwrap().iter().all(|byte| *byte == 0x5A), "{name}");
        drop(grown);
        assert_eq!(allocator.statistics().requested.current, 0, "{name}");
    }
}
