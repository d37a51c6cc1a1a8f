//! Types and result codes at the boundary.

/// An out parameter.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(crate) fn set(self, value: T) {
        if !self.0.is_null() {
            // SAFETY: it is the contract of every driver function that out parameters are null or writable.
            unsafe { self.0.write(value) }
        }
    }

    pub(crate) fn pointer(self) -> *mut T {
        self.0
    }
}

impl<T: Copy> Out<T> {
    pub(crate) fn get(self) -> T {
        // SAFETY: parameters read through this are initialised by the caller, as the driver's contract asks.
        unsafe { self.0.read() }
    }
}

/// A parameter that points to something to read.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    pub(crate) fn get(self) -> Option<T> {
        // SAFETY: it is the contract of every driver function that such parameters are null or readable.
        (!self.0.is_null()).then(|| unsafe { self.0.read() })
    }

    /// The `index`-th of an array.
    pub(crate) fn at(self, index: usize) -> T {
        // SAFETY: the caller passes the length of the array along with it, and `index` is below it.
        unsafe { self.0.add(index).read() }
    }
}

impl In<std::ffi::c_char> {
    pub(crate) fn text(self) -> String {
        if self.0.is_null() {
            return String::new();
        }
        // SAFETY: text parameters are C strings.
        unsafe { std::ffi::CStr::from_ptr(self.0) }.to_string_lossy().into_owned()
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Location {
    pub(crate) kind: i32,
    pub(crate) id: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct AllocationProperties {
    pub(crate) kind: i32,
    pub(crate) handle_types: i32,
    pub(crate) location: Location,
    pub(crate) win32: u64,
    pub(crate) compression: u8,
    pub(crate) rdma: u8,
    pub(crate) usage: u16,
    pub(crate) reserved: [u8; 4],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct AccessDescription {
    pub(crate) location: Location,
    pub(crate) flags: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PoolProperties {
    pub(crate) kind: i32,
    pub(crate) handle_types: i32,
    pub(crate) location: Location,
    pub(crate) rest: [u64; 9],
}

macro_rules! codes {
    ($($name:ident = $code:literal),* $(,)?) => {
        $(#[allow(dead_code)] pub(crate) const $name: i32 = $code;)*

        /// The name and a description of a code, as C strings.
        pub(crate) fn describe(code: i32) -> Option<(&'static [u8], &'static [u8])> {
            match code {
                0 => Some((b"CUDA_SUCCESS\0", b"no error\0")),
                $($code => Some((concat!("CUDA_ERROR_", stringify!($name), "\0").as_bytes(), b"reported by the fake driver\0")),)*
                _ => None,
            }
        }
    };
}

pub(crate) const OK: i32 = 0;

codes! {
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    ECC_UNCORRECTABLE = 214,
    INVALID_PTX = 218,
    OPERATING_SYSTEM = 304,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_TIMEOUT = 702,
    PEER_ACCESS_ALREADY_ENABLED = 704,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    STREAM_CAPTURE_UNSUPPORTED = 900,
    STREAM_CAPTURE_INVALIDATED = 901,
    STREAM_CAPTURE_UNMATCHED = 903,
    STREAM_CAPTURE_UNJOINED = 904,
    STREAM_CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    STREAM_CAPTURE_WRONG_THREAD = 908,
    UNKNOWN = 999,
}
