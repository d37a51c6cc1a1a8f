//! The contract between memory backends, allocators and buffers.
//!
//! A [`DeviceAllocator`] hands out [`Block`]s of a [`Device`]'s memory in the order of [`Stream`]s and takes them
//! back. A backend supplies a [`MemoryProvider`] (physical pages, addresses, events) and a [`Transfer`] (copies and
//! fills); the crate `alloc-pool` makes an allocator of it. This crate has no backend, no `unsafe` code beyond
//! forwarding, and few dependencies. The three traits are unsafe to implement, since safe code follows the addresses
//! that come from them.

pub mod adaptor;
mod allocator;
mod block;
#[cfg(feature = "conformance")]
pub mod conformance;
mod device;
mod error;
mod event;
mod forward;
mod layout;
pub mod pressure;
mod provider;
mod reentrancy;
pub mod registry;
mod simulated;
mod snapshot;
mod statistics;
mod stream;
mod transfer;

pub use allocator::{AllocatorHandle, DeviceAllocator};
pub use block::{Address, AddressRange, Block, BlockId};
pub use device::{Device, DeviceKind};
pub use error::{AllocError, OutOfMemory, ProviderError, ProviderErrorKind, ReleaseError};
pub use event::{AllocatorEvent, EventHook};
pub use layout::{Layout, LayoutError};
pub use provider::{Addressing, DeviceMemory, MemoryProvider};
pub use simulated::SimulatedAllocator;
pub use snapshot::{ArenaSnapshot, Piece, PieceState, Run, SlabSnapshot, SlotState, Snapshot, SnapshotTotals};
pub use statistics::{Gauge, ProviderCalls, Statistics};
pub use stream::{Stream, StreamSet};
pub use transfer::{Place, Transfer, TransferError};
