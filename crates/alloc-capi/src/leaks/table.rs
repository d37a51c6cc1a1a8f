//! Living blocks as a table: for each device by size, with the streams that they were allocated for.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

use alloc_core::Device;

use crate::failure::human;
use crate::heaps;
use crate::index::Entry;

/// More sizes than this are summed up.
const SIZES_SHOWN: usize = 12;
/// More streams than this are only counted.
const STREAMS_SHOWN: usize = 8;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    pub(super) count: u64,
}

impl Amount {
    pub(super) fn add(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.count += other.count;
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = if self.count == 1 { "block" } else { "blocks" };
        write!(f, "{} {blocks} of {}", self.count, human(self.bytes))
    }
}

/// The blocks of one device.
#[derive(Debug, Default)]
struct OfDevice {
    all: Amount,
    by_size: BTreeMap<u64, Amount>,
    by_stream: BTreeMap<u64, Amount>,
    private: Amount,
    lent: Amount,
}

/// The blocks of all devices; those whose device is not known come first.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<Option<Device>, OfDevice>);

impl Table {
    pub(super) fn add(&mut self, device: Option<Device>, entry: &Entry) {
        let block = Amount { bytes: entry.block.size(), count: 1 };
        let part = self.0.entry(device).or_default();
        part.all.add(block);
        part.by_size.entry(entry.block.size()).or_default().add(block);
        part.by_stream.entry(entry.stream.handle()).or_default().add(block);
        if entry.owner >= heaps::POOLS {
            part.private.add(block);
        } else if heaps::is_lent(entry.owner) {
            part.lent.add(block);
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "no block was left");
        }
        write!(f, "these blocks were never freed")?;
        for (device, part) in &self.0 {
            match device {
                Some(device) => write!(f, "\n{device}: {part}")?,
                None => write!(f, "\nprivate pools whose books another thread had: {part}")?,
            }
        }
        Ok(())
    }
}

/// Those with the most bytes first.
fn largest(amounts: &BTreeMap<u64, Amount>) -> Vec<(u64, Amount)> {
    let mut sorted: Vec<_> = amounts.iter().map(|(key, amount)| (*key, *amount)).collect();
    sorted.sort_by_key(|(key, amount)| Reverse((*amount, *key)));
    sorted
}

fn rest(amounts: &[(u64, Amount)], shown: usize) -> Option<(usize, Amount)> {
    let rest = amounts.get(shown..).filter(|rest| !rest.is_empty())?;
    let mut sum = Amount::default();
    rest.iter().for_each(|(_, amount)| sum.add(*amount));
    Some((rest.len(), sum))
}

impl fmt::Display for OfDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sizes, streams) = (largest(&self.by_size), largest(&self.by_stream));
        write!(f, "{} ({} bytes)", self.all, self.all.bytes)?;
        write!(f, "\n{:>10} {:>16} {:>16}", "blocks", "bytes each", "together")?;
        for (size, amount) in sizes.iter().take(SIZES_SHOWN) {
            write!(f, "\n{:>10} {size:>16} {:>16}", amount.count, human(amount.bytes))?;
        }
        if let Some((others, amount)) = rest(&sizes, SIZES_SHOWN) {
            let others = format!("{others} other sizes");
            write!(f, "\n{:>10} {others:>16} {:>16}", amount.count, human(amount.bytes))?;
        }
        write!(f, "\n    by stream: ")?;
        for (place, (handle, amount)) in streams.iter().take(STREAMS_SHOWN).enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            match handle {
                0 => write!(f, "{comma}default {amount}")?,
                handle => write!(f, "{comma}{handle:#x} {amount}")?,
            }
        }
        if let Some((others, amount)) = rest(&streams, STREAMS_SHOWN) {
            write!(f, ", {others} others {amount}")?;
        }
        if self.private.count > 0 {
            write!(f, "\n    of them {} in private pools", self.private)?;
        }
        if self.lent.count > 0 {
            write!(f, "\n    of them {} in tensors that nobody let go", self.lent)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc_core::{Address, Block, BlockId, Stream};

    use super::*;
    use crate::index::Owner;

    fn add(table: &mut Table, device: Option<Device>, size: u64, stream: u64, owner: Owner) {
        let block = Block::from_parts(Address::new(512), size, BlockId::from_bits(1));
        table.add(device, &Entry { block, owner, stream: Stream::from_raw(stream), shared: false });
    }

    #[test]
    fn sizes_and_streams_with_the_most_bytes_come_first() {
        let (mut table, gpu) = (Table::default(), Some(Device::cuda(1)));
        assert_eq!(table.to_string(), "no block was left");
        add(&mut table, gpu, 1 << 20, 0, 33);
        add(&mut table, gpu, 1 << 20, 0x70, 33);
        add(&mut table, gpu, 3 << 20, 0x70, heaps::POOLS);
        add(&mut table, Some(Device::CPU), 5, 0, heaps::HEAPS);
        add(&mut table, None, 9, 0, heaps::POOLS + 1);
        let expected = "\
these blocks were never freed
private pools whose books another thread had: 1 block of 9 bytes (9 bytes)
    blocks       bytes each         together
         1                9          9 bytes
    by stream: default 1 block of 9 bytes
    of them 1 block of 9 bytes in private pools
cpu:0: 1 block of 5 bytes (5 bytes)
    blocks       bytes each         together
         1                5          5 bytes
    by stream: default 1 block of 5 bytes
    of them 1 block of 5 bytes in tensors that nobody let go
cuda:1: 3 blocks of 5.00 MiB (5242880 bytes)
    blocks       bytes each         together
         1          3145728         3.00 MiB
         2          1048576         2.00 MiB
    by stream: 0x70 2 blocks of 4.00 MiB, default 1 block of 1.00 MiB
    of them 1 block of 3.00 MiB in private pools";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn what_is_more_is_summed_up() {
        let mut table = Table::default();
        for number in 1..=100 {
            add(&mut table, Some(Device::CPU), number, number, 0);
        }
        let text = table.to_string();
        assert_eq!(text.lines().count(), 3 + SIZES_SHOWN + 1 + 1, "{text}");
        // 1 to 88, and 1 to 92.
        assert!(text.contains("\n        88   88 other sizes         3.82 KiB\n"), "{text}");
        assert!(text.ends_with("0x5d 1 block of 93 bytes, 92 others 92 blocks of 4.18 KiB"), "{text}");
    }
}
