//! The report: what the outside sees. Field names and their meaning are promises that programs rely on; `null` means "could
//! not be had" and is never written as 0.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::base::own::Own;
use crate::event::sources::{Host, Sources};
use crate::event::{GpuMethod, WorkloadKind};

pub const REPORT_SCHEMA: &str = "ecoprobe.report/1";

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub host: Host,
    pub window: Window,
    pub sources: Sources,
    pub node: Node,
    pub workloads: Vec<WorkloadReport>,
    #[serde(rename = "self")]
    pub own: Own,
    pub warnings: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Window {
    /// RFC 3339.
    pub start: String,
    pub seconds: f64,
    pub samples: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    pub cpu: Books,
    pub dram: Books,
    pub gpu: Books,
}

impl Node {
    /// One figure of the books, over all components; `None` where no component has it.
    pub fn sum(&self, figure: impl Fn(&Books) -> Option<f64>) -> Option<f64> {
        [&self.cpu, &self.dram, &self.gpu].into_iter().filter_map(figure).reduce(|a, b| a + b)
    }
}

/// Closed to one part in 10⁹: measured = idle + workloads + other + unattributed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Books {
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
    /// Static watts that this window was split with.
    pub static_power_w: BTreeMap<String, Option<f64>>,
    /// GPU figures in this window are means over this long, milliseconds: what is finer is not
    /// known. They are about the time that the driver told of since the window before.
    pub resolution_ms: Option<f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WindowWorkload {
    pub name: String,
    pub cpu_seconds: f64,
    pub energy_j: WorkloadEnergy,
    pub mean_power_w: Option<f64>,
}
