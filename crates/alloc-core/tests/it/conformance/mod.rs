//! The suite passes a right allocator, and finds every flaw of a wrong one.

mod reference;
mod transfer;

use alloc_core::conformance::{Breach, Options, Promise, Suite, Verdict};
use alloc_core::{Device, SimulatedAllocator, Stream};

use reference::{Flaw, Reference};

const CAPACITY: u64 = 256 << 20;

fn options() -> Options {
    Options { capacity: Some(CAPACITY), ..Options::default() }
}

alloc_core::conformance! { reference_allocator, || Reference::new(CAPACITY), options() }

alloc_core::conformance! {
    simulated_allocator,
    || SimulatedAllocator::new(Device::cuda(0), CAPACITY),
    Options { contents: false, trims_to_zero: false, ..options() }
}

fn broken_by(flaw: Flaw, promise: Promise) -> Option<Breach> {
    let suite = Suite::new(move || Reference::flawed(CAPACITY, flaw), options());
    suite.check(promise).err().map(|broken| {
        assert_eq!((broken.promise, broken.seed), (promise, options().seed));
        *broken.breach
    })
}

macro_rules! finds {
    ($($test:ident: $flaw:ident, $promise:ident => $breach:pat,)+) => {
        $(
            #[test]
            fn $test() {
                let breach = broken_by(Flaw::$flaw, Promise::$promise);
                assert!(matches!(breach, Some($breach)), "{breach:?}");
            }
        )+

        #[test]
        fn every_promise_can_be_broken() {
            let broken = [$(Promise::$promise),+];
            for promise in Promise::ALL {
                assert!(broken.contains(promise), "no flaw breaks {promise}");
            }
        }
    };
}

finds! {
    sizes_find_a_size_rounded_down: RoundsDown, Sizes => Breach::WrongSize { .. },
    alignments_find_one_forgotten: ForgetsAlignment, Alignments => Breach::Misaligned { .. },
    zero_bytes_find_a_shared_address: SharesZeroAddress, ZeroBytes => Breach::SharedAddress { .. },
    impossible_sizes_find_a_wrap: WrapsSizes, ImpossibleSizes => Breach::Impossible { .. },
    impossible_sizes_find_an_untrue_error: ForgetsRequest, ImpossibleSizes => Breach::WrongError { .. },
    mixed_traffic_finds_shared_memory: HandsOutTwice, MixedTraffic => Breach::SharedAddress { .. },
    mixed_traffic_finds_lost_contents: Scribbles, MixedTraffic => Breach::Contents { .. },
    lifo_finds_shared_memory: HandsOutTwice, Lifo => Breach::SharedAddress { .. },
    lifo_finds_lost_contents: Scribbles, Lifo => Breach::Contents { .. },
    fifo_finds_shared_memory: HandsOutTwice, Fifo => Breach::SharedAddress { .. },
    sawtooth_finds_lost_contents: Scribbles, Sawtooth => Breach::Contents { .. },
    growing_sizes_find_shared_memory: HandsOutTwice, GrowingSizes => Breach::SharedAddress { .. },
    equal_sizes_find_shared_memory: HandsOutTwice, EqualSizes => Breach::SharedAddress { .. },
    statistics_find_lost_bytes: LosesBytes, Statistics => Breach::Figure { figure: "requested.current", .. },
    double_release_finds_it_accepted: AcceptsDoubleRelease, DoubleRelease => Breach::Accepted { .. },
    double_release_finds_a_wrong_reason: BlamesOthers, DoubleRelease => Breach::WrongRefusal { .. },
    stale_release_finds_a_forgotten_generation: IgnoresGeneration, StaleRelease => Breach::Accepted { .. },
    foreign_release_finds_unchecked_parts: IgnoresParts, ForeignRelease => Breach::Accepted { .. },
    threads_exchange_finds_a_race: RacesRemoteReleases, ThreadsExchange => Breach::SharedAddress { .. },
    threads_hammer_finds_shared_memory: HandsOutTwice, ThreadsHammer => Breach::SharedAddress { .. },
    threads_end_finds_lost_memory: LosesRemoteReleases, ThreadsEnd => Breach::Figure { .. },
    streams_cross_finds_a_refusal: RefusesOtherStreams, StreamsCross => Breach::ReleaseRefused { .. },
    stream_order_finds_early_reuse: ReusesEarly, StreamOrder => Breach::Contents { .. },
    stream_uses_finds_early_reuse: IgnoresUses, StreamUses => Breach::Contents { .. },
    retired_streams_finds_forgotten_blocks: ForgetsRetired, RetiredStreams => Breach::ReleaseRefused { .. },
    exhaustion_finds_no_end: IgnoresCapacity, Exhaustion => Breach::BeyondCapacity { .. },
    exhaustion_finds_lost_memory: LosesOnRefusal, Exhaustion => Breach::Lost { .. },
    exhaustion_finds_hoarding: HoardsByStream, Exhaustion => Breach::Lost { .. },
    exhaustion_finds_untrue_figures: ForgetsInUse, Exhaustion => Breach::Figure { .. },
    trim_finds_what_is_kept: KeepsOnTrim, Trim => Breach::Figure { .. },
    trim_finds_an_untrue_answer: OverstatesTrim, Trim => Breach::Figure { .. },
    trim_finds_an_answer_that_is_too_small: UnderstatesTrim, Trim => Breach::Figure { .. },
    trim_finds_lost_contents: TrimsInUse, Trim => Breach::Contents { .. },
    drop_order_finds_the_memory_of_the_dead: RemembersDead, DropOrder => Breach::ReleaseRefused { .. },
}

#[test]
fn what_others_had_given_back_meanwhile_breaks_nothing() {
    assert!(broken_by(Flaw::TwiceRelieved, Promise::Trim).is_none());
}

#[test]
fn a_whole_suite_reports_every_promise() {
    let report = Suite::new(|| Reference::flawed(CAPACITY, Flaw::WrapsSizes), options()).run_all();
    assert_eq!(report.outcomes.len(), Promise::ALL.len());
    assert!(!report.is_kept());
    let broken: Vec<Promise> = report.broken().map(|broken| broken.promise).collect();
    assert_eq!(broken, [Promise::ImpossibleSizes]);
    assert!(report.to_string().contains("BROKEN        impossible_sizes (seed 0x5eed, step"), "{report}");
}

#[test]
fn what_is_not_promised_is_not_checked() {
    let options = Options {
        streams: vec![Stream::DEFAULT],
        contents: false,
        detects_double_release: false,
        detects_foreign_blocks: false,
        statistics: false,
        trims_to_zero: false,
        ..Options::default()
    };
    let suite = Suite::new(|| Reference::new(CAPACITY), options);
    let not_promised: Vec<Promise> = suite
        .run_all()
        .outcomes
        .into_iter()
        .filter(|(_, outcome)| matches!(outcome, Ok(Verdict::NotPromised(_))))
        .map(|(promise, _)| promise)
        .collect();
    use Promise::*;
    assert_eq!(
        not_promised,
        [
            Statistics,
            DoubleRelease,
            StaleRelease,
            ForeignRelease,
            StreamsCross,
            StreamOrder,
            StreamUses,
            RetiredStreams,
            Exhaustion
        ]
    );
}

#[test]
fn the_makers_own_checks_count() {
    use alloc_core::conformance::Subject;
    let inspected = Suite::new(
        || Subject::new(Reference::new(CAPACITY)).inspect(|block| Err(format!("{} bytes", block.size()))),
        options(),
    );
    let broken = inspected.check(Promise::Lifo).unwrap_err();
    assert!(matches!(*broken.breach, Breach::Inspection { .. }), "{broken}");
    let finished = Suite::new(|| Subject::new(Reference::new(CAPACITY)).finish(|| Err("left".into())), options());
    let broken = finished.check(Promise::Lifo).unwrap_err();
    assert!(matches!(&*broken.breach, Breach::Finish { reason } if reason == "left"), "{broken}");
    assert_eq!(broken.promise, Promise::Lifo);
}

#[test]
#[should_panic(expected = "zero_bytes (seed 0x5eed, step")]
fn a_broken_promise_fails_its_test_and_says_where() {
    Suite::new(|| Reference::flawed(CAPACITY, Flaw::SharesZeroAddress), options()).assert_kept(Promise::ZeroBytes);
}
