//! Streams: queues of work on a device, by which the reuse of memory is ordered.

use std::fmt;

/// A queue of device work, named by the backend's own handle. `Copy`, owns nothing.
///
/// Two values are the same stream exactly if handle and identity are equal. The identity tells apart streams that
/// share a handle: a stream made where a destroyed one's handle was reused, or the per-thread default stream of two
/// threads.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Stream {
    handle: u64,
    identity: u64,
}

impl Stream {
    /// The default stream: handle 0. Hosts have only this one unless a program names others.
    pub const DEFAULT: Self = Self::from_raw(0);

    /// A stream by the backend's handle alone (a `CUstream`, say).
    ///
    /// Allocators, buffers and transfers take a stream to be a living one of their device: what a driver does with a
    /// handle that is none is up to the driver. A stream that has the handle of one that an allocator was told has
    /// [ended](crate::DeviceAllocator::retire_stream) is another stream, and needs another identity: as the same one its work would
    /// not be waited for before it allocates.
    pub const fn from_raw(handle: u64) -> Self {
        Self { handle, identity: 0 }
    }

    /// A stream by handle and an identity that its owner keeps unique. The handle is to be living as for
    /// [`Stream::from_raw`].
    pub const fn with_identity(handle: u64, identity: u64) -> Self {
        Self { handle, identity }
    }

    /// The backend's handle.
    pub const fn handle(self) -> u64 {
        self.handle
    }

    /// What tells this stream from others with the same handle; 0 for a plain handle.
    pub const fn identity(self) -> u64 {
        self.identity
    }
}

impl Default for Stream {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.identity == 0 {
            write!(f, "stream({:#x})", self.handle)
        } else {
            write!(f, "stream({:#x}#{})", self.handle, self.identity)
        }
    }
}

/// A small set of streams; up to four are held without a heap allocation.
///
/// ```
/// use alloc_core::{Stream, StreamSet};
/// let mut uses = StreamSet::new();
/// uses.insert(Stream::from_raw(7));
/// uses.insert(Stream::from_raw(7));
/// assert_eq!(uses.len(), 1);
/// ```
#[derive(Clone, Default)]
pub struct StreamSet {
    inline: [Stream; INLINE],
    inline_len: u8,
    spilled: Vec<Stream>,
}

const INLINE: usize = 4;

impl StreamSet {
    /// The empty set, for the usual case of a block used on one stream only.
    pub const EMPTY: &'static Self = &Self::new();

    /// An empty set.
    pub const fn new() -> Self {
        Self { inline: [Stream::DEFAULT; INLINE], inline_len: 0, spilled: Vec::new() }
    }

    /// Adds a stream; returns whether it was new.
    pub fn insert(&mut self, stream: Stream) -> bool {
        if self.contains(stream) {
            return false;
        }
        match self.inline.get_mut(self.inline_len as usize) {
            Some(slot) => {
                *slot = stream;
                self.inline_len += 1;
            }
            None => self.spilled.push(stream),
        }
        true
    }

    /// Whether the set has this stream.
    pub fn contains(&self, stream: Stream) -> bool {
        self.iter().any(|s| s == stream)
    }

    /// The streams, in the order of insertion.
    pub fn iter(&self) -> impl Iterator<Item = Stream> + Clone + '_ {
        self.inline[..self.inline_len as usize].iter().chain(&self.spilled).copied()
    }

    /// How many streams are in the set.
    pub fn len(&self) -> usize {
        self.inline_len as usize + self.spilled.len()
    }

    /// Whether the set is empty.
    pub const fn is_empty(&self) -> bool {
        self.inline_len == 0
    }

    /// Empties the set.
    pub fn clear(&mut self) {
        self.inline_len = 0;
        self.spilled.clear();
    }
}

impl fmt::Debug for StreamSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// Sets of the same streams, in whatever order they came.
impl PartialEq for StreamSet {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().all(|stream| other.contains(stream))
    }
}

impl Eq for StreamSet {}

impl Extend<Stream> for StreamSet {
    fn extend<I: IntoIterator<Item = Stream>>(&mut self, streams: I) {
        for stream in streams {
            self.insert(stream);
        }
    }
}

impl FromIterator<Stream> for StreamSet {
    fn from_iter<I: IntoIterator<Item = Stream>>(streams: I) -> Self {
        let mut set = Self::new();
        set.extend(streams);
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_spills_past_four_and_keeps_order() {
        let set: StreamSet = (1..=6).chain(1..=6).map(Stream::from_raw).collect();
        let handles: Vec<u64> = set.iter().map(Stream::handle).collect();
        assert_eq!(handles, [1, 2, 3, 4, 5, 6]);
        assert!(set.contains(Stream::from_raw(6)) && !set.contains(Stream::from_raw(7)));
    }

    #[test]
    fn sets_are_equal_whatever_the_order() {
        let of = |handles: &[u64]| handles.iter().copied().map(Stream::from_raw).collect::<StreamSet>();
        let mut extended = of(&[5, 4]);
        extended.extend([3, 5, 2, 1].map(Stream::from_raw));
        assert_eq!(extended, of(&[1, 2, 3, 4, 5]));
        assert_ne!(of(&[1, 2]), of(&[1, 3]));
        assert_ne!(of(&[1, 2]), of(&[1, 2, 3]));
        // A place that is not in use any more has an old stream in it.
        extended.clear();
        assert_eq!(extended, StreamSet::new());
    }

    #[test]
    fn identity_tells_streams_of_one_handle_apart() {
        assert_ne!(Stream::with_identity(2, 1), Stream::with_identity(2, 2));
    }
}
