//! The page: well-formed, true to what it shows, and never larger than a browser bears.

use alloc_core::{
    Address, ArenaSnapshot, Device, Piece, PieceState, Run, SlabSnapshot, SlotState, Snapshot, Statistics, Stream,
};
use alloc_trace::{Action, Picture, Row, Trace};
use roxmltree::{Document, Node, ParsingOptions};

use crate::support::{row, trace};

const MIB: u64 = 1 << 20;

fn allocate(pointer: u64, bytes: u64) -> Row {
    row(1, Action::Allocate, pointer, bytes, 0)
}

fn free(pointer: u64, bytes: u64) -> Row {
    row(1, Action::Free, pointer, bytes, 0)
}

fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, nodes_limit: u32::MAX, ..ParsingOptions::default() };
    Document::parse_with_options(page, options).unwrap()
}

fn all<'a>(page: &'a Document<'a>, tag: &'static str, class: &'static str) -> impl Iterator<Item = Node<'a, 'a>> {
    page.descendants()
        .filter(move |node| node.has_tag_name(tag) && node.attribute("class").unwrap_or_default() == class)
}

/// All text beneath a node.
fn text(node: Node<'_, '_>) -> String {
    node.descendants().filter(Node::is_text).filter_map(|node| node.text()).collect()
}

fn number(node: Node<'_, '_>, attribute: &str) -> f64 {
    node.attribute(attribute).unwrap().parse().unwrap()
}

/// The points of a path.
fn points(path: Node<'_, '_>) -> Vec<(f64, f64)> {
    let point = |text: &str| {
        let (x, y) = text.trim_end_matches('Z').split_once(' ').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    };
    path.attribute("d").unwrap().split(['M', 'L']).skip(1).map(point).collect()
}

fn snapshot(runs: Vec<Vec<Piece>>) -> Snapshot {
    let mut snapshot = Snapshot::new(Device::CPU, Statistics::default());
    let runs = runs.into_iter().map(Run::new).collect();
    snapshot.arenas.push(ArenaSnapshot::new(0, runs));
    snapshot
}

/// Pieces one after the other.
fn pieces(start: u64, parts: impl IntoIterator<Item = (u64, PieceState)>) -> Vec<Piece> {
    let mut end = start;
    let piece = |(bytes, state)| {
        let address = Address::new(end);
        end += bytes;
        Piece::new(address, bytes, state)
    };
    parts.into_iter().map(piece).collect()
}

fn used(requested: u64) -> PieceState {
    PieceState::Used { requested, stream: Some(Stream::DEFAULT) }
}

fn free_for_all() -> PieceState {
    PieceState::Free { users: Vec::new() }
}

/// A million operations, in the midst of which one block lives for an instant that is larger than all others.
fn spiky(operations: u64, spike_at: u64) -> Trace {
    let mut rows = Vec::new();
    for pair in 0..operations / 2 {
        let bytes = if pair == spike_at { 512 * MIB } else { 1 + pair % 7 * MIB };
        rows.push(allocate(0x1000 + pair * 512, bytes));
        rows.push(free(0x1000 + pair * 512, bytes));
    }
    trace(&rows)
}

#[test]
fn a_page_is_well_formed_whatever_it_is_told() {
    let hostile = "</title><script>alert(\"1\")</script> & 'x' \u{1}";
    let trace = spiky(100, 3);
    let snapshot = snapshot(vec![pieces(4096, [(MIB, used(5)), (MIB, free_for_all())])]);
    let page = Picture::new(hostile).trace(&trace).reserved([(1, 3)]).snapshot(hostile, &snapshot).to_string();
    let parsed = parse(&page);
    let shown = hostile.replace('\u{1}', "\u{FFFD}");
    for tag in ["title", "h1"] {
        let node = parsed.descendants().find(|node| node.has_tag_name(tag)).unwrap();
        assert_eq!(text(node), shown);
    }
    assert!(parsed.descendants().any(|node| node.has_tag_name("h2") && text(node) == shown));
    // It asks nothing of anybody.
    for tag in ["script", "link", "img", "iframe"] {
        assert!(!parsed.descendants().any(|node| node.has_tag_name(tag)), "{tag}");
    }
    let asks = |attribute: &str| matches!(attribute, "src" | "href" | "onload" | "onclick");
    assert!(!parsed.descendants().flat_map(|node| node.attributes()).any(|attribute| asks(attribute.name())));
    assert!(!page.contains("url(") && !page.contains("@import"));
}

#[test]
fn a_peak_of_one_operation_is_seen_among_a_million() {
    let trace = spiky(1_000_000, 123_456);
    let reserved = (0..1_000_000).step_by(10).map(|at| (at, if at == 654_320 { 1024 * MIB } else { 600 * MIB }));
    let page = Picture::new("peaks").trace(&trace).reserved(reserved).to_string();
    assert!(page.len() < 400_000, "{}", page.len());
    let parsed = parse(&page);
    let live = points(all(&parsed, "path", "live").next().unwrap());
    let reserved = points(all(&parsed, "path", "reserved").next().unwrap());
    let top = |points: &[(f64, f64)]| points.iter().copied().min_by(|one, other| one.1.total_cmp(&other.1)).unwrap();
    let bottom = live[0].1;
    let lowest = |points: &[(f64, f64)]| points.iter().map(|point| point.1).fold(f64::MIN, f64::max);
    // What was reserved is the top of the picture, and the peak half of it: each at its place.
    let height = bottom - top(&reserved).1;
    assert!((bottom - top(&live).1 - height / 2.0).abs() < 0.2);
    assert!((bottom - lowest(&reserved) - height * 600.0 / 1024.0).abs() < 0.2);
    let (left, right) = (live[0].0, live[live.len() - 1].0);
    let place = |operation: f64| left + (right - left) * operation / 999_999.0;
    assert!((top(&live).0 - place(246_912.0)).abs() < 0.2);
    assert!((top(&reserved).0 - place(654_320.0)).abs() < 0.2);
    assert!(live.len() <= 2003 && reserved.len() <= 2000);
    assert!(live.windows(2).all(|pair| pair[0].0 <= pair[1].0), "from left to right");

    let peak = all(&parsed, "circle", "peak").next().unwrap();
    assert!((number(peak, "cx") - top(&live).0).abs() < 0.1 && (number(peak, "cy") - top(&live).1).abs() < 0.1);
    assert!(parsed.descendants().any(|node| node.has_tag_name("text") && text(node) == "peak 512.00 MiB"));
    let told: Vec<String> = all(&parsed, "rect", "told").map(text).collect();
    assert!(told.iter().any(|told| told.contains("at most 512.00 MiB in 1 blocks, 600.00 MiB reserved")), "{told:?}");
    assert!(told.iter().any(|told| told.ends_with("1.00 GiB reserved")));
}

#[test]
fn the_figures_of_the_peak_and_its_sizes_are_said() {
    let mut rows: Vec<_> = (0..30).map(|n| allocate(n * 4096 + 4096, 100 + n)).collect();
    rows.splice(0..0, [allocate(9 << 30, 777), free(9 << 30, 777)]);
    rows.extend([allocate(1 << 30, 100), allocate(2 << 30, 1000), free(4096, 100), allocate(3 << 30, 50)]);
    let trace = trace(&rows);
    let page = Picture::new("sizes").trace(&trace).to_string();
    let parsed = parse(&page);
    let cells = |row: Node<'_, '_>| -> Vec<String> {
        row.children().filter(|cell| cell.has_tag_name("td")).map(text).collect()
    };
    let table = all(&parsed, "table", "sizes").next().unwrap();
    let rows: Vec<_> = table.children().filter(|row| row.has_tag_name("tr")).map(cells).collect();
    // Two blocks of a hundred bytes lived then, one of which is gone later; the last one is not there yet.
    assert_eq!(rows[1], ["1\u{202F}000", "1", "1000 bytes", "22.1 %"]);
    assert_eq!(rows[2], ["100", "2", "200 bytes", "4.4 %"]);
    assert_eq!(rows.len(), 1 + 24);
    assert!(page.contains("<p>7 more sizes have 728 bytes together.</p>"), "{page}");
    assert!(
        all(&parsed, "table", "figures").any(|table| text(table).contains("4.43 KiB (4\u{202F}535 bytes)")),
        "{page}"
    );
}

#[test]
fn a_trace_of_few_operations_is_drawn_within_its_axes() {
    for (rows, labels) in [
        (vec![allocate(4096, 3)], vec!["0 bytes", "1 bytes", "2 bytes", "3 bytes"]),
        (vec![allocate(4096, 1), free(4096, 1)], vec!["0 bytes", "1 bytes"]),
        (
            vec![allocate(4096, 4096), allocate(8192, 0), free(4096, 4096)],
            vec!["0 bytes", "1.00 KiB", "2.00 KiB", "3.00 KiB", "4.00 KiB"],
        ),
    ] {
        let trace = trace(&rows);
        // What is reserved after the last operation is none of them.
        let page = Picture::new("few").trace(&trace).reserved([(rows.len() as u32, 1 << 40)]).to_string();
        let parsed = parse(&page);
        let found: Vec<String> = all(&parsed, "text", "end").map(text).filter(|text| !text.ends_with(" s")).collect();
        let found: Vec<&String> = found.iter().filter(|text| !text.starts_with("peak")).collect();
        assert_eq!(found, labels.iter().collect::<Vec<_>>());
        let live = points(all(&parsed, "path", "live").next().unwrap());
        let top = live.iter().map(|point| point.1).fold(f64::MAX, f64::min);
        assert!((top - 16.0).abs() < 0.1, "the peak is the top: {live:?}");
        assert!(!page.contains("most reserved"), "{page}");
        let edge = |rect: Node<'_, '_>| number(rect, "x") + number(rect, "width");
        assert!(all(&parsed, "rect", "told").all(|rect| edge(rect) <= 1151.1), "nothing runs past the axes: {page}");
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}

#[test]
fn nothing_makes_a_page_too() {
    let empty = trace(&[]);
    let none = Snapshot::new(Device::CPU, Statistics::default());
    let hollow = snapshot(vec![Vec::new()]);
    let page = Picture::new("").trace(&empty).reserved([(5, 5)]).snapshot("", &none).snapshot("", &hollow).to_string();
    assert!(text(parse(&page).root()).contains("Nothing was allocated."));
    parse(&Picture::new("nothing at all").to_string());
    let zeros = trace(&[allocate(16, 0), free(16, 0)]);
    assert!(!Picture::new("no bytes").trace(&zeros).to_string().contains("NaN"));
}

#[test]
fn the_map_covers_each_run_once_and_each_piece_has_its_colour() {
    let slots = vec![SlotState::Taken, SlotState::Free, SlotState::Cached, SlotState::Parked];
    let slab = PieceState::Slab(SlabSnapshot::new(64 << 10, Some(Stream::from_raw(3)), slots));
    let parked = PieceState::Parked { requested: 7, stream: None };
    let busy = PieceState::Free { users: vec![Stream::from_raw(3)] };
    let large =
        [(5 * MIB, used(5 * MIB - 1)), (256 << 10, slab), (MIB, parked), (512, used(512)), (2 * MIB - 512, busy)];
    let mut snapshot = snapshot(vec![pieces(1 << 40, large), pieces(2 << 40, [(3 * MIB, free_for_all())])]);
    (snapshot.unplaced, snapshot.lost) = (MIB, 0);
    let page = Picture::new("map").snapshot("where", &snapshot).to_string();
    let parsed = parse(&page);
    // A cell of the map, and how many bytes it has: the finest by which the rows are few enough.
    let map = all(&parsed, "svg", "map").next().unwrap();
    let rects: Vec<_> = map.children().filter(|node| node.has_tag_name("rect")).collect();
    let mut by_row: Vec<(f64, f64, f64)> =
        rects.iter().map(|rect| (number(*rect, "y"), number(*rect, "x"), number(*rect, "width"))).collect();
    by_row.sort_by(|one, other| one.partial_cmp(other).unwrap());
    for pair in by_row.windows(2).filter(|pair| pair[0].0 == pair[1].0) {
        assert_eq!(pair[0].1 + pair[0].2, pair[1].1, "side by side, none above another");
    }
    let edge: f64 = map.attribute("viewBox").unwrap().split(' ').nth(2).unwrap().parse().unwrap();
    assert!(by_row.iter().all(|(_, x, width)| x + width <= edge), "nothing runs past its row");
    let width = |class: &'static str| -> f64 {
        let of_class = rects.iter().filter(|rect| rect.attribute("class") == Some(class));
        of_class.map(|rect| number(*rect, "width")).sum()
    };
    // 128 KiB are 128 cells of two units.
    let parts = [
        ("used", 5 * MIB + 512),
        ("taken", MIB / 16),
        ("slot", MIB / 16),
        ("cached", MIB / 16),
        ("busy", 2 * MIB - 512),
    ];
    let total: f64 = rects.iter().map(|rect| number(*rect, "width")).sum();
    let per_byte = total / (11.25 * MIB as f64);
    for (class, bytes) in parts.into_iter().chain([("parked", MIB + MIB / 16), ("free", 3 * MIB)]) {
        let expected = bytes as f64 * per_byte;
        assert!((width(class) - expected).abs() <= 2.0, "{class}: {} of {expected}", width(class));
    }
    let told: Vec<String> = rects.iter().map(|rect| text(*rect)).collect();
    assert!(told.contains(&"0x10000000000: 5.00 MiB, large blocks, 5242879 bytes asked for, stream(0x0)".to_owned()));
    let legend = text(all(&parsed, "ul", "legend").next().unwrap());
    for part in [
        "large blocks: 5.00 MiB",
        "small blocks: 64.00 KiB",
        "waits for other streams: 1.06 MiB",
        "free for all: 3.00 MiB",
        "free, at no address: 1.00 MiB",
    ] {
        assert!(legend.contains(part), "{legend}");
    }
    assert!(!legend.contains("lost"));
}

#[test]
fn what_is_smaller_than_can_be_seen_is_told_together() {
    let small = (0..1000).map(|n| if n % 4 == 0 { (512, free_for_all()) } else { (512, used(512)) });
    let parts = small.chain([(8 << 30, free_for_all()), (512, used(512))]);
    let page = Picture::new("small").snapshot("where", &snapshot(vec![pieces(1 << 40, parts)])).to_string();
    let parsed = parse(&page);
    let map = all(&parsed, "svg", "map").next().unwrap();
    let first = map.children().find(|node| node.has_tag_name("rect")).unwrap();
    assert_eq!(first.attribute("class"), Some("used"), "most of what there is");
    let last = map.children().rfind(|node| node.has_tag_name("rect")).unwrap();
    assert!(text(last).contains("512 bytes large blocks"), "the end is drawn, though it fills no cell: {}", text(last));
    let told = text(first);
    assert!(told.starts_with("512 pieces: 192.00 KiB large blocks, 64.00 KiB free for all"), "{told}");
}

#[test]
fn a_page_has_some_megabytes_at_most() {
    // Pieces of all sizes, more of them than could be drawn.
    let mixed = |run: u64| {
        let state = |n: u64| match n % 3 {
            0 => used(n),
            1 => free_for_all(),
            _ => PieceState::Free { users: (0..64).map(Stream::from_raw).collect() },
        };
        pieces((run + 1) << 40, (0..20_000).map(move |n| (512 << (n * 7 % 13), state(n))))
    };
    let wide = snapshot((0..20).map(mixed).collect());
    let many = snapshot(
        (0..30_000)
            .map(|run| pieces((run + 1) << 30, [(2 * MIB, used(1)), (run % 64 * MIB, free_for_all())]))
            .collect(),
    );
    for snapshot in [&wide, &many] {
        let page = Picture::new("bounded").snapshot("where", snapshot).to_string();
        assert!(page.len() < 8 << 20, "{}", page.len());
        let parsed = parse(&page);
        let rows =
            all(&parsed, "svg", "map").map(|map| map.children().filter(|node| node.has_tag_name("text")).count());
        let rows: usize = rows.sum();
        assert!((40..=96).contains(&rows), "{rows}");
    }
    let page = Picture::new("bounded").snapshot("where", &many).to_string();
    assert!(page.contains("runs of addresses, the smallest, are left out"));
}

#[test]
fn many_small_runs_leave_the_largest_its_rows() {
    let small = (1..200).map(|run| pieces((run + 100) << 40, [(2 * MIB, used(1))]));
    let large = pieces(1 << 40, [(80 << 30, used(1))]);
    let page =
        Picture::new("dust").snapshot("where", &snapshot(std::iter::once(large).chain(small).collect())).to_string();
    let parsed = parse(&page);
    let map = all(&parsed, "svg", "map").next().unwrap();
    let rows = map.children().filter(|node| node.has_tag_name("text")).count();
    let of_large =
        map.children().filter(|node| node.has_tag_name("rect") && text(*node).starts_with("0x10000000000: "));
    assert!(of_large.count() >= 24 && rows <= 96, "{rows}");
    assert!(page.contains("152 runs of addresses, the smallest, are left out: 304.00 MiB."), "{page}");
    // Those that are much together are shown.
    let alike = snapshot((1..=96).map(|run| pieces(run << 40, [(run << 30, used(1))])).collect());
    assert!(!Picture::new("alike").snapshot("where", &alike).to_string().contains("left out"));
}

#[test]
fn addresses_at_the_end_of_all_are_no_trouble() {
    let end = u64::MAX - 4 * MIB + 1;
    let last = snapshot(vec![vec![
        Piece::new(Address::new(end), 4 * MIB - 1, used(u64::MAX)),
        Piece::new(Address::new(u64::MAX), u64::MAX, free_for_all()),
    ]]);
    parse(&Picture::new("end").snapshot("where", &last).to_string());
}
