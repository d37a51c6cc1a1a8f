//! The promises of the buffer, one file each, on simulated devices.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod borrowed;
mod compile_fail;
mod copies;
mod external;
mod host_views;
mod order;
mod ownership;
mod resize;
mod shared;
mod sim;
mod simulated;
mod threads;
mod typed;
