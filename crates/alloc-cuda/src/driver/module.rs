//! Kernels from PTX text, as much of it as tests and examples need.

use std::ffi::{CStr, c_void};

use alloc_core::ProviderError;

use super::calls;
use super::context::Context;
use super::error::{INVALID_PTX, error};
use super::stream::Target;

/// Whether this is no binary image. The driver knows those by their first four bytes, and reads as far as their headers say, which
/// may be past the end of the string.
fn is_text(image: &CStr) -> bool {
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    image.to_bytes().first_chunk::<4>().is_some_and(|start| start.iter().all(is_text))
}

impl Context {
    /// Loads PTX text.
    pub(crate) fn load_module(&self, image: &CStr) -> Result<u64, ProviderError> {
        const CALL: &str = "cuModuleLoadData";
        if !is_text(image) {
            return Err(error(self.name(), CALL, INVALID_PTX));
        }
        let _current = self.enter_relaxed()?;
        let mut module = 0;
        // SAFETY: the context is current; the image is text that a zero byte ends, as PTX must be; the out parameter is a local.
        self.check(CALL, unsafe { calls::cuModuleLoadData(&raw mut module, image.as_ptr().cast::<c_void>()) })?;
        Ok(module)
    }

    /// # Safety
    /// The module came from [`Context::load_module`], is unloaded once, and none of its kernels runs.
    pub(crate) unsafe fn unload_module(&self, module: u64) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: the caller's promise.
        self.check("cuModuleUnload", unsafe { calls::cuModuleUnload(module) })
    }

    /// # Safety
    /// The module is loaded.
    pub(crate) unsafe fn function(&self, module: u64, name: &CStr) -> Result<u64, ProviderError> {
        let mut function = 0;
        // SAFETY: the caller's promise; the name is a C string; the out parameter is a local.
        self.check("cuModuleGetFunction", unsafe {
            calls::cuModuleGetFunction(&raw mut function, module, name.as_ptr())
        })?;
        Ok(function)
    }

    /// Launches a kernel on a one-dimensional grid.
    ///
    /// # Safety
    /// The function is of a loaded module, `parameters` points to as many values of the types that it takes, and
    /// what the kernel does with them is right.
    pub(crate) unsafe fn launch(
        &self,
        function: u64,
        (blocks, threads): (u32, u32),
        parameters: &mut [*mut c_void],
        stream: Target,
    ) -> Result<(), ProviderError> {
        let _current = self.enter_for(stream)?;
        // SAFETY: the caller's promise.
        self.check("cuLaunchKernel", unsafe {
            calls::cuLaunchKernel(
                function,
                blocks,
                1,
                1,
                threads,
                1,
                1,
                0,
                stream.handle(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        })
    }
}
