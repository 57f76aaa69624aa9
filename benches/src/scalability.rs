//! How cost grows with what there is to measure: the fitted law, and a plot of each.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ecoprobe::door::count;

use crate::agent::{Agent, Cgroups, Driver, Energy, INTERVAL, gpu_driver};
use crate::harness::{Bench, Metric, Outcome, thousands};
use crate::plot::Plot;
use crate::ring::Ring;
use crate::simulators::cgroup::TestCgroup;
use crate::simulators::load::{Load, Shape};
use crate::statistics::{Growth, Law, median};

/// What grows, and what it costs.
struct Curve {
    file: &'static str,
    title: &'static str,
    x: &'static str,
    y: &'static str,
    unit: &'static str,
    points: Vec<Point>,
}

struct Point {
    x: f64,
    /// What it is called in every run, where `x` is measured and differs from run to run.
    name: Option<String>,
    /// What each turn gave.
    costs: Vec<f64>,
}

impl Point {
    fn at(x: f64, costs: Vec<f64>) -> Self {
        Self { x, name: None, costs }
    }
}

impl Curve {
    /// Metrics of each point, the law, the plot.
    fn finish(self, bench: &Bench, outcome: &mut Outcome) -> Result<()> {
        let medians: Vec<(f64, f64)> = self
            .points
            .iter()
            .map(|point| (point.x, median(&point.costs)))
            // No logarithm leads to 0 GPUs.
            .filter(|(x, cost)| *x > 0.0 && *cost > 0.0)
            .collect();
        let growth = Growth::fit(&medians);
        let law =
            growth.map_or("too few points for a law".to_owned(), |Growth { law, fixed, each }| {
                match law {
                    Law::Constant => format!("constant, {fixed:.3} {}", self.unit),
                    Law::Linear => format!("linear, {fixed:.3} + {each:.3e} n {}", self.unit),
                    Law::Quadratic => {
                        format!("worse than linear, {fixed:.3} + {each:.3e} n² {}", self.unit)
                    }
                }
            });
        for Point { x, name, costs } in self.points {
            let name = name.unwrap_or_else(|| format!("{} {}", count(x as u64), self.x));
            let name = format!("{}, {name}", self.title);
            outcome.metrics.push(Metric::of_turns(name, self.unit, costs));
        }
        let title = format!("{}: {law}", self.title);
        bench.quiet();
        eprintln!("{title}");
        let plot = Plot { title: &title, x: self.x, y: self.y, points: &medians, growth };
        std::fs::create_dir_all(&bench.results)?;
        let path = bench.results.join(format!("{}.svg", self.file));
        std::fs::write(&path, plot.svg()).with_context(|| path.display().to_string())?;
        outcome.data.insert(self.title.to_owned(), law.into());
        Ok(())
    }
}

pub(crate) fn bench(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("scalability", why);
        return Ok(());
    }
    let energy = Energy::find();
    cgroups(bench, &energy)?.finish(bench, outcome)?;
    intervals(bench, &energy)?.finish(bench, outcome)?;
    match gpus(bench) {
        Ok(curve) => curve.finish(bench, outcome)?,
        Err(why) => outcome.skip("GPUs", format!("{why:#}")),
    }
    match switches(bench) {
        Ok(curve) => curve.finish(bench, outcome)?,
        Err(why) => outcome.skip("context switches", format!("{why:#}")),
    }
    Ok(())
}

fn cgroups(bench: &Bench, energy: &Energy) -> Result<Curve> {
    let mut points = Vec::new();
    for size in [10, 30, 100, 300, 1_000, 3_000, 10_000] {
        let cgroups = Cgroups::new(size)?;
        let _work = cgroups.work();
        let mut options = energy.options();
        options.push(format!("--interval={}ms", INTERVAL.as_millis()));
        let mut p50 = Vec::new();
        for turn in 1..=bench.settings.turns {
            bench.progress(format_args!("scalability: {} cgroups, turn {turn}", thousands(size)));
            let report = Agent::run(bench, &cgroups.glob(), &options, bench.duration())?;
            p50.push(tick_us(&report, "p50")?);
        }
        points.push(Point::at(size as f64, p50));
    }
    Ok(Curve {
        file: "tick-by-cgroups",
        title: "median tick",
        x: "cgroups",
        y: "µs",
        unit: "µs",
        points,
    })
}

/// CPU time of the agent, everything included, by how often it samples 100 cgroups.
fn intervals(bench: &Bench, energy: &Energy) -> Result<Curve> {
    let cgroups = Cgroups::new(100)?;
    let _work = cgroups.work();
    let mut points = Vec::new();
    for ms in [1_000, 300, 100, 30, 10, 3, 1] {
        let mut options = energy.options();
        options.push(format!("--interval={ms}ms"));
        let mut shares = Vec::new();
        for turn in 1..=bench.settings.turns {
            bench.progress(format_args!("scalability: every {ms} ms, turn {turn}"));
            let agent = Agent::start(bench, &cgroups.glob(), &options)?;
            shares.push(cpu_ms_per_second(bench, &agent)?);
            agent.stop()?;
        }
        points.push(Point::at(1_000.0 / f64::from(ms), shares));
    }
    Ok(Curve {
        file: "agent-by-samples",
        title: "agent's CPU time",
        x: "samples a second",
        y: "ms of CPU time a second",
        unit: "ms/s",
        points,
    })
}

fn gpus(bench: &Bench) -> Result<Curve> {
    let mut points = Vec::new();
    for gpus in [0, 1, 4, 8, 16, 32, 64] {
        let driver = match gpus {
            0 => None,
            _ => Some(gpu_driver(bench, gpus, 0.0).map_err(anyhow::Error::msg)?),
        };
        let none = || vec!["--cpu-energy=none".to_owned(), "--gpu-energy=none".to_owned()];
        let mut options = driver.as_ref().map_or_else(none, Driver::options);
        options.push("--interval=100ms".to_owned());
        let mut shares = Vec::new();
        for turn in 1..=bench.settings.turns {
            bench.progress(format_args!("scalability: {gpus} GPUs, turn {turn}"));
            let agent = Agent::start(bench, "/", &options)?;
            shares.push(cpu_ms_per_second(bench, &agent)?);
            agent.stop()?;
        }
        points.push(Point::at(f64::from(gpus), shares));
    }
    Ok(Curve {
        file: "agent-by-gpus",
        title: "agent's CPU time, sampling every 100 ms",
        x: "GPUs",
        y: "ms of CPU time a second",
        unit: "ms/s",
        points,
    })
}

/// CPU time that the probe takes from the machine, by how often it switches. A task that sleeps
/// between makes the lower rates.
fn switches(bench: &Bench) -> Result<Curve> {
    let statistics = "/proc/sys/kernel/bpf_stats_enabled";
    let cgroup = TestCgroup::v2("bench");
    let path = cgroup.path().display().to_string();
    let _statistics = Restored::write(statistics, "1")?;
    let mut points = Vec::new();
    for pause_us in [Some(10_000), Some(3_000), Some(1_000), Some(300), Some(100), None] {
        let (mut rates, mut costs) = (Vec::new(), Vec::new());
        for turn in 1..=bench.settings.turns {
            bench.progress(format_args!("scalability: context switches, turn {turn}"));
            let agent = Agent::start(bench, &path, &["--interval=1s".to_owned()])?;
            let start = Instant::now();
            let storm = Storm::start(pause_us, &cgroup)?;
            std::thread::sleep(bench.duration());
            let seconds = start.elapsed().as_secs_f64();
            drop(storm);
            let probe = &agent.stop()?["self"]["probe"];
            let events = probe["events"].as_f64().context("the report counts no events")?;
            let each = probe["ns_per_event"].as_f64().context("the kernel kept no statistics")?;
            rates.push(events / seconds);
            costs.push(events / seconds * each * 1e-6);
        }
        let name = match pause_us {
            Some(us) => format!("a task that wakes every {} µs", count(us)),
            None => "two tasks that do nothing but switch".to_owned(),
        };
        points.push(Point { x: median(&rates).round(), name: Some(name), costs });
    }
    Ok(Curve {
        file: "probe-by-switches",
        title: "probe's CPU time",
        x: "context switches a second",
        y: "ms of CPU time a second",
        unit: "ms/s",
        points,
    })
}

/// Switches as fast as it can, or a task that sleeps and wakes.
enum Storm {
    Ring { _ring: Ring },
    Sleeper { _sleeper: Load },
}

impl Storm {
    fn start(pause_us: Option<u64>, cgroup: &TestCgroup) -> Result<Self> {
        let Some(pause_us) = pause_us else {
            return Ok(Self::Ring { _ring: Ring::start(&[cgroup.path(); 2], 0)? });
        };
        let (busy, period) = (Duration::from_micros(1), Duration::from_micros(pause_us));
        let sleeper = Load::start(Shape::Duty { busy, period }, cgroup.path(), Some(0));
        Ok(Self::Sleeper { _sleeper: sleeper })
    }
}

fn cpu_ms_per_second(bench: &Bench, agent: &Agent) -> Result<f64> {
    let (start, before) = (Instant::now(), agent.cpu_ns()?);
    // One tick a second has to be seen more than once.
    std::thread::sleep(bench.duration().max(Duration::from_secs(2)));
    let ns = agent.cpu_ns()?.saturating_sub(before);
    Ok(ns as f64 * 1e-6 / start.elapsed().as_secs_f64())
}

fn tick_us(report: &serde_json::Value, quantile: &str) -> Result<f64> {
    report["self"]["collect_us"][quantile].as_f64().context("the report has no collect_us")
}

/// A file that is written and later put back as it was.
struct Restored {
    path: &'static str,
    before: String,
}

impl Restored {
    fn write(path: &'static str, text: &str) -> Result<Self> {
        let before = std::fs::read_to_string(path).context(path)?;
        std::fs::write(path, text).context(path)?;
        Ok(Self { path, before })
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path, self.before.trim());
    }
}
