//! Memory of another owner: let go exactly once, and not before the work on it is done.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use alloc_core::{Address, Device, DeviceAllocator, Layout, Stream, StreamSet};
use buffer::{Buffer, BufferError, ExternalOwner, SharedBuffer};

use crate::sim::{Call, Failure, GPU, Machine, PINNED, reports};

const S1: Stream = Stream::from_raw(1);
const S2: Stream = Stream::from_raw(2);

/// A block of the simulated GPU in the hands of somebody else, and an owner that gives it back.
fn foreign(machine: &Machine, bytes: u64, count: &Arc<AtomicUsize>) -> (Address, ExternalOwner) {
    let gpu = machine.allocator(GPU);
    let block = gpu.allocate(Layout::bytes(bytes).unwrap(), S1).unwrap();
    let count = Arc::clone(count);
    let owner = ExternalOwner::deleter(move || {
        count.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the deleter runs when all work is done, so no stream needs to be named.
        unsafe { gpu.release(block, S1, StreamSet::EMPTY) }.unwrap();
    });
    (block.address(), owner)
}

fn external(machine: &Machine, bytes: u64, count: &Arc<AtomicUsize>) -> Buffer {
    let (address, owner) = foreign(machine, bytes, count);
    // SAFETY: the block lives until the owner is let go, and nobody else uses it.
    unsafe { Buffer::external(machine.allocator(GPU), address, bytes, S1, owner) }
}

#[test]
fn a_deleter_runs_once_and_an_unused_buffer_waits_for_nothing() {
    let (machine, count) = (Machine::new(), Arc::default());
    let buffer = external(&machine, 64, &count);
    assert!(buffer.is_external());
    assert_eq!((buffer.len(), buffer.capacity(), buffer.initialised()), (64, 64, 0));
    assert_eq!(count.load(Ordering::Relaxed), 0);
    drop(buffer);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(machine.synchronised(), []);
    machine.assert_clean();
}

#[test]
fn a_deleter_runs_after_the_work_that_was_declared() {
    let (machine, count) = (Machine::new(), Arc::default());
    let mut buffer = external(&machine, 64, &count);
    let mut copy = Buffer::new_on(machine.allocator(GPU), 64, S2).unwrap();
    buffer.fill_on(3, S1).unwrap();
    copy.copy_from_on(&buffer, S2).unwrap();
    assert_eq!(machine.waiting(), 2);
    drop(buffer);
    assert_eq!((count.load(Ordering::Relaxed), machine.waiting()), (1, 0));
    assert_eq!(copy.to_vec::<u8>().unwrap(), [3; 64]);
    drop(copy);
    machine.assert_clean();
}

#[test]
fn an_ordered_deleter_is_told_the_streams_instead() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let block = gpu.allocate(Layout::bytes(64).unwrap(), S1).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let owner = ExternalOwner::ordered_deleter({
        let (told, gpu) = (Arc::clone(&told), gpu.clone());
        move |stream, uses| {
            told.lock().unwrap().push((stream, uses.iter().collect::<Vec<_>>()));
            // SAFETY: the streams are named.
            unsafe { gpu.release(block, stream, uses) }.unwrap();
        }
    });
    // SAFETY: as in `external`.
    let mut buffer = unsafe { Buffer::external(gpu, block.address(), 64, S1, owner) };
    buffer.fill_on(1, S2).unwrap();
    drop(buffer);
    assert_eq!(*told.lock().unwrap(), [(S1, vec![S2])]);
    assert_eq!((machine.synchronised(), machine.waiting()), (vec![], 1));
    machine.assert_clean();
}

#[test]
fn an_owner_is_kept_as_long_as_the_buffer_and_its_slices() {
    let machine = Machine::new();
    let tensor: Arc<Vec<u8>> = Arc::new(vec![0; 16]);
    let address = Address::new(tensor.as_ptr().expose_provenance() as u64);
    let owner = ExternalOwner::keep(Arc::clone(&tensor));
    // SAFETY: the vector lives as long as the owner, and is only read here.
    let buffer = unsafe {
        let mut buffer = Buffer::external(machine.allocator(Device::CPU), address, 16, Stream::DEFAULT, owner);
        buffer.assume_init(16);
        buffer
    };
    let shared = SharedBuffer::from(buffer);
    let slice = shared.shared_slice(4..8).unwrap();
    drop(shared);
    assert_eq!((Arc::strong_count(&tensor), slice.as_bytes().unwrap()), (2, &[0; 4][..]));
    drop(slice);
    assert_eq!(Arc::strong_count(&tensor), 1);
}

#[test]
fn a_panicking_deleter_is_reported_and_not_run_again() {
    let machine = Machine::new();
    let runs = Arc::new(AtomicUsize::new(0));
    let owner = ExternalOwner::deleter({
        let runs = Arc::clone(&runs);
        move || {
            runs.fetch_add(1, Ordering::Relaxed);
            panic!("in a deleter");
        }
    });
    // SAFETY: no bytes are used.
    let buffer = unsafe { Buffer::external(machine.allocator(GPU), Address::new(4096), 0, S1, owner) };
    let mut outcome = Ok(());
    let reported = reports::count(|| outcome = catch_unwind(AssertUnwindSafe(|| drop(buffer))).map_err(drop));
    assert_eq!((outcome, reported, runs.load(Ordering::Relaxed)), (Ok(()), 1, 1));
}

#[test]
fn memory_whose_work_can_not_be_waited_for_is_leaked_and_reported() {
    for failure in [Failure::Error, Failure::Panic] {
        let (machine, count) = (Machine::new(), Arc::default());
        let mut buffer = external(&machine, 64, &count);
        buffer.fill_on(3, S2).unwrap();
        machine.fail(Call::Synchronize, 1, failure);
        assert_eq!(reports::count(|| drop(buffer)), 1);
        assert_eq!((count.load(Ordering::Relaxed), machine.living()), (0, 1), "{failure:?}");
        machine.run_all();
        assert_eq!(machine.violations(), 0);
    }
}

#[test]
fn an_owner_that_never_met_a_buffer_is_let_go_too() {
    let (machine, count) = (Machine::new(), Arc::default());
    drop(foreign(&machine, 64, &count));
    assert_eq!(count.load(Ordering::Relaxed), 1);
    machine.assert_clean();
}

#[test]
fn external_memory_has_no_raw_parts() {
    let (machine, count) = (Machine::new(), Arc::default());
    let buffer = external(&machine, 64, &count).into_raw_parts().unwrap_err();
    assert_eq!((buffer.len(), count.load(Ordering::Relaxed)), (64, 0));
    drop(buffer);
    assert_eq!(count.load(Ordering::Relaxed), 1);
    machine.assert_clean();
}

#[test]
fn growing_moves_to_own_memory_and_lets_the_owner_go() {
    let (machine, count) = (Machine::new(), Arc::default());
    let mut buffer = external(&machine, 4, &count);
    buffer.copy_from(&[1_u8, 2, 3, 4]).unwrap();
    assert!(buffer.resize(8).unwrap().has_moved());
    assert!(!buffer.is_external());
    assert_eq!(count.load(Ordering::Relaxed), 1);
    assert_eq!(buffer.slice(..4).unwrap().to_vec::<u8>().unwrap(), [1, 2, 3, 4]);
    drop(buffer);
    machine.assert_clean();
}

#[test]
fn a_vector_becomes_a_buffer_without_a_copy() {
    let machine = Machine::new();
    let mut elements: Vec<u64> = Vec::with_capacity(10);
    elements.extend([1, 2, 3]);
    let address = elements.as_ptr().addr() as u64;
    let mut buffer = Buffer::from_vec(machine.allocator(Device::CPU), elements).unwrap();
    assert_eq!((buffer.address().get(), buffer.len()), (address, 24));
    buffer.as_slice_mut::<u64>().unwrap()[2] = 9;
    assert_eq!(buffer.as_slice::<u64>().unwrap(), [1, 2, 9]);
    assert_eq!((machine.copies(), machine.living()), (vec![], 0));
    let empty = Buffer::from_vec(machine.allocator(Device::CPU), Vec::<u32>::new()).unwrap();
    assert!(empty.as_slice::<u32>().unwrap().is_empty());
}

#[test]
fn a_vector_is_no_memory_of_a_device() {
    let machine = Machine::new();
    for device in [GPU, PINNED] {
        let error = Buffer::from_vec(machine.allocator(device), vec![1_u8]).unwrap_err();
        assert_eq!(error, BufferError::DeviceMismatch { expected: Device::CPU, found: device });
    }
}
