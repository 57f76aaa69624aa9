//! Joules of jobs on simulated GPUs, by the real agent: the driver library is a stand-in whose every
//! joule is known, the processes that it names are real and asleep, in cgroups of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use ecoprobe::base::monotonic_ns;
use serde::Deserialize;
use serde_json::Value;

use super::BOOKS;
use super::scenario::files;
use crate::agent::{Agent, Driver, gpu_uuid};
use crate::harness::{Bench, Metric, Outcome, Target};
use crate::simulators::cgroup::TestCgroup;
use crate::simulators::load::{Load, Shape};

/// A machine with GPUs, its jobs, and how it is watched. The files in `benches/scenarios/gpu/`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    description: String,
    /// The error that is allowed, percent; without it the error is stated and misses no target.
    #[serde(default)]
    limit_percent: Option<f64>,
    /// How long the agent watches.
    seconds: f64,
    /// Of the agent, beyond those that name the machine.
    #[serde(default)]
    options: Vec<String>,
    /// As the simulated driver reads it, but a process has a name for its pid: that of its job, or
    /// "job/which". It is there from the beginning and ends when it is gone from every device.
    machine: Value,
}

impl Scenario {
    /// The machine with a pid for each name.
    fn machine(&self, mut pid: impl FnMut(&str) -> u32) -> Result<fake_nvml::Scenario> {
        let mut machine = self.machine.clone();
        let devices = machine.get_mut("devices").and_then(Value::as_array_mut);
        for (index, device) in devices.context("no devices")?.iter_mut().enumerate() {
            let processes = device.get_mut("processes").and_then(Value::as_array_mut);
            for process in processes.into_iter().flatten() {
                let name = process["pid"].as_str().context("a process without a name")?;
                process["pid"] = pid(name).into();
            }
            device["uuid"] = gpu_uuid(index).into();
        }
        Ok(serde_json::from_value(machine)?)
    }

    fn names(&self) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        self.machine(|name| {
            names.insert(name.to_owned());
            0
        })?;
        Ok(names)
    }
}

fn job_of(process: &str) -> &str {
    process.split_once('/').map_or(process, |(job, _)| job)
}

pub(super) fn joules(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("joules of simulated GPUs", why);
        return Ok(());
    }
    let scenarios = load_all()?;
    let mut found: Vec<Vec<Found>> = vec![Vec::new(); scenarios.len()];
    let turns = bench.settings.turns;
    for turn in 1..=turns {
        bench.progress(format_args!("accuracy: simulated GPUs, turn {turn} of {turns}"));
        // Side by side: nearly all of the time they wait.
        let runs = scenarios.iter().map(|(_, scenario)| Run::start(bench, scenario));
        let mut runs = runs.collect::<Result<Vec<_>>>()?;
        end_processes(&mut runs);
        for (run, found) in runs.into_iter().zip(&mut found) {
            found.push(run.finish()?);
        }
    }
    let mut books: f64 = 0.0;
    for ((name, scenario), found) in scenarios.into_iter().zip(found) {
        books = found.iter().fold(books, |worst, found| worst.max(found.books));
        let measured: Vec<f64> = found.iter().map(|found| found.measured_percent).collect();
        let kept = serde_json::json!({
            "description": scenario.description, "measured_errors_percent": measured
        });
        outcome.data.insert(name.clone(), kept);
        let worst = found.iter().map(|found| found.worst_percent).collect();
        let metric = Metric::of_turns(name, "%", worst);
        outcome.metrics.push(match scenario.limit_percent {
            Some(limit) => metric.with_target(Target::below(limit).asked(10.0)),
            None => metric,
        });
    }
    let metric = Metric::exact("GPU: books, worst of all scenarios", "", books);
    outcome.metrics.push(metric.with_noise(BOOKS).with_target(Target::below(BOOKS)));
    Ok(())
}

fn load_all() -> Result<Vec<(String, Scenario)>> {
    let load = |path: &Path| -> Result<Scenario> {
        let scenario: Scenario = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        ensure!(!scenario.names()?.is_empty(), "a scenario without a process");
        Ok(scenario)
    };
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/gpu");
    let scenarios = files(&directory)?.into_iter().map(|(name, path)| {
        let scenario = load(&path).with_context(|| path.display().to_string())?;
        Ok((format!("GPU: {name}"), scenario))
    });
    scenarios.collect()
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
struct Found {
    /// Of the worst job.
    worst_percent: f64,
    /// Of all devices together.
    measured_percent: f64,
    /// Relative difference between what was measured and its pieces.
    books: f64,
}

/// A scenario that goes on.
struct Run {
    // In the order in which they have to go.
    agent: Agent,
    processes: BTreeMap<String, Load>,
    jobs: BTreeMap<String, TestCgroup>,
    _parent: TestCgroup,
    /// By name.
    pids: BTreeMap<String, u32>,
    machine: fake_nvml::Scenario,
    start: Instant,
    start_ns: u64,
    recording: PathBuf,
    _directory: tempfile::TempDir,
    _driver: Driver,
}

impl Run {
    fn start(bench: &Bench, scenario: &Scenario) -> Result<Self> {
        let parent = TestCgroup::v2("bench");
        let mut jobs = BTreeMap::new();
        let mut processes = BTreeMap::new();
        for name in scenario.names()? {
            let job = job_of(&name).to_owned();
            let cgroup = jobs.entry(job).or_insert_with_key(|job| parent.child(job));
            // What it does on a GPU is the scenario's business.
            let asleep = Shape::Duty { busy: Duration::ZERO, period: Duration::from_secs(3600) };
            let process = Load::start(asleep, cgroup.path(), None);
            processes.insert(name, process);
        }
        let pids: BTreeMap<String, u32> =
            processes.iter().map(|(name, process)| (name.clone(), process.pid())).collect();
        let mut machine = scenario.machine(|name| pids.get(name).copied().unwrap_or(0))?;
        let (start, start_ns) = (Instant::now(), monotonic_ns());
        machine.start_ns = Some(start_ns);
        let driver = Driver::new(bench, &machine)?;
        let directory = tempfile::tempdir()?;
        let recording = directory.path().join("recording");
        let watts = machine.devices.iter().map(|d| format!("{}={}", d.uuid, d.static_watts));
        let mut options = driver.options();
        options.extend([
            "--interval=250ms".to_owned(),
            format!("--static-power={}", watts.collect::<Vec<_>>().join(",")),
            format!("--duration={}ms", scenario.seconds * 1e3),
            format!("--record={}", recording.display()),
        ]);
        options.extend(scenario.options.iter().cloned());
        let agent = Agent::spawn(bench, &format!("{}/*", parent.path().display()), &options)?;
        Ok(Self {
            agent,
            processes,
            jobs,
            _parent: parent,
            pids,
            machine,
            start,
            start_ns,
            recording,
            _directory: directory,
            _driver: driver,
        })
    }

    /// When each process is gone from every device, seconds after the start.
    fn ends(&self) -> BTreeMap<u32, f64> {
        let mut ends = BTreeMap::new();
        for process in self.machine.devices.iter().flat_map(|device| &device.processes) {
            let end: &mut f64 = ends.entry(process.pid).or_default();
            *end = end.max(process.to_s);
        }
        ends
    }

    fn finish(self) -> Result<Found> {
        let report = self.agent.report()?;
        let (from_s, to_s) = samples(&self.recording, self.start_ns)?;
        let devices = &self.machine.devices;
        let gpu = &report["node"]["gpu"];
        let joules = |piece: &str| gpu[piece].as_f64().with_context(|| format!("no {piece}"));
        let measured = joules("measured_j")?;
        let pieces = ["idle_j", "workloads_j", "other_j", "unattributed_j"].map(joules);
        let pieces = pieces.into_iter().sum::<Result<f64>>()?;
        let drawn: f64 = devices.iter().map(|device| device.joules(from_s, to_s)).sum();
        let percent = |joules: f64, truth: f64| 100.0 * (joules / truth - 1.0).abs();
        let mut worst: f64 = 0.0;
        for (job, cgroup) in &self.jobs {
            let pids = self.pids.iter().filter(|(name, _)| job_of(name) == job);
            let truth: f64 = pids
                .flat_map(|(_, pid)| devices.iter().map(|d| d.dynamic_joules(*pid, from_s, to_s)))
                .sum();
            ensure!(truth > 0.0, "{job} used no GPU while it was watched");
            let all = report["workloads"].as_array().context("a report without workloads")?;
            let own = all.iter().find(|workload| workload["cgroup"] == cgroup.cgroup());
            // What is missing is as wrong as can be.
            let joules = own.and_then(|own| own["energy_j"]["gpu"].as_f64()).unwrap_or(0.0);
            worst = worst.max(percent(joules, truth));
        }
        Ok(Found {
            worst_percent: worst,
            measured_percent: percent(measured, drawn),
            books: (pieces / measured - 1.0).abs(),
        })
    }
}

/// Ends each process at its time.
fn end_processes(runs: &mut [Run]) {
    let mut ends = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        for (pid, end_s) in run.ends() {
            // Those that stay end with the run.
            if end_s < 1e6 {
                ends.push((run.start + Duration::from_secs_f64(end_s), index, pid));
            }
        }
    }
    ends.sort();
    for (end, index, pid) in ends {
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        if let Some(run) = runs.get_mut(index) {
            run.processes.retain(|_, process| process.pid() != pid);
        }
    }
}

/// Of the first and the last sample, seconds after `start_ns`.
fn samples(recording: &Path, start_ns: u64) -> Result<(f64, f64)> {
    let text = std::fs::read_to_string(recording)?;
    let events = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let mut times = events
        .iter()
        .filter(|event| event["type"] == "sample")
        .filter_map(|event| Some((event["mono_ns"].as_u64()? as f64 - start_ns as f64) * 1e-9));
    let first = times.next().context("a recording without a sample")?;
    Ok((first, times.next_back().unwrap_or(first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_scenario() {
        let scenarios = load_all().unwrap();
        assert!(scenarios.len() >= 6);
        for (name, scenario) in scenarios {
            let mut next = 0;
            let machine = scenario.machine(|_| {
                next += 1;
                next
            });
            let machine = machine.unwrap();
            assert_eq!(machine.devices[0].uuid, gpu_uuid(0), "{name}");
            let sm = |device: &fake_nvml::Device| device.watts(2.5) <= device.full_watts;
            assert!(machine.devices.iter().all(sm), "{name}");
        }
    }

    #[test]
    fn processes_have_names_and_get_pids() {
        let parse = |machine: Value| Scenario {
            description: String::new(),
            limit_percent: None,
            seconds: 1.0,
            options: Vec::new(),
            machine,
        };
        let on = serde_json::json!([{"pid": "a/1", "sm": 70.0}, {"pid": "b"}, {"pid": "a/2"}]);
        let scenario = parse(serde_json::json!({"devices": [{"processes": on}, {}]}));
        let jobs: Vec<_> = scenario.names().unwrap().iter().map(|n| job_of(n).to_owned()).collect();
        assert_eq!(jobs, ["a", "a", "b"]);
        let machine = scenario.machine(|name| name.len() as u32).unwrap();
        let pids: Vec<u32> = machine.devices[0].processes.iter().map(|p| p.pid).collect();
        assert_eq!(pids, [3, 1, 3]);
        assert_eq!(machine.devices[1].uuid, gpu_uuid(1));
        let wrong = serde_json::json!({"devices": [{"processes": [{"pid": 7}]}]});
        assert!(parse(wrong).names().is_err());
        let unknown = serde_json::json!({"devices": [{"watts": 7}]});
        assert!(parse(unknown).names().is_err());
    }
}
