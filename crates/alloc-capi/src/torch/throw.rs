//! Failures as the exceptions that PyTorch throws itself.
//!
//! A pluggable allocator that returns a null pointer gives the program a tensor at address zero, so a failure has to be
//! an exception. PyTorch turns a C++ `c10::OutOfMemoryError` into `torch.OutOfMemoryError`, and any other `c10::Error`
//! into `RuntimeError`. Both are made of what PyTorch's libraries export, found at run time: this library links
//! to no C++ and loads without PyTorch.
//!
//! The exception passes through frames of this library that are declared `extern "C-unwind"` and have nothing to
//! drop.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use crate::failure::Status;

/// `std::string` of libstdc++: 32 bytes that only its own functions look into.
type StdString = MaybeUninit<[u64; 4]>;

/// `c10::SourceLocation`.
#[derive(Clone, Copy)]
#[repr(C)]
struct SourceLocation {
    function: *const c_char,
    file: *const c_char,
    line: u32,
}

type AllocateException = unsafe extern "C-unwind" fn(usize) -> *mut c_void;
type Throw = unsafe extern "C-unwind" fn(*mut c_void, *const c_void, *const c_void) -> !;
type NewString = unsafe extern "C-unwind" fn(*mut StdString, *const c_char, usize, *const u8);
type DropString = unsafe extern "C-unwind" fn(*mut StdString);
type NewError = unsafe extern "C-unwind" fn(*mut c_void, SourceLocation, *mut StdString);
type CheckFail = unsafe extern "C-unwind" fn(*const c_char, *const c_char, u32, *const c_char) -> !;

/// More than a `c10::Error` takes (about 130 bytes). What an exception leaves unused costs nothing.
const EXCEPTION_BYTES: usize = 512;

/// What it takes to throw a `c10::OutOfMemoryError`.
#[derive(Clone, Copy)]
struct Typed {
    allocate_exception: AllocateException,
    throw: Throw,
    new_string: NewString,
    drop_string: DropString,
    new_error: NewError,
    type_info: usize,
    /// The address of the first virtual function, which is the destructor.
    virtuals: usize,
}

/// What PyTorch's libraries in this process offer.
#[derive(Clone, Copy, Default)]
struct Thrower {
    typed: Option<Typed>,
    check_fail: Option<CheckFail>,
}

const LIBRARIES: [&CStr; 4] = [c"libc10_cuda.so", c"libtorch_cuda.so", c"libc10.so", c"libstdc++.so.6"];

/// The address of a symbol in one of the libraries, if that is loaded.
#[cfg(target_os = "linux")]
fn find(symbol: &CStr) -> Option<usize> {
    LIBRARIES.iter().find_map(|library| {
        // SAFETY: both names are C strings; nothing is loaded by this.
        let found = unsafe {
            let handle = libc::dlopen(library.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY);
            if handle.is_null() { std::ptr::null_mut() } else { libc::dlsym(handle, symbol.as_ptr()) }
        };
        Some(found.addr()).filter(|address| *address != 0)
    })
}

#[cfg(not(target_os = "linux"))]
fn find(_symbol: &CStr) -> Option<usize> {
    None
}

/// A function by its name.
///
/// # Safety
/// `F` is the type of the pointer to the function of that name.
unsafe fn function<F: Copy>(symbol: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<usize>()) };
    let address = find(symbol)?;
    // SAFETY: a function pointer is as large as an address, and this one leads to a function of its type.
    Some(unsafe { std::mem::transmute_copy(&std::ptr::with_exposed_provenance::<c_void>(address)) })
}

fn typed() -> Option<Typed> {
    // SAFETY: the signatures are those of the C++ functions with these names.
    unsafe {
        Some(Typed {
            allocate_exception: function(c"__cxa_allocate_exception")?,
            throw: function(c"__cxa_throw")?,
            new_string: function(c"_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEC1EPKcmRKS3_")?,
            drop_string: function(c"_ZNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEED1Ev")?,
            new_error: function(
                c"_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
            )?,
            type_info: find(c"_ZTIN3c1016OutOfMemoryErrorE")?,
            // A table of virtual functions starts with the offset to the top and the type.
            virtuals: find(c"_ZTVN3c1016OutOfMemoryErrorE")? + 2 * size_of::<usize>(),
        })
    }
}

fn thrower() -> Thrower {
    static FOUND: OnceLock<Thrower> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return *found;
    }
    // SAFETY: the signature is that of `c10::detail::torchCheckFail` with a C string.
    let check_fail = unsafe { function(c"_ZN3c106detail14torchCheckFailEPKcS2_jS2_") };
    let thrower = Thrower { typed: typed(), check_fail };
    if thrower.check_fail.is_some() {
        // PyTorch is loaded; before that the next call looks again.
        FOUND.get_or_init(|| thrower);
    }
    thrower
}

/// How much of PyTorch's exceptions can be had in this process: 0 for nothing, 1 for `RuntimeError`, 2 for
/// `torch.OutOfMemoryError` too.
pub(crate) fn support() -> c_int {
    let thrower = thrower();
    match (thrower.typed.is_some(), thrower.check_fail.is_some()) {
        (true, _) => 2,
        (false, true) => 1,
        (false, false) => 0,
    }
}

/// Throws the exception for a failure, with the calling thread's last error as its text. Returns if PyTorch is not in
/// this process.
///
/// # Safety
/// All frames up to the caller in PyTorch let exceptions of C++ pass, and have nothing to drop.
pub(crate) unsafe fn throw(status: Status) {
    let thrower = thrower();
    let text = crate::failure::last();
    let (function, file) = (c"devmem_torch_alloc".as_ptr(), c"device_memory".as_ptr());
    if let (Status::OutOfMemory, Some(typed)) = (status, thrower.typed) {
        // SAFETY: the functions are those of PyTorch and libstdc++. The error is made in memory of an exception, by the
        // constructor that its subclass inherits and has no fields beyond; then it gets the subclass's virtual functions.
        unsafe {
            let mut message = StdString::uninit();
            let allocator = 0_u8;
            (typed.new_string)(&raw mut message, text, CStr::from_ptr(text).count_bytes(), &raw const allocator);
            let exception = (typed.allocate_exception)(EXCEPTION_BYTES);
            (typed.new_error)(exception, SourceLocation { function, file, line: 0 }, &raw mut message);
            (typed.drop_string)(&raw mut message);
            exception.cast::<usize>().write(typed.virtuals);
            let virtuals = std::ptr::with_exposed_provenance::<*const c_void>(typed.virtuals);
            let type_info = std::ptr::with_exposed_provenance(typed.type_info);
            (typed.throw)(exception, type_info, *virtuals);
        }
    }
    if let Some(check_fail) = thrower.check_fail {
        // SAFETY: all three texts are C strings.
        unsafe { check_fail(function, file, 0, text) };
    }
}
