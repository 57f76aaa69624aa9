//! Runs a scenario through the books, in simulated time.

use std::collections::BTreeMap;

use ecoprobe::base::Component;
use ecoprobe::base::WorkloadId;
use ecoprobe::door::{ComponentBooks, Node, Report, Run};
use ecoprobe::event::settings::Settings;
use ecoprobe::event::sources::{
    CpuEnergyKind, CpuEnergySource, CpuTimeSource, GpuEnergySource, Host, Sources, StaticPowerKind,
    StaticPowerSource,
};
use ecoprobe::event::{Domain, Event, Header, Sample, Workload, WorkloadKind};

use super::machine::Machine;
use super::scenario::Scenario;

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
    pub report: Report,
    /// Dynamic joules that everybody else and each job caused between the first and the last sample.
    pub truth: Vec<f64>,
    pub by_time: ByTime,
}

impl Found {
    /// The worst job's error, percent.
    pub(crate) fn worst_percent(&self) -> f64 {
        100.0 * self.errors.iter().fold(0.0, |worst: f64, error| worst.max(error.abs()))
    }
}

pub(crate) fn simulate(scenario: &Scenario, seed: u64) -> Found {
    let mut run = Run::open(header(scenario));
    let mut machine = Machine::new(scenario, seed);
    let mut by_time = ByTime::new(scenario);
    let mut books: f64 = 0.0;
    let mut before = Vec::new();
    // Who has not begun yet, and who has not ended.
    let lives = || scenario.jobs.iter().map(|job| job.load.life()).enumerate();
    let (mut coming, mut going): (Vec<_>, Vec<_>) = (lives().collect(), lives().collect());
    for index in 0..=(scenario.seconds / scenario.interval).round() as u64 {
        let sample = machine.sample(index);
        if index == 0 {
            before.clone_from(&machine.caused);
        }
        by_time.take(&sample);
        let now = machine.now();
        let begun = coming.extract_if(.., |(_, life)| life.start <= now);
        begun.for_each(|(number, _)| run.apply(&Event::Workload(workload(number))));
        let ended: Vec<_> = going.extract_if(.., |(_, life)| life.end < now).collect();
        run.apply(&Event::Sample(sample));
        for (number, _) in ended {
            run.apply(&Event::Ended { id: WorkloadId(number as u64 + 1) });
        }
        if let Some(window) = run.window() {
            books = books.max(unbalanced(&window.node));
        }
    }
    // Whoever came too late has a row, too.
    coming.iter().for_each(|(number, _)| run.apply(&Event::Workload(workload(*number))));
    let report = run.report();
    books = books.max(unbalanced(&report.node));
    let truth: Vec<f64> =
        machine.caused.iter().zip(&before).map(|(after, before)| after - before).collect();
    Found {
        errors: errors(&report, &truth[1..]),
        books,
        static_known: report.sources.static_power.kind != StaticPowerKind::None,
        report,
        truth,
        by_time,
    }
}

/// The bills of whoever shares each window by CPU time alone, for any static power.
#[derive(Debug)]
pub(crate) struct ByTime {
    joules_per_count: f64,
    range: u64,
    last: Option<Sample>,
    /// By package and, first everybody else, by job: CPU time at the last sample, nanoseconds; its
    /// parts of the energy; and of the time.
    packages: Vec<[Vec<f64>; 3]>,
}

impl ByTime {
    fn new(scenario: &Scenario) -> Self {
        let places = vec![0.0; 1 + scenario.jobs.len()];
        Self {
            joules_per_count: scenario.counter.joules_per_count,
            range: scenario.counter.range,
            last: None,
            packages: vec![[places.clone(), places.clone(), places]; scenario.packages],
        }
    }

    fn take(&mut self, sample: &Sample) {
        for (number, [times, energies, seconds]) in self.packages.iter_mut().enumerate() {
            let time = &sample.cpu.packages[number];
            let mut gained = vec![0.0; times.len()];
            let workloads = time.workloads.iter().map(|(id, ns)| (id.0 as usize, *ns));
            for (place, ns) in std::iter::once((0, time.other)).chain(workloads) {
                gained[place] = ns as f64 - times[place];
                times[place] = ns as f64;
            }
            let sum: f64 = gained.iter().sum();
            let before = self.last.as_ref().and_then(|last| last.energy[number]);
            let (Some(before), Some(now)) = (before, sample.energy[number]) else { continue };
            if sum <= 0.0 {
                continue;
            }
            let counts = (now.count + self.range - before.count) % self.range;
            let joules = counts as f64 * self.joules_per_count;
            let length = (now.mono_ns - before.mono_ns) as f64 * 1e-9;
            for (place, gained) in gained.iter().enumerate() {
                energies[place] += joules * gained / sum;
                seconds[place] += length * gained / sum;
            }
        }
        self.last = Some(sample.clone());
    }

    /// Joules of everybody else and of each job, with so many static watts in each package.
    pub(crate) fn bills(&self, static_watts: impl Fn(usize) -> f64) -> Vec<f64> {
        let mut bills = vec![0.0; self.packages[0][0].len()];
        for (number, [_, energies, seconds]) in self.packages.iter().enumerate() {
            let watts = static_watts(number);
            for ((bill, joules), seconds) in bills.iter_mut().zip(energies).zip(seconds) {
                *bill += joules - watts * seconds;
            }
        }
        bills
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

pub(super) fn header(scenario: &Scenario) -> Header {
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
            cpus: scenario.cpus.map_or(0, |cpus| cpus as usize * scenario.packages),
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

pub(super) fn workload(number: usize) -> Workload {
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
    use super::super::family;
    use super::super::scenario::{Job, Load, random};
    use super::*;

    #[test]
    fn a_job_alone_is_billed_what_it_draws() {
        let load = Load::Constant { cpus: 2.0 };
        let mut scenario = random(3);
        let job = Job { joules_per_cpu_second: 10.0, packages: vec![0], load, ..scenario.jobs[0] };
        (scenario.packages, scenario.noise_watts, scenario.background) = (1, 0.0, None);
        scenario.jobs = vec![job];
        let found = simulate(&scenario, 1);
        assert!(found.worst_percent() < 0.2, "{found:?}");
        assert!(found.books < 1e-9, "{found:?}");
        // A session that is told a wrong figure is wrong: the truth does not come from it.
        let mut run = Run::open(header(&Scenario { static_watts: 1.0, ..scenario.clone() }));
        run.apply(&Event::Workload(workload(0)));
        let mut machine = Machine::new(&scenario, 1);
        (0..=20).for_each(|index| run.apply(&Event::Sample(machine.sample(index))));
        let report = run.report();
        assert!(errors(&report, &machine.caused[1..])[0] > 0.1);
    }

    #[test]
    fn with_one_price_shares_by_time_are_the_truth() {
        let scenario = Scenario { noise_watts: 0.0, ..random(9) };
        let found = simulate(&scenario, 1);
        let bills = found.by_time.bills(|_| scenario.static_watts);
        for (bill, truth) in bills.iter().zip(&found.truth) {
            assert!((bill / truth - 1.0).abs() < 0.02, "{bill} {truth}");
        }
    }

    #[test]
    fn books_close_in_every_family() {
        for (name, family) in family::tests::all() {
            let scenario = family.scenario(1);
            let scenario = Scenario { seconds: scenario.seconds.min(20.0), ..scenario };
            let found = simulate(&scenario, 1);
            assert!(found.books < 1e-9, "{name}: {}", found.books);
            assert_eq!(found.report.workloads.len(), scenario.jobs.len(), "{name}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_error() {
        let scenario = random(5);
        assert_eq!(simulate(&scenario, 1).errors, simulate(&scenario, 1).errors);
        assert_ne!(simulate(&scenario, 1).errors, simulate(&scenario, 2).errors);
    }
}
