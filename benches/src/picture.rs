//! A recorded trace as a page: replayed through a pool of host memory, of which nobody touches any, to see what it reserves and
//! where its memory is at the peak.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use alloc_core::{AllocatorEvent, Device, EventHook, Snapshot};
use alloc_pool::PoolConfig;
use alloc_trace::{Picture, Profile, Replay, Touch, Trace};
use anyhow::Context;

use crate::allocators::host_pool_with;

/// Notes what is reserved, by how many blocks there were before.
#[derive(Debug, Default)]
struct Watch {
    blocks: AtomicUsize,
    reserved: Mutex<Vec<(usize, u64)>>,
    at_peak: Mutex<Option<Snapshot>>,
}

impl EventHook for Watch {
    fn on_event(&self, _device: Device, event: &AllocatorEvent<'_>) {
        if let AllocatorEvent::Grew { reserved, .. } | AllocatorEvent::Shrank { reserved, .. } = event {
            let block = self.blocks.load(Ordering::Relaxed);
            self.reserved.lock().unwrap_or_else(PoisonError::into_inner).push((block, *reserved));
        }
    }
}

/// The page of a trace. Where the replay fails it shows the live bytes alone, and says why.
///
/// # Errors
/// If the pool's settings make no sense.
pub fn page(title: &str, trace: &Trace) -> anyhow::Result<String> {
    let profile = Profile::of(trace);
    let peak = trace.operations().get(profile.peak_operation as usize).map(|operation| operation.block as usize);
    let watch = Arc::new(Watch::default());
    let mut config = PoolConfig::from_env().context("the pool's configuration")?;
    config.hook = Some(Arc::<Watch>::clone(&watch));
    let pool = Arc::new(host_pool_with(profile.peak_live_bytes, false, config)?);
    let (of_pool, noting) = (Arc::clone(&pool), Arc::clone(&watch));
    let touch = Touch::With(Arc::new(move |_, _| {
        let block = noting.blocks.fetch_add(1, Ordering::Relaxed);
        if Some(block) == peak {
            *noting.at_peak.lock().unwrap_or_else(PoisonError::into_inner) = Some(of_pool.snapshot());
        }
        Ok(())
    }));
    let replayed = Replay::new(trace).touch(touch).run(&*pool);
    if let Err(error) = replayed {
        let why = format!("{title} (live bytes alone: {:#})", anyhow::Error::from(error));
        return Ok(Picture::new(why).trace(trace).to_string());
    }
    let operation = |(block, bytes): &(usize, u64)| Some((trace.blocks().get(*block)?.allocated, *bytes));
    let reserved = watch.reserved.lock().unwrap_or_else(PoisonError::into_inner);
    let picture = Picture::new(title).trace(trace).reserved(reserved.iter().filter_map(operation));
    let at_peak = watch.at_peak.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(match &*at_peak {
        Some(snapshot) => picture.snapshot("The pool's memory at the peak", snapshot).to_string(),
        None => picture.to_string(),
    })
}
