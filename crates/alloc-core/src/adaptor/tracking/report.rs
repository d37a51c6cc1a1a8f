//! What is still in use, block by block and summed up.

use std::backtrace::Backtrace;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::adaptor::ThreadTag;
use crate::{Block, Device, Stream};

/// A living block, and where it comes from.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Leak {
    /// The block, as it can be released.
    pub block: Block,
    /// The alignment asked for, in bytes.
    pub align: u64,
    /// The stream it was allocated on.
    pub stream: Stream,
    /// The thread that allocated it.
    pub thread: ThreadTag,
    /// How long ago.
    pub age: Duration,
    /// The number of the allocation, counted from 0 without failures.
    pub sequence: u64,
    /// Where it was allocated, if backtraces are captured.
    pub backtrace: Option<Arc<Backtrace>>,
}

/// Living blocks that come from the same place.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LeakSite {
    /// The place: a backtrace without the adaptor's own frames, or size, thread and stream.
    pub site: String,
    /// Number of blocks.
    pub count: u64,
    /// Bytes that were asked for in these blocks.
    pub bytes: u64,
    /// The age of the oldest.
    pub oldest: Duration,
    /// The number of its allocation.
    pub first_sequence: u64,
}

/// All living blocks, summed up by where they come from; most bytes first. Shown with `Display`.
#[derive(Clone, Debug)]
pub struct LeakReport {
    device: Device,
    count: u64,
    bytes: u64,
    sites: Vec<LeakSite>,
}

/// More sites than this are only counted when a report is shown.
const SITES_SHOWN: usize = 50;
/// More lines of a place than this are only counted. The first are the nearest: two for each call.
const LINES_SHOWN: usize = 40;

impl LeakReport {
    pub(super) fn new(device: Device, leaks: &[Leak]) -> Self {
        let mut report = Self { device, count: 0, bytes: 0, sites: Vec::new() };
        // By the stack first, which most blocks share with others, since to resolve one takes long; then by the text, as calls
        // from several places of one line are the same place.
        let mut by_stack: HashMap<*const Backtrace, usize> = HashMap::new();
        let mut by_text: HashMap<String, usize> = HashMap::new();
        for leak in leaks {
            let bytes = leak.block.size();
            report.count += 1;
            report.bytes = report.bytes.saturating_add(bytes);
            let mut index_of = |text: String| {
                *by_text.entry(text).or_insert_with_key(|text| {
                    report.sites.push(LeakSite {
                        site: text.clone(),
                        count: 0,
                        bytes: 0,
                        oldest: Duration::ZERO,
                        first_sequence: leak.sequence,
                    });
                    report.sites.len() - 1
                })
            };
            let index = match &leak.backtrace {
                Some(backtrace) => {
                    *by_stack.entry(Arc::as_ptr(backtrace)).or_insert_with(|| index_of(callers(&backtrace.to_string())))
                }
                None => index_of(format!("{bytes} bytes each, {}, {:?}", leak.thread, leak.stream)),
            };
            let site = &mut report.sites[index];
            site.count += 1;
            site.bytes = site.bytes.saturating_add(bytes);
            site.oldest = site.oldest.max(leak.age);
            site.first_sequence = site.first_sequence.min(leak.sequence);
        }
        report.sites.sort_by_key(|site| (std::cmp::Reverse(site.bytes), site.first_sequence));
        report
    }

    /// The device.
    pub const fn device(&self) -> Device {
        self.device
    }

    /// Number of living blocks.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Bytes that were asked for in living blocks.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The places that they come from, most bytes first.
    pub fn sites(&self) -> &[LeakSite] {
        &self.sites
    }
}

impl fmt::Display for LeakReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return write!(f, "no blocks in use on {}", self.device);
        }
        write!(f, "{} in use on {}", Amount(self.count, self.bytes), self.device)?;
        for site in self.sites.iter().take(SITES_SHOWN) {
            let oldest = site.oldest.as_secs_f64();
            write!(
                f,
                "\n{}, oldest {oldest:.3} s ago, first #{}",
                Amount(site.count, site.bytes),
                site.first_sequence
            )?;
            let mut lines = site.site.lines();
            for line in lines.by_ref().take(LINES_SHOWN) {
                write!(f, "\n    {line}")?;
            }
            match lines.count() {
                0 => {}
                more => write!(f, "\n    ({more} more lines)")?,
            }
        }
        if let Some(rest) = self.sites.get(SITES_SHOWN..).filter(|rest| !rest.is_empty()) {
            let (count, bytes) = rest
                .iter()
                .fold((0, 0u64), |(count, bytes), site| (count + site.count, bytes.saturating_add(site.bytes)));
            write!(f, "\n{} at {} more places", Amount(count, bytes), rest.len())?;
        }
        Ok(())
    }
}

/// A number of blocks and their bytes.
struct Amount(u64, u64);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = if self.0 == 1 { "block" } else { "blocks" };
        write!(f, "{} {blocks} of {} bytes", self.0, self.1)
    }
}

/// A backtrace's text without the frames at its top that are the capture and the adaptors themselves. A text of
/// another shape is kept whole.
fn callers(backtrace: &str) -> String {
    let function = |line: &str| {
        let (number, function) = line.trim_start().split_once(": ")?;
        let is_frame = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        is_frame.then(|| function.trim_start_matches('<').to_owned())
    };
    // By where it is, not by what it is generic over: that may be an adaptor, too.
    let is_own =
        |function: &str| ["std::backtrace", "alloc_core::adaptor::"].iter().any(|own| function.starts_with(own));
    let lines: Vec<&str> = backtrace.lines().collect();
    let first = lines.iter().position(|line| function(line).is_some_and(|function| !is_own(&function))).unwrap_or(0);
    lines[first..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_frames_are_left_out_and_other_texts_kept() {
        let text = "   0: std::backtrace::Backtrace::create\n             at /rust/backtrace.rs:1:1\n   \
                    1: <alloc_core::adaptor::tracking::Tracking<A> as X>::allocate\n   2: program::load\n   3: main\n";
        assert_eq!(callers(text), "   2: program::load\n   3: main");
        assert_eq!(callers("<unknown>"), "<unknown>");
        assert_eq!(callers(""), "");
    }

    #[test]
    fn a_caller_that_is_generic_over_an_adaptor_is_one() {
        let own = "   0: std::backtrace::Backtrace::create\n   1: alloc_core::adaptor::tracking::Books::insert\n";
        let caller = "   2: program::load::<alloc_core::adaptor::tracking::Tracking<S>>\n   3: main";
        assert_eq!(callers(&format!("{own}{caller}")), caller);
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let frames: String = (0..100).map(|frame| format!("{frame}: f\n")).collect();
        let site =
            |bytes| LeakSite { site: frames.clone(), count: 2, bytes, oldest: Duration::ZERO, first_sequence: 0 };
        let sites = (0..SITES_SHOWN as u64 + 3).map(site).collect();
        let text = LeakReport { device: Device::CPU, count: 106, bytes: 1378, sites }.to_string();
        assert_eq!(text.lines().count(), 1 + SITES_SHOWN * (1 + LINES_SHOWN + 1) + 1);
        assert!(text.contains("\n    39: f\n    (60 more lines)\n"), "{text}");
        assert!(text.ends_with("\n6 blocks of 153 bytes at 3 more places"), "{text}");
        let short = LeakSite { site: frames.lines().take(LINES_SHOWN).collect::<Vec<_>>().join("\n"), ..site(1) };
        let text = LeakReport { device: Device::CPU, count: 2, bytes: 1, sites: vec![short] }.to_string();
        assert!(text.ends_with("39: f"), "{text}");
    }
}
