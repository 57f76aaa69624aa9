//! How long the machine was awake: from the CPUs' accounts, against `/proc/stat`; and from package C-states,
//! which are real kernel counters here, described as if they were these. The `software` PMU's cpu-clock
//! counts nanoseconds and the time stamp counter some more, so a package seems to sleep for a known part of
//! the time.

#![allow(clippy::unwrap_used)]

mod sim;

use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::sleep;
use std::time::Duration;

use ecoprobe::base::{WorkloadId, monotonic_ns};
use ecoprobe::door::{AwakeSource, LoadOptions, OpenedAwake, Probe};
use ecoprobe::event::{CpuTimes, Sample};
use sim::Sysfs;
use sim::cgroup::TestCgroup;
use sim::cli::{Recording, Running};
use sim::load::{Load, Shape};

const MS: u64 = 1_000_000;

/// Events of the `software` PMU (type 1).
const CPU_CLOCK: &str = "event=0x00";
const NEVER: &str = "event=0x08";
const REFUSED: &str = "event=0xee";

/// Each loads a CPU that the others would see: one at a time.
fn quiet() -> MutexGuard<'static, ()> {
    static QUIET: Mutex<()> = Mutex::new(());
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kernel's own `msr` PMU, which every x86 kernel has.
fn msr() -> u32 {
    let path = "/sys/bus/event_source/devices/msr/type";
    fs::read_to_string(path).expect("the msr PMU").trim().parse().unwrap()
}

/// A machine with these package C-states, and the real time stamp counter.
fn machine(cpumask: &str, states: &[(&str, &str)]) -> Sysfs {
    let sysfs = Sysfs::new();
    sysfs.add_pmu("cstate_pkg", 1, Some(cpumask), states);
    sysfs.add_pmu("msr", msr(), None, &[("tsc", "event=0x00")]);
    sysfs
}

/// Ticks of the time stamp counter in a nanosecond: what the tests divide by.
fn tsc_rate() -> f64 {
    // SAFETY: reads a register; every x86-64 processor has it.
    let read = || (monotonic_ns(), unsafe { std::arch::x86_64::_rdtsc() });
    let from = read();
    sleep(Duration::from_millis(50));
    let to = read();
    (to.1 - from.1) as f64 / (to.0 - from.0) as f64
}

#[test]
fn packages_that_count_their_sleep_are_believed() {
    // Asleep for 1 ns of as many as the clock ticks: one of some three.
    let asleep = 1.0 / tsc_rate();
    let die = machine("0", &[]);
    fs::remove_dir_all(die.path().join("bus/event_source/devices/cstate_pkg")).unwrap();
    die.add_pmu("cstate_die", 1, Some("0"), &[("c6-residency", CPU_CLOCK)]);
    let machines = [machine("0-1", &[("c2-residency", CPU_CLOCK), ("c6-residency", NEVER)]), die];
    for sysfs in machines {
        let mut awake = OpenedAwake::open(sysfs.path()).confirm();
        assert_eq!(awake.source(), AwakeSource::PackageStates);
        let from = monotonic_ns();
        assert_eq!(awake.tick(from, Some(5)), Some(0));
        let mut before = 0;
        for _ in 0..10 {
            sleep(Duration::from_millis(10));
            // What the accounts say does not matter.
            let now = awake.tick(monotonic_ns(), Some(7)).unwrap();
            assert!(now > before, "invariant: it went from {before} to {now}");
            before = now;
        }
        sleep(Duration::from_millis(100));
        let now = monotonic_ns();
        let share = awake.tick(now, None).unwrap() as f64 / (now - from) as f64;
        assert!((share - (1.0 - asleep)).abs() < 0.02, "{share} awake, {asleep} asleep");
    }
}

#[test]
fn counters_that_cannot_be_true_give_way_to_the_accounts() {
    let accounts = |sysfs: &Sysfs| {
        let mut awake = OpenedAwake::open(sysfs.path()).confirm();
        assert_eq!(awake.source(), AwakeSource::Accounts);
        let ticks = [Some(3), Some(9), None].map(|accounts| awake.tick(monotonic_ns(), accounts));
        assert_eq!(ticks, [Some(3), Some(9), Some(9)]);
    };
    accounts(&Sysfs::new());
    // They stand still: as in virtual machines, and where packages never sleep.
    accounts(&machine("0-1", &[("c2-residency", NEVER), ("c6-residency", NEVER)]));
    // More sleep than time, at any clock rate.
    let names: Vec<String> = (2..9).map(|state| format!("c{state}-residency")).collect();
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), CPU_CLOCK)).collect();
    accounts(&machine("0", &all));
    // More of them than there are.
    let names: Vec<String> = (2..12).map(|state| format!("c{state}-residency")).collect();
    let all: Vec<_> = names.iter().map(|name| (name.as_str(), CPU_CLOCK)).collect();
    accounts(&machine("0", &all));
    // One is refused, one makes no sense, one package is not there, there are none.
    accounts(&machine("0", &[("c2-residency", CPU_CLOCK), ("c6-residency", REFUSED)]));
    accounts(&machine("0", &[("c2-residency", CPU_CLOCK), ("c6-residency", "event=")]));
    accounts(&machine("0,4000", &[("c2-residency", CPU_CLOCK)]));
    accounts(&machine("", &[("c2-residency", CPU_CLOCK)]));
    accounts(&machine("0", &[]));
    // Nobody tells how fast they count.
    let sysfs = Sysfs::new();
    sysfs.add_pmu("cstate_pkg", 1, Some("0"), &[("c2-residency", CPU_CLOCK)]);
    accounts(&sysfs);
    sysfs.add_pmu("msr", 1, None, &[("tsc", NEVER)]);
    accounts(&sysfs);
    sysfs.add_pmu("msr", 1, None, &[("tsc", REFUSED)]);
    accounts(&sysfs);
}

/// How long each CPU has idled, nanoseconds; to the 10 ms that `/proc/stat` counts in.
fn idle_ns() -> Vec<u64> {
    let text = fs::read_to_string("/proc/stat").unwrap();
    let cpus = text.lines().filter(|line| line.starts_with("cpu") && !line.starts_with("cpu "));
    let idle = |line: &str| {
        let ticks = line.split_whitespace().skip(4).take(2).map(|n| n.parse::<u64>().unwrap());
        ticks.sum::<u64>() * 10 * MS
    };
    cpus.map(idle).collect()
}

/// That so much time awake, in so much time, can be true of CPUs that idled for this long.
#[track_caller]
fn assert_possible(awake: u64, time: u64, idle: impl Iterator<Item = u64>) {
    let busy: Vec<u64> = idle.map(|idle| time.saturating_sub(idle)).collect();
    let (least, most) = (*busy.iter().max().unwrap(), busy.iter().sum::<u64>().min(time));
    println!("awake for {awake} of {time} ns; between {least} and {most}");
    // Each CPU's figure in /proc/stat has steps of 10 ms, and an idle wait costs some more than it
    // is billed there.
    let slack = time / 50 + 20 * MS * busy.len() as u64;
    assert!(
        awake + slack >= least && awake <= most + slack,
        "awake for {awake} of {time} ns; but busy for {busy:?}"
    );
    assert!(awake <= time, "invariant: awake for {awake} of {time} ns");
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn the_machine_is_awake_for_as_long_as_the_kernel_says() {
    let _quiet = quiet();
    let cpus = aya::util::nr_cpus().unwrap();
    let mut probe = Probe::load(LoadOptions {
        btf: Path::new("/sys/kernel/btf/vmlinux"),
        package_of_cpu: vec![Some(0); cpus],
        packages: 1,
        sibling_of_cpu: Vec::new(),
        v1_controller: None,
        hierarchy_id: 0,
        max_workloads: 64,
        newcomers: false,
        exits: false,
        hook: None,
    })
    .unwrap();
    let job = TestCgroup::v2("awake");
    let busy = Duration::from_millis(3);
    let _load =
        Load::start(Shape::Duty { busy, period: Duration::from_millis(10) }, job.path(), Some(0));
    probe.attach().unwrap();
    assert!(probe.begin(WorkloadId(1), job.id()).unwrap());
    let (mut times, mut ended) = (CpuTimes::default(), Vec::new());
    assert_eq!(probe.awake_ns(), None);
    // Ticks that are longer than the load's period, about as long, and shorter.
    for tick in [50, 10, 2] {
        let before = idle_ns();
        let from = probe.read(&mut times, &mut ended);
        let start = probe.awake_ns().unwrap();
        let (mut last, mut until) = (start, from);
        while until < from + 2_000 * MS {
            sleep(Duration::from_millis(tick));
            until = probe.read(&mut times, &mut ended);
            let now = probe.awake_ns().unwrap();
            assert!(now >= last, "invariant: time awake went from {last} to {now}");
            last = now;
        }
        let idle = idle_ns();
        let idle = idle.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before));
        assert_possible(last - start, until - from, idle);
    }
}

/// The samples of a run of a second, each of whose windows is 20 ms.
fn samples(options: &[&str]) -> Vec<Sample> {
    let job = TestCgroup::v2("awake-recorded");
    let _load = Load::start(Shape::QUARTER, job.path(), Some(0));
    let (recording, cgroup) = (Recording::new(), job.cgroup());
    let fixed = ["--cgroup", &cgroup, "--interval=20ms", "--duration=1s", "--format=json"];
    let record = ["--cpu-energy=none", "--record", &recording.arg()];
    Running::start(fixed.iter().chain(&record).chain(options)).wait().succeeded();
    recording.samples()
}

/// Nanoseconds awake, and passed, between the first sample and the last one.
#[track_caller]
fn awake_of(samples: &[Sample]) -> (u64, u64) {
    let awake: Vec<u64> = samples.iter().map(|sample| sample.awake_ns.unwrap()).collect();
    assert!(awake.len() > 20 && awake.is_sorted(), "invariant: {awake:?}");
    let (first, last) = (&samples[0], &samples[samples.len() - 1]);
    (awake[awake.len() - 1] - awake[0], last.mono_ns - first.mono_ns)
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_recording_has_the_time_awake_and_it_never_falls() {
    let _quiet = quiet();
    let (awake, time) = awake_of(&samples(&[]));
    println!("awake for {awake} of {time} ns");
    // The job alone is a quarter.
    assert!(awake > time / 5 && awake <= time, "{awake} of {time} ns");
}

#[test]
#[ignore = "needs root: it loads the probe and makes cgroups"]
fn a_recording_has_what_the_packages_count_where_they_do() {
    let _quiet = quiet();
    let sysfs = machine("0-1", &[("c6-residency", CPU_CLOCK)]);
    let (awake, time) = awake_of(&samples(&["--sysfs", sysfs.path().to_str().unwrap()]));
    let (share, expected) = (awake as f64 / time as f64, 1.0 - 1.0 / tsc_rate());
    assert!((share - expected).abs() < 0.02, "{share}, not {expected}");
}
