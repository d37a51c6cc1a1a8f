//! Sizes: everything is placed in units of 512 bytes, and small blocks in size classes.
//!
//! Classes are an eighth of a doubling apart (12.5%), as in jemalloc. Class 0 is for blocks of zero bytes, which get
//! an address and no memory.

/// log2 of the unit in bytes.
pub(crate) const UNIT_SHIFT: u32 = 9;
/// The unit of placement in bytes.
pub(crate) const UNIT: u64 = 1 << UNIT_SHIFT;
/// The largest small block in bytes; larger ones are placed one by one.
pub(crate) const SMALL_MAX: u64 = 64 << 10;
/// Number of size classes, the class of zero bytes included.
pub(crate) const CLASSES: usize = 41;
/// The size of the slab that a class aims at, in units.
const SLAB_UNITS: u32 = 256;
const SLOTS_MIN: u32 = 4;
const SLOTS_MAX: u32 = 64;

/// Bytes in units, rounded up. `None` past what 32 bits of units hold (2 TiB).
pub(crate) fn units_of(bytes: u64) -> Option<u32> {
    u32::try_from(bytes.checked_add(UNIT - 1)? >> UNIT_SHIFT).ok()
}

/// The class of a small block.
#[inline(always)]
pub(crate) fn class_of(bytes: u64) -> usize {
    debug_assert!(bytes <= SMALL_MAX);
    // A look-up, as to compute it takes a branch that can't be guessed where sizes come in no order.
    usize::from(CLASS_OF[(bytes.wrapping_add(UNIT - 1) >> UNIT_SHIFT) as usize & (CLASS_OF.len() - 1)])
}

/// Class by units. As many as a mask leaves; those past the largest class are its.
const CLASS_OF: [u8; 256] = {
    let mut classes = [CLASSES as u8 - 1; 256];
    let mut units = 0;
    while units <= (SMALL_MAX >> UNIT_SHIFT) as usize {
        classes[units] = class_of_units(units as u64) as u8;
        units += 1;
    }
    classes
};

const fn class_of_units(units: u64) -> usize {
    if units <= 16 {
        return units as usize;
    }
    // Between 2^k and 2^(k+1) units there are eight classes: `units` rounded up to 2^(k-3).
    let k = 63 - (units - 1).leading_zeros();
    let step = k - 3;
    let eighth = ((units - 1) >> step) - 8;
    (9 + (k - 3) * 8) as usize + eighth as usize
}

/// The shape of a class, looked up on every call: in bytes as well, so that nothing is left to compute.
#[derive(Clone, Copy, Debug)]
struct Shape {
    bytes: u32,
    stride: u32,
    units: u32,
    slots: u32,
}

// No static: the optimiser takes what it reads from a static of another crate for a variable.
const SHAPES: [Shape; CLASSES] = {
    let mut shapes = [Shape { bytes: 0, stride: UNIT as u32, units: 0, slots: SLOTS_MAX }; CLASSES];
    let mut class = 1;
    while class < CLASSES {
        let units = units_of_class(class as u32);
        let fitting = SLAB_UNITS / units;
        let slots = if fitting < SLOTS_MIN {
            SLOTS_MIN
        } else if fitting > SLOTS_MAX {
            SLOTS_MAX
        } else {
            fitting
        };
        let bytes = units << UNIT_SHIFT;
        shapes[class] = Shape { bytes, stride: bytes, units, slots };
        class += 1;
    }
    shapes
};

const fn units_of_class(class: u32) -> u32 {
    if class <= 16 {
        return class;
    }
    let k = (class - 9) / 8 + 3;
    (9 + (class - 9) % 8) << (k - 3)
}

/// The units of a block of this class.
#[inline]
pub(crate) fn class_units(class: usize) -> u32 {
    SHAPES[class].units
}

/// The bytes of a block of this class.
#[inline]
pub(crate) fn class_bytes(class: usize) -> u64 {
    u64::from(SHAPES[class].bytes)
}

/// The distance between blocks of this class in bytes; those of zero bytes take addresses, though no memory.
#[inline]
pub(crate) fn class_stride(class: usize) -> u64 {
    u64::from(SHAPES[class].stride)
}

/// How many blocks a slab of this class holds: 8 to 64.
#[inline]
pub(crate) fn class_slots(class: usize) -> u32 {
    SHAPES[class].slots
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_small_size_has_the_smallest_class_that_holds_it() {
        assert_eq!(class_of(0), 0);
        for bytes in 1..=SMALL_MAX {
            let class = class_of(bytes);
            assert!(class < CLASSES);
            assert!(u64::from(class_units(class)) * UNIT >= bytes, "{bytes}");
            assert!(u64::from(class_units(class - 1)) * UNIT < bytes, "{bytes} fits the class below");
        }
    }

    #[test]
    fn classes_waste_at_most_an_eighth() {
        for class in 17..CLASSES {
            let (below, this) = (class_units(class - 1), class_units(class));
            assert!(this > below && u64::from(this - below) * 8 <= u64::from(below), "{class}");
        }
    }

    #[test]
    fn units_never_wrap() {
        assert_eq!(units_of(0), Some(0));
        assert_eq!(units_of(513), Some(2));
        assert_eq!(units_of(u64::MAX), None);
        assert_eq!(units_of((1 << 41) - 512), Some(u32::MAX));
        assert_eq!(units_of((1 << 41) - 511), None);
    }
}
