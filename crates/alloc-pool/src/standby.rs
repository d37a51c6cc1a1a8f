//! The standby block: a large block that one call gives back and the next one takes, over and over, without the arena's
//! lock.
//!
//! A program that allocates and releases blocks of one size in turn gets the same block each time, out of its rest. All
//! that changes from pair to pair is the generation and a few sums, so the arena offers such a block here: one word
//! says whether the block is resting or out and how often that changed, and one compare-and-swap changes it, or a plain
//! store of the thread that the offer is biased to. Whoever
//! takes the lock ends the offer first, and enters in the books what happened meanwhile. So nothing else can have
//! changed in the heap while the offer stood, and the block is still the one that best fit would choose.

use std::num::NonZeroU64;

use alloc_core::Stream;

use crate::bias::{Bias, Owner};
use crate::id::{self, Parts};
use crate::placement::heap::Tag;
use crate::primitive::{AtomicU64, Ordering};

/// The bit of a word that says that the block is out. Above it is the generation of the block that is out, or of the
/// next one; above that what makes words differ from those of all offers before.
const OUT: u64 = 1;
const GENERATION_SHIFT: u32 = 1;
const NUMBER_SHIFT: u32 = GENERATION_SHIFT + id::NODE_GENERATION_BITS;
/// Numbers end long before they would wrap.
const MAX_NUMBER: u64 = 1 << (u64::BITS - NUMBER_SHIFT - 1);

/// The most offers without an owner after threads took them from each other.
const MAX_SHARED: u32 = 1 << 16;

/// What an offer says of its block. It stays as it is as long as the offer stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offered {
    /// The id of the next block.
    pub(crate) id: u64,
    pub(crate) address: u64,
    /// Bytes asked for.
    pub(crate) size: u64,
    pub(crate) tag: Tag,
    pub(crate) home: Stream,
}

/// What became of a block while it was on offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// How often it was released.
    pub(crate) releases: u64,
    /// Whether it was allocated once more than that.
    pub(crate) is_out: bool,
}

/// The arena's side of the offers, under its lock: the word that the offer at present began with, or else the one that
/// the last offer ended with.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    word: u64,
    /// How many offers to make until one may have an owner again, and how many the next time that it turns out not to be
    /// alone.
    shared: u32,
    shared_next: u32,
}

/// The block on offer, if any. In cache lines of its own, since threads write it without the lock.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Standby {
    /// Zero as long as nothing is on offer, and never the same again otherwise: a compare-and-swap that succeeds
    /// proves that what was read of the offer belongs to the word.
    word: AtomicU64,
    /// The id without the generation.
    name: AtomicU64,
    address: AtomicU64,
    size: AtomicU64,
    home: [AtomicU64; 2],
    tag: AtomicU64,
    /// Who changes the word without a compare-and-swap. Changes under the lock only.
    bias: Bias,
}

impl Standby {
    pub(crate) fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            name: AtomicU64::new(0),
            address: AtomicU64::new(0),
            size: AtomicU64::new(0),
            home: [AtomicU64::new(0), AtomicU64::new(0)],
            tag: AtomicU64::new(0),
            bias: Bias::new(),
        }
    }

    /// Takes the block if it is resting and just what is asked for.
    #[inline(always)]
    pub(crate) fn take(&self, size: u64, tag: Tag, stream: Stream, me: Option<&Owner>) -> Option<Parts> {
        let word = self.word.load(Ordering::Acquire);
        if word & OUT != 0
            || word == 0
            || self.size.load(Ordering::Relaxed) != size
            || self.tag.load(Ordering::Relaxed) != u64::from(tag)
            || !self.is_home(stream)
        {
            return None;
        }
        let id = self.name.load(Ordering::Relaxed) | generation_in(word);
        let address = NonZeroU64::new(self.address.load(Ordering::Relaxed))?;
        self.step(word, me).then_some((address, id))
    }

    /// Gives the block back if it is this one, and is out.
    #[inline(always)]
    pub(crate) fn give_back(&self, address: u64, size: u64, id: u64, stream: Stream, me: Option<&Owner>) -> bool {
        let word = self.word.load(Ordering::Acquire);
        word & OUT != 0
            && self.name.load(Ordering::Relaxed) | generation_in(word) == id
            && self.address.load(Ordering::Relaxed) == address
            && self.size.load(Ordering::Relaxed) == size
            && self.is_home(stream)
            && self.step(word, me)
    }

    /// From resting to out, or from out to the next generation's rest. Orders what was done with the block before.
    #[inline(always)]
    fn step(&self, word: u64, me: Option<&Owner>) -> bool {
        if let Some(me) = me
            && let Some(_alone) = self.bias.enter(me)
        {
            // The offer may have ended since the word was read, but won't now.
            let is_this = self.word.load(Ordering::Relaxed) == word;
            if is_this {
                self.word.store(word + 1, Ordering::Release);
            }
            return is_this;
        }
        // Whoever finds the word of an offer that has an owner finds the owner as well, and whoever finds none has the
        // word of an offer that has ended or has none: there the compare-and-swap fails.
        self.bias.is_shared() && self.word.compare_exchange(word, word + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    #[inline(always)]
    fn is_home(&self, stream: Stream) -> bool {
        let [handle, identity] = &self.home;
        handle.load(Ordering::Relaxed) == stream.handle() && identity.load(Ordering::Relaxed) == stream.identity()
    }

    /// Whether a block is on offer. The holder of the lock can rely on it.
    #[inline(always)]
    pub(crate) fn is_on_offer(&self) -> bool {
        self.word.load(Ordering::Relaxed) != 0
    }

    /// Offers a resting block. Called under the lock, after the last offer has ended.
    pub(crate) fn offer(&self, offers: &mut Offers, offered: Offered, me: Option<&Owner>) {
        let number = (offers.word >> NUMBER_SHIFT) + 1;
        if number >= MAX_NUMBER {
            return;
        }
        let generation = offered.id & id::NODE_GENERATIONS;
        match me {
            Some(me) if offers.shared == 0 => self.bias.give(me),
            _ => offers.shared = offers.shared.saturating_sub(1),
        }
        offers.word = number << NUMBER_SHIFT | generation << GENERATION_SHIFT;
        self.name.store(offered.id ^ generation, Ordering::Relaxed);
        self.address.store(offered.address, Ordering::Relaxed);
        self.size.store(offered.size, Ordering::Relaxed);
        self.tag.store(u64::from(offered.tag), Ordering::Relaxed);
        self.home[0].store(offered.home.handle(), Ordering::Relaxed);
        self.home[1].store(offered.home.identity(), Ordering::Relaxed);
        // Last, for whoever finds the word to find the rest as well.
        self.word.store(offers.word, Ordering::Release);
    }

    /// Ends the offer, if there is one, after it was taken from its owner if that is another thread. Called under the
    /// lock.
    pub(crate) fn end(&self, offers: &mut Offers, me: Option<&Owner>, revoke: impl FnOnce(&Bias) -> bool) -> Outcome {
        let word = if me.is_some_and(|me| self.bias.is_of(me)) {
            let word = self.word.load(Ordering::Relaxed);
            self.word.store(0, Ordering::Relaxed);
            word
        } else {
            if !self.bias.is_shared() && revoke(&self.bias) {
                offers.shared = offers.shared_next;
                offers.shared_next = (2 * offers.shared_next).clamp(1, MAX_SHARED);
            }
            self.word.swap(0, Ordering::AcqRel)
        };
        if word == 0 {
            return Outcome { releases: 0, is_out: false };
        }
        let steps = word - std::mem::replace(&mut offers.word, word);
        Outcome { releases: steps / 2, is_out: word & OUT != 0 }
    }
}

/// The generation of a word, where ids have it.
#[inline(always)]
fn generation_in(word: u64) -> u64 {
    word >> GENERATION_SHIFT & id::NODE_GENERATIONS
}

#[cfg(test)]
mod tests;
