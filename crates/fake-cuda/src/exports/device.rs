//! Devices and contexts.

use crate::abi::*;
use crate::world::{CAPTURE_MODE, Context, STACK, enter};

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
        count.set(world.visible as i32);
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
            // Handles of memory as file descriptors.
            103 => i32::from(found.shareable),
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

    fn cuDevicePrimaryCtxGetState(device: i32, flags: Out<u32>, active: Out<i32>) |world| {
        let device = &world.devices[world.device_index(device)?];
        flags.set(0);
        active.set(i32::from(device.retained > 0));
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
        match STACK.with_borrow_mut(|stack| stack.pop()) {
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
        let (context, _) = world.current()?;
        // A relaxed thread may not do this either.
        if world.queues.values().any(|queue| queue.context == context && queue.capture.is_some()) {
            world.violation("cuCtxSynchronize while a stream of the context captures".to_owned());
            world.invalidate_captures();
            return Err(STREAM_CAPTURE_UNSUPPORTED);
        }
        world.finish_context(context);
        world.current().and_then(|(_, device)| match world.devices[device].poisoned {
            OK => Ok(()),
            code => Err(code),
        })
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
}
