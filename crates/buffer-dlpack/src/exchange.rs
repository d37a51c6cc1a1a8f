//! The way out of a buffer, and the way in.

use alloc_core::{Address, AllocatorHandle, Device, DeviceKind, Stream};
use buffer::{Buffer, ExternalOwner};
use dlpark::ffi::{DLDataType, DLDevice, DLDeviceType};
use dlpark::metadata::Dynamic;
use dlpark::{DlpackFlags, Managed, ManagedTensorBase};

use crate::error::{DlpackError, Refused};

/// A buffer in somebody else's hands. Dropped by the tensor's deleter.
struct Exported {
    buffer: Buffer,
    consumer: Stream,
}

impl Drop for Exported {
    fn drop(&mut self) {
        // What the consumer submitted so far may still run; the release that follows waits for it.
        self.buffer.use_on(self.consumer);
    }
}

/// DLPack's name of a device. Host memory has the number 0 there, also if it is page-locked for another device than the first.
///
/// # Errors
/// [`DlpackError::Device`] if it has none.
pub fn device_of(device: Device) -> Result<DLDevice, DlpackError> {
    let (device_type, device_id) = match device.kind() {
        DeviceKind::CPU => (DLDeviceType::CPU, 0),
        DeviceKind::CUDA => (DLDeviceType::CUDA, device.ordinal().into()),
        DeviceKind::CUDA_PINNED => (DLDeviceType::CUDAHOST, 0),
        _ => return Err(DlpackError::Device { device }),
    };
    Ok(DLDevice { device_type, device_id })
}

/// Bytes of a tensor of this shape whose elements follow one another, those of less than a byte within the same byte.
///
/// # Errors
/// [`DlpackError::Shape`] for lengths that are negative or too many.
pub fn bytes_of(shape: &[i64], element: DLDataType) -> Result<u64, DlpackError> {
    let wrong = || DlpackError::Shape { shape: shape.to_vec() };
    let mut bits = u64::from(element.bits).checked_mul(element.lanes.into()).ok_or_else(wrong)?;
    for &length in shape {
        bits = bits.checked_mul(u64::try_from(length).map_err(|_| wrong())?).ok_or_else(wrong)?;
    }
    // Pointers and strides are signed.
    Some(bits.div_ceil(8)).filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(wrong)
}

/// Whether a tensor's elements follow one another row by row. The stride of a dimension with one element is never
/// stepped by, so it may be anything.
fn is_contiguous(shape: &[i64], strides: Option<&[i64]>) -> bool {
    // No strides means this order.
    let Some(strides) = strides else { return true };
    if shape.contains(&0) {
        return true;
    }
    let mut expected = Some(1_i64);
    shape.iter().zip(strides).rev().filter(|(length, _)| **length != 1).all(|(length, stride)| {
        let follows = expected == Some(*stride);
        expected = expected.and_then(|expected| expected.checked_mul(*length));
        follows
    })
}

/// Makes a tensor of a buffer: row by row, from its start. `M` is `DLManagedTensor` for consumers of DLPack before
/// version 1, `DLManagedTensorVersioned` for later ones.
///
/// Work on `consumer`, a stream of the buffer's device, may use the memory from now on: it is made to wait for the work
/// that the buffer knows of. Where the processor reaches the memory it may use it too, as that work is done then. When
/// the consumer lets the tensor go, the memory waits for what it had submitted to that stream, and goes back to the
/// buffer's allocator.
///
/// # Errors
/// [`Refused`] with the buffer: a device without a name in DLPack, elements of no bits, a shape that makes no sense or is
/// larger than what was written to the buffer, or work that can't be waited for.
pub fn export<M: ManagedTensorBase>(
    buffer: Buffer,
    shape: &[i64],
    element: DLDataType,
    consumer: Stream,
) -> Result<Managed<M>, Refused> {
    let device = match check(&buffer, shape, element, consumer) {
        Ok(device) => device,
        Err(error) => return Err(Refused { error, buffer: Box::new(buffer) }),
    };
    let data = std::ptr::with_exposed_provenance_mut(buffer.address().get() as usize);
    let prepared = match Dynamic::compact(shape).prepare_as::<M>() {
        Ok(prepared) => prepared,
        Err(error) => {
            return Err(Refused { error: DlpackError::Invalid(error.to_string()), buffer: Box::new(buffer) });
        }
    };
    let mut initialized = prepared.initialize(Box::new(Exported { buffer, consumer }));
    initialized.set_data(data).set_dtype(element).set_device(device);
    // SAFETY: the context owns the buffer, whose memory was just found to hold all of the tensor, initialised, and which
    // nobody else can reach; the metadata is the allocation's own.
    Ok(unsafe { initialized.finish() })
}

fn check(buffer: &Buffer, shape: &[i64], element: DLDataType, consumer: Stream) -> Result<DLDevice, DlpackError> {
    let device = device_of(buffer.device())?;
    if element.bits == 0 || element.lanes == 0 {
        return Err(DlpackError::Invalid("elements of no bits".into()));
    }
    let (wanted, initialised) = (bytes_of(shape, element)?, buffer.initialised());
    if wanted > initialised {
        return Err(DlpackError::TooLarge { wanted, initialised });
    }
    if buffer.device().is_host_accessible() {
        // The processor does not wait for streams, and consumers on the host take page-locked memory too.
        buffer.synchronize()?;
    } else {
        buffer.make_ready_on(consumer)?;
    }
    Ok(device)
}

/// A tensor that became a buffer.
#[derive(Debug)]
#[non_exhaustive]
pub struct Imported {
    /// The memory. When it is dropped, the tensor's producer is told, once what was [declared](Buffer::use_on) is done.
    pub buffer: Buffer,
    /// The lengths of the tensor's dimensions.
    pub shape: Vec<i64>,
    /// What its elements are.
    pub element: DLDataType,
}

/// Makes a buffer of a tensor. Its memory stays the producer's; `allocator` is one of the same device, which copies it.
///
/// # Errors
/// [`DlpackError`]; the tensor is let go.
///
/// # Safety
/// The tensor's memory is there, initialised and used by nobody else until the buffer is dropped, as its producer has to
/// see to: views that the producer keeps may not be used meanwhile. Work submitted to `stream` from now on comes after
/// the producer's.
pub unsafe fn import<M: ManagedTensorBase>(
    tensor: Managed<M>,
    allocator: impl Into<AllocatorHandle>,
    stream: Stream,
) -> Result<Imported, DlpackError> {
    let allocator = allocator.into();
    let invalid = |error: dlpark::tensor::Error| DlpackError::Invalid(error.to_string());
    if tensor.flags().contains(DlpackFlags::READ_ONLY) {
        return Err(DlpackError::ReadOnly);
    }
    let (shape, element, bytes, start) = {
        let view = tensor.validate().map_err(invalid)?;
        if view.dtype().bits < 8 && tensor.flags().contains(DlpackFlags::IS_SUBBYTE_TYPE_PADDED) {
            return Err(DlpackError::Padded { bits: view.dtype().bits });
        }
        let (device, found) = (device_of(allocator.device())?, view.device());
        if (device.device_type.0, device.device_id) != (found.device_type.0, found.device_id) {
            let (kind, ordinal) = (found.device_type.0, found.device_id);
            return Err(DlpackError::OtherDevice { device: allocator.device(), kind, ordinal });
        }
        if !is_contiguous(view.shape(), view.strides()) {
            return Err(DlpackError::NotContiguous);
        }
        let bytes = bytes_of(view.shape(), view.dtype())?;
        // Only a tensor without elements has its memory nowhere.
        if bytes > 0 && view.data_ptr().is_null() {
            return Err(invalid(dlpark::tensor::Error::NullData));
        }
        let start = view.data_ptr().expose_provenance() as u64;
        let start = start.checked_add(view.byte_offset()).ok_or(DlpackError::NotContiguous)?;
        (view.shape().to_vec(), view.dtype(), bytes, start)
    };
    let owner = tensor.into_deleter();
    let owner = ExternalOwner::deleter(move || drop(owner));
    // SAFETY: the caller vouches for the memory, which the owner keeps.
    let buffer = unsafe {
        let mut buffer = Buffer::external(allocator, Address::new(start), bytes, stream, owner);
        buffer.assume_init(bytes);
        buffer
    };
    Ok(Imported { buffer, shape, element })
}
