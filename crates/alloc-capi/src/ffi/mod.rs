//! The functions of the C interface. `include/device_memory.h` is made of this file and those beside it.
//!
//! A device is named by two numbers: its kind (1 for the host, 2 for CUDA, 3 for page-locked host memory) and its number
//! among its kind. Streams are named by their handles, 0 for the default stream, and are living streams of the
//! device. All functions may be called from any thread, but not in a child that was forked without `exec`: host memory
//! is one for it and its parent, which each would hand out without the other.

pub mod dlpack;
#[cfg(feature = "cuda")]
pub mod torch;

use std::any::Any;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::failure::{self, Failure, Status};
use crate::heaps;
use crate::memory::{self, Claim, LastUse};
use crate::picture;
use crate::report::{self, Statistics};

/// The version of this interface. It changes when a function or a field changes its meaning, not when one is added.
pub const DEVMEM_ABI_VERSION: u32 = 1;

/// The host's memory.
pub const DEVMEM_KIND_CPU: i32 = 1;
/// The memory of CUDA devices.
pub const DEVMEM_KIND_CUDA: i32 = 2;
/// Host memory that is page-locked through a CUDA device.
pub const DEVMEM_KIND_CUDA_PINNED: i32 = 3;

/// Runs `f`, keeps panics on this side and notes failures.
pub(crate) fn guard<T>(f: impl FnOnce() -> Result<T, Failure>) -> Result<T, Status> {
    // Failures are large, so they end where they come about.
    let noted = AssertUnwindSafe(|| f().map_err(|failure| failure::note(&failure)));
    catch_unwind(noted).unwrap_or_else(|panic| Err(caught(&*panic)))
}

#[cold]
#[inline(never)]
fn caught(panic: &(dyn Any + Send)) -> Status {
    let message = panic.downcast_ref::<&str>().map(ToString::to_string);
    let message = message.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    // Whoever hears of failures may be what panicked.
    catch_unwind(|| failure::note(&Failure::Panic { message })).unwrap_or(Status::Internal)
}

fn status(f: impl FnOnce() -> Result<(), Failure>) -> Status {
    guard(f).err().unwrap_or(Status::Ok)
}

/// # Safety
/// `to` is null or valid for a write.
unsafe fn write<T>(what: &'static str, to: *mut T, value: T) -> Result<(), Failure> {
    if to.is_null() {
        return Err(Failure::Null { what });
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Copies as much of a text as fits, ends it with a zero byte, and returns the length of the whole.
///
/// # Safety
/// `to` is null or valid for writes of `capacity` bytes.
unsafe fn write_text(text: &str, to: *mut c_char, capacity: usize) -> usize {
    if !to.is_null() && capacity > 0 {
        let bytes = text.len().min(capacity - 1);
        // SAFETY: the caller's promise; the text is ours and apart.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), to.cast(), bytes);
            to.add(bytes).write(0);
        }
    }
    text.len()
}

/// The version of the interface that the library has; compare with `DEVMEM_ABI_VERSION` of the header.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_abi_version() -> u32 {
    DEVMEM_ABI_VERSION
}

/// What the last call of this thread that failed has to say; empty if none failed, and in a thread that is ending, as the main one is
/// in functions of `atexit`. Valid until the next failure in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_last_error() -> *const c_char {
    failure::last()
}

/// The name of a status, in lower case.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_status_name(status: i32) -> *const c_char {
    failure::name(status).as_ptr()
}

/// Number of devices of a kind. 0, and no failure, where there is no driver or no support for the kind.
///
/// # Safety
/// `count` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_device_count(kind: i32, count: *mut u32) -> Status {
    status(|| {
        let device = heaps::device(kind, 0)?;
        let found = if device == alloc_core::Device::CPU { 1 } else { alloc_cuda::device_count().unwrap_or(0) };
        // SAFETY: the caller's promise.
        unsafe { write("count", count, found.into()) }
    })
}

/// Whether the device's pool is there already: 1 or 0. The first call that needs it makes it, one that asks for figures too,
/// and on a CUDA device a context with it, which takes some of the device's memory. This call makes nothing.
///
/// # Safety
/// `open` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_is_open(kind: i32, ordinal: i32, open: *mut i32) -> Status {
    status(|| {
        let is_open = heaps::is_open(heaps::device(kind, ordinal)?)?;
        // SAFETY: the caller's promise.
        unsafe { write("open", open, is_open.into()) }
    })
}

/// Allocates `size` bytes for the device's default stream, aligned to 512 bytes. Zero bytes get an address of their own.
///
/// # Safety
/// `pointer` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_allocate(kind: i32, ordinal: i32, size: u64, pointer: *mut *mut c_void) -> Status {
    // SAFETY: the caller's promise.
    unsafe { devmem_allocate_on(kind, ordinal, size, 0, 0, pointer) }
}

/// Allocates `size` bytes that work submitted to `stream` from now on may use. `align` is a power of two, or 0; blocks
/// are aligned to 512 bytes in any case.
///
/// # Safety
/// `pointer` is valid for a write; `stream` is a living stream of the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_allocate_on(
    kind: i32,
    ordinal: i32,
    size: u64,
    align: u64,
    stream: u64,
    pointer: *mut *mut c_void,
) -> Status {
    status(|| {
        let device = heaps::device(kind, ordinal)?;
        // SAFETY: the caller's promise.
        unsafe { write("pointer", pointer, std::ptr::null_mut()) }?;
        let heap = heaps::heap(device)?;
        let address = memory::allocate(heap, size, align, memory::stream(device, stream))?;
        // SAFETY: as above.
        unsafe { write("pointer", pointer, std::ptr::with_exposed_provenance_mut(address as usize)) }
    })
}

/// Frees a block, in constant time, by its pointer alone. Its last use was on the stream that it was allocated for, or on
/// those recorded. A null pointer is fine.
///
/// # Safety
/// No use of the block follows. Pointers that are no block's are refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_free(pointer: *mut c_void) -> Status {
    // SAFETY: the caller's promise.
    unsafe { free(pointer, || Ok(Claim::default())) }
}

/// Frees a block whose last use was on `stream`: later work there may have the memory at once.
///
/// # Safety
/// As `devmem_free`; `stream` is a living stream of the block's device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_free_on(pointer: *mut c_void, stream: u64) -> Status {
    // SAFETY: the caller's promise.
    unsafe { free(pointer, || Ok(Claim { last_use: LastUse::On(stream), ..Claim::default() })) }
}

/// Frees a block whose device and size the caller knows; refuses it if they are others.
///
/// # Safety
/// As `devmem_free_on`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_free_checked(
    pointer: *mut c_void,
    kind: i32,
    ordinal: i32,
    size: u64,
    stream: u64,
) -> Status {
    let claim = || {
        let device = heaps::device(kind, ordinal)?;
        Ok(Claim { owner: Some(heaps::owner_of(device)), size: Some(size), last_use: LastUse::On(stream) })
    };
    // SAFETY: the caller's promise.
    unsafe { free(pointer, claim) }
}

/// # Safety
/// As `devmem_free`.
#[inline(always)]
pub(crate) unsafe fn free(pointer: *mut c_void, claim: impl FnOnce() -> Result<Claim, Failure>) -> Status {
    if pointer.is_null() {
        return Status::Ok;
    }
    status(|| {
        let claim = claim()?;
        // SAFETY: the caller's promise.
        unsafe { memory::free(pointer.expose_provenance() as u64, claim) }
    })
}

/// Notes that work on `stream` uses the block, so that its memory is not reused before that work is done: the caller
/// has made `stream` wait for the block's own stream, and frees the block after it submitted the work.
///
/// # Safety
/// `stream` is a living stream of the block's device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_record_stream(pointer: *mut c_void, stream: u64) -> Status {
    status(|| memory::record(pointer.expose_provenance() as u64, stream))
}

/// What is known of the block that starts at a pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
#[expect(clippy::exhaustive_structs, reason = "the layout that programs in C were built with")]
pub struct BlockInfo {
    /// The kind of the device.
    pub kind: i32,
    /// Its number.
    pub ordinal: i32,
    /// How many bytes were asked for.
    pub size: u64,
    /// The stream that it was allocated for.
    pub stream: u64,
}

/// Finds out about a block.
///
/// # Safety
/// `info` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_block_info(pointer: *const c_void, info: *mut BlockInfo) -> Status {
    status(|| {
        let address = pointer.expose_provenance() as u64;
        let entry = memory::find(address)?;
        let device = memory::device_of(entry.owner).ok_or(Failure::UnknownPointer { address })?;
        let (kind, ordinal) = (heaps::kind_number(device), device.ordinal().into());
        let found = BlockInfo { kind, ordinal, size: entry.block.size(), stream: entry.stream.handle() };
        // SAFETY: the caller's promise.
        unsafe { write("info", info, found) }
    })
}

/// Gives physical memory back to the device until at most `keep` bytes are held, as far as blocks in use allow. Writes
/// the bytes given back to `given` unless it is null. May wait for work that still uses freed memory.
///
/// # Safety
/// `given` is null or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_trim(kind: i32, ordinal: i32, keep: u64, given: *mut u64) -> Status {
    status(|| {
        let heap = heaps::heap(heaps::device(kind, ordinal)?)?;
        #[cfg(feature = "cuda")]
        crate::torch::sweep();
        let bytes = heap.allocator().trim(keep);
        // SAFETY: the caller's promise.
        if given.is_null() { Ok(()) } else { unsafe { write("given", given, bytes) } }
    })
}

/// Has the device's pool hold at least `bytes` of physical memory, made now in place of when it is first needed, and writes how
/// many it holds to `held` unless that is null. The memory is free for blocks of every size and stream. `stream` is one that the
/// program works on: what is free already, and others used last, is waited for there.
///
/// # Safety
/// `held` is null or valid for a write; `stream` is a living stream of the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_grow_to(kind: i32, ordinal: i32, bytes: u64, stream: u64, held: *mut u64) -> Status {
    status(|| {
        let device = heaps::device(kind, ordinal)?;
        let found = heaps::heap(device)?.grow_to(bytes, memory::stream(device, stream))?;
        // SAFETY: the caller's promise.
        if held.is_null() { Ok(()) } else { unsafe { write("held", held, found) } }
    })
}

/// Sets the most physical memory to hold, in bytes; 0 for no limit. What is held beyond it is given back as far as it is
/// free.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_set_limit(kind: i32, ordinal: i32, bytes: u64) -> Status {
    status(|| {
        let heap = heaps::heap(heaps::device(kind, ordinal)?)?;
        let limit = Some(bytes).filter(|bytes| *bytes > 0);
        heap.set_limit(limit)?;
        if limit.is_some_and(|limit| heap.allocator().statistics().reserved.current > limit) {
            heap.allocator().trim(bytes);
        }
        Ok(())
    })
}

/// The most physical memory to hold, in bytes; 0 for no limit, and 1 for a limit that leaves none.
///
/// # Safety
/// `bytes` is valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_limit(kind: i32, ordinal: i32, bytes: *mut u64) -> Status {
    status(|| {
        let limit = heaps::heap(heaps::device(kind, ordinal)?)?.limit();
        // SAFETY: the caller's promise.
        unsafe { write("bytes", bytes, limit.unwrap_or(0)) }
    })
}

/// Counts the peaks of the statistics from what there is now.
#[unsafe(no_mangle)]
pub extern "C" fn devmem_reset_peaks(kind: i32, ordinal: i32) -> Status {
    status(|| heaps::heap(heaps::device(kind, ordinal)?)?.reset_peaks())
}

/// Says that a stream is about to be destroyed: no later call names it.
///
/// # Safety
/// The stream is still a living one of the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_retire_stream(kind: i32, ordinal: i32, stream: u64) -> Status {
    status(|| memory::retire(heaps::device(kind, ordinal)?, stream))
}

/// Writes the device's figures: the first `size` bytes of them, so that a caller who knows fewer fields gets those.
///
/// # Safety
/// `statistics` is valid for writes of `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_statistics(
    kind: i32,
    ordinal: i32,
    statistics: *mut Statistics,
    size: usize,
) -> Status {
    status(|| {
        if statistics.is_null() {
            return Err(Failure::Null { what: "statistics" });
        }
        let figures = Statistics::of(heaps::heap(heaps::device(kind, ordinal)?)?);
        let known = bytemuck::bytes_of(&figures);
        let bytes = known.len().min(size);
        // SAFETY: the caller's promise; what this version does not know is zero.
        unsafe {
            std::ptr::write_bytes(statistics.cast::<u8>(), 0, size);
            std::ptr::copy_nonoverlapping(known.as_ptr(), statistics.cast(), bytes);
        }
        Ok(())
    })
}

/// Writes the device's figures as JSON, ended by a zero byte and cut off where `capacity` ends. Returns the length of the
/// whole without the zero byte; 0 for a failure.
///
/// # Safety
/// `text` is null or valid for writes of `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_statistics_json(kind: i32, ordinal: i32, text: *mut c_char, capacity: usize) -> usize {
    let found = guard(|| Ok(report::statistics_json(heaps::heap(heaps::device(kind, ordinal)?)?)));
    // SAFETY: the caller's promise.
    found.map_or(0, |found| unsafe { write_text(&found, text, capacity) })
}

/// Writes all living blocks of the device, where its memory is, and its figures, as JSON: as `devmem_statistics_json` does.
/// Each part is of its own moment, and nothing is asked of the device.
///
/// `blocks` are those that callers hold. `arenas` is null where a program's own allocator serves the device. Else each has
/// `runs` of addresses that have memory, and a run has `pieces` one after the other, each of a `kind`: `block`; `parked`, which is
/// freed and waits for other streams; `free`, with the streams whose work may still touch it as `users`; or `slab`. A slab has
/// blocks of `slot_size` bytes, of which `slots` has a letter each: `u` that somebody holds, `t` in the cache of a thread, or held
/// by somebody unknown here, `c` in a cache, `p` parked, `f` free. `unplaced` are bytes of memory at no address, `lost` such as are
/// never used again. `private_pools` has the same of each private pool, whose memory is in blocks of the device's own pool.
///
/// # Safety
/// `text` is null or valid for writes of `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_snapshot_json(kind: i32, ordinal: i32, text: *mut c_char, capacity: usize) -> usize {
    let found = guard(|| Ok(report::snapshot_json(heaps::heap(heaps::device(kind, ordinal)?)?)));
    // SAFETY: the caller's promise.
    found.map_or(0, |found| unsafe { write_text(&found, text, capacity) })
}

/// Writes a page of HTML with the map of the device's memory, and its figures: as `devmem_statistics_json` does. A page for people,
/// whose form may change. Nothing is asked of the device.
///
/// # Safety
/// `text` is null or valid for writes of `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_picture_html(kind: i32, ordinal: i32, text: *mut c_char, capacity: usize) -> usize {
    let found = guard(|| Ok(picture::html(heaps::heap(heaps::device(kind, ordinal)?)?)));
    // SAFETY: the caller's promise.
    found.map_or(0, |found| unsafe { write_text(&found, text, capacity) })
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    #[allow(clippy::panic, reason = "what is caught")]
    fn panics_are_caught_and_told() {
        let status = guard(|| -> Result<(), Failure> { panic!("of {} kinds", 2) });
        assert_eq!(status, Err(Status::Internal));
        // SAFETY: the text is valid until this thread's next failure.
        let text = unsafe { CStr::from_ptr(devmem_last_error()) };
        assert!(text.to_string_lossy().contains("of 2 kinds"), "{text:?}");
        assert_eq!(guard(|| Err::<(), _>(Failure::Null { what: "it" })), Err(Status::InvalidArgument));
        assert_eq!(guard(|| Ok(3)), Ok(3));
    }
}
