//! Random traffic over several streams and threads against a model too simple to be wrong.
//!
//! The model knows which blocks are alive, which physical bytes were behind each when it was handed out, and what was
//! submitted where. The provider knows which work is complete, and reports work that touches memory too early.

mod model;
mod operation;

use alloc_core::Addressing;
use alloc_core::conformance::SimulatedConfig;
use alloc_pool::PoolConfig;
use proptest::collection::vec;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::support::{KIB, MIB, simulated};
use model::Model;

/// The same numbers every time: a failure is there again at the next run.
fn check(cases: u32, provider: impl Fn() -> SimulatedConfig, config: PoolConfig) {
    check_with((4, false), cases, provider, config);
}

/// The same of streams most of which came when the pool had told as many apart as it can.
fn check_sharers(cases: u32, provider: impl Fn() -> SimulatedConfig, config: PoolConfig) {
    check_with((8, true), cases, provider, config);
}

fn check_with(streams: (u64, bool), cases: u32, provider: impl Fn() -> SimulatedConfig, config: PoolConfig) {
    let settings = Config { cases, failure_persistence: None, max_shrink_iters: 2000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(settings, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let result = runner.run(&vec(operation::operation(), 1..160), |operations| {
        let mut model = Model::new(provider(), config.clone(), streams);
        for operation in &operations {
            model.apply(operation)?;
        }
        model.finish()
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn pages_of_two_mebibytes() {
    check(60, || SimulatedConfig { capacity: 96 * MIB, ..simulated() }, PoolConfig::default());
}

#[test]
fn pages_of_64_kibibytes() {
    let provider = || SimulatedConfig { granularity: 64 * KIB, capacity: 24 * MIB, ..simulated() };
    check(60, provider, PoolConfig::default());
}

#[test]
fn pieces_of_several_pages() {
    let provider = || SimulatedConfig { granularity: 64 * KIB, capacity: 64 * MIB, ..simulated() };
    check(60, provider, PoolConfig { pieces_per_peak: 8, ..PoolConfig::default() });
}

#[test]
fn segments() {
    let provider = || SimulatedConfig { addressing: Addressing::Segmented, capacity: 128 * MIB, ..simulated() };
    check(60, provider, PoolConfig::default());
}

#[test]
fn a_limit_and_no_slack() {
    let provider = || SimulatedConfig { granularity: 64 * KIB, ..simulated() };
    check(60, provider, PoolConfig { limit: Some(12 * MIB), growth_slack: 0.0, ..PoolConfig::default() });
}

#[test]
fn streams_that_are_dear_to_ask() {
    let provider = || SimulatedConfig { granularity: 64 * KIB, is_idle_dear: true, ..simulated() };
    check(60, provider, PoolConfig { growth_slack: 0.0, ..PoolConfig::default() });
}

#[test]
fn no_thread_caches() {
    let provider = || SimulatedConfig { granularity: 64 * KIB, capacity: 24 * MIB, ..simulated() };
    check(60, provider, PoolConfig { thread_cache: 0, ..PoolConfig::default() });
}

#[test]
fn memory_given_back_at_once() {
    let provider = || SimulatedConfig { granularity: 64 * KIB, capacity: 24 * MIB, ..simulated() };
    check(60, provider, PoolConfig { release_threshold: Some(MIB), ..PoolConfig::default() });
}

#[test]
fn streams_that_share_a_tag() {
    let provider = || SimulatedConfig { capacity: 96 * MIB, ..simulated() };
    check_sharers(60, provider, PoolConfig::default());
}

#[test]
fn streams_that_share_a_tag_and_small_pages() {
    let provider = || SimulatedConfig { granularity: 64 * KIB, capacity: 24 * MIB, ..simulated() };
    check_sharers(60, provider, PoolConfig { pieces_per_peak: 8, ..PoolConfig::default() });
}

#[test]
fn streams_that_share_a_tag_and_a_limit() {
    let provider = || SimulatedConfig { granularity: 64 * KIB, is_idle_dear: true, ..simulated() };
    check_sharers(60, provider, PoolConfig { limit: Some(12 * MIB), growth_slack: 0.0, ..PoolConfig::default() });
}

#[test]
fn streams_that_share_a_tag_in_segments() {
    let provider = || SimulatedConfig { addressing: Addressing::Segmented, capacity: 128 * MIB, ..simulated() };
    check_sharers(60, provider, PoolConfig::default());
}
