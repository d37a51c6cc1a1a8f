//! Memory of all kinds.

use crate::abi::*;
use crate::memory::{GRANULARITY, Kind, POSIX_FILE_DESCRIPTOR, Pool, Reach};
use crate::streams::Op;
use crate::world::enter;

exports! {
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
                // The driver waits for the device that has the memory, not for its peers.
                let device = world.allocations[&address].device;
                world.finish_device(device);
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
        let shared = properties.handle_types != 0;
        if shared && (properties.handle_types != POSIX_FILE_DESCRIPTOR || !world.devices[device].shareable) {
            return Err(NOT_SUPPORTED);
        }
        let created = world.create(device, bytes as u64, properties.handle_types)?;
        world.about(created);
        handle.set(created);
        Ok(())
    }

    fn cuMemExportToShareableHandle(file: Out<i32>, handle: u64, kind: i32, _flags: u64) |world| {
        world.about(handle);
        if kind != POSIX_FILE_DESCRIPTOR {
            return Err(NOT_SUPPORTED);
        }
        let exported = world.export(handle)?;
        file.set(exported);
        Ok(())
    }

    fn cuMemImportFromShareableHandle(handle: Out<u64>, file: u64, kind: i32) |world| {
        let (_, device) = world.current()?;
        if kind != POSIX_FILE_DESCRIPTOR || !world.devices[device].shareable {
            return Err(NOT_SUPPORTED);
        }
        let imported = world.import(file as i32)?;
        world.about(imported);
        handle.set(imported);
        Ok(())
    }

    fn cuMemGetAllocationPropertiesFromHandle(properties: Out<AllocationProperties>, handle: u64) |world| {
        world.about(handle);
        let physical = world.physical.get(&handle).ok_or(INVALID_VALUE)?;
        properties.set(AllocationProperties {
            kind: 1,
            handle_types: physical.handle_types,
            location: Location { kind: 1, id: physical.device as i32 },
            win32: 0,
            compression: 0,
            rdma: 0,
            usage: 0,
            reserved: [0; 4],
        });
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
}
