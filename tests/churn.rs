//! Cgroups that are gone before anybody could look at them, by the thousand.
//!
//! The truth is the `cpu.stat` of the cgroup above, which counts what its removed children had.

#![allow(clippy::unwrap_used)]

mod sim;

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ecoprobe::base::WorkloadId;
use ecoprobe::door::{Fate, LoadOptions, Probe};
use ecoprobe::event::CpuTimes;
use nix::sys::signal::Signal;
use sim::cgroup::TestCgroup;
use sim::cli::{Recording, Report, Running, number, until};
use sim::load::Job;

/// Of the kernel's own account.
const CPU_TIME: f64 = 0.001;

/// These tests load all CPUs: one at a time.
fn quiet() -> MutexGuard<'static, ()> {
    static QUIET: Mutex<()> = Mutex::new(());
    QUIET.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a cgroup, runs in it, and removes it at once.
fn live_and_die(path: &Path, busy: Duration) {
    fs::create_dir(path).unwrap();
    Job::start(path, busy).wait();
    // It is busy for a moment after its last process was waited for.
    until("an empty cgroup", || fs::remove_dir(path).is_ok());
}

fn start(names: &[&str]) -> Running {
    let names = names.iter().flat_map(|name| ["--cgroup", name]);
    let fixed = ["--cpu-energy=none", "--interval=100ms", "--format=jsonl"];
    let mut run = Running::start(names.chain(fixed));
    run.wait_for_lines(2);
    run
}

fn stop(run: Running) -> Report {
    run.signal(Signal::SIGTERM);
    run.wait().succeeded().lines().1
}

fn seconds(cgroup: &TestCgroup) -> f64 {
    cgroup.usage_ns() as f64 * 1e-9
}

/// Of all workloads.
fn cpu_seconds(report: &Report) -> f64 {
    println!("{}", report.warnings());
    report.0["workloads"].as_array().unwrap().iter().map(|row| number(&row["cpu_seconds"])).sum()
}

/// What may be missing because this kernel hides some switches from every tracer, seconds: each of
/// them hides up to one slice of some task, which is then nobody's.
fn hidden(report: &Report) -> f64 {
    if !report.warnings().contains("hidden from tracers") {
        return 0.0;
    }
    1e-3 * number(&report.0["self"]["probe"]["dropped"])
}

/// `slack` in seconds.
#[track_caller]
fn assert_cpu_time(found: f64, kernel: f64, slack: f64, what: &str) {
    let error = found / kernel - 1.0;
    println!("{what}: {found:.6} s, the kernel says {kernel:.6} s ({:+.4} %)", error * 100.0);
    assert!(kernel > 0.05, "{what}: {kernel} s");
    let most = CPU_TIME * kernel + slack;
    assert!((found - kernel).abs() <= most, "{what}: {found} s of {kernel} s");
}

/// Resident memory, bytes.
fn rss(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    value.trim().strip_suffix(" kB").unwrap().parse::<f64>().unwrap() * 1024.0
}

/// `ECOPROBE_CHURN=100000` for the whole of it, which takes some minutes.
#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn no_cgroup_lives_too_short() {
    const WORKERS: usize = 2;
    let _quiet = quiet();
    let count: usize =
        std::env::var("ECOPROBE_CHURN").map_or(3_000, |count| count.parse().unwrap());
    let top = TestCgroup::v2("churn");
    let _first = top.child("first");
    let glob = format!("{}/*", top.cgroup());
    // Windows with some thousand rows each would be a load of their own, and a recording of all of them
    // is a matter of its own.
    let recording = Recording::new();
    let mut options = vec!["--cgroup", &glob, "--max-workloads=4096", "--cpu-energy=none"];
    let (is_whole, record) = (count >= 50_000, recording.arg());
    options.push("--format=json");
    if !is_whole {
        options.extend(["--record", &record]);
    }
    let run = Running::start(options);
    // What ran before the first sample is not part of the run.
    let begun =
        || fs::read_to_string(recording.path()).is_ok_and(|text| text.contains("\"sample\""));
    if is_whole {
        thread::sleep(Duration::from_secs(5));
    } else {
        until("the first sample", begun);
    }
    let (begin, next, early) = (Instant::now(), AtomicUsize::new(0), Mutex::new(0.0));
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if number == count / 10 {
                        *early.lock().unwrap() = rss(run.pid());
                    }
                    live_and_die(
                        &top.path().join(format!("job-{number}")),
                        Duration::from_millis(1),
                    );
                }
            });
        }
    });
    let (took, late, early) = (begin.elapsed(), rss(run.pid()), early.into_inner().unwrap());
    println!(
        "{count} cgroups in {took:.1?}; RSS {:.2} MB after a tenth, {:.2} MB at the end",
        early / 1e6,
        late / 1e6
    );
    run.signal(Signal::SIGTERM);
    let ended = run.wait().succeeded();
    let report = ended.report();
    let slack = if is_whole { 0.0 } else { hidden(&report).min(0.01) };
    assert_cpu_time(cpu_seconds(&report), seconds(&top), slack, "all of them");
    assert!(!report.warnings().contains("no room"), "{}", report.warnings());
    // The last few thousand that ended have a row each.
    if is_whole {
        // 22 bytes a cgroup: tables that double once more are not a leak, anything kept of each is.
        assert!(late < early + 2e6, "{early} {late}");
    }
    let rows = report.0["workloads"].as_array().unwrap().len();
    assert!(rows > count.min(4096) - 1, "{rows} rows");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_service_that_restarts_loses_nothing() {
    const LIVES: u32 = 20;
    let _quiet = quiet();
    let top = TestCgroup::v2("restarts");
    let service = top.path().join("a.service");
    fs::create_dir(&service).unwrap();
    let name = format!("{}/a.service", top.cgroup());
    let run = start(&[&name]);
    fs::remove_dir(&service).unwrap();
    for life in 0..LIVES {
        live_and_die(&service, Duration::from_millis(1 << (life % 6)));
        // Some at once, some when the old one has been settled.
        thread::sleep(Duration::from_millis(u64::from(life % 4) * 60));
    }
    let report = stop(run);
    cpu_seconds(&report);
    assert_eq!(report.0["workloads"].as_array().unwrap().len(), 1);
    let slack = 0.2e-3 * f64::from(LIVES) + hidden(&report).min(0.01);
    assert_cpu_time(report.cpu_seconds(&name), seconds(&top), slack, "the service");
}

/// Cgroups that nobody asks for are where they were before: with the nearest that somebody does.
#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn what_nobody_watches_stays_with_its_ancestor() {
    let _quiet = quiet();
    let top = TestCgroup::v2("nobodys");
    let [jobs, parent, elsewhere] = ["jobs", "parent", "elsewhere"].map(|name| top.child(name));
    let _first = jobs.child("job-first");
    let glob = format!("{}/job-*", jobs.cgroup());
    let run = start(&[&glob, &parent.cgroup()]);
    let begin = Instant::now();
    thread::scope(|scope| {
        for (above, name) in [(&jobs, "job"), (&parent, "child"), (&elsewhere, "child")] {
            let begin = &begin;
            scope.spawn(move || {
                for number in 0.. {
                    if begin.elapsed() > Duration::from_secs(3) {
                        return;
                    }
                    let path = above.path().join(format!("{name}-{number}"));
                    fs::create_dir(&path).unwrap();
                    live_and_die(&path.join("inner"), Duration::from_millis(2));
                    until("an empty cgroup", || fs::remove_dir(&path).is_ok());
                }
            });
        }
    });
    let report = stop(run);
    let slack = 0.2e-3 + hidden(&report).min(0.01);
    let of_parent = report.cpu_seconds(&parent.cgroup());
    let of_jobs = cpu_seconds(&report) - of_parent;
    assert_cpu_time(of_parent, seconds(&parent), slack, "the parent");
    assert_cpu_time(of_jobs, seconds(&jobs), slack, "the jobs");
    let rows = report.0["workloads"].as_array().unwrap();
    assert!(rows.iter().all(|row| !row["name"].as_str().unwrap().contains("elsewhere")));
}

/// All CPU time is somebody's, and nobody's goes back, whatever becomes of new cgroups.
#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn nothing_is_lost_or_given_back() {
    let _quiet = quiet();
    let top = TestCgroup::v2("books");
    let cpus = aya::util::nr_cpus().unwrap();
    let mut probe = Probe::load(LoadOptions {
        btf: Path::new("/sys/kernel/btf/vmlinux"),
        package_of_cpu: vec![Some(0); cpus],
        packages: 1,
        sibling_of_cpu: Vec::new(),
        v1_controller: None,
        hierarchy_id: 0,
        max_workloads: 64,
        newcomers: true,
        exits: false,
        hook: None,
    })
    .unwrap();
    probe.attach().unwrap();
    let (mut times, mut ended) = (CpuTimes::default(), Vec::new());
    let mut of_workloads = std::collections::BTreeMap::new();
    let mut read = |probe: &mut Probe| {
        let at = probe.read(&mut times, &mut ended);
        let package = &times.packages[0];
        for (id, ns) in &package.workloads {
            let before = of_workloads.insert(*id, *ns).unwrap_or(0);
            assert!(before <= *ns, "invariant: {id:?} {before} {ns}");
        }
        (at, package.other, package.idle, of_workloads.values().sum::<u64>())
    };
    let first = read(&mut probe);
    let (mut last, mut begun) = (first, Vec::new());
    let begin = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if begin.elapsed() > Duration::from_secs(3) {
                    return;
                }
                let name = if number % 3 == 0 { "wanted" } else { "unwanted" };
                let path = top.path().join(format!("{name}-{number}"));
                live_and_die(&path, Duration::from_millis(1));
            }
        });
        while begin.elapsed() < Duration::from_millis(3_300) {
            thread::sleep(Duration::from_millis(5));
            let news: Vec<_> = probe.cgroup_news().collect();
            for news in news {
                match news.what {
                    Fate::Made(Some(path)) if path.to_string_lossy().contains("/wanted-") => {
                        assert!(path.starts_with(top.cgroup()), "{path:?}");
                        // One workload in many cgroups.
                        assert!(probe.begin(WorkloadId(1), news.cgroup_id).unwrap());
                        begun.push(news.cgroup_id);
                    }
                    Fate::Made(path) => assert!(path.is_some()),
                    Fate::Removed if begun.contains(&news.cgroup_id) => probe.end(news.cgroup_id),
                    Fate::Removed => {}
                }
            }
            probe.settle_newcomers(|_| false);
            let now = read(&mut probe);
            assert!(
                now.1 >= last.1 && now.2 >= last.2 && now.3 >= last.3,
                "invariant: {last:?} {now:?}"
            );
            last = now;
        }
    });
    probe.settle_newcomers(|_| false);
    let last = read(&mut probe);
    let wall = (last.0 - first.0) as f64 * cpus as f64;
    let all = (last.1 - first.1 + last.2 - first.2 + last.3) as f64;
    assert!((all / wall - 1.0).abs() < 0.002, "{all} ns of {wall}");
    assert!(begun.len() > 50, "{}", begun.len());
    let third = top.usage_ns() as f64 * 1e-9 / 3.0;
    assert!((last.3 as f64 * 1e-9 / third - 1.0).abs() < 0.05, "{} {third}", last.3);
}
