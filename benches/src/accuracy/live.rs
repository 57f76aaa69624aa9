//! CPU time against the kernel's own account, on the running kernel.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use ecoprobe::base::WorkloadId;
use ecoprobe::door::{LoadOptions, Probe};
use ecoprobe::event::CpuTimes;

use crate::harness::{Bench, Metric, Outcome, Target};
use crate::simulators::cgroup::TestCgroup;
use crate::simulators::load::{Load, Shape};

const SHAPES: [(&str, Shape); 3] = [
    ("100 % duty", Shape::Hog),
    ("25 % duty", Shape::QUARTER),
    ("children of 1 ms", Shape::MILLISECOND_CHILDREN),
];

/// Our reading between two readings of theirs.
struct Bracketed {
    before: f64,
    ours: f64,
    after: f64,
}

pub(super) fn cpu_time(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("CPU time against cpu.stat", why);
        return Ok(());
    }
    for (name, shape) in SHAPES {
        let mut errors = Vec::new();
        for turn in 1..=bench.settings.turns {
            bench.progress(format_args!("accuracy: CPU time, {name}, turn {turn}"));
            errors.push(100.0 * error(shape, bench.duration())?.abs());
        }
        let metric = Metric::of_turns(format!("CPU time against cpu.stat, {name}"), "%", errors);
        outcome.metrics.push(metric.with_target(Target::below(0.5)));
    }
    Ok(())
}

/// Relative error over one run, by the middle of what `cpu.stat` allows.
fn error(shape: Shape, duration: Duration) -> Result<f64> {
    let cgroup = TestCgroup::v2("bench");
    let mut probe = Probe::load(LoadOptions {
        btf: Path::new("/sys/kernel/btf/vmlinux"),
        package_of_cpu: vec![Some(0); aya::util::nr_cpus().map_err(|(_, error)| error)?],
        packages: 1,
        sibling_of_cpu: Vec::new(),
        v1_controller: None,
        hierarchy_id: 0,
        max_workloads: 1,
        newcomers: false,
        exits: false,
        hook: None,
    })?;
    ensure!(probe.begin(WorkloadId(0), cgroup.id())?, "no room for a workload");
    probe.attach()?;
    let load = Load::start(shape, cgroup.path(), None);
    std::thread::sleep(Duration::from_millis(100));
    let mut times = CpuTimes::default();
    let mut ours = 0;
    let mut read = || {
        let before = cgroup.usage_ns() as f64;
        probe.read(&mut times, &mut Vec::new());
        // Not listed: as before.
        ours = times.packages[0].workloads.first().map_or(ours, |(_, ns)| *ns);
        Bracketed { before, ours: ours as f64, after: cgroup.usage_ns() as f64 }
    };
    let start = read();
    std::thread::sleep(duration);
    let end = read();
    drop(load);
    let (least, most) = (end.before - start.after, end.after - start.before);
    Ok((end.ours - start.ours) / f64::midpoint(least, most) - 1.0)
}
