//! Stream safety: kernels that wait and then write, on several streams, with random uses, releases and reuse. If
//! memory ever reached a stream too early, a word would be found wrong.

use alloc_core::{
    Address, AddressRange, Addressing, Device, DeviceAllocator, DeviceMemory, MemoryProvider, ProviderError, Stream,
    StreamSet, Transfer,
};
use alloc_cuda::{CudaStream, DeviceOptions, DeviceProvider, Event, Physical};
use alloc_pool::{Pool, PoolConfig};

use super::harness::{any_device, bytes, fake, on_gpu, release};
use super::kernels::Kernels;

/// A provider that claims that all work is complete and makes nobody wait: the stream rules switched off.
#[derive(Debug)]
struct Reckless(DeviceProvider);

// SAFETY: memory and addresses are those of the provider within. Its events lie on purpose: only the kernels of one test use
// the memory, and what they find wrong there is what the test looks for.
unsafe impl MemoryProvider for Reckless {
    type Physical = Physical;
    type Event = Event;

    fn device(&self) -> Device {
        self.0.device()
    }
    fn addressing(&self) -> Addressing {
        self.0.addressing()
    }
    fn granularity(&self) -> u64 {
        self.0.granularity()
    }
    fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        self.0.memory()
    }
    fn reserve(&self, bytes: u64) -> Result<AddressRange, ProviderError> {
        self.0.reserve(bytes)
    }
    unsafe fn unreserve(&self, range: AddressRange) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.0.unreserve(range) }
    }
    fn create(&self, bytes: u64) -> Result<Physical, ProviderError> {
        self.0.create(bytes)
    }
    unsafe fn release(&self, physical: Physical, bytes: u64) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.0.release(physical, bytes) }
    }
    unsafe fn map(&self, at: Address, physical: &Physical, bytes: u64) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise is the one asked for.
        unsafe { self.0.map(at, physical, bytes) }
    }
    unsafe fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError> {
        // A mapping must not go under work in flight, or the context breaks instead of showing a wrong word.
        unsafe {
            // SAFETY: the default stream is always there.
            let _ = self.0.transfer().synchronize(Stream::DEFAULT);
            // SAFETY: the caller's promise is the one asked for.
            self.0.unmap(at, bytes)
        }
    }
    fn segment_address(&self, physical: &Physical) -> Address {
        self.0.segment_address(physical)
    }
    fn record(&self, stream: Stream) -> Result<Option<Event>, ProviderError> {
        self.0.record(stream)
    }
    fn is_idle(&self, _stream: Stream) -> Result<bool, ProviderError> {
        Ok(true)
    }
    fn is_complete(&self, _event: &Event) -> Result<bool, ProviderError> {
        Ok(true)
    }
    fn make_wait(&self, _stream: Stream, _event: &Event) -> Result<(), ProviderError> {
        Ok(())
    }
    fn synchronize(&self, _event: &Event) -> Result<(), ProviderError> {
        Ok(())
    }
    fn transfer(&self) -> &dyn Transfer {
        self.0.transfer()
    }
}

pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Outcome {
    mismatches: u64,
    moves: u64,
}

/// Uses `blocks` blocks on `streams` streams through a pool that has to pass memory from stream to stream.
fn storm<P: MemoryProvider>(provider: P, limit: u64, streams: usize, blocks: u32, seed: u64) -> Outcome {
    let pool = Pool::new(provider, PoolConfig { limit: Some(limit), ..PoolConfig::default() }).unwrap();
    let streams: Vec<_> = (0..streams).map(|_| CudaStream::new(0).unwrap()).collect();
    // Of another pool, so that nothing done here can touch it.
    let counters = alloc_cuda::global(0).unwrap();
    let counter = counters.allocate(bytes(8), streams[0].stream()).unwrap();
    let kernels = Kernels::new(counter, &streams[0]);
    let mut random = Random(seed);
    let mut living = Vec::new();
    let mut in_use = 0;
    for value in 1..=blocks {
        // Small and large times, so that pages have to move between slabs, streams and large blocks.
        let scale = if value / 500 % 2 == 0 { 6 } else { 12 };
        let size = (1 + random.below(1023)) << random.below(scale) << 2;
        let home = random.below(streams.len() as u64) as usize;
        let block = loop {
            if in_use + size <= limit / 4 {
                match pool.allocate(bytes(size), streams[home].stream()) {
                    Ok(block) => break block,
                    // Segments can't be moved, so there may be no hole that is large enough.
                    Err(error) => assert!(error.is_out_of_memory() && !living.is_empty(), "{error}"),
                }
            }
            let index = random.below(living.len() as u64) as usize;
            in_use -= finish(&pool, &kernels, &streams, living.swap_remove(index), &mut random);
        };
        in_use += size;
        kernels.fill(block, value, random.below(200_000), &streams[home]);
        living.push((block, home, value));
    }
    for used in living {
        finish(&pool, &kernels, &streams, used, &mut random);
    }
    for stream in &streams {
        stream.synchronize().unwrap();
    }
    let outcome = Outcome { mismatches: kernels.mismatches(&streams[0]), moves: pool.statistics().moves };
    drop(kernels);
    release(counters, counter, streams[0].stream());
    for stream in &streams {
        pool.retire_stream(stream.stream());
    }
    outcome
}

/// Checks a block, perhaps on other streams too, and releases it on one of them.
fn finish<P: MemoryProvider>(
    pool: &Pool<P>,
    kernels: &Kernels,
    streams: &[CudaStream],
    (block, home, value): (alloc_core::Block, usize, u32),
    random: &mut Random,
) -> u64 {
    let mut uses = StreamSet::new();
    for _ in 0..random.below(3) {
        let other = random.below(streams.len() as u64) as usize;
        if other != home {
            streams[other].wait_for(&streams[home]).unwrap();
            kernels.check(block, value, &streams[other]);
            uses.insert(streams[other].stream());
        }
    }
    kernels.check(block, value, &streams[home]);
    // SAFETY: all uses were submitted to the home stream or are declared.
    unsafe { pool.release(block, streams[home].stream(), &uses) }.unwrap();
    block.size()
}

fn provider(addressing: Addressing) -> DeviceProvider {
    DeviceProvider::new(0, &DeviceOptions::default().addressing(addressing)).unwrap()
}

fn blocks() -> u32 {
    if on_gpu() { 12_000 } else { 3_000 }
}

const LIMIT: u64 = 96 << 20;

#[test]
fn no_overlap_on_pages_that_move() {
    for streams in [2, 4] {
        let fake = fake();
        let _device = fake.is_none().then(any_device);
        if let Some(fake) = &fake {
            fake.lazy(0x1234_5678 + streams as u64);
        }
        let outcome = storm(provider(Addressing::Mapped), LIMIT, streams, blocks(), 99 + streams as u64);
        assert_eq!(outcome.mismatches, 0);
        assert!(outcome.moves > 0, "no page moved, so the test shows less than it says");
    }
}

#[test]
fn no_overlap_on_segments() {
    for streams in [2, 4] {
        let fake = fake();
        let _device = fake.is_none().then(any_device);
        if let Some(fake) = &fake {
            fake.lazy(0x8765_4321 + streams as u64);
        }
        let outcome = storm(provider(Addressing::Segmented), LIMIT, streams, blocks(), 7 + streams as u64);
        assert_eq!(outcome.mismatches, 0);
    }
}

#[test]
fn without_the_rules_the_same_test_finds_overlaps() {
    let fake = fake();
    let _device = fake.is_none().then(any_device);
    if let Some(fake) = &fake {
        fake.lazy(0xABCD_EF01);
    }
    let outcome = storm(Reckless(provider(Addressing::Segmented)), LIMIT, 4, blocks(), 5);
    assert!(outcome.mismatches > 0, "the test can't find what it looks for");
}
