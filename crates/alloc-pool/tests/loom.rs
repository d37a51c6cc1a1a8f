//! Runs the models of the lock-free parts. Built with `--cfg loom` only:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p alloc-pool --release --test loom
//! ```
#![cfg(loom)]

use alloc_pool::models;

macro_rules! models {
    ($($model:ident,)+) => {$(
        #[test]
        fn $model() {
            models::$model();
        }
    )+};
}

models! {
    one_release_of_many_succeeds,
    one_release_succeeds_while_the_bias_is_revoked,
    what_was_written_before_a_release_is_seen_after_the_reuse,
    a_block_that_another_thread_took_is_reused_through_the_cache,
    a_stale_release_meets_the_reuse_of_its_slot,
    a_stale_release_meets_the_reuse_of_its_slab,
    counters_lose_nothing_and_show_nothing_that_never_was,
    a_call_after_a_flush_finds_no_old_cache,
    one_remote_release_of_many_succeeds,
    a_remote_release_is_seen_by_who_takes_it,
    every_remote_release_is_taken_once,
    a_block_on_standby_has_one_holder,
    one_release_of_a_block_on_standby_succeeds,
    what_is_taken_belongs_to_the_offer,
    a_block_on_standby_leaves_its_owner,
    one_release_of_an_owned_block_on_standby_succeeds,
}
