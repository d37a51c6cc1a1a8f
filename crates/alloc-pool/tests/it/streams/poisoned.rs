//! Memory whose work can't be known to be complete is leaked and reported, never reused.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use alloc_core::{AllocError, AllocatorEvent, Device, DeviceAllocator, EventHook, ProviderErrorKind, ReleaseError};
use alloc_pool::PoolConfig;

use crate::support::{A, B, KIB, PAGE, Rig, simulated};

/// Adds up what is said to be leaked.
#[derive(Debug, Default)]
struct Leaks(AtomicU64);

impl EventHook for Leaks {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        if let AllocatorEvent::Leaked { bytes, cause } = event {
            assert_eq!(cause.kind, ProviderErrorKind::Poisoned);
            self.0.fetch_add(*bytes, Ordering::Relaxed);
        }
    }
}

fn rig() -> (Rig, Arc<Leaks>) {
    let leaks = Arc::new(Leaks::default());
    let config = PoolConfig { growth_slack: 0.0, hook: Some(Arc::clone(&leaks) as _), ..PoolConfig::default() };
    (Rig::new(simulated(), config), leaks)
}

#[test]
fn a_block_whose_uses_cannot_be_recorded_is_leaked_and_said_to_be() {
    for size in [3 * KIB, 100 * KIB, 2 * PAGE] {
        let (rig, leaks) = rig();
        let block = rig.take(size, A);
        rig.work(block, B);
        rig.provider.fail_always(Some(ProviderErrorKind::Poisoned));
        let error = rig.try_give(block, A, &[B]).unwrap_err();
        rig.provider.cancel_failures();
        let ReleaseError::Leaked { block: said, source } = error else { panic!("{error}") };
        assert_eq!((said, source.kind), (block, ProviderErrorKind::Poisoned));
        let figures = rig.figures();
        assert!(figures.leaked >= size && figures.leaked < size + size / 8 + 512, "{}", figures.leaked);
        assert_eq!((leaks.0.load(Ordering::Relaxed), figures.requested.current), (figures.leaked, 0));
        assert!(matches!(rig.try_give(block, A, &[]), Err(ReleaseError::Stale { .. })));
        // Whatever is asked for now, the leaked bytes are not in it: their work is still under way.
        for _ in 0..100 {
            for stream in [A, B] {
                let other = rig.take(size, stream);
                rig.work(other, stream);
                assert_ne!(rig.provider.physical_at(other.address()), rig.provider.physical_at(block.address()));
            }
        }
        rig.close();
    }
}

#[test]
fn a_small_block_whose_event_fails_is_leaked() {
    let (rig, leaks) = rig();
    let block = rig.take(8 * KIB, A);
    rig.work(block, B);
    rig.give_used(block, A, &[B]);
    rig.provider.fail_always(Some(ProviderErrorKind::Poisoned));
    rig.pool.trim(0);
    rig.provider.cancel_failures();
    assert_eq!((rig.figures().leaked, rig.figures().parked.current), (8 * KIB, 0));
    assert_eq!(leaks.0.load(Ordering::Relaxed), 8 * KIB);
    let other = rig.take(8 * KIB, A);
    rig.work(other, A);
    rig.give(other, A);
    rig.close();
}

#[test]
fn a_large_block_whose_event_fails_stays_parked() {
    let (rig, leaks) = rig();
    let block = rig.take(PAGE, A);
    rig.work(block, B);
    rig.give_used(block, A, &[B]);
    rig.provider.fail_always(Some(ProviderErrorKind::Poisoned));
    assert_eq!(rig.pool.trim(0), 0);
    assert!(rig.try_take(PAGE, A).is_err(), "A can't be made to wait");
    rig.provider.cancel_failures();
    assert_eq!((rig.figures().parked.current, rig.figures().reserved.current), (PAGE, PAGE));
    let other = rig.take(PAGE, A);
    rig.work(other, A);
    rig.give(other, A);
    assert_eq!((leaks.0.load(Ordering::Relaxed), rig.provider.calls().wait), (0, 1));
    rig.close();
}

#[test]
fn memory_does_not_cross_when_its_stream_cannot_be_asked() {
    for size in [4 * PAGE, 700 * KIB] {
        let (rig, leaks) = rig();
        let (block, other) = (rig.take(size, A), rig.take(size, A));
        rig.work(block, A);
        rig.give(block, A);
        rig.provider.fail_always(Some(ProviderErrorKind::Poisoned));
        let error = rig.try_take(size, B).unwrap_err();
        assert!(matches!(&error, AllocError::Provider(e) if e.kind == ProviderErrorKind::Poisoned), "{error}");
        rig.provider.cancel_failures();
        assert_eq!(leaks.0.load(Ordering::Relaxed), rig.figures().leaked);
        assert_eq!(rig.figures().requested.current, size);
        // The simulation would see it if B got what A still works on.
        for _ in 0..20 {
            let crossed = rig.take(size, B);
            rig.work(crossed, B);
        }
        rig.give(other, A);
        rig.provider.assert_clean();
        rig.provider.complete_everything();
        drop(rig.pool);
        rig.provider.assert_clean();
        let leaked = leaks.0.load(Ordering::Relaxed);
        assert_eq!(rig.provider.physical_bytes(), leaked, "what was leaked is all that is left");
    }
}

#[test]
fn the_own_stream_needs_no_events_and_goes_on() {
    let (rig, leaks) = rig();
    let kept = rig.take(PAGE, A);
    rig.provider.fail_always(Some(ProviderErrorKind::Poisoned));
    for size in [600, 40 * KIB, PAGE] {
        let Ok(block) = rig.try_take(size, A) else { continue };
        rig.give(block, A);
    }
    rig.give(kept, A);
    let again = rig.take(PAGE, A);
    rig.give(again, A);
    rig.provider.cancel_failures();
    assert_eq!(leaks.0.load(Ordering::Relaxed), 0);
    rig.close();
}

#[test]
fn what_cannot_be_known_idle_is_not_trimmed() {
    let (rig, leaks) = rig();
    let block = rig.take(2 * PAGE, A);
    rig.work(block, A);
    rig.give(block, A);
    let reserved = rig.figures().reserved.current;
    rig.provider.fail_always(Some(ProviderErrorKind::Poisoned));
    assert_eq!(rig.pool.trim(0), 0);
    rig.provider.cancel_failures();
    rig.provider.assert_clean();
    assert_eq!((rig.figures().leaked, rig.figures().reserved.current), (0, reserved));
    // The stream that it was for needs to know nothing; another is made to wait.
    let own = rig.take(2 * PAGE, A);
    rig.work(own, A);
    rig.give(own, A);
    let other = rig.take(2 * PAGE, B);
    rig.work(other, B);
    rig.give(other, B);
    assert_eq!((rig.figures().reserved.current, rig.provider.calls().wait), (reserved, 1));
    assert_eq!(rig.pool.trim(0), reserved);
    assert_eq!(leaks.0.load(Ordering::Relaxed), 0);
    rig.close();
}

#[test]
fn a_pool_that_goes_leaves_behind_what_may_still_be_in_use() {
    let (rig, leaks) = rig();
    let (block, idle) = (rig.take(2 * PAGE, A), rig.take(PAGE, A));
    rig.work(block, B);
    rig.give_used(block, A, &[B]);
    rig.give(idle, A);
    rig.provider.fail_always(Some(ProviderErrorKind::Poisoned));
    let Rig { provider, pool } = rig;
    drop(pool);
    provider.cancel_failures();
    provider.assert_clean();
    assert!(provider.is_backed(block.address(), block.size()), "B still works on it");
    assert!(leaks.0.load(Ordering::Relaxed) >= 2 * PAGE);
}
