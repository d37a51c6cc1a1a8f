//! When private pools are given back: never where that could end a capture.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alloc_core::{Block, Device, DeviceAllocator, ReleaseError, Stream, StreamSet, forward_allocator, registry};
use alloc_cuda::{DeviceOptions, DevicePool};
use alloc_pool::PoolConfig;
use device_memory::ffi::torch::{devmem_torch_release_pool, devmem_torch_reset};

use crate::harness::{fake, fake_library};
use crate::torch::{MIB, NamedStream, POOL, begin, end, give, last_error, pool, start, take};

/// Where another thread is while memory goes back.
static SWEEPING: AtomicBool = AtomicBool::new(false);
static BEGUN: AtomicBool = AtomicBool::new(false);

/// A pool that takes its time over releases, once a test says so.
#[derive(Debug)]
struct Slow(Arc<DevicePool>);

// SAFETY: all is answered by the pool within.
unsafe impl DeviceAllocator for Slow {
    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        SWEEPING.store(true, Ordering::Release);
        std::thread::sleep(Duration::from_millis(100));
        assert!(!BEGUN.load(Ordering::Acquire), "the device may be waited for now, which would end a capture");
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.0.release(block, stream, uses) }
    }

    forward_allocator!(self => self.0; device, allocate, statistics, trim, grow_to, transfer, retire_stream);
}

#[test]
fn no_capture_begins_while_pools_are_given_back() {
    let Some(_fake) = fake() else { return };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "sweep::gives_back_slowly", "--ignored", "--nocapture"]);
    let output = command.env("FAKE_CUDA_LIBRARY", fake_library()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "run by `no_capture_begins_while_pools_are_given_back`"]
fn gives_back_slowly() {
    let Some(_fake) = fake() else { return };
    let slow = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    registry::install(Device::cuda(0), Box::new(Slow(slow))).unwrap();
    begin();
    let block = take(MIB, Stream::DEFAULT);
    end();
    give(block, MIB, Stream::DEFAULT);
    std::thread::scope(|scope| {
        // What PyTorch calls before it captures.
        scope.spawn(|| {
            while !SWEEPING.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            begin();
            BEGUN.store(true, Ordering::Release);
        });
        devmem_torch_release_pool(0, POOL);
    });
    assert!(!last_error().contains("would end a capture"), "{}", last_error());
    assert!(BEGUN.load(Ordering::Acquire) && pool().statistics().in_use.current == 0);
}

#[test]
fn a_pool_that_could_not_go_during_a_capture_goes_with_what_is_free() {
    let Some(_fake) = start() else { return };
    let stream = NamedStream::new();
    begin();
    let block = take(MIB, stream.stream());
    end();
    give(block, MIB, stream.stream());
    let held = pool().statistics().in_use.current;
    assert_ne!(held, 0);
    // A capture that allocates nothing by PyTorch, which knows nothing of it.
    let capture = |_: &_| {
        devmem_torch_release_pool(0, POOL);
        Ok::<_, std::convert::Infallible>(())
    };
    drop(stream.capture(capture).unwrap());
    assert_eq!(pool().statistics().in_use.current, held);
    devmem_torch_reset();
    assert_eq!((pool().statistics().in_use.current, pool().statistics().reserved.current), (0, 0));
}
