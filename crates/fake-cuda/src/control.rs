//! The tests' own functions.

use std::ffi::c_char;

use crate::abi::In;
use crate::memory::Kind;
use crate::streams::Key;
use crate::world::{Failure, lock};

/// Forgets the log, violations and failures still to come; heals devices, ends holds and the random order.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_clear() {
    let mut world = lock();
    world.log.clear();
    world.failures.clear();
    world.violations.clear();
    world.lazy = 0;
    for device in &mut world.devices {
        device.poisoned = 0;
    }
    for queue in world.queues.values_mut() {
        queue.held = false;
    }
    world.run_some();
}

/// Number of calls of a name since the last clear; of all calls with null.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_calls(name: In<c_char>) -> u64 {
    let name = name.text();
    lock().log.iter().filter(|call| name.is_empty() || call.name == name).count() as u64
}

fn write_text(text: &str, to: *mut u8, capacity: usize) -> usize {
    if !to.is_null() {
        // SAFETY: the test passes a buffer and its capacity.
        let to = unsafe { std::slice::from_raw_parts_mut(to, capacity) };
        let bytes = text.len().min(capacity);
        to[..bytes].copy_from_slice(&text.as_bytes()[..bytes]);
    }
    text.len()
}

/// Writes the log, a line `name subject` a call, and returns its length.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_log(to: *mut u8, capacity: usize) -> usize {
    let text: String = lock().log.iter().map(|call| format!("{} {:#x}\n", call.name, call.subject)).collect();
    write_text(&text, to, capacity)
}

/// Writes the violations, one a line, and returns their length.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_violations(to: *mut u8, capacity: usize) -> usize {
    let text = lock().violations.join("\n");
    write_text(&text, to, capacity)
}

/// Makes the call of `name` (any call that can fail, with null) after the next `after` ones return `code`, once.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_fail(name: In<c_char>, after: u64, code: i32) {
    let name = Some(name.text()).filter(|name| !name.is_empty());
    lock().failures.push(Failure { name, after, code });
}

/// Number of injected failures that have not happened yet.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_failures_left() -> u64 {
    lock().failures.len() as u64
}

/// Lets the process see this many devices, of all that there are at most.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_visible(count: u32) {
    let mut world = lock();
    world.visible = (count as usize).min(world.devices.len());
}

/// Breaks a device's contexts with a sticky error, or heals them with zero.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_poison(device: u32, code: i32) {
    lock().devices[device as usize].poisoned = code;
}

/// Holds a stream's work back, or lets it go on.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_hold(stream: u64, held: bool) {
    let mut world = lock();
    if let Some(queue) = world.queues.get_mut(&Key::Named(stream)) {
        queue.held = held;
    }
    world.run_some();
}

/// Number of pieces of work that wait on a stream.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_pending(stream: u64) -> u64 {
    lock().queues.get(&Key::Named(stream)).map_or(0, |queue| queue.ops.len() as u64)
}

/// Runs work in an order drawn from a seed; zero runs it at once.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_lazy(seed: u64) {
    let mut world = lock();
    world.lazy = seed;
    world.run_some();
}

/// Sets how many bytes a device has; returns what it was.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_capacity(device: u32, bytes: u64) -> u64 {
    std::mem::replace(&mut lock().devices[device as usize].capacity, bytes)
}

/// Bytes of a device in use.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_used(device: u32) -> u64 {
    lock().devices[device as usize].used
}

/// Number of living objects of a kind: 0 reservations, 1 physical handles, 2 mappings, 3 device allocations, 4 pooled
/// ones, 5 host allocations, 6 host registrations, 7 streams, 8 events, 9 graphs and executable graphs, 10 modules,
/// 11 memory pools.
#[unsafe(no_mangle)]
extern "C" fn fake_cuda_living(kind: u32) -> u64 {
    let world = lock();
    let allocations = |wanted: fn(&Kind) -> bool| world.allocations.values().filter(|a| wanted(&a.kind)).count();
    (match kind {
        0 => world.reservations.len(),
        1 => world.physical.len(),
        2 => world.mappings.len(),
        3 => allocations(|kind| matches!(kind, Kind::Device)),
        4 => allocations(|kind| matches!(kind, Kind::Pooled { .. })),
        5 => allocations(|kind| matches!(kind, Kind::HostAllocated)),
        6 => allocations(|kind| matches!(kind, Kind::HostRegistered)),
        7 => world.queues.keys().filter(|key| matches!(key, Key::Named(_))).count(),
        8 => world.events.values().filter(|event| !event.destroyed).count(),
        9 => world.graphs.len() + world.executables.len(),
        10 => world.modules as usize,
        _ => world.pools.len() - world.devices.len(),
    }) as u64
}
