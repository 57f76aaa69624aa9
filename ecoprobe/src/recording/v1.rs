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
#[derive(Debug)]
pub(super) struct Reader {
    workloads: u64,
    /// By package and column, as far as there were any: the highest value so far, and what of it was
    /// billed to its owner.
    cells: Vec<Vec<Cell>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    highest_ns: u64,
    /// What the column counted before its workload was announced was somebody else's.
    own_ns: u64,
}

impl Reader {
    /// Of a recording whose header has so many packages.
    pub(super) fn new(packages: usize) -> Self {
        Self { workloads: 0, cells: vec![Vec::new(); packages] }
    }

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
                Event::Sample(Sample { mono_ns, ends_window: true, cpu, energy, awake_ns: None })
            }
            Line::Gpu(gpu) => Event::Gpu(self.gpu(gpu)?),
            Line::Warning { message } => Event::Warning { message },
        })
    }

    fn cpu_times(&mut self, rows: &[Vec<u64>]) -> Result<CpuTimes, serde_json::Error> {
        shape::check_rows(rows.len(), self.cells.len()).map_err(serde::de::Error::custom)?;
        let columns = FIRST + self.workloads as usize;
        if rows.iter().any(|row| row.iter().skip(columns).any(|ns| *ns > 0)) {
            return Err(serde::de::Error::custom("CPU time of a workload that was not introduced"));
        }
        let packages = rows.iter().zip(&mut self.cells).map(|(row, cells)| {
            // No more than the line has, whatever number of workloads there is.
            cells.resize(row.len().min(columns).max(cells.len()), Cell::default());
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

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(reader: &mut Reader) {
        let line = br#"{"type":"workload","name":"a","cgroup":"/a","cgroup_id":7,"kind":"cgroup"}"#;
        reader.event(line).unwrap();
    }

    fn sample(reader: &mut Reader, rows: &str) -> Result<Event, serde_json::Error> {
        let line = format!(r#"{{"type":"sample","mono_ns":1,"cpu_ns":{rows},"energy":[]}}"#);
        reader.event(line.as_bytes())
    }

    #[test]
    fn a_line_takes_no_more_memory_than_it_has_figures() {
        let mut reader = Reader::new(2);
        (0..1000).for_each(|_| workload(&mut reader));
        // Rows that the header knows nothing of.
        let error = sample(&mut reader, "[[],[],[]]").unwrap_err();
        assert!(error.to_string().contains("3 packages where the header has 2"), "{error}");
        sample(&mut reader, "[[1,2,3],[]]").unwrap();
        assert_eq!(reader.cells.iter().map(Vec::len).collect::<Vec<_>>(), [3, 0]);
        // What was not counted yet begins at 0, wherever it stands.
        let Event::Sample(sample) = sample(&mut reader, "[[1,2],[0,0,0,9]]").unwrap() else {
            panic!();
        };
        assert_eq!(sample.cpu.packages[0].workloads, []);
        let times = [(WorkloadId(1), 0), (WorkloadId(2), 9)];
        assert_eq!(sample.cpu.packages[1].workloads, times);
    }
}
