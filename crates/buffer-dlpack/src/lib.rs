//! Buffers as [DLPack] tensors, and DLPack tensors as buffers, without a copy.
//!
//! DLPack is how NumPy, PyTorch, CuPy, JAX and others hand arrays to each other. [`export`] makes a tensor of a
//! [`Buffer`](buffer::Buffer): whoever gets it owns the memory, and gives it back to the buffer's allocator. [`import`]
//! makes a buffer of a tensor.
//!
//! ```
//! use alloc_core::Stream;
//! use buffer::Buffer;
//! use buffer_dlpack::dlpark::ffi::{DLDataType, DLManagedTensor};
//!
//! let host = alloc_cpu::global()?;
//! let buffer = Buffer::from_slice(host, &[1_f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! let address = buffer.address();
//! let tensor = buffer_dlpack::export::<DLManagedTensor>(buffer, &[2, 3], DLDataType::F32, Stream::DEFAULT)?;
//! assert_eq!(tensor.validate()?.shape(), &[2, 3]);
//!
//! // SAFETY: the tensor was just made of a buffer, and nobody else has it.
//! let imported = unsafe { buffer_dlpack::import(tensor, host, Stream::DEFAULT) }?;
//! assert_eq!(imported.shape, [2, 3]);
//! assert_eq!(imported.buffer.address(), address);
//! assert_eq!(imported.buffer.as_slice::<f32>()?[4], 5.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [DLPack]: https://dmlc.github.io/dlpack/latest/

mod error;
mod exchange;

/// The crate whose types are tensors here, in the version that this crate takes.
pub use dlpark;
pub use error::{DlpackError, Refused};
pub use exchange::{Imported, bytes_of, device_of, export, import};
