//! What shows that an allocator keeps the contract, for the tests of any backend.
//!
//! - [`conformance!`](crate::conformance!) stamps a test for every [`Promise`] over an allocator; [`Suite`] does the
//!   same in programs without a test harness. Blocks are checked against a shadow map, and their contents are written
//!   and read through the allocator's own [`Transfer`](crate::Transfer), so that the suite runs on memory that the
//!   processor can't reach as well.
//! - [`SimulatedProvider`] is a [`MemoryProvider`](crate::MemoryProvider) without memory. It keeps the books that a
//!   driver keeps, simulates streams that a test advances by hand, fails the calls that a test names, and reports
//!   every breach of the provider's contract.
//!
//! A backend's tests need no more than `alloc_core::conformance! { my_allocator, MyAllocator::new }`. A program says
//!
//! ```
//! use alloc_core::conformance::{Options, Promise, Suite, Verdict};
//! use alloc_core::{Device, SimulatedAllocator};
//!
//! let options = Options { contents: false, trims_to_zero: false, ..Options::default() };
//! let suite = Suite::new(|| SimulatedAllocator::new(Device::cuda(0), 1 << 30), options);
//! assert_eq!(suite.check(Promise::DoubleRelease)?, Verdict::Kept);
//! # Ok::<(), alloc_core::conformance::Broken>(())
//! ```

mod breach;
mod contents;
mod ledger;
mod macros;
mod promise;
mod promises;
mod rng;
mod simulated;
mod suite;
mod trial;

pub use breach::{Breach, Broken, Expected};
pub use promise::Promise;
pub use simulated::{SIMULATED, SimulatedConfig, SimulatedEvent, SimulatedPhysical, SimulatedProvider};
pub use suite::{Options, Report, Subject, Suite};
pub use trial::Verdict;
