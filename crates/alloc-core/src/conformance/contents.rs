//! What the suite writes into blocks and expects to read again.

use std::ops::Range;

use super::rng::scramble;

/// Blocks up to this many bytes are written whole, larger ones in windows.
const WHOLE: u64 = 8 << 10;
/// The windows at both ends of a large block, in bytes.
const END: u64 = 2 << 10;
/// The windows in between, in bytes.
const MIDDLE: u64 = 64;
/// How far apart they lie: closer than pages of a device, so that each page is seen.
const STRIDE: u64 = 512 << 10;
/// The most windows in between, lest a huge block takes for ever.
const MOST: u64 = 64;

/// The parts of a block of `size` bytes that are written and read. All but the last byte range start and end at
/// multiples of eight.
pub(super) fn windows(size: u64) -> Vec<Range<u64>> {
    if size == 0 {
        return Vec::new();
    }
    if size <= WHOLE {
        return vec![Range { start: 0, end: size }];
    }
    let tail = (size - END) & !7;
    let stride = STRIDE.max((size / MOST) & !7);
    let middle =
        (1..).map(|n| n * stride).take_while(|start| start + MIDDLE <= tail).map(|start| start..start + MIDDLE);
    std::iter::once(0..END).chain(middle).chain(std::iter::once(tail..size)).collect()
}

/// The bytes that belong in `window` of the block with this tag.
pub(super) fn pattern(tag: u64, window: &Range<u64>) -> Vec<u8> {
    let words = window.start / 8..window.end.div_ceil(8);
    let mut bytes = Vec::with_capacity((words.end - words.start) as usize * 8);
    for word in words {
        bytes.extend_from_slice(&scramble(tag ^ word.wrapping_mul(0x1_0000_0001)).to_le_bytes());
    }
    bytes.truncate((window.end - window.start) as usize);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_ordered_aligned_and_reach_both_ends() {
        for size in [1, 7, 8, 4097, WHOLE, WHOLE + 1, STRIDE + 3, (5 << 20) + 1, 1 << 33] {
            let windows = windows(size);
            assert!(windows.len() <= MOST as usize + 2, "{size}");
            assert_eq!((windows[0].start, windows[windows.len() - 1].end), (0, size));
            assert!(windows.iter().all(|window| window.start < window.end && window.start % 8 == 0), "{windows:?}");
            assert!(windows.windows(2).all(|pair| pair[0].end <= pair[1].start), "{windows:?}");
        }
    }

    #[test]
    fn patterns_differ_by_tag_and_place() {
        assert_eq!(pattern(1, &(0..13)).len(), 13);
        assert_eq!(pattern(1, &(0..64))[16..], pattern(1, &(16..64)));
        assert_ne!(pattern(1, &(0..8)), pattern(2, &(0..8)));
        assert_ne!(pattern(1, &(0..8)), pattern(1, &(8..16)));
    }
}
