//! All of the fake driver's state, and the door that every call goes through.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::mem::ManuallyDrop;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use crate::abi::{INVALID_CONTEXT, NOT_INITIALIZED, OK};
use crate::memory::{Allocation, Mapping, Physical, Pool};
use crate::streams::{Capture, Event, Key, Op, Queue};

pub(crate) struct Device {
    pub(crate) virtual_memory: bool,
    pub(crate) pools: bool,
    pub(crate) peers: bool,
    /// Whether memory can be handed to other processes by file descriptor.
    pub(crate) shareable: bool,
    pub(crate) capacity: u64,
    pub(crate) used: u64,
    /// A sticky error: every call in a context of this device returns it.
    pub(crate) poisoned: i32,
    pub(crate) primary: u64,
    pub(crate) retained: u64,
    pub(crate) default_pool: u64,
}

pub(crate) struct Context {
    pub(crate) device: usize,
    pub(crate) peers: Vec<usize>,
}

pub(crate) struct Failure {
    pub(crate) name: Option<String>,
    pub(crate) after: u64,
    pub(crate) code: i32,
}

pub(crate) struct Call {
    pub(crate) name: &'static str,
    /// The stream, event or address that the call is about.
    pub(crate) subject: u64,
}

#[derive(Default)]
pub(crate) struct World {
    pub(crate) initialised: bool,
    pub(crate) version: i32,
    pub(crate) devices: Vec<Device>,
    /// How many of the devices the driver lets the process see.
    pub(crate) visible: usize,
    /// Whether what breaks one context breaks those of all devices, as a driver of CUDA 13.0 was seen to do.
    pub(crate) breaks_all: bool,
    pub(crate) contexts: HashMap<u64, Context>,
    pub(crate) reservations: BTreeMap<u64, u64>,
    pub(crate) physical: HashMap<u64, Physical>,
    pub(crate) mappings: BTreeMap<u64, Mapping>,
    pub(crate) allocations: BTreeMap<u64, Allocation>,
    pub(crate) pools: HashMap<u64, Pool>,
    pub(crate) queues: BTreeMap<Key, Queue>,
    pub(crate) events: HashMap<u64, Event>,
    pub(crate) captures: HashMap<u64, Capture>,
    pub(crate) graphs: HashMap<u64, Vec<Op>>,
    pub(crate) executables: HashMap<u64, Vec<Op>>,
    pub(crate) functions: HashMap<u64, String>,
    pub(crate) modules: u64,
    /// Handles of destroyed streams; the driver reuses them, so this does.
    pub(crate) spare_streams: Vec<u64>,
    pub(crate) next: u64,
    pub(crate) log: Vec<Call>,
    pub(crate) failures: Vec<Failure>,
    pub(crate) violations: Vec<String>,
    /// The state of the random order in which work is run; zero runs it at once.
    pub(crate) lazy: u64,
    pub(crate) in_capture: bool,
}

thread_local! {
    /// Never dropped: a thread's end may make calls after what has a destructor is gone.
    pub(crate) static STACK: RefCell<ManuallyDrop<Vec<u64>>> = const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    pub(crate) static CAPTURE_MODE: Cell<i32> = const { Cell::new(0) };
    pub(crate) static THREAD: u64 = {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    };
}

fn variable(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

static WORLD: LazyLock<Mutex<World>> = LazyLock::new(|| {
    let mut world = World { version: variable("FAKE_CUDA_VERSION", 12080) as i32, next: 0x10_000, ..World::default() };
    for ordinal in 0..variable("FAKE_CUDA_DEVICES", 4) as usize {
        let default_pool = world.fresh();
        world.pools.insert(default_pool, Pool::new(ordinal));
        world.devices.push(Device {
            virtual_memory: ordinal % 4 != 2,
            pools: ordinal % 4 != 3,
            peers: ordinal % 4 != 3,
            shareable: ordinal % 4 < 2,
            capacity: variable("FAKE_CUDA_CAPACITY", 1 << 30),
            used: 0,
            poisoned: OK,
            primary: 0,
            retained: 0,
            default_pool,
        });
    }
    world.visible = world.devices.len();
    world.breaks_all = variable("FAKE_CUDA_BREAKS_ALL", 0) != 0;
    Mutex::new(world)
});

pub(crate) fn lock() -> MutexGuard<'static, World> {
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls that work whatever state the context is in.
const ALWAYS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuCtxPushCurrent_v2",
    "cuCtxPopCurrent_v2",
    "cuCtxGetCurrent",
    "cuCtxSetCurrent",
    "cuThreadExchangeStreamCaptureMode",
];

/// Calls that a thread may not make while any stream captures, unless it has relaxed its mode.
const UNSAFE_IN_CAPTURE: &[&str] = &[
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemCreate",
    "cuMemExportToShareableHandle",
    "cuMemImportFromShareableHandle",
    "cuMemRelease",
    "cuMemMap",
    "cuMemUnmap",
    "cuMemSetAccess",
    "cuMemPoolTrimTo",
    "cuEventQuery",
    "cuEventSynchronize",
    "cuStreamQuery",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "cuModuleLoadData",
];

const RELAXED: i32 = 2;

/// Logs the call, lets injected and sticky failures through, does it, and lets work run.
pub(crate) fn enter(name: &'static str, call: impl FnOnce(&mut World) -> Result<(), i32>) -> i32 {
    let mut world = lock();
    world.log.push(Call { name, subject: 0 });
    if let Some(code) = world.injected(name) {
        return code;
    }
    if !ALWAYS.contains(&name) {
        if !world.initialised {
            return NOT_INITIALIZED;
        }
        if let Ok((_, device)) = world.current() {
            let code = world.devices[device].poisoned;
            if code != OK {
                return code;
            }
        }
    }
    if world.in_capture && UNSAFE_IN_CAPTURE.contains(&name) && CAPTURE_MODE.get() != RELAXED {
        world.violations.push(format!("{name} while a stream captures"));
        world.invalidate_captures();
        return crate::abi::STREAM_CAPTURE_UNSUPPORTED;
    }
    let code = call(&mut world).err().unwrap_or(OK);
    world.run_some();
    code
}

impl World {
    /// A number for a new object, which no other has.
    pub(crate) fn fresh(&mut self) -> u64 {
        self.next += 0x10;
        self.next
    }

    /// Says what the call that is being made is about.
    pub(crate) fn about(&mut self, subject: u64) {
        if let Some(call) = self.log.last_mut() {
            call.subject = subject;
        }
    }

    pub(crate) fn violation(&mut self, text: String) {
        self.violations.push(text);
    }

    fn injected(&mut self, name: &str) -> Option<i32> {
        for (index, failure) in self.failures.iter_mut().enumerate() {
            let concerned = match &failure.name {
                Some(wanted) => wanted == name,
                None => !ALWAYS.contains(&name),
            };
            if concerned {
                if failure.after == 0 {
                    let code = failure.code;
                    self.failures.remove(index);
                    return Some(code);
                }
                failure.after -= 1;
            }
        }
        None
    }

    /// The calling thread's current context and its device.
    pub(crate) fn current(&self) -> Result<(u64, usize), i32> {
        let context = STACK.with_borrow(|stack| stack.last().copied()).unwrap_or(0);
        match self.contexts.get(&context) {
            Some(found) => Ok((context, found.device)),
            None => Err(INVALID_CONTEXT),
        }
    }

    pub(crate) fn device_index(&self, ordinal: i32) -> Result<usize, i32> {
        usize::try_from(ordinal).ok().filter(|index| *index < self.visible).ok_or(crate::abi::INVALID_DEVICE)
    }

    /// Takes memory of a device into account.
    pub(crate) fn take(&mut self, device: usize, bytes: u64) -> Result<(), i32> {
        let device = &mut self.devices[device];
        match device.used.checked_add(bytes) {
            Some(used) if used <= device.capacity => {
                device.used = used;
                Ok(())
            }
            _ => Err(crate::abi::OUT_OF_MEMORY),
        }
    }
}
