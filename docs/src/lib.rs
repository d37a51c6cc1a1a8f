//! Runs the examples of the READMEs and of the pages beside this package as doc tests, so that they stay true.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}

#[cfg(doctest)]
#[doc = include_str!("../architecture.md")]
mod architecture {}

#[cfg(doctest)]
#[doc = include_str!("../guide.md")]
mod guide {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/alloc-capi/README.md")]
mod alloc_capi {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/alloc-core/README.md")]
mod alloc_core {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/alloc-cpu/README.md")]
mod alloc_cpu {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/alloc-cuda/README.md")]
mod alloc_cuda {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/alloc-pool/README.md")]
mod alloc_pool {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/alloc-trace/README.md")]
mod alloc_trace {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/buffer/README.md")]
mod buffer {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/buffer-dlpack/README.md")]
mod buffer_dlpack {}

#[cfg(doctest)]
#[doc = include_str!("../../crates/cuda-link/README.md")]
mod cuda_link {}
