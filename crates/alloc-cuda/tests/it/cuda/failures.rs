//! Every driver call fails once: nothing panics, nothing illegal follows, and the books balance.

use alloc_core::{Addressing, DeviceAllocator, Stream, StreamSet};
use alloc_cuda::{CudaStream, DeviceOptions, PinnedMethod};
use alloc_pool::PoolConfig;

use super::harness::{Fake, Living, bytes, fake};

/// Traffic that reaches every part of a pool. Errors are expected; what was got is released.
fn scenario(pool: &dyn DeviceAllocator, streams: &[Stream]) -> Vec<String> {
    let mut errors = Vec::new();
    let mut blocks = Vec::new();
    for round in 0..24_u64 {
        let stream = streams[round as usize % streams.len()];
        match pool.allocate(bytes(100 << (round * 5 % 17)), stream) {
            Ok(block) => blocks.push((block, stream)),
            Err(error) => errors.push(error.to_string()),
        }
        if round % 3 == 2 && !blocks.is_empty() {
            let (block, stream) = blocks.swap_remove(round as usize % blocks.len());
            let mut uses = StreamSet::new();
            if round % 2 == 0 {
                uses.insert(streams[(round as usize + 1) % streams.len()]);
            }
            // SAFETY: nothing uses the block but what is declared.
            if let Err(error) = unsafe { pool.release(block, stream, &uses) } {
                errors.push(error.to_string());
            }
        }
    }
    pool.trim(1 << 20);
    for (block, stream) in blocks {
        // SAFETY: nothing uses the block.
        if let Err(error) = unsafe { pool.release(block, stream, StreamSet::EMPTY) } {
            errors.push(error.to_string());
        }
    }
    pool.trim(0);
    errors
}

const LIMIT: u64 = 16 << 20;

type MakePool = Box<dyn Fn() -> Box<dyn DeviceAllocator>>;

fn pools() -> Vec<(&'static str, MakePool)> {
    let config = || PoolConfig { limit: Some(LIMIT), ..PoolConfig::default() };
    let device = move |addressing| {
        move || -> Box<dyn DeviceAllocator> {
            let options = DeviceOptions::default().addressing(addressing);
            Box::new(alloc_cuda::device_pool(0, &options, config()).unwrap())
        }
    };
    vec![
        ("mapped", Box::new(device(Addressing::Mapped))),
        ("segmented", Box::new(device(Addressing::Segmented))),
        ("pinned", Box::new(move || Box::new(alloc_cuda::pinned_pool(0, PinnedMethod::Registered, config()).unwrap()))),
    ]
}

const KINDS: [Living; 6] = [
    Living::Reservations,
    Living::Physical,
    Living::Mappings,
    Living::Allocations,
    Living::HostAllocations,
    Living::HostRegistrations,
];

fn books(fake: &Fake) -> [u64; 6] {
    KINDS.map(|kind| fake.living(kind))
}

/// Calls whose failure means that nothing was done, so that nothing may be lost.
const CLEAN: &[&str] = &[
    "cuMemAddressReserve",
    "cuMemCreate",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemAlloc_v2",
    "cuMemHostRegister_v2",
    "cuMemGetInfo_v2",
    "cuStreamWaitEvent",
];

#[test]
fn a_failure_that_did_nothing_loses_nothing() {
    let Some(fake) = fake() else { return };
    let streams = [(); 2].map(|()| CudaStream::new(0).unwrap());
    let names: Vec<_> = streams.iter().map(CudaStream::stream).collect();
    for (kind, make) in pools() {
        let before = books(&fake);
        for call in CLEAN {
            for nth in 0.. {
                let pool = make();
                fake.fail(call, nth, 2);
                scenario(&*pool, &names);
                let happened = fake.failures_left() == 0;
                fake.clear();
                drop(pool);
                assert_eq!(books(&fake), before, "{kind}: {call} number {nth}");
                if !happened {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_mapping_that_could_neither_be_opened_nor_undone_is_in_nobodys_way() {
    let Some(fake) = fake() else { return };
    let stream = CudaStream::new(0).unwrap();
    let (_, make) = pools().swap_remove(0);
    let before = books(&fake);
    for again in [true, false] {
        let pool = make();
        fake.fail("cuMemSetAccess", 0, 304);
        fake.fail("cuMemUnmap", 0, 304);
        assert!(pool.allocate(bytes(4 << 20), stream.stream()).is_err());
        assert_eq!(fake.failures_left(), 0);
        if again {
            let block = pool.allocate(bytes(4 << 20), stream.stream()).unwrap();
            super::harness::release(&*pool, block, stream.stream());
        }
        drop(pool);
        assert_eq!(books(&fake), before);
    }
}

#[test]
fn any_failure_at_any_call_is_survived() {
    let Some(fake) = fake() else { return };
    for (kind, make) in pools() {
        for code in [2, 719, 54_321] {
            // Every call at first, then ever fewer, as the scenario has thousands.
            let mut nth = 0;
            loop {
                let streams = [(); 2].map(|()| CudaStream::new(0).unwrap());
                let names: Vec<_> = streams.iter().map(CudaStream::stream).collect();
                let pool = make();
                fake.fail_any(nth, code);
                scenario(&*pool, &names);
                let happened = fake.failures_left() == 0;
                // A pool that leaked still works.
                fake.clear();
                let block = pool.allocate(bytes(1000), names[0]);
                if let Ok(block) = block {
                    // SAFETY: nothing uses the block.
                    let _ = unsafe { pool.release(block, names[0], StreamSet::EMPTY) };
                }
                drop(pool);
                drop(streams);
                assert_eq!(fake.violations(), Vec::<String>::new(), "{kind}: code {code} at call {nth}");
                if !happened {
                    break;
                }
                nth += 1 + nth / 20;
            }
        }
    }
}
