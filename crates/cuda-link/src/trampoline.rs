//! The table, the jumps through it, and the loader that fills it.

use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::symbols::{COUNT, SYMBOLS, for_each_symbol};
use crate::{DRIVER_NAME, DRIVER_VARIABLE, Driver};

const CUDA_ERROR_NOT_INITIALIZED: c_int = 3;
const CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER: c_int = 36;
const CUDA_ERROR_NO_DEVICE: c_int = 100;

static TABLE: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(not_loaded as *mut c_void) }; COUNT];
static REAL_INIT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
static DRIVER: OnceLock<Driver> = OnceLock::new();

/// Stands in for every entry before the driver is loaded. Under the C calling convention the caller cleans up, so
/// one function without parameters serves callers of all signatures.
extern "C" fn not_loaded() -> c_int {
    CUDA_ERROR_NOT_INITIALIZED
}

/// Stands in for an entry that the loaded driver lacks.
extern "C" fn too_old() -> c_int {
    CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER
}

/// `cuInit`: loads the driver and initialises it.
extern "C" fn init(flags: c_uint) -> c_int {
    load(None);
    let real = REAL_INIT.load(Ordering::Acquire);
    if real.is_null() {
        return CUDA_ERROR_NO_DEVICE;
    }
    // SAFETY: the pointer was found under the name `cuInit` in the library that is loaded as the driver, where it is
    // a function of this signature.
    let real: extern "C" fn(c_uint) -> c_int = unsafe { std::mem::transmute(real) };
    real(flags)
}

pub(crate) fn load(library: Option<PathBuf>) -> &'static Driver {
    DRIVER.get_or_init(|| {
        let library = library
            .or_else(|| std::env::var_os(DRIVER_VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from))
            .unwrap_or_else(|| PathBuf::from(DRIVER_NAME));
        open(library)
    })
}

fn open(library: PathBuf) -> Driver {
    let Ok(name) = CString::new(library.as_os_str().as_bytes()) else {
        return Driver::Missing { library, reason: "the path has a zero byte".to_owned() };
    };
    // SAFETY: the name is a C string. The library's constructors run: it is the driver, or what the user put in its
    // place.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: `dlerror` returns null or a C string that stays valid until this thread's next `dl` call.
        let reason = unsafe {
            let message = libc::dlerror();
            if message.is_null() { String::new() } else { CStr::from_ptr(message).to_string_lossy().into_owned() }
        };
        return Driver::Missing { library, reason };
    }
    let mut missing = 0;
    for (entry, symbol) in TABLE.iter().zip(SYMBOLS) {
        let found = find(handle, symbol);
        missing += usize::from(found.is_null());
        let target = if found.is_null() { too_old as *mut c_void } else { found };
        entry.store(target, Ordering::Release);
    }
    // Last: whoever sees this one sees the table filled.
    REAL_INIT.store(find(handle, "cuInit"), Ordering::Release);
    Driver::Loaded { library, missing }
}

fn find(handle: *mut c_void, symbol: &str) -> *mut c_void {
    let Ok(name) = CString::new(symbol) else {
        return std::ptr::null_mut();
    };
    // SAFETY: the handle came from `dlopen` and is never closed; the name is a C string.
    unsafe { libc::dlsym(handle, name.as_ptr()) }
}

#[cfg(target_arch = "x86_64")]
macro_rules! define {
    ($($name:ident)*) => {
        std::arch::global_asm!(
            ".pushsection .text.cuda_link,\"ax\",@progbits",
            ".set cuda_link_index, 0",
            ".macro cuda_link_jump name",
            ".globl \\name",
            ".hidden \\name",
            ".type \\name,@function",
            "\\name: jmp qword ptr [rip + {table} + 8 * cuda_link_index]",
            ".size \\name, . - \\name",
            ".set cuda_link_index, cuda_link_index + 1",
            ".endm",
            $(concat!("cuda_link_jump ", stringify!($name)),)*
            ".purgem cuda_link_jump",
            ".globl cuInit",
            ".hidden cuInit",
            ".type cuInit,@function",
            "cuInit: jmp {init}",
            ".size cuInit, . - cuInit",
            ".popsection",
            table = sym TABLE,
            init = sym init,
        );
    };
}

#[cfg(target_arch = "aarch64")]
macro_rules! define {
    ($($name:ident)*) => {
        std::arch::global_asm!(
            ".pushsection .text.cuda_link,\"ax\",@progbits",
            ".p2align 2",
            ".set cuda_link_index, 0",
            ".macro cuda_link_jump name",
            ".globl \\name",
            ".hidden \\name",
            ".type \\name,@function",
            "\\name: adrp x16, {table} + 8 * cuda_link_index",
            "ldr x16, [x16, :lo12:{table} + 8 * cuda_link_index]",
            "br x16",
            ".size \\name, . - \\name",
            ".set cuda_link_index, cuda_link_index + 1",
            ".endm",
            $(concat!("cuda_link_jump ", stringify!($name)),)*
            ".purgem cuda_link_jump",
            ".globl cuInit",
            ".hidden cuInit",
            ".type cuInit,@function",
            "cuInit: b {init}",
            ".size cuInit, . - cuInit",
            ".popsection",
            table = sym TABLE,
            init = sym init,
        );
    };
}

for_each_symbol!(define);

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn cuDeviceGetCount(count: *mut c_int) -> c_int;
        fn cuProfilerStop() -> c_int;
    }

    #[test]
    fn each_symbol_jumps_through_its_own_entry() {
        extern "C" fn first() -> c_int {
            1001
        }
        extern "C" fn last() -> c_int {
            1002
        }
        let at = |name| SYMBOLS.iter().position(|symbol| *symbol == name).unwrap();
        TABLE[at("cuDeviceGetCount")].store(first as *mut c_void, Ordering::Release);
        TABLE[at("cuProfilerStop")].store(last as *mut c_void, Ordering::Release);
        // SAFETY: both entries are functions of this test that ignore their arguments.
        let got = unsafe { (cuDeviceGetCount(std::ptr::null_mut()), cuProfilerStop()) };
        assert_eq!(got, (1001, 1002));
        assert_eq!(at("cuProfilerStop"), COUNT - 1);
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let Driver::Missing { library, reason } = open(PathBuf::from("/nonexistent/libcuda.so.1")) else {
            panic!("it can't be there");
        };
        assert_eq!(library, PathBuf::from("/nonexistent/libcuda.so.1"));
        assert!(reason.contains("/nonexistent/libcuda.so.1"), "{reason}");
    }
}
