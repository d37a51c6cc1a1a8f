//! Events and counts tell of all that happened.

use std::sync::{Arc, Mutex};

use alloc_core::{AllocatorEvent, Device, DeviceAllocator, EventHook, Stream};
use alloc_pool::PoolConfig;

use crate::support::{A, B, KIB, PAGE, Rig, simulated};

/// What a hook heard, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heard {
    grew: u64,
    shrank: u64,
    reserved: u64,
    moves: u64,
    moved: u64,
    waits: u64,
    waiter: Option<Stream>,
}

#[derive(Debug, Default)]
struct Listener(Mutex<Heard>);

impl EventHook for Listener {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        let mut heard = self.0.lock().unwrap();
        match *event {
            AllocatorEvent::Grew { bytes, reserved } => {
                heard.grew += bytes;
                assert_eq!(reserved, heard.reserved + bytes);
                heard.reserved = reserved;
            }
            AllocatorEvent::Shrank { bytes, reserved } => {
                heard.shrank += bytes;
                assert_eq!(reserved, heard.reserved - bytes);
                heard.reserved = reserved;
            }
            AllocatorEvent::Moved { bytes } => {
                heard.moves += 1;
                heard.moved += bytes;
            }
            AllocatorEvent::Waited { stream } => {
                heard.waits += 1;
                heard.waiter = Some(stream);
            }
            ref other => panic!("{other:?}"),
        }
    }
}

#[test]
fn events_tell_of_every_growth_move_wait_and_shrinking() {
    let listener = Arc::new(Listener::default());
    let hook = Some(Arc::clone(&listener) as Arc<dyn EventHook>);
    // Pieces of one page.
    let config = PoolConfig { growth_slack: 0.0, max_piece: PAGE, hook, ..PoolConfig::default() };
    let rig = Rig::new(simulated(), config);
    let heard = || *listener.0.lock().unwrap();

    let blocks: Vec<_> = (0..32).map(|_| rig.take(PAGE, A)).collect();
    let grown = Heard { grew: 32 * PAGE, reserved: 32 * PAGE, ..Heard::default() };
    assert_eq!(heard(), grown);
    // Every second page is free, and all but one are moved beside the last.
    let (kept, given): (Vec<_>, Vec<_>) = blocks.into_iter().enumerate().partition(|(number, _)| number % 2 == 0);
    given.into_iter().for_each(|(_, block)| rig.give(block, A));
    let large = rig.take(16 * PAGE, A);
    let moved = heard();
    assert!(moved.moves >= 14 && moved.moved == moved.moves * PAGE, "{moved:?}");
    assert_eq!((moved.moves, moved.grew), (rig.figures().moves, 32 * PAGE));

    rig.work(large, A);
    rig.give(large, A);
    let crossed = rig.take(16 * PAGE, B);
    rig.work(crossed, B);
    let waited = heard();
    assert_eq!((waited.waits, waited.waiter), (rig.provider.calls().wait, Some(B)));
    assert!(waited.waits >= 1);

    rig.give(crossed, B);
    kept.into_iter().for_each(|(_, block)| rig.give(block, A));
    assert_eq!(rig.pool.trim(0), 32 * PAGE);
    let end = heard();
    assert_eq!((end.shrank, end.reserved, end.grew), (32 * PAGE, 0, rig.figures().reserved.total));
    rig.close();
}

#[test]
fn hits_misses_and_calls_are_counted_as_they_are() {
    let rig = Rig::new(simulated(), PoolConfig { growth_slack: 0.0, ..PoolConfig::default() });
    // The first misses, and fills the cache with more of the class.
    rig.give(rig.take(1000, A), A);
    let first = rig.figures();
    assert_eq!((first.hits, first.misses), (0, 1));
    for _ in 0..10 {
        rig.give(rig.take(1000, A), A);
        rig.give(rig.take(100 * KIB, A), A);
    }
    let warm = rig.figures();
    assert_eq!((warm.hits, warm.requested.count), (10, 21), "large blocks are no hits");
    assert_eq!(warm.misses, 2);

    // What moves, waits, is asked for and goes back.
    let blocks: Vec<_> = (0..32).map(|_| rig.take(PAGE, A)).collect();
    blocks.iter().for_each(|block| rig.work(*block, A));
    blocks.iter().step_by(2).for_each(|block| rig.give(*block, A));
    let large = rig.take(16 * PAGE, B);
    rig.work(large, B);
    rig.give_used(large, B, &[A]);
    blocks.iter().skip(1).step_by(2).for_each(|block| rig.give(*block, A));
    rig.pool.trim(0);
    let calls = rig.figures().provider_calls;
    assert_eq!(calls, rig.provider.calls());
    let kinds = [calls.reserve, calls.create, calls.map, calls.release, calls.record, calls.query, calls.wait];
    assert!(kinds.iter().all(|&count| count > 0), "{calls:?}");
    assert!(calls.map > calls.create && calls.unmap == calls.map, "{calls:?}");
    rig.close();
}
