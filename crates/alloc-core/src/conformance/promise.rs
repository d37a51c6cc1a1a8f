//! The list of promises.

use std::fmt;

use super::Broken;
use super::promises;
use super::trial::{Trial, Verdict};

macro_rules! promises {
    ($($(#[doc = $doc:literal])+ $variant:ident => $name:literal, $check:path;)+) => {
        /// Something that every allocator promises, and that the suite checks by itself.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Promise {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Promise {
            /// All promises, in the order that [`Suite::run_all`](super::Suite::run_all) checks them in.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The promise's name, as the tests that [`conformance!`](crate::conformance!) makes have it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            pub(super) fn check(self, trial: &Trial<'_>) -> Result<Verdict, Broken> {
                match self {
                    $(Self::$variant => $check(trial),)+
                }
            }
        }
    };
}

promises! {
    /// Sizes at and around every power of two are served.
    Sizes => "sizes", promises::sizes::sizes;
    /// Every alignment is kept, with sizes at and around it.
    Alignments => "alignments", promises::sizes::alignments;
    /// Blocks of no bytes are valid, have addresses of their own, and cost nothing.
    ZeroBytes => "zero_bytes", promises::sizes::zero_bytes;
    /// Sizes and alignments up to the limit of the numbers are refused with a true error, and never wrap.
    ImpossibleSizes => "impossible_sizes", promises::sizes::impossible_sizes;
    /// Random sizes on random streams in random order keep their bytes to themselves.
    MixedTraffic => "mixed_traffic", promises::traffic::mixed;
    /// So do blocks released in the reverse order.
    Lifo => "lifo", promises::traffic::lifo;
    /// So do blocks released in the order of allocation.
    Fifo => "fifo", promises::traffic::fifo;
    /// So do blocks squeezed into holes that are a little too small.
    Sawtooth => "sawtooth", promises::traffic::sawtooth;
    /// So do blocks that grow a byte at a time.
    GrowingSizes => "growing_sizes", promises::traffic::growing;
    /// So do many blocks of one size.
    EqualSizes => "equal_sizes", promises::traffic::equal;
    /// The figures are true at every moment, and come back to where they were.
    Statistics => "statistics", promises::statistics::statistics;
    /// A second release is refused, and changes nothing.
    DoubleRelease => "double_release", promises::releases::double;
    /// So is that of a block whose memory is another block's by now.
    StaleRelease => "stale_release", promises::releases::stale;
    /// So is that of an altered block, a made-up one, and another allocator's.
    ForeignRelease => "foreign_release", promises::releases::foreign;
    /// A block may be released by another thread than asked for it.
    ThreadsExchange => "threads_exchange", promises::threads::exchange;
    /// Many threads at once don't get each other's bytes.
    ThreadsHammer => "threads_hammer", promises::threads::hammer;
    /// A thread that ends takes no memory with it.
    ThreadsEnd => "threads_end", promises::threads::end;
    /// A block may be used and released on other streams than its own.
    StreamsCross => "streams_cross", promises::streams::cross;
    /// Memory goes to another stream only after the work of the one that released it.
    StreamOrder => "stream_order", promises::streams::order;
    /// Memory is reused only after the work of the streams that the release named.
    StreamUses => "stream_uses", promises::streams::uses;
    /// A retired stream takes no memory with it, and its blocks live on.
    RetiredStreams => "retired_streams", promises::streams::retired;
    /// Running out of memory is an error with true figures, and loses nothing.
    Exhaustion => "exhaustion", promises::memory::exhaustion;
    /// What trim is asked to give back, it gives back, and never what is in use.
    Trim => "trim", promises::memory::trim;
    /// Allocators, threads and handles may end in any order.
    DropOrder => "drop_order", promises::lifetimes::drop_order;
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
