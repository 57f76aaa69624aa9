//! Where the figures of a run come from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    pub name: String,
    pub kernel: String,
    pub cpus: usize,
    pub packages: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sources {
    pub cpu_time: CpuTimeSource,
    pub cpu_energy: CpuEnergySource,
    pub gpu_energy: GpuEnergySource,
    /// An estimate's, in recordings of the first format; what is learned in a run is in its report.
    pub static_power: StaticPowerSource,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpuTimeSource {
    /// Always "ebpf".
    pub kind: String,
    /// "tp_btf/sched_switch" or "raw_tp/sched_switch".
    pub hook: String,
    /// "v2", "v1" or "hybrid": what is mounted on this host.
    pub hierarchy: String,
}

impl CpuTimeSource {
    pub fn ebpf(hook: &str, hierarchy: &str) -> Self {
        let [kind, hook, hierarchy] = ["ebpf", hook, hierarchy].map(str::to_owned);
        Self { kind, hook, hierarchy }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CpuEnergyKind {
    /// RAPL through the `power` PMU.
    Perf,
    /// RAPL through `/sys/class/powercap`.
    Powercap,
    /// From the CPU model's figures and utilisation: not a measurement.
    Estimate,
    #[default]
    None,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuEnergySource {
    pub kind: CpuEnergyKind,
    pub domains: Vec<String>,
    /// For an estimate: which figures it rests on, in words. Absent for a measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basis: Option<String>,
}

/// What an estimate of the CPU's energy rests on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuFacts {
    /// "GenuineIntel", "AuthenticAMD"; on Arm the implementer, "0x41".
    pub vendor: String,
    pub family: Option<u32>,
    pub model: Option<u32>,
    pub stepping: Option<u32>,
    /// "AMD EPYC 7763 64-Core Processor"; empty where the processor does not say.
    pub name: String,
    /// Running under a hypervisor that says so.
    pub virtual_machine: bool,
    /// CPUs that are online, by package, in the order of `Header::packages`.
    pub online_cpus: Vec<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GpuEnergySource {
    pub kind: GpuEnergyKind,
    pub devices: Vec<GpuDevice>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuEnergyKind {
    Nvml,
    #[default]
    None,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuDevice {
    pub uuid: String,
    pub name: String,
    pub index: u32,
    pub method: GpuReadMethod,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuReadMethod {
    /// The driver's energy counter.
    Counter,
    /// Power readings, integrated.
    Power,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StaticPowerSource {
    pub kind: StaticPowerKind,
    /// By domain; `null` where it could not be told.
    pub watts: BTreeMap<String, Option<f64>>,
    /// Standard error of each calibrated figure, watts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub stderr_watts: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StaticPowerKind {
    /// The user knew it.
    Given,
    /// Learned from how power follows load in this run.
    Calibrated,
    /// The idle figure of the model that the estimate rests on.
    Estimate,
    /// Could not be told: the load did not vary enough.
    #[default]
    None,
}
