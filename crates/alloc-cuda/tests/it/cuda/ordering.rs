//! The stream rules, as driver calls.

use alloc_core::{DeviceAllocator, Place, StreamSet};
use alloc_cuda::{CudaStream, DeviceOptions};
use alloc_pool::PoolConfig;

use super::harness::{bytes, fake, release};

fn limited(limit: u64) -> std::sync::Arc<alloc_cuda::DevicePool> {
    let config = PoolConfig { limit: Some(limit), ..PoolConfig::default() };
    alloc_cuda::device_pool(0, &DeviceOptions::default(), config).unwrap()
}

#[test]
fn one_stream_never_records_an_event() {
    let Some(fake) = fake() else { return };
    let pool = alloc_cuda::device_pool(0, &DeviceOptions::default(), PoolConfig::default()).unwrap();
    let stream = CudaStream::new(0).unwrap();
    // Who makes a stream retires those of threads that have ended.
    fake.clear();
    let mut blocks = Vec::new();
    for round in 0..2000_u64 {
        blocks.push(pool.allocate(bytes(512 << (round * 7 % 13)), stream.stream()).unwrap());
        if blocks.len() > 40 {
            release(&*pool, blocks.swap_remove(round as usize % 40), stream.stream());
        }
    }
    for block in blocks {
        release(&*pool, block, stream.stream());
    }
    for call in ["cuEventCreate", "cuEventRecord", "cuStreamWaitEvent", "cuEventQuery", "cuEventSynchronize"] {
        assert_eq!(fake.calls(call), 0, "{call}");
    }
}

#[test]
fn memory_crosses_only_after_an_event() {
    let Some(fake) = fake() else { return };
    let pool = limited(32 << 20);
    let [from, to] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let block = pool.allocate(bytes(30 << 20), from.stream()).unwrap();
    fake.clear();
    fake.hold(from.stream());
    let place = Place { device: pool.device(), address: block.address() };
    // SAFETY: the block is in use on the stream.
    unsafe { pool.transfer().fill(place, 1, 0, from.stream()) }.unwrap();
    release(&*pool, block, from.stream());
    let taken = pool.allocate(bytes(30 << 20), to.stream()).unwrap();
    let log = fake.log();
    let position = |name: &str, subject: u64| log.iter().position(|call| *call == (name.to_owned(), subject));
    assert!(position("cuStreamQuery", from.handle()) < position("cuEventRecord", from.handle()));
    let recorded = position("cuEventRecord", from.handle()).expect("an event on the stream that had the memory");
    let waited = position("cuStreamWaitEvent", to.handle());
    let synchronised = log.iter().position(|(name, _)| name == "cuEventSynchronize");
    assert!(
        waited.or(synchronised).is_some_and(|ordered| recorded < ordered),
        "the crossing is ordered after the event: {log:?}"
    );
    fake.resume(from.stream());
    release(&*pool, taken, to.stream());
}

#[test]
fn a_declared_use_holds_the_block_back_from_its_own_stream_too() {
    let Some(fake) = fake() else { return };
    let pool = limited(64 << 20);
    let [home, user] = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let block = pool.allocate(bytes(8 << 20), home.stream()).unwrap();
    fake.hold(user.stream());
    let mut uses = StreamSet::new();
    uses.insert(user.stream());
    let before = fake.calls("cuEventRecord");
    // SAFETY: the use is declared.
    unsafe { pool.release(block, home.stream(), &uses) }.unwrap();
    assert!(fake.calls("cuEventRecord") > before, "the foreign stream gets an event at the release");
    let other = pool.allocate(bytes(8 << 20), home.stream()).unwrap();
    let apart = other.address().get().abs_diff(block.address().get()) >= 8 << 20;
    assert!(apart || fake.pending(home.stream()) > 0, "the block is still in use on the other stream");
    fake.resume(user.stream());
    release(&*pool, other, home.stream());
    pool.trim(0);
    assert_eq!(pool.statistics().reserved.current, 0);
}
