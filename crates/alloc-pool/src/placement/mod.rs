//! Placement: arithmetic on offsets, with no memory behind it and no `unsafe` in it.
#![forbid(unsafe_code)]

pub(crate) mod bins;
pub(crate) mod heap;
pub(crate) mod slab;
pub(crate) mod units;
