//! The driver's functions, declared once.
//!
//! `cust::sys` declares their result as a Rust enum. A newer driver may return a code that the enum lacks, which
//! would be undefined behaviour. So each function of `cust::sys` is called through a pointer whose result is an
//! integer; the number of arguments is checked against `cust::sys` when this compiles, and the structures' layouts
//! by the test below.

#![allow(non_snake_case, clippy::too_many_arguments)]

use std::ffi::{c_char, c_void};

/// What every call returns without the feature `cuda`; no driver uses negative codes.
pub(crate) const NOT_BUILT: i32 = -1;

const _: () = assert!(size_of::<usize>() == size_of::<u64>(), "handles and addresses are passed as 64-bit integers");

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub(crate) kind: i32,
    pub(crate) id: i32,
}

impl Location {
    /// `CU_MEM_LOCATION_TYPE_DEVICE`.
    pub(crate) const fn device(id: i32) -> Self {
        Self { kind: 1, id }
    }
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AllocationProperties {
    pub(crate) kind: i32,
    pub(crate) handle_types: i32,
    pub(crate) location: Location,
    pub(crate) win32_meta_data: *mut c_void,
    pub(crate) compression: u8,
    pub(crate) gpu_direct_rdma_capable: u8,
    pub(crate) usage: u16,
    pub(crate) reserved: [u8; 4],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct AccessDescription {
    pub(crate) location: Location,
    pub(crate) flags: i32,
}

/// `CUmemPoolProps`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolProperties {
    pub(crate) kind: i32,
    pub(crate) handle_types: i32,
    pub(crate) location: Location,
    pub(crate) win32_attributes: *mut c_void,
    pub(crate) reserved: [u8; 64],
}

#[cfg(feature = "cuda")]
macro_rules! any {
    ($type:ty) => {
        _
    };
}

macro_rules! driver_calls {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?);)*) => {$(
        #[cfg(feature = "cuda")]
        #[inline]
        pub(crate) unsafe fn $name($($argument: $type),*) -> i32 {
            let declared: unsafe extern "C" fn($(any!($type)),*) -> cust::sys::CUresult = cust::sys::$name;
            // SAFETY: both types are pointers to a C function with as many arguments, each of the same size and
            // class (64-bit integers and pointers, or the same 32-bit integers); the result is the enum's integer.
            let function: unsafe extern "C" fn($($type),*) -> i32 = unsafe { std::mem::transmute(declared) };
            // SAFETY: the caller keeps the contract of the driver's function.
            unsafe { function($($argument),*) }
        }

        #[cfg(not(feature = "cuda"))]
        #[inline]
        pub(crate) unsafe fn $name($($argument: $type),*) -> i32 {
            $(let _ = $argument;)*
            NOT_BUILT
        }
    )*};
}

driver_calls! {
    fn cuInit(flags: u32);
    fn cuDriverGetVersion(version: *mut i32);
    fn cuGetErrorName(code: i32, name: *mut *const c_char);

    fn cuDeviceGet(device: *mut i32, ordinal: i32);
    fn cuDeviceGetCount(count: *mut i32);
    fn cuDeviceGetName(name: *mut c_char, bytes: i32, device: i32);
    fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, device: i32);
    fn cuDeviceCanAccessPeer(can: *mut i32, device: i32, peer: i32);
    fn cuDevicePrimaryCtxRetain(context: *mut u64, device: i32);
    fn cuDevicePrimaryCtxGetState(device: i32, flags: *mut u32, active: *mut i32);
    fn cuCtxGetCurrent(context: *mut u64);
    fn cuCtxGetDevice(device: *mut i32);
    fn cuCtxPushCurrent_v2(context: u64);
    fn cuCtxPopCurrent_v2(context: *mut u64);
    fn cuCtxSynchronize();
    fn cuCtxEnablePeerAccess(peer: u64, flags: u32);
    fn cuThreadExchangeStreamCaptureMode(mode: *mut i32);

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize);
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize);
    fn cuMemFree_v2(address: u64);
    fn cuMemHostAlloc(address: *mut *mut c_void, bytes: usize, flags: u32);
    fn cuMemFreeHost(address: *mut c_void);
    fn cuMemHostRegister_v2(address: *mut c_void, bytes: usize, flags: u32);
    fn cuMemHostUnregister(address: *mut c_void);
    fn cuMemAddressReserve(address: *mut u64, bytes: usize, align: usize, hint: u64, flags: u64);
    fn cuMemAddressFree(address: u64, bytes: usize);
    fn cuMemCreate(handle: *mut u64, bytes: usize, properties: *const AllocationProperties, flags: u64);
    fn cuMemRelease(handle: u64);
    fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, flags: u64);
    fn cuMemUnmap(address: u64, bytes: usize);
    fn cuMemSetAccess(address: u64, bytes: usize, access: *const AccessDescription, count: usize);
    fn cuMemGetAllocationGranularity(bytes: *mut usize, properties: *const AllocationProperties, option: i32);
    fn cuMemExportToShareableHandle(shareable: *mut c_void, handle: u64, kind: i32, flags: u64);
    fn cuMemImportFromShareableHandle(handle: *mut u64, shareable: *mut c_void, kind: i32);
    fn cuMemGetAllocationPropertiesFromHandle(properties: *mut AllocationProperties, handle: u64);
    fn cuMemPoolCreate(pool: *mut u64, properties: *const PoolProperties);
    fn cuMemPoolDestroy(pool: u64);
    fn cuMemPoolTrimTo(pool: u64, keep: usize);
    fn cuMemPoolSetAttribute(pool: u64, attribute: i32, value: *mut c_void);
    fn cuMemPoolGetAttribute(pool: u64, attribute: i32, value: *mut c_void);
    fn cuMemPoolSetAccess(pool: u64, access: *const AccessDescription, count: usize);
    fn cuMemAllocFromPoolAsync(address: *mut u64, bytes: usize, pool: u64, stream: u64);
    fn cuMemFreeAsync(address: u64, stream: u64);

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: u64);
    fn cuMemcpyPeerAsync(to: u64, to_context: u64, from: u64, from_context: u64, bytes: usize, stream: u64);
    fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: u64);

    fn cuStreamCreateWithPriority(stream: *mut u64, flags: u32, priority: i32);
    fn cuStreamDestroy_v2(stream: u64);
    fn cuStreamGetCtx(stream: u64, context: *mut u64);
    fn cuStreamQuery(stream: u64);
    fn cuStreamSynchronize(stream: u64);
    fn cuStreamWaitEvent(stream: u64, event: u64, flags: u32);
    fn cuStreamIsCapturing(stream: u64, status: *mut i32);
    fn cuStreamBeginCapture_v2(stream: u64, mode: i32);
    fn cuStreamEndCapture(stream: u64, graph: *mut u64);

    fn cuEventCreate(event: *mut u64, flags: u32);
    fn cuEventDestroy_v2(event: u64);
    fn cuEventRecord(event: u64, stream: u64);
    fn cuEventQuery(event: u64);
    fn cuEventSynchronize(event: u64);

    fn cuGraphInstantiateWithFlags(executable: *mut u64, graph: u64, flags: u64);
    fn cuGraphInstantiate_v2(executable: *mut u64, graph: u64, node: *mut u64, text: *mut c_char, bytes: usize);
    fn cuGraphLaunch(executable: u64, stream: u64);
    fn cuGraphExecDestroy(executable: u64);
    fn cuGraphDestroy(graph: u64);

    fn cuModuleLoadData(module: *mut u64, image: *const c_void);
    fn cuModuleUnload(module: u64);
    fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char);
    fn cuLaunchKernel(
        function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32,
        stream: u64, parameters: *mut *mut c_void, extra: *mut *mut c_void,
    );
}

#[cfg(all(test, feature = "cuda"))]
mod tests {
    use std::mem::{align_of, offset_of, size_of};

    use cust::sys;

    use super::*;

    #[test]
    fn structures_are_laid_out_as_the_driver_has_them() {
        assert_eq!(size_of::<AllocationProperties>(), size_of::<sys::CUmemAllocationProp>());
        assert_eq!(align_of::<AllocationProperties>(), align_of::<sys::CUmemAllocationProp>());
        assert_eq!(offset_of!(AllocationProperties, location), offset_of!(sys::CUmemAllocationProp, location));
        assert_eq!(offset_of!(AllocationProperties, compression), offset_of!(sys::CUmemAllocationProp, allocFlags));
        assert_eq!(offset_of!(AllocationProperties, gpu_direct_rdma_capable), {
            offset_of!(sys::CUmemAllocationProp, allocFlags.gpuDirectRDMACapable)
        });
        assert_eq!(size_of::<AccessDescription>(), size_of::<sys::CUmemAccessDesc>());
        assert_eq!(offset_of!(AccessDescription, flags), offset_of!(sys::CUmemAccessDesc, flags));
        assert_eq!(size_of::<PoolProperties>(), size_of::<sys::CUmemPoolProps>());
        assert_eq!(offset_of!(PoolProperties, location), offset_of!(sys::CUmemPoolProps, location));
        assert_eq!(offset_of!(PoolProperties, reserved), offset_of!(sys::CUmemPoolProps, reserved));
    }
}
