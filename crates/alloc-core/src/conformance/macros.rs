//! The macro that makes a test of every promise.

/// Makes a module with one `#[test]` for every [`Promise`](crate::conformance::Promise).
///
/// Takes the module's name, a closure that makes a fresh allocator (or a [`Subject`](crate::conformance::Subject)),
/// and, where the default doesn't suit, [`Options`](crate::conformance::Options). What is in scope where the macro
/// stands is in scope in its arguments.
///
/// ```
/// use alloc_core::conformance::Options;
/// use alloc_core::{Device, SimulatedAllocator};
///
/// alloc_core::conformance! {
///     simulated,
///     || SimulatedAllocator::new(Device::cuda(0), 1 << 30),
///     Options { contents: false, trims_to_zero: false, ..Options::default() }
/// }
/// ```
#[macro_export]
macro_rules! conformance {
    ($name:ident, $make:expr $(,)?) => {
        $crate::conformance! { $name, $make, $crate::conformance::Options::default() }
    };
    ($name:ident, $make:expr, $options:expr $(,)?) => {
        $crate::__conformance_tests! {
            $name, $make, $options;
            sizes Sizes, alignments Alignments, zero_bytes ZeroBytes, impossible_sizes ImpossibleSizes,
            mixed_traffic MixedTraffic, lifo Lifo, fifo Fifo, sawtooth Sawtooth, growing_sizes GrowingSizes,
            equal_sizes EqualSizes, statistics Statistics, double_release DoubleRelease, stale_release StaleRelease,
            foreign_release ForeignRelease, threads_exchange ThreadsExchange, threads_hammer ThreadsHammer,
            threads_end ThreadsEnd, streams_cross StreamsCross, stream_order StreamOrder, stream_uses StreamUses,
            retired_streams RetiredStreams, exhaustion Exhaustion, trim Trim, drop_order DropOrder,
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($name:ident, $make:expr, $options:expr; $($test:ident $promise:ident,)+) => {
        #[cfg(test)]
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn suite() -> $crate::conformance::Suite {
                $crate::conformance::Suite::new($make, $options)
            }

            $(
                #[test]
                fn $test() {
                    suite().assert_kept($crate::conformance::Promise::$promise);
                }
            )+

            #[test]
            fn every_promise_has_its_test() {
                let tests = [$($crate::conformance::Promise::$promise),+];
                assert_eq!(tests[..], *$crate::conformance::Promise::ALL);
            }
        }
    };
}
