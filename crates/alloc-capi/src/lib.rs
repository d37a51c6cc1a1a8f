//! The pools of this workspace behind a small C interface, in a shared library named `device_memory`.
//!
//! - [`ffi`] has the functions; `include/device_memory.h` declares them for C, and the Python package `device_memory`
//!   wraps them.
//! - With the feature `cuda`, `ffi::torch` has the functions that PyTorch's `CUDAPluggableAllocator` takes.
//!
//! # What callers can count on
//! - A pointer is freed by itself, in constant time: an index over the address space knows the block at every address.
//! - Misuse is an error code, a text and a `tracing` event, and does no harm: unknown pointers, pointers freed
//!   before, the wrong device, the wrong size.
//! - No panic crosses the border.
//! - Functions come and keep their meaning; `DEVMEM_ABI_VERSION` changes when one does not. Structs start with the
//!   fields that they had and grow at the end; callers say how much of one they know.
//! - What was never freed is told at the end of the process, if `ALLOC_LEAK_REPORT` asks for it.
//!
//! ```
//! use device_memory::ffi;
//!
//! let mut pointer = std::ptr::null_mut();
//! // SAFETY: the pointer is a local.
//! let status = unsafe { ffi::devmem_allocate(ffi::DEVMEM_KIND_CPU, 0, 4096, &mut pointer) };
//! assert_eq!(status, device_memory::Status::Ok);
//! // SAFETY: nothing uses the block.
//! assert_eq!(unsafe { ffi::devmem_free(pointer) }, device_memory::Status::Ok);
//! // SAFETY: a pointer that was freed is refused.
//! assert_eq!(unsafe { ffi::devmem_free(pointer) }, device_memory::Status::DoubleFree);
//! ```

mod arenas;
mod failure;
pub mod ffi;
mod heaps;
mod index;
mod leaks;
mod live;
mod memory;
mod peers;
mod picture;
mod report;
#[cfg(feature = "cuda")]
mod torch;

pub use failure::Status;
pub use report::Statistics;
