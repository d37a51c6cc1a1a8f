//! A device whose allocator the program has installed before: what is told of it, in a process of its own.

use std::process::Command;
use std::ptr::null_mut;

use alloc_core::{Device, registry};
use alloc_cpu::SystemAllocator;
use device_memory::Status;
use device_memory::ffi::*;

#[test]
fn of_a_programs_own_allocator_the_blocks_are_told() {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "installed::tells_of_blocks", "--ignored", "--nocapture"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn text(write: unsafe extern "C" fn(i32, i32, *mut std::ffi::c_char, usize) -> usize) -> String {
    let mut text = vec![0_u8; 1 << 16];
    // SAFETY: the buffer has that many bytes.
    let length = unsafe { write(DEVMEM_KIND_CPU, 0, text.as_mut_ptr().cast(), text.len()) };
    text.truncate(length);
    String::from_utf8(text).unwrap()
}

#[test]
#[ignore = "run by `of_a_programs_own_allocator_the_blocks_are_told`"]
fn tells_of_blocks() {
    registry::install(Device::CPU, Box::new(SystemAllocator::new())).unwrap();
    let snapshot = || serde_json::from_str::<serde_json::Value>(&text(devmem_snapshot_json)).unwrap();
    let empty = snapshot();
    assert_eq!((empty["blocks"].as_array().map(Vec::len), &empty["device"]), (Some(0), &"cpu:0".into()));
    let mut pointers = [null_mut(); 2];
    for pointer in &mut pointers {
        // SAFETY: the pointer is a local.
        assert_eq!(unsafe { devmem_allocate(DEVMEM_KIND_CPU, 0, 700, pointer) }, Status::Ok);
    }
    let snapshot = snapshot();
    assert!(snapshot["arenas"].is_null(), "where its memory is can't be known: {snapshot}");
    assert!(snapshot["private_pools"].as_array().unwrap().is_empty());
    let blocks = snapshot["blocks"].as_array().unwrap();
    let mut addresses: Vec<_> = pointers.iter().map(|pointer| pointer.addr() as u64).collect();
    addresses.sort_unstable();
    assert_eq!(blocks.iter().map(|block| block["address"].as_u64().unwrap()).collect::<Vec<_>>(), addresses);
    assert!(blocks.iter().all(|block| block["size"] == 700));
    assert_eq!(snapshot["statistics"]["allocated"], 1400);
    assert!(text(devmem_picture_html).contains("own allocator, of which only the figures are known"));
    // SAFETY: nothing is written.
    assert_eq!(unsafe { devmem_grow_to(DEVMEM_KIND_CPU, 0, 1 << 20, 0, null_mut()) }, Status::Ok, "it makes none");
    for pointer in pointers {
        // SAFETY: nothing uses the block.
        assert_eq!(unsafe { devmem_free(pointer) }, Status::Ok);
    }
}
