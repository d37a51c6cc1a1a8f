//! Traffic of many kinds on one thread, with the shadow map and the contents checked throughout.

use std::collections::VecDeque;

use super::{Broken, Held, Trial, Verdict};

pub(in crate::conformance) fn mixed(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let mut rng = trial.rng(0);
    let mut held: Vec<Held> = Vec::new();
    for step in 0..1500 * trial.options.effort {
        let size = if rng.percent(2) { 0 } else { rng.size(trial.options.max_block) };
        while !held.is_empty() && trial.live_bytes() + size > trial.options.max_live {
            trial.give(held.swap_remove(rng.index(held.len())))?;
        }
        // Ebb and flow, so that the pool is nearly full and nearly empty by turns.
        let share = if (step / 256) % 2 == 0 { 35 } else { 60 };
        if !held.is_empty() && rng.percent(share) {
            trial.give(held.swap_remove(rng.index(held.len())))?;
        } else {
            let align = 1 << rng.below(u64::from(trial.options.max_align.min(1 << 16).ilog2()) + 1);
            held.push(trial.take(trial.aligned(size, align)?, trial.stream(rng.index(64)))?);
        }
        if step % 64 == 0 {
            trial.check_figures()?;
        }
    }
    trial.give_all(held)?;
    Ok(Verdict::Kept)
}

pub(in crate::conformance) fn lifo(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let mut rng = trial.rng(0);
    let mut held = Vec::new();
    for _ in 0..8 * trial.options.effort {
        let goal = held.len() + 60;
        while held.len() < goal {
            let size = rng.size(trial.options.max_block);
            if trial.live_bytes() + size > trial.options.max_live / 2 {
                break;
            }
            held.push(trial.take(trial.layout(size)?, trial.stream(0))?);
        }
        let keep = rng.index(held.len() + 1);
        trial.give_all(held.drain(keep..).rev())?;
        trial.check_figures()?;
    }
    trial.give_all(held.into_iter().rev())?;
    Ok(Verdict::Kept)
}

pub(in crate::conformance) fn fifo(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let mut rng = trial.rng(0);
    let mut held: VecDeque<Held> = VecDeque::new();
    for step in 0..500 * trial.options.effort {
        let size = rng.size(trial.options.max_block);
        while held.len() > 100 || trial.live_bytes() + size > trial.options.max_live {
            let Some(oldest) = held.pop_front() else { break };
            trial.give(oldest)?;
        }
        held.push_back(trial.take(trial.layout(size)?, trial.stream(step as usize / 100))?);
    }
    trial.check_figures()?;
    trial.give_all(held)?;
    Ok(Verdict::Kept)
}

/// Rising sizes, then every second block released and its hole asked for with a little more than it has.
pub(in crate::conformance) fn sawtooth(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let mut rng = trial.rng(0);
    for _ in 0..3 * trial.options.effort {
        let mut held = Vec::new();
        let mut size = 1 + rng.below(600);
        while size <= trial.options.max_block && trial.live_bytes() + size <= trial.options.max_live / 2 {
            held.push(trial.take(trial.layout(size)?, trial.stream(0))?);
            size += size / 8 + 1 + rng.below(64);
        }
        let mut kept = Vec::new();
        for (number, block) in held.into_iter().enumerate() {
            if number % 2 == 0 {
                kept.push(block);
                continue;
            }
            let larger = (block.block.size() + 1 + rng.below(512)).min(trial.options.max_block);
            trial.give(block)?;
            kept.push(trial.take(trial.layout(larger)?, trial.stream(0))?);
        }
        trial.check_figures()?;
        trial.give_all(kept)?;
    }
    Ok(Verdict::Kept)
}

/// A collection that grows a byte at a time: the new block is there before the old one goes.
pub(in crate::conformance) fn growing(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let most = trial.options.max_block;
    let starts = [0, 500, 4090, 65_530, (1 << 20) - 8, most.saturating_sub(20)];
    for start in starts.into_iter().filter(|start| start + 20 <= most) {
        let steps = if start < 5000 { 300 * trial.options.effort } else { 20 };
        let mut held: Option<Held> = None;
        for size in start..=start + steps {
            let grown = trial.take(trial.layout(size.min(most))?, trial.stream(0))?;
            if let Some(old) = held.replace(grown) {
                trial.give(old)?;
            }
        }
        trial.give_all(held)?;
    }
    Ok(Verdict::Kept)
}

pub(in crate::conformance) fn equal(trial: &Trial<'_>) -> Result<Verdict, Broken> {
    let mut rng = trial.rng(0);
    let sizes = [1, 512, 8192, 65_537, 2 << 20];
    for size in sizes.into_iter().filter(|size| *size <= trial.options.max_block) {
        let count = (trial.options.max_live / 2 / size).clamp(1, 300);
        let fill = |held: &mut Vec<Held>| {
            while (held.len() as u64) < count {
                held.push(trial.take(trial.layout(size)?, trial.stream(held.len() / 50))?);
            }
            Ok(())
        };
        let mut held = Vec::new();
        for _ in 0..2 * trial.options.effort {
            fill(&mut held)?;
            for _ in 0..count / 2 {
                trial.give(held.swap_remove(rng.index(held.len())))?;
            }
        }
        fill(&mut held)?;
        trial.check_figures()?;
        trial.give_all(held)?;
    }
    Ok(Verdict::Kept)
}
