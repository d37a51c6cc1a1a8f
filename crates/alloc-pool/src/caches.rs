//! The caches that one thread has, of pools and streams.

use rustc_hash::{FxBuildHasher, FxHashMap};

use crate::cache::{CacheKey, CachedBlock, Kept};

/// Among so many others one is found by looking at each of them, which takes less time than a table does.
const FEW: usize = 64;

/// The caches of a thread: the one used last, and the others.
#[derive(Debug)]
pub(crate) struct Caches {
    pub(crate) latest: Option<Box<Kept>>,
    others: Vec<Box<Kept>>,
    /// The place of each of the others if they are many. Empty until one of them is looked for.
    places: FxHashMap<CacheKey, usize>,
}

impl Caches {
    pub(crate) const fn new() -> Self {
        Self { latest: None, others: Vec::new(), places: FxHashMap::with_hasher(FxBuildHasher) }
    }

    /// Adds one, which is the latest.
    pub(crate) fn add(&mut self, kept: Box<Kept>) {
        let Some(before) = self.latest.replace(kept) else { return };
        if !self.places.is_empty() {
            self.places.insert(before.key, self.others.len());
        }
        self.others.push(before);
    }

    /// Makes one of the others the latest; `false` if none has this key.
    #[inline]
    pub(crate) fn make_latest(&mut self, key: CacheKey) -> bool {
        if self.others.len() > FEW {
            return self.make_latest_of_many(key);
        }
        let Some(place) = self.others.iter().position(|other| other.key == key) else { return false };
        match &mut self.latest {
            Some(latest) => std::mem::swap(latest, &mut self.others[place]),
            None => self.latest = Some(self.others.remove(place)),
        }
        true
    }

    #[cold]
    #[inline(never)]
    fn make_latest_of_many(&mut self, key: CacheKey) -> bool {
        if self.places.is_empty() {
            self.places.extend(self.others.iter().zip(0..).map(|(other, place)| (other.key, place)));
        }
        let Some(place) = self.places.remove(&key) else { return false };
        match &mut self.latest {
            Some(latest) => {
                self.places.insert(latest.key, place);
                std::mem::swap(latest, &mut self.others[place]);
            }
            None => {
                self.places.clear();
                self.latest = Some(self.others.swap_remove(place));
            }
        }
        true
    }

    /// Visits the blocks that the thread keeps of the pool of this number.
    pub(crate) fn for_each_of(&self, pool: u64, mut visit: impl FnMut(CachedBlock)) {
        let all = self.latest.iter().chain(&self.others);
        all.filter(|kept| kept.pool == pool).for_each(|kept| kept.cache.for_each(&mut visit));
    }

    /// Takes out the caches that match.
    pub(crate) fn take(&mut self, matches: impl Fn(&Kept) -> bool) -> Vec<Box<Kept>> {
        self.places.clear();
        let latest = self.latest.take_if(|latest| matches(latest));
        latest.into_iter().chain(self.others.extract_if(.., |other| matches(other))).collect()
    }
}
