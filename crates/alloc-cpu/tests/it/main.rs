//! What this crate promises, one file per promise.

#![allow(clippy::unwrap_used, clippy::panic)]

mod bytes;
mod capacity;
#[cfg(feature = "allocator-api2")]
mod collections;
mod conformance;
mod huge_pages;
mod mapping;
mod misuse;
mod moves;
mod numa;
mod pool;
mod populate;
mod snapshot;
mod system;
mod transfer;
