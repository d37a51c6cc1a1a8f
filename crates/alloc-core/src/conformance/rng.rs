//! The suite's own random numbers, the same on every machine for one seed.

/// A xorshift64* generator (Marsaglia 2003, with Vigna's multiplier).
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(scramble(seed) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number below `limit`; 0 if `limit` is 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        if limit == 0 { 0 } else { (self.next() >> 1) % limit }
    }

    pub(super) fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// A number from 1 to `most`, each power of two as likely as the next.
    pub(super) fn log_uniform(&mut self, most: u64) -> u64 {
        let bits = u64::from(most.max(1).ilog2()) + 1;
        let base = 1 << self.below(bits);
        (base + self.below(base)).min(most.max(1))
    }

    /// A size that programs ask for, or that breaks allocators: at and beside powers of two more often than not.
    pub(super) fn size(&mut self, most: u64) -> u64 {
        match self.below(8) {
            0 => self.log_uniform(most).next_power_of_two().min(most),
            1 => (self.log_uniform(most).next_power_of_two() - 1).clamp(1, most),
            2 => (self.log_uniform(most).next_power_of_two() + 1).min(most),
            3 => self.log_uniform(1 << 12).min(most),
            _ => self.log_uniform(most),
        }
    }
}

/// The mix of SplitMix64 (Steele, Lea and Flood 2014): neighbours give unrelated numbers.
pub(super) fn scramble(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_in_bounds_and_reach_both_ends() {
        let mut rng = Rng::new(7);
        let sizes: Vec<u64> = (0..20_000).map(|_| rng.size(1 << 20)).collect();
        assert!(sizes.iter().all(|size| (1..=1 << 20).contains(size)));
        assert!(sizes.contains(&1) && sizes.contains(&(1 << 20)));
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let (mut one, mut same, mut other) = (Rng::new(1), Rng::new(1), Rng::new(2));
        let first: Vec<u64> = (0..10).map(|_| one.next()).collect();
        assert_eq!(first, (0..10).map(|_| same.next()).collect::<Vec<_>>());
        assert_ne!(first, (0..10).map(|_| other.next()).collect::<Vec<_>>());
    }
}
