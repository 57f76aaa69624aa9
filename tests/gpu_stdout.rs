//! Standard output is the result and nothing else, whatever the GPU's driver prints there: at once, from
//! a thread of its own, or through a buffer that is written when the program ends.

#![allow(clippy::unwrap_used)]

#[path = "sim/cgroup.rs"]
mod cgroup;
#[path = "sim/gpu.rs"]
mod gpu;
#[path = "sim/gpu_run.rs"]
mod gpu_run;

use std::process::{Command, Output, Stdio};

use fake_nvml::Scenario;
use serde_json::Value;

use crate::gpu::{Machine, always, device};
use crate::gpu_run::{Job, ecoprobe, stderr, with_jobs};

const BANNER: &str = "WARNING: you are looking at a stub";

fn talkative(pid: u32) -> Machine {
    let devices = vec![device(vec![always(pid, 50.0)])];
    Machine::new(Scenario { prints: Some(BANNER.into()), devices, ..Scenario::default() })
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn doctor_prints_its_result_only() {
    let machine = talkative(1);
    let mut command = ecoprobe();
    command.args(["doctor", "--format", "json", "--nvml-lib"]).arg(machine.library());
    let output = command.output().unwrap();
    assert_eq!(json(&output)["can"]["gpu_energy"], true);
    // At once, and what was buffered.
    assert!(stderr(&output).matches(BANNER).count() >= 2, "{}", stderr(&output));
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn a_run_prints_its_result_only() {
    let job = Job::new("job", 1);
    let machine = talkative(job.pid());
    for output_to in [None, Some("/dev/stdout")] {
        let mut command = with_jobs(&machine.library(), &[&job]);
        command.args(["--duration", "500ms", "--format", "json"]);
        command.args(output_to.into_iter().flat_map(|path| ["--output", path]));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(json(&output)["sources"]["gpu_energy"]["kind"], "nvml");
        assert!(stderr(&output).contains(BANNER));
    }
    let mut command = with_jobs(&machine.library(), &[&job]);
    command.args(["--duration", "500ms", "--interval", "100ms", "--format", "jsonl"]);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().count() >= 5);
    for line in text.lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn a_command_has_standard_output_for_itself() {
    let machine = talkative(1);
    let report = machine.directory.path().join("report");
    let mut command = ecoprobe();
    command.args(["run", "--cpu-energy", "none", "--nvml-lib"]).arg(machine.library());
    command.args(["--format", "json", "--output"]).arg(&report);
    // Its own descriptors: what it writes to 1 is ours to read, what it writes to 2 is not.
    command.args(["--", "sh", "-c", "echo out; echo err >&2; sleep 0.3; ls /proc/self/fd | wc -l"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let own = Command::new("sh").args(["-c", "ls /proc/self/fd | wc -l"]).output().unwrap();
    let own = String::from_utf8(own.stdout).unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("out\n{own}"));
    assert!(stderr(&output).contains("err\n"));
    let report: Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!(report["sources"]["gpu_energy"]["kind"], "nvml");
}

#[test]
#[ignore = "needs root: it loads the probe"]
fn a_closed_pipe_still_ends_the_run() {
    let job = Job::new("job", 1);
    let machine = talkative(job.pid());
    let mut command = with_jobs(&machine.library(), &[&job]);
    command.args(["--duration", "5s", "--interval", "100ms", "--format", "jsonl"]);
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(1));
}
