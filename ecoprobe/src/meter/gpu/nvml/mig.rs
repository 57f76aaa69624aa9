//! The calls about MIG: instances, their size, and their performance counters.

use std::ffi::c_uint;
use std::fmt;

use nvml_wrapper_sys::bindings::*;

use super::code::fault;
use super::{Nvml, raw, valid};
use crate::meter::gpu::driver::{Answer, Handle};
use crate::meter::gpu::fault::{Fault, Remedy};

/// Seven on today's hardware.
const MOST_MIG_INSTANCES: u32 = 64;

/// Performance counters of a MIG instance at one instant, in the driver's keeping.
pub(super) struct Snapshot {
    /// GPU instance and compute instance: which one it is of.
    pub(super) place: (u32, u32),
    sample: nvmlGpmSample_t,
    free: Option<unsafe extern "C" fn(nvmlGpmSample_t) -> nvmlReturn_t>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Snapshot({:p})", self.sample)
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if let Some(free) = self.free {
            // SAFETY: allocated by the library that `free` is from, which is never unloaded.
            unsafe { free(self.sample) };
        }
    }
}

impl Nvml {
    pub(super) fn mig_enabled(&self, device: Handle) -> Answer<bool> {
        let (mut current, mut pending): (c_uint, c_uint) = (0, 0);
        // SAFETY: writes two integers.
        self.call("nvmlDeviceGetMigMode", &self.lib.nvmlDeviceGetMigMode, |get| unsafe {
            get(raw(device), &mut current, &mut pending)
        })?;
        Ok(current == NVML_DEVICE_MIG_ENABLE)
    }

    /// The instances that a MIG device is cut into.
    pub(super) fn mig_instances(&self, device: Handle) -> Answer<Vec<Handle>> {
        let mut most: c_uint = 0;
        let function = &self.lib.nvmlDeviceGetMaxMigDeviceCount;
        // SAFETY: writes one integer.
        self.call("nvmlDeviceGetMaxMigDeviceCount", function, |get| unsafe {
            get(raw(device), &mut most)
        })?;
        if most > MOST_MIG_INSTANCES {
            return Err(Fault::Nonsense(format!("it claims {most} MIG instances")));
        }
        let mut instances = Vec::new();
        for index in 0..most {
            let mut handle: nvmlDevice_t = std::ptr::null_mut();
            let function = &self.lib.nvmlDeviceGetMigDeviceHandleByIndex;
            // SAFETY: writes one pointer.
            match self.call("nvmlDeviceGetMigDeviceHandleByIndex", function, |get| unsafe {
                get(raw(device), index, &mut handle)
            }) {
                Ok(()) => instances.push(valid(handle)?),
                Err(fault) if fault.remedy() == Remedy::Nothing => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(instances)
    }

    /// How many compute slices of its parent a MIG instance has.
    pub(super) fn mig_slices(&self, instance: Handle) -> Answer<u32> {
        // SAFETY: plain integers, for which zero is a value.
        let mut attributes: nvmlDeviceAttributes_t = unsafe { std::mem::zeroed() };
        let function = &self.lib.nvmlDeviceGetAttributes_v2;
        // SAFETY: writes one structure of that type.
        self.call("nvmlDeviceGetAttributes_v2", function, |get| unsafe {
            get(raw(instance), &mut attributes)
        })?;
        match attributes.computeInstanceSliceCount {
            slices @ 1..=MOST_MIG_INSTANCES => Ok(slices),
            other => Err(Fault::Nonsense(format!("a MIG instance of {other} slices"))),
        }
    }

    /// Reads the performance counters of a MIG instance; Hopper and later.
    pub(super) fn snapshot(&self, device: Handle, instance: Handle) -> Answer<Snapshot> {
        let mut place: (c_uint, c_uint) = (0, 0);
        let function = &self.lib.nvmlDeviceGetGpuInstanceId;
        // SAFETY: writes one integer.
        self.call("nvmlDeviceGetGpuInstanceId", function, |get| unsafe {
            get(raw(instance), &mut place.0)
        })?;
        let function = &self.lib.nvmlDeviceGetComputeInstanceId;
        // SAFETY: writes one integer.
        self.call("nvmlDeviceGetComputeInstanceId", function, |get| unsafe {
            get(raw(instance), &mut place.1)
        })?;
        let mut sample: nvmlGpmSample_t = std::ptr::null_mut();
        let function = &self.lib.nvmlGpmSampleAlloc;
        // SAFETY: writes one pointer.
        self.call("nvmlGpmSampleAlloc", function, |alloc| unsafe { alloc(&mut sample) })?;
        if sample.is_null() {
            return Err(Fault::Nonsense("a sample that is null".into()));
        }
        let free = self.lib.nvmlGpmSampleFree.as_ref().ok().copied();
        let snapshot = Snapshot { place, sample, free };
        let function = &self.lib.nvmlGpmMigSampleGet;
        // SAFETY: the sample was allocated by the same library, and is not freed yet.
        self.call("nvmlGpmMigSampleGet", function, |get| unsafe {
            get(raw(device), place.0, snapshot.sample)
        })?;
        Ok(snapshot)
    }

    /// Mean share of an instance's multiprocessors that was busy between two snapshots, 0 to 1.
    pub(super) fn busy_between(&self, from: &Snapshot, to: &Snapshot) -> Answer<f64> {
        // SAFETY: integers, numbers and pointers that the driver sets, for which zero is a value.
        let mut get: nvmlGpmMetricsGet_t = unsafe { std::mem::zeroed() };
        get.version = NVML_GPM_METRICS_GET_VERSION;
        get.numMetrics = 1;
        get.sample1 = from.sample;
        get.sample2 = to.sample;
        let wanted = &mut get.metrics[0];
        wanted.metricId = nvmlGpmMetricId_t_NVML_GPM_METRIC_SM_UTIL;
        let function = &self.lib.nvmlGpmMetricsGet;
        // SAFETY: both samples are allocated, and one metric is announced where there is room for
        // many.
        self.call("nvmlGpmMetricsGet", function, |compute| unsafe { compute(&mut get) })?;
        let metric = get.metrics[0];
        match metric.nvmlReturn {
            nvmlReturn_enum_NVML_SUCCESS if (0.0..=100.0).contains(&metric.value) => {
                Ok(metric.value / 100.0)
            }
            nvmlReturn_enum_NVML_SUCCESS => {
                Err(Fault::Nonsense(format!("an instance busy for {} %", metric.value)))
            }
            code => Err(fault(code)),
        }
    }
}
