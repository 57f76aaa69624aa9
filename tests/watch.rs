//! `ecoprobe --cgroup` on this kernel: CPU time against the kernel's own account, cgroups that come
//! and go, and every way for a run to end.

#![allow(clippy::unwrap_used)]

mod sim;

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt as _};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sim::cgroup::{TestCgroup, v1_mount};
use sim::cli::{Ended, Recording, Report, Running, assert_near, ecoprobe, number, until};
use sim::load::{Load, Shape};
use sim::{CpuClock, Feed, Feeder, Machine, Power, Sysfs};

/// Of the kernel's own account.
const CPU_TIME: f64 = 0.005;
/// The kernel brings its account of a running task up to date when the task switches and at every
/// tick of the timer: by so much the reference may lag, seconds.
const TIMER_TICK: f64 = 0.004;

/// Keeps reading the kernel's account of cgroups: a simulated job draws a joule for each second.
struct Account {
    feeder: Feeder,
    _sysfs: Sysfs,
}

impl Account {
    fn of(clocks: Vec<CpuClock>) -> Self {
        let sysfs = Machine::new(1).build();
        let power = Power::Load {
            static_watts: 0.0,
            joules_per_cpu_second: 1.0,
            machine: None,
            jobs: clocks,
        };
        let feed = Feed { zone: sysfs.zone("package-0"), start_uj: 0, power };
        Self { feeder: Feeder::start(Duration::from_millis(2), vec![feed]), _sysfs: sysfs }
    }

    fn of_cgroups(cgroups: &[&TestCgroup]) -> Self {
        Self::of(cgroups.iter().map(|cgroup| CpuClock::new(cgroup.path())).collect())
    }

    /// CPU seconds of each in the time that the recording is about.
    fn during(&self, recording: &Recording) -> Vec<f64> {
        let (from, to) = recording.span();
        let [from, to] = [from, to].map(|at| self.feeder.truth_at(at).remove(0));
        to.since(&from).jobs_j
    }
}

#[track_caller]
fn assert_cpu_time(found: f64, kernel: f64, relative: f64, what: &str) {
    let most = (relative * kernel).max(TIMER_TICK);
    assert!((found - kernel).abs() <= most, "{what}: {found} s where the kernel says {kernel} s");
}

/// How far off everything together may be: the sandboxes of some clouds have a first process whose
/// switches no tracer sees, and the report says so.
fn whole_machine(report: &Report) -> f64 {
    if report.warnings().contains("hidden from tracers") { 0.05 } else { CPU_TIME }
}

/// Without energy: these tests are about time.
fn watch(names: &[&str], recording: &Recording, options: &[&str]) -> Running {
    let record = recording.arg();
    let names = names.iter().flat_map(|name| ["--cgroup", name]);
    let fixed = ["--cpu-energy=none", "--format=json", "--record", &record];
    Running::start(names.chain(fixed).chain(options.iter().copied()))
}

/// JSON Lines of a busy cgroup, already showing windows with CPU time in them.
fn watching(cgroup: &TestCgroup) -> Running {
    let mut run = Running::start([
        "--cgroup",
        &cgroup.cgroup(),
        "--cpu-energy=none",
        "--interval=20ms",
        "--format=jsonl",
    ]);
    wait_until_busy(&mut run);
    run
}

fn wait_until_busy(run: &mut Running) {
    run.wait_for_lines(5);
    until("CPU time", || {
        let text = run.stdout();
        let last = text.lines().rfind(|line| line.ends_with('}')).unwrap();
        let window: serde_json::Value = serde_json::from_str(last).unwrap();
        number(&window["workloads"][0]["cpu_seconds"]) > 0.0
    });
}

/// That it said what it had measured.
#[track_caller]
fn assert_reported(ended: &Ended, name: &str) {
    let (windows, report) = ended.lines();
    assert!(windows.len() >= 5);
    let of = |view: &serde_json::Value| number(&view["workloads"][0]["cpu_seconds"]);
    assert!(of(&report.0) > 0.0 && report.0["workloads"][0]["name"] == name, "{report:?}");
    // Once it has ended there is no row of it.
    let told = windows.iter().filter(|window| !window["workloads"][0].is_null());
    let sum: f64 = told.map(of).sum();
    assert!((sum - of(&report.0)).abs() < 1e-9, "{sum}");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn cpu_time_is_the_kernels_own() {
    let names = ["hog", "quarter", "forks", "nested"];
    let cgroups = names.map(TestCgroup::v2);
    let [hog, quarter, forks, nested] = &cgroups;
    let _loads = [
        Load::hog(hog.path(), 0),
        Load::start(Shape::QUARTER, quarter.path(), Some(1)),
        Load::start(Shape::MILLISECOND_CHILDREN, forks.path(), None),
    ];
    let account = Account::of_cgroups(&[hog, quarter, forks, nested]);
    let recording = Recording::new();
    let stop = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        // Children that live for 10 ms, between two ticks most of the time, some of them two deep.
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let child = nested.child(&format!("child-{number}"));
                let deeper = (number % 2 == 1).then(|| child.child("deeper"));
                let inside = deeper.as_ref().unwrap_or(&child);
                let load = Load::start(Shape::Hog, inside.path(), None);
                thread::sleep(Duration::from_millis(10));
                drop(load);
            }
        });
        let paths = [hog, quarter, forks, nested].map(|cgroup| cgroup.cgroup());
        let paths = paths.each_ref().map(String::as_str);
        let run = watch(&paths, &recording, &["--interval=100ms", "--duration=10s"]);
        let report = run.wait().succeeded().report();
        stop.store(true, Ordering::Relaxed);
        report
    });
    assert_near(number(&report.0["window"]["seconds"]), 10.0, 0.02, "duration");
    for (cgroup, seconds) in cgroups.iter().zip(account.during(&recording)) {
        assert!(seconds > 0.5, "{}: {seconds}", cgroup.cgroup());
        assert_cpu_time(report.cpu_seconds(&cgroup.cgroup()), seconds, CPU_TIME, &cgroup.cgroup());
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_glob_takes_in_what_is_made_later() {
    let top = TestCgroup::v2("glob");
    let glob = format!("{}/*", top.cgroup());
    let early = top.child("early");
    let options = ["--cpu-energy=none", "--interval=50ms", "--format=jsonl"];
    let mut run = Running::start(["--cgroup", &glob].into_iter().chain(options));
    run.wait_for_lines(5);
    let late = top.child("late");
    let inside = late.child("inside");
    let name = late.cgroup().trim_start_matches('/').to_owned();
    let load = Load::hog(inside.path(), 0);
    thread::sleep(Duration::from_millis(1500));
    let used = || late.usage_ns() as f64 * 1e-9;
    let before = used();
    run.signal(Signal::SIGTERM);
    let (_, report) = run.wait().succeeded().lines();
    let after = used();
    drop(load);
    let found = report.cpu_seconds(&name);
    assert!(before > 0.1, "{before}");
    assert_cpu_time(found, found.clamp(before, after), CPU_TIME, "late");
    assert_eq!(report.cpu_seconds(early.cgroup().trim_start_matches('/')), 0.0);
    assert_eq!(report.0["workloads"].as_array().unwrap().len(), 2, "children are not workloads");
}

#[test]
#[ignore = "needs root and a cgroup v1 mount: it makes cgroups and loads the probe"]
fn v1_cgroups_count_as_well() {
    let mount = v1_mount("cpuacct").expect("cpuacct is not mounted");
    let cgroup = TestCgroup::v1("cpuacct", "v1");
    let _load = Load::start(Shape::QUARTER, cgroup.path(), Some(1));
    let account = Account::of(vec![CpuClock::new(cgroup.path()), CpuClock::new(&mount)]);
    let recording = Recording::new();
    // By its path under the mount: the bare name could be any hierarchy's.
    let path = cgroup.path().to_str().unwrap();
    let root = mount.to_str().unwrap();
    let options = ["--interval=100ms", "--duration=4s"];
    let report = watch(&[path, root], &recording, &options).wait().succeeded().report();
    let seconds = account.during(&recording);
    assert_cpu_time(report.cpu_seconds(path), seconds[0], CPU_TIME, path);
    // Everything but what is in the job, which is a workload of its own.
    let rest = report.cpu_seconds(root);
    let found = rest + report.cpu_seconds(path);
    assert_cpu_time(found, seconds[1], whole_machine(&report), "the whole machine");
    let hybrid = sim::cgroup::has_v2();
    let expected = if hybrid { "hybrid" } else { "v1" };
    assert_eq!(report.0["sources"]["cpu_time"]["hierarchy"], expected);
}

#[test]
#[ignore = "needs root and a cgroup v1 mount: it makes cgroups and loads the probe"]
fn v1_accounts_for_the_whole_machine() {
    let v1 = v1_mount("cpuacct").expect("cpuacct is not mounted");
    let cgroup = TestCgroup::v2("below");
    let _load = Load::hog(cgroup.path(), 0);
    let account = Account::of(vec![CpuClock::new(&v1)]);
    let recording = Recording::new();
    let options = ["--interval=100ms", "--duration=3s"];
    let report = watch(&["/"], &recording, &options).wait().succeeded().report();
    let seconds = account.during(&recording)[0];
    let most = whole_machine(&report);
    assert_cpu_time(report.cpu_seconds("/"), seconds, most, "the whole machine");
}

/// Of all CPUs but what they idled and what others had of them, by the kernel's own sampling.
fn busy_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap();
    let all = stat.lines().next().unwrap().split_whitespace().skip(1);
    let ticks: Vec<f64> = all.map(|field| field.parse().unwrap()).collect();
    // user, nice, system; idle, iowait and the rest are nobody's run time.
    ticks[..3].iter().sum::<f64>() / 100.0
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn the_root_is_the_whole_machine() {
    let cgroup = TestCgroup::v2("below");
    let _load = Load::hog(cgroup.path(), 0);
    let before = (busy_seconds(), cgroup.usage_ns());
    let recording = Recording::new();
    let options = ["--interval=100ms", "--duration=3s"];
    let report = watch(&["/"], &recording, &options).wait().succeeded().report();
    let job = (cgroup.usage_ns() - before.1) as f64 * 1e-9;
    let machine = busy_seconds() - before.0;
    let found = report.cpu_seconds("/");
    // It starts later and ends earlier than what it is compared with.
    assert!(found > 0.8 * job, "{found} s where the job alone had {job} s");
    assert!(found < 1.1 * machine + 0.1, "{found} s of {machine} s");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_service_that_restarts_is_one_row_with_all_of_its_time() {
    let top = TestCgroup::v2("restart");
    let mut service = top.child("a.service");
    let _other = top.child("b.service");
    let load = Load::hog(service.path(), 0);
    let name = service.cgroup();
    let glob = format!("{}/b*", top.cgroup());
    let recording = Recording::new();
    let run = watch(&[&name, &glob], &recording, &["--interval=50ms"]);
    until("the recording", || recording.path().exists());
    let seconds = |cgroup: &TestCgroup| cgroup.usage_ns() as f64 * 1e-9;
    let (before, mut used) = (seconds(&service), 0.0);
    for _ in 0..4 {
        thread::sleep(Duration::from_millis(500));
        // As systemd does: the old one is gone before the new one is made at the same path.
        top.add(load.pid());
        used += seconds(&service);
        drop(service);
        thread::sleep(Duration::from_millis(20));
        service = top.child("a.service");
        service.add(load.pid());
    }
    thread::sleep(Duration::from_millis(500));
    // In its last life it ends without coming back: not the run, for a glob may match again.
    drop(load);
    used += seconds(&service);
    drop(service);
    thread::sleep(Duration::from_millis(2_500));
    run.signal(Signal::SIGTERM);
    let report = run.wait().succeeded().report();
    let rows = report.0["workloads"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{rows:?}");
    let found = report.cpu_seconds(&name);
    // A load that is moved while it runs is cut there by the clock. In its first life it had a fifth of
    // its time, some of it before the run began.
    assert!(found < used + 0.02, "{found} s of {used} s");
    assert!(found > 0.6 * (used - before), "{found} s of {used} s, {before} s of it before");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_run_waits_for_a_restart_and_ends_when_there_is_none() {
    let cgroup = TestCgroup::v2("wait");
    let name = cgroup.path().to_owned();
    let run = Running::start([
        "--cgroup",
        &cgroup.cgroup(),
        "--cpu-energy=none",
        // No tick comes to look.
        "--interval=1h",
        "--format=json",
    ]);
    thread::sleep(Duration::from_millis(1_000));
    for _ in 0..2 {
        fs::remove_dir(&name).unwrap();
        thread::sleep(Duration::from_millis(1_200));
        fs::create_dir(&name).unwrap();
        thread::sleep(Duration::from_millis(200));
    }
    thread::sleep(Duration::from_millis(2_200));
    let start = std::time::Instant::now();
    drop(cgroup);
    let ended = run.wait().succeeded();
    let waited = start.elapsed().as_secs_f64();
    assert!((1.9..4.0).contains(&waited), "{waited} s");
    assert!(ended.stderr.contains("every watched cgroup is gone"), "{}", ended.stderr);
    assert_eq!(ended.report().0["workloads"].as_array().unwrap().len(), 1);
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_run_ends_with_its_report_however_it_ends() {
    let cgroup = TestCgroup::v2("end");
    let _load = Load::start(Shape::QUARTER, cgroup.path(), Some(0));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        let run = watching(&cgroup);
        run.signal(signal);
        assert_reported(&run.wait().succeeded(), &cgroup.cgroup());
    }

    // A background job of a shell without job control, where interrupts are ignored from the start.
    let mut shell = Command::new("sh");
    shell.args(["-c", "\"$0\" \"$@\" & wait $!", env!("CARGO_BIN_EXE_ecoprobe"), "--cgroup"]);
    shell.args([&cgroup.cgroup(), "--cpu-energy=none", "--interval=20ms", "--format=jsonl"]);
    let mut run = Running::spawn(shell);
    wait_until_busy(&mut run);
    let children = format!("/proc/{0}/task/{0}/children", run.pid());
    let child = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(child), Signal::SIGINT).unwrap();
    assert_reported(&run.wait().succeeded(), &cgroup.cgroup());

    // nohup
    let mut command = ecoprobe(["--cgroup", &cgroup.cgroup(), "--cpu-energy=none"]);
    command.args(["--interval=20ms", "--format=jsonl"]);
    // SAFETY: signal(2) is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        })
    };
    let mut run = Running::spawn(command);
    wait_until_busy(&mut run);
    run.signal(Signal::SIGHUP);
    let lines = run.stdout().lines().count();
    run.wait_for_lines(lines + 5);
    run.signal(Signal::SIGINT);
    assert_reported(&run.wait().succeeded(), &cgroup.cgroup());
}

/// The kernel gives up checking a program when the loader has a signal to see to. That is neither a
/// refusal nor a reason to take the hook for old kernels.
#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn signals_while_the_probe_is_loaded_are_no_refusal() {
    let start = || {
        let options = ["--cgroup", "/", "--cpu-energy=none", "--format=json", "--duration=1500ms"];
        Running::start(options)
    };
    let hook = |ended: Ended| {
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        report["sources"]["cpu_time"]["hook"].as_str().unwrap().to_owned()
    };
    let usual = hook(start().wait().succeeded());

    let stopped = start();
    for _ in 0..30 {
        stopped.signal(Signal::SIGSTOP);
        thread::sleep(Duration::from_millis(2));
        stopped.signal(Signal::SIGCONT);
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(hook(stopped.wait().succeeded()), usual);

    for after in [40, 80, 160] {
        let run = start();
        thread::sleep(Duration::from_millis(after));
        run.signal(Signal::SIGTERM);
        let ended = run.wait();
        // Before it listens a signal ends it as it ends any program.
        if ended.status.signal() != Some(Signal::SIGTERM as i32) {
            assert_eq!(hook(ended.succeeded()), usual, "{after} ms");
        }
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn when_every_watched_cgroup_is_gone_the_run_is_over() {
    let (a, b) = (TestCgroup::v2("a"), TestCgroup::v2("b"));
    let load = Load::start(Shape::QUARTER, a.path(), Some(0));
    let mut run = Running::start([
        "--cgroup",
        &a.cgroup(),
        "--cgroup",
        &b.cgroup(),
        "--cpu-energy=none",
        "--interval=20ms",
        "--format=jsonl",
    ]);
    wait_until_busy(&mut run);
    drop(b);
    let lines = run.stdout().lines().count();
    run.wait_for_lines(lines + 5);
    let used = a.usage_ns() as f64 * 1e-9;
    let name = a.cgroup();
    drop(load);
    drop(a);
    let ended = run.wait().succeeded();
    assert_reported(&ended, &name);
    let (_, report) = ended.lines();
    assert!(report.warnings().contains("every watched cgroup is gone"), "{}", report.warnings());
    assert!(ended.stderr.contains("every watched cgroup is gone"), "{}", ended.stderr);
    assert!(report.cpu_seconds(&name) < used + 0.1);
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn every_format_and_output() {
    let cgroup = TestCgroup::v2("formats");
    let _load = Load::start(Shape::QUARTER, cgroup.path(), Some(0));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("result");
    let name = cgroup.cgroup();
    let result = |format: &str| {
        let options = ["--cpu-energy=estimate", "--interval=100ms", "--duration=450ms"];
        let output = ["--format", format, "--output", file.to_str().unwrap()];
        let arguments = ["--cgroup", &name].into_iter().chain(options).chain(output);
        let ended = Running::start(arguments).wait().succeeded();
        assert_eq!(ended.stdout, "");
        fs::read_to_string(&file).unwrap()
    };

    let text = result("csv");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(
        rows[0].join(","),
        "start_s,seconds,workload,cpu_seconds,cpu_j,dram_j,gpu_j,idle_share_j,total_j,\
         mean_power_w,cpu_energy"
    );
    // Four ticks and the end.
    assert_eq!(rows.len(), 1 + 5, "{text}");
    for row in &rows[1..] {
        assert_eq!(row.len(), rows[0].len());
        assert_eq!((row[2], row[10]), (&*name, "estimate"));
        assert!(row[3].parse::<f64>().unwrap() > 0.0, "{text}");
        assert_eq!((row[5], row[6]), ("", ""), "what cannot be had is empty: {text}");
    }

    let text = result("jsonl");
    let types: Vec<_> = text.lines().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(types[..5], ["{\"type\":\"window\""; 5], "{text}");
    assert_eq!(types[5..], ["{\"type\":\"report\""], "{text}");

    let report: serde_json::Value = serde_json::from_str(&result("json")).unwrap();
    assert_eq!(report["schema"], "ecoprobe.report/1");
    assert_eq!(report["sources"]["cpu_energy"]["kind"], "estimate");
    assert!(report["node"]["dram"]["measured_j"].is_null());
    assert!(report["window"]["samples"] == 6, "{report}");

    let text = result("table");
    assert!(text.contains(&name) && text.contains("estimate"), "{text}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing beside it");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn the_first_window_of_a_long_interval_is_the_run() {
    let cgroup = TestCgroup::v2("short");
    let _load = Load::hog(cgroup.path(), 0);
    let recording = Recording::new();
    let account = Account::of_cgroups(&[&cgroup]);
    let run = watch(&[&cgroup.cgroup()], &recording, &["--interval=1h"]);
    until("the recording", || recording.path().exists());
    thread::sleep(Duration::from_millis(1500));
    run.signal(Signal::SIGINT);
    let report = run.wait().succeeded().report();
    assert_eq!(report.0["window"]["samples"], 2);
    let seconds = account.during(&recording)[0];
    assert_cpu_time(report.cpu_seconds(&cgroup.cgroup()), seconds, CPU_TIME, "the run");
}
