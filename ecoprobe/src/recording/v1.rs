//! The first format: CPU time as a matrix of packages and places, and workloads known by their place.

use serde::Deserialize;

use super::shape;
use crate::base::{User, WorkloadId};
use crate::event::{
    CpuTimes, Event, GpuMethod, GpuUsage, GpuWindow, PackageTime, Reading, Sample, Workload,
    WorkloadKind,
};

/// The column of everybody who is no workload, that of idle CPUs, and that of the first workload.
const OTHER: usize = 0;
const IDLE: usize = 1;
const FIRST: usize = 2;

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Line {
    Header {},
    Workload {
        name: String,
        cgroup: String,
        cgroup_id: u64,
        kind: WorkloadKind,
        #[serde(default)]
        labels: std::collections::BTreeMap<String, String>,
    },
    Sample {
        mono_ns: u64,
        cpu_ns: Vec<Vec<u64>>,
        energy: Vec<Option<Reading>>,
    },
    Gpu(Gpu),
    Warning {
        message: String,
    },
}

#[derive(Debug, Deserialize)]
struct Gpu {
    uuid: String,
    from_ns: u64,
    to_ns: u64,
    millijoules: f64,
    busy: Option<f64>,
    method: GpuMethod,
    usage: Vec<Usage>,
    #[serde(default)]
    unknown_users: bool,
    #[serde(default)]
    lost_weight: f64,
    #[serde(default)]
    resolution_ms: Option<f64>,
    #[serde(default)]
    mean_power_w: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Usage {
    slot: usize,
    weight: f64,
    busy_seconds: Option<f64>,
    holds: bool,
}

/// Turns lines of the first format into events.
#[derive(Debug, Default)]
pub(super) struct Reader {
    workloads: u64,
    /// By package and column: the highest value so far, and what of it was billed to its owner.
    cells: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    highest_ns: u64,
    /// What the column counted before its workload was announced was somebody else's.
    own_ns: u64,
}

impl Reader {
    pub(super) fn event(&mut self, line: &[u8]) -> Result<Event, serde_json::Error> {
        Ok(match serde_json::from_slice(line)? {
            Line::Header {} => {
                return Err(serde::de::Error::custom("a second header"));
            }
            Line::Workload { name, cgroup, cgroup_id, kind, labels } => {
                self.workloads += 1;
                let id = WorkloadId(self.workloads);
                Event::Workload(Workload { id, name, cgroup, cgroup_id, kind, labels })
            }
            Line::Sample { mono_ns, cpu_ns, energy } => {
                let cpu = self.cpu_times(&cpu_ns)?;
                Event::Sample(Sample { mono_ns, ends_window: true, cpu, energy })
            }
            Line::Gpu(gpu) => Event::Gpu(self.gpu(gpu)?),
            Line::Warning { message } => Event::Warning { message },
        })
    }

    fn cpu_times(&mut self, rows: &[Vec<u64>]) -> Result<CpuTimes, serde_json::Error> {
        let columns = FIRST + self.workloads as usize;
        if rows.iter().any(|row| row.iter().skip(columns).any(|ns| *ns > 0)) {
            return Err(serde::de::Error::custom("CPU time of a workload that was not introduced"));
        }
        self.cells.resize_with(self.cells.len().max(rows.len()), Vec::new);
        let packages = rows.iter().zip(&mut self.cells).map(|(row, cells)| {
            cells.resize(columns.max(cells.len()), Cell::default());
            let mut time = PackageTime::default();
            for (column, (&ns, cell)) in row.iter().zip(cells.iter_mut()).enumerate() {
                // The part that still runs is an estimate, so a cell may fall a little.
                cell.own_ns = cell.own_ns.saturating_add(ns.saturating_sub(cell.highest_ns));
                cell.highest_ns = cell.highest_ns.max(ns);
                match column {
                    OTHER => time.other = cell.own_ns,
                    IDLE => time.idle = cell.own_ns,
                    _ => {
                        let id = WorkloadId((column - FIRST) as u64 + 1);
                        time.workloads.push((id, cell.own_ns));
                    }
                }
            }
            time
        });
        Ok(CpuTimes { packages: packages.collect(), unplaced: PackageTime::default() })
    }

    fn gpu(&self, gpu: Gpu) -> Result<GpuWindow, serde_json::Error> {
        let user = |slot: usize| match slot.checked_sub(FIRST) {
            None => Ok(User::Other),
            Some(index) if (index as u64) < self.workloads => {
                Ok(User::Workload(WorkloadId(index as u64 + 1)))
            }
            Some(_) => Err(serde::de::Error::custom(shape::UNKNOWN_GPU_USER)),
        };
        let usage = gpu.usage.into_iter().map(|Usage { slot, weight, busy_seconds, holds }| {
            Ok(GpuUsage { user: user(slot)?, weight, busy_seconds, holds })
        });
        Ok(GpuWindow {
            usage: usage.collect::<Result<_, serde_json::Error>>()?,
            uuid: gpu.uuid,
            from_ns: gpu.from_ns,
            to_ns: gpu.to_ns,
            millijoules: gpu.millijoules,
            busy: gpu.busy,
            method: gpu.method,
            unknown_users: gpu.unknown_users,
            lost_weight: gpu.lost_weight,
            resolution_ms: gpu.resolution_ms,
            mean_power_w: gpu.mean_power_w,
        })
    }
}
