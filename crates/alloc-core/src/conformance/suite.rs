//! The suite: what to test, how, and what came out.

use std::fmt;
use std::sync::Arc;

use crate::{Block, DeviceAllocator, Stream};

use super::trial::Trial;
use super::{Breach, Broken, Promise, Verdict};

/// What the suite may expect of an allocator, and how hard it tries.
///
/// Promises that an allocator doesn't make are switched off here; the default expects all of them. New fields come with
/// versions that are compatible by their number, so write it with `..Options::default()` at the end.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "written with `..Options::default()`, as its doc says")]
pub struct Options {
    /// The streams to use. On a host any names do; a device backend lists streams of its own that exist. Promises
    /// about several streams need two at least. The handle of the last is retired in one of them, so let it not be
    /// the default stream. By default the default stream and two with made-up handles.
    pub streams: Vec<Stream>,
    /// Whether blocks are written and read through the allocator's transfer. True by default; false for memory that
    /// is only simulated.
    pub contents: bool,
    /// Whether a release of a block released before is recognised. True by default.
    pub detects_double_release: bool,
    /// Whether a release of a foreign or altered block is recognised. True by default.
    pub detects_foreign_blocks: bool,
    /// Whether `requested` and `in_use` of the statistics are kept. True by default.
    pub statistics: bool,
    /// Whether `trim` gives everything back when no block is alive, and the statistics' `reserved` says so. True by
    /// default.
    pub trims_to_zero: bool,
    /// How many bytes can be in use at once, at most: what the allocator's limit or its device's memory is. Only if
    /// this is given, the suite asks for more than there is. `None` by default. Sensible from 16 MiB on.
    pub capacity: Option<u64>,
    /// The largest block to ask for in bytes. 4 MiB by default, and never more than an eighth of what may be held.
    pub max_block: u64,
    /// The largest alignment to ask for in bytes, a power of two. 2 MiB by default.
    pub max_align: u64,
    /// The most bytes to hold at once. 64 MiB by default, and never more than half of the capacity.
    pub max_live: u64,
    /// How many threads to use at once. 4 by default.
    pub threads: usize,
    /// Multiplies the number of operations. 1 by default, which takes a second or two without optimisation.
    pub effort: u64,
    /// Where the random numbers start. A failure says which one it was.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            streams: vec![Stream::DEFAULT, Stream::from_raw(0x11), Stream::from_raw(0x12)],
            contents: true,
            detects_double_release: true,
            detects_foreign_blocks: true,
            statistics: true,
            trims_to_zero: true,
            capacity: None,
            max_block: 4 << 20,
            max_align: 2 << 20,
            max_live: 64 << 20,
            threads: 4,
            effort: 1,
            seed: 0x5EED,
        }
    }
}

impl Options {
    /// Leaves room for rounding and holes where there is little memory.
    fn bounded(mut self) -> Self {
        self.max_live = self.max_live.min(self.capacity.unwrap_or(u64::MAX) / 2);
        self.max_block = self.max_block.min(self.max_live / 8).max(1);
        self
    }
}

pub(super) type Inspect = Box<dyn Fn(&Block) -> Result<(), String> + Send + Sync>;
type Finish = Box<dyn FnOnce() -> Result<(), String>>;

/// A fresh allocator to test, with checks that only its maker can make.
///
/// Every [`DeviceAllocator`] is one by `into()`.
pub struct Subject {
    pub(super) allocator: Arc<dyn DeviceAllocator>,
    pub(super) inspect: Option<Inspect>,
    pub(super) finish: Option<Finish>,
}

impl Subject {
    /// An allocator that nothing else uses meanwhile.
    pub fn new(allocator: impl DeviceAllocator + 'static) -> Self {
        Self { allocator: Arc::new(allocator), inspect: None, finish: None }
    }

    /// Has every block that is handed out looked at: an `Err` breaks the promise.
    #[must_use]
    pub fn inspect(mut self, inspect: impl Fn(&Block) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.inspect = Some(Box::new(inspect));
        self
    }

    /// Has something looked at when all blocks are released and the allocator is dropped: an `Err` breaks the
    /// promise.
    #[must_use]
    pub fn finish(mut self, finish: impl FnOnce() -> Result<(), String> + 'static) -> Self {
        self.finish = Some(Box::new(finish));
        self
    }
}

impl<A: DeviceAllocator + 'static> From<A> for Subject {
    fn from(allocator: A) -> Self {
        Self::new(allocator)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("allocator", &self.allocator).finish_non_exhaustive()
    }
}

/// The conformance suite over one kind of allocator. [`conformance!`](crate::conformance!) makes tests of it;
/// programs without a test harness call [`run_all`](Self::run_all).
pub struct Suite {
    make: Box<dyn Fn() -> Subject + Send + Sync>,
    options: Options,
}

impl Suite {
    /// A suite over the allocators that `make` makes: a fresh one for each promise.
    pub fn new<S: Into<Subject>>(make: impl Fn() -> S + Send + Sync + 'static, options: Options) -> Self {
        Self { make: Box::new(move || make().into()), options: options.bounded() }
    }

    /// What it expects, with the sizes bounded by the capacity.
    pub fn options(&self) -> &Options {
        &self.options
    }

    pub(super) fn make(&self) -> Subject {
        (self.make)()
    }

    /// Checks one promise.
    ///
    /// # Errors
    /// How the promise was broken. Blocks that were alive at that moment are not released.
    pub fn check(&self, promise: Promise) -> Result<Verdict, Broken> {
        let Subject { allocator, inspect, finish } = self.make();
        let trial = Trial::new(self, promise, allocator, inspect);
        let verdict = promise.check(&trial)?;
        trial.check_balance()?;
        let mut unfinished = trial.broken(Breach::Finish { reason: String::new() });
        drop(trial);
        match finish.map_or(Ok(()), |finish| finish()) {
            Ok(()) => Ok(verdict),
            Err(reason) => {
                *unfinished.breach = Breach::Finish { reason };
                Err(unfinished)
            }
        }
    }

    /// Checks one promise in a test.
    ///
    /// # Panics
    /// If it is broken; the message says how, and with which seed.
    #[track_caller]
    pub fn assert_kept(&self, promise: Promise) {
        let broken = self.check(promise).err().map(|broken| broken.to_string());
        assert!(broken.is_none(), "{}", broken.unwrap_or_default());
    }

    /// Checks every promise, one after the other.
    ///
    /// ```
    /// # use alloc_core::conformance::{Options, Suite};
    /// # fn check<A: alloc_core::DeviceAllocator + 'static>(make: fn() -> A) {
    /// let report = Suite::new(make, Options::default()).run_all();
    /// println!("{report}");
    /// std::process::exit(if report.is_kept() { 0 } else { 1 });
    /// # }
    /// ```
    pub fn run_all(&self) -> Report {
        let check = |promise: &Promise| (*promise, self.check(*promise));
        Report { outcomes: Promise::ALL.iter().map(check).collect() }
    }
}

impl fmt::Debug for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Suite").field("options", &self.options).finish_non_exhaustive()
    }
}

/// What came out of a whole suite. Its text has a line for each promise.
#[derive(Debug)]
#[must_use = "promises may be broken"]
#[non_exhaustive]
pub struct Report {
    /// Each promise and what became of it.
    pub outcomes: Vec<(Promise, Result<Verdict, Broken>)>,
}

impl Report {
    /// Whether no promise was broken.
    pub fn is_kept(&self) -> bool {
        self.outcomes.iter().all(|(_, outcome)| outcome.is_ok())
    }

    /// Those that were broken.
    pub fn broken(&self) -> impl Iterator<Item = &Broken> {
        self.outcomes.iter().filter_map(|(_, outcome)| outcome.as_ref().err())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (promise, outcome) in &self.outcomes {
            match outcome {
                Ok(Verdict::Kept) => writeln!(f, "kept          {promise}")?,
                Ok(Verdict::NotPromised(why)) => writeln!(f, "not promised  {promise}: {why}")?,
                Err(broken) => writeln!(f, "BROKEN        {broken}")?,
            }
        }
        Ok(())
    }
}
