//! Copies, streams, events, graphs and kernels.

use std::ffi::{c_char, c_void};

use crate::abi::*;
use crate::kernels;
use crate::memory::Reach;
use crate::streams::{Event, Key, Op, Queue};
use crate::world::{World, enter};

fn copy(world: &mut World, to: u64, from: u64, bytes: u64, stream: u64, peer: bool) -> Result<(), i32> {
    let key = world.queue(stream)?;
    if bytes == 0 {
        return Ok(());
    }
    let captured = world.queues.get(&key).is_some_and(|queue| queue.capture.is_some());
    // As the driver does, which finds one mapping without a current context and not the next.
    if world.current().is_err() && [from, to].iter().any(|start| world.spans_mappings(*start, bytes)) {
        return Err(INVALID_VALUE);
    }
    match (world.reach_any(from, bytes), world.reach_any(to, bytes)) {
        (Reach::Fault, _) | (_, Reach::Fault) => Err(INVALID_VALUE),
        (Reach::Pageable, _) | (_, Reach::Pageable) if captured => Err(STREAM_CAPTURE_UNSUPPORTED),
        (_, Reach::Pageable) => {
            world.submit(key, Op::Copy { to, from, bytes, peer })?;
            world.finish_queue(key);
            Ok(())
        }
        (Reach::Pageable, _) => {
            let mut data = vec![0; bytes as usize];
            crate::memory::copy(data.as_mut_ptr() as u64, from, bytes);
            world.submit(key, Op::Store { to, data })
        }
        _ => world.submit(key, Op::Copy { to, from, bytes, peer }),
    }
}

exports! {
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: u64) |world| {
        copy(world, to, from, bytes as u64, stream, false)
    }

    fn cuMemcpyPeerAsync(to: u64, to_context: u64, from: u64, from_context: u64, bytes: usize, stream: u64) |world| {
        for (context, address) in [(to_context, to), (from_context, from)] {
            if world.reach(context, address, bytes as u64) != Reach::Usable {
                return Err(INVALID_VALUE);
            }
        }
        copy(world, to, from, bytes as u64, stream, true)
    }

    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |world| {
        copy(world, to, from, bytes as u64, stream, false)
    }

    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |world| {
        copy(world, to, from, bytes as u64, stream, false)
    }

    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) |world| {
        copy(world, to, from, bytes as u64, stream, false)
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
        world.may_use(key, "cuStreamQuery")?;
        let idle = world.queues.get(&key).is_none_or(|queue| queue.ops.is_empty());
        if idle { Ok(()) } else { Err(NOT_READY) }
    }

    fn cuStreamSynchronize(stream: u64) |world| {
        let key = world.queue(stream)?;
        world.may_use(key, "cuStreamSynchronize")?;
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
        // This one question harms no capture.
        if world.is_implicit(key) {
            return Err(STREAM_CAPTURE_IMPLICIT);
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
        world.destroy_event(event)
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
        world.run_until(|world| world.events.get(&event).is_none_or(|event| event.has_passed(generation)));
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
