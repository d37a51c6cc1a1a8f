//! The pieces of a heap, and the streams that use them.

use alloc_core::Stream;

use crate::placement::units::UNIT_SHIFT;

/// No node.
pub(crate) const NIL: u32 = u32::MAX;

/// A stream, as a small number.
pub(crate) type Tag = u8;
/// A set of streams, one bit each.
pub(crate) type TagSet = u64;
/// How many tags there are.
pub(crate) const TAGS: usize = 64;
/// The tag of all streams that came when the others were taken. A set does not tell them apart, but a free node has the name of
/// one of them.
pub(crate) const SHARED_TAG: Tag = TAGS as Tag - 1;
/// The set of those streams.
pub(crate) const SHARED_SET: TagSet = 1 << SHARED_TAG;

/// No stream in particular: whose the blocks are whose own stream is gone, and free memory that several may still use of those
/// that share a tag.
pub(crate) const NOBODY: Stream = Stream::with_identity(u64::MAX, u64::MAX);

/// The set that a stream may take memory from without an order, wherever that is.
#[inline]
pub(crate) fn own_set(tag: Tag) -> TagSet {
    if tag == SHARED_TAG { 0 } else { 1 << tag }
}

/// The tags of a set.
pub(crate) fn each_of(tags: TagSet) -> impl Iterator<Item = Tag> {
    let mut rest = tags;
    std::iter::from_fn(move || {
        let tag = rest.trailing_zeros();
        rest &= rest.wrapping_sub(1);
        (tag < TagSet::BITS).then_some(tag as Tag)
    })
}

/// What a piece of the range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not a piece: an entry of the array that is free for reuse.
    Vacant,
    /// Handed out (or claimed for a request whose pages are on their way).
    Used,
    /// Backed by memory and free.
    Free,
    /// Addresses only.
    Hole,
}

/// One cache line.
#[derive(Clone, Debug)]
#[repr(align(64))]
pub(crate) struct Node {
    pub(crate) start: u32,
    pub(crate) units: u32,
    pub(crate) prev: u32,
    pub(crate) next: u32,
    pub(crate) link_prev: u32,
    pub(crate) link_next: u32,
    pub(crate) generation: u32,
    pub(crate) kind: Kind,
    /// The stream of a used node's block.
    pub(crate) tag: Tag,
    /// The streams that used a free node's memory.
    pub(crate) users: TagSet,
    /// When the last of a free node's memory was released.
    pub(crate) stamp: u64,
    /// By how many bytes the request of a used node was smaller; the bin of a free one.
    slack_or_bin: u16,
    /// The stream of a used node's block; of a free one that streams used which share a tag the one of them, or [`NOBODY`].
    pub(crate) home: Stream,
}

impl Node {
    /// An entry that was never used.
    pub(crate) const VACANT: Self = Self {
        start: 0,
        units: 0,
        prev: NIL,
        next: NIL,
        link_prev: NIL,
        link_next: NIL,
        generation: 0,
        kind: Kind::Vacant,
        tag: 0,
        users: 0,
        stamp: 0,
        slack_or_bin: 0,
        home: Stream::DEFAULT,
    };

    /// The bytes that a used node's block was asked to have. Of any other node it says nothing, and a stale id may name one.
    #[inline]
    pub(crate) fn requested(&self) -> u64 {
        (u64::from(self.units) << UNIT_SHIFT).wrapping_sub(u64::from(self.slack_or_bin))
    }

    /// By how many bytes the request of a used node was smaller.
    #[inline]
    pub(crate) fn slack(&self) -> u16 {
        self.slack_or_bin
    }

    #[inline(always)]
    pub(crate) fn set_slack(&mut self, slack: u16) {
        self.slack_or_bin = slack;
    }

    /// Where a free node is listed.
    #[inline(always)]
    pub(crate) fn bin(&self) -> u16 {
        self.slack_or_bin
    }

    #[inline(always)]
    pub(crate) fn set_bin(&mut self, bin: u16) {
        self.slack_or_bin = bin;
    }

    pub(crate) fn end(&self) -> u64 {
        u64::from(self.start) + u64::from(self.units)
    }
}
