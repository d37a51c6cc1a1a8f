//! Which memory a block lives in.

use std::fmt;

/// A kind of memory. Kinds are open: a backend of yours makes its own with [`DeviceKind::new`].
///
/// A kind may be [simulated](DeviceKind::simulated): its addresses are numbers with no memory behind them, and it is
/// never equal to the kind that it stands for.
///
/// The codes of the kinds named here are those of [DLPack](https://dmlc.github.io/dlpack/latest/c_api.html).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceKind {
    code: u16,
    host_accessible: bool,
    simulated: bool,
}

impl DeviceKind {
    /// Ordinary host memory.
    pub const CPU: Self = Self::new(1, true);
    /// Memory of a CUDA device.
    pub const CUDA: Self = Self::new(2, false);
    /// Host memory that is page-locked for a CUDA device's copy engines.
    pub const CUDA_PINNED: Self = Self::new(3, true);

    /// A kind with a code of its own; `host_accessible` says whether the processor may dereference its addresses.
    pub const fn new(code: u16, host_accessible: bool) -> Self {
        Self { code, host_accessible, simulated: false }
    }

    /// The kind that stands for this one where books are kept without memory. The processor can't dereference its
    /// addresses, and no real backend copies them.
    ///
    /// ```
    /// use alloc_core::DeviceKind;
    /// let simulated = DeviceKind::CPU.simulated();
    /// assert!(simulated.is_simulated() && !simulated.is_host_accessible());
    /// assert_ne!(simulated, DeviceKind::CPU);
    /// ```
    #[must_use]
    pub const fn simulated(self) -> Self {
        Self { code: self.code, host_accessible: false, simulated: true }
    }

    /// The kind's number, which a simulated kind shares with the one that it stands for. A backend
    /// recognises its memory by the kind, not by the number alone.
    pub const fn code(self) -> u16 {
        self.code
    }

    /// Whether the processor may dereference addresses of this kind.
    pub const fn is_host_accessible(self) -> bool {
        self.host_accessible
    }

    /// Whether addresses of this kind have no memory behind them.
    pub const fn is_simulated(self) -> bool {
        self.simulated
    }
}

impl fmt::Debug for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.simulated {
            f.write_str("simulated_")?;
        }
        let is = |named: Self| *self == named || *self == named.simulated();
        match () {
            () if is(Self::CPU) => f.write_str("cpu"),
            () if is(Self::CUDA) => f.write_str("cuda"),
            () if is(Self::CUDA_PINNED) => f.write_str("cuda_pinned"),
            () => write!(f, "kind{}", self.code),
        }
    }
}

/// One device: a kind of memory and the ordinal among the devices of that kind.
///
/// ```
/// use alloc_core::Device;
/// assert_eq!(Device::cuda(1).to_string(), "cuda:1");
/// assert!(Device::CPU.is_host_accessible());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Device {
    kind: DeviceKind,
    ordinal: u16,
}

impl Device {
    /// The host's memory.
    pub const CPU: Self = Self::new(DeviceKind::CPU, 0);

    /// The `ordinal`-th device of a kind.
    pub const fn new(kind: DeviceKind, ordinal: u16) -> Self {
        Self { kind, ordinal }
    }

    /// The memory of the CUDA device `ordinal`.
    pub const fn cuda(ordinal: u16) -> Self {
        Self::new(DeviceKind::CUDA, ordinal)
    }

    /// Host memory page-locked through the context of the CUDA device `ordinal`.
    pub const fn cuda_pinned(ordinal: u16) -> Self {
        Self::new(DeviceKind::CUDA_PINNED, ordinal)
    }

    /// The device that stands for this one where books are kept without memory: see [`DeviceKind::simulated`].
    ///
    /// ```
    /// use alloc_core::Device;
    /// assert_eq!(Device::cuda(1).simulated().to_string(), "simulated_cuda:1");
    /// ```
    #[must_use]
    pub const fn simulated(self) -> Self {
        Self { kind: self.kind.simulated(), ordinal: self.ordinal }
    }

    /// The kind of memory.
    pub const fn kind(self) -> DeviceKind {
        self.kind
    }

    /// The ordinal among the devices of this kind.
    pub const fn ordinal(self) -> u16 {
        self.ordinal
    }

    /// Whether the processor may dereference addresses of this device.
    pub const fn is_host_accessible(self) -> bool {
        self.kind.host_accessible
    }

    /// Whether addresses of this device have no memory behind them.
    pub const fn is_simulated(self) -> bool {
        self.kind.simulated
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}:{}", self.kind, self.ordinal)
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
