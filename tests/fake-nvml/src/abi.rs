//! The C functions, as `nvml.h` declares them.

#![allow(non_snake_case, reason = "the real library's names")]
#![allow(unreachable_pub, reason = "reached by name, through the dynamic loader")]
#![allow(unused_unsafe, reason = "not every function that the macro declares has a pointer")]

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint, c_ulonglong};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use nvml_wrapper_sys::bindings::*;

use crate::scenario::{Device, Process, Scenario, Utilisation};

const SUCCESS: nvmlReturn_t = nvmlReturn_enum_NVML_SUCCESS;
const NOT_SUPPORTED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED;
const NOT_FOUND: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_NOT_FOUND;
const INVALID_ARGUMENT: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT;
const INSUFFICIENT_SIZE: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE;
const UNINITIALIZED: nvmlReturn_t = nvmlReturn_enum_NVML_ERROR_UNINITIALIZED;

/// How many sampling periods the driver's buffers hold.
const BUFFERED: u64 = 120;

struct World {
    scenario: Scenario,
    start_ns: u64,
    /// CLOCK_REALTIME minus CLOCK_MONOTONIC.
    epoch_ns: u64,
}

static WORLD: OnceLock<World> = OnceLock::new();

fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one structure.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn scenario_path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FAKE_NVML_SCENARIO") {
        return Some(path.into());
    }
    // SAFETY: plain pointers, for which zero is a value; `dladdr` fills them.
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: any address may be asked about.
    if unsafe { libc::dladdr(&raw const WORLD as *const _, &mut info) } == 0 {
        return None;
    }
    // SAFETY: `dladdr` succeeded, so the name is a string that lives as long as the library.
    let library = unsafe { CStr::from_ptr(info.dli_fname) };
    let path = PathBuf::from(OsStr::from_bytes(library.to_bytes()));
    Some(path.parent()?.join("scenario.json"))
}

fn load() -> Option<World> {
    let text = std::fs::read_to_string(scenario_path()?).ok()?;
    let scenario: Scenario = match serde_json::from_str(&text) {
        Ok(scenario) => scenario,
        Err(error) => {
            eprintln!("fake-nvml: {error}");
            return None;
        }
    };
    let now_ns = clock_ns(libc::CLOCK_MONOTONIC);
    let epoch_ns = clock_ns(libc::CLOCK_REALTIME) - now_ns;
    Some(World { start_ns: scenario.start_ns.unwrap_or(now_ns), scenario, epoch_ns })
}

impl World {
    /// Seconds since the start.
    fn now_s(&self) -> f64 {
        (clock_ns(libc::CLOCK_MONOTONIC) as f64 - self.start_ns as f64) * 1e-9
    }

    fn epoch_us(&self, s: f64) -> u64 {
        ((self.epoch_ns + self.start_ns) as f64 / 1e3 + s * 1e6) as u64
    }

    fn seconds(&self, epoch_us: u64) -> f64 {
        (epoch_us as f64 - (self.epoch_ns + self.start_ns) as f64 / 1e3) / 1e6
    }

    /// The instants of the samples in a buffer that are newer than `since_us`.
    fn sample_times(&self, device: &Device, since_us: u64) -> Vec<(f64, u64)> {
        let period = device.sample_ms / 1e3;
        let newest = (self.now_s() / period).floor().max(0.0) as u64;
        let times = (newest.saturating_sub(BUFFERED)..=newest).map(|i| i as f64 * period);
        times.map(|s| (s, self.epoch_us(s))).filter(|(_, us)| *us > since_us).collect()
    }
}

/// A device or MIG instance, as its handle says: index plus one, and instance plus one above it.
#[derive(Clone, Copy)]
struct Target {
    device: usize,
    instance: Option<usize>,
}

fn handle(target: Target) -> nvmlDevice_t {
    let instance = target.instance.map_or(0, |instance| instance + 1);
    (((instance << 16) | (target.device + 1)) as *mut u8).cast()
}

/// A call under way: what every function does first.
struct Call {
    world: &'static World,
    s: f64,
    nonsense: bool,
    value: Option<u64>,
    ahead_us: u64,
}

impl Call {
    fn begin(name: &str, device: Option<usize>) -> Result<Self, nvmlReturn_t> {
        let world = WORLD.get().ok_or(UNINITIALIZED)?;
        let s = world.now_s();
        let mut faults = world.scenario.faults.iter().filter(|fault| {
            let named = fault.call == name || (fault.call.is_empty() && device.is_some());
            let meant = fault.device.is_none() || fault.device == device;
            named && meant && fault.from_s <= s && s < fault.to_s
        });
        let fault = faults.next();
        let delay_ms = world.scenario.delay_ms + fault.map_or(0.0, |fault| fault.delay_ms);
        if delay_ms > 0.0 {
            std::thread::sleep(Duration::from_secs_f64(delay_ms / 1e3));
        }
        let nonsense = fault.is_some_and(|fault| fault.nonsense);
        let ahead_us = fault.map_or(0, |fault| (fault.ahead_s * 1e6) as u64);
        match fault {
            Some(fault) if fault.code != SUCCESS && !nonsense => Err(fault.code),
            fault => {
                let value = fault.and_then(|fault| fault.value);
                Ok(Self { world, s: world.now_s(), nonsense, value, ahead_us })
            }
        }
    }

    /// A call about one device.
    fn on(
        name: &str,
        device: nvmlDevice_t,
    ) -> Result<(Self, &'static Device, Target), nvmlReturn_t> {
        let bits = device as usize;
        let index = (bits & 0xffff).checked_sub(1).ok_or(INVALID_ARGUMENT)?;
        let target = Target { device: index, instance: (bits >> 16).checked_sub(1) };
        let call = Self::begin(name, Some(index))?;
        let device = call.world.scenario.devices.get(index).ok_or(INVALID_ARGUMENT)?;
        Ok((call, device, target))
    }
}

fn code(result: Result<(), nvmlReturn_t>) -> nvmlReturn_t {
    result.err().unwrap_or(SUCCESS)
}

/// # Safety
///
/// `out` is null or may be written to.
unsafe fn put<T>(out: *mut T, value: T) -> Result<(), nvmlReturn_t> {
    if out.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { out.write(value) };
    Ok(())
}

/// # Safety
///
/// `buffer` has `length` bytes.
unsafe fn put_text(
    call: &Call,
    text: &str,
    buffer: *mut c_char,
    length: c_uint,
) -> Result<(), nvmlReturn_t> {
    let length = length as usize;
    // SAFETY: the caller's promise.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    if call.nonsense {
        buffer.fill(b'x');
        return Ok(());
    }
    if text.len() >= length {
        return Err(INSUFFICIENT_SIZE);
    }
    buffer[..text.len()].copy_from_slice(text.as_bytes());
    buffer[text.len()] = 0;
    Ok(())
}

/// Fills a list as the real functions do: too small a buffer is told how large it should be.
///
/// # Safety
///
/// `count` may be read and written; `buffer` is null or has room for `*count` entries.
unsafe fn put_list<T>(
    call: &Call,
    list: Vec<T>,
    buffer: *mut T,
    count: *mut c_uint,
) -> Result<(), nvmlReturn_t> {
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and the caller's promise.
    let count = unsafe { &mut *count };
    if call.nonsense {
        *count = 1 << 30;
        return Ok(());
    }
    let room = *count as usize;
    *count = list.len() as c_uint;
    if list.len() > room || (buffer.is_null() && !list.is_empty()) {
        return Err(INSUFFICIENT_SIZE);
    }
    for (i, entry) in list.into_iter().enumerate() {
        // SAFETY: `i` is below the room that the caller promised.
        unsafe { buffer.add(i).write(entry) };
    }
    Ok(())
}

/// An entry of the process lists of some 535 drivers: one more member than the header has.
#[repr(C)]
struct LargeProcessInfo {
    usual: nvmlProcessInfo_t,
    protected_memory: u64,
}

/// # Safety
///
/// `count` may be read and written; `infos` is null or has room for `*count` entries of the size
/// that the scenario gives them, which the header does not.
unsafe fn put_processes(
    call: &Call,
    device: &Device,
    list: Vec<nvmlProcessInfo_t>,
    infos: *mut nvmlProcessInfo_t,
    count: *mut c_uint,
) -> Result<(), nvmlReturn_t> {
    // SAFETY: the caller's promise.
    unsafe {
        if device.entry_bytes == size_of::<nvmlProcessInfo_t>() {
            return put_list(call, list, infos, count);
        }
        let large = |usual| LargeProcessInfo { usual, protected_memory: 0 };
        put_list(call, list.into_iter().map(large).collect(), infos.cast(), count)
    }
}

/// Writes to standard output in every way that a library has.
fn print(text: &str) {
    let line = format!("{text}\n");
    let write = |line: &str| {
        // SAFETY: the length is the text's.
        unsafe { libc::write(1, line.as_ptr().cast(), line.len()) }
    };
    write(&line);
    if let Ok(text) = std::ffi::CString::new(line.clone()) {
        // SAFETY: a format that takes a string, and a string.
        unsafe { libc::printf(c"%s".as_ptr(), text.as_ptr()) };
    }
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(20));
            write(&line);
        }
    });
}

/// Declares exported functions whose body is a `Result`. All of them trust their pointers as the
/// real ones do; what each pointer must be is in `nvml.h`.
macro_rules! exports {
    ($($name:ident($($argument:ident: $type:ty),*) $body:block)*) => {$(
        /// # Safety
        ///
        /// As `nvml.h` says.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> nvmlReturn_t {
            // SAFETY: only the pointers given are touched, in the way that the header allows.
            #[allow(clippy::redundant_closure_call, reason = "it is where `?` returns to")]
            code(unsafe { (|| -> Result<(), nvmlReturn_t> { $body })() })
        }
    )*};
}

exports! {
    nvmlInit_v2() {
        if WORLD.get().is_none() {
            let world = load().ok_or(nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED)?;
            let _ = WORLD.set(world);
            if let Some(text) = WORLD.get().and_then(|world| world.scenario.prints.as_deref()) {
                print(text);
            }
        }
        Call::begin("nvmlInit", None).map(drop)
    }

    nvmlShutdown() {
        let ms = WORLD.get().ok_or(UNINITIALIZED)?.scenario.shutdown_ms;
        std::thread::sleep(Duration::from_secs_f64(ms / 1e3));
        Ok(())
    }

    nvmlDeviceGetCount_v2(count: *mut c_uint) {
        let call = Call::begin("nvmlDeviceGetCount", None)?;
        put(count, if call.nonsense { u32::MAX } else { call.world.scenario.devices.len() as u32 })
    }

    nvmlDeviceGetHandleByIndex_v2(index: c_uint, device: *mut nvmlDevice_t) {
        let call = Call::begin("nvmlDeviceGetHandleByIndex", Some(index as usize))?;
        if index as usize >= call.world.scenario.devices.len() {
            return Err(INVALID_ARGUMENT);
        }
        put(device, handle(Target { device: index as usize, instance: None }))
    }

    nvmlDeviceGetHandleByUUID(uuid: *const c_char, device: *mut nvmlDevice_t) {
        let wanted = CStr::from_ptr(uuid);
        let devices = &WORLD.get().ok_or(UNINITIALIZED)?.scenario.devices;
        let index = devices.iter().position(|device| device.uuid.as_bytes() == wanted.to_bytes());
        let index = index.ok_or(NOT_FOUND)?;
        Call::begin("nvmlDeviceGetHandleByUUID", Some(index))?;
        put(device, handle(Target { device: index, instance: None }))
    }

    nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) {
        let (call, device, _) = Call::on("nvmlDeviceGetUUID", device)?;
        put_text(&call, &device.uuid, uuid, length)
    }

    nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) {
        let (call, device, _) = Call::on("nvmlDeviceGetName", device)?;
        put_text(&call, &device.name, name, length)
    }

    nvmlDeviceGetTotalEnergyConsumption(device: nvmlDevice_t, energy: *mut c_ulonglong) {
        let (call, device, _) = Call::on("nvmlDeviceGetTotalEnergyConsumption", device)?;
        let millijoules = device.counter_mj(call.s).ok_or(NOT_SUPPORTED)?;
        put(energy, if call.nonsense { 1 << 60 } else { call.value.unwrap_or(millijoules) })
    }

    nvmlDeviceGetPowerUsage(device: nvmlDevice_t, power: *mut c_uint) {
        let (call, device, _) = Call::on("nvmlDeviceGetPowerUsage", device)?;
        // The mean of the last second, as on Ampere and later.
        let watts = device.joules((call.s - 1.0).max(0.0), call.s) / call.s.clamp(1e-3, 1.0);
        let milliwatts = call.value.map_or((watts * 1e3) as c_uint, |value| value as c_uint);
        put(power, if call.nonsense { u32::MAX } else { milliwatts })
    }

    nvmlDeviceGetFieldValues(device: nvmlDevice_t, count: c_int, values: *mut nvmlFieldValue_t) {
        let (call, device, _) = Call::on("nvmlDeviceGetFieldValues", device)?;
        for field in std::slice::from_raw_parts_mut(values, count as usize) {
            let known = field.fieldId == field_id::NVML_FI_DEV_POWER_INSTANT && device.instant_power;
            field.nvmlReturn = if known { SUCCESS } else { NOT_SUPPORTED };
            field.valueType = if call.nonsense {
                77
            } else {
                nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT
            };
            let module = field.scopeId == NVML_POWER_SCOPE_MODULE;
            let cpu_watts = device.cpu_watts.filter(|_| module).unwrap_or(0.0);
            let milliwatts = ((device.watts(call.s) + cpu_watts) * 1e3) as c_uint;
            field.value.uiVal = call.value.map_or(milliwatts, |value| value as c_uint);
        }
        Ok(())
    }

    nvmlDeviceGetPowerManagementLimitConstraints(
        device: nvmlDevice_t,
        least: *mut c_uint,
        most: *mut c_uint
    ) {
        let (_, device, _) = Call::on("nvmlDeviceGetPowerManagementLimitConstraints", device)?;
        let limit = device.limit_watts.ok_or(NOT_SUPPORTED)?;
        put(least, 1000)?;
        put(most, (limit * 1e3) as c_uint)
    }

    nvmlDeviceGetSamples(
        device: nvmlDevice_t,
        kind: nvmlSamplingType_t,
        since_us: c_ulonglong,
        value_type: *mut nvmlValueType_t,
        count: *mut c_uint,
        samples: *mut nvmlSample_t
    ) {
        let (call, device, _) = Call::on("nvmlDeviceGetSamples", device)?;
        let power = kind == nvmlSamplingType_enum_NVML_TOTAL_POWER_SAMPLES;
        let busy = kind == nvmlSamplingType_enum_NVML_GPU_UTILIZATION_SAMPLES;
        let supported = if power { device.power_samples } else { busy && device.mig.is_empty() };
        if !supported {
            return Err(NOT_SUPPORTED);
        }
        put(value_type, nvmlValueType_enum_NVML_VALUE_TYPE_UNSIGNED_INT)?;
        let period = device.sample_ms / 1e3;
        let value = |s| if power { device.watts(s) * 1e3 } else { device.busy(s - period, s) };
        let list: Vec<nvmlSample_t> = call
            .world
            .sample_times(device, since_us)
            .into_iter()
            .map(|(s, us)| nvmlSample_t {
                timeStamp: us + call.ahead_us,
                sampleValue: nvmlValue_t { uiVal: value(s).round() as c_uint },
            })
            .collect();
        if list.is_empty() {
            return Err(NOT_FOUND);
        }
        put_list(&call, list, samples, count)
    }

    nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, rates: *mut nvmlUtilization_t) {
        let (call, device, _) = Call::on("nvmlDeviceGetUtilizationRates", device)?;
        if !device.mig.is_empty() {
            return Err(NOT_SUPPORTED);
        }
        let busy = device.busy((call.s - device.sample_ms / 1e3).max(0.0), call.s);
        put(rates, nvmlUtilization_t { gpu: busy.round() as c_uint, memory: 0 })
    }

    nvmlDeviceGetComputeRunningProcesses_v3(
        device: nvmlDevice_t,
        count: *mut c_uint,
        infos: *mut nvmlProcessInfo_t
    ) {
        let (call, device, target) = Call::on("nvmlDeviceGetComputeRunningProcesses", device)?;
        put_processes(&call, device, processes(device, target, call.s, false), infos, count)
    }

    nvmlDeviceGetGraphicsRunningProcesses_v3(
        device: nvmlDevice_t,
        count: *mut c_uint,
        infos: *mut nvmlProcessInfo_t
    ) {
        let (call, device, target) = Call::on("nvmlDeviceGetGraphicsRunningProcesses", device)?;
        put_processes(&call, device, processes(device, target, call.s, true), infos, count)
    }

    nvmlDeviceGetProcessUtilization(
        device: nvmlDevice_t,
        samples: *mut nvmlProcessUtilizationSample_t,
        count: *mut c_uint,
        since_us: c_ulonglong
    ) {
        let (call, device, _) = Call::on("nvmlDeviceGetProcessUtilization", device)?;
        if !device.mig.is_empty() || device.utilisation == Utilisation::None {
            return Err(NOT_SUPPORTED);
        }
        let list = utilisation(&call, device, since_us);
        if list.is_empty() && !call.nonsense {
            return Err(NOT_FOUND);
        }
        put_list(&call, list, samples, count)
    }

    nvmlDeviceGetMigMode(device: nvmlDevice_t, current: *mut c_uint, pending: *mut c_uint) {
        let (_, device, _) = Call::on("nvmlDeviceGetMigMode", device)?;
        let mode = u32::from(!device.mig.is_empty());
        put(current, mode)?;
        put(pending, mode)
    }

    nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) {
        let (call, ..) = Call::on("nvmlDeviceGetMaxMigDeviceCount", device)?;
        put(count, if call.nonsense { u32::MAX } else { 7 })
    }

    nvmlDeviceGetMigDeviceHandleByIndex(
        device: nvmlDevice_t,
        index: c_uint,
        instance: *mut nvmlDevice_t
    ) {
        let (_, device, target) = Call::on("nvmlDeviceGetMigDeviceHandleByIndex", device)?;
        if index as usize >= device.mig.len() {
            return Err(NOT_FOUND);
        }
        put(instance, handle(Target { instance: Some(index as usize), ..target }))
    }

    nvmlDeviceGetAttributes_v2(device: nvmlDevice_t, attributes: *mut nvmlDeviceAttributes_t) {
        let (call, device, target) = Call::on("nvmlDeviceGetAttributes", device)?;
        let slices = target.instance.and_then(|instance| device.mig.get(instance));
        let slices = *slices.ok_or(NOT_SUPPORTED)?;
        put(attributes, nvmlDeviceAttributes_t {
            multiprocessorCount: slices * 14,
            sharedCopyEngineCount: slices,
            sharedDecoderCount: 0,
            sharedEncoderCount: 0,
            sharedJpegCount: 0,
            sharedOfaCount: 0,
            gpuInstanceSliceCount: slices,
            computeInstanceSliceCount: if call.nonsense { u32::MAX } else { slices },
            memorySizeMB: u64::from(slices) * 9728,
        })
    }

    nvmlDeviceGetGpuInstanceId(device: nvmlDevice_t, id: *mut c_uint) {
        let (_, _, target) = Call::on("nvmlDeviceGetGpuInstanceId", device)?;
        put(id, target.instance.ok_or(NOT_SUPPORTED)? as c_uint)
    }

    nvmlDeviceGetComputeInstanceId(device: nvmlDevice_t, id: *mut c_uint) {
        Call::on("nvmlDeviceGetComputeInstanceId", device)?;
        put(id, 0)
    }

    nvmlGpmSampleAlloc(sample: *mut nvmlGpmSample_t) {
        put(sample, Box::into_raw(Box::<GpmSample>::default()).cast())
    }

    nvmlGpmSampleFree(sample: nvmlGpmSample_t) {
        drop(Box::from_raw(sample.cast::<GpmSample>()));
        Ok(())
    }

    nvmlGpmMigSampleGet(device: nvmlDevice_t, instance: c_uint, sample: nvmlGpmSample_t) {
        let (call, device, target) = Call::on("nvmlGpmMigSampleGet", device)?;
        if !device.gpm {
            return Err(NOT_SUPPORTED);
        }
        let instance = instance as usize;
        put(sample.cast(), GpmSample { device: target.device, instance, s: call.s })
    }

    nvmlGpmMetricsGet(get: *mut nvmlGpmMetricsGet_t) {
        let get = &mut *get;
        let (from, to) = (&*get.sample1.cast::<GpmSample>(), &*get.sample2.cast::<GpmSample>());
        let call = Call::begin("nvmlGpmMetricsGet", Some(from.device))?;
        let device = &call.world.scenario.devices[from.device];
        for metric in &mut get.metrics[..get.numMetrics as usize] {
            let known = metric.metricId == nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_UTIL;
            metric.nvmlReturn = if known { SUCCESS } else { NOT_SUPPORTED };
            metric.value = device.instance_sm(from.instance, from.s, to.s);
        }
        Ok(())
    }
}

/// What a `nvmlGpmSample_t` points at.
#[derive(Default)]
struct GpmSample {
    device: usize,
    instance: usize,
    s: f64,
}

fn processes(device: &Device, target: Target, s: f64, graphics: bool) -> Vec<nvmlProcessInfo_t> {
    let there = device.processes.iter().filter(|process: &&Process| {
        process.graphics == graphics
            && process.from_s <= s
            && s < process.to_s
            && target.instance.is_none_or(|instance| process.instance == instance)
    });
    there
        .map(|process| nvmlProcessInfo_t {
            pid: process.pid,
            usedGpuMemory: process.memory_mib.map_or(u64::MAX, |mib| mib << 20),
            gpuInstanceId: target.instance.map_or(u32::MAX, |instance| instance as u32),
            computeInstanceId: u32::MAX,
        })
        .collect()
}

fn utilisation(call: &Call, device: &Device, since_us: u64) -> Vec<nvmlProcessUtilizationSample_t> {
    let period = device.sample_ms / 1e3;
    let stretches: Vec<(f64, f64, u64)> = match device.utilisation {
        Utilisation::Samples => {
            let times = call.world.sample_times(device, since_us).into_iter();
            times.map(|(s, us)| (s - period, s, us)).collect()
        }
        _ => {
            let since = call.world.seconds(since_us).max(call.s - 10.0);
            vec![(since, call.s, call.world.epoch_us(call.s))]
        }
    };
    let mut list = Vec::new();
    for (from_s, to_s, us) in stretches {
        for process in &device.processes {
            let sm = device.sm_of(process, from_s, to_s).round() as c_uint;
            if sm > 0 {
                list.push(nvmlProcessUtilizationSample_t {
                    pid: process.pid,
                    timeStamp: us + call.ahead_us,
                    smUtil: sm,
                    memUtil: 0,
                    encUtil: 0,
                    decUtil: 0,
                });
            }
        }
    }
    list
}
