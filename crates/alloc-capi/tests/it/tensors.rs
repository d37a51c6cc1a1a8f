//! Tensors for DLPack on a device, by the driver's books.

use std::ffi::c_void;
use std::ptr::null_mut;

use device_memory::Status;
use device_memory::ffi::dlpack::{devmem_dlpack_hand_to, devmem_dlpack_zeros};
use device_memory::ffi::*;
use dlpark::ffi::{DLManagedTensor, DLManagedTensorVersioned};

use crate::torch::{MIB, NamedStream, last_error, pool, start};

/// A tensor of that many bytes.
fn zeros(bytes: i64, stream: &NamedStream, versioned: bool) -> *mut c_void {
    let (shape, mut tensor) = ([bytes], null_mut());
    // SAFETY: the shape has one length, the pointer is a local, and the stream lives.
    let made = unsafe {
        devmem_dlpack_zeros(
            DEVMEM_KIND_CUDA,
            0,
            1,
            8,
            shape.as_ptr(),
            1,
            stream.handle(),
            versioned.into(),
            &mut tensor,
        )
    };
    assert_eq!(made, Status::Ok, "{}", last_error());
    tensor
}

fn drop_tensor(tensor: *mut c_void, versioned: bool) {
    // SAFETY: the tensor is of that kind, and nobody uses it any more.
    unsafe {
        if versioned {
            let tensor = tensor.cast::<DLManagedTensorVersioned>();
            (*tensor).deleter.unwrap()(tensor);
        } else {
            let tensor = tensor.cast::<DLManagedTensor>();
            (*tensor).deleter.unwrap()(tensor);
        }
    }
}

#[test]
fn a_tensor_is_handed_to_another_stream() {
    let Some(fake) = start() else { return };
    let [own, consumer] = [(); 2].map(|()| NamedStream::new());
    for versioned in [false, true] {
        let parked = pool().statistics().parked.current;
        fake.hold(own.stream());
        let tensor = zeros(8 * MIB as i64, &own, versioned);
        assert!(consumer.is_idle().unwrap());
        // SAFETY: the tensor and the stream live.
        let handed = unsafe { devmem_dlpack_hand_to(tensor, versioned.into(), consumer.handle()) };
        assert_eq!(handed, Status::Ok, "{}", last_error());
        assert!(!consumer.is_idle().unwrap(), "its work comes after the zeros");
        fake.resume(own.stream());
        assert!(consumer.is_idle().unwrap());
        fake.hold(consumer.stream());
        // SAFETY: the stream lives, and the tensor is not used.
        let handed = unsafe { devmem_dlpack_hand_to(tensor, versioned.into(), consumer.handle()) };
        assert_eq!(handed, Status::Ok, "{}", last_error());
        drop_tensor(tensor, versioned);
        assert_eq!(pool().statistics().parked.current - parked, 8 * MIB as u64, "it waits for the consumer");
        fake.resume(consumer.stream());
        pool().trim(0);
        assert_eq!(pool().statistics().parked.current, 0);
    }
    // SAFETY: a null pointer is refused, and a tensor without elements has no memory.
    unsafe {
        assert_eq!(devmem_dlpack_hand_to(null_mut(), 1, consumer.handle()), Status::InvalidArgument);
        let nothing = zeros(0, &own, true);
        assert_eq!(devmem_dlpack_hand_to(nothing, 1, consumer.handle()), Status::Ok, "{}", last_error());
        drop_tensor(nothing, true);
    }
}
