//! Anonymous host memory in huge pages, touched by several threads at once.

use alloc_core::{Device, ProviderError, ProviderErrorKind};

/// Huge pages of x86-64, and of AArch64 with 4 KiB base pages.
pub(crate) const HUGE_PAGE: u64 = 2 << 20;

/// Host memory of a multiple of [`HUGE_PAGE`] bytes and aligned to it, given back when dropped.
#[derive(Debug)]
pub(crate) struct HostPages {
    address: u64,
    bytes: u64,
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::c_void;

    use super::*;

    /// Below this a second thread costs more than it saves.
    const BYTES_PER_THREAD: u64 = 16 << 20;
    const MAX_THREADS: u64 = 16;

    impl HostPages {
        /// `bytes` bytes (a multiple of [`HUGE_PAGE`]), with physical memory behind all of them.
        pub(crate) fn new(device: Device, bytes: u64) -> Result<Self, ProviderError> {
            let padded = bytes.checked_add(HUGE_PAGE).and_then(|sum| usize::try_from(sum).ok());
            let Some(padded) = padded.filter(|_| bytes > 0) else {
                return Err(failure(device, "mmap", libc::ENOMEM));
            };
            // SAFETY: an anonymous mapping at an address of the system's choice disturbs nothing.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    padded,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if start == libc::MAP_FAILED {
                return Err(last_failure(device, "mmap"));
            }
            let start = start as u64;
            let address = start.next_multiple_of(HUGE_PAGE);
            unmap(start, address - start);
            unmap(address + bytes, start + padded as u64 - (address + bytes));
            let pages = Self { address, bytes };
            // SAFETY: the range is the mapping just made. Where the system has no huge pages it says so, and
            // ordinary ones serve.
            unsafe { libc::madvise(address as *mut c_void, bytes as usize, libc::MADV_HUGEPAGE) };
            pages.populate(device)?;
            Ok(pages)
        }

        fn populate(&self, device: Device) -> Result<(), ProviderError> {
            let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
            let threads = (self.bytes / BYTES_PER_THREAD).clamp(1, cores.min(MAX_THREADS));
            let share = self.bytes.div_ceil(threads).next_multiple_of(HUGE_PAGE);
            let parts = (0..threads).map_while(|index| {
                let start = index * share;
                (start < self.bytes).then(|| (self.address + start, share.min(self.bytes - start)))
            });
            let mut results = Vec::new();
            std::thread::scope(|scope| {
                let mut running = Vec::new();
                for (address, bytes) in parts {
                    match std::thread::Builder::new().spawn_scoped(scope, move || touch(address, bytes)) {
                        Ok(thread) => running.push(thread),
                        // No more threads to be had: this one does it.
                        Err(_) => results.push(touch(address, bytes)),
                    }
                }
                results.extend(running.into_iter().map(|thread| thread.join().unwrap_or(Err(libc::EFAULT))));
            });
            match results.into_iter().find_map(Result::err) {
                None => Ok(()),
                Some(code) => Err(failure(device, "madvise", code)),
            }
        }
    }

    /// Puts memory behind a range, an errno if there is not enough.
    fn touch(address: u64, bytes: u64) -> Result<(), i32> {
        // SAFETY: the range is part of a mapping of ours that nobody else knows yet.
        let populated =
            unsafe { libc::madvise(address as *mut c_void, bytes as usize, libc::MADV_POPULATE_WRITE) } == 0;
        match std::io::Error::last_os_error().raw_os_error() {
            _ if populated => Ok(()),
            // Kernels before 5.14 don't know the advice.
            Some(libc::EINVAL) => {
                for page in (address..address + bytes).step_by(4096) {
                    // SAFETY: as above.
                    unsafe { (page as *mut u8).write_volatile(0) };
                }
                Ok(())
            }
            code => Err(code.unwrap_or(libc::ENOMEM)),
        }
    }

    fn unmap(address: u64, bytes: u64) {
        if bytes > 0 {
            // SAFETY: callers pass parts of their own mapping that nothing refers to.
            unsafe { libc::munmap(address as *mut c_void, bytes as usize) };
        }
    }

    impl Drop for HostPages {
        fn drop(&mut self) {
            unmap(self.address, self.bytes);
        }
    }

    fn last_failure(device: Device, call: &'static str) -> ProviderError {
        failure(device, call, std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }

    fn failure(device: Device, call: &'static str, code: i32) -> ProviderError {
        let kind = match code {
            libc::ENOMEM | libc::EAGAIN | libc::EFAULT => ProviderErrorKind::OutOfMemory,
            libc::EINVAL => ProviderErrorKind::InvalidArgument,
            _ => ProviderErrorKind::Other,
        };
        let name = std::io::Error::from_raw_os_error(code).to_string();
        ProviderError::new(device, call, kind, name).with_code(code.into())
    }
}

#[cfg(not(target_os = "linux"))]
impl HostPages {
    /// Not on this system: the driver's own page-locked memory serves instead.
    pub(crate) fn new(device: Device, _bytes: u64) -> Result<Self, ProviderError> {
        let name = "huge pages are asked for on Linux only";
        Err(ProviderError::new(device, "mmap", ProviderErrorKind::Unsupported, name))
    }
}

impl HostPages {
    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_and_writable() {
        let pages = HostPages::new(Device::cuda_pinned(0), 3 * HUGE_PAGE).unwrap();
        assert!(pages.address().is_multiple_of(HUGE_PAGE));
        // SAFETY: the range is ours.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pages.address() as *mut u8, pages.bytes() as usize) };
        bytes.fill(7);
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    #[test]
    fn more_than_there_is_is_an_error() {
        let error = HostPages::new(Device::cuda_pinned(0), 1 << 60).unwrap_err();
        assert_eq!(error.kind, ProviderErrorKind::OutOfMemory);
        assert!(HostPages::new(Device::cuda_pinned(0), u64::MAX - 4095).is_err());
    }
}
