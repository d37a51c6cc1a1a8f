//! The owner of a block.

use std::fmt;
use std::mem;
use std::ops::RangeBounds;
use std::sync::{Mutex, MutexGuard, PoisonError};

use alloc_core::{Address, AllocatorHandle, Block, Device, Layout, Stream, StreamSet};
use bytemuck::NoUninit;

use crate::extent::Extent;
use crate::external::External;
use crate::ledger::{Intent, Ledger};
use crate::raw::{OwnedBlock, Span};
use crate::release::{KeptAllocator, Releasing, release_block};
use crate::{BorrowedBuffer, BorrowedBufferMut, BufferError};

/// Owns memory of a device and gives it back when dropped, by the path that it came by.
///
/// A buffer knows its allocator, its device, the [`Stream`] that it belongs to and its length in bytes. It is never
/// cloned by accident: to share one, make it a [`SharedBuffer`](crate::SharedBuffer); to copy the bytes, allocate
/// another and call [`Buffer::copy_from`].
///
/// # Streams
/// The memory may be used at once by work that is submitted to the buffer's own stream. The functions of this crate
/// order everything else: copies and fills on other streams wait for what conflicts with them, host views wait for
/// what is in flight, and the release names every stream that was used, so a buffer may be dropped while a copy from
/// or to it is still running. Work that others submit (kernels, say) is theirs to declare: see [`Buffer::use_on`].
///
/// A buffer names a stream with work on it to the backend until that work is waited for. So before a stream is destroyed,
/// what buffers outlive it are [waited for](Buffer::synchronize), and those that belong to it are
/// [handed over](Buffer::hand_over) first.
///
/// # Initialised bytes
/// A fresh buffer's bytes are undefined, and no safe function lets the host read them. A buffer remembers which bytes
/// were written by copies and fills; [`Buffer::as_bytes`] asks for all of them. Bytes that a kernel wrote are declared
/// with [`Buffer::assume_init`].
///
/// # Example
/// ```
/// use buffer::Buffer;
///
/// let host = alloc_cpu::global()?;
///
/// let source = Buffer::from_slice(host, &[1_u32, 2, 3])?;
/// let mut destination = Buffer::new(host, 8)?;
/// assert_eq!(destination.copy_from(&source)?, 8);
/// assert_eq!(destination.as_slice::<u32>()?, [1, 2]);
/// # Ok::<(), buffer::BufferError>(())
/// ```
///
/// The ownership follows `std::shared_ptr<Buffer>` of the engine that this project comes from; the ordered release
/// follows `rmm::device_buffer`.
pub struct Buffer {
    allocator: AllocatorHandle,
    origin: Origin,
    len: u64,
    align: u64,
    stream: Stream,
    state: Mutex<State>,
}

/// Where the memory came from and goes to.
#[derive(Debug)]
enum Origin {
    Block(OwnedBlock),
    External(Box<External>),
    /// Given away; only a buffer that is being dropped is in this state.
    Gone,
}

/// What changes while a buffer is only borrowed.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) ledger: Ledger,
    pub(crate) extent: Extent,
}

/// The parts of a buffer that owns a block, for a foreign interface. They free nothing by themselves: neither the block
/// nor, as work may still use it, the allocator.
#[derive(Debug)]
#[must_use = "parts that are not made a buffer again leak"]
#[expect(clippy::exhaustive_structs, reason = "whoever takes a buffer apart has to have all of it")]
pub struct BufferParts {
    /// The allocator that takes the block back.
    pub allocator: KeptAllocator,
    /// The block. Its size is the buffer's capacity in bytes.
    pub block: Block,
    /// The length in bytes.
    pub len: u64,
    /// The alignment in bytes that the block was asked for with.
    pub align: u64,
    /// The stream to release on.
    pub stream: Stream,
    /// The other streams with work on the block.
    pub uses: StreamSet,
    /// How many bytes from the start on are initialised.
    pub initialised: u64,
}

impl Buffer {
    /// `bytes` bytes with undefined contents, aligned to [`Layout::DEFAULT_ALIGN`], on the default stream.
    ///
    /// # Errors
    /// [`BufferError::Alloc`].
    ///
    /// # Example
    /// ```
    /// # let host = alloc_cpu::global()?;
    /// let buffer = buffer::Buffer::new(host, 1 << 20)?;
    /// assert_eq!((buffer.len(), buffer.initialised()), (1 << 20, 0));
    /// assert!(buffer.as_bytes().is_err());
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn new(allocator: impl Into<AllocatorHandle>, bytes: u64) -> Result<Self, BufferError> {
        Self::new_on(allocator, bytes, Stream::DEFAULT)
    }

    /// `bytes` bytes with undefined contents on `stream`: work submitted there may use them at once.
    ///
    /// # Errors
    /// [`BufferError::Alloc`].
    ///
    /// # Example
    /// ```
    /// # use alloc_core::Stream;
    /// # let host = alloc_cpu::global()?;
    /// let stream = Stream::from_raw(7);
    /// assert_eq!(buffer::Buffer::new_on(host, 512, stream)?.stream(), stream);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn new_on(allocator: impl Into<AllocatorHandle>, bytes: u64, stream: Stream) -> Result<Self, BufferError> {
        Self::with_layout(allocator, Layout::bytes(bytes)?, stream)
    }

    /// Memory of this size and alignment with undefined contents on `stream`.
    ///
    /// # Errors
    /// [`BufferError::Alloc`].
    ///
    /// # Example
    /// ```
    /// # use alloc_core::{Layout, Stream};
    /// # let host = alloc_cpu::global()?;
    /// let page = buffer::Buffer::with_layout(host, Layout::new(100, 4096)?, Stream::DEFAULT)?;
    /// assert!(page.address().is_aligned_to(4096));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn with_layout(
        allocator: impl Into<AllocatorHandle>,
        layout: Layout,
        stream: Stream,
    ) -> Result<Self, BufferError> {
        let allocator = allocator.into();
        let block = OwnedBlock::allocate(&*allocator, layout, stream)?;
        Ok(Self {
            allocator,
            origin: Origin::Block(block),
            len: layout.size(),
            align: layout.align(),
            stream,
            state: Mutex::new(State { ledger: Ledger::born(), extent: Extent::default() }),
        })
    }

    /// `bytes` zeros on the default stream.
    ///
    /// # Errors
    /// [`BufferError::Alloc`], [`BufferError::Transfer`].
    ///
    /// # Example
    /// ```
    /// # let host = alloc_cpu::global()?;
    /// assert_eq!(buffer::Buffer::zeroed(host, 4)?.as_bytes()?, [0; 4]);
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn zeroed(allocator: impl Into<AllocatorHandle>, bytes: u64) -> Result<Self, BufferError> {
        Self::zeroed_on(allocator, bytes, Stream::DEFAULT)
    }

    /// `bytes` zeros on `stream`. The fill is ordered by the stream and may still be under way.
    ///
    /// # Errors
    /// [`BufferError::Alloc`], [`BufferError::Transfer`].
    pub fn zeroed_on(allocator: impl Into<AllocatorHandle>, bytes: u64, stream: Stream) -> Result<Self, BufferError> {
        let mut buffer = Self::new_on(allocator, bytes, stream)?;
        buffer.fill_on(0, stream)?;
        Ok(buffer)
    }

    /// A copy of host data on any device, on the default stream, aligned for `T`.
    ///
    /// # Errors
    /// [`BufferError::Alloc`], [`BufferError::Transfer`].
    ///
    /// # Example
    /// ```
    /// # let host = alloc_cpu::global()?;
    /// let buffer = buffer::Buffer::from_slice(host, &[1.0_f32, 2.0])?;
    /// assert_eq!((buffer.len(), buffer.to_vec::<f32>()?), (8, vec![1.0, 2.0]));
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn from_slice<T: NoUninit>(allocator: impl Into<AllocatorHandle>, data: &[T]) -> Result<Self, BufferError> {
        Self::from_slice_on(allocator, data, Stream::DEFAULT)
    }

    /// A copy of host data on any device, on `stream`, aligned for `T`. The data has been read when this returns; the
    /// device may still be receiving it, in the order of the stream.
    ///
    /// # Errors
    /// [`BufferError::Alloc`], [`BufferError::Transfer`].
    pub fn from_slice_on<T: NoUninit>(
        allocator: impl Into<AllocatorHandle>,
        data: &[T],
        stream: Stream,
    ) -> Result<Self, BufferError> {
        let mut buffer = Self::with_layout(allocator, Layout::array::<T>(data.len() as u64)?, stream)?;
        buffer.copy_from_on(data, stream)?;
        Ok(buffer)
    }

    pub(crate) fn from_block(
        allocator: AllocatorHandle,
        block: OwnedBlock,
        len: u64,
        align: u64,
        stream: Stream,
        uses: &StreamSet,
        initialised: u64,
    ) -> Self {
        let state = State { ledger: Ledger::unknown(stream, uses), extent: Extent::full(initialised) };
        Self { allocator, origin: Origin::Block(block), len, align, stream, state: Mutex::new(state) }
    }

    pub(crate) fn from_external(allocator: AllocatorHandle, external: External, align: u64, stream: Stream) -> Self {
        let len = external.len();
        let state = State { ledger: Ledger::born(), extent: Extent::default() };
        Self { allocator, origin: Origin::External(Box::new(external)), len, align, stream, state: Mutex::new(state) }
    }

    /// The parts, which are no longer released by anyone, for [`Buffer::from_raw_parts`] or a foreign owner to take
    /// up.
    ///
    /// # Errors
    /// The buffer itself, if it owns no block: memory that another owner lets go has no such parts. Nor has memory that
    /// is perhaps in use by work of which no stream is known ([`BufferError::Unfinished`]): whoever took up the parts
    /// would release it as if it were not.
    #[expect(clippy::result_large_err, reason = "the error is the buffer itself")]
    pub fn into_raw_parts(mut self) -> Result<BufferParts, Self> {
        if self.state_mut().ledger.is_unfinished() {
            return Err(self);
        }
        match mem::replace(&mut self.origin, Origin::Gone) {
            Origin::Block(block) => {
                let (len, align, stream, allocator) =
                    (self.len, self.align, self.stream, self.allocator.clone().into());
                let State { ledger, extent } = self.state_mut();
                let (uses, initialised) = (ledger.uses(), extent.prefix());
                Ok(BufferParts { allocator, block: block.into_block(), len, align, stream, uses, initialised })
            }
            origin => {
                self.origin = origin;
                Err(self)
            }
        }
    }

    /// The allocator that the memory goes back to, or, for external memory, that copies it.
    pub const fn allocator(&self) -> &AllocatorHandle {
        &self.allocator
    }

    /// The device whose memory this is.
    pub fn device(&self) -> Device {
        self.allocator.device()
    }

    /// The stream that the buffer belongs to: it is released there.
    pub const fn stream(&self) -> Stream {
        self.stream
    }

    /// The length in bytes.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether the length is zero.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many bytes the memory could hold without moving, at least [`Buffer::len`].
    pub fn capacity(&self) -> u64 {
        match &self.origin {
            Origin::Block(block) => block.block().size(),
            Origin::External(external) => external.len(),
            Origin::Gone => 0,
        }
    }

    /// The alignment in bytes that the memory was asked for with, and that it keeps when it moves.
    pub const fn align(&self) -> u64 {
        self.align
    }

    /// Where the memory starts, in the address space of its device. Unique among living buffers.
    ///
    /// Whoever lets work use the address declares that: see [`Buffer::use_on`].
    pub fn address(&self) -> Address {
        match &self.origin {
            Origin::Block(block) => block.block().address(),
            Origin::External(external) => external.address(),
            Origin::Gone => Address::new(0),
        }
    }

    /// Whether the memory belongs to another owner, who is let go when the buffer is dropped.
    pub const fn is_external(&self) -> bool {
        matches!(self.origin, Origin::External(_))
    }

    /// How many bytes from the start on are known to be initialised.
    pub fn initialised(&self) -> u64 {
        self.state().extent.prefix()
    }

    /// Declares work on `stream` that reads or writes the buffer and that was submitted by others than this crate.
    ///
    /// What follows takes it into account: copies and fills on other streams wait for it, host views wait for it, and
    /// the release names the stream. Work on the buffer's own stream needs declaring only for the first two; but for all
    /// three where the memory is external, as its owner is let go once what was declared is done. This orders nothing
    /// by itself; see [`Buffer::make_ready_on`] for what comes before the work.
    ///
    /// # Example
    /// ```
    /// # use alloc_core::Stream;
    /// # fn launch(_: alloc_core::Address, _: Stream) {}
    /// # let host = alloc_cpu::global()?;
    /// let buffer = buffer::Buffer::zeroed(host, 4096)?;
    /// let side = Stream::from_raw(2);
    /// buffer.make_ready_on(side)?; // the zeros come first
    /// launch(buffer.address(), side);
    /// buffer.use_on(side); // so that dropping the buffer now is safe
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn use_on(&self, stream: Stream) {
        self.state().ledger.declare(stream, self.stream, Intent::Write);
    }

    /// Declares work on `stream` that only reads the buffer. Like [`Buffer::use_on`], but other readers need not
    /// wait for it.
    pub fn read_on(&self, stream: Stream) {
        self.state().ledger.declare(stream, self.stream, Intent::Read);
    }

    /// Makes work that is submitted to `stream` from now on wait for all declared work on the buffer, and for the
    /// buffer's memory to be its own: memory is handed out in the order of the buffer's stream, on which its former
    /// owner's work may still be running.
    ///
    /// # Errors
    /// [`BufferError::Transfer`], [`BufferError::Unfinished`].
    pub fn make_ready_on(&self, stream: Stream) -> Result<(), BufferError> {
        self.order_on(stream, Intent::Write).map(drop)
    }

    /// Gives the buffer to another stream, which is made to wait for all work so far, that on the buffer's old stream
    /// included. It will be released there.
    ///
    /// # Errors
    /// [`BufferError::Transfer`], [`BufferError::Unfinished`]; the buffer then belongs to its old stream still.
    ///
    /// # Example
    /// ```
    /// # use alloc_core::Stream;
    /// # let host = alloc_cpu::global()?;
    /// let mut buffer = buffer::Buffer::zeroed_on(host, 64, Stream::from_raw(1))?;
    /// buffer.hand_over(Stream::from_raw(2))?;
    /// assert_eq!(buffer.stream(), Stream::from_raw(2));
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn hand_over(&mut self, stream: Stream) -> Result<(), BufferError> {
        let old = self.stream;
        if stream == old {
            return Ok(());
        }
        let ordered = self.order_after_conflicts_on(stream, Intent::Write)?;
        if !ordered.streams.contains(old) {
            self.allocator.transfer().order_after(stream, old)?;
        }
        self.state_mut().ledger.hand_over(old, stream);
        self.stream = stream;
        Ok(())
    }

    /// Waits until all declared work on the buffer is done.
    ///
    /// # Errors
    /// [`BufferError::Transfer`] with the failures of that work included, [`BufferError::Unfinished`].
    pub fn synchronize(&self) -> Result<(), BufferError> {
        self.settle(Intent::Write)
    }

    /// All bytes, borrowed.
    pub fn as_borrowed(&self) -> BorrowedBuffer<'_> {
        BorrowedBuffer::from_span(Span::of_buffer(self))
    }

    /// All bytes, borrowed exclusively.
    pub fn as_borrowed_mut(&mut self) -> BorrowedBufferMut<'_> {
        BorrowedBufferMut::from_span(Span::of_buffer(self))
    }

    /// The bytes in `range`, borrowed. A slice that keeps its buffer alive comes from
    /// [`SharedBuffer::shared_slice`](crate::SharedBuffer::shared_slice).
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    ///
    /// # Example
    /// ```
    /// # let host = alloc_cpu::global()?;
    /// let buffer = buffer::Buffer::from_slice(host, b"stream order")?;
    /// assert_eq!(buffer.slice(..6)?.as_bytes()?, b"stream");
    /// # Ok::<(), buffer::BufferError>(())
    /// ```
    pub fn slice(&self, range: impl RangeBounds<u64>) -> Result<BorrowedBuffer<'_>, BufferError> {
        self.as_borrowed().slice(range)
    }

    /// The bytes in `range`, borrowed exclusively.
    ///
    /// # Errors
    /// [`BufferError::OutOfBounds`].
    pub fn slice_mut(&mut self, range: impl RangeBounds<u64>) -> Result<BorrowedBufferMut<'_>, BufferError> {
        self.as_borrowed_mut().into_slice(range)
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        self.state_mut().extent.truncate(len);
        self.len = len;
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics with the books half written, so a poisoned lock holds good books.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state_mut(&mut self) -> &mut State {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let origin = mem::replace(&mut self.origin, Origin::Gone);
        let stream = self.stream;
        let ledger = &self.state.get_mut().unwrap_or_else(PoisonError::into_inner).ledger;
        let releasing = Releasing { allocator: &self.allocator, stream, ledger };
        match origin {
            Origin::Block(block) => release_block(block, &releasing),
            Origin::External(external) => external.release(&releasing),
            Origin::Gone => {}
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("device", &self.device())
            .field("address", &self.address())
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .field("stream", &self.stream)
            .field("external", &self.is_external())
            .finish_non_exhaustive()
    }
}
