//! What a run of addresses is, from its beginning to its end, in spans of one look.

use alloc_core::{Piece, PieceState, Run, SlabSnapshot, SlotState, Stream};

use super::text::Bytes;

/// How a span is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Used,
    Taken,
    Cached,
    Parked,
    FreeSlot,
    Busy,
    Free,
}

impl Look {
    pub(super) const ALL: [Self; 7] =
        [Self::Used, Self::Taken, Self::Cached, Self::Parked, Self::FreeSlot, Self::Busy, Self::Free];

    /// The class that the style sheet has for it.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Taken => "taken",
            Self::Cached => "cached",
            Self::Parked => "parked",
            Self::FreeSlot => "slot",
            Self::Busy => "busy",
            Self::Free => "free",
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Used => "large blocks",
            Self::Taken => "small blocks",
            Self::Cached => "in thread caches",
            Self::Parked => "waits for other streams",
            Self::FreeSlot => "free slots of slabs",
            Self::Busy => "free, behind work of streams",
            Self::Free => "free for all",
        }
    }
}

/// A part of a run that looks the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span<'a> {
    pub(super) address: u64,
    pub(super) bytes: u64,
    pub(super) look: Look,
    pub(super) what: What<'a>,
}

/// What is said of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What<'a> {
    Block { requested: u64, stream: Option<Stream> },
    Slots { count: u64, slab: &'a [SlotState], slot_bytes: u64, stream: Option<Stream> },
    Free { users: &'a [Stream] },
}

/// How many streams are named of those that use a piece.
const NAMED: usize = 4;

fn stream_name(stream: Option<Stream>) -> String {
    stream.map_or_else(|| "of several streams, or one that is gone".into(), |stream| format!("{stream:?}"))
}

impl Span<'_> {
    /// A line for whoever points at it.
    pub(super) fn describe(&self) -> String {
        let (place, bytes, name) = (format!("{:#x}", self.address), Bytes(self.bytes), self.look.name());
        match self.what {
            What::Block { requested, stream } => {
                format!("{place}: {bytes}, {name}, {requested} bytes asked for, {}", stream_name(stream))
            }
            What::Slots { count, slab, slot_bytes, stream } => {
                let (all, stream) = (slab.len(), stream_name(stream));
                format!("{place}: {bytes}, {name}, {count} of a slab of {all} times {slot_bytes} bytes, {stream}")
            }
            What::Free { users: [] } => format!("{place}: {bytes}, {name}"),
            What::Free { users } => {
                let (named, more) = users.split_at(users.len().min(NAMED));
                let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
                format!("{place}: {bytes}, {name}: {named:?}{more}")
            }
        }
    }
}

/// The spans of a run, in the order of addresses and without a gap: slots side by side that look the same are one.
pub(super) fn of(run: &Run) -> impl Iterator<Item = Span<'_>> {
    run.pieces.iter().flat_map(of_piece)
}

fn of_piece(piece: &Piece) -> Box<dyn Iterator<Item = Span<'_>> + '_> {
    let (address, bytes) = (piece.address.get(), piece.bytes);
    let span = |look, what| Box::new(std::iter::once(Span { address, bytes, look, what }));
    match &piece.state {
        &PieceState::Used { requested, stream } => span(Look::Used, What::Block { requested, stream }),
        &PieceState::Parked { requested, stream } => span(Look::Parked, What::Block { requested, stream }),
        PieceState::Slab(slab) => Box::new(of_slab(address, slab)),
        PieceState::Free { users } => {
            span(if users.is_empty() { Look::Free } else { Look::Busy }, What::Free { users })
        }
        // A state that came later: nobody's, as far as is known here.
        _ => span(Look::Free, What::Free { users: &[] }),
    }
}

fn look_of(slot: SlotState) -> Look {
    match slot {
        SlotState::Taken => Look::Taken,
        SlotState::Cached => Look::Cached,
        SlotState::Parked => Look::Parked,
        _ => Look::FreeSlot,
    }
}

fn of_slab(address: u64, slab: &SlabSnapshot) -> impl Iterator<Item = Span<'_>> {
    let mut at = address;
    slab.slots.chunk_by(|one, other| look_of(*one) == look_of(*other)).map(move |alike| {
        let count = alike.len() as u64;
        let (slot_bytes, stream) = (slab.slot_bytes, slab.stream);
        let what = What::Slots { count, slab: &slab.slots, slot_bytes, stream };
        let bytes = count.saturating_mul(slot_bytes);
        let look = alike.first().map_or(Look::FreeSlot, |slot| look_of(*slot));
        let span = Span { address: at, bytes, look, what };
        at = at.saturating_add(bytes);
        span
    })
}

#[cfg(test)]
mod tests {
    use alloc_core::Address;

    use super::*;

    #[test]
    fn spans_are_side_by_side_and_say_what_they_are() {
        let slots = vec![SlotState::Taken, SlotState::Taken, SlotState::Free, SlotState::Cached];
        let slab = SlabSnapshot::new(512, Some(Stream::from_raw(7)), slots);
        let piece = |address, bytes, state| Piece::new(Address::new(address), bytes, state);
        let stream = None;
        let run = Run::new(vec![
            piece(4096, 1024, PieceState::Used { requested: 1000, stream: Some(Stream::DEFAULT) }),
            piece(5120, 2048, PieceState::Slab(slab)),
            piece(7168, 512, PieceState::Parked { requested: 1, stream }),
            piece(7680, 512, PieceState::Free { users: vec![Stream::from_raw(9)] }),
            piece(8192, 512, PieceState::Free { users: Vec::new() }),
        ]);
        let spans: Vec<_> = of(&run).collect();
        let mut end = 4096;
        for span in &spans {
            assert_eq!(span.address, end);
            end += span.bytes;
        }
        assert_eq!(end, 8704);
        let looks: Vec<Look> = spans.iter().map(|span| span.look).collect();
        let small = [Look::Taken, Look::FreeSlot, Look::Cached];
        assert_eq!(looks, [&[Look::Used], &small[..], &[Look::Parked, Look::Busy, Look::Free]].concat());
        assert_eq!(spans[0].describe(), "0x1000: 1.00 KiB, large blocks, 1000 bytes asked for, stream(0x0)");
        assert_eq!(
            spans[1].describe(),
            "0x1400: 1.00 KiB, small blocks, 2 of a slab of 4 times 512 bytes, stream(0x7)"
        );
        let users: Vec<Stream> = (1..=6).map(Stream::from_raw).collect();
        let many = Span { what: What::Free { users: &users }, ..spans[5].clone() };
        assert!(many.describe().ends_with("[stream(0x1), stream(0x2), stream(0x3), stream(0x4)] and 2 more"));
        assert!(spans[5].describe().ends_with("free, behind work of streams: [stream(0x9)]"));
        assert!(Look::ALL.iter().all(|look| !look.class().is_empty() && !look.name().is_empty()));
    }
}
