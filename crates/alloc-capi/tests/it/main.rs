//! What the C interface promises: on the host, from C and from Python; and with the feature `cuda` what PyTorch's allocator
//! calls, on a driver that keeps books.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

mod header;
mod host;
mod installed;
#[cfg(target_os = "linux")]
mod leaks;
mod programs;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod seen;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod sweep;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod tensors;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod torch;

#[cfg(all(feature = "cuda", target_os = "linux"))]
#[allow(dead_code, reason = "not all that the tests of alloc-cuda need is needed here")]
#[path = "../../../alloc-cuda/tests/it/cuda/harness.rs"]
mod harness;
