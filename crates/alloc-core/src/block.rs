//! A piece of device memory as allocators hand it out.

use std::fmt;

/// An address in a device's address space. A number, not a pointer: the processor may not be able to follow it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(u64);

impl Address {
    /// An address by its number.
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The address `bytes` further on, or `None` where that wraps.
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// Whether the address is a multiple of `align`, a power of two.
    pub const fn is_aligned_to(self, align: u64) -> bool {
        self.0 & (align - 1) == 0
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A range of addresses, as a provider reserves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(clippy::exhaustive_structs, reason = "a range is this")]
pub struct AddressRange {
    /// The first address.
    pub start: Address,
    /// The length in bytes.
    pub bytes: u64,
}

/// What an allocator finds its block by again: opaque to all others. It carries a generation, so that the id of a
/// released block is never that of a living one and a stale release is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockId(u64);

impl BlockId {
    /// An id from the allocator's own bits.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The allocator's own bits.
    pub const fn to_bits(self) -> u64 {
        self.0
    }
}

/// A piece of device memory. Like a raw pointer it is `Copy` and frees nothing by itself: the crate `buffer` has
/// the owner that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a block that is not released leaks"]
pub struct Block {
    address: Address,
    size: u64,
    id: BlockId,
}

impl Block {
    /// A block from its parts; for allocators, and for callers that kept the parts of a block elsewhere (behind a
    /// C interface, say).
    pub const fn from_parts(address: Address, size: u64, id: BlockId) -> Self {
        Self { address, size, id }
    }

    /// Where the block starts. Unique among living blocks, those of zero bytes included.
    pub const fn address(&self) -> Address {
        self.address
    }

    /// How many bytes were asked for.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The allocator's own name for the block.
    pub const fn id(&self) -> BlockId {
        self.id
    }
}
