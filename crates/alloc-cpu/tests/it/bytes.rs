//! Reading and writing host memory by address.

use alloc_core::Address;

pub fn write(at: Address, offset: u64, bytes: &[u8]) {
    let to = std::ptr::with_exposed_provenance_mut::<u8>((at.get() + offset) as usize);
    // SAFETY: tests pass addresses that they have mapped or allocated, with room for these bytes.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
}

pub fn read(at: Address, offset: u64, length: usize) -> Vec<u8> {
    let from = std::ptr::with_exposed_provenance::<u8>((at.get() + offset) as usize);
    let mut bytes = vec![0; length];
    // SAFETY: tests pass addresses that they have mapped or allocated, with as many bytes.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length) };
    bytes
}

pub fn fill(at: Address, length: u64, value: u8) {
    let to = std::ptr::with_exposed_provenance_mut::<u8>(at.get() as usize);
    // SAFETY: tests pass addresses that they have mapped or allocated, with as many bytes.
    unsafe { std::ptr::write_bytes(to, value, length as usize) };
}

pub fn holds(at: Address, length: u64, value: u8) -> bool {
    let from = std::ptr::with_exposed_provenance::<u8>(at.get() as usize);
    // SAFETY: tests pass addresses that they have mapped or allocated, with as many bytes, and no one writes now.
    unsafe { std::slice::from_raw_parts(from, length as usize) }.iter().all(|&byte| byte == value)
}
