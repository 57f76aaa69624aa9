//! The binary as its users have it: started, signalled, waited for, and what it wrote.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ecoprobe::base::monotonic_ns;
use ecoprobe::event::{Event, Sample};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Nothing in these tests takes longer: what does not end by then has failed.
const PATIENCE: Duration = Duration::from_secs(60);

#[allow(
    clippy::option_env_unwrap,
    reason = "these simulators are compiled into the benchmarks too"
)]
pub fn ecoprobe<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let program = option_env!("CARGO_BIN_EXE_ecoprobe").expect("not a test of ecoprobe");
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    // Under nohup the tests would inherit an ignored hangup, which ecoprobe respects.
    let hangup = || {
        // SAFETY: restores a default disposition; no handler of ours is involved.
        unsafe { signal(Signal::SIGHUP, SigHandler::SigDfl) }.map(drop).map_err(Into::into)
    };
    // SAFETY: signal(2) is all that runs between fork and exec, and it is async-signal-safe.
    unsafe { command.pre_exec(hangup) };
    command
}

/// A running ecoprobe, or whatever leads to one; killed on drop.
#[derive(Debug)]
pub struct Running {
    child: Child,
    directory: TempDir,
    /// CLOCK_MONOTONIC just before it was started, nanoseconds.
    pub started_ns: u64,
}

impl Running {
    /// `ecoprobe ARGUMENTS`.
    pub fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        Self::spawn(ecoprobe(arguments))
    }

    /// With its standard output and error in files: nobody has to read along.
    pub fn spawn(mut command: Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| File::create(directory.path().join(name)).unwrap();
        command.stdout(file("stdout")).stderr(file("stderr"));
        Self::spawn_as_is(command, directory)
    }

    /// With the standard output and error that `command` has.
    pub fn spawn_as_is(mut command: Command, directory: TempDir) -> Self {
        let started_ns = monotonic_ns();
        let child = command.spawn().unwrap();
        Self { child, directory, started_ns }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).unwrap();
    }

    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }

    /// Until there are so many lines on standard output: windows, with `--format jsonl`.
    #[track_caller]
    pub fn wait_for_lines(&mut self, lines: usize) {
        until("lines on standard output", || {
            let ended = self.child.try_wait().unwrap();
            let found = self.stdout().lines().count();
            assert!(ended.is_none() || found >= lines, "{ended:?}: {}", self.read("stderr"));
            found >= lines
        });
    }

    /// Until it has ended by itself.
    #[track_caller]
    pub fn wait(mut self) -> Ended {
        let mut status = None;
        until("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let [stdout, stderr] = ["stdout", "stderr"].map(|name| self.read(name));
        assert!(!stderr.contains("panicked"), "{stderr}");
        Ended { status: status.unwrap(), stdout, stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Of no effect on what has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for something that is about to happen.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// What is left of a run.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// Fails unless it exited with 0.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        self.exited(0)
    }

    #[track_caller]
    pub fn exited(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{}", self.stderr);
        self
    }

    /// One JSON document.
    #[track_caller]
    pub fn report(&self) -> Report {
        Report(serde_json::from_str(&self.stdout).unwrap())
    }

    /// The lines of `--format jsonl`: the windows, and the report. All of them closed.
    #[track_caller]
    pub fn lines(&self) -> (Vec<Value>, Report) {
        let parse = |line| serde_json::from_str(line).unwrap();
        let mut lines: Vec<Value> = self.stdout.lines().map(parse).collect();
        let report = Report(lines.pop().unwrap());
        assert_eq!(report.0["type"], "report");
        for window in &lines {
            assert_eq!(window["type"], "window");
            assert_closed(window);
        }
        assert_closed(&report.0);
        (lines, report)
    }
}

/// A report, with its figures at hand.
#[derive(Debug)]
pub struct Report(pub Value);

impl Report {
    #[track_caller]
    pub fn workload(&self, name: &str) -> &Value {
        let workloads = self.0["workloads"].as_array().unwrap();
        let found = workloads.iter().find(|workload| workload["name"] == name);
        found.unwrap_or_else(|| panic!("no workload {name} in {workloads:?}"))
    }

    #[track_caller]
    pub fn cpu_seconds(&self, name: &str) -> f64 {
        number(&self.workload(name)["cpu_seconds"])
    }

    /// "cpu", "dram", "idle_share" or "total".
    #[track_caller]
    pub fn joules(&self, name: &str, piece: &str) -> f64 {
        number(&self.workload(name)["energy_j"][piece])
    }

    /// Of the node's books: "measured_j" and so on.
    #[track_caller]
    pub fn node(&self, component: &str, figure: &str) -> f64 {
        number(&self.0["node"][component][figure])
    }

    /// All warnings, one a line.
    pub fn warnings(&self) -> String {
        let warnings = self.0["warnings"].as_array().unwrap();
        warnings.iter().map(|warning| warning.as_str().unwrap()).collect::<Vec<_>>().join("\n")
    }
}

#[track_caller]
pub fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}"))
}

/// The contract's closed books, of a window or a report: for every component measured = idle +
/// workloads + other + unattributed to one part in 10⁹ and nothing negative; the workloads' line is
/// the sum of the workloads; the pieces of each workload add up.
#[track_caller]
pub fn assert_closed(view: &Value) {
    let workloads = view["workloads"].as_array().unwrap();
    let piece = |workload: &Value, name: &str| workload["energy_j"][name].as_f64();
    let mut billed = 0.0;
    for component in ["cpu", "dram", "gpu"] {
        let books = &view["node"][component];
        let figures = ["measured_j", "idle_j", "workloads_j", "other_j", "unattributed_j"]
            .map(|figure| books[figure].as_f64());
        let [Some(measured), Some(idle), Some(of_workloads), Some(other), Some(unattributed)] =
            figures
        else {
            // A component is known, or it is not.
            assert_eq!(figures, [None; 5], "{component}");
            assert!(workloads.iter().all(|workload| piece(workload, component).is_none()));
            continue;
        };
        let parts = [idle, of_workloads, other, unattributed];
        assert!(parts.iter().all(|part| *part >= 0.0), "invariant: {component}: {books}");
        assert_equal(parts.iter().sum(), measured, component);
        billed += of_workloads;
    }
    let totals = workloads.iter().filter_map(|workload| piece(workload, "total"));
    assert_equal(totals.sum(), billed, "workloads");
    for workload in workloads {
        let pieces = ["cpu", "dram", "gpu", "idle_share"].map(|name| piece(workload, name));
        let sum = pieces.into_iter().flatten().reduce(|a, b| a + b);
        assert_eq!(sum.is_some(), piece(workload, "total").is_some(), "{workload}");
        assert_equal(sum.unwrap_or(0.0), piece(workload, "total").unwrap_or(0.0), "pieces");
    }
}

/// To one part in 10⁹: no load of a machine explains less.
#[track_caller]
pub fn assert_equal(found: f64, expected: f64, what: &str) {
    assert!(
        (found - expected).abs() <= 1e-9 * expected.abs(),
        "invariant: {what}: {found} not {expected}"
    );
}

#[track_caller]
pub fn assert_near(found: f64, expected: f64, relative: f64, what: &str) {
    let error = found / expected - 1.0;
    assert!(error.abs() <= relative, "{what}: {found} not {expected} ({:.2} %)", error * 100.0);
}

/// A file of `--record`.
#[derive(Debug)]
pub struct Recording {
    directory: TempDir,
}

impl Recording {
    pub fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("recording.jsonl")
    }

    /// For the command line.
    pub fn arg(&self) -> String {
        self.path().to_str().unwrap().to_owned()
    }

    pub fn samples(&self) -> Vec<Sample> {
        samples(&self.path())
    }

    /// CLOCK_MONOTONIC of the first and the last sample: what the report is about.
    pub fn span(&self) -> (u64, u64) {
        let samples = self.samples();
        (samples.first().unwrap().mono_ns, samples.last().unwrap().mono_ns)
    }

    /// What `replay` makes of it.
    #[track_caller]
    pub fn replay(&self, options: &[&str]) -> Ended {
        let path = self.arg();
        Running::start(["replay", &path].iter().chain(options)).wait().succeeded()
    }
}

fn samples(path: &Path) -> Vec<Sample> {
    let (_, events) = ecoprobe::door::read(path).unwrap();
    let samples = events.map(Result::unwrap).filter_map(|event| match event {
        Event::Sample(sample) => Some(sample),
        _ => None,
    });
    samples.collect()
}

/// A JSON document or line without `self`, every other byte as it was.
#[track_caller]
pub fn without_self(document: &str) -> String {
    let (before, own) = document.split_once("\"self\":").unwrap();
    let (_, after) = own.split_once("\"warnings\":").unwrap();
    format!("{before}{after}")
}
