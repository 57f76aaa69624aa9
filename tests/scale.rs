//! What measuring costs with a thousand and ten thousand cgroups. Bounds are those of a release
//! build; a debug build is only held to what a mistake of another order would break.

#![allow(clippy::unwrap_used)]

mod sim;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use ecoprobe::door::{Last, Live};
use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use sim::cgroup::TestCgroup;
use sim::cli::{Recording, Report, Running, number};
use sim::{Feed, Feeder, Machine, Power, Sysfs};

/// How much slower code is that nobody optimised.
const UNOPTIMISED: f64 = if cfg!(debug_assertions) { 8.0 } else { 1.0 };
const INTERVAL: Duration = Duration::from_millis(20);

/// These tests look at clocks, and so run one after another.
static ALONE: Mutex<()> = Mutex::new(());

/// Many cgroups, and a package to share out.
struct Crowd {
    top: TestCgroup,
    sysfs: Sysfs,
    _feeder: Feeder,
}

impl Crowd {
    fn new(count: usize) -> Self {
        let top = TestCgroup::v2("crowd");
        for number in 0..count {
            fs::create_dir(top.path().join(format!("job-{number}"))).unwrap();
        }
        let sysfs = Machine::new(1).with("dram").build();
        let feed =
            |zone| Feed { zone: sysfs.zone(zone), start_uj: 0, power: Power::constant(20.0) };
        let feeds = vec![feed("package-0"), feed("dram-0")];
        let feeder = Feeder::start(Duration::from_millis(5), feeds);
        Self { top, sysfs, _feeder: feeder }
    }

    fn arguments(&self) -> Vec<String> {
        let glob = format!("{}/*", self.top.cgroup());
        let interval = format!("--interval={}ms", INTERVAL.as_millis());
        let sysfs = format!("--sysfs={}", self.sysfs.path().display());
        ["--cgroup", &glob, &interval, "--cpu-energy=powercap", &sysfs, "--format=json"]
            .map(str::to_owned)
            .to_vec()
    }

    fn start(&self, options: &[&str]) -> Running {
        let options = options.iter().map(|option| (*option).to_owned());
        Running::start(self.arguments().into_iter().chain(options))
    }
}

/// CPU time that a process has used, exactly, by the kernel's clock for it.
fn cpu_time(pid: u32) -> Duration {
    let clock: ClockId = clock_getcpuclockid(Pid::from_raw(pid as i32)).unwrap();
    clock.now().unwrap().into()
}

fn status_bytes(pid: u32, key: &str) -> f64 {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    value.trim().strip_suffix("kB").unwrap().trim().parse::<f64>().unwrap() * 1024.0
}

/// A run over so many cgroups.
struct Figures {
    report: Report,
    /// CPU time of the whole process for each tick, µs.
    cpu_us_per_tick: f64,
    peak_rss: f64,
    /// Of which programs and libraries: what an optimised build has less of.
    code: f64,
}

fn measure(count: usize) -> Figures {
    let crowd = Crowd::new(count);
    let run = crowd.start(&["--duration=3s"]);
    thread::sleep(Duration::from_millis(1_200));
    let (start, before) = (Instant::now(), cpu_time(run.pid()));
    thread::sleep(Duration::from_millis(1_500));
    let used = cpu_time(run.pid()) - before;
    let ticks = start.elapsed().as_secs_f64() / INTERVAL.as_secs_f64();
    let [peak_rss, code] = ["VmHWM:", "RssFile:"].map(|key| status_bytes(run.pid(), key));
    let report = run.wait().succeeded().report();
    assert_eq!(report.0["workloads"].as_array().unwrap().len(), count);
    Figures { report, cpu_us_per_tick: used.as_secs_f64() * 1e6 / ticks, peak_rss, code }
}

/// "p50", "p99" or "max" of `collect_us`.
fn collect_us(report: &Report, quantile: &str) -> f64 {
    number(&report.0["self"]["collect_us"][quantile])
}

#[track_caller]
fn assert_below(found: f64, most: f64, what: &str) {
    println!("{what}: {found:.1}, at most {most:.1}");
    assert!(found < most, "{what}: {found:.1}, at most {most:.1}");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_tick_is_short_and_the_process_does_little_else() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let few = measure(1);
    for (count, most_us) in [(1_000, 100.0), (10_000, 1_000.0)] {
        let many = measure(count);
        let samples = number(&many.report.0["window"]["samples"]);
        assert!((100.0..=155.0).contains(&samples), "{samples}");
        let p99 = collect_us(&many.report, "p99");
        assert_below(p99, most_us * UNOPTIMISED, &format!("p99 of a tick, {count} cgroups, µs"));
        // What more cgroups cost is in the tick, and nowhere else: the kernel's own account of the
        // process, less what waking up costs anyway, must not know of more.
        let more = many.cpu_us_per_tick - few.cpu_us_per_tick;
        let what = format!("CPU time of a tick for {count} cgroups instead of 1, µs");
        assert_below(more, most_us * UNOPTIMISED, &what);
        let median = collect_us(&many.report, "p50");
        assert_below(more, 3.0 * median + 50.0, &format!("{what}, by the report's median"));
        if count == 1_000 {
            let own = number(&many.report.0["self"]["rss_peak_bytes"]);
            assert!(own >= many.peak_rss, "{own} {}", many.peak_rss);
            for (peak, what) in [(many.peak_rss, "VmHWM"), (own, "rss_peak_bytes")] {
                let what = format!("{what} with {count} cgroups, but for code, MB");
                assert_below((peak - many.code) / 1e6, 5.0, &what);
            }
        }
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn an_outside_clock_agrees_about_the_tick() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let crowd = Crowd::new(1_000);
    let mut live = Live::watch(crowd.arguments()).unwrap();
    let mut outside = Vec::new();
    for _ in 0..150 {
        thread::sleep(Duration::from_millis(5));
        let start = Instant::now();
        live.tick(Last::No);
        outside.push(start.elapsed().as_secs_f64() * 1e6);
    }
    let report = live.finish();
    outside.sort_by(f64::total_cmp);
    let outside = outside[outside.len() / 2];
    let inside = report.own.collect_us.p50.unwrap();
    // Outside is what the tick does not count in: the books, and news from the probe.
    assert!(inside < outside * 1.01, "{inside} {outside}");
    assert_below(outside - inside, 20.0 * UNOPTIMISED, "median by outside clock less inside, µs");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_tick_makes_no_bpf_system_call() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let crowd = Crowd::new(100);
    let recording = Recording::new();
    let run = crowd.start(&["--duration=4s", "--record", &recording.arg()]);
    thread::sleep(Duration::from_millis(800));
    let directory = tempfile::tempdir().unwrap();
    let trace = directory.path().join("trace");
    // Until the run ends; the end is left out below.
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-ttt", "-e", "trace=bpf,pread64", "-o"]).arg(&trace);
    strace.args(["-p", &run.pid().to_string()]);
    let mut strace = strace.spawn().expect("strace is installed (apt-get install strace)");
    thread::sleep(Duration::from_millis(2_000));
    let trace = fs::read_to_string(&trace).unwrap();
    run.wait().succeeded();
    strace.wait().unwrap();
    let calls = |name: &str| trace.matches(name).count();
    // Two counters are read in each tick: so it saw a good many ticks.
    assert!(calls("pread64(") > 60, "{trace}");
    assert_eq!(calls("bpf("), 0, "{trace}");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn the_first_sample_comes_soon() {
    let _alone = ALONE.lock().unwrap_or_else(|poison| poison.into_inner());
    let crowd = Crowd::new(1_000);
    let mut best = f64::INFINITY;
    // Once may be unlucky on a busy machine.
    for _ in 0..5 {
        let recording = Recording::new();
        let run = crowd.start(&["--duration=100ms", "--record", &recording.arg()]);
        let started_ns = run.started_ns;
        run.wait().succeeded();
        let (first_ns, _) = recording.span();
        best = best.min((first_ns - started_ns) as f64 * 1e-6);
    }
    let most = if cfg!(debug_assertions) { 900.0 } else { 300.0 };
    assert_below(best, most, "start to first sample with 1,000 cgroups, ms");
}
