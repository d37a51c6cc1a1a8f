//! The kernels of the tests.

use std::ffi::CString;

use alloc_core::{Address, Block, Device, Place, Transfer};
use alloc_cuda::{Argument, CudaStream, CudaTransfer, Kernel, Module};

use super::harness::{alone, any_device, bytes, release};

/// Kernels that write late and check what they find, and the count of what they found wrong.
pub struct Kernels {
    fill: Kernel,
    count: Kernel,
    counter: u64,
    ordinal: u16,
}

const GRID: (u32, u32) = (32, 256);

impl Kernels {
    /// `counter` is eight bytes of device memory.
    pub fn new(counter: Block, stream: &CudaStream) -> Self {
        Self::on(0, counter, stream)
    }

    /// The same on a device of choice.
    pub fn on(ordinal: u16, counter: Block, stream: &CudaStream) -> Self {
        let text = CString::new(include_str!("kernels.ptx")).unwrap();
        let module = Module::from_ptx(ordinal, &text).unwrap();
        let place = Place { device: Device::cuda(ordinal), address: counter.address() };
        // SAFETY: the block is ours.
        unsafe { CudaTransfer::of(ordinal).unwrap().fill(place, 8, 0, stream.stream()) }.unwrap();
        stream.synchronize().unwrap();
        Self {
            fill: module.kernel(c"fill_after_delay").unwrap(),
            count: module.kernel(c"count_mismatches").unwrap(),
            counter: counter.address().get(),
            ordinal,
        }
    }

    /// Waits for some cycles of the device's clock, then writes `value` everywhere.
    pub fn fill(&self, block: Block, value: u32, cycles: u64, stream: &CudaStream) {
        let words = block.size() / 4;
        let arguments =
            [Argument::U64(block.address().get()), Argument::U64(words), Argument::U32(value), Argument::U64(cycles)];
        // SAFETY: the arguments are those of the kernel; the block is in use on the stream.
        unsafe { self.fill.launch(stream, GRID, &arguments) }.unwrap();
    }

    /// Counts words other than `value`.
    pub fn check(&self, block: Block, value: u32, stream: &CudaStream) {
        let words = block.size() / 4;
        let arguments = [
            Argument::U64(block.address().get()),
            Argument::U64(words),
            Argument::U32(value),
            Argument::U64(self.counter),
        ];
        // SAFETY: the arguments are those of the kernel; the block is in use on the stream.
        unsafe { self.count.launch(stream, GRID, &arguments) }.unwrap();
    }

    /// Words found wrong so far, once all streams were waited for.
    pub fn mismatches(&self, stream: &CudaStream) -> u64 {
        let mut count = [0_u8; 8];
        let from = Place { device: Device::cuda(self.ordinal), address: Address::new(self.counter) };
        let to = Place { device: Device::CPU, address: Address::new(count.as_mut_ptr() as u64) };
        // SAFETY: both places are eight bytes.
        unsafe { CudaTransfer::of(self.ordinal).unwrap().copy(from, to, 8, stream.stream()) }.unwrap();
        u64::from_le_bytes(count)
    }
}

/// Ends the work of a device's context for good.
pub fn trap(stream: &CudaStream) {
    let text = CString::new(include_str!("kernels.ptx")).unwrap();
    let kernel = Module::from_ptx(stream.device().ordinal(), &text).unwrap().kernel(c"trap").unwrap();
    // SAFETY: the kernel takes nothing and touches no memory.
    unsafe { kernel.launch(stream, (1, 1), &[]) }.unwrap();
}

#[test]
fn images_that_are_no_text_never_reach_the_driver() {
    let driver = alone();
    // The beginnings of an executable and of two kinds of the driver's own images, and what is too short to tell.
    for image in [c"\x7fELF\x02 .entry", c"P\xed\x55\xba .entry", c"\xb1CbF .entry", c"en", c""] {
        let error = Module::from_ptx(0, image).unwrap_err();
        assert_eq!((error.call, error.code), ("cuModuleLoadData", 218), "{image:?}");
    }
    driver.assert_calls("cuModuleLoadData", 0);
}

#[test]
fn the_kernels_write_and_find() {
    let _device = any_device();
    let pool = alloc_cuda::global(0).unwrap();
    let stream = CudaStream::new(0).unwrap();
    let counter = pool.allocate(bytes(8), stream.stream()).unwrap();
    let kernels = Kernels::new(counter, &stream);
    let block = pool.allocate(bytes(1_000_004), stream.stream()).unwrap();
    kernels.fill(block, 7, 1000, &stream);
    kernels.check(block, 7, &stream);
    assert_eq!(kernels.mismatches(&stream), 0);
    kernels.check(block, 8, &stream);
    assert_eq!(kernels.mismatches(&stream), 250_001);
    drop(kernels);
    for block in [block, counter] {
        release(pool, block, stream.stream());
    }
}
