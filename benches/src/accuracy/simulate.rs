//! Runs a scenario through the books, in simulated time.
//!
//! The readings are as imperfect as real ones: counters move once in a refresh, in whole counts, and
//! wrap; they are read a moment after CPU time; the running part of CPU time is known to 0.3 ms;
//! samples are late.

use std::collections::BTreeMap;

use ecoprobe::base::Component;
use ecoprobe::base::WorkloadId;
use ecoprobe::door::{ComponentBooks, Node, Report, Run};
use ecoprobe::event::settings::Settings;
use ecoprobe::event::sources::{
    CpuEnergyKind, CpuEnergySource, CpuTimeSource, GpuEnergySource, Host, Sources, StaticPowerKind,
    StaticPowerSource,
};
use ecoprobe::event::{
    CpuTimes, Domain, Event, Header, PackageTime, Reading, Sample, Workload, WorkloadKind,
};
use fastrand::Rng;

use super::scenario::{Job, Scenario};

const STEP_NS: u64 = 50_000;
const STEP: f64 = STEP_NS as f64 * 1e-9;
/// How well the running part of a task is known, nanoseconds.
const RUNNING_NS: f64 = 3e5;

/// What a scenario came to.
#[derive(Debug)]
pub(crate) struct Found {
    /// Relative error of each job's joules.
    pub errors: Vec<f64>,
    /// The worst difference between what was measured and its pieces, relative, over all windows
    /// and the report.
    pub books: f64,
    /// The session could tell the static power, or was told.
    pub static_known: bool,
}

impl Found {
    /// The worst job's error, percent.
    pub(crate) fn worst_percent(&self) -> f64 {
        100.0 * self.errors.iter().fold(0.0, |worst: f64, error| worst.max(error.abs()))
    }
}

pub(crate) fn simulate(scenario: &Scenario, seed: u64) -> Found {
    let mut run = Run::open(header(scenario));
    for number in 0..scenario.jobs.len() {
        run.apply(&Event::Workload(workload(number)));
    }
    let mut machine = Machine::new(scenario, seed);
    let mut books: f64 = 0.0;
    for index in 0..=(scenario.seconds / scenario.interval).round() as u64 {
        run.apply(&Event::Sample(machine.sample(index)));
        if let Some(window) = run.window() {
            books = books.max(unbalanced(&window.node));
        }
    }
    let report = run.report();
    books = books.max(unbalanced(&report.node));
    Found {
        errors: errors(&report, &machine.job_joules),
        books,
        static_known: report.sources.static_power.kind != StaticPowerKind::None,
    }
}

fn errors(report: &Report, truth: &[f64]) -> Vec<f64> {
    let billed = report.workloads.iter().map(|workload| workload.energy_j.cpu);
    // What is missing is as wrong as can be.
    billed
        .zip(truth)
        .map(|(billed, truth)| billed.map_or(-1.0, |joules| joules / truth - 1.0))
        .collect()
}

/// Relative difference between what was measured and the pieces that it was split into.
fn unbalanced(node: &Node) -> f64 {
    let ComponentBooks { measured_j, idle_j, workloads_j, other_j, unattributed_j } = node.cpu;
    let Some(measured) = measured_j.filter(|joules| *joules > 0.0) else { return 0.0 };
    let pieces = [idle_j, workloads_j, other_j, unattributed_j];
    (pieces.into_iter().map(|piece| piece.unwrap_or(f64::NAN)).sum::<f64>() / measured - 1.0).abs()
}

struct Machine<'a> {
    scenario: &'a Scenario,
    random: Rng,
    step: u64,
    noise: Vec<f64>,
    /// By package: drawn so far, and what the counter shows of it.
    joules: Vec<f64>,
    shown: Vec<f64>,
    /// By package: of everybody else, and of each job.
    cpu_ns: Vec<Vec<f64>>,
    /// The truth.
    job_joules: Vec<f64>,
}

impl<'a> Machine<'a> {
    fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let (packages, jobs) = (scenario.packages, scenario.jobs.len());
        Self {
            scenario,
            random: Rng::with_seed(seed),
            step: 0,
            noise: vec![0.0; packages],
            joules: vec![0.0; packages],
            shown: vec![0.0; packages],
            cpu_ns: vec![vec![0.0; 1 + jobs]; packages],
            job_joules: vec![0.0; jobs],
        }
    }

    /// Sample number `index`, at its time or a little later.
    fn sample(&mut self, index: u64) -> Sample {
        let late = if index == 0 { 0.0 } else { self.random.f64() * self.scenario.late };
        let at = (index as f64 + late) * self.scenario.interval;
        while (self.step as f64) * STEP < at {
            self.advance();
        }
        let mono_ns = (1 << 40) + self.step * STEP_NS;
        let random = &mut self.random;
        let mut read = |ns: f64| if ns > 0.0 { (ns + random.f64() * RUNNING_NS) as u64 } else { 0 };
        let packages = self.cpu_ns.iter().map(|row| PackageTime {
            idle: 0,
            other: read(row[0]),
            workloads: row[1..]
                .iter()
                .zip(1..)
                .map(|(ns, id)| (WorkloadId(id), read(*ns)))
                .collect(),
            ..PackageTime::default()
        });
        let cpu = CpuTimes { packages: packages.collect(), unplaced: PackageTime::default() };
        self.advance();
        let counter = &self.scenario.counter;
        let energy = self.shown.iter().map(|joules| {
            let counts = (joules / counter.joules_per_count) as u64;
            let count = counter.start.wrapping_add(counts) % counter.range;
            Some(Reading { mono_ns: mono_ns + STEP_NS, count })
        });
        Sample { mono_ns, ends_window: true, cpu, energy: energy.collect(), ..Sample::default() }
    }

    fn advance(&mut self) {
        let scenario = self.scenario;
        let time = self.step as f64 * STEP;
        let every = |ms: f64| self.step.is_multiple_of(((ms * 1e-3 / STEP) as u64).max(1));
        let (refresh, redraw) = (every(scenario.counter.refresh_ms), every(1.0));
        for package in 0..scenario.packages {
            if redraw {
                self.noise[package] = (self.random.f64() * 2.0 - 1.0) * scenario.noise_watts;
            }
            self.joules[package] += (scenario.static_watts + self.noise[package]) * STEP;
        }
        if let Some(background) = &scenario.background {
            self.run(background, 0, time);
        }
        for (number, job) in scenario.jobs.iter().enumerate() {
            self.job_joules[number] += self.run(job, 1 + number, time);
        }
        if refresh {
            self.shown.copy_from_slice(&self.joules);
        }
        self.step += 1;
    }

    /// One job for one step; the joules that it caused.
    fn run(&mut self, job: &Job, place: usize, time: f64) -> f64 {
        let cpus = job.load.cpus(time);
        let joules = job.joules_per_cpu_second * cpus * STEP;
        for &package in &job.packages {
            self.cpu_ns[package][place] += cpus * STEP_NS as f64;
            self.joules[package] += joules;
        }
        joules * job.packages.len() as f64
    }
}

fn header(scenario: &Scenario) -> Header {
    let packages: Vec<String> = (0..scenario.packages).map(|p| format!("package-{p}")).collect();
    let domain = |(package, name): (usize, &String)| Domain {
        name: name.clone(),
        component: Component::Cpu,
        package,
        joules_per_count: scenario.counter.joules_per_count,
        range: Some(scenario.counter.range),
        max_watts: scenario.counter.max_watts,
    };
    let known = packages.iter().filter(|_| scenario.static_known);
    Header {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start: "2025-01-01T00:00:00Z".to_owned(),
        host: Host {
            name: "simulated".into(),
            kernel: "0".into(),
            cpus: 0,
            packages: packages.len(),
        },
        cpu: None,
        sources: Sources {
            cpu_time: CpuTimeSource::ebpf("tp_btf/sched_switch", "v2"),
            cpu_energy: CpuEnergySource {
                kind: CpuEnergyKind::Powercap,
                domains: packages.clone(),
                basis: None,
            },
            gpu_energy: GpuEnergySource::default(),
            static_power: StaticPowerSource::default(),
        },
        domains: packages.iter().enumerate().map(domain).collect(),
        settings: Settings {
            static_watts: known.map(|name| (name.clone(), scenario.static_watts)).collect(),
            ..Settings::default()
        },
        packages,
    }
}

fn workload(number: usize) -> Workload {
    Workload {
        id: WorkloadId(number as u64 + 1),
        name: format!("job-{number}"),
        cgroup: format!("/job-{number}"),
        cgroup_id: number as u64,
        kind: WorkloadKind::Cgroup,
        labels: BTreeMap::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::scenario::{Load, random};
    use super::*;

    #[test]
    fn a_job_alone_is_billed_what_it_draws() {
        let mut scenario = random(3);
        (scenario.packages, scenario.noise_watts, scenario.background) = (1, 0.0, None);
        let load = Load::Constant { cpus: 2.0 };
        scenario.jobs = vec![Job { joules_per_cpu_second: 10.0, packages: vec![0], load }];
        let found = simulate(&scenario, 1);
        assert!(found.worst_percent() < 0.2, "{found:?}");
        assert!(found.books < 1e-9, "{found:?}");
        // A session that is told a wrong figure is wrong: the truth does not come from it.
        scenario.static_watts += 10.0;
        let header_lies = Scenario { static_watts: 1.0, ..scenario.clone() };
        let mut run = Run::open(header(&header_lies));
        run.apply(&Event::Workload(workload(0)));
        let mut machine = Machine::new(&scenario, 1);
        (0..=20).for_each(|index| run.apply(&Event::Sample(machine.sample(index))));
        let report = run.report();
        assert!(errors(&report, &machine.job_joules)[0] > 0.1);
    }

    #[test]
    fn the_same_seed_gives_the_same_error() {
        let scenario = random(5);
        assert_eq!(simulate(&scenario, 1).errors, simulate(&scenario, 1).errors);
    }
}
