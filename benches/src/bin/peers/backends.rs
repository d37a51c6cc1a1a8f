//! Where the measured pools come from: a GPU, or the host.

use alloc_core::Stream;
use alloc_cpu::HostProvider;
use alloc_cuda::{CudaStream, DeviceOptions, DeviceProvider};
use alloc_pool::{Pool, PoolConfig};
use anyhow::Context;
use benches::allocators::host_pool;
use benches::peers::Backend;
use benches::peers::suite::STREAMS;

/// Pools of a GPU's memory.
#[derive(Debug)]
pub struct Cuda {
    ordinal: u16,
    device: String,
    names: Vec<Stream>,
    // Kept alive as long as their names are in use.
    _streams: Vec<CudaStream>,
}

impl Cuda {
    /// Pools of this device.
    pub fn new(ordinal: u16) -> anyhow::Result<Self> {
        let device = alloc_cuda::device_info(ordinal).context("no GPU to measure")?.name;
        let streams = (0..STREAMS).map(|_| CudaStream::new(ordinal)).collect::<Result<Vec<_>, _>>()?;
        let names = streams.iter().map(CudaStream::stream).collect();
        Ok(Self { ordinal, device, names, _streams: streams })
    }
}

impl Backend for Cuda {
    type Allocator = Pool<DeviceProvider>;

    fn name(&self) -> &'static str {
        "cuda"
    }

    fn device(&self) -> &str {
        &self.device
    }

    fn streams(&self) -> &[Stream] {
        &self.names
    }

    fn allocator(&self, _: u64) -> anyhow::Result<Self::Allocator> {
        let provider = DeviceProvider::new(self.ordinal, &DeviceOptions::default())?;
        Ok(Pool::new(provider, PoolConfig::from_env()?)?)
    }
}

/// Pools of host memory, which is not touched.
#[derive(Debug)]
pub struct Host {
    names: Vec<Stream>,
}

impl Host {
    /// Pools with streams that are mere names.
    pub fn new() -> Self {
        Self { names: (1..=STREAMS as u64).map(Stream::from_raw).collect() }
    }
}

impl Backend for Host {
    type Allocator = Pool<HostProvider>;

    fn name(&self) -> &'static str {
        "cpu"
    }

    fn device(&self) -> &str {
        "host"
    }

    fn streams(&self) -> &[Stream] {
        &self.names
    }

    fn allocator(&self, peak: u64) -> anyhow::Result<Self::Allocator> {
        host_pool(peak, false)
    }
}
