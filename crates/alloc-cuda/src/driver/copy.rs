//! Copies and fills in stream order.
//!
//! The context is made current even where the stream alone would name it: without a current one, the driver (580,
//! CUDA 13.0) refuses to copy ranges that lie in several mappings, as a pool's blocks do.

use alloc_core::ProviderError;

use super::calls;
use super::context::{Context, Current};
use super::stream::Target;

impl Context {
    /// Copies between device and page-locked memory in any direction; the driver knows an address's device.
    ///
    /// # Safety
    /// Both ranges are valid until the stream has come past the copy, and nothing else conflicts with it meanwhile.
    pub(crate) unsafe fn copy(&self, to: u64, from: u64, bytes: u64, stream: Target) -> Result<(), ProviderError> {
        let _current = self.enter()?;
        // SAFETY: the caller's promise.
        self.check("cuMemcpyAsync", unsafe { calls::cuMemcpyAsync(to, from, bytes as usize, stream.handle()) })
    }

    /// Copies between the memory of two devices, by way of the host where they can't reach each other.
    ///
    /// # Safety
    /// As [`Context::copy`]; `to` is memory of `to_context`'s device, and `from` of `from_context`'s.
    pub(crate) unsafe fn copy_peer(
        &self,
        (to, to_context): (u64, &Context),
        (from, from_context): (u64, &Context),
        bytes: u64,
        stream: Target,
    ) -> Result<(), ProviderError> {
        // A default stream is that of the context that is current; else either will do, as the call names both.
        let _current = if stream.is_default() {
            self.enter()?
        } else {
            Current::ensure_one_of(self.name(), [from_context, to_context].map(Context::handle))?
        };
        // SAFETY: the caller's promise.
        self.check("cuMemcpyPeerAsync", unsafe {
            calls::cuMemcpyPeerAsync(
                to,
                to_context.handle(),
                from,
                from_context.handle(),
                bytes as usize,
                stream.handle(),
            )
        })
    }

    /// # Safety
    /// The range is valid until the stream has come past the fill, and nothing else uses it meanwhile.
    pub(crate) unsafe fn fill(&self, to: u64, bytes: u64, value: u8, stream: Target) -> Result<(), ProviderError> {
        let _current = self.enter()?;
        // SAFETY: the caller's promise.
        self.check("cuMemsetD8Async", unsafe { calls::cuMemsetD8Async(to, value, bytes as usize, stream.handle()) })
    }
}
