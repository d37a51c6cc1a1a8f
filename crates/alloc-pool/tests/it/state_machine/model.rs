//! The model: what must be true of a pool after each step.

use std::collections::BTreeMap;
use std::thread;

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{
    Address, Addressing, AllocError, Block, DeviceAllocator, Layout, MemoryProvider, ReleaseError, Stream,
};
use alloc_pool::PoolConfig;
use proptest::prelude::TestCaseError;
use proptest::{prop_assert, prop_assert_eq};

use super::operation::Operation;
use crate::support::{KIB, Rig};

/// A run of physical bytes: the handle's number, and the first and the last byte's offset in it.
type Extent = (u64, u64, u64);

struct Living {
    block: Block,
    born: Stream,
    /// The stream was retired since: another of the same name is another stream.
    orphan: bool,
    /// Other streams that used it.
    uses: Vec<Stream>,
    backing: Vec<Extent>,
}

pub struct Model {
    rig: Rig,
    config: PoolConfig,
    streams: Vec<Stream>,
    /// Streams that are retired, until a block is allocated for one of the same name.
    gone: Vec<Stream>,
    living: Vec<Living>,
    dead: Vec<Block>,
    allocations: u64,
    refused_releases: u64,
    steps: u64,
}

type Outcome = Result<(), TestCaseError>;

/// So many streams come before the others, and do nothing more: two fewer than the 63 that have a tag of their own.
const BYSTANDERS: u64 = 61;

impl Model {
    /// A pool for so many `streams`; if they are `among_many`, after nearly as many others as it can tell apart.
    pub fn new(provider: SimulatedConfig, config: PoolConfig, (streams, among_many): (u64, bool)) -> Self {
        let rig = Rig::new(provider, config.clone());
        let bystanders = if among_many { BYSTANDERS } else { 0 };
        for stream in (0..bystanders).map(|number| Stream::from_raw(1_000_000 + number)) {
            rig.give(rig.take(512, stream), stream);
        }
        Self {
            rig,
            config,
            streams: (1..=streams).map(Stream::from_raw).collect(),
            gone: Vec::new(),
            living: Vec::new(),
            dead: Vec::new(),
            allocations: bystanders,
            refused_releases: 0,
            steps: 0,
        }
    }

    pub fn apply(&mut self, operation: &Operation) -> Outcome {
        self.steps += 1;
        match *operation {
            Operation::Take { size, align, stream, on_thread, work } => {
                self.take(size, align, self.streams[stream % self.streams.len()], on_thread, work)?;
            }
            Operation::Give { block, stream, on_thread } => {
                if !self.living.is_empty() {
                    let living = self.living.swap_remove(block % self.living.len());
                    let stream = self.existing(stream).unwrap_or(living.born);
                    self.give(living, stream, on_thread)?;
                }
            }
            Operation::Use { block, stream } => {
                if let (Some(stream), false) = (self.existing(stream), self.living.is_empty()) {
                    self.use_on(block % self.living.len(), stream);
                }
            }
            Operation::GiveAgain { block } => {
                if !self.dead.is_empty() {
                    let block = self.dead[block % self.dead.len()];
                    let refusal = self.rig.try_give(block, self.streams[0], &[]);
                    check_refused(refusal, self.rig.provider.config())?;
                    self.refused_releases += 1;
                }
            }
            Operation::Complete { stream } => {
                self.rig.provider.complete_next(self.streams[stream % self.streams.len()]);
            }
            Operation::CompleteAll => self.rig.provider.complete_everything(),
            Operation::Retire { stream, same_name } => {
                let index = stream % self.streams.len();
                let old = self.streams[index];
                self.rig.pool.retire_stream(old);
                self.living.iter_mut().filter(|living| living.born == old).for_each(|living| living.orphan = true);
                if same_name {
                    self.gone.push(old);
                } else {
                    self.streams[index] = Stream::with_identity(old.handle(), self.steps);
                }
            }
            Operation::Trim { keep } => {
                let before = self.rig.figures().reserved.current;
                let given = self.rig.pool.trim(keep);
                let after = self.rig.figures().reserved.current;
                prop_assert_eq!(given, before - after);
                prop_assert!(before <= keep || after >= keep.saturating_sub(self.largest_piece()), "{keep}: {after}");
            }
            Operation::Grow { bytes, stream } => self.grow(bytes, self.streams[stream % self.streams.len()])?,
            Operation::Flush => self.rig.pool.flush_thread_cache(),
        }
        self.check()
    }

    /// A stream that was not retired.
    fn existing(&self, stream: usize) -> Option<Stream> {
        let all = self.streams.iter().cycle().skip(stream % self.streams.len()).take(self.streams.len());
        all.copied().find(|stream| !self.gone.contains(stream))
    }

    fn take(&mut self, size: u64, align: u64, stream: Stream, on_thread: bool, work: bool) -> Outcome {
        let layout = Layout::new(size, align).unwrap();
        let pool = &self.rig.pool;
        let result = match on_thread {
            false => pool.allocate(layout, stream),
            true => thread::scope(|scope| scope.spawn(|| pool.allocate(layout, stream)).join()).unwrap(),
        };
        let block = match result {
            Ok(block) => block,
            Err(error) => return self.check_refusal(layout, error),
        };
        self.allocations += 1;
        self.gone.retain(|gone| *gone != stream);
        prop_assert_eq!(block.size(), size);
        prop_assert!(block.address().is_aligned_to(align), "{block:?} is not aligned to {align}");
        let backing = self.backing(block);
        prop_assert!(backing.is_some(), "no memory behind {block:?}");
        let new = Living { block, born: stream, orphan: false, uses: Vec::new(), backing: backing.unwrap_or_default() };
        for other in &self.living {
            check_apart(&new, other)?;
        }
        if work && size > 0 {
            self.rig.work(block, stream);
        }
        self.living.push(new);
        Ok(())
    }

    /// Memory that is made beforehand is there, unless there is not so much.
    fn grow(&mut self, bytes: u64, stream: Stream) -> Outcome {
        let provider = self.rig.provider.config();
        let room = self.config.limit.unwrap_or(provider.capacity);
        let before = self.rig.figures();
        match self.rig.pool.grow_to(bytes, stream) {
            Ok(held) => {
                prop_assert!(held >= bytes);
                prop_assert_eq!(held, self.rig.provider.physical_bytes());
                prop_assert!(before.reserved.current < bytes || held == before.reserved.current);
                prop_assert!(held < bytes.max(before.reserved.current) + self.largest_piece());
                self.gone.retain(|gone| *gone != stream);
            }
            Err(error) => {
                prop_assert!(error.is_out_of_memory(), "{error}");
                prop_assert!(bytes.next_multiple_of(provider.granularity) > room, "{bytes} of {room}: {error}");
            }
        }
        let after = self.rig.figures();
        prop_assert_eq!((after.in_use, after.requested), (before.in_use, before.requested));
        Ok(())
    }

    /// A request may fail only if the living blocks, each with the pages that it can keep from being used otherwise,
    /// leave no room: what was released can be waited for.
    fn check_refusal(&self, layout: Layout, error: AllocError) -> Outcome {
        let provider = self.rig.provider.config();
        let room = self.config.limit.unwrap_or(provider.capacity);
        if let AllocError::Provider(_) = &error {
            let beyond = provider.addressing == Addressing::Segmented && layout.align() > provider.granularity;
            prop_assert!(beyond, "{error}");
            return Ok(());
        }
        let AllocError::OutOfMemory(figures) = &error else { return Err(TestCaseError::fail(error.to_string())) };
        prop_assert_eq!(figures.requested, layout.size());
        let held = self.rig.provider.physical_bytes();
        // With a threshold, what was created in vain has gone back since.
        let is_held = held == figures.reserved || self.config.release_threshold.is_some() && held < figures.reserved;
        prop_assert!(is_held, "{held} bytes: {error}");
        prop_assert_eq!(figures.device_free, Some(provider.capacity - figures.reserved));
        prop_assert_eq!((figures.limit, figures.device_total), (self.config.limit, Some(provider.capacity)));
        prop_assert!(figures.largest_free < layout.size() + layout.align(), "{error}");
        if provider.addressing == Addressing::Mapped {
            let most = |size: u64| {
                let bytes = if size > 64 * KIB { size } else { 512 * KIB };
                bytes.next_multiple_of(provider.granularity) + 2 * self.largest_piece()
            };
            let held: u64 = self.living.iter().map(|living| most(living.block.size())).sum();
            prop_assert!(held + most(layout.size() + layout.align()) > room, "refused with {held} held: {error}");
        }
        Ok(())
    }

    fn largest_piece(&self) -> u64 {
        let provider = self.rig.provider.config();
        let room = self.config.limit.unwrap_or(provider.capacity);
        let piece = match provider.addressing {
            // A block of many pieces has larger ones.
            Addressing::Mapped => 3 * room / u64::from(self.config.pieces_per_peak),
            Addressing::Segmented => room / u64::from(self.config.pieces_per_peak) + 6 * crate::support::MIB,
        };
        // One for slabs has room for some of what a thread keeps.
        let for_slabs = self.config.thread_cache / 4 + provider.granularity;
        piece.max(for_slabs).next_multiple_of(provider.granularity)
    }

    fn give(&mut self, living: Living, stream: Stream, on_thread: bool) -> Outcome {
        let pool = &self.rig.pool;
        let uses: Vec<Stream> = living.uses.iter().copied().filter(|used| *used != stream).collect();
        let give = || crate::support::try_give(pool, living.block, stream, &uses);
        match on_thread {
            false => give(),
            true => thread::scope(|scope| scope.spawn(give).join()).unwrap(),
        }
        .map_err(|error| TestCaseError::fail(error.to_string()))?;
        self.dead.push(living.block);
        Ok(())
    }

    /// Uses a block on a stream that is ordered after all earlier uses, as a program must see to itself.
    fn use_on(&mut self, block: usize, stream: Stream) {
        let living = &mut self.living[block];
        for &before in std::iter::once(&living.born).chain(&living.uses).filter(|before| **before != stream) {
            if let Some(event) = self.rig.provider.record(before).unwrap() {
                self.rig.provider.make_wait(stream, &event).unwrap();
            }
        }
        if (stream != living.born || living.orphan) && !living.uses.contains(&stream) {
            living.uses.push(stream);
        }
        if living.block.size() > 0 {
            self.rig.provider.submit(stream, living.block.address(), living.block.size());
        }
    }

    /// The physical bytes behind a block, `None` if there are not enough.
    fn backing(&self, block: Block) -> Option<Vec<Extent>> {
        let page = self.rig.provider.config().granularity;
        let (mut at, end) = (block.address().get(), block.address().get() + block.size());
        let mut extents = Vec::new();
        while at < end {
            let bytes = (end - at).min(page - at % page);
            let (handle, offset) = self.rig.provider.physical_at(Address::new(at))?;
            extents.push((handle, offset, offset + bytes - 1));
            at += bytes;
        }
        Some(extents)
    }

    fn check(&self) -> Outcome {
        let violations = self.rig.provider.violations();
        prop_assert!(violations.is_empty(), "{violations:?}");
        let figures = self.rig.figures();
        prop_assert_eq!(figures.requested.current, self.living.iter().map(|living| living.block.size()).sum::<u64>());
        prop_assert_eq!(figures.requested.count, self.allocations);
        let least: u64 = self.living.iter().map(|living| living.block.size().next_multiple_of(512)).sum();
        let most: u64 = self.living.iter().map(|living| class(living.block.size())).sum();
        prop_assert!((least..=most).contains(&figures.in_use.current), "{least} {} {most}", figures.in_use.current);
        prop_assert!(figures.in_use.current <= figures.reserved.current || figures.in_use.current <= 512);
        prop_assert_eq!(figures.reserved.current, self.rig.provider.physical_bytes());
        prop_assert_eq!(figures.reserved.peak, self.rig.provider.peak_physical_bytes());
        prop_assert!(self.config.limit.is_none_or(|limit| figures.reserved.peak <= limit));
        prop_assert_eq!(figures.rejected_releases, self.refused_releases);
        prop_assert_eq!(figures.leaked, 0);
        if self.steps.is_multiple_of(16) {
            for living in &self.living {
                let backing = self.backing(living.block);
                prop_assert!(backing.as_ref() == Some(&living.backing), "contents lost: {:?}", living.block);
            }
        }
        Ok(())
    }

    /// Everything is released: memory must come together again, and go back.
    pub fn finish(mut self) -> Outcome {
        while let Some(living) = self.living.pop() {
            // Its own stream, even if that is retired: owners outlive their streams.
            let stream = living.born;
            self.give(living, stream, false)?;
        }
        self.check()?;
        self.rig.pool.trim(0);
        let figures = self.rig.figures();
        let left = (figures.in_use.current, figures.cached, figures.parked.current, figures.reserved.current);
        prop_assert_eq!(left, (0, 0, 0, 0));
        prop_assert_eq!((self.rig.provider.mapped_bytes(), self.rig.provider.live_handles()), (0, 0));
        prop_assert_eq!(figures.largest_free, 0);
        let provider_config = *self.rig.provider.config();
        for &block in &self.dead {
            let refusal = self.rig.try_give(block, self.streams[0], &[]);
            check_refused(refusal, &provider_config)?;
        }
        let Rig { provider, pool } = self.rig;
        drop(pool);
        let left = (provider.reserved_addresses(), provider.live_events());
        prop_assert_eq!((provider.violations(), left), (Vec::new(), (0, 0)));
        Ok(())
    }
}

/// No byte of one is a byte of the other, be it by address or by what is behind it.
fn check_apart(one: &Living, other: &Living) -> Outcome {
    let span = |living: &Living| {
        let start = living.block.address().get();
        (start, start + living.block.size().max(1))
    };
    let ((start, end), (others, others_end)) = (span(one), span(other));
    prop_assert!(end <= others || others_end <= start, "{:?} overlaps {:?}", one.block, other.block);
    prop_assert!(one.block.id() != other.block.id(), "{:?} has the id of {:?}", one.block, other.block);
    let mut theirs: BTreeMap<u64, Vec<Extent>> = BTreeMap::new();
    for extent in &other.backing {
        theirs.entry(extent.0).or_default().push(*extent);
    }
    for &(handle, first, last) in &one.backing {
        let shared = theirs.get(&handle).into_iter().flatten().any(|&(_, from, to)| from <= last && first <= to);
        prop_assert!(!shared, "{:?} and {:?} share bytes of physical {handle}", one.block, other.block);
    }
    Ok(())
}

/// The block was released before. The addresses of segments that are gone are nobody's.
fn check_refused(refusal: Result<(), ReleaseError>, provider: &SimulatedConfig) -> Outcome {
    let gone = provider.addressing == Addressing::Segmented && matches!(refusal, Err(ReleaseError::Foreign { .. }));
    prop_assert!(gone || matches!(refusal, Err(ReleaseError::Stale { .. })), "{refusal:?}");
    Ok(())
}

/// What a block takes at most: its size class up to 64 KiB, whole units above. A block of no bytes may have to take
/// one unit where addresses without memory have run out.
fn class(size: u64) -> u64 {
    let bytes = size.max(1).next_multiple_of(512);
    if !(8 * KIB..=64 * KIB).contains(&bytes) {
        return bytes;
    }
    bytes.next_multiple_of(((bytes - 1).next_power_of_two() / 16).max(512))
}
