//! Turns a trace into arrays that a loop can walk without looking anything up.

use alloc_core::{AllocError, Layout, ReleaseError, Stream, TransferError};

use crate::{OperationKind, ReplayError, Trace};

/// One call of the allocator.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) layout: Layout,
    /// Where the block is kept.
    pub(super) slot: u32,
    /// The stream's index, and the kind of call in the highest bit.
    stream_and_kind: u32,
}

const RELEASE: u32 = 1 << 31;

impl Call {
    fn new(layout: Layout, slot: u32, stream: u32, kind: OperationKind) -> Self {
        let kind = if kind == OperationKind::Release { RELEASE } else { 0 };
        Self { layout, slot, stream_and_kind: stream | kind }
    }

    #[inline]
    pub(super) fn is_release(self) -> bool {
        self.stream_and_kind & RELEASE != 0
    }

    #[inline]
    pub(super) fn stream(self) -> usize {
        (self.stream_and_kind & !RELEASE) as usize
    }
}

/// All calls of a pass in one row.
#[derive(Debug)]
pub(super) struct Plan {
    /// One for each operation of the trace, then a release for each block that lives at its end.
    pub(super) calls: Vec<Call>,
    /// How many slots they use. A slot is used again once its block is released, so that the loop touches no more
    /// memory than the program had blocks.
    pub(super) slots: usize,
    pub(super) peak_live: u64,
}

/// The calls of one thread, with the index of the operation that each stands for.
#[derive(Debug, Default)]
pub(super) struct ThreadPlan {
    pub(super) calls: Vec<(u32, Call)>,
}

impl Plan {
    pub(super) fn new(trace: &Trace) -> Result<Self, ReplayError> {
        let mut slot_of_block = vec![0_u32; trace.blocks().len()];
        let (mut free, mut slots) = (Vec::new(), 0_u32);
        let mut calls = Vec::with_capacity(trace.operations().len());
        for (index, operation) in (0..).zip(trace.operations()) {
            let slot = &mut slot_of_block[operation.block as usize];
            match operation.kind {
                OperationKind::Allocate => {
                    *slot = free.pop().unwrap_or_else(|| {
                        slots += 1;
                        slots - 1
                    });
                }
                OperationKind::Release => free.push(*slot),
            }
            let layout = layout(trace, operation.block, index)?;
            calls.push(Call::new(layout, *slot, operation.stream, operation.kind));
        }
        for (block, layout, born) in left_over(trace) {
            calls.push(Call::new(layout?, slot_of_block[block as usize], born.stream, OperationKind::Release));
        }
        Ok(Self { calls, slots: slots as usize, peak_live: peak_live(trace) })
    }
}

impl ThreadPlan {
    /// One for each recorded thread. Each block has the slot of its own number: threads may be at different places,
    /// so that slots can't be used again within a pass.
    pub(super) fn all(trace: &Trace) -> Result<Vec<Self>, ReplayError> {
        let mut plans: Vec<Self> = trace.threads().iter().map(|_| Self::default()).collect();
        for (index, operation) in (0..).zip(trace.operations()) {
            let layout = layout(trace, operation.block, index)?;
            let call = Call::new(layout, operation.block, operation.stream, operation.kind);
            plans[operation.thread as usize].calls.push((index, call));
        }
        let end = trace.operations().len() as u32;
        for (block, layout, born) in left_over(trace) {
            let call = Call::new(layout?, block, born.stream, OperationKind::Release);
            plans[born.thread as usize].calls.push((end, call));
        }
        Ok(plans)
    }
}

pub(super) fn peak_live(trace: &Trace) -> u64 {
    trace.live().map(|point| point.live_bytes).max().unwrap_or(0)
}

fn layout(trace: &Trace, block: u32, operation: u32) -> Result<Layout, ReplayError> {
    Layout::bytes(trace.blocks()[block as usize].bytes).map_err(|source| ReplayError::Layout { operation, source })
}

/// The blocks that live at the end, with the operations that they were born in.
fn left_over(trace: &Trace) -> impl Iterator<Item = (u32, Result<Layout, ReplayError>, crate::Operation)> + '_ {
    (0..).zip(trace.blocks()).filter(|(_, block)| block.released.is_none()).map(|(number, block)| {
        let born = trace.operations()[block.allocated as usize];
        (number, layout(trace, number, block.allocated), born)
    })
}

/// Why a pass stopped.
#[derive(Debug)]
pub(super) enum Failure {
    Allocate(AllocError),
    Release(ReleaseError),
    Touch(TransferError),
}

impl Failure {
    pub(super) fn into_error(self, pass: u32, operation: u32, call: Call, stream: Stream, living: u64) -> ReplayError {
        match self {
            Self::Allocate(source) => {
                ReplayError::Allocate { pass, operation, bytes: call.layout.size(), stream, living, source }
            }
            Self::Release(source) => ReplayError::Release { pass, operation, source },
            Self::Touch(source) => ReplayError::Touch { pass, operation, source },
        }
    }
}
