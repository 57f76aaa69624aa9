//! The driver: every call into the NVML library, and all `unsafe` of the GPU meter.
//!
//! The calls go through the function table of `nvml-wrapper-sys`, not through the wrapper's own
//! methods. Those trust the library: they allocate as many entries as it claims to have, and
//! search the strings it fills for a NUL past the end of the buffer. A library named on the command
//! line deserves no such trust.

#![allow(non_upper_case_globals, reason = "bindgen's names, in patterns")]

mod mig;

use std::ffi::{c_char, c_uint};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Instant;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings::*;

use super::fault::{Fault, OpenError, Remedy};
use super::latency::SharedLatencies;
use crate::base::monotonic_ns;

pub(super) use mig::Snapshot;

/// What the dynamic loader looks for when no library is named.
const SYSTEM_LIBRARY: &str = "libnvidia-ml.so.1";

/// The most entries that a list of the driver may have. The largest real ones are the sample
/// buffers, with a few hundred.
const MOST_ENTRIES: usize = 1 << 16;
const MOST_DEVICES: u32 = 1024;

type Answer<T> = Result<T, Fault>;

/// A device, or an instance of a MIG device. Only as good as the driver says: every call checks.
#[derive(Clone, Copy)]
pub(super) struct Handle(nvmlDevice_t);

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({:p})", self.0)
    }
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
pub(super) struct Sample {
    /// CLOCK_REALTIME, microseconds.
    pub(super) us: u64,
    pub(super) value: f64,
}

#[derive(Debug, Clone, Copy)]
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

/// An initialised NVML library.
pub(super) struct Driver {
    /// Never unloaded: drivers keep threads and exit handlers of their own.
    lib: ManuallyDrop<NvmlLib>,
    latencies: SharedLatencies,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Driver")
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Ok(shutdown) = self.lib.nvmlShutdown.as_ref() {
            // SAFETY: initialised in `open`; no call follows, `self` is going away.
            unsafe { shutdown() };
        }
    }
}

impl Driver {
    /// Loads and initialises NVML: tens of milliseconds, seconds where the driver has to wake the
    /// devices up first.
    pub(super) fn open(path: Option<&Path>, latencies: SharedLatencies) -> Result<Self, OpenError> {
        let file = path.unwrap_or(Path::new(SYSTEM_LIBRARY));
        let shown = file.display();
        // SAFETY: loading runs the library's initialisers; the user named it, or the system's
        // loader vouches for it.
        let lib = ManuallyDrop::new(unsafe { NvmlLib::new(file) }.map_err(|error| {
            let message = format!("cannot load the NVML library {shown}: {error}");
            OpenError::new(path.is_none(), message)
        })?);
        let needed = [
            ("nvmlInit_v2", lib.nvmlInit_v2.is_ok()),
            ("nvmlDeviceGetCount_v2", lib.nvmlDeviceGetCount_v2.is_ok()),
            ("nvmlDeviceGetHandleByIndex_v2", lib.nvmlDeviceGetHandleByIndex_v2.is_ok()),
            ("nvmlDeviceGetUUID", lib.nvmlDeviceGetUUID.is_ok()),
        ];
        if let Some((symbol, _)) = needed.iter().find(|(_, found)| !found) {
            let message = format!("{shown} is not an NVML library that works: it lacks {symbol}");
            return Err(OpenError::new(false, message));
        }
        let driver = Self { lib, latencies };
        driver.initialise().map_err(|fault| {
            let absent = matches!(fault, Fault::Nvml(NvmlError::DriverNotLoaded));
            let message = format!("NVML ({shown}) does not start: {fault}");
            let error = OpenError::new(path.is_none() && absent, message);
            OpenError { mend: fault.mend_start().unwrap_or(error.mend), ..error }
        })?;
        Ok(driver)
    }

    fn initialise(&self) -> Answer<()> {
        // SAFETY: takes no arguments.
        self.call("nvmlInit_v2", &self.lib.nvmlInit_v2, |init| unsafe { init() })
    }

    /// Optional functions that this library lacks, in words of what is lost without them.
    pub(super) fn missing(&self) -> Vec<&'static str> {
        let lib = &self.lib;
        let optional = [
            (
                lib.nvmlDeviceGetTotalEnergyConsumption.is_ok(),
                "nvmlDeviceGetTotalEnergyConsumption (energy is integrated from power instead)",
            ),
            (
                lib.nvmlDeviceGetProcessUtilization.is_ok(),
                "nvmlDeviceGetProcessUtilization (shares go by memory instead)",
            ),
            (
                lib.nvmlDeviceGetComputeRunningProcesses_v3.is_ok()
                    || lib.nvmlDeviceGetComputeRunningProcesses_v2.is_ok(),
                "nvmlDeviceGetComputeRunningProcesses (who holds a device is not known)",
            ),
        ];
        optional.into_iter().filter(|(found, _)| !found).map(|(_, what)| what).collect()
    }

    /// Calls a function of the table, if it is there, and times it.
    fn call<F: Copy, E>(
        &self,
        name: &'static str,
        function: &Result<F, E>,
        invoke: impl FnOnce(F) -> nvmlReturn_t,
    ) -> Answer<()> {
        let Ok(function) = function else { return Err(Fault::Missing) };
        let start = Instant::now();
        let code = invoke(*function);
        let ns = start.elapsed().as_nanos() as u64;
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).record(name, ns);
        match code {
            nvmlReturn_enum_NVML_SUCCESS => Ok(()),
            code => Err(Fault::Nvml(code.into())),
        }
    }

    pub(super) fn device_count(&self) -> Answer<u32> {
        let mut count: c_uint = 0;
        // SAFETY: writes one integer.
        self.call("nvmlDeviceGetCount_v2", &self.lib.nvmlDeviceGetCount_v2, |get| unsafe {
            get(&mut count)
        })?;
        if count > MOST_DEVICES {
            return Err(Fault::Nonsense(format!("it claims {count} devices")));
        }
        Ok(count)
    }

    pub(super) fn device(&self, index: u32) -> Answer<Handle> {
        let mut handle: nvmlDevice_t = std::ptr::null_mut();
        let function = &self.lib.nvmlDeviceGetHandleByIndex_v2;
        // SAFETY: writes one pointer.
        self.call("nvmlDeviceGetHandleByIndex_v2", function, |get| unsafe {
            get(index, &mut handle)
        })?;
        valid(handle)
    }

    pub(super) fn device_by_uuid(&self, uuid: &str) -> Answer<Handle> {
        let name = std::ffi::CString::new(uuid).map_err(|_| NvmlError::InvalidArg)?;
        let mut handle: nvmlDevice_t = std::ptr::null_mut();
        let function = &self.lib.nvmlDeviceGetHandleByUUID;
        // SAFETY: `name` ends in NUL and outlives the call, which writes one pointer.
        self.call("nvmlDeviceGetHandleByUUID", function, |get| unsafe {
            get(name.as_ptr(), &mut handle)
        })?;
        valid(handle)
    }

    pub(super) fn uuid(&self, device: Handle) -> Answer<String> {
        let mut buffer = [0; NVML_DEVICE_UUID_V2_BUFFER_SIZE as usize];
        // SAFETY: the length passed is the buffer's.
        self.call("nvmlDeviceGetUUID", &self.lib.nvmlDeviceGetUUID, |get| unsafe {
            get(device.0, buffer.as_mut_ptr(), buffer.len() as c_uint)
        })?;
        match text(&buffer) {
            uuid if uuid.is_empty() => Err(Fault::Nonsense("a device without a UUID".into())),
            uuid => Ok(uuid),
        }
    }

    pub(super) fn name(&self, device: Handle) -> Answer<String> {
        let mut buffer = [0; NVML_DEVICE_NAME_V2_BUFFER_SIZE as usize];
        // SAFETY: the length passed is the buffer's.
        self.call("nvmlDeviceGetName", &self.lib.nvmlDeviceGetName, |get| unsafe {
            get(device.0, buffer.as_mut_ptr(), buffer.len() as c_uint)
        })?;
        Ok(text(&buffer))
    }

    /// Energy since the driver was loaded, millijoules, and the middle of the call,
    /// CLOCK_MONOTONIC nanoseconds. Volta and later.
    pub(super) fn energy(&self, device: Handle) -> Answer<(u64, u64)> {
        let mut millijoules = 0;
        let function = &self.lib.nvmlDeviceGetTotalEnergyConsumption;
        let before = monotonic_ns();
        // SAFETY: writes one integer.
        self.call("nvmlDeviceGetTotalEnergyConsumption", function, |get| unsafe {
            get(device.0, &mut millijoules)
        })?;
        // NVML_VALUE_NOT_AVAILABLE, which is no energy.
        if millijoules == u64::MAX {
            return Err(Fault::Nonsense("an energy of all ones".into()));
        }
        Ok((middle(before), millijoules))
    }

    /// Power now, milliwatts, and the middle of the call.
    pub(super) fn instant_power(&self, device: Handle) -> Answer<(u64, f64)> {
        // SAFETY: plain integers and a union of numbers, for which zero is a value.
        let mut field: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
        field.fieldId = field_id::NVML_FI_DEV_POWER_INSTANT;
        let before = monotonic_ns();
        let function = &self.lib.nvmlDeviceGetFieldValues;
        // SAFETY: one entry passed, and one announced.
        self.call("nvmlDeviceGetFieldValues", function, |get| unsafe {
            get(device.0, 1, &mut field)
        })?;
        let ns = middle(before);
        if field.nvmlReturn != nvmlReturn_enum_NVML_SUCCESS {
            return Err(Fault::Nvml(field.nvmlReturn.into()));
        }
        let power = number(field.valueType, field.value)
            .ok_or_else(|| Fault::Nonsense("a power of no known type".into()))?;
        Ok((ns, power))
    }

    /// Power, milliwatts, and the middle of the call. An average over a second on most parts since
    /// Ampere; earlier, of the moment.
    pub(super) fn average_power(&self, device: Handle) -> Answer<(u64, f64)> {
        let mut milliwatts: c_uint = 0;
        let before = monotonic_ns();
        // SAFETY: writes one integer.
        self.call("nvmlDeviceGetPowerUsage", &self.lib.nvmlDeviceGetPowerUsage, |get| unsafe {
            get(device.0, &mut milliwatts)
        })?;
        Ok((middle(before), f64::from(milliwatts)))
    }

    /// Percent of the driver's last sampling period (a sixth of a second to a second) in which a
    /// kernel ran.
    pub(super) fn busy(&self, device: Handle) -> Answer<u32> {
        let mut rates = nvmlUtilization_t { gpu: 0, memory: 0 };
        let function = &self.lib.nvmlDeviceGetUtilizationRates;
        // SAFETY: writes one structure of that type.
        self.call("nvmlDeviceGetUtilizationRates", function, |get| unsafe {
            get(device.0, &mut rates)
        })?;
        Ok(rates.gpu.min(100))
    }

    /// What the driver's sample buffer holds that is newer than `since_us`.
    pub(super) fn samples(
        &self,
        device: Handle,
        kind: SampleKind,
        since_us: u64,
    ) -> Answer<Vec<Sample>> {
        let (name, id) = match kind {
            SampleKind::Power => {
                ("nvmlDeviceGetSamples/power", nvmlSamplingType_enum_NVML_TOTAL_POWER_SAMPLES)
            }
            SampleKind::Busy => {
                ("nvmlDeviceGetSamples/busy", nvmlSamplingType_enum_NVML_GPU_UTILIZATION_SAMPLES)
            }
        };
        let mut value_type = nvmlValueType_enum_NVML_VALUE_TYPE_COUNT;
        let empty = nvmlSample_t { timeStamp: 0, sampleValue: nvmlValue_t { ullVal: 0 } };
        let function = &self.lib.nvmlDeviceGetSamples;
        let raw = self.list(name, function, empty, |get, buffer, count| {
            // SAFETY: `buffer` has room for `*count` entries.
            unsafe { get(device.0, id, since_us, &mut value_type, count, buffer) }
        })?;
        let readable = raw.into_iter().filter(|sample| sample.timeStamp > since_us);
        Ok(readable
            .filter_map(|sample| {
                let value = number(value_type, sample.sampleValue)?;
                Some(Sample { us: sample.timeStamp, value })
            })
            .collect())
    }

    /// Processes with a context of that kind on a device or MIG instance.
    pub(super) fn processes(&self, device: Handle, kind: ProcessKind) -> Answer<Vec<Process>> {
        // Drivers before 510 know only the second version, whose entries are the same.
        let lib = &self.lib;
        let (name, function) = match kind {
            ProcessKind::Compute => (
                "nvmlDeviceGetComputeRunningProcesses",
                lib.nvmlDeviceGetComputeRunningProcesses_v3
                    .as_ref()
                    .or(lib.nvmlDeviceGetComputeRunningProcesses_v2.as_ref()),
            ),
            ProcessKind::Graphics => (
                "nvmlDeviceGetGraphicsRunningProcesses",
                lib.nvmlDeviceGetGraphicsRunningProcesses_v3
                    .as_ref()
                    .or(lib.nvmlDeviceGetGraphicsRunningProcesses_v2.as_ref()),
            ),
            ProcessKind::Mps => (
                "nvmlDeviceGetMPSComputeRunningProcesses",
                lib.nvmlDeviceGetMPSComputeRunningProcesses_v3
                    .as_ref()
                    .or(lib.nvmlDeviceGetMPSComputeRunningProcesses_v2.as_ref()),
            ),
        };
        let empty =
            nvmlProcessInfo_t { pid: 0, usedGpuMemory: 0, gpuInstanceId: 0, computeInstanceId: 0 };
        let raw = self.list(name, &function, empty, |get, buffer, count| {
            // SAFETY: `buffer` has room for `*count` entries.
            unsafe { get(device.0, count, buffer) }
        })?;
        // NVML_VALUE_NOT_AVAILABLE is all ones.
        let known = |bytes| (bytes != u64::MAX).then_some(bytes);
        let processes = raw.into_iter().filter(|process| process.pid != 0);
        Ok(processes
            .map(|process| Process { pid: process.pid, bytes: known(process.usedGpuMemory) })
            .collect())
    }

    /// Utilisation by process, newer than `since_us`; empty where nobody ran.
    pub(super) fn process_samples(
        &self,
        device: Handle,
        since_us: u64,
    ) -> Answer<Vec<ProcessSample>> {
        let empty = nvmlProcessUtilizationSample_t {
            pid: 0,
            timeStamp: 0,
            smUtil: 0,
            memUtil: 0,
            encUtil: 0,
            decUtil: 0,
        };
        let function = &self.lib.nvmlDeviceGetProcessUtilization;
        let name = "nvmlDeviceGetProcessUtilization";
        let raw = match self.list(name, function, empty, |get, buffer, count| {
            // SAFETY: `buffer` has room for `*count` entries.
            unsafe { get(device.0, buffer, count, since_us) }
        }) {
            Err(fault) if fault.remedy() == Remedy::Nothing => Vec::new(),
            answer => answer?,
        };
        // Drivers have been seen to leave entries unfilled, and to give percentages in the billions.
        let readable = raw.into_iter().filter(|sample| {
            sample.pid != 0 && sample.timeStamp > since_us && sample.smUtil <= 100
        });
        Ok(readable
            .map(|sample| ProcessSample {
                pid: sample.pid,
                us: sample.timeStamp,
                sm: sample.smUtil,
            })
            .collect())
    }

    /// A call that fills a list. The list may have grown since it was sized, so nothing is asked
    /// twice: the room is generous, and grows when the driver says that it did not do.
    fn list<F: Copy, E, T: Copy>(
        &self,
        name: &'static str,
        function: &Result<F, E>,
        empty: T,
        mut fill: impl FnMut(F, *mut T, &mut c_uint) -> nvmlReturn_t,
    ) -> Answer<Vec<T>> {
        let mut room = 128;
        loop {
            let mut buffer = vec![empty; room];
            let mut count = room as c_uint;
            let answer = self
                .call(name, function, |function| fill(function, buffer.as_mut_ptr(), &mut count));
            let claimed = count as usize;
            match answer {
                Ok(()) if claimed > room => {
                    let claim = format!("{name} filled {claimed} entries in room for {room}");
                    return Err(Fault::Nonsense(claim));
                }
                Ok(()) => {
                    buffer.truncate(claimed);
                    return Ok(buffer);
                }
                Err(Fault::Nvml(NvmlError::InsufficientSize(_))) => {
                    room = claimed.max(room) * 2;
                    if room > MOST_ENTRIES {
                        let claim = format!("{name} wants room for {claimed} entries");
                        return Err(Fault::Nonsense(claim));
                    }
                }
                Err(fault) => return Err(fault),
            }
        }
    }
}

fn valid(handle: nvmlDevice_t) -> Answer<Handle> {
    if handle.is_null() {
        return Err(Fault::Nonsense("a device handle that is null".into()));
    }
    Ok(Handle(handle))
}

fn middle(before: u64) -> u64 {
    before + (monotonic_ns().saturating_sub(before)) / 2
}

/// The text in a buffer that a C function filled, whether or not it ended it.
fn text(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> =
        buffer.iter().map(|&byte| byte as u8).take_while(|&byte| byte != 0).collect();
    let text = String::from_utf8_lossy(&bytes);
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The member of the union that the driver says it set, if it is a number that makes sense.
fn number(kind: nvmlValueType_t, value: nvmlValue_t) -> Option<f64> {
    // SAFETY: every member is a number without invalid bit patterns, and the union was zeroed
    // before the driver wrote to it, so no byte is uninitialised.
    let number = unsafe {
        match kind {
            nvmlValueType_enum_NVML_VALUE_TYPE_DOUBLE => value.dVal,
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT => f64::from(value.uiVal),
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG => value.ulVal as f64,
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_LONG_LONG => value.ullVal as f64,
            nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_LONG_LONG => value.sllVal as f64,
            nvmlValueType_enum_NVML_VALUE_TYPE_SIGNED_INT => f64::from(value.siVal),
            nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_SHORT => f64::from(value.usVal),
            _ => return None,
        }
    };
    (number.is_finite() && number >= 0.0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_without_an_end_stops_at_the_buffer() {
        assert_eq!(text(&[b'a' as c_char; 4]), "aaaa");
        assert_eq!(text(&[b'a' as c_char, 0, b'b' as c_char]), "a");
        assert_eq!(text(&[-1, 7, 0]), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_value_of_unknown_type_is_no_number() {
        assert_eq!(number(99, nvmlValue_t { ullVal: 1 }), None);
        assert_eq!(number(0, nvmlValue_t { dVal: f64::NAN }), None);
        assert_eq!(number(3, nvmlValue_t { ullVal: 7 }), Some(7.0));
    }

    #[test]
    fn a_file_that_is_no_library_is_a_sentence() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "not an object").unwrap();
        let error = Driver::open(Some(file.path()), SharedLatencies::default()).unwrap_err();
        assert!(error.message.contains("cannot load the NVML library"), "{}", error.message);
        assert!(!error.absent);
    }
}
