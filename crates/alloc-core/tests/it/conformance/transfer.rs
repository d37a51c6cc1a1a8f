//! A host transfer that is as late as it may be: fills wait in the queue of their stream until something waits for
//! them. An allocator that reuses memory too early is found out by it every time, not only now and then.

use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::{Address, Device, Place, Stream, Transfer, TransferError};

#[derive(Debug)]
struct Fill {
    stream: Stream,
    to: Address,
    bytes: u64,
    value: u8,
}

#[derive(Debug, Default)]
pub struct LateTransfer {
    queue: Mutex<Vec<Fill>>,
}

impl LateTransfer {
    fn queue(&self) -> MutexGuard<'_, Vec<Fill>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does the work of the streams that `chosen` says.
    pub fn finish(&self, chosen: impl Fn(Stream) -> bool) {
        for fill in self.queue().extract_if(.., |fill| chosen(fill.stream)) {
            // SAFETY: whoever queued the fill promised that the memory stays until the stream has come past it.
            unsafe { ptr::write_bytes(pointer(fill.to), fill.value, fill.bytes as usize) };
        }
    }
}

fn pointer(address: Address) -> *mut u8 {
    ptr::with_exposed_provenance_mut(address.get() as usize)
}

// SAFETY: a copy is done when it returns, after all fills of its stream; a fill is done once its stream is waited for; it
// shares no stream.
unsafe impl Transfer for LateTransfer {
    fn can_copy(&self, from: Device, to: Device) -> bool {
        from.is_host_accessible() && to.is_host_accessible()
    }

    unsafe fn copy(&self, from: Place, to: Place, bytes: u64, stream: Stream) -> Result<(), TransferError> {
        self.finish(|other| other == stream);
        // SAFETY: the caller says that both places are valid and don't overlap.
        unsafe { ptr::copy_nonoverlapping(pointer(from.address), pointer(to.address), bytes as usize) };
        Ok(())
    }

    unsafe fn fill(&self, to: Place, bytes: u64, value: u8, stream: Stream) -> Result<(), TransferError> {
        self.queue().push(Fill { stream, to: to.address, bytes, value });
        Ok(())
    }

    fn synchronize(&self, stream: Stream) -> Result<(), TransferError> {
        self.finish(|other| other == stream);
        Ok(())
    }
}
