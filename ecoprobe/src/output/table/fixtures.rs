//! A report and windows for the tests of every format.

use std::collections::BTreeMap;

use crate::base::own::*;
use crate::event::Header;
use crate::event::WorkloadKind;
use crate::event::settings::Settings;
use crate::event::sources::{self, CpuEnergyKind, GpuEnergyKind, StaticPowerKind};
use crate::view::report::*;

pub(crate) fn books(measured: f64, idle: f64, workloads: f64, other: f64) -> ComponentBooks {
    ComponentBooks {
        measured_j: Some(measured),
        idle_j: Some(idle),
        workloads_j: Some(workloads),
        other_j: Some(other),
        unattributed_j: Some(measured - idle - workloads - other),
    }
}

fn workload(name: &str, cpu_seconds: f64, cpu: f64, dram: f64) -> WorkloadReport {
    WorkloadReport {
        name: name.into(),
        cgroup: format!("/{name}"),
        cgroup_id: 7,
        kind: WorkloadKind::Cgroup,
        labels: BTreeMap::new(),
        cpu_seconds,
        gpu_seconds: None,
        energy_j: WorkloadEnergy {
            cpu: Some(cpu),
            dram: Some(dram),
            total: Some(cpu + dram),
            ..WorkloadEnergy::default()
        },
        mean_power_w: Some((cpu + dram) / 60.0),
        stderr_j: WorkloadStderr::default(),
        watts_per_cpu: None,
        method: None,
        partial: None,
        emissions_g: None,
        cost: None,
        gpus: Vec::new(),
    }
}

/// Sixty seconds of two jobs on one package.
pub(crate) fn report() -> Report {
    Report {
        schema: REPORT_SCHEMA,
        host: Host { name: "node01".into(), kernel: "6.1.0".into(), cpus: 8, packages: 1 },
        window: RunSpan { start: "2026-01-02T03:04:05Z".into(), seconds: 60.0, samples: 61 },
        sources: Sources {
            cpu_time: CpuTimeSource {
                kind: "ebpf".into(),
                hook: "tp_btf/sched_switch".into(),
                hierarchy: "v2".into(),
            },
            cpu_energy: CpuEnergySource {
                kind: CpuEnergyKind::Perf,
                domains: vec!["package-0".into(), "dram-0".into()],
                basis: None,
            },
            gpu_energy: GpuEnergySource { kind: GpuEnergyKind::None, devices: Vec::new() },
            static_power: StaticPowerSource {
                kind: StaticPowerKind::Calibrated,
                watts: [("package-0".to_owned(), Some(20.0))].into(),
                stderr_watts: [("package-0".to_owned(), 0.3)].into(),
            },
        },
        node: Node {
            cpu: books(5000.0, 1200.0, 3500.0, 300.0),
            dram: books(400.0, 100.0, 250.0, 50.0),
            gpu: ComponentBooks::default(),
        },
        workloads: vec![
            workload("small", 12.0, 500.0, 50.0),
            workload("job123", 240.0, 3000.0, 200.0),
        ],
        own: Own {
            cpu_seconds: Some(0.0123),
            rss_peak_bytes: Some(9_800_000),
            collect_us: Quantiles { p50: Some(45.0), p99: Some(80.0), max: Some(99.0) },
            nvml_us: Quantiles::default(),
            probe: ProbeStats { events: Some(123_456), dropped: Some(0), ns_per_event: None },
            windows_lost: 0,
        },
        model: Vec::new(),
        warnings: vec!["dram-0 was unreadable\n\x1b[31mfor 1 s".into()],
    }
}

/// The tenth second of such a power.
fn line(watts: f64) -> NodeLine {
    NodeLine { power_w: Some(watts), so_far_j: Some(watts * 10.0) }
}

/// One second of `count` jobs of rising energy.
pub(crate) fn window(count: usize) -> WindowReport {
    let workloads: Vec<WindowWorkload> = (0..count)
        .map(|i| WindowWorkload {
            name: format!("kubepods/burstable/job-{i}"),
            cpu_seconds: 0.25,
            energy_j: WorkloadEnergy {
                cpu: Some(i as f64 + 1.0),
                total: Some(i as f64 + 1.0),
                ..WorkloadEnergy::default()
            },
            mean_power_w: Some(i as f64 + 1.0),
            so_far_j: Some((i as f64 + 1.0) * 10.0),
        })
        .collect();
    let used: f64 = workloads.iter().filter_map(|w| w.energy_j.total).sum();
    WindowReport {
        kind: "window",
        start_s: 0.0,
        seconds: 1.0,
        node: Node {
            cpu: books(used + 30.0, 20.0, used, 10.0),
            dram: ComponentBooks::default(),
            gpu: ComponentBooks::default(),
        },
        workloads,
        static_power_w: BTreeMap::new(),
        resolution_ms: None,
        lines: NodeLines {
            measured: line(used + 30.0),
            idle: line(20.0),
            other: line(10.0),
            unattributed: line(0.0),
        },
    }
}

/// What a run begins with.
pub(crate) fn header() -> Header {
    Header {
        version: "0".into(),
        start: "2026-01-02T03:04:05Z".into(),
        host: sources::Host { name: "n".into(), kernel: "6".into(), cpus: 2, packages: 1 },
        cpu: None,
        sources: sources::Sources {
            cpu_time: sources::CpuTimeSource::ebpf("tp_btf/sched_switch", "v2"),
            cpu_energy: sources::CpuEnergySource::default(),
            gpu_energy: sources::GpuEnergySource::default(),
            static_power: sources::StaticPowerSource::default(),
        },
        packages: vec!["package-0".into()],
        domains: Vec::new(),
        settings: Settings::default(),
    }
}
