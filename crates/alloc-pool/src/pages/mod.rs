//! Pages: the physical memory of a pool, where it is mapped, and which of its views is in use.
//!
//! A *handle* is a piece of physical memory, one or more granules long. It may be mapped at several places (*views*),
//! of which at most one is *active*: its addresses are used or free memory of an arena. The others are *stale*: holes
//! in their arenas that become memory again without a call to the backend, once the handle is free.

mod breakdown;
mod budget;
mod gather;
mod give_back;
mod home;
mod plan;
mod serve;
mod supply;
mod unrest;
mod wait;

use alloc_core::{AddressRange, Gauge};

use crate::notes::Note;
use crate::placement::heap::{Sharers, Tag, TagSet};

pub use breakdown::Breakdown;
pub(crate) use give_back::Patience;
pub(crate) use serve::{Failure, Means};

/// No handle.
const NONE: u32 = u32::MAX;

/// A place of a view: an arena and its first granule there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    arena: u32,
    granule: u32,
}

/// A piece of physical memory.
#[derive(Debug)]
struct Handle<T> {
    /// `None` for an entry without memory.
    physical: Option<T>,
    granules: u32,
    active: Option<Place>,
    /// Where it goes back to, if it is lent.
    home: Option<Home>,
    views: Vec<Place>,
    /// The streams whose work may still touch it.
    users: TagSet,
    /// The search that found it wholly free, and where.
    found: Found,
    /// Never to be used again, since whether work still touches it can't be known.
    leaked: bool,
}

/// Where a lent piece was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    At(Place),
    /// Active at no place, or not created yet.
    Nowhere,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Found {
    search: u64,
    /// The free node that holds it, as a hint.
    node: u32,
    /// Whether it has work in flight that the request would have to wait for.
    busy: bool,
}

/// What is mapped at one granule of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct View {
    handle: u32,
    /// Which granule of the handle.
    offset: u32,
}

const UNMAPPED: View = View { handle: NONE, offset: 0 };

/// The views of one arena.
#[derive(Debug)]
pub(crate) struct ArenaViews {
    /// The reserved range; `None` for segments.
    range: Option<AddressRange>,
    /// Granules of the range that the heap covers.
    granules: u32,
    /// Up to the last granule that is mapped.
    views: Vec<View>,
    /// How many granules are mapped.
    viewed: u32,
    /// How many granules of physical memory are active here.
    active: u32,
    /// What its heap said when it was last asked.
    census: budget::Census,
}

impl ArenaViews {
    fn view(&self, granule: u32) -> View {
        self.views.get(granule as usize).copied().unwrap_or(UNMAPPED)
    }

    /// Visits each handle of which a view lies wholly within these units, with its index and the view's first granule.
    fn for_each_within<T>(
        &self,
        handles: &mut [Handle<T>],
        (from, to): (u64, u64),
        granule_units: u32,
        mut visit: impl FnMut(&mut Handle<T>, u32, u32),
    ) {
        let granule_units = u64::from(granule_units);
        let (first, end) = (from.div_ceil(granule_units) as u32, (to / granule_units) as u32);
        let mut granule = first;
        while granule < end {
            let view = self.view(granule);
            let Some(handle) = handles.get_mut(view.handle as usize) else {
                granule += 1;
                continue;
            };
            let start = granule - view.offset;
            granule = start + handle.granules;
            if start >= first && granule <= end {
                visit(handle, view.handle, start);
            }
        }
    }
}

/// The page layer, behind one lock that is taken on misses only.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    granule_units: u32,
    handles: Vec<Handle<T>>,
    vacant: Vec<u32>,
    /// Handles with no active view.
    idle: Vec<u32>,
    arenas: Vec<ArenaViews>,
    /// Physical bytes held.
    pub(crate) reserved: Gauge,
    /// The most units ever seen in use.
    peak_units: u64,
    at_peak: budget::AtPeak,
    unrest: unrest::Unrest,
    /// Whether the pieces that move for the request at hand are lent.
    lending: bool,
    /// Whether little was in use since the peak last rose.
    has_ebbed: bool,
    /// The streams that the request at hand has to be ordered after, and which of those that share a tag.
    in_the_way: TagSet,
    sharers: Sharers,
    /// The streams that the request at hand can't be ordered after.
    untouchable: TagSet,
    /// How often streams had to wait for others of late that are far behind the host.
    held_up: wait::HeldUp,
    /// How often streams had to wait for others since free memory lies in several pieces.
    scattered: gather::Scattered,
    search: u64,
    pub(crate) misses: u64,
    pub(crate) moves: u64,
    moved_granules: u64,
    pub(crate) leaked: u64,
    /// What listeners are to be told once the lock is released.
    pub(crate) notes: Vec<Note>,
    scratch: Scratch,
}

/// Buffers kept from miss to miss, so that a warm one needs no heap.
#[derive(Debug, Default)]
struct Scratch {
    found: Vec<u32>,
    prices: Vec<plan::Price>,
    runs: Vec<plan::Run>,
    gaps: Vec<plan::Gap>,
    steps: Vec<supply::Step>,
    /// Granules that those create.
    planned: u64,
    attached: Vec<u32>,
    releases: Vec<(Tag, u64)>,
}

impl<T> Pages<T> {
    pub(crate) fn new(granule_units: u32) -> Self {
        Self {
            granule_units,
            handles: Vec::new(),
            vacant: Vec::new(),
            idle: Vec::new(),
            arenas: Vec::new(),
            reserved: Gauge::default(),
            peak_units: 0,
            at_peak: budget::AtPeak::default(),
            unrest: unrest::Unrest::default(),
            lending: false,
            has_ebbed: false,
            in_the_way: 0,
            sharers: Sharers::NONE,
            held_up: wait::HeldUp::default(),
            scattered: gather::Scattered::default(),
            untouchable: 0,
            search: 0,
            misses: 0,
            moves: 0,
            moved_granules: 0,
            leaked: 0,
            notes: Vec::with_capacity(16),
            scratch: Scratch::default(),
        }
    }

    /// Adds the views of a new arena, whose index is the number of arenas so far.
    pub(crate) fn add_arena(&mut self, range: Option<AddressRange>, granules: u32) {
        self.arenas.push(ArenaViews {
            range,
            granules,
            views: Vec::new(),
            viewed: 0,
            active: 0,
            census: budget::Census::default(),
        });
    }

    pub(crate) fn arena_count(&self) -> u32 {
        self.arenas.len() as u32
    }

    pub(crate) fn granule_units(&self) -> u32 {
        self.granule_units
    }

    fn granule_bytes(&self) -> u64 {
        u64::from(self.granule_units) << crate::placement::units::UNIT_SHIFT
    }

    /// Whether more of the arena's addresses have stale views than the pool has memory.
    fn has_debris(&self, arena: u32) -> bool {
        let Some(arena) = self.arenas.get(arena as usize).filter(|arena| arena.range.is_some()) else { return false };
        u64::from(arena.viewed) * self.granule_bytes() > 4 * self.reserved.current
    }

    fn is_active(&self, arena: u32, granule: u32) -> bool {
        let view = self.arenas[arena as usize].view(granule);
        view.handle != NONE
            && self.handles[view.handle as usize].active == Some(Place { arena, granule: granule - view.offset })
    }

    fn new_handle(&mut self, physical: T, granules: u32) -> u32 {
        let handle = Handle {
            physical: Some(physical),
            granules,
            active: None,
            home: None,
            views: Vec::new(),
            users: 0,
            found: Found::default(),
            leaked: false,
        };
        match self.vacant.pop() {
            Some(index) => {
                self.handles[index as usize] = handle;
                index
            }
            None => {
                self.handles.push(handle);
                self.handles.len() as u32 - 1
            }
        }
    }

    /// Notes that a view of the handle is mapped at `place`.
    fn add_view(&mut self, handle: u32, place: Place) {
        let granules = self.handles[handle as usize].granules;
        let arena = &mut self.arenas[place.arena as usize];
        arena.viewed += granules;
        let views = &mut arena.views;
        let end = (place.granule + granules) as usize;
        if views.len() < end {
            views.resize(end, UNMAPPED);
        }
        for (offset, view) in views[place.granule as usize..end].iter_mut().enumerate() {
            *view = View { handle, offset: offset as u32 };
        }
        self.handles[handle as usize].views.push(place);
    }

    /// Notes that the view at `place` is mapped no longer.
    fn remove_view(&mut self, handle: u32, place: Place) {
        let granules = self.handles[handle as usize].granules;
        let end = (place.granule + granules) as usize;
        let arena = &mut self.arenas[place.arena as usize];
        arena.viewed -= granules;
        arena.views[place.granule as usize..end].fill(UNMAPPED);
        let views = &mut arena.views;
        while views.last() == Some(&UNMAPPED) {
            views.pop();
        }
        let handle = &mut self.handles[handle as usize];
        handle.views.retain(|view| *view != place);
        handle.home = handle.home.filter(|home| *home != Home::At(place));
    }

    /// Makes the view at `place` the handle's active one, or none; returns which it was.
    fn set_active(&mut self, handle: u32, place: Option<Place>) -> Option<Place> {
        let handle = &mut self.handles[handle as usize];
        let before = std::mem::replace(&mut handle.active, place);
        if let Some(before) = before {
            self.arenas[before.arena as usize].active -= handle.granules;
        }
        if let Some(place) = place {
            self.arenas[place.arena as usize].active += handle.granules;
        }
        before
    }

    /// Takes a handle off the list of those without an active view.
    fn unlist_idle(&mut self, handle: u32) {
        if let Some(position) = self.idle.iter().position(|&idle| idle == handle) {
            self.idle.swap_remove(position);
        }
    }
}
