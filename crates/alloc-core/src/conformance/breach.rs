//! How a promise can be broken.

use thiserror::Error;

use crate::{AllocError, Block, Layout, LayoutError, ReleaseError, TransferError};

use super::Promise;

/// A promise that an allocator broke: which, where, and how to see it again.
#[derive(Debug, Error)]
#[error("{promise} (seed {seed:#x}, step {step}): {breach}")]
#[non_exhaustive]
pub struct Broken {
    /// The promise.
    pub promise: Promise,
    /// The seed that [`Options::seed`](super::Options::seed) gives the same operations again with.
    pub seed: u64,
    /// How many blocks had been asked for or given back.
    pub step: u64,
    /// What happened.
    pub breach: Box<Breach>,
}

/// What an allocator did that it must not do.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Breach {
    /// Two living blocks share bytes.
    #[error("{block:?} overlaps {other:?}, which is alive")]
    Overlap {
        /// The block that was handed out.
        block: Block,
        /// The one that was handed out before.
        other: Block,
    },
    /// Two living blocks have the same address.
    #[error("{block:?} has the address of {other:?}, which is alive")]
    SharedAddress {
        /// The block that was handed out.
        block: Block,
        /// The one that was handed out before.
        other: Block,
    },
    /// Two living blocks have the same id.
    #[error("{block:?} has the id of {other:?}, which is alive")]
    SharedId {
        /// The block that was handed out.
        block: Block,
        /// The one that was handed out before.
        other: Block,
    },
    /// The address is no multiple of the alignment.
    #[error("{block:?} is not aligned to {align} bytes")]
    Misaligned {
        /// The block.
        block: Block,
        /// The alignment asked for, in bytes.
        align: u64,
    },
    /// The block says another size than was asked for.
    #[error("{block:?} for {asked} bytes")]
    WrongSize {
        /// The block.
        block: Block,
        /// Bytes asked for.
        asked: u64,
    },
    /// The end of the block is past the end of all addresses.
    #[error("{block:?} wraps")]
    Wraps {
        /// The block.
        block: Block,
    },
    /// The test's own inspection of a block failed.
    #[error("{block:?}: {reason}")]
    Inspection {
        /// The block.
        block: Block,
        /// What the inspection said.
        reason: String,
    },
    /// A block lost what was written to it.
    #[error("byte {offset} of {block:?} is {found:#04x} where {expected:#04x} was written")]
    Contents {
        /// The block.
        block: Block,
        /// The byte in the block.
        offset: u64,
        /// What was written.
        expected: u8,
        /// What was read.
        found: u8,
    },
    /// The options ask for blocks that can't be.
    #[error("the options are wrong: {error}")]
    Layout {
        /// Why not.
        error: LayoutError,
    },
    /// A request that should have been served was refused.
    #[error("{layout:?} was refused: {error}")]
    Refused {
        /// The request.
        layout: Layout,
        /// The answer.
        error: AllocError,
    },
    /// A request was served that no device has the memory for.
    #[error("{layout:?} was served with {block:?}")]
    Impossible {
        /// The request.
        layout: Layout,
        /// The answer.
        block: Block,
    },
    /// A request was rightly refused, with an error that says something untrue.
    #[error("{layout:?} was refused with {error:?}: {untrue}")]
    WrongError {
        /// The request.
        layout: Layout,
        /// The answer.
        error: AllocError,
        /// What is wrong with it.
        untrue: &'static str,
    },
    /// More bytes were handed out than there are, and nothing was refused.
    #[error("{served} bytes served of a capacity of {capacity}")]
    BeyondCapacity {
        /// Bytes handed out.
        served: u64,
        /// Bytes that there are.
        capacity: u64,
    },
    /// Memory that was served before is out of reach now.
    #[error("{served} bytes could be had, {expected} were expected: {occasion}")]
    Lost {
        /// Bytes that could be had.
        served: u64,
        /// Bytes expected.
        expected: u64,
        /// When.
        occasion: &'static str,
    },
    /// A living block was not taken back.
    #[error("the release of a living block was refused: {error}")]
    ReleaseRefused {
        /// The answer.
        error: ReleaseError,
    },
    /// A release that had to be refused was accepted.
    #[error("the release of {block:?} was accepted: {reason}")]
    Accepted {
        /// The block as it was given.
        block: Block,
        /// Why it had to be refused.
        reason: &'static str,
    },
    /// A bad release was refused for the wrong reason.
    #[error("the release of {block:?} was refused with {error:?}, but: {reason}")]
    WrongRefusal {
        /// The block as it was given.
        block: Block,
        /// The answer.
        error: ReleaseError,
        /// Why it had to be refused.
        reason: &'static str,
    },
    /// A figure of the statistics is wrong.
    #[error("{figure} is {found}, {expected} expected")]
    Figure {
        /// The figure's name.
        figure: &'static str,
        /// What it had to be.
        expected: Expected,
        /// What it is.
        found: u64,
    },
    /// A copy or fill failed.
    #[error("a transfer failed: {error}")]
    Transfer {
        /// The failure.
        error: TransferError,
    },
    /// A thread that used the allocator panicked.
    #[error("a thread panicked: {message}")]
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// The test's own check after the allocator was dropped failed.
    #[error("after the allocator was dropped: {reason}")]
    Finish {
        /// What the check said.
        reason: String,
    },
}

/// What a figure had to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(clippy::exhaustive_enums, reason = "a number is equal, at least or at most")]
pub enum Expected {
    /// Just this.
    #[error("{0}")]
    Exactly(u64),
    /// This or more.
    #[error("at least {0}")]
    AtLeast(u64),
    /// This or less.
    #[error("at most {0}")]
    AtMost(u64),
}

impl Expected {
    pub(super) fn admits(self, found: u64) -> bool {
        match self {
            Self::Exactly(number) => found == number,
            Self::AtLeast(number) => found >= number,
            Self::AtMost(number) => found <= number,
        }
    }
}
