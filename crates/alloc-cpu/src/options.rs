//! What a program can choose about host memory.

use std::sync::Arc;

use alloc_core::EventHook;
use alloc_pool::ConfigError;

/// What the variables may hold, in errors.
const HUGE_PAGES: &str = "wish for huge pages: off, transparent or hugetlb";
const POPULATE: &str = "time to populate at: lazy, create or map";
const NUMA: &str = "memory policy: default, bind:0,1, interleave:0,1 or preferred:0";

/// Choices for a [`HostProvider`](crate::HostProvider). The defaults suit most programs.
///
/// ```
/// use alloc_cpu::{HostOptions, HugePages, Populate};
/// let options = HostOptions::new().capacity_bytes(1 << 30).huge_pages(HugePages::Off).populate(Populate::Lazy);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, Default)]
pub struct HostOptions {
    pub(crate) capacity_bytes: Option<u64>,
    pub(crate) huge_pages: HugePages,
    pub(crate) populate: Populate,
    pub(crate) numa: NumaPolicy,
    pub(crate) hook: Option<Arc<dyn EventHook>>,
}

impl HostOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The defaults with what the environment says on top:
    ///
    /// | variable | values |
    /// |---|---|
    /// | `ALLOC_CPU_HUGE_PAGES` | `off`, `transparent`, `hugetlb` |
    /// | `ALLOC_CPU_POPULATE` | `lazy`, `create`, `map` |
    /// | `ALLOC_CPU_NUMA` | `default`, `bind:0,1`, `interleave:0,1`, `preferred:0` |
    ///
    /// How much memory a pool may hold is among the settings of the pool.
    ///
    /// # Errors
    /// [`ConfigError::Environment`] for the first variable with another value.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        Ok(Self {
            huge_pages: setting(&variable, "ALLOC_CPU_HUGE_PAGES", HUGE_PAGES, HugePages::parse)?,
            populate: setting(&variable, "ALLOC_CPU_POPULATE", POPULATE, Populate::parse)?,
            numa: setting(&variable, "ALLOC_CPU_NUMA", NUMA, NumaPolicy::parse)?,
            ..Self::default()
        })
    }

    /// The most physical memory that may be created, in bytes. The default is the machine's memory, or the limit of
    /// the control group where one is set.
    ///
    /// The kernel promises more memory than it has and ends programs that take it at its word; the capacity is what
    /// turns that into [`AllocError::OutOfMemory`](alloc_core::AllocError::OutOfMemory).
    #[must_use]
    pub fn capacity_bytes(mut self, bytes: u64) -> Self {
        self.capacity_bytes = Some(bytes);
        self
    }

    /// Which pages to wish for.
    #[must_use]
    pub fn huge_pages(mut self, huge_pages: HugePages) -> Self {
        self.huge_pages = huge_pages;
        self
    }

    /// When pages are taken from the system.
    #[must_use]
    pub fn populate(mut self, populate: Populate) -> Self {
        self.populate = populate;
        self
    }

    /// Which memory nodes the pages come from.
    #[must_use]
    pub fn numa(mut self, numa: NumaPolicy) -> Self {
        self.numa = numa;
        self
    }

    /// Who is told when a wish can't be fulfilled.
    #[must_use]
    pub fn event_hook(mut self, hook: Arc<dyn EventHook>) -> Self {
        self.hook = Some(hook);
        self
    }
}

fn setting<T: Default>(
    variable: impl Fn(&str) -> Option<String>,
    name: &'static str,
    expected: &'static str,
    parse: impl Fn(&str) -> Option<T>,
) -> Result<T, ConfigError> {
    let Some(value) = variable(name) else { return Ok(T::default()) };
    parse(value.trim()).ok_or(ConfigError::Environment { variable: name, value, expected })
}

/// Which pages to wish for. A wish that the system does not grant is served with ordinary pages, and
/// [`HostProvider::page_backing`](crate::HostProvider::page_backing) says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HugePages {
    /// Ordinary pages (4 KiB on x86-64).
    Off,
    /// Huge pages where the kernel makes them of ordinary memory.
    ///
    /// With [`Populate::Lazy`] it does so only if `/sys/kernel/mm/transparent_hugepage/shmem_enabled` allows it, which
    /// by default it does not. With the other choices of [`Populate`] the pages are made huge when they are created
    /// (`MADV_COLLAPSE`, Linux 6.1), which works under every setting but `deny`.
    #[default]
    Transparent,
    /// 2 MiB pages from the system's own pool (`/proc/sys/vm/nr_hugepages`), taken when they are created.
    Hugetlb,
}

impl HugePages {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "off" => Some(Self::Off),
            "transparent" => Some(Self::Transparent),
            "hugetlb" => Some(Self::Hugetlb),
            _ => None,
        }
    }
}

/// When pages are taken from the system.
///
/// What 2 MiB cost on a 2-core EPYC under Linux 6.18, in microseconds; a second write of the same memory costs 90:
///
/// | pages | creation | first write | first write after a move |
/// |---|---|---|---|
/// | ordinary, lazy | 0.2 | 1,620 | 900 |
/// | ordinary, on creation | 440 | 970 | 900 |
/// | ordinary, on creation and mapping | 430, then 750 for the mapping | 90 | 90, and 200 for the mapping |
/// | transparent huge, on creation | 125 | 90 | 90 |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Populate {
    /// When the program first touches them. Memory that is never touched costs nothing; if the system has none left
    /// at that moment, it ends some program.
    #[default]
    Lazy,
    /// When physical memory is created. Want of memory is an error then, not a signal at first touch.
    OnCreate,
    /// As [`Populate::OnCreate`], and every mapping has its page tables filled in at once: no page fault ever.
    OnMap,
}

impl Populate {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "lazy" => Some(Self::Lazy),
            "create" => Some(Self::OnCreate),
            "map" => Some(Self::OnMap),
            _ => None,
        }
    }
}

/// Which memory nodes pages come from, as `mbind` takes it. Nodes are numbered as in `/sys/devices/system/node`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NumaPolicy {
    /// As the process's own policy says: usually the node of the thread that touches a page first.
    #[default]
    Default,
    /// From these nodes only.
    Bind(Vec<u32>),
    /// From these nodes in turn.
    Interleave(Vec<u32>),
    /// From this node while it has memory.
    Preferred(u32),
}

impl NumaPolicy {
    fn parse(text: &str) -> Option<Self> {
        let list = |nodes: &str| nodes.split(',').map(|node| node.trim().parse().ok()).collect::<Option<Vec<u32>>>();
        match text.split_once(':') {
            None => (text == "default").then_some(Self::Default),
            Some(("bind", nodes)) => list(nodes).map(Self::Bind),
            Some(("interleave", nodes)) => list(nodes).map(Self::Interleave),
            Some(("preferred", node)) => node.trim().parse().ok().map(Self::Preferred),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read() {
        let options = HostOptions::from_variables(|name| match name {
            "ALLOC_CPU_HUGE_PAGES" => Some("hugetlb".into()),
            "ALLOC_CPU_POPULATE" => Some(" map ".into()),
            "ALLOC_CPU_NUMA" => Some("interleave:0, 3".into()),
            _ => None,
        })
        .unwrap();
        assert_eq!((options.huge_pages, options.populate), (HugePages::Hugetlb, Populate::OnMap));
        assert_eq!(options.numa, NumaPolicy::Interleave(vec![0, 3]));
        let options = HostOptions::from_variables(|_| None).unwrap();
        assert_eq!((options.huge_pages, options.populate), (HugePages::Transparent, Populate::Lazy));
        assert_eq!(options.numa, NumaPolicy::Default);
    }

    #[test]
    fn nonsense_is_named() {
        for (name, nonsense) in [
            ("ALLOC_CPU_HUGE_PAGES", "yes"),
            ("ALLOC_CPU_POPULATE", ""),
            ("ALLOC_CPU_NUMA", "bind"),
            ("ALLOC_CPU_NUMA", "bind:0,x"),
            ("ALLOC_CPU_NUMA", "near:0"),
        ] {
            let error = HostOptions::from_variables(|asked| (asked == name).then(|| nonsense.into())).unwrap_err();
            let ConfigError::Environment { variable, value, expected } = error else { panic!("{error:?}") };
            assert_eq!((variable, value.as_str()), (name, nonsense));
            // What the error proposes is understood.
            let (_, values) = expected.split_once(": ").unwrap();
            let first = values.split([' ', ',']).next().map(str::to_owned);
            assert!(HostOptions::from_variables(|asked| first.clone().filter(|_| asked == name)).is_ok(), "{expected}");
        }
    }
}
