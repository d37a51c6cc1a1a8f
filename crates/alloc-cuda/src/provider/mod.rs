//! What CUDA supplies to the pooling engine: device memory and page-locked host memory.

mod carved;
mod device;
mod host_pages;
mod pinned;

pub(crate) use carved::{CarvedProvider, Carvings};
pub use device::{DeviceOptions, DeviceProvider, Physical};
pub use pinned::{PinnedMemory, PinnedMethod, PinnedProvider};

use alloc_core::{ProviderError, Stream};

use crate::driver::stream::Target;
use crate::driver::{Context, Event};

/// The events of a provider, all alike.
fn record(context: &'static Context, stream: Stream) -> Result<Option<Event>, ProviderError> {
    // SAFETY: a stream that is named to an allocator lives until it is retired, and the engine asks
    // `is_capturing` before it records.
    unsafe { Event::record(context, stream) }.map(Some)
}

fn make_wait(context: &Context, stream: Stream, event: &Event) -> Result<(), ProviderError> {
    // SAFETY: a stream that is named to an allocator lives until it is retired.
    unsafe { event.make_wait(context, stream) }
}

fn is_idle(context: &Context, stream: Stream) -> Result<bool, ProviderError> {
    let target = Target::of(stream);
    // SAFETY: a stream that is named to an allocator lives until it is retired.
    if unsafe { context.stream_is_capturing(target) }? {
        return Ok(false);
    }
    // SAFETY: as above.
    unsafe { context.stream_is_idle(target) }
}

fn is_capturing(context: &Context, stream: Stream) -> Result<bool, ProviderError> {
    // SAFETY: as above.
    unsafe { context.stream_is_capturing(Target::of(stream)) }
}
