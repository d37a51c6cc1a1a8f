//! The promises, by subject.

pub(super) mod lifetimes;
pub(super) mod memory;
pub(super) mod releases;
pub(super) mod sizes;
pub(super) mod statistics;
pub(super) mod streams;
pub(super) mod threads;
pub(super) mod traffic;

use super::trial::{Held, Trial, Verdict};
use super::{Breach, Broken};
