//! The stacks that blocks come from, each kept once.

use std::backtrace::Backtrace;
use std::sync::Arc;

use dashmap::DashMap;

/// Stacks that no living block has are let go once there are this many, and as many more as there are living blocks: to look
/// through all of them then costs no more than to note them did.
const SPARE: usize = 1024;

/// Backtraces by what their calls return to, the nearest first. A backtrace can't be compared before it is resolved to names,
/// which takes some 50 us and 10 KB for good: too much for each of a hundred thousand blocks.
#[derive(Debug, Default)]
pub(super) struct Stacks(DashMap<Box<[usize]>, Arc<Backtrace>>);

impl Stacks {
    /// The backtrace of the calling thread; the same one each time for the same stack. `living` is how many blocks there are.
    pub(super) fn capture(&self, living: impl Fn() -> usize) -> Arc<Backtrace> {
        let mut addresses = Vec::with_capacity(64);
        backtrace::trace(|frame| {
            addresses.push(frame.ip().addr());
            true
        });
        if let Some(known) = self.0.get(&*addresses) {
            return Arc::clone(&known);
        }
        // A program that recurses, or interprets, has ever new ones.
        if self.0.len() >= 2 * living() + SPARE {
            self.0.retain(|_, backtrace| Arc::strong_count(backtrace) > 1);
        }
        // Not in a closure of the entry, whose frames would be the first.
        let new = Arc::new(Backtrace::force_capture());
        Arc::clone(&self.0.entry(addresses.into_boxed_slice()).or_insert(new))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stack of its own for each depth.
    #[inline(never)]
    fn capture(stacks: &Stacks, depth: usize, living: usize) -> Arc<Backtrace> {
        if depth == 0 {
            return stacks.capture(|| living);
        }
        std::hint::black_box(capture(stacks, depth - 1, living))
    }

    #[test]
    fn a_stack_is_kept_once_also_if_threads_come_at_once() {
        let stacks = Stacks::default();
        let here = || (0..3).map(|depth| capture(&stacks, depth, 0)).collect::<Vec<_>>();
        let several: Vec<_> = (0..2).map(|_| here()).collect();
        for depth in 0..3 {
            assert!(Arc::ptr_eq(&several[0][depth], &several[1][depth]), "{depth}");
            assert!(!Arc::ptr_eq(&several[0][depth], &several[0][(depth + 1) % 3]), "{depth}");
        }
        assert_eq!(stacks.0.len(), 3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..100).for_each(|round| drop(capture(&stacks, round % 10, 0))));
            }
        });
        // Those of this thread and ten of the others, which begin alike.
        assert_eq!(stacks.0.len(), 13);
    }

    #[test]
    fn stacks_that_no_block_has_are_forgotten() {
        let stacks = Stacks::default();
        let kept = capture(&stacks, 0, 1);
        for depth in 1..=SPARE + 1 {
            // As many stacks as that, and not as deep ones.
            stacks.0.insert(vec![depth].into(), Arc::new(Backtrace::disabled()));
        }
        assert_eq!(stacks.0.len(), SPARE + 2);
        let other = capture(&stacks, 1, 1);
        assert_eq!(stacks.0.len(), 2, "what is kept, and the new one");
        assert_eq!((Arc::strong_count(&kept), Arc::strong_count(&other)), (2, 2), "by the table, and here");
    }
}
