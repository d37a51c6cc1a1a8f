//! Lists the CUDA devices and the driver; fails where there are none.

use alloc_cuda::{device_count, device_info, driver_version};

fn main() -> anyhow::Result<()> {
    let count = device_count()?;
    let (major, minor) = driver_version()?;
    println!("driver for CUDA {major}.{minor}, {count} devices");
    for ordinal in 0..count {
        println!("{ordinal}: {:?}", device_info(ordinal)?);
    }
    Ok(())
}
