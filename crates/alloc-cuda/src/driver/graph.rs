//! Capture of a stream's work, and graphs of it.

use alloc_core::ProviderError;

use super::calls;
use super::captures::CAPTURES;
use super::context::Context;
use super::error::NEEDS_NEWER_DRIVER;
use super::stream::Target;

/// `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`: other threads stay free to do what a capture forbids.
const CAPTURE_THREAD_LOCAL: i32 = 1;

impl Context {
    /// Begins a capture, once nobody waits for a context. [`Context::end_capture`] is called once for it.
    ///
    /// # Safety
    /// The stream lives.
    pub(crate) unsafe fn begin_capture(&self, stream: Target) -> Result<(), ProviderError> {
        let _current = self.enter_for(stream)?;
        CAPTURES.begin(|| {
            // SAFETY: the caller's promise.
            self.check("cuStreamBeginCapture", unsafe {
                calls::cuStreamBeginCapture_v2(stream.handle(), CAPTURE_THREAD_LOCAL)
            })
        })
    }

    /// Ends a capture and returns its graph.
    ///
    /// # Safety
    /// The stream lives.
    pub(crate) unsafe fn end_capture(&self, stream: Target) -> Result<u64, ProviderError> {
        // SAFETY: the caller's promise.
        let graph = unsafe { self.take_graph(stream) };
        CAPTURES.end();
        graph
    }

    /// # Safety
    /// The stream lives.
    unsafe fn take_graph(&self, stream: Target) -> Result<u64, ProviderError> {
        let _current = self.enter_for(stream)?;
        let mut graph = 0;
        // SAFETY: the caller's promise; the out parameter is a local.
        self.check("cuStreamEndCapture", unsafe { calls::cuStreamEndCapture(stream.handle(), &raw mut graph) })?;
        Ok(graph)
    }

    /// Makes a graph executable.
    ///
    /// # Safety
    /// The graph lives.
    pub(crate) unsafe fn instantiate(&self, graph: u64) -> Result<u64, ProviderError> {
        let _current = self.enter_relaxed()?;
        let mut executable = 0;
        // SAFETY: the caller's promise; the out parameter is a local.
        let code = unsafe { calls::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0) };
        if code == NEEDS_NEWER_DRIVER {
            // Drivers before CUDA 11.4 have this one only.
            let (node, text) = (std::ptr::null_mut(), std::ptr::null_mut());
            // SAFETY: as above; the driver is told of no place for what it would say of a failure.
            let code = unsafe { calls::cuGraphInstantiate_v2(&raw mut executable, graph, node, text, 0) };
            return self.check("cuGraphInstantiate", code).map(|()| executable);
        }
        self.check("cuGraphInstantiateWithFlags", code)?;
        Ok(executable)
    }

    /// # Safety
    /// Graph and stream live, and so does all memory that the graph uses until the stream has come past it.
    pub(crate) unsafe fn launch_graph(&self, executable: u64, stream: Target) -> Result<(), ProviderError> {
        let _current = self.enter_for(stream)?;
        // SAFETY: the caller's promise.
        self.check("cuGraphLaunch", unsafe { calls::cuGraphLaunch(executable, stream.handle()) })
    }

    /// # Safety
    /// The graph came from [`Context::end_capture`] and is destroyed once.
    pub(crate) unsafe fn destroy_graph(&self, graph: u64) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise.
        self.check("cuGraphDestroy", unsafe { calls::cuGraphDestroy(graph) })
    }

    /// # Safety
    /// The graph came from [`Context::instantiate`], is destroyed once, and is not running.
    pub(crate) unsafe fn destroy_executable(&self, executable: u64) -> Result<(), ProviderError> {
        // SAFETY: the caller's promise.
        self.check("cuGraphExecDestroy", unsafe { calls::cuGraphExecDestroy(executable) })
    }
}
