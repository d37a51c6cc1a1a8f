//! Loads the fake driver, or the real one, and keeps tests that look at its books apart.

use std::ffi::{CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use alloc_core::{Block, DeviceAllocator, Layout, Stream, StreamSet, forward_allocator};

/// Whether the tests are to run on a real GPU.
pub fn on_gpu() -> bool {
    std::env::var_os("ALLOC_CUDA_TEST_GPU").is_some_and(|value| value == "1")
}

/// The fake driver's own functions.
struct Control {
    library: *mut c_void,
}

// SAFETY: the library is never closed, and its functions may be called from any thread.
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

/// Where the fake driver is; built by cargo if need be.
pub fn fake_library() -> PathBuf {
    if let Some(path) = std::env::var_os("FAKE_CUDA_LIBRARY") {
        return path.into();
    }
    let executable = std::env::current_exe().unwrap();
    let profile = executable.parent().and_then(Path::parent).unwrap();
    let library = profile.join("libfake_cuda.so");
    if let (Some(cargo), Some(target)) = (std::env::var_os("CARGO"), profile.parent()) {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "fake-cuda", "--target-dir"]).arg(target);
        if profile.file_name().is_some_and(|name| name == "release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the fake driver could not be built");
    }
    assert!(library.exists(), "{} is missing: cargo build -p fake-cuda", library.display());
    library
}

fn control() -> &'static Control {
    static CONTROL: OnceLock<Control> = OnceLock::new();
    CONTROL.get_or_init(|| {
        let path = fake_library();
        // SAFETY: the library is a stand-in for the driver with the same functions.
        let driver = unsafe { cuda_link::load_from(&path) };
        assert!(matches!(driver, cuda_link::Driver::Loaded { .. }), "{driver:?}");
        let path = CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: the name is a C string; the library is loaded already and this gives its handle.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null());
        Control { library }
    })
}

impl Control {
    fn find(&self, name: &str) -> *mut c_void {
        let symbol = CString::new(name).unwrap();
        // SAFETY: the handle is a loaded library's and the name a C string.
        let found = unsafe { libc::dlsym(self.library, symbol.as_ptr()) };
        assert!(!found.is_null(), "the fake driver has no {name}");
        found
    }
}

macro_rules! control_functions {
    ($(fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        fn $name($($argument: $type),*) $(-> $result)? {
            let found = control().find(stringify!($name));
            // SAFETY: the fake driver defines the function with this signature.
            let function: extern "C" fn($($type),*) $(-> $result)? = unsafe { std::mem::transmute(found) };
            function($($argument),*)
        }
    )*};
}

control_functions! {
    fn fake_cuda_clear();
    fn fake_cuda_calls(name: *const c_char) -> u64;
    fn fake_cuda_log(to: *mut u8, capacity: usize) -> usize;
    fn fake_cuda_violations(to: *mut u8, capacity: usize) -> usize;
    fn fake_cuda_fail(name: *const c_char, after: u64, code: i32);
    fn fake_cuda_failures_left() -> u64;
    fn fake_cuda_visible(count: u32);
    fn fake_cuda_poison(device: u32, code: i32);
    fn fake_cuda_hold(stream: u64, held: bool);
    fn fake_cuda_pending(stream: u64) -> u64;
    fn fake_cuda_lazy(seed: u64);
    fn fake_cuda_capacity(device: u32, bytes: u64) -> u64;
    fn fake_cuda_used(device: u32) -> u64;
    fn fake_cuda_living(kind: u32) -> u64;
}

/// Who may look at the driver at a time: many that don't mind each other, or one that reads the books.
#[derive(Default)]
struct Gate {
    shared: usize,
    exclusive: bool,
}

static GATE: Mutex<Gate> = Mutex::new(Gate { shared: 0, exclusive: false });
static GATE_MOVED: Condvar = Condvar::new();

/// The driver, together with others.
#[derive(Debug)]
pub struct Shared(());

/// The driver, fake or real, together with others.
pub fn any_device() -> Shared {
    if on_gpu() {
        assert!(alloc_cuda::is_available(), "no GPU: {:?}", alloc_cuda::device_count());
    } else {
        control();
    }
    let gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
    GATE_MOVED.wait_while(gate, |gate| gate.exclusive).unwrap_or_else(PoisonError::into_inner).shared += 1;
    Shared(())
}

/// The real driver, alone, or `None` on the fake one: for tests that take all of a card or look at how much is free.
pub fn gpu_alone() -> Option<Alone> {
    on_gpu().then(alone)
}

/// The driver, fake or real, alone. What only the fake one tells is `None` on the real one, and what can only be done to
/// the fake one does nothing there.
pub struct Alone {
    fake: Option<Fake>,
}

/// The driver, fake or real, alone.
pub fn alone() -> Alone {
    let fake = fake();
    if fake.is_none() {
        assert!(alloc_cuda::is_available(), "no GPU: {:?}", alloc_cuda::device_count());
        take_gate_alone();
    }
    Alone { fake }
}

impl Alone {
    pub fn fake(&self) -> Option<&Fake> {
        self.fake.as_ref()
    }

    pub fn living(&self, kind: Living) -> Option<u64> {
        self.fake().map(|fake| fake.living(kind))
    }

    pub fn clear(&self) {
        self.fake().inspect(|fake| fake.clear());
    }

    pub fn hold(&self, stream: Stream) {
        self.fake().inspect(|fake| fake.hold(stream));
    }

    pub fn resume(&self, stream: Stream) {
        self.fake().inspect(|fake| fake.resume(stream));
    }

    /// Asserts how often the fake driver was called.
    pub fn assert_calls(&self, name: &str, times: u64) {
        self.fake().inspect(|fake| assert_eq!(fake.calls(name), times, "{name}"));
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // The fake driver opens the gate itself.
        if self.fake.is_none() {
            open_gate();
        }
    }
}

fn take_gate_alone() {
    let gate = GATE.lock().unwrap_or_else(PoisonError::into_inner);
    GATE_MOVED
        .wait_while(gate, |gate| gate.exclusive || gate.shared > 0)
        .unwrap_or_else(PoisonError::into_inner)
        .exclusive = true;
}

fn open_gate() {
    GATE.lock().unwrap_or_else(PoisonError::into_inner).exclusive = false;
    GATE_MOVED.notify_all();
}

impl Drop for Shared {
    fn drop(&mut self) {
        GATE.lock().unwrap_or_else(PoisonError::into_inner).shared -= 1;
        GATE_MOVED.notify_all();
    }
}

/// Whether there are two devices; says that the test is left out where there is only one.
pub fn two_devices(test: &str) -> bool {
    let count = if on_gpu() { alloc_cuda::device_count().unwrap_or(0) } else { 4 };
    if count < 2 {
        println!("{test}: left out, as it needs two devices and there are {count}");
    }
    count >= 2
}

/// Whether devices 0 and 1 reach each other's memory; says that the test is left out where they don't.
pub fn two_peers(test: &str) -> bool {
    if !two_devices(test) {
        return false;
    }
    let reach = !on_gpu() || alloc_cuda::can_access_peer(0, 1).unwrap() && alloc_cuda::can_access_peer(1, 0).unwrap();
    if !reach {
        println!("{test}: left out, as devices 0 and 1 don't reach each other");
    }
    reach
}

/// Runs one of the ignored tests in a process of its own, which uses the same driver as this one.
pub fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("cuda::{test}"), "--ignored", "--nocapture"]);
    if !on_gpu() {
        command.env("FAKE_CUDA_LIBRARY", fake_library());
    }
    command
}

/// The fake driver, alone. When dropped without a panic it asserts that nothing illegal was done.
pub struct Fake(());

/// The fake driver, alone, or `None` on a real one.
pub fn fake() -> Option<Fake> {
    if on_gpu() {
        return None;
    }
    control();
    take_gate_alone();
    fake_cuda_clear();
    Some(Fake(()))
}

impl Drop for Fake {
    fn drop(&mut self) {
        let violations = self.violations();
        fake_cuda_clear();
        open_gate();
        if !std::thread::panicking() {
            assert_eq!(violations, Vec::<String>::new());
        }
    }
}

/// Kinds of living objects.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub enum Living {
    Reservations = 0,
    Physical = 1,
    Mappings = 2,
    Allocations = 3,
    Pooled = 4,
    HostAllocations = 5,
    HostRegistrations = 6,
    Streams = 7,
    Graphs = 9,
    Pools = 11,
}

impl Fake {
    pub fn clear(&self) {
        assert_eq!(self.violations(), Vec::<String>::new());
        fake_cuda_clear();
    }

    pub fn calls(&self, name: &str) -> u64 {
        let name = CString::new(name).unwrap();
        fake_cuda_calls(name.as_ptr())
    }

    /// The calls since the last clear: name and subject.
    pub fn log(&self) -> Vec<(String, u64)> {
        read_text(fake_cuda_log)
            .lines()
            .map(|line| {
                let (name, subject) = line.split_once(' ').unwrap();
                (name.to_owned(), u64::from_str_radix(&subject[2..], 16).unwrap())
            })
            .collect()
    }

    pub fn violations(&self) -> Vec<String> {
        read_text(fake_cuda_violations).lines().map(str::to_owned).collect()
    }

    /// Takes note of violations that a test provoked.
    pub fn take_violations(&self) -> Vec<String> {
        let violations = self.violations();
        fake_cuda_clear();
        violations
    }

    pub fn fail(&self, name: &str, after: u64, code: i32) {
        let name = CString::new(name).unwrap();
        fake_cuda_fail(name.as_ptr(), after, code);
    }

    pub fn fail_any(&self, after: u64, code: i32) {
        fake_cuda_fail(std::ptr::null(), after, code);
    }

    pub fn failures_left(&self) -> u64 {
        fake_cuda_failures_left()
    }

    /// From now on there are this many devices.
    pub fn show_devices(&self, count: u32) {
        fake_cuda_visible(count);
    }

    pub fn poison(&self, device: u16, code: i32) {
        fake_cuda_poison(device.into(), code);
    }

    pub fn hold(&self, stream: Stream) {
        fake_cuda_hold(stream.handle(), true);
    }

    pub fn resume(&self, stream: Stream) {
        fake_cuda_hold(stream.handle(), false);
    }

    pub fn pending(&self, stream: Stream) -> u64 {
        fake_cuda_pending(stream.handle())
    }

    pub fn lazy(&self, seed: u64) {
        fake_cuda_lazy(seed);
    }

    pub fn set_capacity(&self, device: u16, bytes: u64) -> u64 {
        fake_cuda_capacity(device.into(), bytes)
    }

    pub fn used(&self, device: u16) -> u64 {
        fake_cuda_used(device.into())
    }

    pub fn living(&self, kind: Living) -> u64 {
        fake_cuda_living(kind as u32)
    }
}

fn read_text(read: fn(*mut u8, usize) -> usize) -> String {
    let mut text = vec![0; read(std::ptr::null_mut(), 0)];
    let length = read(text.as_mut_ptr(), text.len());
    text.truncate(length);
    String::from_utf8(text).unwrap()
}

/// Holds back a stream's work on the driver's stand-in, whose gate the caller has, until nothing else can go on.
pub fn hold_back(stream: Stream) {
    if !on_gpu() {
        fake_cuda_hold(stream.handle(), true);
    }
}

/// An allocator that holds the gate while it lives.
#[derive(Debug)]
pub struct Guarded<A> {
    inner: A,
    _shared: Shared,
}

impl<A> Guarded<A> {
    pub fn new(shared: Shared, inner: A) -> Self {
        Self { inner, _shared: shared }
    }
}

// SAFETY: all is answered by the allocator within.
unsafe impl<A: DeviceAllocator> DeviceAllocator for Guarded<A> {
    forward_allocator!(self => self.inner);
}

/// Runs `f` with a block and gives the block back.
pub fn release(allocator: &dyn DeviceAllocator, block: Block, stream: Stream) {
    // SAFETY: tests release blocks after their last use, on the stream of that use.
    unsafe { allocator.release(block, stream, StreamSet::EMPTY) }.unwrap();
}

/// A layout with the default alignment.
pub fn bytes(size: u64) -> Layout {
    Layout::bytes(size).unwrap()
}
