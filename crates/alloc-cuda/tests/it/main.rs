//! What this crate promises, on a driver that keeps books, and where it says `any_device`, on a real one too.
//!
//! With the feature `cuda` the tests load the fake driver of the crate `fake-cuda`, which they build if need be. With
//! `ALLOC_CUDA_TEST_GPU=1` in the environment they use the real driver, fail without one, and leave out what only
//! the fake can show. Without the feature there is one promise: a clear error.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

#[cfg(not(feature = "cuda"))]
mod without_cuda;

#[cfg(all(feature = "cuda", target_os = "linux"))]
mod cuda {
    mod async_allocator;
    mod buffers;
    mod capture;
    mod conformance;
    mod context;
    mod copies;
    mod crossings;
    #[cfg(feature = "cudarc")]
    mod cudarc;
    mod device_memory;
    mod devices;
    mod errors;
    mod failures;
    mod graphs;
    mod harness;
    mod kernels;
    mod ordering;
    mod peers;
    mod pinned;
    mod pressure;
    #[cfg(feature = "buffer")]
    mod processes;
    mod put_off;
    mod start;
    mod streams;
    mod stress;
}
