//! A model allocator that keeps complete books, and helpers to make traces.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use alloc_core::{
    Address, AllocError, Block, BlockId, Device, DeviceAllocator, Layout, OutOfMemory, Place, ReleaseError, Statistics,
    Stream, StreamSet, Transfer, TransferError,
};
use alloc_trace::{Action, Policy, Row, Trace};

/// Serves blocks of the host's memory and remembers everything.
#[derive(Debug)]
pub struct Model {
    device: Device,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
pub struct Books {
    pub living: HashMap<u64, (Block, Vec<u8>)>,
    pub calls: Vec<Call>,
    pub statistics: Statistics,
    next_id: u64,
    fail_at: Option<u64>,
    refuse_at: Option<u64>,
    allocations: u64,
    releases: u64,
    pub touched_blocks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Allocate(u64, Stream),
    Release(u64, Stream),
}

impl Model {
    pub fn new() -> Self {
        Self::on(Device::CPU)
    }

    pub fn on(device: Device) -> Self {
        Self { device, books: Mutex::default() }
    }

    /// A model whose allocation number `at`, counted from 0, fails.
    pub fn failing_at(at: u64) -> Self {
        let model = Self::new();
        model.books().fail_at = Some(at);
        model
    }

    /// A model that refuses release number `at`, counted from 0.
    pub fn refusing_at(at: u64) -> Self {
        let model = Self::new();
        model.books().refuse_at = Some(at);
        model
    }

    pub fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }
}

// SAFETY: each block has a vector to itself, which is kept until the release, and an aligned address in it. No work is in
// flight.
unsafe impl DeviceAllocator for Model {
    fn device(&self) -> Device {
        self.device
    }

    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let mut books = self.books();
        let number = books.allocations;
        books.allocations += 1;
        if books.fail_at == Some(number) {
            let mut error = OutOfMemory::new(self.device, layout.size());
            error.in_use = books.statistics.in_use.current;
            return Err(error.into());
        }
        let mut memory = vec![0_u8; (layout.size() + layout.align()) as usize];
        let start = memory.as_mut_ptr().expose_provenance() as u64;
        let address = Address::new(start.next_multiple_of(layout.align()));
        books.next_id += 1;
        let block = Block::from_parts(address, layout.size(), BlockId::from_bits(books.next_id));
        let rounded = layout.size().next_multiple_of(512);
        books.statistics.requested.add(layout.size());
        books.statistics.in_use.add(rounded);
        books.statistics.reserved.add(rounded);
        books.statistics.misses += 1;
        books.statistics.provider_calls.create += 1;
        books.living.insert(block.id().to_bits(), (block, memory));
        books.calls.push(Call::Allocate(layout.size(), stream));
        Ok(block)
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        let mut books = self.books();
        let number = books.releases;
        books.releases += 1;
        if books.refuse_at == Some(number) {
            return Err(ReleaseError::Foreign { device: self.device, block });
        }
        let Some((living, memory)) = books.living.remove(&block.id().to_bits()) else {
            return Err(ReleaseError::Stale { device: self.device, block });
        };
        assert_eq!(living, block);
        assert!(uses.is_empty());
        let start = block.address().get() as usize - memory.as_ptr().addr();
        let memory = &memory[start..][..block.size() as usize];
        let pages = memory.iter().step_by(4096).chain(memory.last());
        books.touched_blocks += u64::from(!memory.is_empty() && pages.into_iter().all(|&byte| byte != 0));
        let rounded = block.size().next_multiple_of(512);
        books.statistics.requested.sub(block.size());
        books.statistics.in_use.sub(rounded);
        books.statistics.reserved.sub(rounded);
        books.statistics.provider_calls.release += 1;
        books.calls.push(Call::Release(block.size(), stream));
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        self.books().statistics
    }

    fn trim(&self, _keep: u64) -> u64 {
        0
    }

    fn transfer(&self) -> &dyn Transfer {
        &NoTransfer
    }
}

#[derive(Debug)]
struct NoTransfer;

// SAFETY: it copies nothing, and says so; no work is ever in flight, so none is waited for; it shares no stream.
unsafe impl Transfer for NoTransfer {
    fn can_copy(&self, _from: Device, _to: Device) -> bool {
        false
    }

    unsafe fn copy(&self, from: Place, to: Place, _bytes: u64, _stream: Stream) -> Result<(), TransferError> {
        Err(TransferError::Unsupported { from: from.device, to: to.device })
    }

    unsafe fn fill(&self, to: Place, _bytes: u64, _value: u8, _stream: Stream) -> Result<(), TransferError> {
        Err(TransferError::Unsupported { from: to.device, to: to.device })
    }

    fn synchronize(&self, _stream: Stream) -> Result<(), TransferError> {
        Ok(())
    }
}

pub const HEADER: &str = "Thread,Time,Action,Pointer,Size,Stream\n";

pub fn row(thread: u64, action: Action, pointer: u64, bytes: u64, stream: u64) -> Row {
    let (pointer, stream) = (Address::new(pointer), Stream::from_raw(stream));
    Row { line: 0, thread, time: Duration::from_micros(pointer.get() % 1000), action, pointer, bytes, stream }
}

pub fn trace(rows: &[Row]) -> Trace {
    Trace::from_rows(rows.iter().copied().map(Ok), Policy::Strict).unwrap()
}

/// A small generator of random numbers (xorshift64*), the same on every machine.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % bound
    }
}

/// A random program: consistent rows over some threads and streams, with blocks left living at the end.
pub fn random_rows(seed: u64, count: usize, threads: u64, streams: u64) -> Vec<Row> {
    let mut random = Random(seed);
    let mut living: Vec<(u64, u64)> = Vec::new();
    let mut free_pointers: Vec<u64> = (1..=count as u64).map(|at| at * 0x1000).collect();
    let mut rows = Vec::new();
    while rows.len() < count {
        let (thread, stream) = (random.below(threads), random.below(streams));
        if living.is_empty() || random.below(100) < 55 {
            let Some(pointer) = free_pointers.pop() else { break };
            let bits = random.below(17);
            let bytes = random.below(1 << bits);
            living.push((pointer, bytes));
            rows.push(row(thread, Action::Allocate, pointer, bytes, stream));
        } else {
            let (pointer, bytes) = living.swap_remove(random.below(living.len() as u64) as usize);
            free_pointers.push(pointer);
            rows.push(row(thread, Action::Free, pointer, bytes, stream));
        }
    }
    rows
}
