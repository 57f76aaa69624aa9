//! Paired time on two CPUs that are taken for the threads of one core: what both really ran at the same
//! time is known here, whatever the hardware is.
//!
//! Everything that runs on one of them beside a CPU that never idles is paired, and all of it is known
//! from another account, that of the idle task. So machines that have more to do than the test may run it.

#![allow(clippy::unwrap_used)]

mod sim;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use ecoprobe::base::{WorkloadId, monotonic_ns};
use ecoprobe::door::{Hook, LoadOptions, Probe};
use ecoprobe::event::{CpuTimes, Event, PAIRED, Sample};

use crate::sim::Sysfs;
use crate::sim::cgroup::TestCgroup;
use crate::sim::cli::ecoprobe;
use crate::sim::load::{Load, Shape};

const MS: u64 = 1_000_000;

/// Each test loads whole CPUs: one at a time.
fn quiet() -> MutexGuard<'static, ()> {
    static QUIET: Mutex<()> = Mutex::new(());
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// CPU time, and the paired part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Time {
    ns: u64,
    paired: u64,
}

impl Time {
    fn since(self, before: Self) -> Self {
        Self { ns: self.ns - before.ns, paired: self.paired - before.paired }
    }
}

/// Of each CPU, cumulative: of the idle task, of everything else together, and by workload.
#[derive(Debug, Clone, Default)]
struct Reading {
    at: u64,
    idle: [u64; 2],
    busy: [Time; 2],
    of: BTreeMap<(usize, u64), Time>,
}

impl Reading {
    /// Of one workload on both CPUs.
    fn workload(&self, id: u64) -> Time {
        let times = self.of.iter().filter(|((_, of), _)| *of == id).map(|(_, time)| *time);
        times.fold(Time::default(), |sum, more| Time {
            ns: sum.ns + more.ns,
            paired: sum.paired + more.paired,
        })
    }
}

struct Watch {
    probe: Probe,
    times: CpuTimes,
    ended: Vec<WorkloadId>,
    last: Reading,
}

impl Watch {
    /// A package for each CPU, so that it shows what ran where.
    fn new(hook: Hook, siblings: &[Option<usize>]) -> Self {
        let cpus = aya::util::nr_cpus().unwrap();
        let mut probe = Probe::load(LoadOptions {
            btf: Path::new("/sys/kernel/btf/vmlinux"),
            package_of_cpu: (0..cpus).map(|cpu| Some(cpu.min(2))).collect(),
            packages: 3,
            sibling_of_cpu: siblings.to_vec(),
            v1_controller: None,
            hierarchy_id: 0,
            max_workloads: 64,
            newcomers: false,
            exits: false,
            hook: Some(hook),
        })
        .unwrap_or_else(|error| panic!("{error}"));
        probe.attach().unwrap();
        Self { probe, times: CpuTimes::default(), ended: Vec::new(), last: Reading::default() }
    }

    fn paired(hook: Hook) -> Self {
        Self::new(hook, &[Some(1), Some(0)])
    }

    fn select(&mut self, id: u64, cgroup: &TestCgroup) {
        assert!(self.probe.begin(WorkloadId(id), cgroup.id()).unwrap());
    }

    /// Nothing goes back, and nobody's paired time is more than the CPU time.
    fn read(&mut self) -> Reading {
        self.last.at = self.probe.read(&mut self.times, &mut self.ended);
        for (cpu, package) in self.times.packages.iter().take(2).enumerate() {
            let paired = &package.features[&PAIRED];
            assert!(paired.workloads.is_sorted_by_key(|(id, _)| *id));
            for &(id, ns) in &package.workloads {
                let of = self.last.of.entry((cpu, id.0)).or_default();
                assert!(ns > of.ns, "{id:?}: {ns} {}", of.ns);
                of.ns = ns;
            }
            for &(id, ns) in &paired.workloads {
                let of = self.last.of.entry((cpu, id.0)).or_default();
                assert!(ns > of.paired, "{id:?}: {ns} {}", of.paired);
                of.paired = ns;
            }
            let mut busy = Time { ns: package.other, paired: paired.other };
            for ((on, id), time) in &self.last.of {
                assert!(time.paired <= time.ns, "{id}: {time:?}");
                if *on == cpu {
                    busy.ns += time.ns;
                    busy.paired += time.paired;
                }
            }
            assert!(
                busy.paired <= busy.ns && busy.paired >= self.last.busy[cpu].paired,
                "{busy:?}"
            );
            self.last.busy[cpu] = busy;
            self.last.idle[cpu] = package.idle;
        }
        self.last.clone()
    }

    /// What has been counted in that time.
    fn over(&mut self, time: Duration) -> (Reading, Reading) {
        let start = self.read();
        sleep(time);
        (start, self.read())
    }
}

/// What the run-queue clocks may leave out: irq, softirq, steal.
fn stolen_ns() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let ticks: Vec<u64> = stat
        .lines()
        .next()
        .unwrap()
        .split_whitespace()
        .skip(1)
        .map(|n| n.parse().unwrap())
        .collect();
    (ticks[5] + ticks[6] + ticks[7]) * 10 * MS
}

#[track_caller]
fn assert_near(what: &str, ours: u64, theirs: u64, share: f64, slack: u64) {
    let margin = (theirs as f64 * share) as u64 + slack;
    println!(
        "{what}: {ours} ns, not {theirs} ({:+.3} %)",
        (ours as f64 / theirs as f64 - 1.0) * 1e2
    );
    assert!(ours.abs_diff(theirs) <= margin, "{what}: {ours} ns, but {theirs} ± {margin}");
}

/// CPU 0 never idles: what the other runs is paired on both.
fn beside_a_hog(hook: Hook, beside: Option<Shape>) -> (Time, Time) {
    let _quiet = quiet();
    let jobs = ["hog", "beside"].map(TestCgroup::v2);
    let mut probe = Watch::paired(hook);
    (0..).zip(&jobs).for_each(|(id, job)| probe.select(id, job));
    let _hog = Load::hog(jobs[0].path(), 0);
    let _beside = beside.map(|shape| Load::start(shape, jobs[1].path(), Some(1)));
    sleep(Duration::from_millis(100));
    let stolen = stolen_ns();
    let (start, end) = probe.over(Duration::from_secs(3));
    let stolen = stolen_ns() - stolen;
    let [first, second] = [0, 1].map(|cpu| end.busy[cpu].since(start.busy[cpu]));
    assert!(end.idle[0] - start.idle[0] < 5 * MS, "CPU 0 has idled");
    // Theft is told in hundredths of a second.
    let slack = 2 * MS + stolen / 10;
    assert_near("of all on CPU 1 paired", second.paired, second.ns, 0.02, slack);
    assert_near("paired on CPU 0", first.paired, second.ns, 0.02, slack);
    assert_near("either way", first.paired, second.paired, 0.02, slack);
    [0, 1].map(|id| end.workload(id).since(start.workload(id))).into()
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_hog_alone_is_paired_with_nobody() {
    let (hog, _) = beside_a_hog(Hook::TpBtf, None);
    println!("{hog:?}");
    // As far as this machine has nothing else to do.
    assert!(hog.ns > 300 * MS);
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn two_hogs_are_always_paired() {
    let (first, second) = beside_a_hog(Hook::TpBtf, Some(Shape::Hog));
    for hog in [first, second] {
        assert_near("a hog beside a hog", hog.paired, hog.ns, 0.02, 2 * MS);
    }
}

const THIRD: Shape =
    Shape::Duty { busy: Duration::from_millis(3), period: Duration::from_millis(10) };

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_hog_is_paired_while_the_other_thread_is_busy() {
    let (_, beside) = beside_a_hog(Hook::TpBtf, Some(THIRD));
    assert_near("a job beside a hog", beside.paired, beside.ns, 0.02, 2 * MS);
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn the_raw_tracepoint_twin_knows_as_well() {
    beside_a_hog(Hook::RawTp, Some(THIRD));
}

/// Sleeps of a hundred microseconds.
#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn short_sleeps_are_told_apart() {
    let busy = Duration::from_micros(60);
    beside_a_hog(Hook::TpBtf, Some(Shape::Duty { busy, period: Duration::from_micros(200) }));
}

/// Two jobs that sleep for three fifths of the time, in step or in turns.
#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn who_runs_at_the_same_time_is_paired_and_who_takes_turns_is_not() {
    const PERIOD: u64 = 20 * MS;
    let _quiet = quiet();
    for (apart, share) in [(0, 1.0), (PERIOD / 2, 0.0)] {
        let jobs = ["first", "second"].map(TestCgroup::v2);
        let mut probe = Watch::paired(Hook::TpBtf);
        (0..).zip(&jobs).for_each(|(id, job)| probe.select(id, job));
        let _loads: Vec<Load> = jobs
            .iter()
            .enumerate()
            .map(|(cpu, job)| {
                let busy = Duration::from_millis(8);
                let period = Duration::from_nanos(PERIOD);
                let phase = Duration::from_nanos(apart * cpu as u64);
                Load::start(Shape::InStep { busy, period, phase }, job.path(), Some(cpu))
            })
            .collect();
        sleep(Duration::from_millis(100));
        let (start, end) = probe.over(Duration::from_secs(3));
        let [first, second] = [0, 1].map(|id| end.workload(id).since(start.workload(id)));
        let [cpu, other_cpu] = [0, 1].map(|cpu| end.busy[cpu].since(start.busy[cpu]));
        // Others may have run meanwhile, or got into the way.
        let others = cpu.ns + other_cpu.ns - first.ns - second.ns;
        println!("{apart} ns apart: {first:?} {second:?}, others {others} ns");
        assert_near("either way", cpu.paired, other_cpu.paired, 0.02, 5 * MS);
        for job in [first, second] {
            let expected = (job.ns as f64 * share) as u64;
            assert_near("a job", job.paired, expected, 0.02, 30 * MS + 2 * others);
        }
    }
}

/// A byte goes round among tasks, on these CPUs.
fn ring(cgroups: &[TestCgroup], cpus: &[usize]) -> (Vec<Load>, Vec<Box<dyn Send>>) {
    let mut pipes: Vec<_> = cpus.iter().map(|_| std::io::pipe().unwrap()).collect();
    let loads = (0..cpus.len())
        .map(|place| {
            let (from, to) = (&pipes[place].0, &pipes[(place + 1) % cpus.len()].1);
            let shape = Shape::Relay { from: from.as_raw_fd(), to: to.as_raw_fd() };
            Load::start(shape, cgroups[place % cgroups.len()].path(), Some(cpus[place]))
        })
        .collect();
    std::io::Write::write_all(&mut pipes[0].1, b"!").unwrap();
    let pipes = pipes
        .into_iter()
        .flat_map(|(from, to)| -> [Box<dyn Send>; 2] { [Box::new(from), Box::new(to)] });
    (loads, pipes.collect())
}

/// Both CPUs switch as fast as they can, and idle in between on one of them or on both.
#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_storm_pairs_both_sides_alike() {
    let _quiet = quiet();
    let jobs = ["storm-a", "storm-b", "storm-c"].map(TestCgroup::v2);
    for (cpus, others) in [(&[0, 0, 0][..], Some(THIRD)), (&[0, 1], None), (&[0, 0, 1], None)] {
        let mut probe = Watch::paired(Hook::TpBtf);
        (0..).zip(&jobs).for_each(|(id, job)| probe.select(id, job));
        let _storm = ring(&jobs, cpus);
        let _others = others.map(|shape| Load::start(shape, jobs[0].path(), Some(1)));
        sleep(Duration::from_millis(100));
        let (switches, first) = (probe.probe.stats().events.unwrap(), probe.read());
        let start = first.clone();
        let mut end = first;
        for _ in 0..200 {
            sleep(Duration::from_millis(10));
            end = probe.read();
        }
        let switches = probe.probe.stats().events.unwrap() - switches;
        let [first, second] = [0, 1].map(|cpu| end.busy[cpu].since(start.busy[cpu]));
        println!("{cpus:?}: {switches} switches, {first:?} {second:?}");
        assert!(switches > 50_000, "no storm");
        assert_near("either way", first.paired, second.paired, 0.02, 5 * MS);
        let idle = end.idle[0] - start.idle[0];
        if others.is_some() && idle < MS {
            assert_near("beside one that never idles", second.paired, second.ns, 0.02, 2 * MS);
        }
    }
}

/// A hog has the core for itself, then not; at the same time it is moved.
#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_move_cuts_paired_time_as_well() {
    let _quiet = quiet();
    let jobs = ["alone", "together", "other"].map(TestCgroup::v2);
    let mut probe = Watch::paired(Hook::TpBtf);
    (0..).zip(&jobs).for_each(|(id, job)| probe.select(id, job));
    let hog = Load::hog(jobs[0].path(), 0);
    sleep(Duration::from_millis(100));
    let start = probe.read();
    sleep(Duration::from_millis(400));
    let other = Load::hog(jobs[2].path(), 1);
    let moves = probe.read();
    hog.move_to(jobs[1].path());
    let moved = probe.read();
    sleep(Duration::from_millis(400));
    let end = probe.read();
    drop(other);
    let alone = end.workload(0).since(start.workload(0));
    let [least, most] = [&moves, &moved].map(|reading| reading.busy[1].since(start.busy[1]).ns);
    println!("{alone:?}, CPU 1 {least}..={most} ns");
    // As far as CPU 0 was the hog's.
    let hog_ns = |reading: &Reading| reading.workload(0).ns + reading.workload(1).ns;
    let on_first = moved.busy[0].since(start.busy[0]).ns;
    let others = on_first.saturating_sub(hog_ns(&moved) - hog_ns(&start));
    let least = least.saturating_sub(others);
    assert!((least.saturating_sub(5 * MS)..=most + 5 * MS).contains(&alone.paired));
    let together = end.workload(1);
    assert_near("beside a hog", together.paired, together.ns, 0.02, 5 * MS);
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn without_siblings_nothing_is_said() {
    let _quiet = quiet();
    for siblings in [&[][..], &[None, None]] {
        let mut watch = Watch::new(Hook::TpBtf, siblings);
        watch.probe.read(&mut watch.times, &mut watch.ended);
        let places = watch.times.packages.iter().chain([&watch.times.unplaced]);
        assert!(places.into_iter().all(|place| place.features.is_empty()));
    }
}

/// CPUs 0 and 1 are a core, and more lists of CPUs to come.
struct Core(Sysfs);

impl Core {
    fn of_two_threads() -> Self {
        let core = Self(Sysfs::new());
        (0..2).for_each(|cpu| core.0.add_cpu(cpu, 0, 0));
        core.set("0-1", ["0-1", "0-1"]);
        core
    }

    fn set(&self, online: &str, siblings: [&str; 2]) {
        for (cpu, siblings) in siblings.into_iter().enumerate() {
            let path = format!("devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
            self.0.write(&path, &format!("{siblings}\n"));
        }
        // Last: it says that there is something new.
        self.0.write("devices/system/cpu/online", &format!("{online}\n"));
    }
}

/// The samples of a run of the binary.
fn samples(path: &Path) -> Vec<Sample> {
    let lines = fs::read_to_string(path).unwrap();
    let events = lines.lines().map(|line| serde_json::from_str(line).unwrap());
    let sample = |event| match event {
        Event::Sample(sample) => Some(sample),
        _ => None,
    };
    events.filter_map(sample).collect()
}

/// Everybody's CPU time and the paired part of it, of the whole machine, when nothing is a workload.
fn of_all(sample: &Sample) -> Option<(u64, u64)> {
    let package = &sample.cpu.packages[0];
    Some((package.other, package.features.get(&PAIRED)?.other))
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_sibling_that_goes_offline_is_nobodys() {
    let _quiet = quiet();
    let core = Core::of_two_threads();
    let (job, empty) = (TestCgroup::v2("busy"), TestCgroup::v2("empty"));
    let _hogs = [0, 1].map(|cpu| Load::hog(job.path(), cpu));
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let mut command = ecoprobe(["--cpu-energy=none", "--gpu-energy=none", "--interval=100ms"]);
    command.arg("--duration=6s").arg("--cgroup").arg(empty.cgroup());
    command.arg("--sysfs").arg(core.0.path()).arg("--record").arg(&record);
    command.stdout(std::process::Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().unwrap();
    let mut changed = Vec::new();
    for (at, online, siblings) in [(2_000, "0", ["0", "1"]), (4_000, "0-1", ["0-1", "0-1"])] {
        sleep(Duration::from_millis(at).saturating_sub(start.elapsed()));
        core.set(online, siblings);
        changed.push(monotonic_ns());
    }
    assert!(child.wait().unwrap().success());
    let samples = samples(&record);
    // A look a second, and what has run by then.
    const LATER: u64 = 1_300 * MS;
    let share = |from: u64, to: u64| {
        let within = samples.iter().filter(|sample| (from..to).contains(&sample.mono_ns));
        let within: Vec<_> = within.map(|sample| of_all(sample).unwrap()).collect();
        let ((ns, paired), (last_ns, last_paired)) = (within[0], within[within.len() - 1]);
        println!("{within:?}");
        (last_paired - paired) as f64 / (last_ns - ns) as f64
    };
    let [gone, back] = changed[..] else { panic!() };
    let (before, without, after) =
        (share(0, gone), share(gone + LATER, back), share(back + LATER, u64::MAX));
    println!("paired: {before}, {without}, {after}");
    assert!(before > 0.8, "both CPUs are busy: {before}");
    assert!(without == 0.0, "nobody is there: {without}");
    assert!(after > 0.8, "it is back: {after}");
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_machine_without_siblings_records_no_feature() {
    let _quiet = quiet();
    let core = Core::of_two_threads();
    core.set("0-1", ["0", "1"]);
    let empty = TestCgroup::v2("empty");
    let directory = tempfile::tempdir().unwrap();
    let record = directory.path().join("record");
    let mut command = ecoprobe(["--cpu-energy=none", "--gpu-energy=none", "--interval=100ms"]);
    command.arg("--duration=300ms").arg("--cgroup").arg(empty.cgroup());
    command.arg("--sysfs").arg(core.0.path()).arg("--record").arg(&record);
    assert!(command.output().unwrap().status.success());
    let samples = samples(&record);
    assert!(samples.len() > 2 && samples.iter().all(|sample| of_all(sample).is_none()));
    assert!(!fs::read_to_string(&record).unwrap().contains("features"));
}
