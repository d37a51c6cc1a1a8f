//! The two traits of a backend, answered from the books.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    Address, AddressRange, Addressing, Device, DeviceMemory, MemoryProvider, Place, ProviderError, Stream, Transfer,
    TransferError,
};

use super::books::Books;
use super::{SimulatedEvent, SimulatedPhysical, SimulatedProvider};

// SAFETY: the device is simulated, whatever device the configuration names. An event is complete when the test says so,
// before which no work of the simulation is.
unsafe impl MemoryProvider for SimulatedProvider {
    type Physical = SimulatedPhysical;
    type Event = SimulatedEvent;

    fn device(&self) -> Device {
        self.config.device
    }

    fn addressing(&self) -> Addressing {
        self.config.addressing
    }

    fn granularity(&self) -> u64 {
        self.config.granularity
    }

    fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        let mut books = self.books();
        books.enter("memory")?;
        Ok(DeviceMemory { free: self.config.capacity - books.physical_bytes(), total: self.config.capacity })
    }

    fn reserve(&self, bytes: u64) -> Result<AddressRange, ProviderError> {
        let start = self.books().reserve(bytes)?;
        Ok(AddressRange { start: Address::new(start), bytes })
    }

    unsafe fn unreserve(&self, range: AddressRange) -> Result<(), ProviderError> {
        self.books().unreserve(range.start.get(), range.bytes)
    }

    fn create(&self, bytes: u64) -> Result<Self::Physical, ProviderError> {
        self.books().create(bytes)
    }

    unsafe fn release(&self, physical: Self::Physical, bytes: u64) -> Result<(), ProviderError> {
        self.books().release(physical.id, bytes)
    }

    unsafe fn map(&self, at: Address, physical: &Self::Physical, bytes: u64) -> Result<(), ProviderError> {
        self.books().map(at.get(), physical.id, bytes)
    }

    unsafe fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError> {
        self.books().unmap(at.get(), bytes)
    }

    fn segment_address(&self, physical: &Self::Physical) -> Address {
        Address::new(self.books().segment_address(physical.id))
    }

    fn record(&self, stream: Stream) -> Result<Option<Self::Event>, ProviderError> {
        self.books().record(stream)
    }

    fn is_complete(&self, event: &Self::Event) -> Result<bool, ProviderError> {
        self.books().is_complete(event)
    }

    fn is_idle(&self, stream: Stream) -> Result<bool, ProviderError> {
        self.books().is_idle(stream)
    }

    fn is_idle_dear(&self) -> bool {
        self.config.is_idle_dear
    }

    fn make_wait(&self, stream: Stream, event: &Self::Event) -> Result<(), ProviderError> {
        self.books().make_wait(stream, event)
    }

    fn synchronize(&self, event: &Self::Event) -> Result<(), ProviderError> {
        self.books().synchronize(event)
    }

    fn is_capturing(&self, stream: Stream) -> Result<bool, ProviderError> {
        let mut books = self.books();
        books.enter("is_capturing")?;
        Ok(books.streams.is_capturing(stream))
    }

    fn transfer(&self) -> &dyn Transfer {
        &self.transfer
    }
}

/// Moves nothing: counts, and checks that its own addresses have simulated memory behind them. Copies to the host are
/// refused, as there are no bytes to give.
#[derive(Clone)]
pub(super) struct SimulatedTransfer {
    pub(super) device: Device,
    pub(super) books: Arc<Mutex<Books>>,
}

impl SimulatedTransfer {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SimulatedTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedTransfer").field("device", &self.device).finish_non_exhaustive()
    }
}

// SAFETY: it has no memory to touch, and nothing is copied out of it; work of the simulation is complete when waited for; it
// shares no stream.
unsafe impl Transfer for SimulatedTransfer {
    fn can_copy(&self, from: Device, to: Device) -> bool {
        to == self.device && (from == self.device || from.is_host_accessible())
    }

    unsafe fn copy(&self, from: Place, to: Place, bytes: u64, _stream: Stream) -> Result<(), TransferError> {
        if !self.can_copy(from.device, to.device) {
            return Err(TransferError::Unsupported { from: from.device, to: to.device });
        }
        let mut books = self.books();
        books.transfers += 1;
        for place in [from, to] {
            if place.device == self.device {
                books.transfer(place.address.get(), bytes);
            }
        }
        Ok(())
    }

    unsafe fn fill(&self, to: Place, bytes: u64, _value: u8, _stream: Stream) -> Result<(), TransferError> {
        let mut books = self.books();
        books.transfers += 1;
        books.transfer(to.address.get(), bytes);
        Ok(())
    }

    fn synchronize(&self, stream: Stream) -> Result<(), TransferError> {
        self.books().streams.complete_all(stream);
        Ok(())
    }
}
