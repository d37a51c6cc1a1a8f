//! Runs the examples of the README and of the pages beside this package as doc tests, so that they stay true.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
mod readme {}

#[cfg(doctest)]
#[doc = include_str!("../architecture.md")]
mod architecture {}

#[cfg(doctest)]
#[doc = include_str!("../guide.md")]
mod guide {}
