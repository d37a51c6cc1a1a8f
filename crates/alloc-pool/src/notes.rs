//! Rare things that happen under a lock, kept until it is released and then told to those who listen.

use alloc_core::{AllocatorEvent, Device, EventHook, ProviderError, Stream};

/// An [`AllocatorEvent`] that owns its data.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    Grew {
        bytes: u64,
        reserved: u64,
    },
    Moved {
        bytes: u64,
    },
    Shrank {
        bytes: u64,
        reserved: u64,
    },
    Waited {
        stream: Stream,
    },
    Leaked {
        bytes: u64,
        cause: ProviderError,
    },
    /// Something of the backend's that the pool does without: only whoever traces is told.
    DoneWithout {
        what: &'static str,
        error: ProviderError,
    },
}

impl Note {
    /// Tells the hook, and whoever traces.
    pub(crate) fn tell(&self, device: Device, hook: Option<&dyn EventHook>) {
        let event = match self {
            Self::Grew { bytes, reserved } => AllocatorEvent::Grew { bytes: *bytes, reserved: *reserved },
            Self::Moved { bytes } => AllocatorEvent::Moved { bytes: *bytes },
            Self::Shrank { bytes, reserved } => AllocatorEvent::Shrank { bytes: *bytes, reserved: *reserved },
            Self::Waited { stream } => AllocatorEvent::Waited { stream: *stream },
            Self::Leaked { bytes, cause } => AllocatorEvent::Leaked { bytes: *bytes, cause },
            Self::DoneWithout { what, error } => {
                tracing::debug!(%device, %error, "{what}");
                return;
            }
        };
        tell(&event, device, hook);
    }
}

/// Tells the hook, and whoever traces.
pub(crate) fn tell(event: &AllocatorEvent<'_>, device: Device, hook: Option<&dyn EventHook>) {
    tracing::debug!(%device, ?event);
    if let Some(hook) = hook {
        hook.on_event(device, event);
    }
}
