//! Promises of this crate that are kept across modules.

#![allow(clippy::unwrap_used, reason = "a test that fails panics")]

#[cfg(feature = "conformance")]
mod conformance;
mod forwarding;
#[cfg(feature = "tracking")]
mod tracking;
