//! Safe code can order work on streams as it likes: no two pieces of work race, no host view comes too early, and
//! buffers may go while work on them is under way. The machine's notes of violations are the judge.

use std::panic::{AssertUnwindSafe, catch_unwind};

use alloc_core::{Device, DeviceAllocator, Layout, Stream, StreamSet};
use buffer::{Buffer, BufferError, SharedBuffer};

use crate::sim::{Call, Failure, GPU, GPU_PEER, Machine, OTHER, PINNED, reports};

const S1: Stream = Stream::from_raw(1);
const S2: Stream = Stream::from_raw(2);
const S3: Stream = Stream::from_raw(3);

#[test]
fn both_sides_of_a_copy_may_be_dropped_while_it_is_under_way() {
    for source_first in [true, false] {
        let machine = Machine::new();
        let source = Buffer::from_slice_on(machine.allocator(PINNED), &[1_u8; 64], S1).unwrap();
        let mut destination = Buffer::new_on(machine.allocator(GPU), 64, S2).unwrap();
        destination.copy_from_on(&source, S3).unwrap();
        assert_eq!(machine.waiting(), 1);
        if source_first {
            drop(source);
            drop(destination);
        } else {
            drop(destination);
            drop(source);
        }
        assert_eq!(machine.waiting(), 1, "nothing waited");
        assert!(machine.releases().iter().all(|(_, _, uses)| uses.contains(&S3)));
        machine.assert_clean();
    }
}

#[test]
fn a_chain_over_streams_arrives_in_order() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut a = Buffer::from_slice_on(gpu.clone(), &[1_u8; 8], S1).unwrap();
    let mut b = Buffer::new_on(gpu.clone(), 8, S2).unwrap();
    let mut c = Buffer::new_on(gpu, 8, S3).unwrap();
    b.copy_from_on(&a, S2).unwrap();
    c.copy_from_on(&b, S3).unwrap();
    a.fill_on(7, S1).unwrap(); // after the read on S2
    b.copy_from_on(&a, S1).unwrap(); // after the read on S3
    assert_eq!(machine.waiting(), 4);
    assert_eq!(c.to_vec::<u8>().unwrap(), [1; 8]);
    assert_eq!(b.to_vec::<u8>().unwrap(), [7; 8]);
    drop((a, b, c));
    machine.assert_clean();
}

#[test]
fn one_stream_needs_no_ordering_at_all() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut a = Buffer::zeroed_on(gpu.clone(), 8, S1).unwrap();
    let mut b = Buffer::new_on(gpu, 8, S1).unwrap();
    for _ in 0..3 {
        b.copy_from_on(&a, S1).unwrap();
        a.copy_from_on(&b, S1).unwrap();
    }
    drop((a, b));
    assert_eq!((machine.orders(), machine.synchronised()), (vec![], vec![]));
    assert!(machine.releases().iter().all(|(_, _, uses)| uses.is_empty()));
    machine.assert_clean();
}

#[test]
fn an_order_once_made_is_not_made_again() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let source = Buffer::zeroed_on(gpu.clone(), 8, S1).unwrap();
    let mut destination = Buffer::new_on(gpu, 8, S2).unwrap();
    for _ in 0..3 {
        destination.copy_from_on(&source, S2).unwrap();
    }
    assert_eq!(machine.orders(), [(S2, S1)]);
    drop((source, destination));
    machine.assert_clean();
}

#[test]
fn readers_don_t_wait_for_each_other_and_a_writer_waits_for_all() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut source = Buffer::zeroed_on(gpu.clone(), 8, S1).unwrap();
    let mut left = Buffer::new_on(gpu.clone(), 8, S2).unwrap();
    let mut right = Buffer::new_on(gpu, 8, S3).unwrap();
    left.copy_from_on(&source, S2).unwrap();
    right.copy_from_on(&source, S3).unwrap();
    assert_eq!(machine.orders(), [(S2, S1), (S3, S1)]);
    source.fill_on(1, S1).unwrap();
    assert_eq!(machine.orders()[2..], [(S1, S2), (S1, S3)]);
    drop((source, left, right));
    machine.assert_clean();
}

#[test]
fn birth_comes_before_the_first_use_on_another_stream() {
    let machine = Machine::new();
    let mut buffer = Buffer::new_on(machine.allocator(GPU), 8, S1).unwrap();
    buffer.fill_on(1, S2).unwrap();
    assert_eq!(machine.orders(), [(S2, S1)]);
    let other = Buffer::new_on(machine.allocator(GPU), 8, S1).unwrap();
    other.make_ready_on(S3).unwrap();
    assert_eq!(machine.orders()[1..], [(S3, S1)]);
    drop((buffer, other));
    machine.assert_clean();
}

#[test]
fn declared_kernels_are_waited_for_by_everything_that_follows() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let mut buffer = Buffer::zeroed_on(gpu.clone(), 8, S1).unwrap();
    buffer.make_ready_on(S2).unwrap();
    buffer.use_on(S2);
    machine.clear_log();
    buffer.fill_on(3, S3).unwrap();
    assert!(machine.orders().contains(&(S3, S2)));
    buffer.read_on(S2);
    machine.clear_log();
    Buffer::new_on(gpu, 8, S3).unwrap().copy_from_on(&buffer, S3).unwrap();
    assert_eq!(machine.orders(), [], "a declared read does not hold up a copy from the buffer");
    buffer.synchronize().unwrap();
    let mut waited = machine.synchronised();
    waited.sort();
    assert_eq!(waited, [S2, S3]);
    drop(buffer);
    assert!(machine.releases().last().unwrap().2.is_empty(), "all is done, so nothing needs naming");
    machine.assert_clean();
}

#[test]
fn finished_copies_leave_nothing_to_name() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let source = Buffer::zeroed_on(gpu.clone(), 8, S1).unwrap();
    let mut destination = Buffer::new_on(gpu, 8, S2).unwrap();
    destination.copy_from(&source).unwrap();
    drop((source, destination));
    assert_eq!(machine.releases(), [(GPU, S1, vec![]), (GPU, S2, vec![])]);
    machine.assert_clean();
}

#[test]
fn a_stream_that_was_waited_for_may_end() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let source = Buffer::zeroed_on(gpu.clone(), 64, S1).unwrap();
    let mut buffer = Buffer::zeroed_on(gpu, 64, S1).unwrap();
    buffer.copy_from_on(&source, S2).unwrap();
    source.read_on(S2);
    buffer.hand_over(S3).unwrap();
    source.synchronize().unwrap();
    buffer.synchronize().unwrap();
    // From here on S2 has ended, and for this buffer S1 too.
    machine.clear_log();
    source.make_ready_on(S3).unwrap();
    assert_eq!(source.to_vec::<u8>().unwrap(), buffer.to_vec::<u8>().unwrap());
    buffer.copy_from_on(&source, S3).unwrap();
    buffer.synchronize().unwrap();
    let named = machine.orders().into_iter().flat_map(|(stream, after)| [stream, after]);
    assert!(named.chain(machine.synchronised()).all(|stream| stream != S2), "{:?}", machine.log());
    machine.clear_log();
    buffer.fill(1).unwrap();
    drop(buffer);
    assert!(machine.orders().is_empty() && machine.synchronised().iter().all(|stream| *stream == S3));
}

#[test]
fn another_backend_s_memory_is_waited_for_before_and_after() {
    let machine = Machine::new();
    // Streams of equal names that have nothing to do with each other.
    let mut gpu = Buffer::new_on(machine.allocator(GPU), 8, S1).unwrap();
    gpu.fill_on(1, S1).unwrap();
    let mut other = Buffer::new_on(machine.allocator(OTHER), 8, S1).unwrap();
    other.copy_from_on(&gpu, S1).unwrap();
    assert_eq!(machine.waiting(), 0, "the GPU's allocator could not be told of the other's stream");
    assert_eq!(other.to_vec::<u8>().unwrap(), [1; 8]);
    drop((gpu, other));
    assert!(machine.releases().iter().all(|(_, _, uses)| uses.is_empty()));
    machine.assert_clean();
}

#[test]
fn memory_of_another_backend_that_may_be_in_use_is_never_reused() {
    for failure in [Failure::Error, Failure::Panic] {
        let machine = Machine::new();
        let mut gpu = Buffer::from_slice(machine.allocator(GPU), &[1_u8; 8]).unwrap();
        let mut other = Buffer::new(machine.allocator(OTHER), 8).unwrap();
        gpu.synchronize().unwrap();
        machine.fail(Call::Synchronize, 1, failure);
        let outcome = catch_unwind(AssertUnwindSafe(|| other.copy_from_on(&gpu, S1).map(drop)));
        assert!(!matches!(outcome, Ok(Ok(()))));
        assert_eq!(machine.waiting(), 1);
        let unfinished = Err(BufferError::Unfinished { device: GPU });
        assert_eq!(gpu.fill(2), unfinished);
        assert_eq!(gpu.synchronize(), unfinished);
        // Parts could not say so, and whoever made a buffer of them again would release the memory.
        let gpu = gpu.into_raw_parts().unwrap_err();
        assert_eq!(reports::count(|| drop(gpu)), 1);
        drop(other); // its own backend knows the stream
        machine.run_all();
        assert_eq!((machine.violations(), machine.living()), (0, 1), "{failure:?}");
    }
}

#[test]
fn a_copy_that_fails_or_panics_counts_as_under_way() {
    for failure in [Failure::Error, Failure::Panic] {
        let machine = Machine::new();
        let gpu = machine.allocator(GPU);
        let source = Buffer::zeroed_on(gpu.clone(), 8, S1).unwrap();
        let mut destination = Buffer::new_on(gpu, 8, S1).unwrap();
        machine.fail(Call::Copy, 1, failure);
        let outcome = catch_unwind(AssertUnwindSafe(|| destination.copy_from_on(&source, S2).map(drop)));
        assert!(!matches!(outcome, Ok(Ok(()))));
        drop((source, destination));
        assert!(machine.releases().iter().all(|(_, _, uses)| uses == &[S2]), "{failure:?}");
        machine.assert_clean();
    }
}

#[test]
fn pinned_memory_written_by_a_device_is_complete_before_a_host_copy_reads_it() {
    let machine = Machine::new();
    let gpu = Buffer::from_slice_on(machine.allocator(GPU), &[6_u8; 8], S1).unwrap();
    let mut pinned = Buffer::new_on(machine.allocator(PINNED), 8, S1).unwrap();
    pinned.copy_from_on(&gpu, S1).unwrap();
    let mut host = Buffer::new(machine.allocator(Device::CPU), 8).unwrap();
    host.copy_from_on(&pinned, S1).unwrap();
    assert_eq!(host.as_bytes().unwrap(), [6; 8]);
    let mut slice = [0_u8; 8];
    pinned.copy_to_slice(&mut slice).unwrap();
    assert_eq!(slice, [6; 8]);
    drop((gpu, pinned, host));
    machine.assert_clean();
}

#[test]
fn random_programs_in_safe_code_never_race() {
    let mut state = 42_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    for round in 0..200 {
        let machine = Machine::new();
        let devices = [GPU, GPU_PEER, PINNED, Device::CPU, OTHER];
        let allocators = devices.map(|device| machine.allocator(device));
        let stream = |n: usize| Stream::from_raw(n as u64 % 4);
        // A buffer and the byte that it is full of.
        let mut buffers: Vec<(Buffer, u8)> = Vec::new();
        for step in 0..60 {
            let value = step as u8;
            match random(10) {
                0..=2 => {
                    let buffer = Buffer::zeroed_on(allocators[random(5)].clone(), 32, stream(random(4))).unwrap();
                    buffers.push((buffer, 0));
                }
                3 if !buffers.is_empty() => drop(buffers.swap_remove(random(buffers.len()))),
                4..=6 if buffers.len() > 1 => {
                    let (mut destination, _) = buffers.swap_remove(random(buffers.len()));
                    let (source, full_of) = &buffers[random(buffers.len())];
                    match destination.copy_from_on(source, stream(random(4))) {
                        Ok(32) => buffers.push((destination, *full_of)),
                        outcome => assert!(matches!(outcome, Err(BufferError::Transfer(_))), "{outcome:?}"),
                    }
                }
                7 if !buffers.is_empty() => {
                    let index = random(buffers.len());
                    buffers[index].0.fill_on(value, stream(random(4))).unwrap();
                    buffers[index].1 = value;
                }
                8 if !buffers.is_empty() => {
                    let index = random(buffers.len());
                    buffers[index].0.hand_over(stream(random(4))).unwrap();
                    let _ = buffers[index].0.resize(64).unwrap();
                    let _ = buffers[index].0.resize(32).unwrap();
                }
                9 if !buffers.is_empty() => {
                    let index = random(buffers.len());
                    let (buffer, full_of) = &mut buffers[index];
                    let expected = [*full_of; 32];
                    if buffer.device().is_host_accessible() {
                        assert_eq!(buffer.as_bytes_mut().unwrap(), expected, "round {round}");
                    } else {
                        assert_eq!(buffer.to_vec::<u8>().unwrap(), expected, "round {round}");
                    }
                }
                _ => {}
            }
        }
        for (buffer, full_of) in &buffers {
            assert_eq!(buffer.to_vec::<u8>().unwrap(), [*full_of; 32], "round {round}");
        }
        drop(buffers);
        machine.assert_clean();
    }
}

#[test]
fn the_judge_sees_a_release_that_forgets_a_stream_and_work_that_races() {
    let machine = Machine::new();
    let gpu = machine.allocator(GPU);
    let block = gpu.allocate(Layout::bytes(8).unwrap(), S1).unwrap();
    let place = alloc_core::Place { device: GPU, address: block.address() };
    // SAFETY: wrong on purpose, in a simulation that survives it.
    unsafe {
        gpu.transfer().fill(place, 8, 1, S2).unwrap();
        gpu.transfer().fill(place, 8, 2, S3).unwrap();
        assert_eq!(machine.violations(), 1);
        gpu.release(block, S1, StreamSet::EMPTY).unwrap();
        assert_eq!(machine.violations(), 3);
        assert!(gpu.release(block, S1, StreamSet::EMPTY).is_err());
    }
    assert!(machine.violations() > 3);
    machine.run_all();
    drop(SharedBuffer::from(Buffer::new(gpu, 1).unwrap()));
}
