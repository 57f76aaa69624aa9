//! NVML as a [`Driver`]: every call into the library, and all `unsafe` of the GPU meter.
//!
//! The calls go through the function table of `nvml-wrapper-sys`. `nvml-wrapper` itself is not used:
//! its methods trust the library. They allocate as many entries as it claims to have, and search the
//! strings it fills for a NUL past the end of the buffer. A library named on the command line
//! deserves no such trust.

#![allow(non_upper_case_globals, reason = "bindgen's names, in patterns")]

mod code;
mod library;
mod mig;
mod processes;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{c_char, c_uint};
use std::fmt;
use std::path::Path;

use nvml_wrapper_sys::bindings::*;

use self::code::fault;
pub(super) use self::library::Library;
use self::mig::Snapshot;
use super::calls::Calls;
use super::driver::{
    Answer, Driver, DriverSample, Handle, InstanceUse, PowerScope, Process, ProcessKind,
    ProcessSample, SampleKind, Timed,
};
use super::fault::{Fault, Kind, OpenError, Remedy};
use crate::base::monotonic_ns;

/// The most entries that a list of the driver may have. The largest real ones are the sample
/// buffers, with a few hundred.
const MOST_ENTRIES: usize = 1 << 16;
const MOST_DEVICES: u32 = 1024;

/// How many entries a list has room for at first. It may grow between two calls, so it is not asked
/// for its size.
const USUAL_ROOM: usize = 128;

/// By device and place on it.
type Snapshots = BTreeMap<(Handle, (u32, u32)), Snapshot>;

/// An initialised NVML library.
pub(super) struct Nvml {
    lib: Library,
    calls: Calls,
    /// The last performance counters of each instance of a partitioned device.
    snapshots: RefCell<Snapshots>,
}

impl fmt::Debug for Nvml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nvml").field("lib", &self.lib).finish_non_exhaustive()
    }
}

impl Drop for Nvml {
    fn drop(&mut self) {
        // What the library keeps for us, before the library itself.
        self.snapshots.borrow_mut().clear();
        if let Ok(shutdown) = self.lib.nvmlShutdown.as_ref() {
            // SAFETY: initialised in `open`; no call follows, `self` is going away.
            unsafe { shutdown() };
        }
    }
}

impl Nvml {
    /// Loads and initialises NVML: tens of milliseconds, seconds where the driver has to wake the
    /// devices up first.
    pub(super) fn open(path: Option<&Path>, calls: Calls) -> Result<Self, OpenError> {
        let lib = Library::load(path)?;
        let shown = lib.shown().to_owned();
        let driver = Self { lib, calls, snapshots: RefCell::default() };
        driver.initialise().map_err(|fault| {
            let absent = fault.kind() == Some(Kind::NotLoaded);
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

    /// Calls a function of the table, if it is there, and times it.
    fn call<F: Copy, E>(
        &self,
        name: &'static str,
        function: &Result<F, E>,
        invoke: impl FnOnce(F) -> nvmlReturn_t,
    ) -> Answer<()> {
        match self.code(name, function, invoke)? {
            nvmlReturn_enum_NVML_SUCCESS => Ok(()),
            code => Err(fault(code)),
        }
    }

    fn code<F: Copy, E>(
        &self,
        name: &'static str,
        function: &Result<F, E>,
        invoke: impl FnOnce(F) -> nvmlReturn_t,
    ) -> Answer<nvmlReturn_t> {
        let Ok(function) = function else { return Err(Fault::Missing) };
        Ok(self.calls.time(name, || invoke(*function)))
    }

    /// A call that fills a list, with room for `room` entries and then for more, until the driver is
    /// content. Returns how many it filled, which is no more than there was room for.
    fn fill<F: Copy, E>(
        &self,
        name: &'static str,
        function: &Result<F, E>,
        mut fill: impl FnMut(F, usize, &mut c_uint) -> nvmlReturn_t,
    ) -> Answer<usize> {
        let mut room = USUAL_ROOM;
        loop {
            let mut count = room as c_uint;
            let code = self.code(name, function, |function| fill(function, room, &mut count))?;
            let claimed = count as usize;
            match code {
                nvmlReturn_enum_NVML_SUCCESS if claimed > room => {
                    let claim = format!("{name} filled {claimed} entries in room for {room}");
                    return Err(Fault::Nonsense(claim));
                }
                nvmlReturn_enum_NVML_SUCCESS => return Ok(claimed),
                nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE => {
                    room = claimed.max(room).saturating_mul(2);
                    if room > MOST_ENTRIES {
                        let claim = format!("{name} wants room for {claimed} entries");
                        return Err(Fault::Nonsense(claim));
                    }
                }
                code => return Err(fault(code)),
            }
        }
    }

    fn list<F: Copy, E, T: Copy>(
        &self,
        name: &'static str,
        function: &Result<F, E>,
        empty: T,
        mut fill: impl FnMut(F, *mut T, &mut c_uint) -> nvmlReturn_t,
    ) -> Answer<Vec<T>> {
        let mut buffer = Vec::new();
        let count = self.fill(name, function, |function, room, count| {
            buffer = vec![empty; room];
            fill(function, buffer.as_mut_ptr(), count)
        })?;
        buffer.truncate(count);
        Ok(buffer)
    }

    /// One field, if it is a number. Milliwatts, for those of power.
    fn field(&self, device: Handle, id: u32, scope: u32) -> Answer<Timed<f64>> {
        // SAFETY: plain integers and a union of numbers, for which zero is a value.
        let mut field: nvmlFieldValue_t = unsafe { std::mem::zeroed() };
        field.fieldId = id;
        field.scopeId = scope;
        let before = monotonic_ns();
        let function = &self.lib.nvmlDeviceGetFieldValues;
        // SAFETY: one entry passed, and one announced.
        self.call("nvmlDeviceGetFieldValues", function, |get| unsafe {
            get(raw(device), 1, &mut field)
        })?;
        let ns = middle(before);
        if field.nvmlReturn != nvmlReturn_enum_NVML_SUCCESS {
            return Err(fault(field.nvmlReturn));
        }
        let value = number(field.valueType, field.value)
            .ok_or_else(|| Fault::Nonsense(format!("field {id} is of no known type")))?;
        Ok(Timed { ns, value })
    }
}

impl Driver for Nvml {
    fn lacks(&self) -> Vec<&'static str> {
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

    fn reconnect(&self) -> Answer<()> {
        self.initialise()
    }

    fn device_count(&self) -> Answer<u32> {
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

    fn device(&self, index: u32) -> Answer<Handle> {
        let mut handle: nvmlDevice_t = std::ptr::null_mut();
        let function = &self.lib.nvmlDeviceGetHandleByIndex_v2;
        // SAFETY: writes one pointer.
        self.call("nvmlDeviceGetHandleByIndex_v2", function, |get| unsafe {
            get(index, &mut handle)
        })?;
        valid(handle)
    }

    fn device_by_uuid(&self, uuid: &str) -> Answer<Handle> {
        let name = std::ffi::CString::new(uuid)
            .map_err(|_| Fault::Nonsense("a UUID that holds a NUL".into()))?;
        let mut handle: nvmlDevice_t = std::ptr::null_mut();
        let function = &self.lib.nvmlDeviceGetHandleByUUID;
        // SAFETY: `name` ends in NUL and outlives the call, which writes one pointer.
        self.call("nvmlDeviceGetHandleByUUID", function, |get| unsafe {
            get(name.as_ptr(), &mut handle)
        })?;
        valid(handle)
    }

    fn uuid(&self, device: Handle) -> Answer<String> {
        let mut buffer = [0; NVML_DEVICE_UUID_V2_BUFFER_SIZE as usize];
        // SAFETY: the length passed is the buffer's.
        self.call("nvmlDeviceGetUUID", &self.lib.nvmlDeviceGetUUID, |get| unsafe {
            get(raw(device), buffer.as_mut_ptr(), buffer.len() as c_uint)
        })?;
        match text(&buffer) {
            uuid if uuid.is_empty() => Err(Fault::Nonsense("a device without a UUID".into())),
            uuid => Ok(uuid),
        }
    }

    fn name(&self, device: Handle) -> Answer<String> {
        let mut buffer = [0; NVML_DEVICE_NAME_V2_BUFFER_SIZE as usize];
        // SAFETY: the length passed is the buffer's.
        self.call("nvmlDeviceGetName", &self.lib.nvmlDeviceGetName, |get| unsafe {
            get(raw(device), buffer.as_mut_ptr(), buffer.len() as c_uint)
        })?;
        Ok(text(&buffer))
    }

    /// Since the driver was loaded. Volta and later.
    fn energy(&self, device: Handle) -> Answer<Timed<u64>> {
        let mut millijoules = 0;
        let function = &self.lib.nvmlDeviceGetTotalEnergyConsumption;
        let before = monotonic_ns();
        // SAFETY: writes one integer.
        self.call("nvmlDeviceGetTotalEnergyConsumption", function, |get| unsafe {
            get(raw(device), &mut millijoules)
        })?;
        // NVML_VALUE_NOT_AVAILABLE, which is no energy.
        if millijoules == u64::MAX {
            return Err(Fault::Nonsense("an energy of all ones".into()));
        }
        Ok(Timed { ns: middle(before), value: millijoules })
    }

    fn instant_power(&self, device: Handle, scope: PowerScope) -> Answer<Timed<f64>> {
        let scope = match scope {
            PowerScope::Gpu => NVML_POWER_SCOPE_GPU,
            PowerScope::Module => NVML_POWER_SCOPE_MODULE,
        };
        self.field(device, field_id::NVML_FI_DEV_POWER_INSTANT, scope)
    }

    /// A mean over a second on most parts since Ampere; earlier, of the moment.
    fn average_power(&self, device: Handle) -> Answer<Timed<f64>> {
        let mut milliwatts: c_uint = 0;
        let before = monotonic_ns();
        // SAFETY: writes one integer.
        self.call("nvmlDeviceGetPowerUsage", &self.lib.nvmlDeviceGetPowerUsage, |get| unsafe {
            get(raw(device), &mut milliwatts)
        })?;
        Ok(Timed { ns: middle(before), value: f64::from(milliwatts) })
    }

    fn most_power(&self, device: Handle) -> Answer<f64> {
        let (mut least, mut most): (c_uint, c_uint) = (0, 0);
        let function = &self.lib.nvmlDeviceGetPowerManagementLimitConstraints;
        // SAFETY: writes two integers.
        self.call("nvmlDeviceGetPowerManagementLimitConstraints", function, |get| unsafe {
            get(raw(device), &mut least, &mut most)
        })?;
        Ok(f64::from(most) * 1e-3)
    }

    /// Of the last sampling period: a sixth of a second to a second.
    fn busy(&self, device: Handle) -> Answer<u32> {
        let mut rates = nvmlUtilization_t { gpu: 0, memory: 0 };
        let function = &self.lib.nvmlDeviceGetUtilizationRates;
        // SAFETY: writes one structure of that type.
        self.call("nvmlDeviceGetUtilizationRates", function, |get| unsafe {
            get(raw(device), &mut rates)
        })?;
        Ok(rates.gpu.min(100))
    }

    fn samples(
        &self,
        device: Handle,
        kind: SampleKind,
        since_us: u64,
    ) -> Answer<Vec<DriverSample>> {
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
        let list = self.list(name, function, empty, |get, buffer, count| {
            // SAFETY: `buffer` has room for `*count` entries.
            unsafe { get(raw(device), id, since_us, &mut value_type, count, buffer) }
        })?;
        let readable = list.into_iter().filter(|sample| sample.timeStamp > since_us);
        Ok(readable
            .filter_map(|sample| {
                let value = number(value_type, sample.sampleValue)?;
                Some(DriverSample { us: sample.timeStamp, value })
            })
            .collect())
    }

    fn processes(&self, device: Handle, kind: ProcessKind) -> Answer<Vec<Process>> {
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
        let mut buffer = processes::Buffer::new(0);
        let count = self.fill(name, &function, |get, room, count| {
            buffer = processes::Buffer::new(room);
            // SAFETY: `buffer` has room for `*count` entries.
            unsafe { get(raw(device), count, buffer.as_mut_ptr()) }
        })?;
        buffer.read(count).ok_or_else(|| {
            Fault::Nonsense(format!("{name} gives a list of {count} in which no pid can be right"))
        })
    }

    fn process_samples(&self, device: Handle, since_us: u64) -> Answer<Vec<ProcessSample>> {
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
        let list = match self.list(name, function, empty, |get, buffer, count| {
            // SAFETY: `buffer` has room for `*count` entries.
            unsafe { get(raw(device), buffer, count, since_us) }
        }) {
            Err(fault) if fault.remedy() == Remedy::Nothing => Vec::new(),
            answer => answer?,
        };
        // Drivers have been seen to leave entries unfilled, and to give percentages in the billions.
        let readable = list.into_iter().filter(|sample| {
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

    fn is_partitioned(&self, device: Handle) -> Answer<bool> {
        self.mig_enabled(device)
    }

    fn instances(&self, device: Handle) -> Answer<Vec<Handle>> {
        self.mig_instances(device)
    }

    fn slices(&self, instance: Handle) -> Answer<u32> {
        self.mig_slices(instance)
    }

    fn instance_use(&self, device: Handle, instance: Handle) -> Answer<InstanceUse> {
        let snapshot = self.snapshot(device, instance)?;
        let place = snapshot.place;
        let before = self.snapshots.borrow_mut().remove(&(device, place));
        let busy = before.map(|before| self.busy_between(&before, &snapshot)).transpose();
        self.snapshots.borrow_mut().insert((device, place), snapshot);
        Ok(InstanceUse { place, busy: busy? })
    }
}

fn raw(handle: Handle) -> nvmlDevice_t {
    std::ptr::with_exposed_provenance_mut(handle.0)
}

fn valid(handle: nvmlDevice_t) -> Answer<Handle> {
    if handle.is_null() {
        return Err(Fault::Nonsense("a device handle that is null".into()));
    }
    Ok(Handle(handle.expose_provenance()))
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
        let error = Nvml::open(Some(file.path()), Calls::default()).unwrap_err();
        assert!(error.message.contains("cannot load the NVML library"), "{}", error.message);
        assert!(!error.absent);
    }
}
