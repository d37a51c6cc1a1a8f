//! An RAII buffer over any device allocator.
//!
//! - [`Buffer`] owns memory and gives it back when dropped, by the path that it came by; also memory that another
//!   owner frees ([`Buffer::from_vec`], [`Buffer::external`]).
//! - [`SharedBuffer`], [`WeakBuffer`] and [`SharedSlice`] are counted handles to one buffer or part of it.
//! - [`BorrowedBuffer`] and [`BorrowedBufferMut`] are slices of a buffer, or external memory whose lifetime the
//!   compiler checks.
//! - [`TypedBuffer`] counts elements instead of bytes.
//! - Anything that is [`Memory`] can be copied from, to any device that a backend at hand connects to.
//!
//! In safe code no memory leaks but by `mem::forget`, none is released twice, and none is used after its release,
//! work that runs on a device's streams included. What that rests on: allocators and transfers keep the contract of
//! `alloc-core`, and whoever submits work of their own on a buffer's address declares it ([`Buffer::use_on`]).
//!
//! # Copies
//! The path of a copy is chosen from the two devices:
//!
//! | from, to | host | device |
//! |---|---|---|
//! | **host** | the host's transfer, or the processor | the device's transfer |
//! | **device** | the device's transfer | the destination's transfer, else the source's |
//!
//! In general the backend of the destination is asked first and that of the source second, but one of plain host
//! memory last, since it knows nothing of a device's streams. The shorter length counts, and is returned; the forms
//! named `exact` make a difference an error. The forms named `on` are ordered by a stream, the others are finished
//! when they return.
//!
//! # Example
//! ```
//! use buffer::{Buffer, BufferError, SharedBuffer};
//!
//! let host = alloc_cpu::global()?;
//!
//! let mut image = Buffer::zeroed(host, 16)?;
//! image.slice_mut(4..8)?.fill(0xff)?;
//! let shared = SharedBuffer::from(image);
//! let row = shared.shared_slice(4..8)?; // keeps the image alive
//! let mut copy = Buffer::new(host, 4)?;
//! copy.copy_from_exact(&row)?;
//! assert_eq!(copy.as_slice::<u32>()?, [u32::MAX]);
//! # Ok::<(), BufferError>(())
//! ```

#![deny(unsafe_code)]

mod borrowed;
mod buffer;
mod copy;
mod error;
mod extent;
mod external;
mod host;
mod ledger;
mod memory;
mod order;
// The one module with `unsafe` code.
#[allow(unsafe_code)]
mod raw;
mod release;
mod resize;
mod shared;
mod typed;

pub use borrowed::{BorrowedBuffer, BorrowedBufferMut};
pub use buffer::{Buffer, BufferParts};
pub use error::BufferError;
pub use external::ExternalOwner;
pub use memory::{Memory, MemoryMut};
pub use release::KeptAllocator;
pub use resize::Relocation;
pub use shared::{SharedBuffer, SharedSlice, WeakBuffer};
pub use typed::{NotElements, TypedBuffer};
