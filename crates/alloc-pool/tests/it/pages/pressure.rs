//! Pools of one device help each other out, and the program is asked before a request fails.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use alloc_core::conformance::{SimulatedConfig, SimulatedProvider};
use alloc_core::{DeviceAllocator, pressure};
use alloc_pool::{Pool, PoolConfig};

use crate::support::{A, B, PAGE, give, join_all, simulated, take};

/// Two pools over one device with `pages` pages.
fn neighbours(pages: u64) -> (SimulatedProvider, Arc<Pool<SimulatedProvider>>, Arc<Pool<SimulatedProvider>>) {
    let provider = SimulatedProvider::new(SimulatedConfig { capacity: pages * PAGE, ..simulated() });
    let pool = || Arc::new(Pool::new(provider.clone(), PoolConfig::default()).unwrap());
    (provider.clone(), pool(), pool())
}

#[test]
fn idle_memory_of_one_pool_serves_another() {
    let (provider, one, other) = neighbours(16);
    let (idle, kept) = (take(&one, 10 * PAGE, A), take(&one, PAGE, A));
    give(&one, idle, A);
    let block = take(&other, 14 * PAGE, A);
    provider.submit(A, block.address(), block.size());
    assert!(provider.is_backed(kept.address(), kept.size()));
    give(&other, block, A);
    give(&one, kept, A);
    let back = take(&one, 16 * PAGE, A);
    give(&one, back, A);
    drop((one, other));
    provider.assert_all_returned();
}

#[test]
fn what_another_pool_still_uses_stays_and_the_request_fails() {
    let (provider, one, other) = neighbours(16);
    let kept = take(&one, 10 * PAGE, A);
    provider.submit(A, kept.address(), kept.size());
    let layout = alloc_core::Layout::bytes(8 * PAGE).unwrap();
    assert!(other.allocate(layout, B).unwrap_err().is_out_of_memory());
    give(&one, kept, A);
    // Given back, but still worked on: it is waited for.
    let block = take(&other, 8 * PAGE, B);
    provider.submit(B, block.address(), block.size());
    drop((one, other));
    provider.assert_clean();
}

#[test]
fn a_limit_of_its_own_is_no_reason_to_trouble_others() {
    let provider = SimulatedProvider::new(simulated());
    let one = Pool::new(provider.clone(), PoolConfig::default()).unwrap();
    let limited = Pool::new(provider, PoolConfig { limit: Some(4 * PAGE), ..PoolConfig::default() }).unwrap();
    let idle = take(&one, 10 * PAGE, A);
    give(&one, idle, A);
    let layout = alloc_core::Layout::bytes(5 * PAGE).unwrap();
    assert!(limited.allocate(layout, A).is_err());
    assert_eq!(one.statistics().reserved.current, 10 * PAGE);
}

#[test]
fn callbacks_are_asked_until_there_is_enough_or_nothing_left() {
    let (provider, pool, _other) = neighbours(16);
    let held: Vec<_> = (0..16).map(|_| take(&pool, PAGE, A)).collect();
    let (held, calls) = (Arc::new(Mutex::new(held)), Arc::new(AtomicU64::new(0)));
    let guard = {
        let (pool, held, calls) = (Arc::downgrade(&pool), Arc::clone(&held), Arc::clone(&calls));
        pressure::on_pressure(pool.upgrade().unwrap().device(), move |error| {
            calls.fetch_add(1, Ordering::Relaxed);
            assert_eq!(error.reserved, 16 * PAGE);
            let Some(block) = held.lock().unwrap().pop() else { return false };
            give(&pool.upgrade().unwrap(), block, A);
            true
        })
    };
    let block = take(&pool, 3 * PAGE, A);
    assert_eq!((calls.load(Ordering::Relaxed), held.lock().unwrap().len()), (3, 13));
    let layout = alloc_core::Layout::bytes(15 * PAGE).unwrap();
    assert!(pool.allocate(layout, A).unwrap_err().is_out_of_memory());
    assert!(held.lock().unwrap().is_empty());
    drop(guard);
    give(&pool, block, A);
    drop((pool, _other));
    provider.assert_all_returned();
}

#[test]
fn the_program_is_not_asked_while_other_pools_have_idle_memory() {
    let (provider, one, other) = neighbours(16);
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    let _guard = pressure::on_pressure(one.device(), move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        false
    });
    give(&one, take(&one, 10 * PAGE, A), A);
    let block = take(&other, 14 * PAGE, A);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    let layout = alloc_core::Layout::bytes(4 * PAGE).unwrap();
    assert!(other.allocate(layout, A).unwrap_err().is_out_of_memory());
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    give(&other, block, A);
    drop((one, other));
    provider.assert_all_returned();
}

#[test]
fn a_callback_that_promises_in_vain_does_not_hang() {
    let (provider, pool, _other) = neighbours(4);
    let calls = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&calls);
    let _guard = pressure::on_pressure(pool.device(), move |_| count.fetch_add(1, Ordering::Relaxed) < u64::MAX);
    let held = take(&pool, PAGE, A);
    let layout = alloc_core::Layout::bytes(4 * PAGE).unwrap();
    assert!(pool.allocate(layout, A).unwrap_err().is_out_of_memory());
    assert!((1..=1000).contains(&calls.load(Ordering::Relaxed)));
    give(&pool, held, A);
    drop((pool, _other));
    provider.assert_all_returned();
}

#[test]
fn a_callback_may_allocate_from_the_pool_that_asks() {
    let (provider, pool, _other) = neighbours(8);
    let (held, spare) = (take(&pool, 4 * PAGE, A), take(&pool, 4 * PAGE, A));
    let spare = Mutex::new(Some(spare));
    let asking = Arc::downgrade(&pool);
    let _guard = pressure::on_pressure(pool.device(), move |_| {
        let pool = asking.upgrade().unwrap();
        let layout = alloc_core::Layout::bytes(6 * PAGE).unwrap();
        assert!(pool.allocate(layout, A).is_err(), "not asked again from within itself");
        match spare.lock().unwrap().take() {
            Some(block) => {
                give(&pool, block, A);
                let small = take(&pool, 1000, A);
                give(&pool, small, A);
                true
            }
            None => false,
        }
    });
    let block = take(&pool, 3 * PAGE, A);
    give(&pool, block, A);
    give(&pool, held, A);
    drop((pool, _other));
    provider.assert_all_returned();
}

#[test]
fn pools_that_ask_each_other_at_the_same_time_do_not_wait_for_each_other() {
    let (provider, one, other) = neighbours(12);
    std::thread::scope(|scope| {
        let threads = [(&one, A), (&other, B)].map(|(pool, stream)| {
            scope.spawn(move || {
                for round in 0..200 {
                    let layout = alloc_core::Layout::bytes((1 + round % 8) * PAGE).unwrap();
                    if let Ok(block) = pool.allocate(layout, stream) {
                        give(pool, block, stream);
                    }
                }
            })
        });
        join_all(threads);
    });
    drop((one, other));
    provider.assert_all_returned();
}
