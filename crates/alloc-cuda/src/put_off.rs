//! What has to wait for all work of a device, and is put off while that can't be waited for, as a stream is captured.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::ProviderError;

use crate::driver::Context;
use crate::driver::error::is_of_capture;

struct PutOff {
    context: &'static Context,
    work: Box<dyn FnOnce() + Send>,
}

impl fmt::Debug for PutOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutOff").field("device", &self.context.name()).finish_non_exhaustive()
    }
}

static PUT_OFF: Mutex<Vec<PutOff>> = Mutex::new(Vec::new());

fn lock() -> MutexGuard<'static, Vec<PutOff>> {
    PUT_OFF.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for all work of a device, and then does what was put off until then.
pub(crate) fn settle(context: &'static Context) -> Result<(), ProviderError> {
    // Taken before the wait: what is put off during it may be behind work that is not waited for.
    let due: Vec<PutOff> = lock().extract_if(.., |put_off| std::ptr::eq(put_off.context, context)).collect();
    match context.synchronize() {
        Ok(()) => {
            due.into_iter().for_each(|put_off| (put_off.work)());
            Ok(())
        }
        Err(error) => {
            lock().extend(due);
            Err(error)
        }
    }
}

/// Does `work` once all work of the device was waited for: now, or if a capture is in the way on a later occasion, and then
/// returns `None`.
pub(crate) fn once_idle<T>(
    context: &'static Context,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<Option<T>, ProviderError> {
    match settle(context) {
        Ok(()) => Ok(Some(work())),
        Err(error) if is_of_capture(&error) => {
            put_off(context, move || drop(work()));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Leaves `work` to whoever next waits for the device.
pub(crate) fn put_off(context: &'static Context, work: impl FnOnce() + Send + 'static) {
    lock().push(PutOff { context, work: Box::new(work) });
}

/// Does what was put off for a device, if anything was and the device can be waited for now; whether it did.
pub(crate) fn retry(context: &'static Context) -> bool {
    let is_any = lock().iter().any(|put_off| std::ptr::eq(put_off.context, context));
    is_any && settle(context).is_ok()
}

/// Gives back what should have gone while a stream was captured: dropped [`PrivatePool`](crate::PrivatePool)s, say. Nothing
/// happens, and no device is waited for, if there is nothing of that kind.
///
/// Whoever next waits for the device on such an account gives it back as well, so programs that go on seldom need this.
pub fn give_back_put_off() {
    let mut contexts: Vec<&'static Context> = lock().iter().map(|put_off| put_off.context).collect();
    contexts.sort_unstable_by_key(|context| context.ordinal());
    contexts.dedup_by_key(|context| context.ordinal());
    for context in contexts {
        if !retry(context) {
            tracing::debug!(device = %context.name(), "what was put off has to wait: the device can't be waited for");
        }
    }
}
