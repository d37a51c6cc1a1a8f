//! Compiles a kernel with NVRTC and runs it, by way of `cudarc`, on buffers of ours.
//!
//! `cargo run --package alloc-cuda --features cudarc --example nvrtc_kernel` needs a GPU and, when it runs, NVRTC
//! (`libnvrtc.so`, part of the toolkit and of many Python packages); nothing of it is needed to build.

use alloc_cuda::{CudaStream, CudarcSlice};
use anyhow::{Context, bail};
use buffer::{Buffer, MemoryMut};
use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};

const KERNEL: &str = r#"
extern "C" __global__ void saxpy(float a, const float *x, float *y, unsigned n) {
    unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        y[i] = a * x[i] + y[i];
    }
}
"#;

fn main() -> anyhow::Result<()> {
    if !alloc_cuda::is_available() {
        bail!("no GPU here: {:?}", alloc_cuda::device_count());
    }
    let elements = 1 << 20;
    let context = CudaContext::new(0)?;
    let theirs = context.new_stream()?;
    let stream = CudaStream::from_cudarc(theirs.clone())?;
    let pool = alloc_cuda::global(0)?;

    let x: Vec<f32> = (0..elements).map(|i| i as f32).collect();
    let y = vec![1.0_f32; elements];
    let x_device = CudarcSlice::<f32>::new(Buffer::from_slice_on(pool, &x, stream.stream())?, &theirs)?;
    let mut y_device = CudarcSlice::<f32>::new(Buffer::from_slice_on(pool, &y, stream.stream())?, &theirs)?;

    // `cudarc` panics where the library is missing.
    let ptx = std::panic::catch_unwind(|| cudarc::nvrtc::compile_ptx(KERNEL))
        .ok()
        .context("NVRTC is not installed")?
        .context("the kernel does not compile")?;
    let saxpy = context.load_module(ptx)?.load_function("saxpy")?;
    let count = elements as u32;
    {
        let mut y_view = y_device.as_view_mut();
        let mut launch = theirs.launch_builder(&saxpy);
        launch.arg(&2.0_f32).arg(&*x_device).arg(&mut y_view).arg(&count);
        // SAFETY: the arguments are those of the kernel, and both slices have `count` elements.
        unsafe { launch.launch(LaunchConfig::for_num_elems(count)) }?;
    }

    // The buffers are ours again, the kernel's work declared to them.
    let y_buffer = y_device.into_buffer();
    let mut result = vec![0.0_f32; elements];
    result.as_borrowed_mut().copy_from(&y_buffer)?;
    for (index, value) in result.iter().enumerate() {
        let expected = 2.0 * index as f32 + 1.0;
        if (value - expected).abs() > expected * 1e-6 {
            bail!("element {index} is {value} instead of {expected}");
        }
    }
    println!("{elements} elements right; {:?}", pool.statistics().requested);
    Ok(())
}
