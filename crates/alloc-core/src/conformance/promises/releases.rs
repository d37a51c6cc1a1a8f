//! Releases that must be refused.

use std::thread;

use crate::conformance::Expected;
use crate::{Address, Block, BlockId, ReleaseError, StreamSet};

use super::{Breach, Broken, Held, Trial, Verdict};

const STALE: &str = "it was released before";
const FOREIGN: &str = "it is not from this allocator";

/// Gives a bad block to the allocator, which has to say why it is bad and to change nothing.
fn refuse(trial: &Trial<'_>, block: Block, reason: &'static str) -> Result<(), Broken> {
    let before = trial.allocator.statistics();
    let refusal = match trial.raw_release(block, trial.stream(0), StreamSet::EMPTY) {
        Err(refusal) => refusal,
        Ok(()) => return Err(trial.broken(Breach::Accepted { block, reason })),
    };
    let (fits, said) = match &refusal {
        ReleaseError::Stale { block, device } => (reason != FOREIGN, Some((*block, *device))),
        ReleaseError::Foreign { block, device } => (reason != STALE, Some((*block, *device))),
        _ => (false, None),
    };
    if !fits || said != Some((block, trial.allocator.device())) {
        return Err(trial.broken(Breach::WrongRefusal { block, error: refusal, reason }));
    }
    if trial.options.statistics {
        let after = trial.allocator.statistics();
        let exactly = Expected::Exactly;
        trial.expect("requested.current", after.requested.current, exactly(before.requested.current))?;
        trial.expect("in_use.current", after.in_use.current, exactly(before.in_use.current))?;
        if after.rejected_releases > 0 {
            trial.expect("rejected_releases", after.rejected_releases, exactly(before.rejected_releases + 1))?;
        }
    }
    Ok(())
}

/// A size of every kind: none, small, page-like, large.
fn sizes(trial: &Trial<'_>) -> impl Iterator<Item = u64> {
    let most = trial.options.max_block;
    [0, 1, 512, 5000, 70_000, 1 << 20, most].into_iter().filter(move |size| *size <= most)
}

pub(in crate::conformance) fn double(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    if !trial.options.detects_double_release {
        return Ok(Verdict::NotPromised("the options say that a double release is not recognised"));
    }
    for size in sizes(trial) {
        let layout = trial.layout(size)?;
        let neighbours = [trial.take(layout, trial.stream(0))?, trial.take(layout, trial.stream(0))?];
        let held = trial.take(layout, trial.stream(0))?;
        trial.give(held)?;
        refuse(trial, held.block, STALE)?;
        refuse(trial, held.block, STALE)?;
        on_another_thread(|| refuse(trial, held.block, STALE), trial)?;
        // What was refused must not be handed out twice.
        let next = [trial.take(layout, trial.stream(0))?, trial.take(layout, trial.stream(0))?];
        trial.give_all(neighbours)?;
        trial.give_all(next)?;
    }
    Ok(Verdict::Kept)
}

fn on_another_thread(work: impl FnOnce() -> Result<(), Broken> + Send, trial: &Trial<'_>) -> Result<(), Broken> {
    thread::scope(|scope| super::threads::join(trial, scope.spawn(work)))
}

pub(in crate::conformance) fn stale(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    if !trial.options.detects_double_release {
        return Ok(Verdict::NotPromised("the options say that a double release is not recognised"));
    }
    for size in sizes(trial) {
        let layout = trial.layout(size)?;
        let mut old: Vec<Block> = Vec::new();
        for _ in 0..40 {
            let held = trial.take(layout, trial.stream(0))?;
            // The same memory again, as like as not: only the generation tells the blocks apart.
            if let Some(same) = old.iter().rev().find(|block| block.address() == held.block.address()) {
                refuse(trial, *same, STALE)?;
                trial.verify(&held, held.stream)?;
            }
            old.push(held.block);
            trial.give(held)?;
        }
        let living = trial.take(layout, trial.stream(0))?;
        for block in old {
            refuse(trial, block, STALE)?;
        }
        trial.give(living)?;
    }
    Ok(Verdict::Kept)
}

pub(in crate::conformance) fn foreign(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    if !trial.options.detects_foreign_blocks {
        return Ok(Verdict::NotPromised("the options say that a foreign block is not recognised"));
    }
    another_allocators(trial)?;
    let held: Vec<Held> =
        sizes(trial).map(|size| trial.take(trial.layout(size)?, trial.stream(0))).collect::<Result<_, _>>()?;
    for held in &held {
        altered(trial, held.block)?;
    }
    made_up(trial, &held)?;
    trial.check_figures()?;
    trial.give_all(held)?;
    Ok(Verdict::Kept)
}

/// A block of another allocator of the same kind, given to this one before it has handed out any.
fn another_allocators(trial: &Trial<'_>) -> Result<(), Broken> {
    let other = Trial::new(trial.suite, trial.promise(), trial.suite.make().allocator, None);
    let before = trial.allocator.statistics().requested.count;
    let held = other.take(other.layout(3000)?, other.stream(0))?;
    // An allocator that the process has only one of is no other.
    if trial.allocator.statistics().requested.count == before {
        refuse(trial, held.block, FOREIGN)?;
    }
    other.give(held)
}

fn altered(trial: &Trial<'_>, block: Block) -> Result<(), Broken> {
    let (address, size, id) = (block.address().get(), block.size(), block.id());
    for address in [1, 256, 4096, size + 1, 1 << 47, u64::MAX - 4095].map(|by| address.wrapping_add(by)) {
        refuse(trial, Block::from_parts(Address::new(address), size, id), FOREIGN)?;
    }
    for size in [size + 1, size.wrapping_sub(1), size ^ (1 << 40), size | (1 << 63), u64::MAX - 1] {
        refuse(trial, Block::from_parts(block.address(), size, id), FOREIGN)?;
    }
    for bit in 0..64 {
        let id = BlockId::from_bits(id.to_bits() ^ (1 << bit));
        // May well be the id of a block released before.
        refuse(trial, Block::from_parts(block.address(), size, id), "its id was altered")?;
    }
    Ok(())
}

fn made_up(trial: &Trial<'_>, held: &[Held]) -> Result<(), Broken> {
    let mut rng = trial.rng(0);
    let ids = [0, 1, u64::MAX, 1 << 63, u64::from(u32::MAX)];
    let random: Vec<u64> = (0..200).map(|_| rng.next() >> rng.below(64)).collect();
    for id in ids.into_iter().chain(random) {
        let address = Address::new(rng.next() >> rng.below(64));
        if held.iter().all(|held| held.block.address() != address) {
            refuse(
                trial,
                Block::from_parts(address, rng.log_uniform(1 << 40), BlockId::from_bits(id)),
                "it is made up",
            )?;
        }
    }
    Ok(())
}
