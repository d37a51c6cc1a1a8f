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
    /// The pool and the epoch that the others were last looked through for, if only such were added since.
    swept: Option<(u64, u64)>,
}

impl Caches {
    pub(crate) const fn new() -> Self {
        Self { latest: None, others: Vec::new(), places: FxHashMap::with_hasher(FxBuildHasher), swept: None }
    }

    /// Adds one, which is the latest.
    pub(crate) fn add(&mut self, kept: Box<Kept>) {
        self.swept = self.swept.filter(|&swept| swept == (kept.pool, kept.key.epoch));
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

    /// Takes out what is of other epochs of the pool than this, or of a pool that is gone. Many are looked through once for each epoch,
    /// as a program with many streams adds a cache for each of them then.
    pub(crate) fn sweep(&mut self, pool: u64, epoch: u64) -> Vec<Box<Kept>> {
        if self.others.len() > FEW && self.swept == Some((pool, epoch)) {
            return Vec::new();
        }
        self.swept = Some((pool, epoch));
        self.take(|kept| (kept.pool == pool && kept.key.epoch != epoch) || kept.is_homeless())
    }

    /// Takes out the caches that match.
    pub(crate) fn take(&mut self, matches: impl Fn(&Kept) -> bool) -> Vec<Box<Kept>> {
        self.places.clear();
        let latest = self.latest.take_if(|latest| matches(latest));
        latest.into_iter().chain(self.others.extract_if(.., |other| matches(other))).collect()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::{Arc, Weak};

    use alloc_core::Stream;

    use super::*;
    use crate::cache::{Batch, CacheCounters, CacheHome, Fresh};
    use crate::streams::Seat;

    #[derive(Debug)]
    struct Home;

    impl CacheHome for Home {
        fn take_back(&self, batch: &mut Batch) {
            batch.clear();
        }

        fn forget(&self, _: Seat, _: &Arc<CacheCounters>) {}
    }

    fn kept((pool, epoch): (u64, u64), stream: u64, home: &Arc<Home>) -> Box<Kept> {
        let fresh = Fresh { seat: Seat { tag: 0, arena: 0 }, byte_bound: 0, counters: Arc::default() };
        let home: Weak<dyn CacheHome> = Arc::downgrade(home) as Weak<dyn CacheHome>;
        Box::new(Kept::new(pool, CacheKey { epoch, stream: Stream::from_raw(stream) }, home, fresh))
    }

    #[test]
    fn what_is_of_another_epoch_is_taken_out_however_many_there_are() {
        let (homes, mut caches, mut state) = ([(); 2].map(|()| Arc::new(Home)), Caches::new(), 1_u64);
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        // By pool.
        let (mut epochs, mut left, mut most) = ([1, 2], Vec::new(), 0);
        for step in 0..2000 {
            let pool = random(2);
            if random(200) == 0 {
                epochs[pool as usize] = 10 + step;
            }
            let now = epochs[pool as usize];
            left.retain(|&(of, epoch)| of != pool || epoch == now);
            drop(caches.sweep(pool, now));
            let mut found: Vec<_> =
                caches.latest.iter().chain(&caches.others).map(|kept| (kept.pool, kept.key.epoch)).collect();
            found.sort_unstable();
            assert_eq!(found, left, "in step {step}");
            // Now and then the one added is of an earlier epoch: the epoch can move on while room is made for it.
            let epoch = now - u64::from(random(100) == 0);
            caches.add(kept((pool, epoch), step, &homes[pool as usize]));
            left.push((pool, epoch));
            left.sort_unstable();
            most = most.max(left.len());
        }
        assert!(most > 2 * FEW);
    }

    #[test]
    fn many_are_looked_through_once_for_each_epoch() {
        let (home, mut caches) = (Arc::new(Home), Caches::new());
        for stream in 0..=FEW as u64 + 1 {
            assert!(caches.sweep(1, 1).is_empty());
            caches.add(kept((1, 1), stream, &home));
        }
        drop(home);
        assert!(caches.sweep(1, 1).is_empty(), "nobody looks");
        assert_eq!(caches.sweep(1, 2).len(), FEW + 2, "their pool is gone");
    }
}
