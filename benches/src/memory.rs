//! What the agent holds: its own pages, and the kernel's for its maps.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::loaded_maps;

use crate::agent::{Agent, Cgroups, Energy};
use crate::harness::{Bench, Metric, Outcome, Target, thousands};
use crate::statistics::{median, quantile};

const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];
const MB: f64 = 1e6;

/// Ticks, and everything that is allocated once, are over by then.
const SETTLE: Duration = Duration::from_millis(400);

/// Cgroups made and removed in the churn: an hour of five jobs a second.
const CHURN: usize = 18_000;
/// How long each is there at least: some ticks.
const LIFE: Duration = Duration::from_millis(60);
/// They come and go in so many steps; the memory is looked at after each.
const STEPS: usize = 40;
/// As many that have ended have rows of their own in the report; it is less than half of the churn.
const ROWS: usize = 4_096;
/// Until the last of the churn have ended.
const END: Duration = Duration::from_secs(3);

pub(crate) fn bench(bench: &Bench, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("memory", why);
        return Ok(());
    }
    let energy = Energy::find();
    for size in SIZES {
        let cgroups = Cgroups::new(size)?;
        let _work = cgroups.work();
        let (mut peak, mut pss, mut maps) = (Vec::new(), Vec::new(), f64::INFINITY);
        for turn in 1..=bench.settings.turns {
            bench.progress(format_args!("memory: {} cgroups, turn {turn}", thousands(size)));
            let before = map_ids();
            let mut options = energy.options();
            options.push("--interval=100ms".to_owned());
            let agent = Agent::start(bench, &cgroups.glob(), &options)?;
            std::thread::sleep(SETTLE);
            peak.push(kilobytes(&agent, "status", "VmHWM:")? * 1e3 / MB);
            pss.push(kilobytes(&agent, "smaps_rollup", "Pss:")? * 1e3 / MB);
            // Others may load maps at the same moment.
            maps = maps.min(map_bytes(&before)? / MB);
            agent.stop()?;
        }
        let name = |what| format!("{what}, {} cgroups", thousands(size));
        let peak = Metric::of_turns(name("peak RSS"), "MB", peak);
        outcome.metrics.push(match size {
            1_000 => peak.with_target(Target::below(16.0).asked(100.0)),
            10_000 => peak.with_target(Target::below(100.0).asked(100.0)),
            _ => peak,
        });
        outcome.metrics.push(Metric::of_turns(name("PSS"), "MB", pss));
        outcome.metrics.push(Metric::exact(name("kernel maps"), "MB", maps).with_noise(0.05));
    }
    churn_inside(bench, &energy, outcome)?;
    churn_of_workloads(bench, &energy, outcome)
}

/// Cgroups that come and go below a watched one: whatever their number, memory has to stay.
fn churn_inside(bench: &Bench, energy: &Energy, outcome: &mut Outcome) -> Result<()> {
    let cgroups = Cgroups::new(1)?;
    let _work = cgroups.work();
    let parent = cgroups.parent().path().join("job-00000");
    let mut options = energy.options();
    options.push("--interval=20ms".to_owned());
    let agent = Agent::start(bench, &cgroups.glob(), &options)?;
    let series = churn(bench, &agent, &parent, "churn below a watched cgroup")?;
    agent.stop()?;
    let what = format!("growth over {} cgroups below a watched one", thousands(CHURN));
    // What is allocated once is allocated in the first tenth.
    let metric = Metric::exact(what, "MB", growth(series.get(STEPS / 10..).unwrap_or_default()));
    let metric = metric.against_nothing();
    outcome.metrics.push(metric.with_noise(0.2).with_target(Target::below(0.5)));
    outcome.data.insert("churn_below".to_owned(), series.into());
    Ok(())
}

/// Cgroups that are workloads themselves: each stays in the report, until there are too many.
fn churn_of_workloads(bench: &Bench, energy: &Energy, outcome: &mut Outcome) -> Result<()> {
    let cgroups = Cgroups::new(1)?;
    let _work = cgroups.work();
    let mut options = energy.options();
    options.push("--interval=20ms".to_owned());
    let agent = Agent::start(bench, &cgroups.glob(), &options)?;
    let series = churn(bench, &agent, cgroups.parent().path(), "churn of workloads")?;
    std::thread::sleep(END);
    let report = agent.stop()?;
    let kept = report["workloads"].as_array().map_or(0, Vec::len);
    ensure!(kept < ROWS + 10, "{kept} workloads have a row, {ROWS} were to be kept");
    let full = series.get(2 * STEPS * ROWS / CHURN..).unwrap_or_default();
    let what = format!("growth over {} workloads, all rows used up", thousands(CHURN));
    let metric = Metric::exact(what, "MB", growth(full)).with_noise(0.2).against_nothing();
    outcome.metrics.push(metric.with_target(Target::below(0.5)));
    if let (Some(first), Some(last)) = (series.first(), series.last()) {
        let each = (last - first) * MB / kept as f64 / 1e3;
        let metric = Metric::exact("RSS for each workload kept in the report", "kB", each);
        outcome.metrics.push(metric.with_noise(0.2).against_nothing());
    }
    outcome.data.insert("churn_workloads".to_owned(), series.into());
    outcome.data.insert("churn_workloads_kept".to_owned(), kept.into());
    Ok(())
}

/// RSS in MB as cgroups are made and removed below `parent`; `STEPS` + 1 values.
fn churn(bench: &Bench, agent: &Agent, parent: &std::path::Path, what: &str) -> Result<Vec<f64>> {
    let mut series = vec![kilobytes(agent, "status", "VmRSS:")? / 1e3];
    for step in 0..STEPS {
        bench.progress(format_args!("memory: {what}, {} of {STEPS}", step + 1));
        let path = |number| parent.join(format!("churn-{step}-{number}"));
        for path in (0..CHURN / STEPS).map(path) {
            fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        }
        // One that is gone before the agent looks is no workload to it.
        std::thread::sleep(LIFE);
        for path in (0..CHURN / STEPS).map(path) {
            fs::remove_dir(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        series.push(kilobytes(agent, "status", "VmRSS:")? / 1e3);
    }
    Ok(series)
}

/// From the first quarter to the last.
fn growth(series: &[f64]) -> f64 {
    let quarter = (series.len() / 4).max(1);
    let end = series.len().saturating_sub(quarter);
    let ends = [series.get(..quarter), series.get(end..)].map(Option::unwrap_or_default);
    median(ends[1]) - quantile(ends[0], 0.5)
}

fn kilobytes(agent: &Agent, file: &str, field: &str) -> Result<f64> {
    let path = agent.proc(file);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    let kib = kib.with_context(|| format!("{} has no {field}", path.display()))?;
    Ok(kib * 1.024)
}

fn map_ids() -> Vec<u32> {
    loaded_maps().flatten().map(|map| map.id()).collect()
}

/// What the kernel charges for the maps that are there now and were not `before`.
fn map_bytes(before: &[u32]) -> Result<f64> {
    let mut bytes = 0.0;
    // Those of others come and go meanwhile.
    for map in loaded_maps().flatten() {
        if before.contains(&map.id()) {
            continue;
        }
        let Ok(fd) = map.fd() else { continue };
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        let info = fs::read_to_string(&path).context(path)?;
        let memlock = info.lines().find_map(|line| line.strip_prefix("memlock:"));
        bytes += memlock.and_then(|text| text.trim().parse().ok()).unwrap_or(0.0);
    }
    Ok(bytes)
}
