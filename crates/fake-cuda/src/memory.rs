//! Device memory, backed by the host's.

use std::ffi::{CString, c_void};

use crate::abi::{INVALID_DEVICE, INVALID_VALUE, NOT_SUPPORTED, OPERATING_SYSTEM, OUT_OF_MEMORY, UNKNOWN};
use crate::world::World;

pub(crate) const GRANULARITY: u64 = 2 << 20;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
pub(crate) const POSIX_FILE_DESCRIPTOR: i32 = 1;
const FILE_NAME: &str = "fake-cuda-";
/// What a pool gives back at a time.
const POOL_UNIT: u64 = 32 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Device,
    /// From a pool; `freed` once its release was submitted.
    Pooled {
        pool: u64,
        freed: bool,
    },
    HostAllocated,
    /// The program's own memory, page-locked.
    HostRegistered,
}

pub(crate) struct Allocation {
    pub(crate) bytes: u64,
    pub(crate) device: usize,
    pub(crate) kind: Kind,
}

pub(crate) struct Physical {
    pub(crate) file: i32,
    pub(crate) bytes: u64,
    pub(crate) device: usize,
    /// The kinds of handle to other processes that it was made for.
    pub(crate) handle_types: i32,
    /// Another process's memory, or the same memory once more: no bytes of the device.
    pub(crate) imported: bool,
    pub(crate) mappings: u64,
    pub(crate) released: bool,
}

pub(crate) struct Mapping {
    pub(crate) bytes: u64,
    pub(crate) physical: u64,
    pub(crate) access: Vec<usize>,
}

pub(crate) struct Pool {
    pub(crate) device: usize,
    pub(crate) used: u64,
    pub(crate) reserved: u64,
    pub(crate) reserved_high: u64,
    pub(crate) threshold: u64,
}

impl Pool {
    pub(crate) fn new(device: usize) -> Self {
        Self { device, used: 0, reserved: 0, reserved_high: 0, threshold: 0 }
    }
}

fn map_at(address: u64, bytes: u64, protection: i32, flags: i32, file: i32) -> Result<u64, i32> {
    // SAFETY: without MAP_FIXED this disturbs nothing; with it, callers pass ranges that this library reserved.
    let mapped = unsafe { libc::mmap(address as *mut c_void, bytes as usize, protection, flags, file, 0) };
    if mapped == libc::MAP_FAILED { Err(OUT_OF_MEMORY) } else { Ok(mapped as u64) }
}

/// Fresh host memory, aligned to `align`.
pub(crate) fn obtain(bytes: u64, align: u64, protection: i32) -> Result<u64, i32> {
    let padded = bytes.checked_add(align).ok_or(OUT_OF_MEMORY)?;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let start = map_at(0, padded, protection, flags, -1)?;
    let aligned = start.next_multiple_of(align);
    give_back(start, aligned - start);
    let end = (aligned + bytes).next_multiple_of(4096);
    give_back(end, (start + padded).next_multiple_of(4096) - end);
    Ok(aligned)
}

pub(crate) fn give_back(address: u64, bytes: u64) {
    if bytes > 0 {
        // SAFETY: the range came from `obtain` and nothing of the library refers to it any more.
        unsafe { libc::munmap(address as *mut c_void, bytes as usize) };
    }
}

/// Physical memory of a device. The file's name says which, to processes that import it.
fn new_file(bytes: u64, device: usize) -> Result<i32, i32> {
    let name = CString::new(format!("{FILE_NAME}{device}")).map_err(|_| OUT_OF_MEMORY)?;
    // SAFETY: the name is a C string.
    let file = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(OUT_OF_MEMORY);
    }
    // SAFETY: the file was just made.
    if unsafe { libc::ftruncate(file, bytes as i64) } != 0 {
        close(file);
        return Err(OUT_OF_MEMORY);
    }
    Ok(file)
}

/// The size and the device of memory that some process exported, or `None` for any other file.
fn exported(file: i32) -> Option<(u64, usize)> {
    let target = std::fs::read_link(format!("/proc/self/fd/{file}")).ok()?;
    let name = target.to_str()?.strip_prefix("/memfd:")?.strip_prefix(FILE_NAME)?;
    let device = name.strip_suffix(" (deleted)").unwrap_or(name).parse().ok()?;
    let bytes = std::fs::metadata(format!("/proc/self/fd/{file}")).ok()?.len();
    Some((bytes, device))
}

/// Another descriptor of the same file, which a program that is executed does not inherit.
fn duplicate(file: i32) -> Result<i32, i32> {
    // SAFETY: any number is allowed.
    let copy = unsafe { libc::fcntl(file, libc::F_DUPFD_CLOEXEC, 0) };
    if copy < 0 { Err(OPERATING_SYSTEM) } else { Ok(copy) }
}

fn close(file: i32) {
    // SAFETY: callers own the file and forget it.
    unsafe { libc::close(file) };
}

pub(crate) fn copy(to: u64, from: u64, bytes: u64) {
    // SAFETY: callers checked both ranges against the books, or the program vouches for its own host memory.
    unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes as usize) }
}

pub(crate) fn fill(to: u64, bytes: u64, value: u8) {
    // SAFETY: as in `copy`.
    unsafe { std::ptr::write_bytes(to as *mut u8, value, bytes as usize) }
}

/// What an address range is to a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reach {
    /// Memory that the device can use.
    Usable,
    /// Memory that only the host knows.
    Pageable,
    /// An address that faults.
    Fault,
}

impl World {
    pub(crate) fn reach(&self, context: u64, address: u64, bytes: u64) -> Reach {
        let Some(end) = address.checked_add(bytes) else {
            return Reach::Fault;
        };
        let Some(found) = self.contexts.get(&context) else {
            return Reach::Fault;
        };
        if self.is_reserved(address) {
            let mut at = address;
            while at < end {
                match self.mappings.range(..=at).next_back() {
                    Some((start, mapping)) if at < start + mapping.bytes && mapping.access.contains(&found.device) => {
                        at = start + mapping.bytes;
                    }
                    _ => return Reach::Fault,
                }
            }
            return Reach::Usable;
        }
        match self.allocations.range(..=address).next_back() {
            Some((start, allocation)) if address < start + allocation.bytes => {
                let host = matches!(allocation.kind, Kind::HostAllocated | Kind::HostRegistered);
                let near = host || allocation.device == found.device || found.peers.contains(&allocation.device);
                if end <= start + allocation.bytes && near { Reach::Usable } else { Reach::Fault }
            }
            _ => Reach::Pageable,
        }
    }

    /// Whether an address is of virtual memory management.
    pub(crate) fn is_reserved(&self, address: u64) -> bool {
        self.reservations.range(..=address).next_back().is_some_and(|(start, length)| address < start + length)
    }

    /// Whether a range begins in one mapping and ends in another.
    pub(crate) fn spans_mappings(&self, address: u64, bytes: u64) -> bool {
        let begins_in = self.mappings.range(..=address).next_back();
        begins_in.is_some_and(|(start, mapping)| {
            let end = start + mapping.bytes;
            (address..address.saturating_add(bytes)).contains(&end) && address < end
        })
    }

    pub(crate) fn allocate(&mut self, device: usize, bytes: u64, kind: Kind) -> Result<u64, i32> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        match kind {
            Kind::Device => self.take(device, bytes)?,
            Kind::Pooled { pool, .. } => {
                let (used, reserved) =
                    self.pools.get(&pool).map(|pool| (pool.used, pool.reserved)).ok_or(INVALID_VALUE)?;
                let used = used.checked_add(bytes).ok_or(OUT_OF_MEMORY)?;
                self.take(device, used.saturating_sub(reserved))?;
                if let Some(pool) = self.pools.get_mut(&pool) {
                    pool.used = used;
                    pool.reserved = reserved.max(used);
                    pool.reserved_high = pool.reserved_high.max(pool.reserved);
                }
            }
            Kind::HostAllocated | Kind::HostRegistered => {}
        }
        // As the driver does: large allocations of the device lie on its pages, those of the host on the host's.
        let align = match kind {
            Kind::Device if bytes >= GRANULARITY && device.is_multiple_of(2) => GRANULARITY,
            Kind::HostAllocated => 4096,
            _ => 512,
        };
        match obtain(bytes, align, libc::PROT_READ | libc::PROT_WRITE) {
            Ok(address) => {
                self.allocations.insert(address, Allocation { bytes, device, kind });
                Ok(address)
            }
            Err(code) => {
                self.uncount(device, bytes, kind);
                Err(code)
            }
        }
    }

    fn uncount(&mut self, device: usize, bytes: u64, kind: Kind) {
        match kind {
            Kind::Device => self.devices[device].used -= bytes,
            Kind::Pooled { pool, .. } => {
                if let Some(pool) = self.pools.get_mut(&pool) {
                    pool.used -= bytes;
                    let keep = pool.used.max(pool.threshold.min(pool.reserved));
                    self.devices[pool.device].used -= pool.reserved - keep;
                    pool.reserved = keep;
                }
            }
            Kind::HostAllocated | Kind::HostRegistered => {}
        }
    }

    pub(crate) fn deallocate(&mut self, address: u64) {
        if let Some(Allocation { bytes, device, kind }) = self.allocations.remove(&address) {
            self.uncount(device, bytes, kind);
            give_back(address, bytes.next_multiple_of(4096));
        }
    }

    pub(crate) fn trim_pool(&mut self, pool: u64, keep: u64) -> Result<(), i32> {
        let pool = self.pools.get_mut(&pool).ok_or(INVALID_VALUE)?;
        // The driver gives back in units of its own.
        let target = pool.used.max(keep.next_multiple_of(POOL_UNIT).min(pool.reserved));
        self.devices[pool.device].used -= pool.reserved - target;
        pool.reserved = target;
        Ok(())
    }

    pub(crate) fn reserve(&mut self, bytes: u64, align: u64) -> Result<u64, i32> {
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(INVALID_VALUE);
        }
        let start = obtain(bytes, align.max(GRANULARITY), libc::PROT_NONE)?;
        self.reservations.insert(start, bytes);
        Ok(start)
    }

    pub(crate) fn unreserve(&mut self, address: u64, bytes: u64) -> Result<(), i32> {
        if self.reservations.get(&address) != Some(&bytes) {
            self.violation(format!("cuMemAddressFree of {address:#x}, {bytes} bytes, which is not a reservation"));
            return Err(INVALID_VALUE);
        }
        if self.mappings.range(address..address + bytes).next().is_some() {
            self.violation(format!("cuMemAddressFree of {address:#x} with mappings in it"));
            return Err(INVALID_VALUE);
        }
        self.reservations.remove(&address);
        give_back(address, bytes);
        Ok(())
    }

    pub(crate) fn create(&mut self, device: usize, bytes: u64, handle_types: i32) -> Result<u64, i32> {
        if bytes == 0 || !bytes.is_multiple_of(GRANULARITY) {
            return Err(INVALID_VALUE);
        }
        self.take(device, bytes)?;
        let file = new_file(bytes, device).inspect_err(|_| self.devices[device].used -= bytes)?;
        let physical = Physical { file, bytes, device, handle_types, imported: false, mappings: 0, released: false };
        let handle = self.fresh();
        self.physical.insert(handle, physical);
        Ok(handle)
    }

    /// A file descriptor for other processes.
    pub(crate) fn export(&mut self, handle: u64) -> Result<i32, i32> {
        match self.physical.get(&handle) {
            Some(physical) if !physical.released && physical.handle_types & POSIX_FILE_DESCRIPTOR != 0 => {
                duplicate(physical.file)
            }
            Some(physical) if !physical.released => Err(INVALID_VALUE),
            _ => {
                self.violation(format!("cuMemExportToShareableHandle of {handle:#x}, which is not a handle"));
                Err(INVALID_VALUE)
            }
        }
    }

    /// A handle of memory that was exported; the file descriptor stays the caller's.
    pub(crate) fn import(&mut self, file: i32) -> Result<u64, i32> {
        let (bytes, device) = exported(file).ok_or(UNKNOWN)?;
        if device >= self.devices.len() {
            return Err(INVALID_DEVICE);
        }
        let (file, handle_types) = (duplicate(file)?, POSIX_FILE_DESCRIPTOR);
        let physical = Physical { file, bytes, device, handle_types, imported: true, mappings: 0, released: false };
        let handle = self.fresh();
        self.physical.insert(handle, physical);
        Ok(handle)
    }

    pub(crate) fn release(&mut self, handle: u64) -> Result<(), i32> {
        match self.physical.get_mut(&handle) {
            Some(physical) if !physical.released => {
                physical.released = true;
                self.forget_unused(handle);
                Ok(())
            }
            _ => {
                self.violation(format!("cuMemRelease of {handle:#x}, which is not a handle"));
                Err(INVALID_VALUE)
            }
        }
    }

    fn forget_unused(&mut self, handle: u64) {
        if let Some(physical) = self.physical.get(&handle)
            && physical.released
            && physical.mappings == 0
        {
            if !physical.imported {
                self.devices[physical.device].used -= physical.bytes;
            }
            close(physical.file);
            self.physical.remove(&handle);
        }
    }

    pub(crate) fn map(&mut self, address: u64, bytes: u64, handle: u64) -> Result<(), i32> {
        let inside = self
            .reservations
            .range(..=address)
            .next_back()
            .is_some_and(|(start, length)| address + bytes <= start + length);
        let before = self.mappings.range(..address).next_back().is_none_or(|(start, m)| start + m.bytes <= address);
        let free = before && self.mappings.range(address..address + bytes).next().is_none();
        if self.physical.get(&handle).is_some_and(|physical| physical.imported && physical.bytes != bytes) {
            // What another process said of the size was wrong, which is no fault of this one.
            return Err(NOT_SUPPORTED);
        }
        let Some(physical) = self.physical.get_mut(&handle).filter(|p| p.bytes == bytes && !p.released) else {
            self.violation(format!("cuMemMap of {handle:#x}, {bytes} bytes, which is not such a handle"));
            return Err(INVALID_VALUE);
        };
        if !inside || !free || !address.is_multiple_of(GRANULARITY) {
            self.violation(format!("cuMemMap at {address:#x}, {bytes} bytes, which is not free reserved space"));
            return Err(INVALID_VALUE);
        }
        map_at(address, bytes, libc::PROT_NONE, libc::MAP_SHARED | libc::MAP_FIXED, physical.file)?;
        physical.mappings += 1;
        self.mappings.insert(address, Mapping { bytes, physical: handle, access: Vec::new() });
        Ok(())
    }

    pub(crate) fn set_access(&mut self, address: u64, bytes: u64, devices: &[usize]) -> Result<(), i32> {
        let mut covered = 0;
        for (start, mapping) in self.mappings.range_mut(address..address + bytes) {
            mapping.access = devices.to_vec();
            covered += mapping.bytes;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the range is a mapping of this library.
            unsafe { libc::mprotect(*start as *mut c_void, mapping.bytes as usize, protection) };
        }
        if covered == bytes { Ok(()) } else { Err(INVALID_VALUE) }
    }

    pub(crate) fn unmap(&mut self, address: u64, bytes: u64) -> Result<(), i32> {
        let starts: Vec<(u64, u64)> =
            self.mappings.range(address..address + bytes).map(|(start, m)| (*start, m.bytes)).collect();
        let whole = starts.first().is_some_and(|(start, _)| *start == address)
            && starts.iter().map(|(_, length)| length).sum::<u64>() == bytes;
        if !whole {
            self.violation(format!("cuMemUnmap of {address:#x}, {bytes} bytes, which are not whole mappings"));
            return Err(INVALID_VALUE);
        }
        for (start, length) in starts {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
            map_at(start, length, libc::PROT_NONE, flags, -1)?;
            if let Some(mapping) = self.mappings.remove(&start) {
                if let Some(physical) = self.physical.get_mut(&mapping.physical) {
                    physical.mappings -= 1;
                }
                self.forget_unused(mapping.physical);
            }
        }
        Ok(())
    }
}
