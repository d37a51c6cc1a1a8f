//! Built without CUDA, everything says so.

use alloc_core::{AllocError, ProviderErrorKind};
use alloc_cuda::{
    AsyncAllocator, CudaStream, CudaTransfer, DeviceOptions, DeviceProvider, PinnedMethod, PinnedProvider,
};

#[test]
fn everything_is_unavailable_and_says_why() {
    assert!(!alloc_cuda::is_available());
    let errors = [
        alloc_cuda::device_count().unwrap_err(),
        alloc_cuda::device_info(3).unwrap_err(),
        DeviceProvider::new(3, &DeviceOptions::default()).unwrap_err(),
        PinnedProvider::new(3, PinnedMethod::default()).unwrap_err(),
        AsyncAllocator::new(3).unwrap_err(),
        CudaStream::new(3).unwrap_err(),
        CudaTransfer::of(3).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind, ProviderErrorKind::Unavailable);
        assert!(error.to_string().contains("without the feature `cuda`"), "{error}");
    }
    for result in [alloc_cuda::global(3), alloc_cuda::pinned(3)] {
        let Err(AllocError::Provider(error)) = result else { panic!("there can't be an allocator") };
        assert_eq!(error.kind, ProviderErrorKind::Unavailable);
        assert_eq!(error.device.ordinal(), 3);
    }
}
