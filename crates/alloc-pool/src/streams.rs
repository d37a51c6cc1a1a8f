//! Streams and their tags, the seats of threads at arenas, and how memory passes from one stream to another.

use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError};

use alloc_core::{AddressRange, AllocError, MemoryProvider, ProviderError, ProviderErrorKind, Stream};
use rustc_hash::FxHashMap;

use crate::arena::{Addresses, Arena, ZERO_RANGE};
use crate::crossing::Crossings;
use crate::id::MAX_ARENAS;
use crate::marks::Marks;
use crate::notes::Note;
use crate::placement::heap::{Heap, NOBODY, SHARED_TAG, Sharers, TAGS, Tag, TagSet, each_of};
use crate::placement::units::UNIT_SHIFT;
use crate::pool::Inner;
use crate::retired::{End, Retired};

/// Which stream a tag stands for. Taken when a thread meets a stream for the first time, and on misses.
#[derive(Debug)]
pub(crate) struct Tags<E> {
    tags: FxHashMap<Stream, Tag>,
    /// By tag.
    pub(crate) streams: Vec<Stream>,
    /// Tags of retired streams.
    pub(crate) orphans: Vec<Tag>,
    /// Tags of streams of which it is not known when their work is over: what they released is nobody else's.
    pub(crate) lost: TagSet,
    /// The streams that share the last tag.
    pub(crate) shared: Vec<Stream>,
    /// By tag.
    pub(crate) crossings: [Crossings; TAGS],
    /// Whether events may be asked, as far as that was found out under this hold of the lock: all streams are asked for it.
    may_ask: Option<bool>,
    pub(crate) marks: Marks<E>,
    pub(crate) retired: Retired<E>,
}

impl<E> Tags<E> {
    pub(crate) fn new() -> Self {
        Self {
            tags: FxHashMap::default(),
            streams: Vec::new(),
            orphans: Vec::new(),
            lost: 0,
            shared: Vec::new(),
            crossings: [Crossings::NONE; TAGS],
            may_ask: None,
            marks: Marks::new(),
            retired: Retired::new(),
        }
    }

    /// The stream of a tag, unless it is gone or shares its tag.
    pub(crate) fn only_stream_of(&self, tag: Tag) -> Option<Stream> {
        if tag == SHARED_TAG {
            return None;
        }
        let stream = *self.streams.get(usize::from(tag))?;
        (!self.retired.contains(stream)).then_some(stream)
    }

    /// Has whoever wants to know whether events may be asked find out anew: who holds the lock for long may miss a capture that begins.
    pub(crate) fn look_for_captures(&mut self) {
        self.may_ask = None;
    }

    /// The tag of a stream that has one and is not retired.
    pub(crate) fn living_tag(&self, stream: Stream) -> Option<Tag> {
        self.tags.get(&stream).copied()
    }

    /// Takes the tag from a stream that ends.
    pub(crate) fn take_tag(&mut self, stream: Stream) -> Option<Tag> {
        self.tags.remove(&stream)
    }

    /// A stream that is over is not asked any more when those that share the last tag are.
    pub(crate) fn leave_shared(&mut self, stream: Stream) {
        self.shared.retain(|shared| *shared != stream);
    }

    pub(crate) fn streams_of(&self, tag: Tag) -> &[Stream] {
        if tag == SHARED_TAG {
            return &self.shared;
        }
        self.streams.get(tag as usize).map(std::slice::from_ref).unwrap_or_default()
    }
}

/// How many threads use each pair of arenas.
#[derive(Debug, Default)]
pub(crate) struct Seats {
    population: Vec<u32>,
}

/// Where a thread allocates for a stream: an arena for large blocks; the next one is for its slabs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) tag: Tag,
    pub(crate) arena: u32,
}

/// The largest range of addresses that an arena can have: offsets are 32 bits of units.
const MAX_ARENA_BYTES: u64 = 1 << 41;

impl<P: MemoryProvider> Inner<P> {
    pub(crate) fn lock_tags(&self) -> MutexGuard<'_, Tags<P::Event>> {
        let mut tags = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        // A capture may have begun or ended since.
        tags.may_ask = None;
        tags
    }

    fn lock_seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for the calling thread: the arena that the fewest threads use.
    pub(crate) fn take_seat(&self) -> Result<u32, AllocError> {
        let mut seats = self.lock_seats();
        if seats.population.is_empty() {
            self.new_arenas(&mut seats)?;
        }
        let pair = seats.population.iter().enumerate().min_by_key(|(_, threads)| **threads).map_or(0, |(pair, _)| pair);
        seats.population[pair] += 1;
        self.count_pairs(&seats);
        Ok(pair as u32 * 2)
    }

    /// Moves the calling thread from a crowded arena to one with fewer threads, if there is one or may be one more.
    pub(crate) fn change_seat(&self, arena: u32) -> Option<u32> {
        let mut seats = self.lock_seats();
        let from = arena as usize / 2;
        let here = *seats.population.get(from)?;
        let (mut to, fewest) = seats.population.iter().copied().enumerate().min_by_key(|(_, threads)| *threads)?;
        if fewest + 1 >= here {
            if here <= 1 || seats.population.len() >= self.config.arenas as usize {
                return None;
            }
            self.new_arenas(&mut seats).ok()?;
            to = seats.population.len() - 1;
        }
        seats.population[from] -= 1;
        seats.population[to] += 1;
        self.count_pairs(&seats);
        Some(to as u32 * 2)
    }

    pub(crate) fn leave_seat(&self, arena: u32) {
        let mut seats = self.lock_seats();
        if let Some(threads) = seats.population.get_mut(arena as usize / 2) {
            *threads = threads.saturating_sub(1);
        }
        self.count_pairs(&seats);
    }

    fn count_pairs(&self, seats: &Seats) {
        let taken = seats.population.iter().filter(|&&threads| threads > 0).count();
        self.pairs_taken.store(taken as u32, Ordering::Relaxed);
    }

    /// Whether threads that got in each other's way have arenas of their own.
    pub(crate) fn are_threads_apart(&self) -> bool {
        self.pairs_taken.load(Ordering::Relaxed) > 1
    }

    fn new_arenas(&self, seats: &mut Seats) -> Result<(), AllocError> {
        self.new_arena()?;
        self.new_arena()?;
        seats.population.push(0);
        Ok(())
    }

    fn new_arena(&self) -> Result<(), AllocError> {
        let mut pages = self.lock_pages();
        let index = pages.arena_count();
        if index as usize >= MAX_ARENAS {
            let (kind, name) = (ProviderErrorKind::OutOfMemory, "too many arenas");
            let error = ProviderError::new(self.device, "new arena", kind, name);
            return Err(error.with_code(MAX_ARENAS as i64).into());
        }
        let granule_units = pages.granule_units();
        let (range, addresses, bytes) = if self.mapped {
            let range = self.reserve_halving(self.arena_bytes)?;
            let bytes = range.bytes - ZERO_RANGE.max(self.granularity);
            (Some(range), Addresses::Range { base: range.start.get() }, bytes)
        } else {
            (None, Addresses::Segments { granules: Vec::new(), granule_units }, self.arena_bytes)
        };
        let granules = (bytes >> UNIT_SHIFT) as u32 / granule_units;
        let base = range.map_or(0, |range| range.start.get() >> UNIT_SHIFT);
        pages.add_arena(range, granules);
        self.arenas.add(Arena::new(index, Heap::new(base, granules * granule_units), addresses));
        Ok(())
    }

    /// Reserves addresses for an arena and for its blocks of zero bytes: less and less as long as that fails.
    fn reserve_halving(&self, bytes: u64) -> Result<AddressRange, ProviderError> {
        let mut bytes = bytes;
        loop {
            match self.driver.reserve(bytes + ZERO_RANGE.max(self.granularity)) {
                Ok(range) => return Ok(range),
                Err(error) if error.kind == ProviderErrorKind::OutOfMemory && bytes > 64 * self.granularity => {
                    bytes = (bytes / 2).next_multiple_of(self.granularity);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The addresses to reserve for each arena.
    pub(crate) fn choose_arena_bytes(wanted: Option<u64>, device_total: u64, granularity: u64) -> u64 {
        let wanted = wanted.unwrap_or_else(|| device_total.saturating_mul(8)).max(granularity.saturating_mul(64));
        let wanted = wanted.checked_next_power_of_two().unwrap_or(MAX_ARENA_BYTES);
        wanted.min(MAX_ARENA_BYTES - granularity.max(1 << UNIT_SHIFT))
    }

    /// The stream's tag; a new stream takes over that of a retired one if there is any that it can come after.
    pub(crate) fn tag_of(&self, stream: Stream) -> Result<Tag, ProviderError> {
        self.tag_in(&mut self.lock_tags(), stream)
    }

    /// The same, under the lock of the tags.
    pub(crate) fn tag_in(&self, tags: &mut Tags<P::Event>, stream: Stream) -> Result<Tag, ProviderError> {
        if let Some(&tag) = tags.tags.get(&stream) {
            return Ok(tag);
        }
        // A stream that is being captured can't be made to wait for what was submitted before, and nothing may be asked then.
        let has_predecessors = !tags.orphans.is_empty() || tags.retired.contains(stream);
        let is_captured = has_predecessors && self.driver.provider().is_capturing(stream)?;
        let may_ask = has_predecessors && !is_captured && self.may_ask_in(tags);
        self.come_after_namesake(tags, stream, is_captured, may_ask)?;
        let tag = if tags.shared.contains(&stream) {
            SHARED_TAG
        } else if let Some(orphan) = self.take_over(tags, stream, is_captured, may_ask) {
            tags.streams[orphan as usize] = stream;
            tags.crossings[orphan as usize] = Crossings::NONE;
            orphan
        } else if tags.streams.len() < SHARED_TAG as usize {
            tags.streams.push(stream);
            tags.streams.len() as Tag - 1
        } else {
            tags.shared.push(stream);
            SHARED_TAG
        };
        // Not before the tag is certain: what waits for a retired stream that has no name any more is taken to be over.
        self.forget_namesake(tags, stream);
        tags.tags.insert(stream, tag);
        // It may be captured.
        tags.may_ask = None;
        Ok(tag)
    }

    /// The tag of a retired stream for a new one, which comes after it: that of the one whose name it has, lest two tags be known
    /// by one name, or else the latest whose work it can be made to wait for.
    fn take_over(&self, tags: &mut Tags<P::Event>, stream: Stream, is_captured: bool, may_ask: bool) -> Option<Tag> {
        if let Some(index) = tags.orphans.iter().position(|&orphan| tags.streams[usize::from(orphan)] == stream) {
            return Some(tags.orphans.remove(index));
        }
        for index in (0..tags.orphans.len()).rev().filter(|_| !is_captured) {
            let orphan = tags.orphans[index];
            let before = tags.streams[usize::from(orphan)];
            match self.order_after_in(tags, before, stream, may_ask) {
                Ok(()) => return Some(tags.orphans.remove(index)),
                Err(error) => {
                    self.defer(Note::DoneWithout { what: "nothing is taken over from a retired stream", error });
                }
            }
        }
        None
    }

    /// Makes a stream that has the name of a retired one come after that, so that whoever asks for the one by name may ask the
    /// other.
    fn come_after_namesake(
        &self,
        tags: &mut Tags<P::Event>,
        stream: Stream,
        is_captured: bool,
        may_ask: bool,
    ) -> Result<(), ProviderError> {
        let Some(end) = tags.retired.end_of(stream) else { return Ok(()) };
        if may_ask {
            self.settle_end(end)?;
        }
        match end {
            End::At(_) if is_captured => Err(self.unknown("allocate")),
            end => self.order_after_end(end, stream, may_ask),
        }
    }

    /// The name is the new stream's from now on.
    fn forget_namesake(&self, tags: &mut Tags<P::Event>, stream: Stream) {
        let Some(end) = tags.retired.remove(stream) else { return };
        if let End::At(event) = end {
            self.give_back_shared(event);
        }
        // Blocks of the old stream are not the new one's own: their memory goes to whoever has the old one's tag.
        for arena in self.arenas.iter() {
            let mut state = arena.lock();
            state.heap.disown(stream, NOBODY);
            arena.remote.disown(stream, NOBODY);
        }
    }

    /// The stream's tag if it has one.
    pub(crate) fn known_tag(&self, stream: Stream) -> Option<Tag> {
        self.lock_tags().tags.get(&stream).copied()
    }

    /// Whether events may be asked and waited for: not while a stream of this pool is being captured.
    pub(crate) fn may_ask(&self) -> bool {
        self.may_ask_in(&mut self.lock_tags())
    }

    /// The streams that `stream` can't be made to wait for: those being captured, and all if it is captured itself.
    pub(crate) fn untouchable_tags(&self, stream: Stream) -> TagSet {
        let is_captured = |stream| self.driver.provider().is_capturing(stream).unwrap_or(true);
        if is_captured(stream) {
            return TagSet::MAX;
        }
        let tags = self.lock_tags();
        tags.tags.iter().fold(tags.lost, |set, (&stream, &tag)| {
            // Of those that share a tag one is enough.
            if set & 1 << tag == 0 && is_captured(stream) { set | 1 << tag } else { set }
        })
    }

    /// As [`Inner::may_ask`], under the lock of the tags: found out once for each hold of it.
    pub(crate) fn may_ask_in(&self, tags: &mut Tags<P::Event>) -> bool {
        let Tags { tags, may_ask, .. } = tags;
        let is_captured = |&stream: &Stream| self.driver.provider().is_capturing(stream).unwrap_or(false);
        *may_ask.get_or_insert_with(|| !tags.keys().any(is_captured))
    }

    /// Those of the tags all of whose work submitted so far is known to be complete.
    pub(crate) fn idle_tags(&self, tags: TagSet) -> TagSet {
        if tags == 0 {
            return 0;
        }
        let mut table = self.lock_tags();
        let (mut rest, mut idle) = (tags, 0);
        while rest != 0 {
            let tag = rest.trailing_zeros();
            rest &= rest - 1;
            idle |= TagSet::from(self.is_idle_after_ours(&mut table, tag as Tag)) << tag;
        }
        idle
    }

    pub(crate) fn is_tag_idle(&self, table: &mut Tags<P::Event>, tag: Tag) -> bool {
        if tag == SHARED_TAG {
            return self.are_sharers_idle(table);
        }
        let stream = table.streams.get(usize::from(tag)).copied();
        stream.is_none_or(|stream| self.is_idle_in(table, stream).unwrap_or(false))
    }

    #[inline]
    pub(crate) fn is_idle_in(&self, tags: &mut Tags<P::Event>, stream: Stream) -> Result<bool, ProviderError> {
        if tags.retired.contains(stream) {
            let may_ask = self.may_ask_in(tags);
            return match tags.retired.end_of(stream) {
                Some(end @ End::At(_)) if may_ask => self.settle_end(end),
                end => Ok(matches!(end, Some(End::Over))),
            };
        }
        self.driver.is_idle(stream)
    }

    /// Whether the event is complete; a complete one is given back.
    fn settle_event(&self, event: &mut Option<P::Event>) -> Result<bool, ProviderError> {
        match event {
            None => Ok(true),
            Some(pending) if self.driver.is_complete(pending)? => {
                event.take().into_iter().for_each(|event| self.driver.provider().recycle(event));
                Ok(true)
            }
            Some(_) => Ok(false),
        }
    }

    /// Waits for the streams of these tags; those whose work can't be waited for, and why.
    pub(crate) fn wait_for_each(&self, tags: TagSet) -> (TagSet, Option<ProviderError>) {
        let (mut rest, mut failed, mut cause) = (tags, 0, None);
        while rest != 0 {
            let tag = rest & rest.wrapping_neg();
            rest ^= tag;
            if let Err(error) = self.wait_for_tags(tag) {
                failed |= tag;
                cause = Some(error);
            }
        }
        (failed, cause)
    }

    /// Blocks until all work submitted to the streams of these tags so far is complete.
    pub(crate) fn wait_for_tags(&self, tags: TagSet) -> Result<(), ProviderError> {
        let mut rest = tags;
        while rest != 0 {
            let streams = self.lock_tags().streams_of(rest.trailing_zeros() as Tag).to_vec();
            for stream in streams {
                self.wait_for(stream)?;
            }
            rest &= rest - 1;
        }
        Ok(())
    }

    /// Makes `after` wait for all work submitted to the streams of these tags so far, as far as that is not complete; of those that
    /// share one to the `sharers`.
    pub(crate) fn order_after_tags(
        &self,
        before: TagSet,
        sharers: &Sharers,
        after: Stream,
    ) -> Result<(), ProviderError> {
        if before == 0 {
            return Ok(());
        }
        let mut tags = self.lock_tags();
        each_of(before).try_for_each(|tag| match tag {
            SHARED_TAG => self.order_after_sharers(&mut tags, sharers, after),
            tag => self.order_after_tag(&mut tags, tag, after),
        })
    }

    /// The same for one tag.
    pub(crate) fn order_after_tag(
        &self,
        tags: &mut Tags<P::Event>,
        before: Tag,
        after: Stream,
    ) -> Result<(), ProviderError> {
        let may_ask = self.may_ask_in(tags);
        for stream in tags.streams_of(before).to_vec() {
            self.order_after_in(tags, stream, after, may_ask)?;
        }
        Ok(())
    }

    /// Makes `after` wait for what `before` was submitted so far. If events may be asked, not for what is complete.
    pub(crate) fn order_after_in(
        &self,
        tags: &mut Tags<P::Event>,
        before: Stream,
        after: Stream,
        may_ask: bool,
    ) -> Result<(), ProviderError> {
        if before == after {
            return Ok(());
        }
        if let Some(end) = tags.retired.end_of(before) {
            return self.order_after_end(end, after, may_ask);
        }
        let mut event = self.driver.record(before)?;
        if may_ask && self.settle_event(&mut event)? {
            return Ok(());
        }
        let Some(event) = event else { return Ok(()) };
        let waited = self.make_wait(after, &event);
        self.driver.provider().recycle(event);
        waited
    }

    pub(crate) fn make_wait(&self, after: Stream, event: &P::Event) -> Result<(), ProviderError> {
        self.driver.make_wait(after, event)?;
        self.defer(Note::Waited { stream: after });
        Ok(())
    }
}
