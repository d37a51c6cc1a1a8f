//! Several devices in one process.

use alloc_core::{Address, Addressing, Device, DeviceAllocator, Place, ProviderErrorKind, Stream, StreamSet, Transfer};
use alloc_cuda::{AsyncAllocator, CudaStream, CudaTransfer, DeviceOptions, DeviceProvider};
use alloc_pool::PoolConfig;

use super::devices::{make_current, primary};
use super::harness::{any_device, bytes, fake, release};

#[test]
fn each_device_has_one_pool_of_its_own() {
    let _device = any_device();
    let count = alloc_cuda::device_count().unwrap();
    let pools: Vec<_> = (0..count).map(|ordinal| alloc_cuda::global(ordinal).unwrap()).collect();
    for (ordinal, pool) in pools.iter().enumerate() {
        assert_eq!(pool.device(), Device::cuda(ordinal as u16));
        assert!(std::ptr::addr_eq(*pool, alloc_cuda::global(ordinal as u16).unwrap()));
        let pinned = alloc_cuda::pinned(ordinal as u16).unwrap();
        assert_eq!(pinned.device(), Device::cuda_pinned(ordinal as u16));
        let stream = CudaStream::new(ordinal as u16).unwrap();
        for allocator in [*pool, pinned] {
            let block = allocator.allocate(bytes(3_000_000), stream.stream()).unwrap();
            release(allocator, block, stream.stream());
        }
    }
}

#[test]
fn memory_is_taken_from_the_device_that_was_named() {
    let Some(fake) = fake() else { return };
    for ordinal in 0..4 {
        let before: Vec<_> = (0..4).map(|device| fake.used(device)).collect();
        let pool = alloc_cuda::device_pool(ordinal, &DeviceOptions::default(), PoolConfig::default()).unwrap();
        let stream = CudaStream::new(ordinal).unwrap();
        let block = pool.allocate(bytes(50 << 20), stream.stream()).unwrap();
        for device in 0..4 {
            let grown = fake.used(device) - before[usize::from(device)];
            assert_eq!(grown >= 50 << 20, device == ordinal, "{grown} bytes on {device}");
        }
        release(&*pool, block, stream.stream());
    }
}

#[test]
fn peers_get_access_where_it_is_asked_for() {
    let Some(fake) = fake() else { return };
    let transfer = CudaTransfer::of(1).unwrap();
    for addressing in [Addressing::Mapped, Addressing::Segmented] {
        let stream = CudaStream::new(1).unwrap();
        let with = DeviceOptions::default().addressing(addressing).peers([1]);
        let pool = alloc_cuda::device_pool(0, &with, PoolConfig::default()).unwrap();
        let block = pool.allocate(bytes(1 << 20), stream.stream()).unwrap();
        // Work of device 1 on memory of device 0, as if it were its own.
        let place = Place { device: Device::cuda(1), address: block.address() };
        // SAFETY: the place is valid.
        unsafe { transfer.fill(place, 1 << 20, 9, stream.stream()) }.unwrap();
        stream.synchronize().unwrap();
        release(&*pool, block, stream.stream());
        pool.trim(0);
    }
    let refused = DeviceProvider::new(0, &DeviceOptions::default().peers([3])).unwrap_err();
    assert_eq!(refused.kind, ProviderErrorKind::Unsupported);
    let refused = AsyncAllocator::with_peers(0, &[3]).unwrap_err();
    assert_eq!(refused.kind, ProviderErrorKind::Unsupported);
    assert!(AsyncAllocator::with_peers(0, &[1]).is_ok());
    drop(fake);
}

#[test]
fn memory_in_use_is_opened_to_a_peer_that_comes_later() {
    let Some(fake) = fake() else { return };
    for addressing in [Addressing::Mapped, Addressing::Segmented] {
        let options = DeviceOptions::default().addressing(addressing);
        let pool = alloc_cuda::device_pool(0, &options, PoolConfig::default()).unwrap();
        let stream = CudaStream::new(1).unwrap();
        let before = pool.allocate(bytes(3 << 20), stream.stream()).unwrap();
        if addressing == Addressing::Mapped {
            // What could not be opened stays closed, and is opened the next time.
            fake.fail("cuMemSetAccess", 0, 304);
            assert_eq!(pool.provider().open_to(1).unwrap_err().call, "cuMemSetAccess");
        }
        pool.provider().open_to(1).unwrap();
        let calls = fake.calls("cuMemSetAccess");
        pool.provider().open_to(1).unwrap();
        assert_eq!(fake.calls("cuMemSetAccess"), calls, "once is enough");
        let after = pool.allocate(bytes(40 << 20), stream.stream()).unwrap();
        for block in [before, after] {
            // By a stream of device 1, as if the memory were its own.
            let place = Place { device: Device::cuda(1), address: block.address() };
            // SAFETY: the place is valid.
            unsafe { CudaTransfer::of(1).unwrap().fill(place, block.size(), 9, stream.stream()) }.unwrap();
            stream.synchronize().unwrap();
            release(&*pool, block, stream.stream());
        }
        let refused = pool.provider().open_to(3).unwrap_err();
        assert_eq!(refused.kind, ProviderErrorKind::Unsupported);
    }
}

#[test]
fn the_first_copy_opens_the_global_pools_to_each_other() {
    let Some(fake) = fake() else { return };
    let streams = [0, 1].map(|ordinal| CudaStream::new(ordinal).unwrap());
    let pools = [0, 1].map(|ordinal| alloc_cuda::global(ordinal).unwrap());
    let blocks = [0, 1].map(|index| pools[index].allocate(bytes(3 << 20), streams[index].stream()).unwrap());
    let places = [0, 1].map(|index| Place { device: pools[index].device(), address: blocks[index].address() });
    streams[0].wait_for(&streams[1]).unwrap();
    // SAFETY: both places are valid, and the stream comes after the other.
    unsafe { CudaTransfer::of(0).unwrap().copy(places[0], places[1], 3 << 20, streams[0].stream()) }.unwrap();
    streams[1].wait_for(&streams[0]).unwrap();
    for (here, there) in [(0, 1), (1, 0)] {
        let as_own = Place { device: pools[here].device(), ..places[there] };
        // SAFETY: as above.
        unsafe { CudaTransfer::of(here as u16).unwrap().fill(as_own, 3 << 20, 5, streams[here].stream()) }.unwrap();
        streams[here].synchronize().unwrap();
    }
    for index in [0, 1] {
        release(pools[index], blocks[index], streams[index].stream());
    }
    // There may be fewer devices than that.
    fake.show_devices(1);
    assert_eq!(alloc_cuda::device_count(), Ok(1));
    assert!(alloc_cuda::can_access_peer(0, 1).is_err());
    fake.show_devices(4);
    assert_eq!(
        [(0, 1), (1, 0), (0, 3)].map(|(from, to)| alloc_cuda::can_access_peer(from, to).unwrap()),
        [true, true, false]
    );
}

#[test]
fn a_copy_on_a_default_stream_is_on_that_of_the_device_asked() {
    let Some(fake) = fake() else { return };
    let pools = [0, 1]
        .map(|ordinal| alloc_cuda::device_pool(ordinal, &DeviceOptions::default(), PoolConfig::default()).unwrap());
    for here in [0, 1] {
        let transfer = CudaTransfer::of(here as u16).unwrap();
        let blocks = [0, 1].map(|index| pools[index].allocate(bytes(4096), Stream::DEFAULT).unwrap());
        let places = [0, 1].map(|index| Place { device: pools[index].device(), address: blocks[index].address() });
        for (index, place) in places.iter().enumerate() {
            let own = CudaTransfer::of(index as u16).unwrap();
            // SAFETY: the place is valid; the fill is over before anybody else touches it.
            unsafe { own.fill(*place, 4096, 10 + index as u8, Stream::DEFAULT) }.unwrap();
            own.synchronize(Stream::DEFAULT).unwrap();
        }
        // The other device's default stream waits for this one, which is held back, and its context is current.
        let other = 1 - here;
        make_current(primary(other as u16));
        let mut waited_for = std::ptr::null_mut();
        // SAFETY: a context is current, and the out parameter is a local.
        assert_eq!(unsafe { cust::sys::cuStreamCreate(&raw mut waited_for, 0) } as i32, 0);
        let waited_for = Stream::from_raw(waited_for as u64);
        fake.hold(waited_for);
        let elsewhere = pools[other].allocate(bytes(512), waited_for).unwrap();
        let place = Place { device: pools[other].device(), address: elsewhere.address() };
        // SAFETY: the place is valid until the stream was waited for.
        unsafe { CudaTransfer::of(other as u16).unwrap().fill(place, 512, 1, waited_for) }.unwrap();
        // SAFETY: both places are valid, and the stream is waited for.
        unsafe { transfer.copy(places[0], places[1], 4096, Stream::DEFAULT) }.unwrap();
        transfer.synchronize(Stream::DEFAULT).unwrap();
        // SAFETY: the fake's memory is the process's own, and the copy is over.
        let found = unsafe { *(blocks[1].address().get() as *const u8) };
        assert_eq!(found, 10, "the copy was not on the stream that was waited for");
        fake.resume(waited_for);
        CudaTransfer::of(other as u16).unwrap().synchronize(waited_for).unwrap();
        release(&*pools[other], elsewhere, waited_for);
        pools[other].retire_stream(waited_for);
        for (pool, block) in pools.iter().zip(blocks) {
            release(&**pool, block, Stream::DEFAULT);
        }
        // SAFETY: the stream is the one made above, and no allocator knows it any more.
        let destroyed = unsafe { cust::sys::cuStreamDestroy_v2(waited_for.handle() as cust::sys::CUstream) };
        assert_eq!(destroyed as i32, 0);
        make_current(0);
    }
}

#[test]
fn the_fake_notices_access_that_was_not_asked_for() {
    let Some(fake) = fake() else { return };
    let stream = CudaStream::new(1).unwrap();
    let pool =
        alloc_cuda::device_pool(0, &DeviceOptions::default().addressing(Addressing::Mapped), PoolConfig::default())
            .unwrap();
    let block = pool.allocate(bytes(1 << 20), stream.stream()).unwrap();
    // As if the memory were device 1's own.
    let place = Place { device: Device::cuda(1), address: block.address() };
    // SAFETY: the fake driver answers with an error.
    let _ = unsafe { CudaTransfer::of(1).unwrap().fill(place, 1 << 20, 9, stream.stream()) };
    assert!(stream.synchronize().is_err());
    assert_eq!(fake.take_violations().len(), 1);
    release(&*pool, block, stream.stream());
}

#[test]
fn copies_between_devices_carry_the_contents() {
    let Some(fake) = fake() else { return };
    let pools: Vec<_> = (0..4)
        .map(|ordinal| alloc_cuda::device_pool(ordinal, &DeviceOptions::default(), PoolConfig::default()).unwrap())
        .collect();
    let streams: Vec<_> = (0..4).map(|ordinal| CudaStream::new(ordinal).unwrap()).collect();
    for from in 0..4_usize {
        for to in (0..4_usize).filter(|to| *to != from) {
            let length = 100_000;
            let transfer = CudaTransfer::of(from as u16).unwrap();
            let stream = &streams[from];
            let source = pools[from].allocate(bytes(length), stream.stream()).unwrap();
            // Born on a stream of its own device, used on one of another.
            let target = pools[to].allocate(bytes(length), streams[to].stream()).unwrap();
            stream.wait_for(&streams[to]).unwrap();
            let [a, b] = [(&pools[from], source), (&pools[to], target)]
                .map(|(pool, block)| Place { device: pool.device(), address: block.address() });
            let mut back = vec![0_u8; length as usize];
            let host = Place { device: Device::CPU, address: Address::new(back.as_mut_ptr() as u64) };
            // SAFETY: all places are valid, and the stream comes after the other.
            unsafe {
                transfer.fill(a, length, (from * 4 + to) as u8, stream.stream()).unwrap();
                transfer.copy(a, b, length, stream.stream()).unwrap();
                transfer.copy(b, a, length, stream.stream()).unwrap();
                transfer.copy(a, host, length, stream.stream()).unwrap();
            }
            assert!(back.iter().all(|byte| *byte == (from * 4 + to) as u8));
            release(&*pools[from], source, stream.stream());
            let mut uses = StreamSet::new();
            uses.insert(stream.stream());
            // SAFETY: the use on the other device's stream is declared.
            unsafe { pools[to].release(target, streams[to].stream(), &uses) }.unwrap();
        }
    }
    assert!(fake.calls("cuMemcpyPeerAsync") == 24);
    assert!(fake.calls("cuStreamGetCtx") > 0, "events of another device's stream are made in its context");
}
