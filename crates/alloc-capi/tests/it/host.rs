//! The functions on the host's memory, called as C calls them.

use std::ffi::{CStr, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use device_memory::ffi::*;
use device_memory::{Statistics, Status};
use dlpark::ffi::DLManagedTensor;

const CPU: i32 = DEVMEM_KIND_CPU;

/// One test at a time: what one frees twice on purpose could by then be another's.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn take(size: u64) -> *mut c_void {
    take_on(size, 0, 0)
}

fn take_on(size: u64, align: u64, stream: u64) -> *mut c_void {
    let mut pointer = null_mut();
    // SAFETY: the pointer is a local.
    assert_eq!(unsafe { devmem_allocate_on(CPU, 0, size, align, stream, &mut pointer) }, Status::Ok);
    assert!(!pointer.is_null());
    pointer
}

fn give(pointer: *mut c_void) -> Status {
    // SAFETY: nothing uses the block, if it is one.
    unsafe { devmem_free(pointer) }
}

fn last_error() -> String {
    // SAFETY: the text is valid until the next failure of this thread.
    unsafe { CStr::from_ptr(devmem_last_error()) }.to_str().unwrap().to_owned()
}

#[test]
fn blocks_are_apart_and_hold_what_is_written() {
    let _alone = alone();
    let sizes = [1_usize, 511, 512, 513, 65_536, 65_537, 3 << 20];
    let blocks: Vec<_> = sizes.iter().map(|&size| (take(size as u64).cast::<u8>(), size)).collect();
    for (number, &(block, size)) in blocks.iter().enumerate() {
        // SAFETY: the block has that many bytes.
        unsafe { block.write_bytes(number as u8 + 1, size) };
    }
    for (number, &(block, size)) in blocks.iter().enumerate() {
        // SAFETY: as above, and they were written.
        let bytes = unsafe { std::slice::from_raw_parts(block, size) };
        assert!(bytes.iter().all(|byte| *byte == number as u8 + 1), "{size}");
        assert_eq!(give(block.cast()), Status::Ok);
    }
}

#[test]
fn zero_bytes_have_addresses_of_their_own() {
    let _alone = alone();
    let (one, two) = (take(0), take(0));
    assert_ne!(one, two);
    assert_eq!((give(one), give(two)), (Status::Ok, Status::Ok));
    assert_eq!(give(one), Status::DoubleFree);
}

#[test]
fn a_null_pointer_is_freed_without_more_ado() {
    let _alone = alone();
    assert_eq!(give(null_mut()), Status::Ok);
}

#[test]
fn what_is_no_block_is_refused() {
    let _alone = alone();
    let block = take(4096);
    let inside = block.wrapping_byte_add(512);
    assert_eq!(give(inside), Status::UnknownPointer);
    assert_eq!(give(block.wrapping_byte_add(1)), Status::UnknownPointer);
    assert_eq!(give((&raw const block).cast_mut().cast()), Status::UnknownPointer);
    assert_eq!(give(std::ptr::without_provenance_mut(usize::MAX)), Status::UnknownPointer);
    assert!(last_error().contains("0xffffffffffffffff"), "{}", last_error());
    assert_eq!(give(block), Status::Ok);
    assert_eq!(give(block), Status::DoubleFree);
    assert!(last_error().contains("freed before"), "{}", last_error());
}

#[test]
fn a_wrong_claim_is_refused_and_changes_nothing() {
    let _alone = alone();
    let block = take(5000);
    // SAFETY: nothing uses the block.
    let checked = |kind, size| unsafe { devmem_free_checked(block, kind, 0, size, 0) };
    assert_eq!(checked(DEVMEM_KIND_CUDA, 5000), Status::WrongDevice);
    assert_eq!(checked(CPU, 5001), Status::WrongSize);
    assert_eq!(checked(77, 5000), Status::InvalidArgument);
    assert_eq!(checked(CPU, 5000), Status::Ok);
    assert_eq!(checked(CPU, 5000), Status::DoubleFree);
}

#[test]
fn nonsense_is_an_error() {
    let _alone = alone();
    let mut pointer = null_mut();
    for (kind, ordinal, size, align, wanted) in [
        (0, 0, 1, 0, Status::InvalidArgument),
        (-1, 0, 1, 0, Status::InvalidArgument),
        (CPU, 1, 1, 0, Status::InvalidArgument),
        (CPU, -1, 1, 0, Status::InvalidArgument),
        (CPU, 0, 1, 3, Status::InvalidArgument),
        (CPU, 0, u64::MAX, 0, Status::InvalidArgument),
        (CPU, 0, u64::MAX - 511, 512, Status::InvalidArgument),
        (CPU, 0, 1 << 62, 0, Status::OutOfMemory),
    ] {
        // SAFETY: the pointer is a local.
        let status = unsafe { devmem_allocate_on(kind, ordinal, size, align, 0, &mut pointer) };
        assert_eq!(status, wanted, "{kind} {ordinal} {size} {align}: {}", last_error());
        assert!(pointer.is_null());
    }
    // SAFETY: a null pointer is refused.
    unsafe {
        assert_eq!(devmem_allocate(CPU, 0, 1, null_mut()), Status::InvalidArgument);
        assert_eq!(devmem_limit(CPU, 0, null_mut()), Status::InvalidArgument);
        assert_eq!(devmem_statistics(CPU, 0, null_mut(), 8), Status::InvalidArgument);
        assert_eq!(devmem_statistics_json(9, 0, null_mut(), 0), 0);
    }
}

#[test]
fn devices_that_are_not_there_are_unavailable() {
    let _alone = alone();
    if cfg!(feature = "cuda") {
        return; // the tests with a driver see to this
    }
    let mut pointer = null_mut();
    // SAFETY: the pointer is a local.
    assert_eq!(unsafe { devmem_allocate(DEVMEM_KIND_CUDA, 0, 1, &mut pointer) }, Status::Unavailable);
    let mut count = 7;
    // SAFETY: as above.
    assert_eq!(unsafe { devmem_device_count(DEVMEM_KIND_CUDA, &mut count) }, Status::Ok);
    assert_eq!(count, 0);
}

#[test]
fn alignment_is_kept() {
    let _alone = alone();
    for align in [1, 512, 4096, 2 << 20] {
        let block = take_on(100, align, 3);
        assert!(block.addr().is_multiple_of((align as usize).max(512)), "{align}");
        let mut info = BlockInfo::default();
        // SAFETY: the struct is a local.
        assert_eq!(unsafe { devmem_block_info(block, &mut info) }, Status::Ok);
        assert_eq!(info, BlockInfo { kind: CPU, ordinal: 0, size: 100, stream: 3 });
        // SAFETY: nothing uses the block.
        assert_eq!(unsafe { devmem_free_on(block, 4) }, Status::Ok);
    }
}

#[test]
fn recorded_streams_belong_to_living_blocks() {
    let _alone = alone();
    let block = take_on(1 << 20, 0, 5);
    // SAFETY: a host has no queues, so any number is a stream.
    unsafe {
        assert_eq!(devmem_record_stream(block, 5), Status::Ok);
        assert_eq!(devmem_record_stream(block, 6), Status::Ok);
        assert_eq!(devmem_record_stream(block, 6), Status::Ok);
        assert_eq!(devmem_record_stream(block.wrapping_byte_add(256), 6), Status::UnknownPointer);
    }
    assert_eq!(give(block), Status::Ok);
    // SAFETY: as above.
    unsafe {
        assert_eq!(devmem_record_stream(block, 6), Status::DoubleFree);
        assert_eq!(devmem_retire_stream(CPU, 0, 6), Status::Ok);
    }
}

#[test]
fn of_threads_that_free_one_block_one_does() {
    let _alone = alone();
    for _ in 0..200 {
        let block = take(100_000).expose_provenance();
        let freed: usize = std::thread::scope(|scope| {
            let free = || usize::from(give(std::ptr::with_exposed_provenance_mut(block)) == Status::Ok);
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(free)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(freed, 1);
    }
}

#[test]
fn figures_come_as_far_as_the_caller_knows_them() {
    let _alone = alone();
    let block = take(10 << 20);
    let mut statistics = Statistics::default();
    // SAFETY: the struct is a local of that size.
    let status = unsafe { devmem_statistics(CPU, 0, &mut statistics, size_of::<Statistics>()) };
    assert_eq!(status, Status::Ok);
    assert!(statistics.allocated >= 10 << 20 && statistics.allocated_peak >= statistics.allocated);
    assert!(statistics.reserved >= statistics.in_use && statistics.in_use >= 10 << 20);
    assert!(statistics.block_count >= 1 && statistics.allocation_count >= 1 && statistics.device_total > 0);

    let mut older = Statistics::default();
    older.allocated_peak = 99;
    // SAFETY: the struct has more than eight bytes.
    assert_eq!(unsafe { devmem_statistics(CPU, 0, &mut older, 8) }, Status::Ok);
    assert!(older.allocated > 0);
    assert_eq!(older.allocated_peak, 99, "what the caller does not know is left alone");

    let mut newer = vec![0xFF_u8; size_of::<Statistics>() + 64];
    // SAFETY: the buffer has that many bytes; alignment does not matter to a copy of bytes.
    let status = unsafe { devmem_statistics(CPU, 0, newer.as_mut_ptr().cast(), newer.len()) };
    assert_eq!(status, Status::Ok);
    assert!(newer[size_of::<Statistics>()..].iter().all(|byte| *byte == 0), "what the library does not know is zero");
    assert_eq!(give(block), Status::Ok);
}

fn text(write: impl Fn(*mut std::ffi::c_char, usize) -> usize) -> String {
    let length = write(null_mut(), 0);
    let mut text = vec![0_u8; length * 2 + 4096];
    let written = write(text.as_mut_ptr().cast(), text.len());
    assert_eq!(text[written], 0);
    text.truncate(written);
    String::from_utf8(text).unwrap()
}

#[test]
fn snapshots_name_every_living_block() {
    let _alone = alone();
    let block = take_on(123_456, 0, 8);
    // SAFETY: the buffer is as large as the function is told.
    let snapshot = text(|to, capacity| unsafe { devmem_snapshot_json(CPU, 0, to, capacity) });
    let snapshot: serde_json::Value = serde_json::from_str(&snapshot).unwrap();
    let blocks = snapshot["blocks"].as_array().unwrap();
    let found = blocks.iter().find(|found| found["address"] == block.addr()).unwrap();
    assert_eq!((&found["size"], &found["stream"]), (&123_456.into(), &8.into()));
    assert!(snapshot["statistics"]["allocated"].as_u64().unwrap() >= 123_456);
    assert_eq!(give(block), Status::Ok);
    // SAFETY: as above. A text that does not fit is cut off and ended.
    unsafe {
        let mut short = [1 as std::ffi::c_char; 8];
        assert!(devmem_statistics_json(CPU, 0, short.as_mut_ptr(), 8) > 8);
        assert_eq!((short[0] as u8, short[7]), (b'{', 0));
    }
}

#[test]
fn snapshots_say_where_the_memory_is() {
    let _alone = alone();
    let (large, small, cached) = (take_on(3_000_001, 0, 8), take_on(1000, 0, 8), take_on(1000, 0, 8));
    assert_eq!(give(cached), Status::Ok);
    // What another thread has in its cache nobody can tell from a block but the index.
    let (tell, told) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let theirs = [take_on(5000, 0, 8), take_on(5000, 0, 8)];
        let addresses = theirs.map(<*mut _>::addr);
        theirs.into_iter().for_each(|block| assert_eq!(give(block), Status::Ok));
        tell.send(addresses).unwrap();
        ended.recv().unwrap();
    });
    let theirs = told.recv().unwrap();
    // SAFETY: the buffer is as large as the function is told.
    let snapshot = text(|to, capacity| unsafe { devmem_snapshot_json(CPU, 0, to, capacity) });
    end.send(()).unwrap();
    thread.join().unwrap();
    let snapshot: serde_json::Value = serde_json::from_str(&snapshot).unwrap();
    let number = |value: &serde_json::Value| value.as_u64().unwrap();
    let list = |value: &serde_json::Value| value.as_array().unwrap().clone();
    let runs: Vec<_> = list(&snapshot["arenas"]).iter().flat_map(|arena| list(&arena["runs"])).collect();
    let mut pieces = Vec::new();
    for run in &runs {
        let mut end = number(&run["address"]);
        for piece in list(&run["pieces"]) {
            assert_eq!(number(&piece["address"]), end);
            end += number(&piece["size"]);
            pieces.push(piece);
        }
        assert_eq!(end, number(&run["address"]) + number(&run["size"]));
    }
    let placed: u64 = runs.iter().map(|run| number(&run["size"])).sum();
    let reserved = number(&snapshot["statistics"]["reserved"]);
    assert_eq!(placed + number(&snapshot["unplaced"]) + number(&snapshot["lost"]), reserved);
    let holding = |address: usize| {
        let holds = |piece: &&serde_json::Value| {
            let start = number(&piece["address"]);
            (start..start + number(&piece["size"])).contains(&(address as u64))
        };
        pieces.iter().find(holds).unwrap().clone()
    };
    let slot = |address: usize| {
        let slab = holding(address);
        assert_eq!(slab["kind"], "slab");
        let slot = (address as u64 - number(&slab["address"])) / number(&slab["slot_size"]);
        slab["slots"].as_str().unwrap().as_bytes()[slot as usize] as char
    };
    let block = holding(large.addr());
    assert_eq!(
        (&block["kind"], &block["requested"], &block["stream"]),
        (&"block".into(), &3_000_001.into(), &8.into())
    );
    assert_eq!([small.addr(), cached.addr(), theirs[0], theirs[1]].map(slot), ['u', 'c', 't', 't']);
    assert!(pieces.iter().any(|piece| piece["kind"] == "free" && piece["users"].is_array()));
    assert!(list(&snapshot["private_pools"]).is_empty());
    assert_eq!((give(large), give(small)), (Status::Ok, Status::Ok));
}

#[test]
fn a_page_shows_where_the_memory_is() {
    let _alone = alone();
    let (large, small) = (take_on(3_000_001, 0, 8), take_on(1000, 0, 8));
    // SAFETY: the buffer is as large as the function is told.
    let page = text(|to, capacity| unsafe { devmem_picture_html(CPU, 0, to, capacity) });
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let page = roxmltree::Document::parse_with_options(&page, options).unwrap();
    let told: Vec<&str> =
        page.descendants().filter(|node| node.has_tag_name("title")).filter_map(|title| title.text()).collect();
    assert_eq!(told[0], "Memory of cpu:0");
    let start = format!("{:#x}: ", large.addr());
    assert!(told.iter().any(|told| told.starts_with(&start) && told.contains("3000001 bytes asked for, stream(0x8)")));
    assert!(page.descendants().any(|node| node.text() == Some("The device's pool")));
    assert_eq!([large, small].map(give), [Status::Ok; 2]);
    // SAFETY: as above.
    assert_eq!(unsafe { devmem_picture_html(99, 0, null_mut(), 0) }, 0);
    assert!(last_error().contains("kind of device"), "{}", last_error());
}

/// A tensor of a million bytes.
fn tensor() -> *mut DLManagedTensor {
    let (shape, mut tensor) = ([1000_i64, 1000], null_mut());
    // SAFETY: the shape has two lengths, and the pointer is a local.
    let made = unsafe { dlpack::devmem_dlpack_zeros(CPU, 0, 1, 8, shape.as_ptr(), 2, 0, 0, &mut tensor) };
    assert_eq!(made, Status::Ok, "{}", last_error());
    tensor.cast()
}

#[test]
fn tensors_are_counted_and_found_as_all_else_is() {
    let _alone = alone();
    let counts = || {
        let mut figures = Statistics::default();
        // SAFETY: the struct is a local of that size.
        assert_eq!(unsafe { devmem_statistics(CPU, 0, &mut figures, size_of_val(&figures)) }, Status::Ok);
        (figures.allocated, figures.block_count, figures.failure_count)
    };
    let (bytes, blocks, failures) = counts();
    let tensor = tensor();
    assert_eq!(counts(), (bytes + 1_000_000, blocks + 1, failures));
    // SAFETY: the tensor lives.
    let block = unsafe { (*tensor).dl_tensor.data };
    // SAFETY: the buffer is as large as the function is told.
    let snapshot = text(|to, capacity| unsafe { devmem_snapshot_json(CPU, 0, to, capacity) });
    let snapshot: serde_json::Value = serde_json::from_str(&snapshot).unwrap();
    let found = snapshot["blocks"].as_array().unwrap().iter().find(|found| found["address"] == block.addr()).unwrap();
    assert_eq!((&found["size"], &found["private_pool"]), (&1_000_000.into(), &false.into()));
    let mut info = BlockInfo::default();
    // SAFETY: the struct is a local; a host has no queues, so any number is a stream.
    unsafe {
        assert_eq!(devmem_block_info(block, &mut info), Status::Ok);
        assert_eq!(devmem_record_stream(block, 9), Status::Ok);
    }
    assert_eq!((info.kind, info.size), (CPU, 1_000_000));
    assert_eq!(give(block), Status::UnknownPointer, "the tensor has it");
    assert!(last_error().contains("gives it back itself"), "{}", last_error());
    // SAFETY: as above.
    assert_eq!(unsafe { devmem_free_checked(block, CPU, 0, 1_000_000, 0) }, Status::UnknownPointer);
    // SAFETY: nobody uses the tensor any more.
    unsafe { (*tensor).deleter.unwrap()(tensor) };
    assert_eq!(counts(), (bytes, blocks, failures));
    assert_eq!(give(block), Status::DoubleFree);
    let (shape, mut none) = ([64_i64 << 20], null_mut());
    assert_eq!(devmem_set_limit(CPU, 0, 32 << 20), Status::Ok);
    // SAFETY: the shape has one length, and the pointer is a local.
    let made = unsafe { dlpack::devmem_dlpack_zeros(CPU, 0, 1, 8, shape.as_ptr(), 1, 0, 0, &mut none) };
    assert_eq!(devmem_set_limit(CPU, 0, 0), Status::Ok);
    assert_eq!((made, none), (Status::OutOfMemory, null_mut()));
    assert_eq!(counts(), (bytes, blocks, failures + 1));
}

#[test]
fn memory_is_made_beforehand() {
    let _alone = alone();
    let figures = || {
        let mut statistics = Statistics::default();
        // SAFETY: the struct is a local of that size.
        unsafe { devmem_statistics(CPU, 0, &mut statistics, size_of::<Statistics>()) };
        statistics
    };
    // SAFETY: the number is a local or there is none; a host has no queues, so any number is a stream.
    let grow = |bytes, held: *mut u64| unsafe { devmem_grow_to(CPU, 0, bytes, 0, held) };
    let mut held = 0;
    assert_eq!(grow(96 << 20, &mut held), Status::Ok);
    let before = figures();
    assert!(held >= 96 << 20 && before.reserved == held);
    assert_eq!(give(take(64 << 20)), Status::Ok);
    assert_eq!((figures().misses, figures().reserved), (before.misses, held));
    assert_eq!(grow(1, null_mut()), Status::Ok);
    assert_eq!(devmem_set_limit(CPU, 0, held), Status::Ok);
    assert_eq!(grow(held + 1, &mut held), Status::OutOfMemory);
    assert_eq!(devmem_set_limit(CPU, 0, 0), Status::Ok);
    assert_eq!((figures().reserved, figures().failure_count), (held, before.failure_count + 1));
    // SAFETY: as above.
    assert_eq!(unsafe { devmem_grow_to(CPU, 5, 1, 0, null_mut()) }, Status::InvalidArgument);
    // SAFETY: nothing is written.
    assert_eq!(unsafe { devmem_trim(CPU, 0, 0, null_mut()) }, Status::Ok);
}

#[test]
fn names_of_statuses_are_words() {
    let _alone = alone();
    // SAFETY: names are constants.
    let name = |status| unsafe { CStr::from_ptr(devmem_status_name(status)) }.to_str().unwrap();
    assert_eq!((name(0), name(4), name(9)), ("ok", "double free", "internal error"));
    assert_eq!((name(10), name(-1)), ("unknown status", "unknown status"));
}
