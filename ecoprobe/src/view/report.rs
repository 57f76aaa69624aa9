//! The report: what the outside sees. Field names and their meaning are promises that programs rely on; `null` means "could
//! not be had" and is never written as 0.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::base::own::Own;
use crate::event::sources::{self, CpuEnergyKind, GpuEnergyKind, GpuReadMethod, StaticPowerKind};
use crate::event::{GpuMethod, WorkloadKind};

pub(crate) const REPORT_SCHEMA: &str = "ecoprobe.report/1";

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub host: Host,
    pub window: RunSpan,
    pub sources: Sources,
    pub node: Node,
    pub workloads: Vec<WorkloadReport>,
    /// The power model of each domain that has learned one.
    pub model: Vec<ModelReport>,
    #[serde(rename = "self")]
    pub own: Own,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Host {
    pub name: String,
    pub kernel: String,
    pub cpus: usize,
    pub packages: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSpan {
    /// RFC 3339.
    pub start: String,
    pub seconds: f64,
    pub samples: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sources {
    pub cpu_time: CpuTimeSource,
    pub cpu_energy: CpuEnergySource,
    pub gpu_energy: GpuEnergySource,
    pub static_power: StaticPowerSource,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CpuTimeSource {
    /// Always "ebpf".
    pub kind: String,
    /// "tp_btf/sched_switch" or "raw_tp/sched_switch".
    pub hook: String,
    /// "v2", "v1" or "hybrid": what is mounted on this host.
    pub hierarchy: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CpuEnergySource {
    pub kind: CpuEnergyKind,
    pub domains: Vec<String>,
    /// For an estimate: which figures it rests on, in words. Absent for a measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basis: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuEnergySource {
    pub kind: GpuEnergyKind,
    pub devices: Vec<GpuDevice>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GpuDevice {
    pub uuid: String,
    pub name: String,
    pub index: u32,
    pub method: GpuReadMethod,
}

/// `kind` is that of the packages (of the GPUs, if there are no packages): the least sure of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct StaticPowerSource {
    pub kind: StaticPowerKind,
    /// By domain; `null` where it could not be told.
    pub watts: BTreeMap<String, Option<f64>>,
    /// Standard error of each calibrated figure, watts.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stderr_watts: BTreeMap<String, f64>,
}

impl From<&sources::Host> for Host {
    fn from(host: &sources::Host) -> Self {
        let sources::Host { name, kernel, cpus, packages } = host.clone();
        Self { name, kernel, cpus, packages }
    }
}

impl Sources {
    /// With what an estimate rests on, and what has become known of the static power.
    pub(super) fn new(
        sources: &sources::Sources,
        estimate: Option<&str>,
        static_power: StaticPowerSource,
    ) -> Self {
        let sources::Sources { cpu_time, cpu_energy, gpu_energy, .. } = sources.clone();
        let sources::CpuTimeSource { kind, hook, hierarchy } = cpu_time;
        let cpu_time = CpuTimeSource { kind, hook, hierarchy };
        let sources::CpuEnergySource { kind, domains, basis } = cpu_energy;
        let basis = estimate.map(str::to_owned).or(basis);
        let cpu_energy = CpuEnergySource { kind, domains, basis };
        let devices = gpu_energy.devices.into_iter().map(|device| {
            let sources::GpuDevice { uuid, name, index, method } = device;
            GpuDevice { uuid, name, index, method }
        });
        let gpu_energy = GpuEnergySource { kind: gpu_energy.kind, devices: devices.collect() };
        Self { cpu_time, cpu_energy, gpu_energy, static_power }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    pub cpu: ComponentBooks,
    pub dram: ComponentBooks,
    pub gpu: ComponentBooks,
}

impl Node {
    /// One figure of the books, over all components; `None` where no component has it.
    pub fn sum(&self, figure: impl Fn(&ComponentBooks) -> Option<f64>) -> Option<f64> {
        [&self.cpu, &self.dram, &self.gpu].into_iter().filter_map(figure).reduce(|a, b| a + b)
    }
}

/// Closed to one part in 10⁹: measured = idle + workloads + other + unattributed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ComponentBooks {
    pub measured_j: Option<f64>,
    pub idle_j: Option<f64>,
    pub workloads_j: Option<f64>,
    pub other_j: Option<f64>,
    pub unattributed_j: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkloadReport {
    pub name: String,
    pub cgroup: String,
    pub cgroup_id: u64,
    pub kind: WorkloadKind,
    pub labels: BTreeMap<String, String>,
    pub cpu_seconds: f64,
    /// Seconds that it kept a GPU busy, all devices together.
    pub gpu_seconds: Option<f64>,
    pub energy_j: WorkloadEnergy,
    pub stderr_j: WorkloadStderr,
    /// Dynamic CPU energy by CPU time on packages that are measured: watts while one CPU is busy.
    pub watts_per_cpu: Option<Figure>,
    /// How its CPU energy was told from that of others.
    pub method: Option<Method>,
    /// What the figures leave out, and why.
    pub partial: Option<String>,
    /// `energy_j.total` over the report's window.
    pub mean_power_w: Option<f64>,
    pub emissions_g: Option<f64>,
    /// In the currency of `--price`.
    pub cost: Option<f64>,
    pub gpus: Vec<WorkloadGpu>,
}

/// `total` is the sum of the others; `null` only if all of them are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct WorkloadEnergy {
    pub cpu: Option<f64>,
    pub dram: Option<f64>,
    pub gpu: Option<f64>,
    pub idle_share: Option<f64>,
    pub total: Option<f64>,
}

/// Standard errors of the figures of [`WorkloadEnergy`] beside them; `null` where nothing says how far
/// off a figure may be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct WorkloadStderr {
    pub cpu: Option<f64>,
    pub dram: Option<f64>,
    pub gpu: Option<f64>,
    pub total: Option<f64>,
}

/// A figure and its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    pub value: f64,
    pub stderr: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Next to nobody else ran on its packages.
    Alone,
    /// By its CPU time, at the price that all have.
    Shared,
    /// At a price of its own.
    #[serde(rename = "own price")]
    OwnPrice,
    /// Nothing was measured.
    Estimate,
}

/// The power model of one domain.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelReport {
    pub domain: String,
    /// Watts with nothing running.
    pub asleep_w: Figure,
    /// Watts more as soon as any CPU of the machine runs.
    pub awake_w: Figure,
    /// Joules of a CPU-second.
    pub price_j_per_cpu_s: Figure,
    /// What a CPU-second counts beside a busy thread of the same core, 0 to 1; `null` where such time
    /// is not measured.
    pub paired_weight: Option<Figure>,
    /// Mean absolute difference between what was drawn and what was predicted beforehand, as a part of
    /// what was drawn.
    pub residual: f64,
    /// What was learned from.
    pub windows: u64,
    /// What it could not tell.
    pub doubts: Vec<Doubt>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Doubt {
    /// Fewer than ten windows.
    #[serde(rename = "too short")]
    TooShort,
    /// The machine never slept: how much of what is drawn at no load is drawn asleep, rests on what
    /// machines are like.
    #[serde(rename = "never asleep")]
    NeverAsleep,
    /// Power does not follow the load, as in a package that is at its limit.
    #[serde(rename = "capped")]
    Capped,
    /// Power is not what the model makes of the load.
    #[serde(rename = "misfit")]
    Misfit,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkloadGpu {
    pub uuid: String,
    /// Dynamic energy, joules.
    pub energy_j: f64,
    pub method: GpuMethod,
}

/// One window, as `jsonl` and `csv` print it while the run goes on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WindowReport {
    /// Always "window".
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Seconds since the start of the report's window.
    pub start_s: f64,
    pub seconds: f64,
    pub node: Node,
    pub workloads: Vec<WindowWorkload>,
    /// Static watts as they were known when the window ended; `null` where they are assumed.
    pub static_power_w: BTreeMap<String, Option<f64>>,
    /// GPU figures in this window are means over this long, milliseconds: what is finer is not
    /// known. They are about the time that the driver told of since the window before.
    pub resolution_ms: Option<f64>,
    /// `node` as it is shown to people.
    #[serde(skip)]
    pub lines: NodeLines,
}

/// Lines of the node's books, all components together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NodeLines {
    pub measured: NodeLine,
    pub idle: NodeLine,
    pub other: NodeLine,
    pub unattributed: NodeLine,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct NodeLine {
    /// Mean power in the window: a GPU's joules over the time that they are about.
    pub power_w: Option<f64>,
    /// Joules since the start, by what was known of the static power at the time.
    pub so_far_j: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WindowWorkload {
    pub name: String,
    pub cpu_seconds: f64,
    pub energy_j: WorkloadEnergy,
    /// A GPU's joules over the time that they are about.
    pub mean_power_w: Option<f64>,
    /// As [`NodeLine::so_far_j`].
    #[serde(skip)]
    pub so_far_j: Option<f64>,
}
