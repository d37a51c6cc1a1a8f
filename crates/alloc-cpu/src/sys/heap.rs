//! The system's heap, whatever global allocator the program has chosen.

use std::alloc::{GlobalAlloc, Layout, System};

/// Memory for `layout`, whose size is not zero; `None` if the heap has none.
///
/// The address is exposed: it may be made a pointer again.
pub(crate) fn heap_allocate(layout: Layout) -> Option<usize> {
    debug_assert!(layout.size() != 0);
    // SAFETY: callers make every layout with a size of at least one byte.
    let memory = unsafe { System.alloc(layout) };
    if memory.is_null() { None } else { Some(memory.expose_provenance()) }
}

/// Gives memory back to the heap.
///
/// # Safety
/// `address` came from [`heap_allocate`] with this `layout`, is given back once, and is not used again.
pub(crate) unsafe fn heap_release(address: usize, layout: Layout) {
    let memory = std::ptr::with_exposed_provenance_mut::<u8>(address);
    // SAFETY: the caller's promises are those of `dealloc`.
    unsafe { System.dealloc(memory, layout) };
}
