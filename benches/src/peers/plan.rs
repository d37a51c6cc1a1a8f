//! What each workload does, drawn before any clock starts: which block is replaced, and by which size.

use super::draw::{generator, log_uniform};
use crate::workload::Churn;

/// Churn: 2,000 blocks of 512 B to 16 MiB.
pub fn churn() -> Churn {
    replacements(1, 2000, 100_000, 512, 15)
}

/// Threads: 200 blocks of 512 B to 1 MiB on the thread of this number.
pub fn of_thread(number: u32) -> Churn {
    replacements(100 + u64::from(number), 200, 50_000, 512, 11)
}

/// Larson: 1,000 blocks of 512 B to 1 MiB in the array of this number.
pub fn of_array(number: u32) -> Churn {
    replacements(300 + u64::from(number), 1000, 50_000, 512, 11)
}

/// Producer/consumer: what the producer of this number allocates, 512 B to 1 MiB.
pub fn of_producer(number: u32) -> Vec<u64> {
    sizes(200 + u64::from(number))
}

/// Xmalloc: what the producer of this number allocates, 512 B to 1 MiB.
pub fn of_xmalloc_producer(number: u32) -> Vec<u64> {
    sizes(400 + u64::from(number))
}

fn replacements(sequence: u64, live: u32, steps: usize, low: u64, doublings: u32) -> Churn {
    let mut random = generator(sequence);
    let initial = (0..live).map(|_| log_uniform(&mut random, low, doublings)).collect();
    let steps = (0..steps).map(|_| (random.below(live), log_uniform(&mut random, low, doublings))).collect();
    Churn { initial, steps }
}

fn sizes(sequence: u64) -> Vec<u64> {
    let mut random = generator(sequence);
    (0..50_000).map(|_| log_uniform(&mut random, 512, 11)).collect()
}

/// The most bytes that live at one time while the steps of a churn are done once.
pub fn peak_of(churn: &Churn) -> u64 {
    let mut sizes = churn.initial.clone();
    let mut live: u64 = sizes.iter().sum();
    let mut peak = live;
    for &(at, bytes) in &churn.steps {
        let old = std::mem::replace(&mut sizes[at as usize], bytes);
        live = live - old + bytes;
        peak = peak.max(live);
    }
    peak
}

/// One operation of [`RandomAllocations`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where the block is kept.
    pub slot: u32,
    /// How many bytes are allocated; 0 for the release of the block in the slot.
    pub bytes: u32,
}

/// Allocations of random sizes and releases of random blocks.
///
/// After the bench of random allocations that comes with RMM: sizes are distributed evenly from 1 byte to a bound; 73
/// of 100 operations allocate as long as what lives stays within a cap; all others release a block drawn from those
/// that live. When all allocations are made, what still lives is released in random order too.
#[derive(Clone, Debug)]
pub struct RandomAllocations {
    /// The operations.
    pub steps: Vec<Step>,
    /// How many slots they need.
    pub slots: u32,
    /// The most bytes that live at one time.
    pub peak_live: u64,
}

impl RandomAllocations {
    /// The percentage of allocations while the cap allows them.
    pub const ALLOCATIONS_OF_100: u32 = 73;
    /// The most bytes that may live at one time.
    pub const CAP: u64 = 16_000 << 20;

    /// So many allocations of up to `most_mib` MiB each.
    pub fn new(most_mib: u32, allocations: u32) -> Self {
        let mut random = generator(500 + u64::from(most_mib));
        let mut plan = Self { steps: Vec::with_capacity(2 * allocations as usize), slots: 0, peak_live: 0 };
        let mut living: Vec<Step> = Vec::new();
        let mut free: Vec<u32> = Vec::new();
        let (mut made, mut live) = (0, 0_u64);
        while made < allocations || !living.is_empty() {
            let bytes = 1 + random.below(most_mib << 20);
            let wanted = random.below(100) < Self::ALLOCATIONS_OF_100;
            let fits = live + u64::from(bytes) <= Self::CAP;
            if made < allocations && fits && (wanted || living.is_empty()) {
                let slot = free.pop().unwrap_or_else(|| {
                    plan.slots += 1;
                    plan.slots - 1
                });
                let step = Step { slot, bytes };
                living.push(step);
                plan.steps.push(step);
                live += u64::from(bytes);
                plan.peak_live = plan.peak_live.max(live);
                made += 1;
            } else {
                let block = living.swap_remove(random.below(living.len() as u32) as usize);
                free.push(block.slot);
                plan.steps.push(Step { slot: block.slot, bytes: 0 });
                live -= u64::from(block.bytes);
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_the_same_each_time_and_different_for_each_number() {
        assert_eq!(churn().steps, churn().steps);
        assert_ne!(of_thread(0).initial, of_thread(1).initial);
        assert_ne!(of_array(0).initial[..200], of_thread(0).initial[..]);
        assert_ne!(of_producer(0), of_producer(1));
        assert_ne!(of_producer(0), of_xmalloc_producer(0));
    }

    #[test]
    fn a_churn_keeps_its_number_of_blocks_and_its_bounds() {
        let churn = churn();
        assert_eq!((churn.initial.len(), churn.steps.len()), (2000, 100_000));
        assert!(churn.steps.iter().all(|&(at, bytes)| at < 2000 && (512..16 << 20).contains(&bytes)));
        assert!(peak_of(&churn) >= churn.initial.iter().sum());
        assert_eq!(peak_of(&Churn { initial: vec![3, 4], steps: vec![(0, 10), (1, 1), (0, 2)] }), 14);
    }

    #[test]
    fn random_allocations_stay_within_the_cap_and_leave_nothing() {
        for most_mib in [1, 1024] {
            let plan = RandomAllocations::new(most_mib, 20_000);
            assert_eq!(plan.steps.len(), 40_000);
            let mut slots = vec![0_u64; plan.slots as usize];
            let (mut live, mut peak) = (0_u64, 0);
            for step in &plan.steps {
                let slot = &mut slots[step.slot as usize];
                assert_eq!(*slot == 0, step.bytes > 0, "a slot holds one block at a time");
                live = live - *slot + u64::from(step.bytes);
                peak = peak.max(live);
                *slot = u64::from(step.bytes);
            }
            assert_eq!((live, peak), (0, plan.peak_live));
            assert!(peak <= RandomAllocations::CAP);
            let allocations = plan.steps[..10_000].iter().filter(|step| step.bytes > 0).count();
            if most_mib == 1 {
                assert!((7_100..7_500).contains(&allocations), "{allocations}");
            }
        }
    }
}
