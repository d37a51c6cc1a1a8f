//! Stream safety: kernels that wait and then write, on several streams, with random uses, releases and reuse. If
//! memory ever reached a stream too early, a word would be found wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use alloc_core::{
    Address, Addressing, DeviceAllocator, MemoryProvider, ProviderError, Stream, StreamSet, forward_provider,
};
use alloc_cuda::{CudaStream, DeviceOptions, DeviceProvider, Event, Physical};
use alloc_pool::{Pool, PoolConfig};

use super::harness::{any_device, bytes, fake, hold_back, on_gpu, release};
use super::kernels::Kernels;

/// How a provider differs from the one within.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// It claims that all work is complete and makes nobody wait: the stream rules switched off.
    Reckless,
    /// It claims that streams are dear to ask, so that those which are always idle are waited for instead.
    Dear,
}

#[derive(Debug)]
struct Changed {
    inner: DeviceProvider,
    change: Change,
    /// An event was asked since the last one was recorded.
    asked: AtomicBool,
    /// Waits for events that nobody had asked.
    unasked_waits: Arc<AtomicU64>,
}

impl Changed {
    fn new(inner: DeviceProvider, change: Change) -> Self {
        Self { inner, change, asked: AtomicBool::new(false), unasked_waits: Arc::default() }
    }

    fn is_reckless(&self) -> bool {
        self.change == Change::Reckless
    }
}

// SAFETY: memory and addresses are those of the provider within. Where its events lie, it is on purpose: only the kernels of
// one test use the memory, and what they find wrong there is what the test looks for.
unsafe impl MemoryProvider for Changed {
    type Physical = Physical;
    type Event = Event;

    unsafe fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError> {
        // A mapping must not go under work in flight, or the context breaks instead of showing a wrong word.
        unsafe {
            // SAFETY: the default stream is always there.
            if self.is_reckless() {
                let _ = self.inner.transfer().synchronize(Stream::DEFAULT);
            }
            // SAFETY: the caller's promise is the one asked for.
            self.inner.unmap(at, bytes)
        }
    }
    fn record(&self, stream: Stream) -> Result<Option<Event>, ProviderError> {
        self.asked.store(false, Ordering::Relaxed);
        let event = self.inner.record(stream);
        if self.is_reckless() {
            // So that what nobody waits for is late for certain.
            hold_back(stream);
        }
        event
    }
    fn is_idle(&self, stream: Stream) -> Result<bool, ProviderError> {
        if self.is_reckless() { Ok(true) } else { self.inner.is_idle(stream) }
    }
    fn is_idle_dear(&self) -> bool {
        self.change == Change::Dear
    }
    fn is_complete(&self, event: &Event) -> Result<bool, ProviderError> {
        self.asked.store(true, Ordering::Relaxed);
        if self.is_reckless() { Ok(true) } else { self.inner.is_complete(event) }
    }
    fn make_wait(&self, stream: Stream, event: &Event) -> Result<(), ProviderError> {
        if self.is_reckless() {
            return Ok(());
        }
        self.unasked_waits.fetch_add(u64::from(!self.asked.load(Ordering::Relaxed)), Ordering::Relaxed);
        self.inner.make_wait(stream, event)
    }
    fn synchronize(&self, event: &Event) -> Result<(), ProviderError> {
        if self.is_reckless() { Ok(()) } else { self.inner.synchronize(event) }
    }

    forward_provider!(
        self => self.inner; device, addressing, granularity, memory, reserve, unreserve, create, release, map,
        segment_address, recycle, is_capturing, transfer
    );
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

/// How many blocks are used, for how many cycles of the device's clock each of them at most, and by how many other streams are late
/// that read them.
#[derive(Clone, Copy, Debug)]
struct Load {
    blocks: u32,
    cycles: u64,
    late: u64,
}

impl Load {
    fn usual() -> Self {
        Self { blocks: if on_gpu() { 12_000 } else { 3_000 }, cycles: 200_000, late: 0 }
    }

    /// Others read so late that the next fill of the same memory is done by then. On the driver's stand-in they are held back.
    fn read_late() -> Self {
        if on_gpu() { Self { blocks: 3_000, late: 4_000_000, ..Self::usual() } } else { Self::usual() }
    }
}

/// Uses blocks on `streams` streams through a pool that has to pass memory from stream to stream.
fn storm<P: MemoryProvider>(provider: P, limit: u64, streams: usize, load: Load, seed: u64) -> Outcome {
    storm_with_rests(provider, limit, streams, (load, |_| false), seed)
}

/// The same, with all streams idle after those blocks that `rests` names by number.
fn storm_with_rests<P: MemoryProvider>(
    provider: P,
    limit: u64,
    streams: usize,
    (load, rests): (Load, impl Fn(u32) -> bool),
    seed: u64,
) -> Outcome {
    let pool = Pool::new(provider, PoolConfig { limit: Some(limit), ..PoolConfig::default() }).unwrap();
    let streams: Vec<_> = (0..streams).map(|_| CudaStream::new(0).unwrap()).collect();
    // Of another pool, so that nothing done here can touch it.
    let counters = alloc_cuda::global(0).unwrap();
    let counter = counters.allocate(bytes(8), streams[0].stream()).unwrap();
    let kernels = Kernels::new(counter, &streams[0]);
    let dummy = counters.allocate(bytes(8), streams[0].stream()).unwrap();
    let late = |stream: &CudaStream| {
        if load.late > 0 {
            kernels.fill(dummy, 0, load.late, stream);
        }
    };
    let mut random = Random(seed);
    let mut living = Vec::new();
    let mut in_use = 0;
    for value in 1..=load.blocks {
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
            in_use -= finish(&pool, &kernels, &streams, living.swap_remove(index), (&mut random, &late));
        };
        in_use += size;
        kernels.fill(block, value, random.below(load.cycles), &streams[home]);
        living.push((block, home, value));
        if rests(value) {
            streams.iter().for_each(|stream| stream.synchronize().unwrap());
        }
    }
    for used in living {
        finish(&pool, &kernels, &streams, used, (&mut random, &late));
    }
    for stream in &streams {
        stream.synchronize().unwrap();
    }
    let outcome = Outcome { mismatches: kernels.mismatches(&streams[0]), moves: pool.statistics().moves };
    drop(kernels);
    for block in [counter, dummy] {
        release(counters, block, streams[0].stream());
    }
    for stream in &streams {
        pool.retire_stream(stream.stream());
    }
    outcome
}

/// Checks a block, perhaps on other streams too, once these were made `late`, and releases it on one of them.
fn finish<P: MemoryProvider>(
    pool: &Pool<P>,
    kernels: &Kernels,
    streams: &[CudaStream],
    (block, home, value): (alloc_core::Block, usize, u32),
    (random, late): (&mut Random, &dyn Fn(&CudaStream)),
) -> u64 {
    let mut uses = StreamSet::new();
    for _ in 0..random.below(3) {
        let other = random.below(streams.len() as u64) as usize;
        if other != home {
            streams[other].wait_for(&streams[home]).unwrap();
            late(&streams[other]);
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

const LIMIT: u64 = 96 << 20;

#[test]
fn no_overlap_on_pages_that_move() {
    for streams in [2, 4] {
        let fake = fake();
        let _device = fake.is_none().then(any_device);
        if let Some(fake) = &fake {
            fake.lazy(0x1234_5678 + streams as u64);
        }
        let outcome = storm(provider(Addressing::Mapped), LIMIT, streams, Load::usual(), 99 + streams as u64);
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
        let outcome = storm(provider(Addressing::Segmented), LIMIT, streams, Load::usual(), 7 + streams as u64);
        assert_eq!(outcome.mismatches, 0);
    }
}

/// Streams that rest after most blocks are trusted, and then have work after all. Without the waits words are found wrong.
#[test]
fn no_overlap_where_trusted_streams_are_waited_for() {
    for addressing in [Addressing::Mapped, Addressing::Segmented] {
        let fake = fake();
        let _device = fake.is_none().then(any_device);
        if let Some(fake) = &fake {
            fake.lazy(0x0F1E_2D3C);
        }
        let dear = Changed::new(provider(addressing), Change::Dear);
        let unasked_waits = Arc::clone(&dear.unasked_waits);
        let rests = |value: u32| value % 16 < 12;
        let outcome = storm_with_rests(dear, LIMIT, 4, (Load::usual(), rests), 31);
        assert_eq!(outcome.mismatches, 0);
        assert!(unasked_waits.load(Ordering::Relaxed) > 0, "no stream was trusted");
    }
}

#[test]
fn without_the_rules_the_same_test_finds_overlaps() {
    let fake = fake();
    let _device = fake.is_none().then(any_device);
    if let Some(fake) = &fake {
        fake.lazy(0xABCD_EF01);
    }
    let reckless = Changed::new(provider(Addressing::Segmented), Change::Reckless);
    let outcome = storm(reckless, LIMIT, 4, Load::read_late(), 5);
    assert!(outcome.mismatches > 0, "the test can't find what it looks for");
}
