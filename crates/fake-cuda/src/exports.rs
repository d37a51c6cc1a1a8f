//! The driver's functions.

#![allow(non_snake_case)]

use std::ffi::{c_char, c_void};

use crate::abi::*;
use crate::kernels;
use crate::memory::{GRANULARITY, Kind, Pool, Reach};
use crate::streams::{Event, Key, Op, Queue};
use crate::world::{CAPTURE_MODE, Context, STACK, World, enter};

macro_rules! exports {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) |$world:ident| $body:block)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $type),*) -> i32 {
            enter(stringify!($name), |$world| -> Result<(), i32> { $body })
        }
    )*};
}

fn tell(text: Option<&'static [u8]>, out: Out<*const u8>) -> i32 {
    out.set(text.map_or(std::ptr::null(), <[u8]>::as_ptr));
    if text.is_some() { OK } else { INVALID_VALUE }
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorName(code: i32, text: Out<*const u8>) -> i32 {
    tell(describe(code).map(|texts| texts.0), text)
}

#[unsafe(no_mangle)]
extern "C" fn cuGetErrorString(code: i32, text: Out<*const u8>) -> i32 {
    tell(describe(code).map(|texts| texts.1), text)
}

fn copy(world: &mut World, to: u64, from: u64, bytes: u64, stream: u64) -> Result<(), i32> {
    let key = world.queue(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let captured = world.queues.get(&key).is_some_and(|queue| queue.capture.is_some());
    match (world.reach_any(from, bytes), world.reach_any(to, bytes)) {
        (Reach::Fault, _) | (_, Reach::Fault) => Err(INVALID_VALUE),
        (Reach::Pageable, _) | (_, Reach::Pageable) if captured => Err(STREAM_CAPTURE_UNSUPPORTED),
        (_, Reach::Pageable) => {
            world.submit(key, Op::Copy { to, from, bytes })?;
            world.finish_queue(key);
            Ok(())
        }
        (Reach::Pageable, _) => {
            let mut data = vec![0; bytes as usize];
            crate::memory::copy(data.as_mut_ptr() as u64, from, bytes);
            world.submit(key, Op::Store { to, data })
        }
        _ => world.submit(key, Op::Copy { to, from, bytes }),
    }
}

exports! {
    fn cuInit(_flags: u32) |world| {
        if world.devices.is_empty() {
            return Err(NO_DEVICE);
        }
        world.initialised = true;
        Ok(())
    }

    fn cuDriverGetVersion(version: Out<i32>) |world| {
        version.set(world.version);
        Ok(())
    }

    fn cuDeviceGetCount(count: Out<i32>) |world| {
        count.set(world.devices.len() as i32);
        Ok(())
    }

    fn cuDeviceGet(device: Out<i32>, ordinal: i32) |world| {
        world.device_index(ordinal)?;
        device.set(ordinal);
        Ok(())
    }

    fn cuDeviceGetName(name: Out<u8>, length: i32, device: i32) |world| {
        world.device_index(device)?;
        let text = b"Fake GPU\0";
        for (index, byte) in text.iter().enumerate().take(length.max(0) as usize) {
            // SAFETY: the caller passes a buffer of `length` bytes.
            unsafe { *(name.pointer().add(index)) = *byte };
        }
        Ok(())
    }

    fn cuDeviceTotalMem_v2(bytes: Out<usize>, device: i32) |world| {
        let index = world.device_index(device)?;
        bytes.set(world.devices[index].capacity as usize);
        Ok(())
    }

    fn cuDeviceGetAttribute(value: Out<i32>, attribute: i32, device: i32) |world| {
        let found = &world.devices[world.device_index(device)?];
        value.set(match attribute {
            // Virtual memory management.
            102 => i32::from(found.virtual_memory),
            // GPUDirect RDMA with virtual memory management.
            110 => i32::from(found.virtual_memory),
            115 => i32::from(found.pools),
            // Unified addressing.
            41 => 1,
            75 => 9,
            _ => 0,
        });
        Ok(())
    }

    fn cuDeviceCanAccessPeer(can: Out<i32>, device: i32, peer: i32) |world| {
        let (device, peer) = (world.device_index(device)?, world.device_index(peer)?);
        can.set(i32::from(device != peer && world.devices[device].peers && world.devices[peer].peers));
        Ok(())
    }

    fn cuDevicePrimaryCtxRetain(context: Out<u64>, device: i32) |world| {
        let index = world.device_index(device)?;
        if world.devices[index].poisoned != OK {
            return Err(world.devices[index].poisoned);
        }
        if world.devices[index].primary == 0 {
            let id = world.fresh();
            world.contexts.insert(id, Context { device: index, peers: Vec::new() });
            world.devices[index].primary = id;
        }
        world.devices[index].retained += 1;
        context.set(world.devices[index].primary);
        Ok(())
    }

    fn cuDevicePrimaryCtxRelease_v2(device: i32) |world| {
        let index = world.device_index(device)?;
        world.devices[index].retained = world.devices[index].retained.saturating_sub(1);
        Ok(())
    }

    fn cuCtxCreate_v2(context: Out<u64>, _flags: u32, device: i32) |world| {
        let index = world.device_index(device)?;
        let id = world.fresh();
        world.contexts.insert(id, Context { device: index, peers: Vec::new() });
        STACK.with_borrow_mut(|stack| stack.push(id));
        context.set(id);
        Ok(())
    }

    fn cuCtxDestroy_v2(context: u64) |world| {
        STACK.with_borrow_mut(|stack| stack.retain(|entry| *entry != context));
        world.contexts.remove(&context).map(|_| ()).ok_or(INVALID_CONTEXT)
    }

    fn cuCtxPushCurrent_v2(context: u64) |world| {
        if !world.contexts.contains_key(&context) {
            return Err(INVALID_CONTEXT);
        }
        STACK.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    }

    fn cuCtxPopCurrent_v2(context: Out<u64>) |world| {
        match STACK.with_borrow_mut(Vec::pop) {
            Some(top) => {
                context.set(top);
                Ok(())
            }
            None => {
                world.violation("cuCtxPopCurrent of an empty stack".to_owned());
                Err(INVALID_CONTEXT)
            }
        }
    }

    fn cuCtxSetCurrent(context: u64) |_world| {
        STACK.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }

    fn cuCtxGetCurrent(context: Out<u64>) |_world| {
        context.set(STACK.with_borrow(|stack| stack.last().copied()).unwrap_or(0));
        Ok(())
    }

    fn cuCtxGetDevice(device: Out<i32>) |world| {
        device.set(world.current()?.1 as i32);
        Ok(())
    }

    fn cuCtxSynchronize() |world| {
        world.current()?;
        world.finish_all();
        Ok(())
    }

    fn cuCtxEnablePeerAccess(peer: u64, _flags: u32) |world| {
        let (context, _) = world.current()?;
        let device = world.contexts.get(&peer).map(|peer| peer.device).ok_or(INVALID_CONTEXT)?;
        let peers = world.contexts.get_mut(&context).map(|context| &mut context.peers).ok_or(INVALID_CONTEXT)?;
        if peers.contains(&device) {
            return Err(PEER_ACCESS_ALREADY_ENABLED);
        }
        peers.push(device);
        Ok(())
    }

    fn cuThreadExchangeStreamCaptureMode(mode: Out<i32>) |_world| {
        mode.set(CAPTURE_MODE.replace(mode.get()));
        Ok(())
    }

    fn cuMemGetInfo_v2(free: Out<usize>, total: Out<usize>) |world| {
        let (_, device) = world.current()?;
        let device = &world.devices[device];
        free.set(device.capacity.saturating_sub(device.used) as usize);
        total.set(device.capacity as usize);
        Ok(())
    }

    fn cuMemAlloc_v2(address: Out<u64>, bytes: usize) |world| {
        let (_, device) = world.current()?;
        let allocated = world.allocate(device, bytes as u64, Kind::Device)?;
        address.set(allocated);
        Ok(())
    }

    fn cuMemFree_v2(address: u64) |world| {
        world.about(address);
        match world.allocations.get(&address).map(|allocation| allocation.kind) {
            Some(Kind::Device) => {
                world.finish_all();
                world.deallocate(address);
                Ok(())
            }
            _ => {
                world.violation(format!("cuMemFree of {address:#x}, which is not an allocation"));
                Err(INVALID_VALUE)
            }
        }
    }

    fn cuMemHostAlloc(address: Out<u64>, bytes: usize, _flags: u32) |world| {
        let (_, device) = world.current()?;
        let allocated = world.allocate(device, bytes as u64, Kind::HostAllocated)?;
        address.set(allocated);
        Ok(())
    }

    fn cuMemFreeHost(address: u64) |world| {
        world.about(address);
        match world.allocations.get(&address).map(|allocation| allocation.kind) {
            Some(Kind::HostAllocated) => {
                world.finish_all();
                world.deallocate(address);
                Ok(())
            }
            _ => {
                world.violation(format!("cuMemFreeHost of {address:#x}, which is not an allocation"));
                Err(INVALID_VALUE)
            }
        }
    }

    fn cuMemHostRegister_v2(address: u64, bytes: usize, _flags: u32) |world| {
        let (_, device) = world.current()?;
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        if world.reach_any(address, bytes as u64) != Reach::Pageable {
            return Err(HOST_MEMORY_ALREADY_REGISTERED);
        }
        let allocation = crate::memory::Allocation { bytes: bytes as u64, device, kind: Kind::HostRegistered };
        world.allocations.insert(address, allocation);
        Ok(())
    }

    fn cuMemHostUnregister(address: u64) |world| {
        world.about(address);
        match world.allocations.get(&address).map(|allocation| allocation.kind) {
            Some(Kind::HostRegistered) => {
                world.finish_all();
                world.allocations.remove(&address);
                Ok(())
            }
            _ => {
                world.violation(format!("cuMemHostUnregister of {address:#x}, which is not registered"));
                Err(HOST_MEMORY_NOT_REGISTERED)
            }
        }
    }

    fn cuMemAddressReserve(address: Out<u64>, bytes: usize, align: usize, _hint: u64, _flags: u64) |world| {
        let start = world.reserve(bytes as u64, align as u64)?;
        world.about(start);
        address.set(start);
        Ok(())
    }

    fn cuMemAddressFree(address: u64, bytes: usize) |world| {
        world.about(address);
        world.unreserve(address, bytes as u64)
    }

    fn cuMemCreate(handle: Out<u64>, bytes: usize, properties: In<AllocationProperties>, _flags: u64) |world| {
        let properties = properties.get().ok_or(INVALID_VALUE)?;
        let device = world.device_index(properties.location.id)?;
        if properties.kind != 1 || properties.location.kind != 1 {
            return Err(INVALID_VALUE);
        }
        if !world.devices[device].virtual_memory {
            return Err(NOT_SUPPORTED);
        }
        let created = world.create(device, bytes as u64)?;
        world.about(created);
        handle.set(created);
        Ok(())
    }

    fn cuMemRelease(handle: u64) |world| {
        world.about(handle);
        world.release(handle)
    }

    fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, _flags: u64) |world| {
        world.about(address);
        if offset != 0 {
            return Err(INVALID_VALUE);
        }
        world.map(address, bytes as u64, handle)
    }

    fn cuMemUnmap(address: u64, bytes: usize) |world| {
        world.about(address);
        world.unmap(address, bytes as u64)
    }

    fn cuMemSetAccess(address: u64, bytes: usize, descriptions: In<AccessDescription>, count: usize) |world| {
        world.about(address);
        let mut devices = Vec::new();
        for index in 0..count {
            let description = descriptions.at(index);
            if description.flags == 3 {
                devices.push(world.device_index(description.location.id)?);
            }
        }
        world.set_access(address, bytes as u64, &devices)
    }

    fn cuMemGetAllocationGranularity(bytes: Out<usize>, _properties: In<AllocationProperties>, _option: i32) |_world| {
        bytes.set(GRANULARITY as usize);
        Ok(())
    }

    fn cuDeviceGetDefaultMemPool(pool: Out<u64>, device: i32) |world| {
        let index = world.device_index(device)?;
        pool.set(world.devices[index].default_pool);
        Ok(())
    }

    fn cuMemPoolCreate(pool: Out<u64>, properties: In<PoolProperties>) |world| {
        let device = world.device_index(properties.get().ok_or(INVALID_VALUE)?.location.id)?;
        if !world.devices[device].pools {
            return Err(NOT_SUPPORTED);
        }
        let id = world.fresh();
        world.pools.insert(id, Pool::new(device));
        pool.set(id);
        Ok(())
    }

    fn cuMemPoolDestroy(pool: u64) |world| {
        world.trim_pool(pool, 0)?;
        let living = world.allocations.values().filter(|a| matches!(a.kind, Kind::Pooled { pool: p, .. } if p == pool));
        if living.count() > 0 {
            world.violation("cuMemPoolDestroy with allocations in it".to_owned());
        }
        world.pools.remove(&pool).map(|_| ()).ok_or(INVALID_VALUE)
    }

    fn cuMemPoolTrimTo(pool: u64, keep: usize) |world| {
        world.trim_pool(pool, keep as u64)
    }

    fn cuMemPoolSetAttribute(pool: u64, attribute: i32, value: Out<u64>) |world| {
        let pool = world.pools.get_mut(&pool).ok_or(INVALID_VALUE)?;
        match attribute {
            4 => pool.threshold = value.get(),
            6 => pool.reserved_high = pool.reserved,
            _ => {}
        }
        Ok(())
    }

    fn cuMemPoolGetAttribute(pool: u64, attribute: i32, value: Out<u64>) |world| {
        let pool = world.pools.get(&pool).ok_or(INVALID_VALUE)?;
        value.set(match attribute {
            4 => pool.threshold,
            5 => pool.reserved,
            6 => pool.reserved_high,
            7 => pool.used,
            _ => 0,
        });
        Ok(())
    }

    fn cuMemPoolSetAccess(_pool: u64, _descriptions: In<AccessDescription>, _count: usize) |_world| {
        Ok(())
    }

    fn cuMemAllocFromPoolAsync(address: Out<u64>, bytes: usize, pool: u64, stream: u64) |world| {
        world.queue(stream)?;
        let device = world.pools.get(&pool).map(|pool| pool.device).ok_or(INVALID_VALUE)?;
        let allocated = world.allocate(device, bytes as u64, Kind::Pooled { pool, freed: false })?;
        address.set(allocated);
        Ok(())
    }

    fn cuMemFreeAsync(address: u64, stream: u64) |world| {
        let key = world.queue(stream)?;
        match world.allocations.get_mut(&address).map(|allocation| &mut allocation.kind) {
            Some(Kind::Pooled { freed, .. }) if !*freed => {
                *freed = true;
                world.submit(key, Op::Free { address })
            }
            _ => {
                world.violation(format!("cuMemFreeAsync of {address:#x}, which is not an allocation"));
                Err(INVALID_VALUE)
            }
        }
    }

    fn cuPointerGetAttribute(value: Out<u32>, attribute: i32, address: u64) |world| {
        let known = match world.allocations.range(..=address).next_back() {
            Some((start, allocation)) if address < start + allocation.bytes => Some(allocation),
            _ => None,
        };
        let mapped = world.mappings.range(..=address).next_back().filter(|(s, m)| address < *s + m.bytes);
        match (attribute, known, mapped) {
            (2, Some(allocation), _) => {
                let host = matches!(allocation.kind, Kind::HostAllocated | Kind::HostRegistered);
                value.set(if host { 1 } else { 2 });
                Ok(())
            }
            (2, None, Some(_)) => {
                value.set(2);
                Ok(())
            }
            _ => Err(INVALID_VALUE),
        }
    }

    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: u64) |world| {
        copy(world, to, from, bytes as u64, stream)
    }

    fn cuMemcpyPeerAsync(to: u64, to_context: u64, from: u64, from_context: u64, bytes: usize, stream: u64) |world| {
        for (context, address) in [(to_context, to), (from_context, from)] {
            if world.reach(context, address, bytes as u64) != Reach::Usable {
                return Err(INVALID_VALUE);
            }
        }
        copy(world, to, from, bytes as u64, stream)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |world| {
        copy(world, to, from, bytes as u64, stream)
    }

    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |world| {
        copy(world, to, from, bytes as u64, stream)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |world| {
        copy(world, to, from, bytes as u64, stream)
    }

    fn cuMemsetD8Async(to: u64, value: u8, bytes: usize, stream: u64) |world| {
        let key = world.queue(stream)?;
        if world.reach_any(to, bytes as u64) != Reach::Usable {
            return Err(INVALID_VALUE);
        }
        world.submit(key, Op::Fill { to, bytes: bytes as u64, value })
    }

    fn cuStreamCreate(stream: Out<u64>, flags: u32) |world| {
        let (context, _) = world.current()?;
        let handle = match world.spare_streams.pop() {
            Some(handle) => handle,
            None => world.fresh(),
        };
        world.queues.insert(Key::Named(handle), Queue::new(context, flags & 1 == 0));
        world.about(handle);
        stream.set(handle);
        Ok(())
    }

    fn cuStreamCreateWithPriority(stream: Out<u64>, flags: u32, _priority: i32) |world| {
        let (context, _) = world.current()?;
        let handle = match world.spare_streams.pop() {
            Some(handle) => handle,
            None => world.fresh(),
        };
        world.queues.insert(Key::Named(handle), Queue::new(context, flags & 1 == 0));
        stream.set(handle);
        Ok(())
    }

    fn cuStreamDestroy_v2(stream: u64) |world| {
        world.about(stream);
        world.destroy_queue(stream)
    }

    fn cuStreamGetCtx(stream: u64, context: Out<u64>) |world| {
        let key = world.queue(stream)?;
        context.set(world.context_of(key));
        Ok(())
    }

    fn cuStreamQuery(stream: u64) |world| {
        let key = world.queue(stream)?;
        let idle = world.queues.get(&key).is_none_or(|queue| queue.ops.is_empty());
        if idle { Ok(()) } else { Err(NOT_READY) }
    }

    fn cuStreamSynchronize(stream: u64) |world| {
        let key = world.queue(stream)?;
        if world.queues.get(&key).is_some_and(|queue| queue.capture.is_some()) {
            world.violation("cuStreamSynchronize of a stream that captures".to_owned());
            world.invalidate_captures();
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        world.finish_queue(key);
        world.queue(stream).map(|_| ())
    }

    fn cuStreamWaitEvent(stream: u64, event: u64, _flags: u32) |world| {
        let key = world.queue(stream)?;
        world.wait(key, event)
    }

    fn cuStreamIsCapturing(stream: u64, status: Out<i32>) |world| {
        let key = world.queue(stream)?;
        let context = world.context_of(key);
        if matches!(key, Key::Legacy(_)) {
            let blocked = |queue: &Queue| queue.blocking && queue.context == context && queue.capture.is_some();
            if world.queues.values().any(blocked) {
                return Err(STREAM_CAPTURE_IMPLICIT);
            }
        }
        let capture = world.queues.get(&key).and_then(|queue| queue.capture);
        status.set(match capture.and_then(|id| world.captures.get(&id)) {
            None => 0,
            Some(capture) if capture.invalid => 2,
            Some(_) => 1,
        });
        Ok(())
    }

    fn cuStreamBeginCapture_v2(stream: u64, _mode: i32) |world| {
        let key = world.queue(stream)?;
        world.begin_capture(key)
    }

    fn cuStreamEndCapture(stream: u64, graph: Out<u64>) |world| {
        let key = world.queue(stream)?;
        graph.set(0);
        let captured = world.end_capture(key)?;
        graph.set(captured);
        Ok(())
    }

    fn cuEventCreate(event: Out<u64>, _flags: u32) |world| {
        let (context, _) = world.current()?;
        let id = world.fresh();
        world.events.insert(id, Event { context, ..Event::default() });
        event.set(id);
        Ok(())
    }

    fn cuEventDestroy_v2(event: u64) |world| {
        if world.events.remove(&event).is_none() {
            world.violation(format!("cuEventDestroy of {event:#x}, which does not exist"));
            return Err(INVALID_HANDLE);
        }
        Ok(())
    }

    fn cuEventRecord(event: u64, stream: u64) |world| {
        let key = world.queue(stream)?;
        world.record(event, key)
    }

    fn cuEventQuery(event: u64) |world| {
        if world.query_event(event)? { Ok(()) } else { Err(NOT_READY) }
    }

    fn cuEventSynchronize(event: u64) |world| {
        world.query_event(event)?;
        let generation = world.events.get(&event).map_or(0, |event| event.recorded);
        world.run_until(|world| world.events.get(&event).is_none_or(|event| event.completed >= generation));
        world.query_event(event).map(|_| ())
    }

    fn cuGraphInstantiate_v2(executable: Out<u64>, graph: u64, _node: u64, _text: u64, _length: usize) |world| {
        let ops = world.graphs.get(&graph).cloned().ok_or(INVALID_VALUE)?;
        let id = world.fresh();
        world.executables.insert(id, ops);
        executable.set(id);
        Ok(())
    }

    fn cuGraphInstantiateWithFlags(executable: Out<u64>, graph: u64, _flags: u64) |world| {
        let ops = world.graphs.get(&graph).cloned().ok_or(INVALID_VALUE)?;
        let id = world.fresh();
        world.executables.insert(id, ops);
        executable.set(id);
        Ok(())
    }

    fn cuGraphLaunch(executable: u64, stream: u64) |world| {
        let key = world.queue(stream)?;
        for op in world.executables.get(&executable).cloned().ok_or(INVALID_VALUE)? {
            world.submit(key, op)?;
        }
        Ok(())
    }

    fn cuGraphExecDestroy(executable: u64) |world| {
        world.executables.remove(&executable).map(|_| ()).ok_or(INVALID_VALUE)
    }

    fn cuGraphDestroy(graph: u64) |world| {
        world.graphs.remove(&graph).map(|_| ()).ok_or(INVALID_VALUE)
    }

    fn cuModuleLoadData(module: Out<u64>, image: In<c_char>) |world| {
        world.current()?;
        if !image.text().contains(".entry") {
            return Err(INVALID_PTX);
        }
        world.modules += 1;
        let id = world.fresh();
        module.set(id);
        Ok(())
    }

    fn cuModuleUnload(_module: u64) |world| {
        world.modules -= 1;
        Ok(())
    }

    fn cuModuleGetFunction(function: Out<u64>, _module: u64, name: In<c_char>) |world| {
        let name = name.text();
        if kernels::parameters(&name).is_none() {
            return Err(NOT_FOUND);
        }
        let id = world.fresh();
        world.functions.insert(id, name);
        function.set(id);
        Ok(())
    }

    fn cuLaunchKernel(
        function: u64, _gx: u32, _gy: u32, _gz: u32, _bx: u32, _by: u32, _bz: u32, _shared: u32, stream: u64,
        parameters: In<*const c_void>, _extra: u64,
    ) |world| {
        let key = world.queue(stream)?;
        let name = world.functions.get(&function).cloned().ok_or(INVALID_HANDLE)?;
        let sizes = kernels::parameters(&name).ok_or(INVALID_HANDLE)?;
        let mut values = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            let at = parameters.at(index);
            // SAFETY: the launcher passes a pointer to a value of each parameter's size.
            values.push(unsafe { if *size == 4 { u64::from(*at.cast::<u32>()) } else { *at.cast::<u64>() } });
        }
        world.submit(key, Op::Kernel { function: name, parameters: values })
    }
}
