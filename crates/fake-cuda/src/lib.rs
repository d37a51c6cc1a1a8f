//! A stand-in for `libcuda.so.1` that needs no GPU.
//!
//! It exports those driver functions that `alloc-cuda` and its tests call, under their own names, backed by host
//! memory: memory files mapped into reserved ranges for virtual memory management, so aliases show each other's
//! contents. Every call is logged, every object counted, and work is queued on streams that a test can hold back or
//! run in random order. Misuse that a real driver answers with a crash or not at all (unmapping what is not mapped,
//! a call that capture forbids) is written to a list of violations.
//!
//! The environment is read when the library is loaded: `FAKE_CUDA_DEVICES` (4), `FAKE_CUDA_VERSION` (12080),
//! `FAKE_CUDA_CAPACITY` (bytes a device, 1 GiB), `FAKE_CUDA_BREAKS_ALL` (1 if a kernel that traps breaks the contexts of all
//! devices). Of the devices, the third of every four can't manage virtual memory
//! and the fourth has no memory pools and no peers; neither hands
//! memory to other processes. Functions named `fake_cuda_*` are the tests' own; see `control`.

#![cfg(target_os = "linux")]

mod abi;
mod control;
mod exports;
mod kernels;
mod memory;
mod streams;
mod world;
