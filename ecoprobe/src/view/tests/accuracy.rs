//! Joules against a truth that is known.

use super::sim::{Load, Machine};
use super::*;
use crate::view::report::Doubt;

/// Two jobs and a little background on every package; the first job works in bursts of 1.1 s, the
/// second 60 % of each 0.7 s.
fn bursts(time: f64, _package: usize, user: usize) -> f64 {
    match user {
        0 => 0.05,
        2 => f64::from(u8::from(time % 2.2 < 1.1)) * 2.0,
        _ => f64::from(u8::from(time % 0.7 < 0.42)),
    }
}

struct Run {
    packages: usize,
    seconds: f64,
    interval: f64,
    given: Option<f64>,
}

impl Run {
    /// Two jobs under `load`, and the relative error of each.
    fn errors(&self, mut machine: Machine<'_>) -> (Report, Vec<f64>) {
        let name = |package| format!("package-{package}");
        let domains =
            (0..self.packages).map(|package| domain(&name(package), Component::Cpu, package));
        let mut header = header(self.packages, domains.collect());
        let watts = self.given.map(|watts| (0..self.packages).map(move |p| (name(p), watts)));
        header.settings.static_watts = watts.into_iter().flatten().collect();
        let mut books = RunBooks::new(header);
        books.workload(workload("a"));
        books.workload(workload("b"));
        let mut measured = 0.0;
        for sample in machine.run(self.seconds, self.interval) {
            books.sample(&sample);
            if let Some(window) = books.window() {
                assert_closed(&window.node);
                measured += window.node.cpu.measured_j.unwrap_or(0.0);
            }
        }
        let report = report(&mut books);
        assert_adds_up(&report);
        assert!((measured - report.node.cpu.measured_j.unwrap()).abs() < 1e-9 * measured);
        let errors = report.workloads.iter().enumerate().map(|(index, workload)| {
            workload.energy_j.cpu.unwrap() / machine.truth(2 + index) - 1.0
        });
        let errors = errors.collect();
        println!(
            "{} packages, {} s at {} s, given {:?}: errors {errors:?}, static {:?} ± {:?}",
            self.packages,
            self.seconds,
            self.interval,
            self.given,
            report.sources.static_power.watts,
            report.sources.static_power.stderr_watts,
        );
        (report, errors)
    }

    #[track_caller]
    fn within(&self, load: &Load, tolerance: f64) {
        let (report, errors) = self.errors(Machine::new(self.packages, 4, load));
        let expected = match self.given {
            Some(_) => StaticPowerKind::Given,
            None => StaticPowerKind::Calibrated,
        };
        assert_eq!(report.sources.static_power.kind, expected);
        assert_eq!(report.warnings, [""; 0]);
        assert!(errors.iter().all(|error| error.abs() < tolerance), "{errors:?}");
    }
}

#[test]
fn given_static_power() {
    for (packages, seconds, interval) in
        [(1, 10.0, 1.0), (1, 10.0, 0.1), (1, 3.0, 0.01), (2, 10.0, 1.0), (8, 4.0, 0.1)]
    {
        Run { packages, seconds, interval, given: Some(20.0) }.within(&bursts, 0.005);
    }
}

#[test]
fn calibrated_static_power() {
    for (packages, seconds, interval) in
        [(1, 10.0, 1.0), (1, 10.0, 0.1), (1, 3.0, 0.01), (2, 10.0, 1.0), (8, 4.0, 0.1)]
    {
        Run { packages, seconds, interval, given: None }.within(&bursts, 0.05);
    }
}

#[test]
fn a_load_that_varies_by_a_fifth() {
    let load = |time: f64, _: usize, user: usize| match user {
        0 => 0.05,
        2 => 1.0 + 0.4 * (time * 1.3).sin(),
        _ => 0.7,
    };
    for interval in [1.0, 0.1] {
        let run = Run { packages: 1, seconds: 10.0, interval, given: None };
        let (report, errors) = run.errors(Machine::new(1, 4, &load));
        // The machine never slept, so that much rests on what machines are like, and the bars say so.
        let [model] = &report.model[..] else { panic!() };
        assert!(model.doubts.contains(&Doubt::NeverAsleep), "{:?}", model.doubts);
        assert!(errors.iter().all(|error| error.abs() < 0.10), "{errors:?}");
        assert!((model.asleep_w.value - 20.0).abs() < 1.96 * model.asleep_w.stderr, "{model:?}");
    }
}

#[test]
fn calibrated_with_jobs_of_different_intensity() {
    let load: &Load = &bursts;
    for interval in [1.0, 0.1] {
        let mut machine = Machine::new(1, 4, load);
        machine.per_cpu[2] = 14.5;
        machine.per_cpu[3] = 15.5;
        let run = Run { packages: 1, seconds: 20.0, interval, given: None };
        let (report, errors) = run.errors(machine);
        assert_eq!(report.sources.static_power.kind, StaticPowerKind::Calibrated);
        assert!(errors.iter().all(|error| error.abs() < 0.10), "{errors:?}");
    }
}

#[test]
fn energy_of_a_package_goes_to_who_ran_on_it() {
    // One job a package; package-1 works three times as hard.
    let load = |_: f64, package: usize, user: usize| match (package, user) {
        (0, 2) => 1.0,
        (1, 3) => 3.0,
        _ => 0.0,
    };
    Run { packages: 2, seconds: 5.0, interval: 0.5, given: Some(20.0) }.within(&load, 0.005);
}

#[test]
fn a_load_that_never_varies_says_that_static_power_is_unknown() {
    let load = |_: f64, _: usize, user: usize| if user == 0 { 0.05 } else { 1.0 };
    for interval in [1.0, 0.1] {
        let run = Run { packages: 1, seconds: 10.0, interval, given: None };
        let (report, _) = run.errors(Machine::new(1, 4, &load));
        assert_eq!(report.sources.static_power.kind, StaticPowerKind::None);
        assert_eq!(report.sources.static_power.watts["package-0"], None);
        assert!(report.sources.static_power.stderr_watts.is_empty());
        // 4.05 of 8 CPUs are not busy: what the packages of such machines draw asleep is set apart.
        let [model] = &report.model[..] else { panic!() };
        let idle = report.node.cpu.idle_j.unwrap() / report.window.seconds;
        assert!((idle - model.asleep_w.value).abs() < 0.1, "{idle} {model:?}");
        assert!((model.asleep_w.value - 20.0).abs() < 1.96 * model.asleep_w.stderr, "{model:?}");
        for (workload, truth) in report.workloads.iter().zip([150.0, 150.0]) {
            let (joules, off) = (workload.energy_j.cpu.unwrap(), workload.stderr_j.cpu.unwrap());
            assert!((joules - truth).abs() < 1.96 * off, "{joules} ± {off}");
        }
        let [warning] = &report.warnings[..] else { panic!("{:?}", report.warnings) };
        assert!(warning.contains("package-0") && warning.contains("--static-power"), "{warning}");
    }
}

#[test]
fn a_counter_that_wraps_every_second_loses_nothing() {
    let load: &Load = &bursts;
    let range = (60.0 / UNIT) as u64;
    let mut machine = Machine::new(1, 4, load);
    (machine.range, machine.start) = (range, range - 77);
    let samples = machine.run(10.0, 0.1);
    let mut domain = domain("package-0", Component::Cpu, 0);
    (domain.range, domain.max_watts) = (Some(range), 200.0);
    let mut books = RunBooks::new(header(1, vec![domain]));
    books.workload(workload("a"));
    books.workload(workload("b"));
    samples.iter().for_each(|sample| books.sample(sample));
    let report = report(&mut books);
    assert_eq!(report.warnings, [""; 0]);
    let truth = 20.0 * report.window.seconds + (0..4).map(|user| machine.truth(user)).sum::<f64>();
    let error = report.node.cpu.measured_j.unwrap() / truth - 1.0;
    assert!(error.abs() < 1e-3, "{error}");
}
