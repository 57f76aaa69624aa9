//! What a GPU's driver can be asked. Everything above stands on this trait; NVML is the first that
//! has it, and another vendor's would be one more file.
//!
//! Every answer may be missing, late or wrong: a driver is foreign code. What is only sometimes to
//! be had is a [`Fault`], never a zero.

use std::fmt;

use super::fault::Fault;

pub(super) type Answer<T> = Result<T, Fault>;

/// A device, or an instance that a device is cut into. Means something to the driver alone, and only
/// as long as that says so: every call checks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Handle(pub(super) usize);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:#x})", self.0)
    }
}

/// A value and when it was read: the middle of the call, CLOCK_MONOTONIC in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Timed<T> {
    pub(super) ns: u64,
    pub(super) value: T,
}

/// A process with a context on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) pid: u32,
    /// Memory it holds there; `None` where the driver does not say.
    pub(super) bytes: Option<u64>,
}

/// What one process did in one of the driver's sampling periods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessSample {
    pub(super) pid: u32,
    /// End of the period, CLOCK_REALTIME, microseconds.
    pub(super) us: u64,
    /// Share of the multiprocessors' time, percent.
    pub(super) sm: u32,
}

/// One entry of the driver's sample buffers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct DriverSample {
    /// CLOCK_REALTIME, microseconds.
    pub(super) us: u64,
    pub(super) value: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SampleKind {
    /// Milliwatts.
    Power,
    /// Percent of the time.
    Busy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessKind {
    Compute,
    Graphics,
    /// Clients of a multi-process service.
    Mps,
}

/// What a power reading is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PowerScope {
    /// The GPU with its memory.
    Gpu,
    /// The module that the GPU shares with a CPU.
    Module,
}

/// Which part of a device an instance is, and how busy it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct InstanceUse {
    /// GPU instance and compute instance.
    pub(super) place: (u32, u32),
    /// Mean share of its multiprocessors that was busy since the same place was last asked about, 0
    /// to 1; `None` the first time.
    pub(super) busy: Option<f64>,
}

pub(super) trait Driver: fmt::Debug {
    /// What this driver can never answer, in words of what is lost without it.
    fn lacks(&self) -> Vec<&'static str>;

    /// Connects anew, after the driver was unloaded and loaded again.
    fn reconnect(&self) -> Answer<()>;

    fn device_count(&self) -> Answer<u32>;
    fn device(&self, index: u32) -> Answer<Handle>;
    fn device_by_uuid(&self, uuid: &str) -> Answer<Handle>;
    fn uuid(&self, device: Handle) -> Answer<String>;
    fn name(&self, device: Handle) -> Answer<String>;

    /// The energy counter, millijoules.
    fn energy(&self, device: Handle) -> Answer<Timed<u64>>;

    /// Power now, milliwatts.
    fn instant_power(&self, device: Handle, scope: PowerScope) -> Answer<Timed<f64>>;

    /// Power, milliwatts, as a mean over the driver's own time (a second, usually).
    fn average_power(&self, device: Handle) -> Answer<Timed<f64>>;

    /// The highest limit that the device's power can be set to, watts.
    fn most_power(&self, device: Handle) -> Answer<f64>;

    /// Percent of the driver's last sampling period in which a kernel ran.
    fn busy(&self, device: Handle) -> Answer<u32>;

    /// What the driver's sample buffer holds that is newer than `since_us`.
    fn samples(&self, device: Handle, kind: SampleKind, since_us: u64)
    -> Answer<Vec<DriverSample>>;

    /// Processes with a context of that kind on a device or an instance.
    fn processes(&self, device: Handle, kind: ProcessKind) -> Answer<Vec<Process>>;

    /// Utilisation by process, newer than `since_us`; empty where nobody ran.
    fn process_samples(&self, device: Handle, since_us: u64) -> Answer<Vec<ProcessSample>>;

    /// Whether the device is cut into instances.
    fn is_partitioned(&self, device: Handle) -> Answer<bool>;
    fn instances(&self, device: Handle) -> Answer<Vec<Handle>>;

    /// How many compute slices of its parent an instance has.
    fn slices(&self, instance: Handle) -> Answer<u32>;
    fn instance_use(&self, device: Handle, instance: Handle) -> Answer<InstanceUse>;
}
