//! What CUDA supplies to the pooling engine: device memory and page-locked host memory.

/// The part of a provider that is about work: the events and streams of its field `context`, and its field `transfer`.
macro_rules! work_of_a_context {
    () => {
        fn record(&self, stream: Stream) -> Result<Option<Event>, ProviderError> {
            // SAFETY: a stream that is named to an allocator lives until it is retired, and the engine asks
            // `is_capturing` before it records.
            unsafe { Event::record(self.context, stream) }.map(Some)
        }

        fn is_complete(&self, event: &Event) -> Result<bool, ProviderError> {
            event.is_complete()
        }

        fn is_idle(&self, stream: Stream) -> Result<bool, ProviderError> {
            $crate::provider::is_idle(self.context, stream)
        }

        fn is_idle_dear(&self) -> bool {
            self.context.is_idle_dear()
        }

        fn make_wait(&self, stream: Stream, event: &Event) -> Result<(), ProviderError> {
            // SAFETY: a stream that is named to an allocator lives until it is retired.
            unsafe { event.make_wait(self.context, stream) }
        }

        fn synchronize(&self, event: &Event) -> Result<(), ProviderError> {
            event.synchronize()
        }

        fn is_capturing(&self, stream: Stream) -> Result<bool, ProviderError> {
            // SAFETY: as above.
            unsafe { self.context.stream_is_capturing($crate::driver::stream::Target::of(stream)) }
        }

        fn transfer(&self) -> &dyn Transfer {
            self.transfer
        }
    };
}

mod access;
mod carved;
mod device;
mod host_pages;
mod pinned;

pub(crate) use carved::{CarvedProvider, Carvings};
pub use device::{DeviceOptions, DeviceProvider, Physical};
pub use pinned::{PinnedMemory, PinnedMethod, PinnedProvider};

use alloc_core::{ProviderError, Stream};

use crate::driver::Context;
use crate::driver::stream::Target;

/// Whether no work is under way on a stream, as far as that can be asked.
fn is_idle(context: &Context, stream: Stream) -> Result<bool, ProviderError> {
    let target = Target::of(stream);
    // SAFETY: a stream that is named to an allocator lives until it is retired.
    if unsafe { context.stream_is_capturing(target) }? {
        return Ok(false);
    }
    // SAFETY: as above.
    unsafe { context.stream_is_idle(target) }
}
