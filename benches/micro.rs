//! The hot paths by themselves, with Criterion: `cargo bench -p ecoprobe-bench`.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up has nothing to say")]

#[path = "../tests/sim/mod.rs"]
mod sim;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ecoprobe::base::Component;
use ecoprobe::base::WorkloadId;
use ecoprobe::door::{EnergyMeter as _, Format, PowercapMeter, Run, Target, open_quiet};
use ecoprobe::event::{CpuTimes, Domain, Event, Header, PackageTime, Reading, Sample, Workload};

const SIZES: [usize; 3] = [10, 1_000, 10_000];

fn domain() -> Domain {
    Domain {
        name: "package-0".into(),
        component: Component::Cpu,
        package: 0,
        joules_per_count: 1.0 / 16384.0,
        range: Some(1 << 32),
        max_watts: 500.0,
    }
}

/// The books of so many workloads, by the header of a recording.
fn run(workloads: usize) -> Run {
    let header = serde_json::json!({
        "version": "0", "start": "2025-01-01T00:00:00Z",
        "host": {"name": "", "kernel": "", "cpus": 1, "packages": 1},
        "sources": {
            "cpu_time": {"kind": "ebpf", "hook": "tp_btf/sched_switch", "hierarchy": "v2"},
            "cpu_energy": {"kind": "powercap", "domains": ["package-0"]},
            "gpu_energy": {"kind": "none", "devices": []},
            "static_power": {"kind": "none", "watts": {}}
        },
        "packages": ["package-0"], "domains": [domain()],
        "settings": {"static_watts": {}, "idle": "separate", "gpu_idle_to_holders": false,
            "carbon_intensity": null, "pue": null, "price": null}
    });
    let header: Header = serde_json::from_value(header).unwrap();
    let mut run = Run::open(header);
    for number in 0..workloads {
        let workload = serde_json::json!({"id": number + 1, "name": format!("job-{number}"),
            "cgroup": format!("/job-{number}"), "cgroup_id": number, "kind": "cgroup"});
        let workload: Workload = serde_json::from_value(workload).unwrap();
        run.apply(&Event::Workload(workload));
    }
    run
}

/// Samples a second apart in which every workload ran.
struct Samples(Event);

impl Samples {
    fn new(workloads: usize) -> Self {
        let workloads = (1..=workloads as u64).map(|id| (WorkloadId(id), 0)).collect();
        let packages = vec![PackageTime { workloads, ..PackageTime::default() }];
        let cpu = CpuTimes { packages, unplaced: PackageTime::default() };
        let energy = vec![Some(Reading { mono_ns: 0, count: 0 })];
        Self(Event::Sample(Sample { ends_window: true, cpu, energy, ..Sample::default() }))
    }

    fn next(&mut self) -> &Event {
        let Event::Sample(sample) = &mut self.0 else { unreachable!("it is made as one") };
        sample.mono_ns += 1_000_000_000;
        sample.cpu.packages[0].workloads.iter_mut().for_each(|(_, ns)| *ns += 12_345);
        sample.energy.iter_mut().flatten().for_each(|reading| {
            reading.mono_ns = sample.mono_ns;
            reading.count = (reading.count + 500_000) % (1 << 32);
        });
        &self.0
    }
}

/// Every workload ran in every window: the most that there can be to do.
fn attribution(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("attribution, workloads all busy");
    for size in SIZES {
        let (mut run, mut samples) = (run(size), Samples::new(size));
        run.apply(samples.next());
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter(|| run.apply(samples.next()));
        });
    }
}

fn rendering(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("report");
    let directory = tempfile::tempdir().unwrap();
    for size in SIZES {
        let (mut run, mut samples) = (run(size), Samples::new(size));
        (0..3).for_each(|_| run.apply(samples.next()));
        group.bench_function(BenchmarkId::new("settle", size), |bencher| {
            bencher.iter(|| black_box(run.report()));
        });
        let report = run.report();
        for (name, format) in [("table", Format::Table), ("json", Format::Json)] {
            let path = directory.path().join(name);
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter(|| {
                    let target = Target { format, file: Some(path.clone()), others: None };
                    let mut output = open_quiet(&target).unwrap();
                    output.finish(&report).unwrap();
                });
            });
        }
    }
}

/// On tmpfs or disk, wherever temporary files are; the read of a real MSR is not in it.
fn powercap(criterion: &mut Criterion) {
    let sysfs = sim::Machine::new(2).with("dram").build();
    let (mut meter, _, _) = PowercapMeter::open(sysfs.path(), 2).unwrap();
    let mut readings = Vec::new();
    criterion.bench_function("powercap read, 4 zones", |bencher| {
        bencher.iter(|| meter.read(&mut readings));
    });
    assert!(readings.iter().all(Result::is_ok), "{readings:?}");
}

criterion_group!(micro, attribution, rendering, powercap);
criterion_main!(micro);
