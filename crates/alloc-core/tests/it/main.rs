//! Promises of this crate that are kept across modules.

#[cfg(feature = "conformance")]
mod conformance;
