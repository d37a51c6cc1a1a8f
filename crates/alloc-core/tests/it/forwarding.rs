//! What wraps a provider passes every question on, those with a default answer too.

use std::sync::{Arc, Mutex};

use alloc_core::{
    Address, AddressRange, Addressing, Device, DeviceMemory, MemoryProvider, Place, ProviderError, Stream, Transfer,
    TransferError, forward_provider,
};

const START: Address = Address::new(1 << 20);
const EVENT: u64 = 7;

/// Notes what it is asked, and answers as no default does.
#[derive(Clone, Debug, Default)]
struct Asked(Arc<Mutex<Vec<&'static str>>>);

impl Asked {
    fn note<T>(&self, method: &'static str, answer: T) -> T {
        self.0.lock().unwrap().push(method);
        answer
    }
}

// SAFETY: the device is simulated.
unsafe impl MemoryProvider for Asked {
    type Physical = u64;
    type Event = u64;

    fn device(&self) -> Device {
        self.note("device", Device::cuda(3).simulated())
    }
    fn addressing(&self) -> Addressing {
        self.note("addressing", Addressing::Segmented)
    }
    fn granularity(&self) -> u64 {
        self.note("granularity", 1 << 16)
    }
    fn memory(&self) -> Result<DeviceMemory, ProviderError> {
        self.note("memory", Ok(DeviceMemory { free: 1, total: 2 }))
    }
    fn reserve(&self, bytes: u64) -> Result<AddressRange, ProviderError> {
        self.note("reserve", Ok(AddressRange { start: START, bytes }))
    }
    unsafe fn unreserve(&self, range: AddressRange) -> Result<(), ProviderError> {
        assert_eq!(range, AddressRange { start: START, bytes: 100 });
        self.note("unreserve", Ok(()))
    }
    fn create(&self, bytes: u64) -> Result<u64, ProviderError> {
        self.note("create", Ok(bytes + 1))
    }
    unsafe fn release(&self, physical: u64, bytes: u64) -> Result<(), ProviderError> {
        assert_eq!((physical, bytes), (101, 100));
        self.note("release", Ok(()))
    }
    unsafe fn map(&self, at: Address, physical: &u64, bytes: u64) -> Result<(), ProviderError> {
        assert_eq!((at, *physical, bytes), (START, 101, 100));
        self.note("map", Ok(()))
    }
    unsafe fn unmap(&self, at: Address, bytes: u64) -> Result<(), ProviderError> {
        assert_eq!((at, bytes), (START, 100));
        self.note("unmap", Ok(()))
    }
    fn segment_address(&self, physical: &u64) -> Address {
        self.note("segment_address", Address::new(*physical))
    }
    fn record(&self, stream: Stream) -> Result<Option<u64>, ProviderError> {
        self.note("record", Ok(Some(stream.handle())))
    }
    fn is_complete(&self, event: &u64) -> Result<bool, ProviderError> {
        self.note("is_complete", Ok(*event == EVENT))
    }
    fn is_idle(&self, stream: Stream) -> Result<bool, ProviderError> {
        self.note("is_idle", Ok(stream.handle() == EVENT))
    }
    fn is_idle_dear(&self) -> bool {
        self.note("is_idle_dear", true)
    }
    fn make_wait(&self, stream: Stream, event: &u64) -> Result<(), ProviderError> {
        assert_eq!((stream.handle(), *event), (EVENT, EVENT));
        self.note("make_wait", Ok(()))
    }
    fn synchronize(&self, event: &u64) -> Result<(), ProviderError> {
        assert_eq!(*event, EVENT);
        self.note("synchronize", Ok(()))
    }
    fn recycle(&self, event: u64) {
        assert_eq!(event, EVENT);
        self.note("recycle", ());
    }
    fn is_capturing(&self, stream: Stream) -> Result<bool, ProviderError> {
        self.note("is_capturing", Ok(stream.handle() == EVENT))
    }
    fn transfer(&self) -> &dyn Transfer {
        self.note("transfer", &Nothing)
    }
}

/// Copies nothing.
#[derive(Debug)]
struct Nothing;

// SAFETY: it does nothing.
unsafe impl Transfer for Nothing {
    fn can_copy(&self, _from: Device, _to: Device) -> bool {
        false
    }
    unsafe fn copy(&self, _from: Place, _to: Place, _bytes: u64, _stream: Stream) -> Result<(), TransferError> {
        Ok(())
    }
    unsafe fn fill(&self, _to: Place, _bytes: u64, _value: u8, _stream: Stream) -> Result<(), TransferError> {
        Ok(())
    }
    fn synchronize(&self, _stream: Stream) -> Result<(), TransferError> {
        Ok(())
    }
}

#[derive(Debug)]
struct Wrapper {
    inner: Asked,
}

// SAFETY: all is answered by the provider inside.
unsafe impl MemoryProvider for Wrapper {
    type Physical = u64;
    type Event = u64;

    forward_provider!(self => self.inner);
}

#[test]
fn every_question_reaches_the_provider_inside() {
    let asked = Asked::default();
    let wrapper = Wrapper { inner: asked.clone() };
    let stream = Stream::from_raw(EVENT);
    assert_eq!(wrapper.device(), Device::cuda(3).simulated());
    assert_eq!((wrapper.addressing(), wrapper.granularity()), (Addressing::Segmented, 1 << 16));
    assert_eq!(wrapper.memory(), Ok(DeviceMemory { free: 1, total: 2 }));
    let range = wrapper.reserve(100).unwrap();
    let physical = wrapper.create(100).unwrap();
    assert_eq!(wrapper.segment_address(&physical), Address::new(101));
    // SAFETY: the device is simulated.
    unsafe {
        wrapper.map(range.start, &physical, 100).unwrap();
        wrapper.unmap(range.start, 100).unwrap();
        wrapper.release(physical, 100).unwrap();
        wrapper.unreserve(range).unwrap();
    }
    let event = wrapper.record(stream).unwrap().unwrap();
    assert_eq!(
        (wrapper.is_complete(&event), wrapper.is_idle(stream), wrapper.is_idle_dear()),
        (Ok(true), Ok(true), true)
    );
    wrapper.make_wait(stream, &event).unwrap();
    wrapper.synchronize(&event).unwrap();
    wrapper.recycle(event);
    assert_eq!(wrapper.is_capturing(stream), Ok(true));
    assert!(!wrapper.transfer().can_copy(Device::CPU, Device::CPU));
    let expected = [
        "device",
        "addressing",
        "granularity",
        "memory",
        "reserve",
        "create",
        "segment_address",
        "map",
        "unmap",
        "release",
        "unreserve",
        "record",
        "is_complete",
        "is_idle",
        "is_idle_dear",
        "make_wait",
        "synchronize",
        "recycle",
        "is_capturing",
        "transfer",
    ];
    assert_eq!(*asked.0.lock().unwrap(), expected);
}

/// Where other types have the names that methods return.
mod shadowed {
    use alloc_core::{
        Device, DeviceAllocator, MemoryProvider, SimulatedAllocator, forward_allocator, forward_provider,
    };

    use super::Asked;

    #[expect(dead_code, reason = "it is in scope, and that is all")]
    type Result<T> = std::result::Result<T, ()>;
    #[expect(dead_code, reason = "as above")]
    type Option = std::option::Option<()>;

    #[derive(Debug)]
    struct Wrapper<T>(T);

    // SAFETY: all is answered by the allocator inside.
    unsafe impl<A: DeviceAllocator> DeviceAllocator for Wrapper<A> {
        forward_allocator!(self => self.0);
    }

    // SAFETY: all is answered by the provider inside.
    unsafe impl<P: MemoryProvider> MemoryProvider for Wrapper<P> {
        type Physical = P::Physical;
        type Event = P::Event;

        forward_provider!(self => self.0);
    }

    #[test]
    fn a_wrapper_is_written_whatever_is_in_scope() {
        let allocator = Wrapper(SimulatedAllocator::new(Device::cuda(5), 1 << 20));
        assert_eq!(DeviceAllocator::device(&allocator), Device::cuda(5).simulated());
        let provider = Wrapper(Asked::default());
        assert_eq!(provider.granularity(), provider.0.granularity());
    }
}
