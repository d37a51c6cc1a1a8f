//! Random sizes made of whole numbers alone, so that programs in other languages draw the same.

use crate::workload::Random;

/// The generator of one sequence. Numbers of sequences that follow one another give states that are far apart.
pub fn generator(sequence: u64) -> Random {
    Random::new(sequence.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The coefficient of the square in the approximation of a power of two, in 32 binary places: 0.3435.
const SQUARE: u64 = 0x57ef_9db2;

/// A size from `low` up to, not including, `low` times two to the `doublings`, whose logarithm is distributed evenly.
///
/// The exponent has 32 binary places, and two to the power of its fraction `f` is taken as `1 + (1 - s) f + s f f` with
/// `s` = 0.3435, which is off by less than 0.4%. `low` times that power is less than two to the 31.
pub fn log_uniform(random: &mut Random, low: u64, doublings: u32) -> u64 {
    let exponent = (random.next_u64() >> 32) * u64::from(doublings);
    let (whole, fraction) = (exponent >> 32, exponent & 0xffff_ffff);
    let square = (fraction * fraction) >> 32;
    let linear = (1 << 32) - SQUARE;
    let power = (1 << 32) + ((fraction * linear) >> 32) + ((square * SQUARE) >> 32);
    ((low << whole) * power) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_even_in_their_logarithm() {
        let mut random = generator(1);
        let mut octaves = [0_u32; 15];
        for _ in 0..150_000 {
            let size = log_uniform(&mut random, 512, 15);
            assert!((512..16 << 20).contains(&size), "{size}");
            octaves[(size / 512).ilog2() as usize] += 1;
        }
        assert!(octaves.iter().all(|&count| (9_500..10_500).contains(&count)), "{octaves:?}");
    }

    #[test]
    fn the_power_of_two_is_nearly_one() {
        // 2,048 draws cover the fractions of one doubling well enough to see the largest error.
        let mut random = generator(2);
        for _ in 0..2048 {
            let exponent = (random.clone().next_u64() >> 32) as f64 / (1_u64 << 32) as f64;
            let size = log_uniform(&mut random, 1 << 24, 1) as f64;
            let error = size / (exponent.exp2() * f64::from(1 << 24)) - 1.0;
            assert!(error.abs() < 0.004, "{exponent}: {error}");
        }
    }
}
