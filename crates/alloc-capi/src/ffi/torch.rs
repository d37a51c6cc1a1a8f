//! The functions that PyTorch's `torch.cuda.memory.CUDAPluggableAllocator` takes, in the signatures that it calls.
//!
//! Failures are thrown as PyTorch's own exceptions where it is in the process; `devmem_last_error` has the text in any
//! case.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use crate::failure::{Failure, Status};
use crate::heaps;
use crate::memory::{self, Claim, LastUse};
use crate::torch::filter::{Filter, StdFunction};
use crate::torch::{self, throw};

use super::{free, guard};

/// PyTorch's name of a pool, passed by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "PyTorch's own layout")]
pub struct TorchPoolId {
    /// The number of a graph's pool, or 0.
    pub first: u64,
    /// The number of a user's pool, or 0.
    pub second: u64,
}

impl TorchPoolId {
    fn parts(self) -> torch::PoolId {
        (self.first, self.second)
    }
}

fn ordinal(device: c_int) -> Result<u16, Failure> {
    heaps::device(super::DEVMEM_KIND_CUDA, device).map(|device| device.ordinal())
}

/// Runs `f`, and throws what fails.
///
/// # Safety
/// Called by PyTorch, with nothing to drop in between.
unsafe fn or_throw(f: impl FnOnce() -> Result<(), Failure>) {
    if let Err(status) = guard(f) {
        // SAFETY: the caller's promise; this frame has nothing to drop.
        unsafe { throw::throw(status) };
    }
}

/// `alloc_fn`: `size` bytes for work on `stream`. Null for zero bytes, as PyTorch's own allocator has it.
///
/// # Safety
/// Called by PyTorch with a living stream of the device.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn devmem_torch_alloc(size: isize, device: c_int, stream: *mut c_void) -> *mut c_void {
    if size == 0 {
        return std::ptr::null_mut();
    }
    let handle = stream.addr() as u64;
    let allocated = if torch::is_routing() {
        allocate_routed(size, device, handle)
    } else {
        guard(|| torch::allocate(ordinal(device)?, bytes(size)?, handle))
    };
    match allocated {
        Ok(address) => std::ptr::with_exposed_provenance_mut(address as usize),
        Err(status) => {
            // SAFETY: PyTorch's frame is the next one, and this one has nothing to drop.
            unsafe { throw::throw(status) };
            std::ptr::null_mut()
        }
    }
}

#[inline(always)]
fn bytes(size: isize) -> Result<u64, Failure> {
    u64::try_from(size).map_err(|_| Failure::InvalidArgument { what: "size", value: size as i64 })
}

/// Allocates while somebody allocates from a private pool. What a filter throws passes through, which no `guard` would allow.
#[cold]
#[inline(never)]
fn allocate_routed(size: isize, device: c_int, handle: u64) -> Result<u64, Status> {
    let candidates = guard(|| Ok(torch::Candidates::of(ordinal(device)?)))?;
    let chosen = candidates.choose(handle);
    guard(|| {
        let (ordinal, bytes) = (ordinal(device)?, bytes(size)?);
        match chosen {
            Some(id) => torch::allocate_from(id, ordinal, bytes, handle),
            None => torch::allocate(ordinal, bytes, handle),
        }
    })
}

/// `free_fn`: frees a block on the stream that it was allocated for.
///
/// # Safety
/// Called by PyTorch: all uses of the block were submitted to `stream` or recorded.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_torch_free(pointer: *mut c_void, size: isize, device: c_int, stream: *mut c_void) {
    let claim = || {
        let owner = heaps::device(super::DEVMEM_KIND_CUDA, device).map(heaps::owner_of)?;
        let last_use = LastUse::AllocatedOn(stream.addr() as u64);
        Ok(Claim { owner: Some(owner), size: u64::try_from(size).ok(), last_use })
    };
    // SAFETY: the caller's promise. What is refused stays as it was, and PyTorch has no way to hear of it.
    let _: Status = unsafe { free(pointer, claim) };
}

/// `init_fn`: PyTorch is about to use `device_count` devices. Their pools are made at their first allocation.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_torch_init(device_count: c_int) {
    tracing::debug!(device_count, "PyTorch allocates from this library");
}

/// `reset_fn`, which `torch.cuda.empty_cache` calls: gives back all memory that is free.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_torch_reset() {
    let _ = guard(|| {
        torch::empty_cache();
        Ok(())
    });
}

/// `memory_fraction_fn`: limits the device's pool to a fraction of the device's memory.
///
/// # Safety
/// Called by PyTorch.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn devmem_torch_memory_fraction(fraction: f64, device: c_int) {
    // SAFETY: PyTorch's frame is the next one.
    unsafe { or_throw(|| torch::set_fraction(ordinal(device)?, fraction)) };
}

/// `base_alloc_fn`: the block that a pointer belongs to, which is its own start, and its size.
///
/// # Safety
/// `size` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_torch_base_alloc(pointer: *mut c_void, size: *mut usize) -> *mut c_void {
    let found = guard(|| memory::find(pointer.expose_provenance() as u64));
    if !size.is_null() {
        // SAFETY: the caller's promise.
        unsafe { size.write(found.map_or(0, |entry| entry.block.size() as usize)) };
    }
    pointer
}

/// `record_stream_fn`: work on `stream` uses the block, too.
///
/// # Safety
/// Called by PyTorch with a living stream of the block's device.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn devmem_torch_record_stream(pointer: *mut c_void, stream: *mut c_void) {
    if pointer.is_null() {
        return;
    }
    // SAFETY: PyTorch's frame is the next one.
    unsafe { or_throw(|| memory::record(pointer.expose_provenance() as u64, stream.addr() as u64)) };
}

/// `begin_allocate_to_pool`: allocations that the filter accepts come from the pool `id`, which stays where it is, from
/// now on.
///
/// # Safety
/// Called by PyTorch: `filter` points to a `std::function<bool(cudaStream_t)>`, or is null.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn devmem_torch_begin_allocate_to_pool(
    device: c_int,
    id: TorchPoolId,
    filter: *mut c_void,
) {
    // SAFETY: the filter is what the caller says. What its copying throws passes through, so this is not guarded.
    let filter = unsafe { Filter::copy(NonNull::new(filter.cast::<StdFunction>())) };
    // SAFETY: PyTorch's frame is the next one, and the filter went into the function.
    unsafe { or_throw(move || torch::begin(ordinal(device)?, id.parts(), filter)) };
}

/// `end_allocate_to_pool_fn`: allocations come from the device's pool again. The pool `id` keeps what it has.
///
/// # Safety
/// Called by PyTorch.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn devmem_torch_end_allocate_to_pool(device: c_int, id: TorchPoolId) {
    // SAFETY: PyTorch's frame is the next one.
    unsafe { or_throw(|| torch::end(ordinal(device)?, id.parts())) };
}

/// `release_pool`: one user of the pool `id` is gone. With the last one, and the last block, its memory goes back.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_torch_release_pool(device: c_int, id: TorchPoolId) {
    // PyTorch calls this from destructors, which can't throw.
    let _ = guard(|| torch::release_pool(ordinal(device)?, id.parts()));
}

/// One more user of the pool `id`, which is made if need be; `devmem_torch_release_pool` ends that.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_torch_retain_pool(device: c_int, id: TorchPoolId) -> Status {
    guard(|| torch::retain(ordinal(device)?, id.parts())).err().unwrap_or(Status::Ok)
}

/// How many use the pool `id`.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_torch_pool_users(device: c_int, id: TorchPoolId) -> u32 {
    guard(|| Ok(torch::holders(ordinal(device)?, id.parts()))).unwrap_or(0)
}

/// Which exceptions failures become in this process: 0 for none, as PyTorch is not loaded; 1 for `RuntimeError`; 2 for
/// `torch.OutOfMemoryError` where memory has run out.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_torch_exceptions() -> c_int {
    throw::support()
}
