//! Arrays in our memory for whoever reads DLPack: NumPy, PyTorch, CuPy and others.

use std::ffi::c_void;

use buffer::Buffer;
use dlpark::ffi::{DLDataType, DLDataTypeCode, DLManagedTensor, DLManagedTensorVersioned};

use crate::failure::{Failure, Status};
use crate::{heaps, memory};

use super::{status, write};

/// The most dimensions that a tensor may have here.
const MOST_DIMENSIONS: i32 = 64;

/// Makes a tensor of zeros: a `DLManagedTensorVersioned` of DLPack 1, or with `versioned` 0 a `DLManagedTensor`. Its
/// elements are of DLPack's type `code` with `bits` bits, row by row. Work on `stream` may use it from now on; its
/// deleter gives the memory back once what was submitted to that stream by then is done.
///
/// # Safety
/// `shape` is valid for reads of `dimensions` numbers, `tensor` for a write; `stream` is a living stream of the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_dlpack_zeros(
    kind: i32,
    ordinal: i32,
    code: u8,
    bits: u8,
    shape: *const i64,
    dimensions: i32,
    stream: u64,
    versioned: i32,
    tensor: *mut *mut c_void,
) -> Status {
    status(|| {
        let count = usize::try_from(dimensions).ok().filter(|_| dimensions <= MOST_DIMENSIONS);
        let wrong = Failure::InvalidArgument { what: "number of dimensions", value: dimensions.into() };
        let count = count.ok_or(wrong)?;
        if shape.is_null() && count > 0 {
            return Err(Failure::Null { what: "shape" });
        }
        // SAFETY: the caller's promise.
        let shape = if count == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(shape, count) } };
        // SAFETY: as above.
        unsafe { write("tensor", tensor, std::ptr::null_mut()) }?;
        let device = heaps::device(kind, ordinal)?;
        let stream = memory::stream(device, stream);
        let element = DLDataType::new(DLDataTypeCode(code), bits, 1);
        let bytes = buffer_dlpack::bytes_of(shape, element)?;
        let buffer = Buffer::zeroed_on(heaps::heap(device)?.allocator(), bytes, stream)?;
        let raw: *mut c_void = if versioned == 0 {
            buffer_dlpack::export::<DLManagedTensor>(buffer, shape, element, stream)?.into_raw().cast()
        } else {
            buffer_dlpack::export::<DLManagedTensorVersioned>(buffer, shape, element, stream)?.into_raw().cast()
        };
        // SAFETY: as above.
        unsafe { write("tensor", tensor, raw) }
    })
}
