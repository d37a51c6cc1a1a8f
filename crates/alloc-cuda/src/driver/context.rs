//! The driver's start, a device's primary context, and making it current for the length of one call.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::sync::atomic::AtomicU8;
use std::sync::{Mutex, OnceLock, PoisonError};

use alloc_core::{Device, ProviderError, ProviderErrorKind};

use super::calls;
use super::captures::CAPTURES;
use super::error::{INVALID_DEVICE, STREAM_CAPTURE_UNSUPPORTED, check, error};

/// CUDA 11.2, the first with stream-ordered allocation; 1000 × major + 10 × minor.
const OLDEST_DRIVER: i32 = 11_020;

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const CAPTURE_MODE_RELAXED: i32 = 2;

/// A device whose primary context is retained for the rest of the process.
#[derive(Debug)]
pub(crate) struct Context {
    ordinal: u16,
    device: i32,
    handle: u64,
    /// Events of this context that wait to be used again.
    pub(super) spare_events: Mutex<Vec<u64>>,
    /// How many of the latest questions whether a stream is idle were dear, more than were not.
    pub(super) dear_questions: AtomicU8,
}

/// Device attributes, by the driver's numbers.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub(crate) enum Attribute {
    UnifiedAddressing = 41,
    ComputeCapabilityMajor = 75,
    ComputeCapabilityMinor = 76,
    VirtualMemoryManagement = 102,
    FileDescriptorHandles = 103,
    RdmaWithVirtualMemory = 110,
    MemoryPools = 115,
}

/// More devices than any driver has.
const MOST: usize = 64;

/// The contexts that are open, by ordinal.
static OPEN: [OnceLock<&'static Context>; MOST] = [const { OnceLock::new() }; MOST];

/// Initialises the driver, once. Where it can't be for a reason that may pass, the next call tries again.
fn initialise() -> Result<i32, ProviderError> {
    static STARTED: OnceLock<Result<i32, ProviderError>> = OnceLock::new();
    if let Some(started) = STARTED.get() {
        return started.clone();
    }
    let started = start();
    match &started {
        Err(error) if may_pass(error) => started,
        _ => STARTED.get_or_init(|| started).clone(),
    }
}

/// Whether a driver that did not start may do so later: a device that somebody else has, services of the system that are not
/// up yet, memory that is short. No driver, no device and versions that don't fit stay as they are.
fn may_pass(error: &ProviderError) -> bool {
    const DEVICE_UNAVAILABLE: i64 = 46;
    const SYSTEM_NOT_READY: i64 = 802;
    /// MPS can't be reached, does not answer, recovers from a failure, or serves as many as it can.
    const MPS: RangeInclusive<i64> = 805..=809;
    let passes = [DEVICE_UNAVAILABLE, SYSTEM_NOT_READY].contains(&error.code) || MPS.contains(&error.code);
    error.kind != ProviderErrorKind::Unavailable || passes
}

fn start() -> Result<i32, ProviderError> {
    let device = Device::cuda(0);
    #[cfg(feature = "cuda")]
    if let cuda_link::Driver::Missing { reason, .. } = cuda_link::load() {
        let name = format!("no CUDA driver: {reason}");
        let error = ProviderError::new(device, "cuInit", ProviderErrorKind::Unavailable, name);
        return Err(error.with_code(super::error::NO_DEVICE.into()));
    }
    // SAFETY: no preconditions.
    check(device, "cuInit", unsafe { calls::cuInit(0) })?;
    let mut version = 0;
    // SAFETY: the out parameter is a local.
    check(device, "cuDriverGetVersion", unsafe { calls::cuDriverGetVersion(&raw mut version) })?;
    if version < OLDEST_DRIVER {
        let show = |version: i32| format!("{}.{}", version / 1000, version % 1000 / 10);
        let name = format!("driver is for CUDA {}, {} is needed", show(version), show(OLDEST_DRIVER));
        let error = ProviderError::new(device, "cuDriverGetVersion", ProviderErrorKind::Unavailable, name);
        return Err(error.with_code(version.into()));
    }
    Ok(version)
}

/// The driver's version: 1000 × major + 10 × minor of the CUDA that it is for.
pub(crate) fn version() -> Result<i32, ProviderError> {
    initialise()
}

/// Number of devices.
pub(crate) fn count() -> Result<u16, ProviderError> {
    initialise()?;
    let mut count = 0;
    // SAFETY: the out parameter is a local.
    check(Device::cuda(0), "cuDeviceGetCount", unsafe { calls::cuDeviceGetCount(&raw mut count) })?;
    Ok(u16::try_from(count).unwrap_or(u16::MAX))
}

/// The driver's number of the device `ordinal`.
fn device_number(ordinal: u16) -> Result<i32, ProviderError> {
    let name = Device::cuda(ordinal);
    initialise().map_err(|mut error| {
        error.device = name;
        error
    })?;
    let mut device = 0;
    // SAFETY: the driver is initialised; the out parameter is a local.
    check(name, "cuDeviceGet", unsafe { calls::cuDeviceGet(&raw mut device, i32::from(ordinal)) })?;
    Ok(device)
}

/// Whether a device can reach another's memory directly, by the driver's numbers; `name` is for errors.
fn reaches(name: Device, from: i32, to: i32) -> Result<bool, ProviderError> {
    let mut can = 0;
    // SAFETY: both numbers are the driver's; the out parameter is a local.
    check(name, "cuDeviceCanAccessPeer", unsafe { calls::cuDeviceCanAccessPeer(&raw mut can, from, to) })?;
    Ok(can != 0)
}

/// Whether a device can reach another's memory directly. No context is made.
pub(crate) fn can_access_peer(from: u16, to: u16) -> Result<bool, ProviderError> {
    reaches(Device::cuda(from), device_number(from)?, device_number(to)?)
}

impl Context {
    /// The device `ordinal`, its primary context retained on the first call.
    #[inline]
    pub(crate) fn open(ordinal: u16) -> Result<&'static Self, ProviderError> {
        match Self::opened(ordinal) {
            Some(context) => Ok(context),
            None => Self::open_now(ordinal),
        }
    }

    #[cold]
    fn open_now(ordinal: u16) -> Result<&'static Self, ProviderError> {
        let no_such = || error(Device::cuda(ordinal), "cuDeviceGet", INVALID_DEVICE);
        let place = OPEN.get(usize::from(ordinal)).ok_or_else(no_such)?;
        static OPENING: Mutex<()> = Mutex::new(());
        let _one_at_a_time = OPENING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = place.get() {
            return Ok(context);
        }
        let (name, device) = (Device::cuda(ordinal), device_number(ordinal)?);
        let mut handle = 0;
        // SAFETY: the device was just found; the out parameter is a local. The calling thread's current context
        // stays what it was.
        check(name, "cuDevicePrimaryCtxRetain", unsafe { calls::cuDevicePrimaryCtxRetain(&raw mut handle, device) })?;
        let context: &'static Self = Box::leak(Box::new(Self {
            ordinal,
            device,
            handle,
            spare_events: Mutex::new(Vec::new()),
            dear_questions: AtomicU8::new(0),
        }));
        Ok(place.get_or_init(|| context))
    }

    /// The device `ordinal`, if its context is open.
    #[inline]
    pub(crate) fn opened(ordinal: u16) -> Option<&'static Self> {
        OPEN.get(usize::from(ordinal))?.get().copied()
    }

    /// The device `ordinal`, if anybody in the process has its primary context: this library or another.
    pub(crate) fn in_use(ordinal: u16) -> Result<Option<&'static Self>, ProviderError> {
        if let Some(context) = Self::opened(ordinal) {
            return Ok(Some(context));
        }
        let (device, mut flags, mut active) = (device_number(ordinal)?, 0, 0);
        // SAFETY: the device was just found; the out parameters are locals.
        check(Device::cuda(ordinal), "cuDevicePrimaryCtxGetState", unsafe {
            calls::cuDevicePrimaryCtxGetState(device, &raw mut flags, &raw mut active)
        })?;
        if active == 0 { Ok(None) } else { Self::open_now(ordinal).map(Some) }
    }

    /// The devices whose contexts are open.
    pub(crate) fn all_opened() -> impl Iterator<Item = &'static Self> {
        OPEN.iter().filter_map(|place| place.get().copied())
    }

    pub(crate) fn ordinal(&self) -> u16 {
        self.ordinal
    }

    /// The name for errors, and of the memory.
    pub(crate) fn name(&self) -> Device {
        Device::cuda(self.ordinal)
    }

    /// The driver's `CUdevice`.
    pub(crate) fn device(&self) -> i32 {
        self.device
    }

    /// The driver's `CUcontext`.
    pub(crate) fn handle(&self) -> u64 {
        self.handle
    }

    pub(crate) fn check(&self, call: &'static str, code: i32) -> Result<(), ProviderError> {
        check(self.name(), call, code)
    }

    /// Makes the context current until the guard goes.
    pub(crate) fn enter(&self) -> Result<Current, ProviderError> {
        Current::ensure(self.name(), self.handle)
    }

    /// As [`Context::enter`], and lets the calling thread do what a stream capture in progress (of any thread) would
    /// otherwise forbid it. For calls that have nothing to do with a captured stream.
    pub(crate) fn enter_relaxed(&self) -> Result<(Current, Relaxed), ProviderError> {
        Ok((self.enter()?, self.relax()?))
    }

    /// The second half of [`Context::enter_relaxed`].
    pub(crate) fn relax(&self) -> Result<Relaxed, ProviderError> {
        let mut mode = CAPTURE_MODE_RELAXED;
        // SAFETY: the parameter is a local that holds a mode.
        self.check("cuThreadExchangeStreamCaptureMode", unsafe {
            calls::cuThreadExchangeStreamCaptureMode(&raw mut mode)
        })?;
        Ok(Relaxed { previous: mode, thread_bound: PhantomData })
    }

    pub(crate) fn attribute(&self, attribute: Attribute) -> Result<i32, ProviderError> {
        let mut value = 0;
        // SAFETY: the device is open; the out parameter is a local.
        self.check("cuDeviceGetAttribute", unsafe {
            calls::cuDeviceGetAttribute(&raw mut value, attribute as i32, self.device)
        })?;
        Ok(value)
    }

    /// Whether the device has something. A driver too old to know the attribute does not have it.
    pub(crate) fn has(&self, attribute: Attribute) -> Result<bool, ProviderError> {
        match self.attribute(attribute) {
            Ok(value) => Ok(value != 0),
            Err(error) if error.kind == ProviderErrorKind::InvalidArgument => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// What the device is called.
    pub(crate) fn device_name(&self) -> Result<String, ProviderError> {
        let mut text = [0; 128];
        // SAFETY: the buffer is a local of the length given.
        self.check("cuDeviceGetName", unsafe {
            calls::cuDeviceGetName(text.as_mut_ptr(), text.len() as i32, self.device)
        })?;
        text[text.len() - 1] = 0;
        // SAFETY: the buffer ends with a zero byte.
        Ok(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
    }

    /// Whether this device can reach the memory of another, by the driver's number, directly.
    pub(crate) fn can_access(&self, peer: i32) -> Result<bool, ProviderError> {
        reaches(self.name(), self.device, peer)
    }

    /// Lets work on this device use `peer`'s `cuMemAlloc` memory directly.
    pub(crate) fn enable_access_to(&self, peer: &Self) -> Result<(), ProviderError> {
        let _current = self.enter_relaxed()?;
        // SAFETY: both contexts are retained, and this one is current.
        match unsafe { calls::cuCtxEnablePeerAccess(peer.handle, 0) } {
            super::error::PEER_ACCESS_ALREADY_ENABLED => Ok(()),
            code => self.check("cuCtxEnablePeerAccess", code),
        }
    }

    /// Waits for all work of the context. Refused while a capture is in progress that was begun here; one that others have
    /// begun in this context makes the driver refuse, and is ended by the question.
    pub(crate) fn synchronize(&self) -> Result<(), ProviderError> {
        const CALL: &str = "cuCtxSynchronize";
        let waited = CAPTURES.unless_any(|| {
            let _current = self.enter_relaxed()?;
            // SAFETY: the context is current.
            self.check(CALL, unsafe { calls::cuCtxSynchronize() })
        });
        waited.unwrap_or_else(|| self.check(CALL, STREAM_CAPTURE_UNSUPPORTED))
    }
}

/// A context that is current; the one before it is again when this goes.
#[derive(Debug)]
#[must_use]
pub(crate) struct Current {
    /// It was not current before.
    pushed: bool,
    thread_bound: PhantomData<*const ()>,
}

impl Current {
    pub(super) fn ensure(device: Device, context: u64) -> Result<Self, ProviderError> {
        Self::ensure_one_of(device, [context, context])
    }

    /// Nearly always the context is current already, and asking for it is one call where a push and a pop are two. If neither
    /// is current, the first is made so.
    pub(super) fn ensure_one_of(device: Device, contexts: [u64; 2]) -> Result<Self, ProviderError> {
        let [context, _] = contexts;
        let mut current = 0;
        // SAFETY: the out parameter is a local.
        let known = unsafe { calls::cuCtxGetCurrent(&raw mut current) } == 0;
        if known && contexts.contains(&current) {
            return Ok(Self { pushed: false, thread_bound: PhantomData });
        }
        // SAFETY: callers pass a context that lives: a primary one, retained for the rest of the process, or that of
        // a stream which the caller of our API vouches for.
        let code = unsafe { calls::cuCtxPushCurrent_v2(context) };
        if code == 0 {
            Ok(Self { pushed: true, thread_bound: PhantomData })
        } else {
            Err(error(device, "cuCtxPushCurrent", code))
        }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if !self.pushed {
            return;
        }
        let mut popped = 0;
        // SAFETY: the context was pushed by this thread (the guard can't leave it) and guards go in reverse order.
        // A failure means that the driver is shutting down, and there is no context to restore then.
        let _ = unsafe { calls::cuCtxPopCurrent_v2(&raw mut popped) };
    }
}

/// The calling thread may make calls that a capture forbids, until this goes.
#[derive(Debug)]
#[must_use]
pub(crate) struct Relaxed {
    previous: i32,
    thread_bound: PhantomData<*const ()>,
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: the field holds the mode that the driver gave for this thread.
        let _ = unsafe { calls::cuThreadExchangeStreamCaptureMode(&raw mut self.previous) };
    }
}
