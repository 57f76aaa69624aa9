//! Joules against the truth: real cgroups burn real CPU time, simulated packages draw power by it,
//! and the binary has to find out who drew what.

#![allow(clippy::unwrap_used)]

mod sim;

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use sim::cgroup::{TestCgroup, v1_mount};
use sim::cli::{Ended, Recording, Report, Running, assert_closed, assert_equal, assert_near};
use sim::cli::{number, without_self};
use sim::load::{Load, Shape};
use sim::{CpuClock, Feed, Feeder, Machine, Power, Sysfs, Truth};

/// What every simulated package draws for a second of CPU time.
const JOULES_PER_CPU_SECOND: f64 = 15.0;
/// Of energy when the static power is given, and when it has to be learned.
const GIVEN: f64 = 0.03;
const CALIBRATED: f64 = 0.10;

/// A simulated machine whose power follows this machine's real load, and a real recording of it.
struct Bench {
    sysfs: Sysfs,
    feeder: Feeder,
    recording: Recording,
}

impl Bench {
    /// Fails where the whole machine's CPU time cannot be read: only v1's `cpuacct` has it exactly.
    fn new(sysfs: Sysfs, feeds: impl FnOnce(&Sysfs, PathBuf) -> Vec<Feed>) -> Self {
        let root = v1_mount("cpuacct");
        let root = root.expect("cgroup v1 cpuacct, to know the whole machine's CPU time by");
        let feeds = feeds(&sysfs, root);
        let feeder = Feeder::start(Duration::from_millis(5), feeds);
        Self { sysfs, feeder, recording: Recording::new() }
    }

    fn start(&self, cgroups: &[&str], options: &[&str]) -> Running {
        let sysfs = self.sysfs.path().to_str().unwrap().to_owned();
        let recording = self.recording.arg();
        let fixed = ["--cpu-energy", "powercap", "--sysfs", &sysfs, "--record", &recording];
        let names = cgroups.iter().flat_map(|name| ["--cgroup", name]);
        Running::start(fixed.into_iter().chain(names).chain(options.iter().copied()))
    }

    /// Of each zone, from the first sample to the last.
    fn truth(&self) -> Vec<Truth> {
        let (from, to) = self.recording.span();
        let (from, to) = (self.feeder.truth_at(from), self.feeder.truth_at(to));
        to.iter().zip(&from).map(|(to, from)| to.since(from)).collect()
    }

    /// The recording gives every byte of the same result again, but for `self`.
    #[track_caller]
    fn assert_replays(&self, live: &Ended, format: &str) {
        let again = self.recording.replay(&["--format", format]);
        assert_eq!(without_self(&again.stdout), without_self(&live.stdout));
    }
}

fn feed(
    sysfs: &Sysfs,
    zone: &str,
    static_watts: f64,
    machine: CpuClock,
    jobs: &[&TestCgroup],
) -> Feed {
    feed_at(sysfs, zone, 0, static_watts, JOULES_PER_CPU_SECOND, machine, jobs)
}

fn feed_at(
    sysfs: &Sysfs,
    zone: &str,
    start_uj: u64,
    static_watts: f64,
    joules_per_cpu_second: f64,
    machine: CpuClock,
    jobs: &[&TestCgroup],
) -> Feed {
    let jobs = jobs.iter().map(|job| job.path().to_owned()).collect();
    let power = Power::load(static_watts, joules_per_cpu_second, Some(machine), jobs);
    Feed { zone: sysfs.zone(zone), start_uj, power }
}

/// A part of each period, in turn.
fn duty(busy_ms: u64, period_ms: u64) -> Shape {
    Shape::Duty { busy: Duration::from_millis(busy_ms), period: Duration::from_millis(period_ms) }
}

/// Every window tells a part of what the report tells in sum.
#[track_caller]
/// What was measured is the same to rounding. What was billed at the time, and what everybody has in the
/// end by what was learned meanwhile, is about the same.
fn assert_windows_sum_up(windows: &[Value], report: &Report) {
    let sum = |figure: &dyn Fn(&Value) -> f64| windows.iter().map(figure).sum::<f64>();
    assert_equal(sum(&|w| number(&w["seconds"])), number(&report.0["window"]["seconds"]), "time");
    for component in ["cpu", "dram"] {
        for figure in ["measured_j", "idle_j", "workloads_j", "other_j", "unattributed_j"] {
            let windows = sum(&|window| number(&window["node"][component][figure]));
            let in_the_end = report.node(component, figure);
            match figure {
                "measured_j" => assert_near_to(windows, in_the_end, figure),
                _ => {
                    let measured = report.node(component, "measured_j");
                    let off = (windows - in_the_end).abs();
                    assert!(off < GIVEN * measured, "{figure}: {windows} {in_the_end}");
                }
            }
        }
    }
    for (at, workload) in report.0["workloads"].as_array().unwrap().iter().enumerate() {
        let of = |view: &Value| number(&view["energy_j"]["total"]);
        assert_near(sum(&|window| of(&window["workloads"][at])), of(workload), 0.05, "total");
        let of = |view: &Value| number(&view["cpu_seconds"]);
        assert_near_to(sum(&|window| of(&window["workloads"][at])), of(workload), "cpu_seconds");
    }
}

/// A sum of many windows against the sum that was kept all along.
#[track_caller]
fn assert_near_to(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() <= 1e-6 * expected.abs().max(1.0),
        "{what}: {found} {expected}"
    );
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn given_the_static_power_every_job_gets_its_joules() {
    let (a, b) = (TestCgroup::v2("a"), TestCgroup::v2("b"));
    // Both counters wrap soon, and there is everything in the tree that must not be added to them.
    let range = 1_000_000_000;
    let machine = Machine::new(1).with("core").with("dram").with_psys().with_mmio().range(range);
    let bench = Bench::new(machine.build(), |sysfs, root| {
        let feed = |zone, before_the_end, watts, per_second| {
            let clock = CpuClock::new(&root);
            feed_at(sysfs, zone, range - before_the_end, watts, per_second, clock, &[&a, &b])
        };
        vec![
            feed("package-0", 30_000_000, 20.0, JOULES_PER_CPU_SECOND),
            feed("dram-0", 3_000_000, 2.0, 1.0),
            feed("core-0", 0, 5.0, 10.0),
            feed("psys", 0, 40.0, 20.0),
            feed("mmio-package-0", 0, 20.0, JOULES_PER_CPU_SECOND),
        ]
    });
    let _loads = [
        Load::start(Shape::QUARTER, a.path(), Some(0)),
        Load::start(duty(6, 10), b.path(), Some(1)),
    ];
    let names = [a.cgroup(), b.cgroup()];
    let live = bench.start(
        &[&names[0], &names[1]],
        &[
            "--static-power=package-0=20,dram-0=2",
            "--interval=100ms",
            "--duration=5s",
            "--format=jsonl",
        ],
    );
    let live = live.wait().succeeded();

    let (windows, report) = live.lines();
    assert!(windows.len() >= 40, "{}", windows.len());
    assert_eq!(report.0["sources"]["cpu_energy"]["kind"], "powercap");
    assert_eq!(
        report.0["sources"]["cpu_energy"]["domains"],
        serde_json::json!(["package-0", "dram-0"])
    );
    assert_eq!(report.0["sources"]["static_power"]["kind"], "given");
    for (component, truth) in ["cpu", "dram"].into_iter().zip(bench.truth()) {
        assert!(truth.total_j() > if component == "cpu" { 100.0 } else { 10.0 }, "{truth:?}");
        assert_near(report.node(component, "measured_j"), truth.total_j(), 0.002, component);
        assert_near(report.node(component, "idle_j"), truth.static_j, 0.002, component);
        for (name, joules) in names.iter().zip(&truth.jobs_j) {
            assert_near(report.joules(name, component), *joules, GIVEN, name);
        }
        let other = truth.dynamic_j - truth.jobs_j.iter().sum::<f64>();
        let found = report.node(component, "other_j");
        assert!((found - other).abs() < GIVEN * truth.dynamic_j, "{component}: {found} {other}");
        assert!(report.node(component, "unattributed_j") < 1e-9, "{component}");
    }
    assert_windows_sum_up(&windows, &report);
    bench.assert_replays(&live, "jsonl");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn without_the_static_power_it_is_learned_while_the_load_varies() {
    let (a, b) = (TestCgroup::v2("a"), TestCgroup::v2("b"));
    let bench = Bench::new(Machine::new(1).build(), |sysfs, root| {
        vec![feed(sysfs, "package-0", 20.0, CpuClock::new(&root), &[&a, &b])]
    });
    let _loads = [
        Load::start(duty(600, 1_100), a.path(), Some(0)),
        Load::start(duty(300, 700), b.path(), Some(1)),
    ];
    let names = [a.cgroup(), b.cgroup()];
    let options = ["--interval=50ms", "--duration=6s", "--format=jsonl"];
    let run = || bench.start(&[&names[0], &names[1]], &options).wait().succeeded();
    let too_even =
        |live: &Ended| live.lines().1.warnings().contains("could not be told from this run");
    let mut live = run();
    for _ in 0..4 {
        if too_even(&live) {
            live = run();
        }
    }
    let [truth] = &bench.truth()[..] else { panic!() };
    let (_, report) = live.lines();
    if too_even(&live) {
        let cpus = number(&report.0["host"]["cpus"]);
        let seconds = number(&report.0["window"]["seconds"]);
        let busy = truth.dynamic_j / JOULES_PER_CPU_SECOND / seconds / cpus;
        assert!(busy > 0.9, "{}", report.warnings());
        panic!("others keep every CPU busy all the time: there is no varying load to learn from");
    }

    let learned = &report.0["sources"]["static_power"];
    assert_eq!(learned["kind"], "calibrated", "{}", report.warnings());
    assert_near(number(&learned["watts"]["package-0"]), 20.0, CALIBRATED, "static watts");
    assert!(number(&learned["stderr_watts"]["package-0"]) > 0.0, "{learned}");
    assert_near(report.node("cpu", "measured_j"), truth.total_j(), 0.002, "measured");
    assert_near(report.node("cpu", "idle_j"), truth.static_j, CALIBRATED, "idle");
    for (name, joules) in names.iter().zip(&truth.jobs_j) {
        assert_near(report.joules(name, "cpu"), *joules, CALIBRATED, name);
    }
    bench.assert_replays(&live, "jsonl");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn each_of_two_packages_bills_who_ran_on_it() {
    let (a, b) = (TestCgroup::v2("a"), TestCgroup::v2("b"));
    let sysfs = Machine::new(2).build();
    sysfs.add_cpu(0, 0, 0);
    sysfs.add_cpu(1, 1, 0);
    let bench = Bench::new(sysfs, |sysfs, root| {
        vec![
            feed(sysfs, "package-0", 20.0, CpuClock::on_cpu(&root, 0), &[&a]),
            // A package that draws far more for a second of CPU time.
            feed_at(sysfs, "package-1", 0, 35.0, 45.0, CpuClock::on_cpu(&root, 1), &[&b]),
        ]
    });
    let _loads = [
        Load::start(duty(6, 10), a.path(), Some(0)),
        Load::start(Shape::QUARTER, b.path(), Some(1)),
    ];
    let names = [a.cgroup(), b.cgroup()];
    let live = bench.start(
        &[&names[0], &names[1]],
        &[
            "--static-power=package-0=20,package-1=35",
            "--interval=100ms",
            "--duration=4s",
            "--format=json",
        ],
    );
    let live = live.wait().succeeded();

    let report = live.report();
    assert_closed(&report.0);
    assert_eq!(report.0["host"]["packages"], 2);
    let truth = bench.truth();
    let total: f64 = truth.iter().map(Truth::total_j).sum();
    assert_near(report.node("cpu", "measured_j"), total, 0.002, "measured");
    for (name, truth) in names.iter().zip(&truth) {
        assert_near(report.joules(name, "cpu"), truth.jobs_j[0], GIVEN, name);
    }
    bench.assert_replays(&live, "json");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn eight_packages_are_added_up_and_idle_ones_bill_nobody() {
    let job = TestCgroup::v2("job");
    let sysfs = Machine::new(8).with("dram").range(1_000_000_000).build();
    sysfs.add_cpu(0, 3, 0);
    sysfs.add_cpu(1, 6, 0);
    let bench = Bench::new(sysfs, |sysfs, root| {
        let package = |number: usize| {
            let zone = format!("package-{number}");
            match number {
                3 => feed(sysfs, &zone, 20.0, CpuClock::on_cpu(&root, 0), &[]),
                6 => feed(sysfs, &zone, 20.0, CpuClock::on_cpu(&root, 1), &[&job]),
                _ => Feed {
                    zone: sysfs.zone(&zone),
                    start_uj: 999_000_000,
                    power: Power::constant(20.0),
                },
            }
        };
        let dram = |number: usize| Feed {
            zone: sysfs.zone(&format!("dram-{number}")),
            start_uj: 0,
            power: Power::constant(3.0),
        };
        (0..8).map(package).chain((0..8).map(dram)).collect()
    });
    let _load = Load::start(duty(6, 10), job.path(), Some(1));
    let name = job.cgroup();
    let options = ["--static-power=160", "--interval=100ms", "--duration=3s", "--format=jsonl"];
    let live = bench.start(&[&name], &options).wait().succeeded();

    let (_, report) = live.lines();
    assert_eq!(report.0["host"]["packages"], 8);
    let truth = bench.truth();
    for (component, domains) in [("cpu", &truth[..8]), ("dram", &truth[8..])] {
        let total: f64 = domains.iter().map(Truth::total_j).sum();
        assert_near(report.node(component, "measured_j"), total, 0.002, component);
    }
    assert_near(report.joules(&name, "cpu"), truth[6].jobs_j[0], GIVEN, "job");
    // Nobody ran there: with or without a known static power, it is nobody's.
    let dynamic: f64 = truth[..8].iter().map(|truth| truth.dynamic_j).sum();
    let billed = report.node("cpu", "workloads_j") + report.node("cpu", "other_j");
    assert_near(billed, dynamic, GIVEN, "billed");
    bench.assert_replays(&live, "jsonl");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn shared_idle_energy_emissions_and_cost() {
    let job = TestCgroup::v2("job");
    let bench = Bench::new(Machine::new(1).build(), |sysfs, root| {
        vec![feed(sysfs, "package-0", 20.0, CpuClock::new(&root), &[&job])]
    });
    let _load = Load::start(duty(6, 10), job.path(), Some(0));
    let name = job.cgroup();
    let options = ["--static-power=20", "--interval=100ms", "--duration=2s", "--format=json"];
    let rates = ["--idle=share", "--carbon-intensity=400", "--pue=1.25", "--price=0.3"];
    let live = bench.start(&[&name], &[&options[..], &rates].concat()).wait().succeeded();

    let report = live.report();
    assert_closed(&report.0);
    assert!(report.node("cpu", "idle_j") < 1e-9, "all of it is shared out");
    let [truth] = &bench.truth()[..] else { panic!() };
    let job_part = truth.jobs_j[0] / truth.dynamic_j;
    assert_near(report.joules(&name, "idle_share"), truth.static_j * job_part, GIVEN, "idle share");
    assert_near(report.joules(&name, "cpu"), truth.jobs_j[0], GIVEN, "dynamic");
    let kilowatt_hours = report.joules(&name, "total") / 3.6e6 * 1.25;
    let workload = report.workload(&name);
    assert_equal(number(&workload["emissions_g"]), kilowatt_hours * 400.0, "emissions");
    assert_equal(number(&workload["cost"]), kilowatt_hours * 0.3, "cost");
    let seconds = number(&report.0["window"]["seconds"]);
    let power = report.joules(&name, "total") / seconds;
    assert_equal(number(&workload["mean_power_w"]), power, "power");

    // What was not asked for is not made up.
    let plain = bench.recording.replay(&["--format", "json", "--idle", "separate"]).report();
    assert!(plain.workload(&name)["energy_j"]["idle_share"].is_null());
    assert_near(plain.node("cpu", "idle_j"), truth.static_j, 0.002, "idle");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn what_appears_in_the_middle_is_in_the_recording_too() {
    let top = TestCgroup::v2("top");
    let first = top.child("first");
    let bench = Bench::new(Machine::new(1).build(), |sysfs, root| {
        vec![feed(sysfs, "package-0", 20.0, CpuClock::new(&root), &[&top])]
    });
    let _first = Load::start(Shape::QUARTER, first.path(), Some(0));
    let glob = format!("{}/*", top.cgroup());
    let options = ["--static-power=20", "--interval=50ms", "--format=json"];
    let run = bench.start(&[&glob], &options);
    thread::sleep(Duration::from_millis(700));
    let second = top.child("second");
    let second_load = Load::start(duty(5, 10), second.path(), Some(1));
    thread::sleep(Duration::from_millis(700));
    drop(second_load);
    drop(second);
    let third = top.child("third");
    let _third = Load::start(Shape::QUARTER, third.path(), Some(1));
    thread::sleep(Duration::from_millis(700));
    run.signal(Signal::SIGINT);
    let live = run.wait().succeeded();

    let report = live.report();
    assert_closed(&report.0);
    let names: Vec<_> = report.0["workloads"].as_array().unwrap().iter().collect();
    assert_eq!(names.len(), 3, "{names:?}");
    let [truth] = &bench.truth()[..] else { panic!() };
    assert_near(report.node("cpu", "workloads_j"), truth.jobs_j[0], GIVEN, "all three");
    bench.assert_replays(&live, "json");
}
