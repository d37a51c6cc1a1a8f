//! Arrays in our memory for whoever reads DLPack: NumPy, PyTorch, CuPy and others.

use std::ffi::{CStr, c_char, c_int, c_void};

use buffer::Buffer;
use dlpark::ffi::{DLDataType, DLDataTypeCode, DLManagedTensor, DLManagedTensorVersioned};

use crate::failure::{Failure, Status};
use crate::{heaps, memory};

use super::{guard, status, write};

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
        let buffer = Buffer::zeroed_on(heaps::heap(device)?, bytes, stream)?;
        let raw: *mut c_void = if versioned == 0 {
            buffer_dlpack::export::<DLManagedTensor>(buffer, shape, element, stream)?.into_raw().cast()
        } else {
            buffer_dlpack::export::<DLManagedTensorVersioned>(buffer, shape, element, stream)?.into_raw().cast()
        };
        // SAFETY: as above.
        unsafe { write("tensor", tensor, raw) }
    })
}

/// Hands a tensor of `devmem_dlpack_zeros` to work on another stream of its device: that work comes after the zeros, and all
/// else that the tensor's own stream was given so far, and the memory is not used again before it is done.
///
/// # Safety
/// `tensor` is such a tensor and lives, `versioned` is what it was made with; `stream` is a living stream of its device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_dlpack_hand_to(tensor: *const c_void, versioned: i32, stream: u64) -> Status {
    status(|| {
        if tensor.is_null() {
            return Err(Failure::Null { what: "tensor" });
        }
        // SAFETY: the caller's promise.
        let data = unsafe {
            if versioned == 0 {
                (*tensor.cast::<DLManagedTensor>()).dl_tensor.data
            } else {
                (*tensor.cast::<DLManagedTensorVersioned>()).dl_tensor.data
            }
        };
        // One without elements has no memory.
        if data.is_null() { Ok(()) } else { memory::hand_to(data.expose_provenance() as u64, stream) }
    })
}

/// The destructor of a capsule of Python with a tensor of `devmem_dlpack_zeros`: lets the tensor go, unless a consumer has
/// taken it and renamed the capsule. Python destroys capsules while an exception is on its way, and when the interpreter
/// has all but ended, where no function that is written in Python can run.
///
/// # Safety
/// Called by Python; a capsule named `dltensor` or `dltensor_versioned` holds such a tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn devmem_dlpack_drop_capsule(capsule: *mut c_void) {
    let _ = guard(|| {
        // SAFETY: the signatures are those of Python's functions with these names.
        let functions = unsafe { (function(c"PyCapsule_IsValid"), function(c"PyCapsule_GetPointer")) };
        let (Some(is_valid), Some(pointer_of)): (Option<IsValid>, Option<PointerOf>) = functions else {
            return Err(Failure::Dlpack { message: "a capsule was to be destroyed without Python".into() });
        };
        let held = |name: &CStr| {
            // SAFETY: Python vouches for the capsule, and names are C strings. Of a capsule that has the name neither
            // function touches the exception that may be on its way.
            unsafe { (is_valid(capsule, name.as_ptr()) != 0).then(|| pointer_of(capsule, name.as_ptr())) }
        };
        // SAFETY: by its name the capsule holds such a tensor, which nobody has taken and nobody finds here again.
        unsafe {
            if let Some(tensor) = held(c"dltensor").map(<*mut c_void>::cast::<DLManagedTensor>) {
                (*tensor).deleter.into_iter().for_each(|delete| delete(tensor));
            }
            if let Some(tensor) = held(c"dltensor_versioned").map(<*mut c_void>::cast::<DLManagedTensorVersioned>) {
                (*tensor).deleter.into_iter().for_each(|delete| delete(tensor));
            }
        }
        Ok(())
    });
}

type IsValid = unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int;
type PointerOf = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

/// A function of this process by its name: the library is linked to no Python, and loads without.
///
/// # Safety
/// `F` is the type of the pointer to the function of that name.
#[cfg(target_os = "linux")]
unsafe fn function<F: Copy>(name: &CStr) -> Option<F> {
    const { assert!(size_of::<F>() == size_of::<*mut c_void>()) };
    // SAFETY: the name is a C string.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: a function pointer is as large as this one, which leads to a function of its type.
    (!found.is_null()).then(|| unsafe { std::mem::transmute_copy(&found) })
}

#[cfg(not(target_os = "linux"))]
unsafe fn function<F: Copy>(_name: &CStr) -> Option<F> {
    None
}
