//! An allocator that remembers where its living blocks come from, around the one of a heap.
//!
//! A stack is kept as the addresses that its calls return to, and each stack once. They get names when that is asked for. To read
//! the names in a library takes milliseconds, or many, so that addresses are looked up once, in their order, and each library
//! is read once for all of them. The standard library's backtraces, which are looked up one by one and know few libraries at a
//! time, took 70 ms for each block of a program in Python.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use alloc_core::{AllocError, Block, DeviceAllocator, Layout, ReleaseError, Stream, StreamSet, forward_allocator};
use rustc_hash::{FxHashMap, FxHashSet};

/// Calls that are kept of each stack: the nearest, among them a dozen of this library's own.
const FRAMES: usize = 64;
/// Stacks that no living block has are let go once there are this many, and as many more as there are living blocks: to look
/// through all of them then costs no more than to note them did.
const SPARE: usize = 1024;
/// How often the books are asked for that another thread has, a millisecond apart.
const PATIENCE: usize = 200;

/// What calls return to, the nearest first.
pub(super) type Stack = Arc<[usize]>;

/// The allocator.
#[derive(Debug)]
pub(crate) struct Traced {
    inner: &'static dyn DeviceAllocator,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    stacks: FxHashSet<Stack>,
    /// By address.
    living: FxHashMap<u64, Origin>,
}

/// Where a block comes from.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    pub(super) block: Block,
    pub(super) stack: Stack,
    pub(super) since: Instant,
}

impl Traced {
    pub(super) fn new(inner: &'static dyn DeviceAllocator) -> Self {
        Self { inner, books: Mutex::default() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn books_if_free(&self) -> Option<MutexGuard<'_, Books>> {
        match self.books.try_lock() {
            Ok(books) => Some(books),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(Duration::from_millis(1));
                None
            }
        }
    }

    /// Where those blocks come from that are this allocator's; `None` if another thread has the books and keeps them.
    pub(super) fn origins(&self, blocks: &[Block]) -> Option<Vec<Origin>> {
        let books = (0..PATIENCE).find_map(|_| self.books_if_free())?;
        let origin = |block: &Block| books.living.get(&block.address().get()).filter(|origin| origin.block == *block);
        Some(blocks.iter().filter_map(origin).cloned().collect())
    }
}

impl Books {
    fn insert(&mut self, block: Block, stack: &[usize]) {
        let stack = match self.stacks.get(stack) {
            Some(stack) => Arc::clone(stack),
            None => {
                self.forget_stacks();
                let stack = Stack::from(stack);
                self.stacks.insert(Arc::clone(&stack));
                stack
            }
        };
        self.living.insert(block.address().get(), Origin { block, stack, since: Instant::now() });
    }

    /// Lets go of stacks that no living block has, once there are many: a program that recurses, or interprets, has ever new ones.
    fn forget_stacks(&mut self) {
        if self.stacks.len() >= 2 * self.living.len() + SPARE {
            self.stacks.retain(|stack| Arc::strong_count(stack) > 1);
        }
    }

    fn remove(&mut self, block: Block) {
        let address = block.address().get();
        if self.living.get(&address).is_some_and(|origin| origin.block == block) {
            self.living.remove(&address);
        }
    }
}

fn stack() -> Vec<usize> {
    let mut stack = Vec::with_capacity(FRAMES);
    backtrace::trace(|frame| {
        // Where a thread begins, it returns to nothing.
        stack.extend(Some(frame.ip().addr()).filter(|address| *address != 0));
        stack.len() < FRAMES
    });
    stack
}

// SAFETY: all is answered by the allocator within, to which each block goes back as it came.
unsafe impl DeviceAllocator for Traced {
    fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
        let block = self.inner.allocate(layout, stream)?;
        let stack = stack();
        self.books().insert(block, &stack);
        Ok(block)
    }

    unsafe fn release(&self, block: Block, stream: Stream, uses: &StreamSet) -> Result<(), ReleaseError> {
        // Before another block can be at its address.
        self.books().remove(block);
        // SAFETY: the caller's promise.
        unsafe { self.inner.release(block, stream, uses) }
    }

    forward_allocator!(self => self.inner; device, statistics, trim, grow_to, transfer, retire_stream);
}

/// The calls at some addresses, in words: of one address several, where functions were inlined, the nearest first.
pub(super) fn names<'a>(stacks: impl Iterator<Item = &'a Stack>) -> FxHashMap<usize, Vec<String>> {
    let mut addresses: Vec<usize> = stacks.flat_map(|stack| stack.iter().copied()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let name = |address: usize| {
        let mut calls = Vec::new();
        backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| calls.push(in_words(symbol)));
        if calls.is_empty() {
            calls.push(format!("{address:#x}"));
        }
        (address, calls)
    };
    addresses.into_iter().map(name).collect()
}

fn in_words(symbol: &backtrace::Symbol) -> String {
    let name = symbol.name().map_or_else(|| "a function without a name".to_owned(), |name| format!("{name:#}"));
    match (symbol.filename(), symbol.lineno()) {
        (Some(file), Some(line)) => format!("{name} ({}:{line})", file.display()),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use alloc_core::{Address, BlockId, Device, SimulatedAllocator};

    use super::*;

    fn traced() -> Traced {
        Traced::new(Box::leak(Box::new(SimulatedAllocator::new(Device::CPU, 1 << 20))))
    }

    fn allocate(traced: &Traced) -> Block {
        traced.allocate(Layout::bytes(100).unwrap(), Stream::DEFAULT).unwrap()
    }

    #[test]
    fn living_blocks_are_known_and_stacks_kept_once() {
        let traced = traced();
        let blocks: Vec<Block> = (0..10).map(|_| allocate(&traced)).collect();
        let origins = traced.origins(&blocks).unwrap();
        assert_eq!(origins.iter().map(|origin| origin.block).collect::<Vec<_>>(), blocks);
        assert!(origins.iter().all(|origin| Arc::ptr_eq(&origin.stack, &origins[0].stack)));
        let names = names(origins.iter().map(|origin| &origin.stack));
        let has =
            |words: &str| origins[0].stack.iter().flat_map(|address| &names[address]).any(|call| call.contains(words));
        assert!(has("living_blocks_are_known_and_stacks_kept_once") && has("traced.rs:"), "{names:?}");

        // SAFETY: nothing uses simulated memory.
        unsafe { traced.release(blocks[3], Stream::DEFAULT, StreamSet::EMPTY) }.unwrap();
        // SAFETY: as above; the second release is refused.
        assert!(unsafe { traced.release(blocks[3], Stream::DEFAULT, StreamSet::EMPTY) }.is_err());
        assert_eq!(traced.origins(&blocks).unwrap().len(), 9);
        let again = allocate(&traced);
        assert_eq!(again.address(), blocks[3].address());
        // SAFETY: as above.
        assert!(unsafe { traced.release(blocks[3], Stream::DEFAULT, StreamSet::EMPTY) }.is_err());
        assert_eq!(traced.origins(&blocks).unwrap().len(), 9, "another block is there");
        assert_eq!(traced.origins(&[again]).unwrap().len(), 1);
    }

    #[test]
    fn stacks_of_blocks_that_are_gone_are_let_go() {
        let mut books = Books::default();
        let block = |number| Block::from_parts(Address::new(512 * number), 1, BlockId::from_bits(number));
        let calls = |number| [number as usize, 7];
        for number in 1..=100 {
            books.insert(block(number), &calls(number));
        }
        for number in 101..20_000 {
            books.insert(block(number), &calls(number));
            books.remove(block(number));
            assert!(books.stacks.len() <= 2 * 100 + SPARE, "{number}");
        }
        for number in 1..=100 {
            books.insert(block(number + 100), &calls(number));
        }
        assert!(Arc::ptr_eq(&books.living[&512].stack, &books.living[&(512 * 101)].stack), "those in use stay");
    }

    #[test]
    fn books_that_another_has_are_not_waited_for() {
        let traced: &'static Traced = Box::leak(Box::new(traced()));
        let block = allocate(traced);
        let held = traced.books();
        let (asks, answer) = std::sync::mpsc::channel();
        std::thread::spawn(move || asks.send(traced.origins(&[block]).is_none()));
        assert_eq!(answer.recv_timeout(Duration::from_secs(20)), Ok(true));
        drop(held);
        assert!(traced.origins(&[block]).is_some());
    }
}
