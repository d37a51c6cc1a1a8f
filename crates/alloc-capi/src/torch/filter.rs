//! Which allocations go to a private pool: a function of C++ that PyTorch passes.
//!
//! `begin_allocate_to_pool` gets a `std::function<bool(cudaStream_t)>` by value, which on every platform of PyTorch's Linux
//! packages means a pointer to one that the caller destroys when the call returns. Its layout is part of libstdc++'s
//! stable binary interface: two words of state, a function that copies and destroys it, and a function that calls it.
//!
//! The function may throw when it is copied and when it is called: PyTorch's asks the driver, and checks the answer. Rust can't catch
//! such an exception, only let it pass, so [`Filter::copy`] and [`Filter::accepts`] are for functions above which nobody catches
//! panics. To destroy it throws nothing, or ends the process in C++ too.

use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::thread::ThreadId;

use alloc_cuda::CudaStream;

type Manage = unsafe extern "C-unwind" fn(*mut StdFunction, *const StdFunction, c_int) -> bool;
type Invoke = unsafe extern "C-unwind" fn(*const StdFunction, *mut *mut c_void) -> bool;

/// `std::_Manager_operation`.
const CLONE: c_int = 2;
const DESTROY: c_int = 3;

/// A `std::function<bool(cudaStream_t)>` of libstdc++.
#[repr(C)]
pub(crate) struct StdFunction {
    state: [usize; 2],
    manage: Option<Manage>,
    invoke: Option<Invoke>,
}

/// Says whether an allocation on a stream belongs to a pool.
pub(crate) enum Filter {
    /// A copy of PyTorch's.
    Function(Box<StdFunction>),
    /// Without one: streams that are being captured, and everything that one thread allocates.
    Thread(ThreadId),
}

// SAFETY: PyTorch calls its own copies from any thread.
unsafe impl Send for Filter {}
// SAFETY: as above; the function captures values and is called as a constant.
unsafe impl Sync for Filter {}

impl std::fmt::Debug for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Function(_) => f.write_str("Function"),
            Self::Thread(thread) => f.debug_tuple("Thread").field(thread).finish(),
        }
    }
}

impl Filter {
    /// A copy of the caller's function; what the calling thread allocates, if there is none.
    ///
    /// # Safety
    /// `function` is `None` or a `std::function<bool(cudaStream_t)>` of libstdc++.
    pub(crate) unsafe fn copy(function: Option<NonNull<StdFunction>>) -> Self {
        let by_thread = Self::Thread(std::thread::current().id());
        let Some(from) = function else { return by_thread };
        // SAFETY: the caller's promise.
        let (manage, invoke) = unsafe { ((*from.as_ptr()).manage, (*from.as_ptr()).invoke) };
        let (Some(manage), Some(_)) = (manage, invoke) else { return by_thread };
        let mut copy = Box::new(StdFunction { state: [0; 2], manage: Some(manage), invoke });
        // SAFETY: this is what its copy constructor does: the manager of the original fills the state of the copy.
        unsafe { manage(&raw mut *copy, from.as_ptr(), CLONE) };
        Self::Function(copy)
    }

    /// Whether an allocation of the calling thread on `stream` is meant.
    pub(crate) fn accepts(&self, ordinal: u16, stream: u64) -> bool {
        match self {
            Self::Function(function) => {
                let mut handle: *mut c_void = std::ptr::without_provenance_mut(stream as usize);
                // SAFETY: the copy lives, and the argument is passed by reference, as its invoker takes it.
                function.invoke.is_some_and(|invoke| unsafe { invoke(&raw const **function, &raw mut handle) })
            }
            Self::Thread(thread) => {
                // SAFETY: a stream that PyTorch allocates for lives.
                let stream = unsafe { CudaStream::from_raw(ordinal, stream) };
                std::thread::current().id() == *thread
                    || stream.is_ok_and(|stream| stream.is_capturing().unwrap_or(false))
            }
        }
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        if let Self::Function(function) = self
            && let Some(manage) = function.manage
        {
            let this = &raw mut **function;
            // SAFETY: this is what its destructor does; the copy is destroyed once.
            unsafe { manage(this, this, DESTROY) };
        }
    }
}
