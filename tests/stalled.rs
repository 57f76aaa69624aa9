//! Nobody reads the result: ticks go on, signals are heard, and what was measured is not lost.

#![allow(clippy::unwrap_used)]

mod sim;

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sim::cgroup::TestCgroup;
use sim::cli::{assert_closed, ecoprobe, number, until};
use sim::load::Load;

/// A pipe that holds one page.
fn narrow_pipe() -> (File, OwnedFd) {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    fcntl(write.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    (read.into(), write)
}

struct Stalled {
    child: Child,
    reader: File,
    directory: tempfile::TempDir,
}

impl Stalled {
    /// Standard output is a pipe that nobody reads; standard error is the same one if `both`.
    fn start(mut command: Command, both: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (reader, writer) = narrow_pipe();
        let stderr = if both {
            Stdio::from(writer.try_clone().unwrap())
        } else {
            Stdio::from(File::create(directory.path().join("stderr")).unwrap())
        };
        command.env("TMPDIR", directory.path()).stdout(writer).stderr(stderr);
        Self { child: command.spawn().unwrap(), reader, directory }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end, which must come soon.
    #[track_caller]
    fn ends_within(&mut self, limit: Duration) -> Option<i32> {
        let start = Instant::now();
        let mut status = None;
        until("its end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(start.elapsed() < limit, "{:?}", start.elapsed());
        status.unwrap().code()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.directory.path().join("stderr")).unwrap_or_default()
    }

    /// The report that found no reader.
    #[track_caller]
    fn rescued(&self) -> Value {
        let mut files: Vec<PathBuf> = fs::read_dir(self.directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .collect();
        assert_eq!(files.len(), 1, "{files:?} {}", self.stderr());
        let file = files.remove(0);
        serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watch(cgroup: &TestCgroup, format: &str) -> Command {
    let name = cgroup.path().to_str().unwrap();
    let options =
        ["--interval=10ms", "--cpu-energy=estimate", "--gpu-energy=none", "--cgroup", name];
    ecoprobe(options.into_iter().chain(["--format", format]))
}

/// Enough workloads that no document fits into the pipe.
fn many(cgroup: &TestCgroup) -> Vec<TestCgroup> {
    (0..30).map(|index| cgroup.child(&format!("c{index}"))).collect()
}

fn watch_many(cgroup: &TestCgroup, format: &str) -> Command {
    let mut command = watch(cgroup, format);
    command.arg("--cgroup").arg(format!("{}/*", cgroup.path().display()));
    command
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_run_that_ends_by_itself_waits_for_its_reader() {
    let cgroup = TestCgroup::v2("patient");
    let _many = many(&cgroup);
    let watch = || {
        let mut command = watch_many(&cgroup, "json");
        command.arg("--duration=500ms");
        command
    };
    let run = |output: &str| {
        let mut command =
            ecoprobe(["run", "--cpu-energy=none", "--gpu-energy=none", "--format=json"]);
        command.args([output, "--", "head", "-c", "20000", "/dev/zero"]);
        command
    };
    // The result; what the command wrote; the result of a run.
    let elsewhere = tempfile::tempdir().unwrap();
    let mut passing_on = run("--interval=1s");
    passing_on.current_dir(elsewhere.path());
    for (command, document) in [(watch(), true), (passing_on, false)] {
        let mut run = Stalled::start(command, false);
        thread::sleep(Duration::from_secs(3));
        assert_eq!(run.child.try_wait().unwrap(), None, "{}", run.stderr());
        let mut reader = std::mem::replace(&mut run.reader, File::open("/dev/null").unwrap());
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        assert_eq!(run.ends_within(Duration::from_secs(1)), Some(0), "{}", run.stderr());
        if document {
            let report: Value = serde_json::from_slice(&bytes).unwrap();
            assert_closed(&report);
            assert_eq!(report["workloads"].as_array().unwrap().len(), 31);
        } else {
            assert_eq!(bytes.len(), 20_000);
        }
    }

    // A signal still ends it.
    let mut run = Stalled::start(watch(), false);
    thread::sleep(Duration::from_secs(3));
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ends_within(Duration::from_secs(1)), Some(1), "{}", run.stderr());
    assert_closed(&run.rescued());
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_signal_ends_a_run_whose_output_nobody_reads() {
    let cgroup = TestCgroup::v2("stalled");
    let _many = many(&cgroup);
    let _busy = Load::hog(cgroup.path(), 1);
    for (format, both) in [("jsonl", false), ("csv", false), ("json", false), ("jsonl", true)] {
        let mut text = String::new();
        // One document has to be large to stall; windows are many as it is.
        let watch = if format == "json" { watch_many } else { watch };
        let mut run = Stalled::start(watch(&cgroup, format), both);
        thread::sleep(Duration::from_secs(2));
        run.signal(Signal::SIGTERM);
        assert_eq!(run.ends_within(Duration::from_secs(1)), Some(1), "{}", run.stderr());
        let report = run.rescued();
        assert_closed(&report);
        let seconds = number(&report["window"]["seconds"]);
        let samples = number(&report["window"]["samples"]);
        if format == "jsonl" && !both {
            // What waited, and what was being written, was not written.
            run.reader.read_to_string(&mut text).unwrap();
            let windows = text.matches('\n').count() as f64;
            let lost = number(&report["self"]["windows_lost"]);
            assert!((windows + lost - (samples - 1.0)).abs() <= 1.0, "{windows} {lost} {samples}");
            assert!(report["warnings"].to_string().contains(&format!("{lost} windows were not")));
        }
        // No tick waited: a hundred of them in each second, on a machine that others share.
        assert!(seconds > 1.0 && samples > 60.0 * seconds, "{samples} in {seconds} s");
        let workloads = report["workloads"].as_array().unwrap();
        let cpu: f64 = workloads.iter().map(|workload| number(&workload["cpu_seconds"])).sum();
        assert!(cpu > 0.2 * seconds, "{cpu} of {seconds} s");
        assert!(both || run.stderr().contains("the report is in"), "{}", run.stderr());
    }
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_reader_that_pauses_is_told_how_many_windows_it_has_missed() {
    let cgroup = TestCgroup::v2("paused");
    let _busy = Load::hog(cgroup.path(), 1);
    let mut run = Stalled::start(watch(&cgroup, "jsonl"), false);
    thread::sleep(Duration::from_secs(5));
    let mut reader = run.reader.try_clone().unwrap();
    let text = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    thread::sleep(Duration::from_millis(500));
    run.signal(Signal::SIGINT);
    // What waited in the queue is written now.
    assert_eq!(run.ends_within(Duration::from_secs(2)), Some(0), "{}", run.stderr());
    // The other end of the pipe.
    run.reader = File::open("/dev/null").unwrap();
    let text = text.join().unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (report, windows) = lines.split_last().unwrap();
    assert_eq!(report["type"], "report");
    let lost = number(&report["self"]["windows_lost"]);
    assert!(lost > 10.0, "{lost}");
    let samples = number(&report["window"]["samples"]);
    assert_eq!(windows.len() as f64 + lost, samples - 1.0);
    let said = report["warnings"].to_string();
    assert!(said.contains(&format!("{lost} windows were not written")), "{said}");
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_command_hears_its_signals_though_nobody_reads() {
    let script = "trap 'exit 5' TERM; touch $0; while :; do sleep 0.05; done";
    let directory = tempfile::tempdir().unwrap();
    let ready = directory.path().join("ready");
    let mut command =
        ecoprobe(["run", "--interval=5ms", "--format=jsonl", "--cpu-energy=estimate"]);
    command
        .args(["--gpu-energy=none", "--output=/dev/stdout", "--", "sh", "-c", script])
        .arg(&ready);
    let mut run = Stalled::start(command, false);
    until("the command", || ready.exists());
    thread::sleep(Duration::from_secs(2));
    run.signal(Signal::SIGTERM);
    // The command's own exit code.
    assert_eq!(run.ends_within(Duration::from_secs(2)), Some(5), "{}", run.stderr());
    let report = run.rescued();
    assert!(number(&report["workloads"][0]["cpu_seconds"]) > 0.0);
}

#[test]
#[ignore = "needs root: it makes cgroups and loads the probe"]
fn a_recording_that_nobody_reads_can_be_ended_and_delays_nothing() {
    let cgroup = TestCgroup::v2("fifo");
    let _busy = Load::hog(cgroup.path(), 1);
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let start = || {
        let mut command = watch(&cgroup, "jsonl");
        command.arg("--record").arg(&fifo);
        Stalled::start(command, false)
    };
    // Not even opened.
    let mut run = start();
    thread::sleep(Duration::from_millis(700));
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ends_within(Duration::from_secs(1)), None, "killed by the signal");

    // Neither the recording nor the result is read: both have the same second.
    let mut run = start();
    let reader = File::open(&fifo).unwrap();
    fcntl(reader.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    thread::sleep(Duration::from_secs(2));
    run.signal(Signal::SIGTERM);
    assert_eq!(run.ends_within(Duration::from_secs(1)), Some(1), "{}", run.stderr());
    let report = run.rescued();
    assert_closed(&report);
    let said = report["warnings"].to_string();
    assert!(said.contains("recording") && !said.contains("goes on without it"), "{said}");
}

#[test]
fn a_diagnosis_that_nobody_reads_is_no_message() {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    drop(reader);
    let ended = ecoprobe(["doctor"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}
