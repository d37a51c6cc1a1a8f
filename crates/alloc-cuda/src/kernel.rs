//! Kernels from PTX text: as much as tests, examples and small programs need.

use std::ffi::{CStr, c_void};
use std::sync::Arc;

use alloc_core::ProviderError;

use crate::driver::Context;
use crate::put_off;
use crate::stream::CudaStream;

/// A loaded module of kernels.
#[derive(Debug)]
pub struct Module {
    context: &'static Context,
    module: u64,
}

/// A kernel; keeps its module loaded.
#[derive(Clone, Debug)]
pub struct Kernel {
    module: Arc<Module>,
    function: u64,
}

/// A value that a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Argument {
    /// `.u32` or `.b32`.
    U32(u32),
    /// `.u64`, `.b64` or an address.
    U64(u64),
    /// `.f32`.
    F32(f32),
    /// `.f64`.
    F64(f64),
}

impl Module {
    /// Compiles PTX text for the device `ordinal`.
    ///
    /// # Errors
    /// What the driver reports: the text is wrong or asks for a newer device; or there is no CUDA.
    pub fn from_ptx(ordinal: u16, text: &CStr) -> Result<Arc<Self>, ProviderError> {
        let context = Context::open(ordinal)?;
        Ok(Arc::new(Self { context, module: context.load_module(text)? }))
    }

    /// A kernel by its name.
    ///
    /// # Errors
    /// What the driver reports; `CUDA_ERROR_NOT_FOUND` if there is none of the name.
    pub fn kernel(self: &Arc<Self>, name: &CStr) -> Result<Kernel, ProviderError> {
        // SAFETY: the module is loaded as long as this.
        let function = unsafe { self.context.function(self.module, name) }?;
        Ok(Kernel { module: Arc::clone(self), function })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let (context, module) = (self.context, self.module);
        // Its kernels may still run. What can't be waited for stays loaded.
        let _ = put_off::once_idle(context, move || {
            // SAFETY: the module is ours, no `Kernel` is left, and the context's work is done.
            unsafe { context.unload_module(module) }
        });
    }
}

impl Kernel {
    /// Launches `blocks` blocks of `threads` threads on a stream.
    ///
    /// # Errors
    /// What the driver reports.
    ///
    /// # Safety
    /// The arguments are those that the kernel takes, in number and types; what it does with the memory that they
    /// name is right; the stream is of the module's device.
    pub unsafe fn launch(
        &self,
        stream: &CudaStream,
        (blocks, threads): (u32, u32),
        arguments: &[Argument],
    ) -> Result<(), ProviderError> {
        let mut values: Vec<u64> = arguments
            .iter()
            .map(|argument| match *argument {
                // Little-endian, so a pointer to the wide value is one to the narrow one.
                Argument::U32(value) => u64::from(value),
                Argument::U64(value) => value,
                Argument::F32(value) => u64::from(value.to_bits()),
                Argument::F64(value) => value.to_bits(),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = values.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        // SAFETY: the module is loaded as long as this; each pointer is to a value of its argument's type, on the
        // little-endian hosts that CUDA has; the rest is the caller's promise.
        unsafe { self.module.context.launch(self.function, (blocks, threads), &mut pointers, stream.target()) }
    }
}
