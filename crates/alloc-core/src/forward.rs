//! Forwarding: the methods that a wrapper leaves to what it wraps.
//!
//! Some methods of the traits have defaults, which suit a backend and not a wrapper: one that leaves such a method out answers for what
//! is inside without asking it. To name the methods, or to have all of them, costs a line.

/// Methods of [`DeviceAllocator`](crate::DeviceAllocator) that are answered by the allocator inside, within an `unsafe impl`
/// of it.
///
/// Takes `self`, where the allocator inside is, and the names of the methods; without names all are forwarded, those that the
/// trait gets in later versions among them. Where methods are named, a later one answers with its default until it is named, too.
/// The trait has to be in scope, and a method of the same name that the type inside has of its own comes before the trait's.
///
/// Whoever writes the `unsafe impl` vouches that the promises hold if the allocator inside keeps them: that it is the same one
/// at all times, and that each block goes back to it as it came.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use alloc_core::{
///     AllocError, Block, Device, DeviceAllocator, Layout, SimulatedAllocator, Stream, forward_allocator,
/// };
///
/// /// Counts the requests.
/// #[derive(Debug)]
/// struct Counting<A> {
///     inner: A,
///     requests: AtomicU64,
/// }
///
/// // SAFETY: blocks come from the inner allocator, and go back to it as they are.
/// unsafe impl<A: DeviceAllocator> DeviceAllocator for Counting<A> {
///     fn allocate(&self, layout: Layout, stream: Stream) -> Result<Block, AllocError> {
///         self.requests.fetch_add(1, Ordering::Relaxed);
///         self.inner.allocate(layout, stream)
///     }
///
///     forward_allocator!(self => self.inner; device, release, statistics, trim, grow_to, transfer, retire_stream);
/// }
///
/// let counting = Counting { inner: SimulatedAllocator::new(Device::cuda(0), 1 << 20), requests: AtomicU64::new(0) };
/// counting.allocate(Layout::bytes(1000)?, Stream::DEFAULT)?;
/// assert_eq!((counting.requests.into_inner(), counting.inner.statistics().requested.count), (1, 1));
/// # Ok::<(), AllocError>(())
/// ```
#[macro_export]
macro_rules! forward_allocator {
    ($this:ident => $inner:expr) => {
        $crate::forward_allocator!(
            $this => $inner; device, allocate, release, statistics, trim, grow_to, transfer, retire_stream
        );
    };
    ($this:ident => $inner:expr; $($method:ident),+ $(,)?) => {
        $($crate::forward_allocator!(@ $method $this $inner);)+
    };
    (@ device $this:ident $inner:expr) => {
        fn device(&$this) -> $crate::Device {
            $inner.device()
        }
    };
    (@ allocate $this:ident $inner:expr) => {
        fn allocate(
            &$this,
            layout: $crate::Layout,
            stream: $crate::Stream,
        ) -> ::core::result::Result<$crate::Block, $crate::AllocError> {
            $inner.allocate(layout, stream)
        }
    };
    (@ release $this:ident $inner:expr) => {
        unsafe fn release(
            &$this,
            block: $crate::Block,
            stream: $crate::Stream,
            uses: &$crate::StreamSet,
        ) -> ::core::result::Result<(), $crate::ReleaseError> {
            // SAFETY: the caller's promises are those that the inner allocator asks for.
            unsafe { $inner.release(block, stream, uses) }
        }
    };
    (@ statistics $this:ident $inner:expr) => {
        fn statistics(&$this) -> $crate::Statistics {
            $inner.statistics()
        }
    };
    (@ trim $this:ident $inner:expr) => {
        fn trim(&$this, keep: u64) -> u64 {
            $inner.trim(keep)
        }
    };
    (@ grow_to $this:ident $inner:expr) => {
        fn grow_to(&$this, bytes: u64, stream: $crate::Stream) -> ::core::result::Result<u64, $crate::AllocError> {
            $inner.grow_to(bytes, stream)
        }
    };
    (@ transfer $this:ident $inner:expr) => {
        fn transfer(&$this) -> &dyn $crate::Transfer {
            $inner.transfer()
        }
    };
    (@ retire_stream $this:ident $inner:expr) => {
        fn retire_stream(&$this, stream: $crate::Stream) {
            $inner.retire_stream(stream);
        }
    };
}

/// Methods of [`MemoryProvider`](crate::MemoryProvider) that are answered by the provider inside, within an `unsafe impl` of
/// it, whose `Physical` and `Event` are those of that provider.
///
/// As [`forward_allocator!`](crate::forward_allocator): takes `self`, where the provider inside is, and the names of the
/// methods; without names all are forwarded.
///
/// ```
/// # #[cfg(feature = "conformance")] {
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use alloc_core::conformance::SimulatedProvider;
/// use alloc_core::{MemoryProvider, ProviderError, forward_provider};
///
/// /// Counts what is taken from the device.
/// #[derive(Debug)]
/// struct Counting<P> {
///     inner: P,
///     created: AtomicU64,
/// }
///
/// // SAFETY: all is answered by the provider inside.
/// unsafe impl<P: MemoryProvider> MemoryProvider for Counting<P> {
///     type Physical = P::Physical;
///     type Event = P::Event;
///
///     fn create(&self, bytes: u64) -> Result<P::Physical, ProviderError> {
///         self.created.fetch_add(1, Ordering::Relaxed);
///         self.inner.create(bytes)
///     }
///
///     forward_provider!(
///         self => self.inner; device, addressing, granularity, memory, reserve, unreserve, release, map, unmap,
///         segment_address, record, is_complete, is_idle, is_idle_dear, make_wait, synchronize, recycle, is_capturing, transfer
///     );
/// }
///
/// let counting = Counting { inner: SimulatedProvider::default(), created: AtomicU64::new(0) };
/// counting.create(counting.granularity()).unwrap();
/// assert_eq!(counting.created.into_inner(), 1);
/// # }
/// ```
#[macro_export]
macro_rules! forward_provider {
    ($this:ident => $inner:expr) => {
        $crate::forward_provider!(
            $this => $inner; device, addressing, granularity, memory, reserve, unreserve, create, release, map, unmap,
            segment_address, record, is_complete, is_idle, is_idle_dear, make_wait, synchronize, recycle, is_capturing,
            transfer
        );
    };
    ($this:ident => $inner:expr; $($method:ident),+ $(,)?) => {
        $($crate::forward_provider!(@ $method $this $inner);)+
    };
    (@ device $this:ident $inner:expr) => {
        fn device(&$this) -> $crate::Device {
            $inner.device()
        }
    };
    (@ addressing $this:ident $inner:expr) => {
        fn addressing(&$this) -> $crate::Addressing {
            $inner.addressing()
        }
    };
    (@ granularity $this:ident $inner:expr) => {
        fn granularity(&$this) -> u64 {
            $inner.granularity()
        }
    };
    (@ memory $this:ident $inner:expr) => {
        fn memory(&$this) -> ::core::result::Result<$crate::DeviceMemory, $crate::ProviderError> {
            $inner.memory()
        }
    };
    (@ reserve $this:ident $inner:expr) => {
        fn reserve(&$this, bytes: u64) -> ::core::result::Result<$crate::AddressRange, $crate::ProviderError> {
            $inner.reserve(bytes)
        }
    };
    (@ unreserve $this:ident $inner:expr) => {
        unsafe fn unreserve(&$this, range: $crate::AddressRange) -> ::core::result::Result<(), $crate::ProviderError> {
            // SAFETY: the caller's promise is the one that the inner provider asks for.
            unsafe { $inner.unreserve(range) }
        }
    };
    (@ create $this:ident $inner:expr) => {
        fn create(&$this, bytes: u64) -> ::core::result::Result<Self::Physical, $crate::ProviderError> {
            $inner.create(bytes)
        }
    };
    (@ release $this:ident $inner:expr) => {
        unsafe fn release(&$this, physical: Self::Physical, bytes: u64) -> ::core::result::Result<(), $crate::ProviderError> {
            // SAFETY: as above.
            unsafe { $inner.release(physical, bytes) }
        }
    };
    (@ map $this:ident $inner:expr) => {
        unsafe fn map(
            &$this,
            at: $crate::Address,
            physical: &Self::Physical,
            bytes: u64,
        ) -> ::core::result::Result<(), $crate::ProviderError> {
            // SAFETY: as above.
            unsafe { $inner.map(at, physical, bytes) }
        }
    };
    (@ unmap $this:ident $inner:expr) => {
        unsafe fn unmap(&$this, at: $crate::Address, bytes: u64) -> ::core::result::Result<(), $crate::ProviderError> {
            // SAFETY: as above.
            unsafe { $inner.unmap(at, bytes) }
        }
    };
    (@ segment_address $this:ident $inner:expr) => {
        fn segment_address(&$this, physical: &Self::Physical) -> $crate::Address {
            $inner.segment_address(physical)
        }
    };
    (@ record $this:ident $inner:expr) => {
        fn record(
            &$this,
            stream: $crate::Stream,
        ) -> ::core::result::Result<::core::option::Option<Self::Event>, $crate::ProviderError> {
            $inner.record(stream)
        }
    };
    (@ is_complete $this:ident $inner:expr) => {
        fn is_complete(&$this, event: &Self::Event) -> ::core::result::Result<bool, $crate::ProviderError> {
            $inner.is_complete(event)
        }
    };
    (@ is_idle $this:ident $inner:expr) => {
        fn is_idle(&$this, stream: $crate::Stream) -> ::core::result::Result<bool, $crate::ProviderError> {
            $inner.is_idle(stream)
        }
    };
    (@ is_idle_dear $this:ident $inner:expr) => {
        fn is_idle_dear(&$this) -> bool {
            $inner.is_idle_dear()
        }
    };
    (@ make_wait $this:ident $inner:expr) => {
        fn make_wait(&$this, stream: $crate::Stream, event: &Self::Event) -> ::core::result::Result<(), $crate::ProviderError> {
            $inner.make_wait(stream, event)
        }
    };
    (@ synchronize $this:ident $inner:expr) => {
        fn synchronize(&$this, event: &Self::Event) -> ::core::result::Result<(), $crate::ProviderError> {
            $inner.synchronize(event)
        }
    };
    (@ recycle $this:ident $inner:expr) => {
        fn recycle(&$this, event: Self::Event) {
            $inner.recycle(event);
        }
    };
    (@ is_capturing $this:ident $inner:expr) => {
        fn is_capturing(&$this, stream: $crate::Stream) -> ::core::result::Result<bool, $crate::ProviderError> {
            $inner.is_capturing(stream)
        }
    };
    (@ transfer $this:ident $inner:expr) => {
        fn transfer(&$this) -> &dyn $crate::Transfer {
            $inner.transfer()
        }
    };
}
