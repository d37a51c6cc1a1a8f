//! `picture` draws a recording, with what a pool reserves for it.

use std::path::Path;
use std::process::Command;

use alloc_trace::{Policy, Profile, Reader, Trace};
use roxmltree::{Document, ParsingOptions};

fn parse(page: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(page, options).unwrap()
}

fn text(page: &Document<'_>) -> String {
    page.descendants().filter(|node| node.is_text()).filter_map(|node| node.text()).collect()
}

fn has(page: &Document<'_>, tag: &str, class: &str) -> bool {
    page.descendants().any(|node| node.has_tag_name(tag) && node.attribute("class") == Some(class))
}

#[test]
fn a_recording_becomes_a_page_with_both_lines_and_a_map() {
    let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/prefetch_streams.csv.zst");
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("page.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_picture"));
    let ran = command.arg(&recording).arg("--out").arg(&out).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let page = std::fs::read_to_string(&out).unwrap();
    assert!(page.len() < 8 << 20, "{}", page.len());
    let page = parse(&page);
    assert!(has(&page, "path", "live") && has(&page, "path", "reserved") && has(&page, "svg", "map"));
    let text = text(&page);
    let profile = Profile::of(&Trace::load(&recording, Policy::Lenient).unwrap());
    let digits = |text: &str| text.chars().filter(|character| !character.is_whitespace()).collect::<String>();
    assert!(digits(&text).contains(&format!("({}bytes)", profile.peak_live_bytes)), "{}", profile.peak_live_bytes);
    assert!(text.contains("The pool's memory at the peak") && text.contains("most reserved"));
    // What was asked for when the map was drawn is what lived.
    let row = page.descendants().find(|node| node.has_tag_name("th") && node.text() == Some("asked for")).unwrap();
    let [now, peak]: [&str; 2] = row
        .next_siblings()
        .filter(|node| node.has_tag_name("td"))
        .map(|node| node.text().unwrap())
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    assert_eq!(now, peak, "it is the moment of the peak");

    let missing = Command::new(env!("CARGO_BIN_EXE_picture")).arg("nowhere.csv").output().unwrap();
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("nowhere.csv"));
}

#[test]
fn a_recording_that_no_pool_can_serve_has_its_live_bytes() {
    let row = |action, bytes: u64| format!("1,00:00:00.1,{action},0x1000,{bytes},0x0\n");
    let log = format!("Thread,Time,Action,Pointer,Size,Stream\n{}", row("allocate", 1 << 60));
    let trace = Trace::from_rows(Reader::new(log.as_bytes()).unwrap(), Policy::Strict).unwrap();
    let page = benches::picture::page("too <large>", &trace).unwrap();
    let page = parse(&page);
    assert!(has(&page, "path", "live") && !has(&page, "path", "reserved") && !has(&page, "svg", "map"));
    assert!(text(&page).contains("too <large> (live bytes alone: "), "it says why");
}
