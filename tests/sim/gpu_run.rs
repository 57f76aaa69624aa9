//! Runs of ecoprobe over jobs whose processes a simulated GPU names. A test that uses this also has
//! `sim/cgroup.rs` as `cgroup` and `sim/gpu.rs` as `gpu`.
//!
//! Every recorded run is held to what must always be true: the books close, the windows add up to
//! the report, and `replay` says the same to the byte. With `--nocapture` each error is printed.

#![allow(dead_code, reason = "a module of several tests; none uses all of it")]
#![allow(clippy::unwrap_used, reason = "what cannot be set up or read is a failed test")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use fake_nvml::Device;
use serde_json::Value;

use crate::cgroup::TestCgroup;
use crate::gpu::{Machine, uuid};

// ---- jobs ----------------------------------------------------------------------------------------

/// A process that does nothing: what it does on a GPU is the scenario's business.
pub(crate) struct Sleeper(pub(crate) Child);

impl Sleeper {
    pub(crate) fn outside() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    pub(crate) fn within(cgroup: &TestCgroup) -> Self {
        let sleeper = Self::outside();
        cgroup.add(sleeper.pid());
        sleeper
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A cgroup with processes in it.
pub(crate) struct Job {
    pub(crate) sleepers: Vec<Sleeper>,
    pub(crate) cgroup: TestCgroup,
}

impl Job {
    pub(crate) fn new(name: &str, processes: usize) -> Self {
        let cgroup = TestCgroup::v2(name);
        let sleepers = (0..processes).map(|_| Sleeper::within(&cgroup)).collect();
        Self { sleepers, cgroup }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.sleepers[0].pid()
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.sleepers.iter().map(Sleeper::pid).collect()
    }
}

// ---- a run ---------------------------------------------------------------------------------------

pub(crate) fn ecoprobe() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ecoprobe"));
    command.stdin(Stdio::null());
    command
}

pub(crate) fn with_jobs(library: &Path, jobs: &[&Job]) -> Command {
    let mut command = ecoprobe();
    for job in jobs {
        command.arg("--cgroup").arg(job.cgroup.path());
    }
    command.args(["--cpu-energy", "none", "--nvml-lib"]).arg(library);
    command
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) struct Run {
    pub(crate) report: Value,
    /// Seconds since the machine's start of the first and of the last sample.
    pub(crate) from_s: f64,
    pub(crate) to_s: f64,
    pub(crate) windows: Vec<Value>,
}

/// Watches the jobs, and checks what holds for every run.
pub(crate) fn watch(machine: &Machine, jobs: &[&Job], options: &[&str]) -> Run {
    let recording = machine.directory.path().join("recording");
    let mut command = with_jobs(&machine.library(), jobs);
    if !options.contains(&"--gpu-process-interval") {
        command.args(["--gpu-process-interval", "500ms"]);
    }
    command.args(["--interval", "250ms", "--format", "jsonl"]);
    let output = command.args(options).arg("--record").arg(&recording).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    Run::new(machine, &recording, &String::from_utf8(output.stdout).unwrap())
}

impl Run {
    pub(crate) fn new(machine: &Machine, recording: &Path, output: &str) -> Self {
        let mut windows: Vec<Value> =
            output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let report = windows.pop().unwrap();
        let text = std::fs::read_to_string(recording).unwrap();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let samples: Vec<u64> = events
            .filter(|event| event["type"] == "sample")
            .map(|event| event["mono_ns"].as_u64().unwrap())
            .collect();
        let seconds = |ns: &u64| (*ns as f64 - machine.start_ns as f64) * 1e-9;
        let (from_s, to_s) = (seconds(&samples[0]), seconds(samples.last().unwrap()));
        let run = Self { report, from_s, to_s, windows };
        run.check_books();
        run.check_windows();
        let replayed = ecoprobe().arg("replay").arg(recording).args(["--format", "jsonl"]).output();
        let replayed = String::from_utf8(replayed.unwrap().stdout).unwrap();
        assert_eq!(without_self(output), without_self(&replayed));
        run
    }

    pub(crate) fn gpu(&self, figure: &str) -> f64 {
        number(&self.report["node"]["gpu"][figure])
    }

    pub(crate) fn job(&self, index: usize) -> &Value {
        &self.report["workloads"][index]
    }

    pub(crate) fn job_j(&self, index: usize) -> f64 {
        number(&self.job(index)["energy_j"]["gpu"])
    }

    pub(crate) fn methods(&self, index: usize) -> Vec<&str> {
        let gpus = self.job(index)["gpus"].as_array().unwrap();
        gpus.iter().map(|gpu| gpu["method"].as_str().unwrap()).collect()
    }

    pub(crate) fn warned(&self, text: &str) -> usize {
        let warnings = self.report["warnings"].as_array().unwrap();
        warnings.iter().filter(|warning| warning.as_str().unwrap().contains(text)).count()
    }

    pub(crate) fn check_books(&self) {
        let whole = self.gpu("measured_j");
        let parts =
            ["idle_j", "workloads_j", "other_j", "unattributed_j"].map(|part| self.gpu(part));
        let sum: f64 = parts.iter().sum();
        assert!((sum - whole).abs() <= 1e-9 * whole, "{whole} J, but {parts:?}");
        for job in self.report["workloads"].as_array().unwrap() {
            let Some(gpu) = job["energy_j"]["gpu"].as_f64() else { continue };
            let devices = job["gpus"].as_array().unwrap();
            let sum: f64 = devices.iter().map(|device| number(&device["energy_j"])).sum();
            assert!((sum - gpu).abs() <= 1e-9 * gpu.max(1.0), "{job}");
        }
    }

    /// What arrived late is in the last window: nothing that the report has is in none of them.
    pub(crate) fn check_windows(&self) {
        let sum = |figure: &dyn Fn(&Value) -> Option<f64>| -> f64 {
            self.windows.iter().filter_map(figure).sum()
        };
        let measured = sum(&|window| window["node"]["gpu"]["measured_j"].as_f64());
        let whole = self.gpu("measured_j");
        assert!((measured - whole).abs() <= 1e-9 * whole, "{measured} J, and {whole} J");
        assert!(self.windows.iter().any(|window| window["resolution_ms"].is_number()));
        // What is learned in the middle of a run changes how windows are split.
        if self.report["sources"]["static_power"]["kind"] == "given" {
            for (index, job) in self.report["workloads"].as_array().unwrap().iter().enumerate() {
                let ours = sum(&|window| window["workloads"][index]["energy_j"]["gpu"].as_f64());
                let Some(whole) = job["energy_j"]["gpu"].as_f64() else { continue };
                assert!((ours - whole).abs() <= 1e-6 * whole.max(1.0), "{ours} J, and {whole} J");
            }
        }
    }

    /// Holds every job's joules to the scenario's truth between the first and the last sample.
    #[track_caller]
    pub(crate) fn check_jobs(&self, machine: &Machine, jobs: &[&Job], tolerance: f64) {
        let devices = &machine.scenario.devices;
        let truth: f64 = devices.iter().map(|d| d.joules(self.from_s, self.to_s)).sum();
        near("all devices", self.gpu("measured_j"), truth, tolerance);
        for (index, job) in jobs.iter().enumerate() {
            let of = |device: &Device| -> f64 {
                let pids = job.pids().into_iter();
                pids.map(|pid| device.dynamic_joules(pid, self.from_s, self.to_s)).sum()
            };
            let truth = devices.iter().map(of).sum();
            near(&format!("job {index}"), self.job_j(index), truth, tolerance);
        }
    }
}

pub(crate) fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Lines without what ecoprobe itself cost, which differs from run to run.
pub(crate) fn without_self(lines: &str) -> String {
    let Some(from) = lines.find("\"self\":") else { return lines.to_owned() };
    let to = from + lines[from..].find("\"warnings\":").unwrap();
    format!("{}{}", &lines[..from], &lines[to..])
}

#[track_caller]
pub(crate) fn near(what: &str, ours: f64, truth: f64, tolerance: f64) {
    let off = format!(
        "{what}: {ours:.3} J, in truth {truth:.3} J ({:+.3} %)",
        100.0 * (ours / truth - 1.0)
    );
    println!("{off}");
    assert!((ours - truth).abs() <= tolerance * truth.abs().max(1.0), "{off}");
}

/// `--static-power` for that many devices.
pub(crate) fn static_power(devices: usize, watts: f64) -> String {
    let each: Vec<String> = (0..devices).map(|index| format!("{}={watts}", uuid(index))).collect();
    each.join(",")
}
