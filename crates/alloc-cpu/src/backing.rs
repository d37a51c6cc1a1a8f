//! Which pages a provider asked for and which it got.

use thiserror::Error;

use crate::HugePages;

/// Which pages serve a provider's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PageBacking {
    /// What the program wished for.
    pub requested: HugePages,
    /// What it gets. From the first piece of memory on that had to do with ordinary pages this says so, although
    /// others may be made of huge ones.
    pub actual: PageKind,
    /// Why it does not get what it wished for; `None` if it does.
    pub fallback: Option<FallbackReason>,
}

/// A kind of page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PageKind {
    /// The processor's smallest pages.
    Base,
    /// Huge pages that the kernel makes of ordinary memory, as far as it finds whole ones.
    TransparentHuge,
    /// Huge pages from the system's own pool.
    Hugetlb,
}

impl PageKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Base => "ordinary pages",
            Self::TransparentHuge => "transparent huge pages",
            Self::Hugetlb => "hugetlb pages",
        }
    }
}

/// Why a wish for huge pages is not fulfilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
#[non_exhaustive]
pub enum FallbackReason {
    /// The system's setting for shared memory forbids them to pages that are touched lazily.
    #[error("/sys/kernel/mm/transparent_hugepage/shmem_enabled allows no huge pages at first touch")]
    SharedMemorySetting,
    /// The kernel would not make huge pages: too old, or no whole one is free.
    #[error("{call} made no huge page (errno {errno})")]
    KernelRefused {
        /// The call.
        call: &'static str,
        /// Its answer.
        errno: i32,
    },
    /// Pages made huge at creation don't follow a memory policy, so none are made where one is set.
    #[error("huge pages made at creation would not follow the memory policy")]
    MemoryPolicy,
    /// The system's pool has no free page, or there is none.
    #[error("no free hugetlb page (errno {errno})")]
    NoHugetlbPage {
        /// Its answer.
        errno: i32,
    },
}

/// What the kernel does with shared memory that asks for transparent huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SharedHugePages {
    /// It uses them unasked.
    Unasked,
    /// It uses them where `madvise` asked.
    Advised,
    /// It uses them only when told to collapse a range.
    CollapseOnly,
    /// It never uses them.
    Denied,
}

impl SharedHugePages {
    pub(crate) fn of_this_system() -> Self {
        let read = |path| std::fs::read_to_string(path).ok();
        Self::from_settings(
            read("/sys/kernel/mm/transparent_hugepage/shmem_enabled").as_deref(),
            read("/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/shmem_enabled").as_deref(),
        )
    }

    /// From the two settings as they are in the files; newer kernels have one by size beside the general one.
    fn from_settings(general: Option<&str>, by_size: Option<&str>) -> Self {
        let general = match general.and_then(chosen) {
            Some("deny") | None => return Self::Denied,
            Some("force") => return Self::Unasked,
            Some(other) => other,
        };
        match by_size.and_then(chosen) {
            None | Some("inherit") => Self::from_word(general),
            Some(word) => Self::from_word(word),
        }
    }

    fn from_word(word: &str) -> Self {
        match word {
            "always" | "within_size" => Self::Unasked,
            "advise" => Self::Advised,
            _ => Self::CollapseOnly,
        }
    }
}

/// The word in brackets of a setting such as `always [never]`.
fn chosen(setting: &str) -> Option<&str> {
    setting.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_the_kernel_means_them() {
        let general = |word: &str| format!("always within_size {word} deny");
        let read = |general: &str, by_size: Option<&str>| SharedHugePages::from_settings(Some(general), by_size);
        assert_eq!(read(&general("[never]"), None), SharedHugePages::CollapseOnly);
        assert_eq!(read(&general("[advise]"), Some("always [inherit] never")), SharedHugePages::Advised);
        assert_eq!(read(&general("[never]"), Some("[always] inherit")), SharedHugePages::Unasked);
        assert_eq!(read(&general("[always]"), Some("inherit [never]")), SharedHugePages::CollapseOnly);
        assert_eq!(read(&general("[deny]"), Some("[always] inherit")), SharedHugePages::Denied);
        assert_eq!(read(&general("[force]"), Some("[never]")), SharedHugePages::Unasked);
        assert_eq!(SharedHugePages::from_settings(None, None), SharedHugePages::Denied);
    }
}
