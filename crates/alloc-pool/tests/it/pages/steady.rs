//! A workload that repeats itself comes to need nothing of the provider.

use alloc_core::{ProviderCalls, Stream};
use alloc_pool::PoolConfig;

use crate::support::{A, B, KIB, MIB, Rig, simulated};

/// Runs the workload again and again; the calls that the last two rounds made.
fn calls_once_warm(rig: &Rig, rounds: usize, workload: impl Fn(&Rig)) -> ProviderCalls {
    for _ in 0..rounds {
        workload(rig);
    }
    let before = rig.provider.calls();
    workload(rig);
    workload(rig);
    rig.provider.calls().since(&before)
}

fn mixed(rig: &Rig, streams: &[Stream]) {
    let mut live = Vec::new();
    let mut state = 42_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    for _ in 0..600 {
        let size = match random(4) {
            0 => 1 + random(16 * KIB),
            1 => 1 + random(256 * KIB),
            2 => 1 + random(4 * MIB),
            _ => (1 + random(20)) * MIB,
        };
        let stream = streams[random(streams.len() as u64) as usize];
        live.push((rig.take(size, stream), stream));
        if live.len() > 40 {
            let (block, stream) = live.swap_remove(random(40) as usize);
            rig.give(block, stream);
        }
    }
    for (block, stream) in live {
        rig.give(block, stream);
    }
}

#[test]
fn any_sizes_in_any_order() {
    let rig = Rig::new(simulated(), PoolConfig { growth_slack: 0.25, ..PoolConfig::default() });
    assert_eq!(calls_once_warm(&rig, 2, |rig| mixed(rig, &[A])), ProviderCalls::default());
    rig.close();
}

#[test]
fn without_room_to_spare_pages_move_but_none_is_created() {
    let rig = Rig::new(simulated(), PoolConfig { growth_slack_thrashing: 0.0, ..PoolConfig::default() });
    let calls = calls_once_warm(&rig, 20, |rig| mixed(rig, &[A]));
    assert_eq!((calls.create, calls.release, calls.reserve), (0, 0, 0), "{calls:?}");
    assert!(calls.map <= 1200 / 8, "{calls:?} for 1200 blocks");
    rig.close();
}

#[test]
fn a_training_step() {
    // Activations pile up and are released in the opposite order, with temporaries between them.
    let rig = Rig::default();
    let step = |rig: &Rig| {
        let weights: Vec<_> = (1..20).map(|n| rig.take(n * 300 * KIB, A)).collect();
        let mut activations = Vec::new();
        for layer in 1..30_u64 {
            let temporary = rig.take(layer * MIB, A);
            activations.push(rig.take(5 * MIB + layer * 1000, A));
            rig.give(temporary, A);
        }
        while let Some(activation) = activations.pop() {
            let gradient = rig.take(activation.size(), A);
            rig.give(activation, A);
            rig.give(gradient, A);
        }
        weights.into_iter().for_each(|block| rig.give(block, A));
    };
    assert_eq!(calls_once_warm(&rig, 10, step), ProviderCalls::default());
    rig.close();
}

#[test]
fn several_streams_need_no_memory_calls() {
    let rig = Rig::new(simulated(), PoolConfig { growth_slack_moving: 0.0, ..PoolConfig::default() });
    let calls = calls_once_warm(&rig, 30, |rig| mixed(rig, &[A, B]));
    assert_eq!((calls.create, calls.release, calls.reserve), (0, 0, 0), "{calls:?}");
    rig.close();
}
