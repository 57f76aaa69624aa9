mod accuracy;
mod books;
mod gpu;
mod identity;
mod sim;

use std::collections::BTreeMap;

use crate::base::Component;
use crate::base::WorkloadId;
use crate::base::own::Own;
use crate::energy::books::Books;
use crate::event::settings::Settings;
use crate::event::sources::{
    CpuEnergyKind, CpuEnergySource, CpuTimeSource, GpuEnergyKind, GpuEnergySource, Host, Sources,
    StaticPowerKind, StaticPowerSource,
};
use crate::event::{
    CpuTimes, Domain, Event, GpuWindow, Header, PackageTime, Reading, Sample, Workload,
    WorkloadKind,
};
use crate::view::report::{ComponentBooks, NodeLine, NodeLines, Report, WindowReport};

/// The unit of most RAPL counters, joules.
const UNIT: f64 = 1.0 / 16384.0;

fn domain(name: &str, component: Component, package: usize) -> Domain {
    Domain {
        name: name.to_owned(),
        component,
        package,
        joules_per_count: UNIT,
        range: Some(1 << 32),
        max_watts: 500.0,
    }
}

/// A header of `packages` packages and their `domains`.
fn header(packages: usize, domains: Vec<Domain>) -> Header {
    Header {
        version: "0".to_owned(),
        start: "2025-01-01T00:00:00Z".to_owned(),
        host: Host { name: "host".into(), kernel: "6.1".into(), cpus: 8 * packages, packages },
        cpu: None,
        sources: Sources {
            cpu_time: CpuTimeSource::ebpf("tp_btf/sched_switch", "v2"),
            cpu_energy: CpuEnergySource {
                kind: CpuEnergyKind::Powercap,
                domains: domains.iter().map(|domain| domain.name.clone()).collect(),
                basis: None,
            },
            gpu_energy: GpuEnergySource::default(),
            static_power: StaticPowerSource::default(),
        },
        packages: (0..packages).map(|package| format!("package-{package}")).collect(),
        domains,
        settings: Settings::default(),
    }
}

/// CPU time as a matrix: by package; others, idle, and the workloads in the order of their ids.
type Rows = Vec<Vec<u64>>;

fn cpu_times(rows: &Rows) -> CpuTimes {
    let packages = rows.iter().map(|row| PackageTime {
        other: row.first().copied().unwrap_or(0),
        idle: row.get(1).copied().unwrap_or(0),
        workloads: row.iter().skip(2).zip(1..).map(|(ns, id)| (WorkloadId(id), *ns)).collect(),
        features: BTreeMap::new(),
    });
    CpuTimes { packages: packages.collect(), unplaced: PackageTime::default() }
}

fn sample_of(mono_ns: u64, rows: &Rows, energy: Vec<Option<Reading>>) -> Sample {
    Sample { mono_ns, ends_window: true, cpu: cpu_times(rows), energy, awake_ns: None }
}

/// The books of a run, and how many workloads have begun in it.
struct RunBooks {
    inner: Books,
    workloads: u64,
}

impl RunBooks {
    fn new(header: Header) -> Self {
        Self { inner: Books::open(header, true), workloads: 0 }
    }

    fn header(&self) -> Header {
        self.inner.header().clone()
    }

    fn apply(&mut self, event: &Event) {
        self.inner.apply(event);
    }

    fn workload(&mut self, mut workload: Workload) {
        self.workloads += 1;
        workload.id = WorkloadId(self.workloads);
        self.apply(&Event::Workload(workload));
    }

    fn sample(&mut self, sample: &Sample) {
        self.apply(&Event::Sample(sample.clone()));
    }

    fn gpu(&mut self, window: &GpuWindow) {
        self.apply(&Event::Gpu(window.clone()));
    }

    fn window(&self) -> Option<WindowReport> {
        super::window(&self.inner)
    }
}

fn workload(name: &str) -> Workload {
    Workload {
        id: WorkloadId(0),
        name: name.to_owned(),
        cgroup: format!("/{name}"),
        cgroup_id: 1,
        kind: WorkloadKind::Cgroup,
        labels: BTreeMap::new(),
    }
}

fn report(books: &mut RunBooks) -> Report {
    books.inner.finish();
    super::report(&mut books.inner, Own::default())
}

/// Prices of their own may move a joule a little, from the first window on.
#[track_caller]
fn near(joules: Option<f64>, expected: f64) {
    assert!((joules.unwrap() - expected).abs() < 1e-3 * expected, "{joules:?} {expected}");
}

/// Every component's books close to 1e-9, and nothing is negative.
#[track_caller]
fn assert_closed(node: &crate::view::report::Node) {
    for books in [&node.cpu, &node.dram, &node.gpu] {
        let ComponentBooks { measured_j, idle_j, workloads_j, other_j, unattributed_j } = *books;
        let pieces = [idle_j, workloads_j, other_j, unattributed_j];
        let Some(measured) = measured_j else {
            assert_eq!(pieces, [None; 4]);
            continue;
        };
        let pieces = pieces.map(|piece| piece.expect("a measured component has whole books"));
        assert!(pieces.iter().all(|&piece| piece >= 0.0), "{books:?}");
        let error = pieces.iter().sum::<f64>() - measured;
        assert!(error.abs() <= 1e-9 * measured, "{books:?}");
    }
}

/// As `assert_closed`, and what the workloads are billed adds up to their line in the node's books.
#[track_caller]
fn assert_adds_up(report: &Report) {
    assert_closed(&report.node);
    let node = [report.node.cpu, report.node.dram, report.node.gpu];
    let lines: f64 = node.iter().filter_map(|books| books.workloads_j).sum();
    let totals: f64 = report.workloads.iter().filter_map(|workload| workload.energy_j.total).sum();
    assert!((lines - totals).abs() <= 1e-9 * lines, "{lines} {totals}");
    for workload in &report.workloads {
        let energy = &workload.energy_j;
        let pieces = [energy.cpu, energy.dram, energy.gpu, energy.idle_share];
        assert_eq!(energy.total.is_none(), pieces.iter().all(Option::is_none));
        let gpus: f64 = workload.gpus.iter().map(|gpu| gpu.energy_j).sum();
        assert!((gpus - energy.gpu.unwrap_or(0.0)).abs() <= 1e-9 * gpus);
    }
}
