//! A provider that fails at any call: nothing is broken by it, nothing is lost but what could not be given back.

use std::sync::{Arc, Mutex};

use alloc_core::conformance::SimulatedConfig;
use alloc_core::{
    Addressing, AllocatorEvent, Block, Device, DeviceAllocator, EventHook, ProviderErrorKind, ReleaseError, Stream,
};
use alloc_pool::PoolConfig;

use crate::support::{A, B, C, KIB, MIB, Rig, simulated};

const PAGE: u64 = 64 * KIB;
const LATE: Stream = Stream::with_identity(3, 1);

/// What was said to be leaked: the call that failed, and the bytes.
#[derive(Debug, Default)]
struct Leaks(Mutex<Vec<(&'static str, u64)>>);

impl EventHook for Leaks {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        if let AllocatorEvent::Leaked { bytes, cause } = event {
            self.0.lock().unwrap().push((cause.call, *bytes));
        }
    }
}

/// A pool under test and the blocks that are alive.
struct Run {
    rig: Rig,
    leaks: Arc<Leaks>,
    live: Vec<(Block, Stream)>,
}

impl Run {
    fn new(addressing: Addressing, release_threshold: Option<u64>) -> Self {
        let leaks = Arc::new(Leaks::default());
        let config = PoolConfig {
            growth_slack: 0.0,
            // Few addresses, so that stale views have to go as well.
            address_space: Some(160 * PAGE),
            limit: Some(140 * PAGE),
            release_threshold,
            pieces_per_peak: 32,
            hook: Some(Arc::clone(&leaks) as _),
            ..PoolConfig::default()
        };
        let provider = SimulatedConfig { granularity: PAGE, addressing, ..simulated() };
        Self { rig: Rig::new(provider, config), leaks, live: Vec::new() }
    }

    /// Takes a block if it can be had, and works on it.
    fn take(&mut self, size: u64, stream: Stream) {
        if let Ok(block) = self.rig.try_take(size, stream) {
            if size > 0 {
                self.rig.work(block, stream);
            }
            self.live.push((block, stream));
        }
    }

    fn give(&mut self, index: usize, uses: &[Stream]) {
        if self.live.is_empty() {
            return;
        }
        let (block, stream) = self.live.swap_remove(index % self.live.len());
        match self.rig.try_give(block, stream, uses) {
            Ok(()) | Err(ReleaseError::Leaked { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn give_all(&mut self) {
        while !self.live.is_empty() {
            self.give(self.live.len() - 1, &[]);
        }
    }

    /// Growth, a comb of holes, blocks that no hole fits, crossings, foreign uses, small blocks, a stream that ends,
    /// and trims.
    fn work(&mut self) {
        for number in 0..24 {
            self.take(2 * PAGE + number, A);
        }
        for index in 0..12 {
            self.give(index, &[]);
        }
        for pages in [5, 9, 7] {
            self.take(pages * PAGE, A);
        }
        self.rig.provider.complete_next(A);
        for pages in [3, 11, 4, 6] {
            self.take(pages * PAGE, B);
            self.give(pages as usize, &[]);
        }
        for number in 0..12 {
            self.take(900 + number * 5 * KIB, if number % 2 == 0 { A } else { C });
        }
        self.rig.provider.complete_all(A);
        for index in 0..10 {
            self.give(3 * index, if index % 2 == 0 { &[C] } else { &[] });
        }
        self.rig.pool.trim(60 * PAGE);
        for pages in [20, 8, 13, 17] {
            self.take(pages * PAGE, C);
            self.give(0, &[B]);
        }
        self.rig.pool.retire_stream(C);
        for pages in [6, 2, 10] {
            self.take(pages * PAGE, LATE);
        }
        // Sizes that change place from round to round, until all addresses have been used.
        for round in 0..12_usize {
            self.take((3 + round as u64 * 5 % 17) * PAGE, A);
            self.give(round * 7, &[]);
            self.rig.provider.complete_next(A);
            self.rig.provider.complete_next(LATE);
        }
        self.rig.pool.flush_thread_cache();
        self.rig.pool.trim(0);
    }

    /// Checks that the books are in order, that the pool goes on, and what is left when it is gone.
    fn check(mut self, at: u64) {
        let provider = self.rig.provider.clone();
        provider.cancel_failures();
        assert_eq!(provider.violations(), Vec::<String>::new(), "call {at}");
        let figures = self.rig.figures();
        assert_eq!(figures.reserved.current, provider.physical_bytes(), "call {at}");
        assert_eq!(figures.requested.current, self.live.iter().map(|(block, _)| block.size()).sum::<u64>());
        for (block, _) in &self.live {
            assert!(provider.is_backed(block.address(), block.size()), "call {at}: {block:?}");
        }
        self.give_all();
        provider.complete_everything();
        self.rig.pool.trim(0);
        let leaked = self.rig.figures().leaked;
        assert_eq!(leaked, self.leaks.0.lock().unwrap().iter().map(|(_, bytes)| bytes).sum::<u64>(), "call {at}");
        // What a failed call leaked is some pages at most: there is room for this.
        for (size, stream) in [(40 * PAGE, A), (3 * PAGE, B), (700, LATE), (30 * KIB, A), (0, B)] {
            let block = self.rig.take(size, stream);
            if size > 0 {
                self.rig.work(block, stream);
            }
            self.live.push((block, stream));
        }
        self.give_all();
        drop(self.rig);
        let violations = provider.violations();
        assert!(violations.is_empty(), "call {at}: {violations:?}");
        // Only what could not be unmapped is still there: that piece, and the addresses it is mapped in. Blocks whose
        // events failed were waited for when the pool went.
        let stuck: u64 = self.leaks.0.lock().unwrap().iter().filter(|(call, _)| *call == "unmap").map(|(_, n)| n).sum();
        assert_eq!(provider.physical_bytes(), stuck, "call {at}");
        if stuck == 0 {
            assert_eq!((provider.mapped_bytes(), provider.reserved_addresses()), (0, 0), "call {at}");
        }
        assert_eq!(provider.live_events(), 0, "call {at}");
    }
}

/// Every call of the workload fails once, in a run of its own; how many there were.
fn fail_each(addressing: Addressing, release_threshold: Option<u64>, kind: ProviderErrorKind) -> u64 {
    for at in 1.. {
        let mut run = Run::new(addressing, release_threshold);
        run.rig.provider.fail_call(at, kind);
        run.work();
        let failed = run.rig.provider.injected_failures() > 0;
        run.check(at);
        if !failed {
            return at - 1;
        }
    }
    0
}

#[test]
fn the_workload_makes_every_kind_of_call() {
    let mut run = Run::new(Addressing::Mapped, None);
    run.work();
    let (calls, figures) = (run.rig.provider.calls(), run.rig.figures());
    let each = [calls.reserve, calls.create, calls.map, calls.release, calls.record, calls.query, calls.wait];
    assert!(each.iter().all(|calls| *calls > 0), "{calls:?}");
    assert!(calls.unmap > calls.release && figures.moves > 10, "{calls:?}, {} moves", figures.moves);
    assert!(figures.parked.count > 0);
    assert_eq!(figures.leaked, 0);
    run.check(0);
}

#[test]
fn any_call_may_fail_for_any_reason() {
    assert!(fail_each(Addressing::Mapped, None, ProviderErrorKind::Other) > 100);
}

#[test]
fn any_call_may_run_out_of_something() {
    assert!(fail_each(Addressing::Mapped, None, ProviderErrorKind::OutOfMemory) > 100);
}

#[test]
fn any_call_for_segments_may_fail() {
    assert!(fail_each(Addressing::Segmented, None, ProviderErrorKind::Other) > 30);
    assert!(fail_each(Addressing::Segmented, None, ProviderErrorKind::OutOfMemory) > 30);
}

#[test]
fn any_call_may_fail_while_memory_is_given_back_at_once() {
    assert!(fail_each(Addressing::Mapped, Some(0), ProviderErrorKind::Other) > 100);
}

#[test]
fn every_call_from_some_point_on_may_fail() {
    // As when a context dies. What can't be waited for then stays behind, and nothing is touched.
    for at in (1..200).step_by(7) {
        let mut run = Run::new(Addressing::Mapped, None);
        for call in at..at + 5000 {
            run.rig.provider.fail_call(call, ProviderErrorKind::Poisoned);
        }
        run.work();
        run.give_all();
        assert_eq!(run.rig.figures().requested.current, 0);
        let provider = run.rig.provider.clone();
        drop(run.rig);
        assert_eq!(provider.violations(), Vec::<String>::new(), "from call {at} on");
    }
}

#[test]
fn a_pool_that_cannot_give_back_its_addresses_gives_back_its_memory() {
    let mut ranges_left = 0;
    for at in 1..8 {
        let rig = Rig::default();
        let block = rig.take(MIB, A);
        rig.give(block, A);
        rig.pool.trim(0);
        let provider = rig.provider.clone();
        provider.fail_call(at, ProviderErrorKind::Other);
        drop(rig);
        provider.assert_clean();
        assert_eq!((provider.physical_bytes(), provider.mapped_bytes()), (0, 0));
        ranges_left += u32::from(provider.reserved_addresses() > 0);
    }
    assert_eq!(ranges_left, 2, "one for each range that the pool had");
}
