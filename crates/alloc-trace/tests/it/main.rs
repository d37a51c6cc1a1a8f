//! What the crate promises, one file a promise.

#![allow(clippy::unwrap_used, clippy::panic)]

mod support;

mod files;
mod picture;
mod profiles;
mod replays;
mod rows;
mod threads;
mod validation;
