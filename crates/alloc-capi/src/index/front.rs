//! The table of living blocks that are found first: two places for each hash of an address, 2 MiB in all.
//!
//! A table that mirrors the address space has each large block's entry in a page of its own, which the system has to supply
//! when a block first starts there, and which stays. Here a thousand blocks are in a few hundred pages, whatever lies
//! between them.
//!
//! A place is written and read as a sequence lock is (after Boehm: "Can seqlocks get along with programming language memory
//! models?", 2012): its first word has a version, which moves on with each block, so that whoever changes the word by
//! compare-and-swap has proved that all he read belongs together.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use alloc_core::{Address, Block, BlockId, Stream};
use bytemuck::Zeroable;

use super::{Absent, Entry, Owner, UNIT_SHIFT};

const BUCKET_BITS: u32 = 14;
const WAYS: usize = 2;
#[cfg(test)]
pub(super) const SLOTS: usize = WAYS << BUCKET_BITS;

/// A block starts at the address.
const LIVING: u64 = 1;
/// Somebody is writing the other words.
const BUSY: u64 = 2;
/// Other streams were recorded for the block.
const SHARED: u64 = 4;
/// A block started at the address, and is gone.
const GONE: u64 = 8;
const STATE: u64 = 15;
/// One more version.
const VERSION: u64 = 16;

/// A place for a block. A cache line.
#[derive(Debug, Zeroable)]
#[repr(C, align(64))]
struct Slot {
    /// State and version.
    word: AtomicU64,
    unit: AtomicU64,
    id: AtomicU64,
    size: AtomicU64,
    handle: AtomicU64,
    identity: AtomicU64,
    owner: AtomicU64,
}

/// Two lines that processors fetch together.
#[derive(Debug, Zeroable)]
#[repr(C, align(128))]
struct Bucket([Slot; WAYS]);

/// The table.
pub(super) struct Front(Box<[Bucket]>);

fn bucket_of(unit: u64) -> usize {
    // Fibonacci hashing (Knuth, volume 3): neighbours, and blocks a power of two apart, get far from each other.
    (unit.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - BUCKET_BITS)) as usize
}

impl Slot {
    /// What the place holds, with its word, if that is a living block that starts there.
    #[inline]
    fn read(&self, unit: u64) -> Option<(u64, Entry)> {
        loop {
            let word = self.word.load(Ordering::Acquire);
            if word & LIVING == 0 || self.unit.load(Ordering::Relaxed) != unit {
                return None;
            }
            let entry = self.entry(unit, word);
            // What was read belongs to the word if that is the same afterwards.
            fence(Ordering::Acquire);
            if self.word.load(Ordering::Relaxed) == word {
                return Some((word, entry));
            }
        }
    }

    #[inline]
    fn entry(&self, unit: u64, word: u64) -> Entry {
        let [id, size, handle, identity, owner] = [&self.id, &self.size, &self.handle, &self.identity, &self.owner]
            .map(|field| field.load(Ordering::Relaxed));
        Entry {
            block: Block::from_parts(Address::new(unit << UNIT_SHIFT), size, BlockId::from_bits(id)),
            owner: owner as Owner,
            stream: Stream::with_identity(handle, identity),
            shared: word & SHARED != 0,
        }
    }

    /// Puts a block there, if none lives there; `gone` is told of the one that was there before, if it was at another
    /// address.
    #[inline]
    fn fill(&self, unit: u64, entry: &Entry, gone: impl FnOnce(u64)) -> bool {
        let word = self.word.load(Ordering::Acquire);
        if word & (LIVING | BUSY) != 0 {
            return false;
        }
        let before = self.unit.load(Ordering::Relaxed);
        if word & GONE != 0 && before != unit {
            // While the place still says so itself. If another is faster this is perhaps of its block, which does no harm.
            gone(before);
        }
        let next = (word & !STATE).wrapping_add(VERSION);
        if self.word.compare_exchange(word, next | BUSY, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // Whoever finds one of the words below finds the place busy.
        fence(Ordering::Release);
        self.unit.store(unit, Ordering::Relaxed);
        self.id.store(entry.block.id().to_bits(), Ordering::Relaxed);
        self.size.store(entry.block.size(), Ordering::Relaxed);
        self.handle.store(entry.stream.handle(), Ordering::Relaxed);
        self.identity.store(entry.stream.identity(), Ordering::Relaxed);
        self.owner.store(entry.owner.into(), Ordering::Relaxed);
        self.word.store(next | LIVING, Ordering::Release);
        true
    }

    /// Takes the block out that was read with the word, if it is still there.
    #[inline]
    fn end(&self, word: u64) -> bool {
        let gone = word & !STATE | GONE;
        self.word.compare_exchange(word, gone, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Whether a block was there last that started at this unit, and is gone.
    #[inline]
    fn had(&self, unit: u64) -> bool {
        self.word.load(Ordering::Acquire) & GONE != 0 && self.unit.load(Ordering::Relaxed) == unit
    }
}

impl Front {
    pub(super) fn new() -> Self {
        Self(bytemuck::zeroed_slice_box(1 << BUCKET_BITS))
    }

    #[inline]
    fn bucket(&self, unit: u64) -> &[Slot; WAYS] {
        &self.0[bucket_of(unit)].0
    }

    /// Notes a block, where its address was before if that place is free; `false` if both are taken.
    #[inline]
    pub(super) fn insert(&self, unit: u64, entry: &Entry, gone: impl Fn(u64)) -> bool {
        let [one, other] = self.bucket(unit);
        let (first, second) = if other.had(unit) { (other, one) } else { (one, other) };
        first.fill(unit, entry, &gone) || second.fill(unit, entry, &gone)
    }

    pub(super) fn find(&self, unit: u64) -> Result<Entry, Absent> {
        let bucket = self.bucket(unit);
        let found = bucket.iter().find_map(|slot| slot.read(unit));
        found.map(|(_, entry)| entry).ok_or_else(|| Self::absent(bucket, unit))
    }

    fn absent(bucket: &[Slot; WAYS], unit: u64) -> Absent {
        if bucket.iter().any(|slot| slot.had(unit)) { Absent::Freed } else { Absent::Unknown }
    }

    /// Takes a block out, if it is here and `accept` likes it.
    #[inline(always)]
    pub(super) fn take_if<T>(&self, unit: u64, accept: impl Fn(&Entry) -> Option<T>) -> Option<(Entry, T)> {
        let slot = self.bucket(unit).iter().find(|slot| slot.unit.load(Ordering::Relaxed) == unit)?;
        let (word, entry) = slot.read(unit)?;
        let accepted = accept(&entry)?;
        slot.end(word).then_some((entry, accepted))
    }

    /// Takes a block out, if `accept` likes it, or says what `accept` has against it; or else that it is not here.
    #[inline]
    pub(super) fn take<E>(
        &self,
        unit: u64,
        accept: &impl Fn(&Entry) -> Result<(), E>,
    ) -> Result<Result<Entry, E>, Absent> {
        let bucket = self.bucket(unit);
        for slot in bucket {
            while let Some((word, entry)) = slot.read(unit) {
                if let Err(refusal) = accept(&entry) {
                    return Ok(Err(refusal));
                }
                if slot.end(word) {
                    return Ok(Ok(entry));
                }
            }
        }
        Err(Self::absent(bucket, unit))
    }

    pub(super) fn mark_shared(&self, unit: u64) -> bool {
        self.bucket(unit).iter().any(|slot| {
            while let Some((word, _)) = slot.read(unit) {
                if slot.word.compare_exchange(word, word | SHARED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                    return true;
                }
            }
            false
        })
    }

    pub(super) fn for_each(&self, mut visit: impl FnMut(Entry)) {
        for slot in self.0.iter().flat_map(|bucket| &bucket.0) {
            let unit = slot.unit.load(Ordering::Relaxed);
            if let Some((_, entry)) = slot.read(unit) {
                visit(entry);
            }
        }
    }
}

/// Addresses whose blocks have the same two places.
#[cfg(test)]
pub(super) fn addresses_of_one_bucket(count: usize) -> Vec<u64> {
    (1..).filter(|unit| bucket_of(*unit) == 77).map(|unit| unit << UNIT_SHIFT).take(count).collect()
}
