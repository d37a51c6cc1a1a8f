//! All calls to the CUDA driver, and nothing else.
//!
//! - [`calls`] declares each function once, with the result code as the integer that it is.
//! - [`error`] says what a code means.
//! - [`captures`] counts captures, so that nobody disturbs them.
//! - [`context`] initialises the driver, keeps a device's primary context and makes it current for one call.
//! - [`thread`] numbers threads, each of which has a default stream.
//! - [`memory`], [`share`], [`event`], [`stream`], [`copy`], [`graph`] and [`module`] wrap the calls of one subject.
//!
//! Without the feature `cuda` every call returns [`calls::NOT_BUILT`], so that the code above compiles and behaves the
//! same anywhere and learns at run time that there is no CUDA.

pub(crate) mod calls;
mod captures;
pub(crate) mod context;
pub(crate) mod copy;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod graph;
pub(crate) mod memory;
pub(crate) mod module;
#[cfg(unix)]
pub(crate) mod share;
pub(crate) mod stream;
pub(crate) mod thread;

pub(crate) use context::Context;
pub use event::Event;
