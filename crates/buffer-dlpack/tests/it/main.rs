//! Buffers go out as tensors and come back, and nothing is lost, copied or freed twice on the way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails panics")]

use std::sync::{Arc, Mutex};

use alloc_core::{
    Device, DeviceAllocator, Place, SimulatedAllocator, Stream, Transfer, TransferError, forward_allocator,
};
use alloc_cpu::{HostPool, SystemAllocator};
use buffer::Buffer;
use buffer_dlpack::{DlpackError, device_of, export, import};
use dlpark::ffi::{DLDataType, DLDataTypeCode, DLManagedTensor, DLManagedTensorVersioned};
use dlpark::metadata::Dynamic;
use dlpark::{DlpackFlags, ManagedTensorBase, versioned};

fn pool() -> Arc<HostPool> {
    Arc::new(alloc_cpu::pool().build().unwrap())
}

fn in_use(pool: &HostPool) -> u64 {
    pool.statistics().requested.current
}

fn there_and_back<M: ManagedTensorBase>() {
    let pool = pool();
    let buffer = Buffer::from_slice(Arc::clone(&pool), &[1_i32, 2, 3, 4, 5, 6]).unwrap();
    let address = buffer.address();
    let tensor = export::<M>(buffer, &[3, 2], DLDataType::I32, Stream::from_raw(4)).unwrap();
    assert_eq!(in_use(&pool), 24, "the tensor has the memory");
    let view = tensor.validate_export().unwrap();
    assert_eq!(
        (view.shape(), view.strides(), view.data_ptr().addr()),
        (&[3, 2][..], Some(&[2, 1][..]), address.get() as usize)
    );
    // SAFETY: the memory is a buffer's.
    assert_eq!(unsafe { view.cpu_slice::<i32>() }.unwrap(), [1, 2, 3, 4, 5, 6]);
    // SAFETY: nobody else has the tensor.
    let mut imported = unsafe { import(tensor, Arc::clone(&pool), Stream::DEFAULT) }.unwrap();
    assert_eq!((imported.shape, imported.buffer.address()), (vec![3, 2], address));
    assert!(imported.element.is::<i32>());
    imported.buffer.as_slice_mut::<i32>().unwrap()[5] = 60;
    assert_eq!(imported.buffer.as_slice::<i32>().unwrap(), [1, 2, 3, 4, 5, 60]);
    assert_eq!(in_use(&pool), 24);
    drop(imported.buffer);
    assert_eq!(in_use(&pool), 0, "and gives it back, once");
}

#[test]
fn a_buffer_goes_out_and_comes_back() {
    there_and_back::<DLManagedTensor>();
    there_and_back::<DLManagedTensorVersioned>();
}

#[test]
fn a_tensor_that_is_dropped_elsewhere_gives_back() {
    let pool = pool();
    let buffer = Buffer::zeroed(Arc::clone(&pool), 1 << 20).unwrap();
    let tensor = export::<DLManagedTensorVersioned>(buffer, &[1 << 18], DLDataType::F32, Stream::DEFAULT).unwrap();
    let raw = tensor.into_raw().expose_provenance();
    std::thread::spawn(move || {
        // SAFETY: the pointer is a tensor that was let out of hand, and is taken back once.
        drop(unsafe { versioned::Dlpack::from_raw(std::ptr::with_exposed_provenance_mut(raw)) }.unwrap());
    })
    .join()
    .unwrap();
    assert_eq!(in_use(&pool), 0);
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_the_buffer() {
    let pool = pool();
    let mut buffer = Buffer::from_slice(Arc::clone(&pool), &[7_u8; 16]).unwrap();
    for shape in [&[17][..], &[2, 9], &[-1], &[i64::MAX, 2], &[i64::MAX]] {
        let refused = export::<DLManagedTensor>(buffer, shape, DLDataType::U8, Stream::DEFAULT).err().unwrap();
        assert!(matches!(refused.error, DlpackError::TooLarge { .. } | DlpackError::Shape { .. }), "{shape:?}");
        buffer = *refused.buffer;
    }
    assert_eq!(buffer.as_bytes().unwrap(), [7; 16], "the buffer is as it was");
    let fresh = Buffer::new(Arc::clone(&pool), 16).unwrap();
    let refused = export::<DLManagedTensor>(fresh, &[16], DLDataType::U8, Stream::DEFAULT).err().unwrap();
    assert!(matches!(refused.error, DlpackError::TooLarge { wanted: 16, initialised: 0 }), "{refused}");
    for (bits, lanes) in [(0, 1), (8, 0)] {
        let nothing = DLDataType::new(DLDataTypeCode::UINT, bits, lanes);
        let refused = export::<DLManagedTensor>(buffer, &[1 << 40], nothing, Stream::DEFAULT).err().unwrap();
        assert!(matches!(refused.error, DlpackError::Invalid(_)), "{refused}");
        buffer = *refused.buffer;
    }
    for shape in [&[][..], &[0], &[4, 0, 4], &[2, 2, 2, 2]] {
        let other = Buffer::from_slice(Arc::clone(&pool), &[1_u8; 16]).unwrap();
        let tensor = export::<DLManagedTensor>(other, shape, DLDataType::U8, Stream::DEFAULT).unwrap();
        assert_eq!(tensor.validate().unwrap().shape(), shape);
    }
    drop((buffer, refused));
    assert_eq!(in_use(&pool), 0);
}

/// A tensor of a vector, with strides of its own.
fn foreign(shape: [i64; 2], strides: [i64; 2], flags: DlpackFlags) -> versioned::Dlpack {
    foreign_of(DLDataType::F64, shape, strides, flags)
}

/// The same with elements of no more than 64 bits.
fn foreign_of(element: DLDataType, shape: [i64; 2], strides: [i64; 2], flags: DlpackFlags) -> versioned::Dlpack {
    let mut values = vec![1.5_f64; 64];
    let data = values.as_mut_ptr().cast();
    let mut initialized = Dynamic::new(shape, strides).prepare().unwrap().initialize(Box::new(values));
    initialized.set_data(data).set_dtype(element).set_device(device_of(Device::CPU).unwrap());
    initialized.set_flags(flags).unwrap();
    // SAFETY: the vector is the context, and holds 64 elements.
    unsafe { initialized.finish() }
}

#[test]
fn tensors_of_others_become_buffers() {
    let host = alloc_cpu::global().unwrap();
    let take = |tensor| {
        // SAFETY: nobody else has the tensor.
        unsafe { import::<DLManagedTensorVersioned>(tensor, host, Stream::DEFAULT) }
    };
    let imported = take(foreign([4, 8], [8, 1], DlpackFlags::empty())).unwrap();
    assert_eq!(imported.buffer.as_slice::<f64>().unwrap(), [1.5; 32]);
    // As PyTorch and NumPy name the strides of a single row, column or element, which nobody steps by.
    for (shape, strides) in [([1, 8], [1, 1]), ([8, 1], [1, 64]), ([1, 1], [0, -7]), ([0, 8], [3, 5])] {
        let imported = take(foreign(shape, strides, DlpackFlags::empty())).unwrap();
        assert_eq!((imported.buffer.len(), imported.shape), (8 * shape[0] as u64 * shape[1] as u64, shape.to_vec()));
    }
    for (shape, strides) in [([1, 8], [8, 2]), ([8, 1], [2, 1]), ([2, 8], [1, 1]), ([2, 8], [0, 1])] {
        let apart = take(foreign(shape, strides, DlpackFlags::empty()));
        assert!(matches!(apart, Err(DlpackError::NotContiguous)), "{apart:?}");
    }
    let transposed = take(foreign([4, 8], [1, 4], DlpackFlags::empty()));
    assert!(matches!(transposed, Err(DlpackError::NotContiguous)), "{transposed:?}");
    let read_only = take(foreign([4, 8], [8, 1], DlpackFlags::READ_ONLY));
    assert!(matches!(read_only, Err(DlpackError::ReadOnly)), "{read_only:?}");
}

#[test]
fn memory_that_is_nowhere_is_refused() {
    let host = alloc_cpu::global().unwrap();
    let take = |shape: [i64; 1], byte_offset| {
        let owner = Arc::new(());
        let mut initialized = Dynamic::new(shape, [1]).prepare().unwrap().initialize(Box::new(Arc::clone(&owner)));
        initialized.set_dtype(DLDataType::U8).set_device(device_of(Device::CPU).unwrap()).set_byte_offset(byte_offset);
        // SAFETY: nobody uses the data of a tensor that has elements and no data.
        let tensor: versioned::Dlpack = unsafe { initialized.finish() };
        // SAFETY: as above, and nobody else has the tensor.
        let imported = unsafe { import(tensor, host, Stream::DEFAULT) };
        assert_eq!(Arc::strong_count(&owner), 1 + usize::from(imported.is_ok()), "a refused tensor is let go");
        imported.map(|imported| imported.buffer)
    };
    for byte_offset in [0, 64] {
        let nowhere = take([8], byte_offset);
        assert!(matches!(nowhere, Err(DlpackError::Invalid(_))), "{nowhere:?}");
        let empty = take([0], byte_offset).unwrap();
        assert_eq!((empty.len(), empty.as_bytes()), (0, Ok(&[][..])));
    }
}

#[test]
fn elements_smaller_than_a_byte_are_packed() {
    let host = alloc_cpu::global().unwrap();
    let half_byte = DLDataType::new(DLDataTypeCode::UINT, 4, 1);
    let take = |element, flags| {
        // SAFETY: nobody else has the tensor.
        unsafe { import(foreign_of(element, [4, 8], [8, 1], flags), host, Stream::DEFAULT) }
    };
    assert_eq!(take(half_byte, DlpackFlags::empty()).unwrap().buffer.len(), 16);
    // It would be 32 bytes long, and nobody who has it could see why.
    let padded = take(half_byte, DlpackFlags::IS_SUBBYTE_TYPE_PADDED);
    assert!(matches!(padded, Err(DlpackError::Padded { bits: 4 })), "{padded:?}");
    assert_eq!(take(DLDataType::U8, DlpackFlags::IS_SUBBYTE_TYPE_PADDED).unwrap().buffer.len(), 32);
}

/// Page-locked memory as far as its books go, and a log of the streams that are waited for.
#[derive(Debug, Default)]
struct Pinned {
    memory: SystemAllocator,
    synchronised: Mutex<Vec<Stream>>,
}

const PINNED: Device = Device::cuda_pinned(0);

// SAFETY: the memory is the system allocator's, all of whose work is done when it is submitted.
unsafe impl DeviceAllocator for Pinned {
    fn device(&self) -> Device {
        PINNED
    }
    forward_allocator!(self => self.memory; allocate, release, statistics, trim, grow_to, retire_stream);

    fn transfer(&self) -> &dyn Transfer {
        self
    }
}

// SAFETY: all is done by the host's transfer, at once.
unsafe impl Transfer for Pinned {
    fn can_copy(&self, from: Device, to: Device) -> bool {
        self.memory.transfer().can_copy(from, to)
    }
    unsafe fn copy(&self, from: Place, to: Place, bytes: u64, stream: Stream) -> Result<(), TransferError> {
        // SAFETY: the caller's promises are those that the inner transfer asks for.
        unsafe { self.memory.transfer().copy(from, to, bytes, stream) }
    }
    unsafe fn fill(&self, to: Place, bytes: u64, value: u8, stream: Stream) -> Result<(), TransferError> {
        // SAFETY: as above.
        unsafe { self.memory.transfer().fill(to, bytes, value, stream) }
    }
    fn synchronize(&self, stream: Stream) -> Result<(), TransferError> {
        self.synchronised.lock().unwrap().push(stream);
        Ok(())
    }
    fn order_after(&self, _stream: Stream, _earlier: Stream) -> Result<(), TransferError> {
        Ok(())
    }
}

#[test]
fn memory_that_the_processor_reaches_is_written_before_it_goes_out() {
    let pinned = Arc::new(Pinned::default());
    let (written_on, consumer) = (Stream::from_raw(1), Stream::from_raw(2));
    let buffer = Buffer::zeroed_on(Arc::clone(&pinned), 16, written_on).unwrap();
    let tensor = export::<DLManagedTensorVersioned>(buffer, &[16], DLDataType::U8, consumer).unwrap();
    assert_eq!(*pinned.synchronised.lock().unwrap(), [written_on]);
    drop(tensor);
    assert_eq!(pinned.statistics().requested.current, 0);
}

#[test]
fn only_devices_are_counted() {
    let number = |device| device_of(device).map(|named| (named.device_type.0, named.device_id)).unwrap();
    assert_eq!([Device::cuda(0), Device::cuda(3)].map(number), [(2, 0), (2, 3)]);
    // Host memory is 0, whatever device it is page-locked for.
    assert_eq!([Device::CPU, Device::cuda_pinned(0), Device::cuda_pinned(3)].map(number), [(1, 0), (3, 0), (3, 0)]);
    assert!(device_of(Device::cuda(3).simulated()).is_err());
}

#[test]
fn a_tensor_stays_on_its_device() {
    let device = SimulatedAllocator::new(Device::cuda(0), 1 << 20);
    let simulated = Buffer::new(Arc::new(device), 16);
    if let Ok(buffer) = simulated {
        let refused = export::<DLManagedTensor>(buffer, &[0], DLDataType::U8, Stream::DEFAULT).err().unwrap();
        assert!(matches!(refused.error, DlpackError::Device { .. }), "{refused}");
    }
    let elsewhere: Arc<dyn DeviceAllocator> = Arc::new(SimulatedAllocator::new(Device::cuda(0), 1 << 20));
    let tensor = foreign([4, 8], [8, 1], DlpackFlags::empty());
    // SAFETY: the tensor is refused.
    let refused = unsafe { import(tensor, elsewhere, Stream::DEFAULT) };
    assert!(matches!(refused, Err(DlpackError::Device { .. } | DlpackError::OtherDevice { .. })), "{refused:?}");
}
