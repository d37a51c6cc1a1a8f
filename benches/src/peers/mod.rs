//! The peers' bench: the workloads that this workspace's pool, PyTorch's allocator and RMM's resources all run.
//!
//! The C++ programs in `benches/peers` do what these modules do, module by module: the same generator, the same drawn
//! sequences, the same order of calls, the same way of taking time, the same record a line. A test compares the
//! sequences of both languages. Sequences are drawn before the clock starts.
//!
//! | workload | what one operation is | on which stream |
//! |---|---|---|
//! | replay | an allocation or a release, in the order of a recording | that of the row |
//! | pair | an allocation and a release of one size | one |
//! | churn | a release and an allocation, 2,000 blocks alive | one |
//! | random | an allocation or a release, as in RMM's bench of random allocations | one |
//! | threads | a release and an allocation, 200 blocks alive on each thread | each thread its own |
//! | producer_consumer | an allocation on one thread and the release on another | each pair of threads its own |
//! | larson | a release and an allocation, 1,000 blocks alive in an array that goes from thread to thread | each array its own |
//! | xmalloc | an allocation on one thread and the release on whichever takes the batch | that of the allocation |
//!
//! Replay and random are done in passes over the whole sequence on a fresh allocator; calls to the driver count in the
//! first. The others are warmed up and then measured for rounds of a fixed time, of which the median counts.

pub mod bars;
pub mod comparison;
pub mod draw;
pub mod golden;
pub mod lanes;
pub mod larson;
pub mod pair;
pub mod plan;
pub mod producer_consumer;
pub mod random_allocations;
pub mod record;
pub mod ring;
pub mod schedule;
pub mod suite;
pub mod threads;
pub mod xmalloc;

#[cfg(test)]
mod tests;

pub use record::PeerRecord;
pub use schedule::{Measured, Schedule};
pub use suite::{Backend, Bench, Suite};
