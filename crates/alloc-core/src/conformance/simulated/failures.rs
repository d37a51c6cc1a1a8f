//! Which calls fail.

use std::collections::BTreeMap;

use crate::ProviderErrorKind;

/// Counts calls and says which of them are to fail.
#[derive(Debug, Default)]
pub(super) struct Failures {
    calls: u64,
    injected: u64,
    by_index: BTreeMap<u64, ProviderErrorKind>,
    always: Option<ProviderErrorKind>,
}

impl Failures {
    pub(super) fn calls(&self) -> u64 {
        self.calls
    }

    pub(super) fn injected(&self) -> u64 {
        self.injected
    }

    pub(super) fn fail_call(&mut self, n: u64, kind: ProviderErrorKind) {
        self.by_index.insert(self.calls.saturating_add(n), kind);
    }

    pub(super) fn fail_always(&mut self, kind: Option<ProviderErrorKind>) {
        self.always = kind;
    }

    pub(super) fn cancel(&mut self) {
        self.by_index.clear();
        self.always = None;
    }

    /// Counts one call; the kind that it is to fail with.
    pub(super) fn next(&mut self) -> Option<ProviderErrorKind> {
        self.calls += 1;
        let kind = self.by_index.remove(&self.calls).or(self.always);
        self.injected += u64::from(kind.is_some());
        kind
    }
}
