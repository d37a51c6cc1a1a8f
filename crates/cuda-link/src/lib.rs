//! The CUDA driver without a toolkit, and one binary for machines with and without a driver.
//!
//! Bindings such as `cust_raw` link against `libcuda`, which comes with the driver; its link-time stub comes with the
//! toolkit. A program linked that way needs a toolkit to be built and does not even start where no driver is. This
//! crate defines every symbol of `cust_raw` itself: each is one jump through a table. [`load`], or the first
//! `cuInit`, opens `libcuda.so.1` and fills the table. Without a driver `cuInit` returns `CUDA_ERROR_NO_DEVICE`, as
//! a driver without a card does.
//!
//! The symbols are hidden: a shared library that contains this crate exports none of them.
//!
//! `cust_raw`'s build script insists on a directory with a `lib64` in it, in the variable `CUDA_LIBRARY_PATH`. Where no
//! toolkit is installed, any will do, with nothing in it: this crate tells the linker where its own empty `libcuda.a` is.
//!
//! Supported: Linux on x86-64 and AArch64. Elsewhere the crate defines no symbols, and [`load`] reports
//! [`Driver::Unsupported`].

mod symbols;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod trampoline;

use std::path::PathBuf;

pub use symbols::SYMBOLS;

/// The environment variable that names a library to load in the driver's place.
pub const DRIVER_VARIABLE: &str = "ALLOC_CUDA_DRIVER";

/// The name under which the dynamic loader finds the driver.
pub const DRIVER_NAME: &str = "libcuda.so.1";

/// What became of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Driver {
    /// It is loaded.
    Loaded {
        /// The library, as it was asked for.
        library: PathBuf,
        /// Number of symbols of [`SYMBOLS`] that it lacks: calls to them return
        /// `CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER`.
        missing: usize,
    },
    /// The dynamic loader could not open it.
    Missing {
        /// The library, as it was asked for.
        library: PathBuf,
        /// What the dynamic loader says.
        reason: String,
    },
    /// This crate does not serve this platform; the platform's own import library is linked instead.
    Unsupported,
}

/// Loads the driver, once; later calls return the same.
///
/// ```
/// match cuda_link::load() {
///     cuda_link::Driver::Loaded { library, .. } => println!("driver: {}", library.display()),
///     other => println!("no driver: {other:?}"),
/// }
/// ```
pub fn load() -> &'static Driver {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        trampoline::load(None)
    }
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        &Driver::Unsupported
    }
}

/// Loads `library` in the driver's place, unless a driver is loaded already: a fake for tests, say. Returns what is
/// loaded now.
///
/// # Safety
/// The library's functions do what those of the CUDA driver with the same names do, or at least take the same
/// arguments.
pub unsafe fn load_from(library: impl Into<PathBuf>) -> &'static Driver {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        trampoline::load(Some(library.into()))
    }
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
    {
        let _ = library.into();
        &Driver::Unsupported
    }
}
