//! Scenarios: a machine that is made up, so that the truth about it is known.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// A machine, its jobs, and how it is sampled. The files in `benches/scenarios/`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    pub description: String,
    /// The error that is allowed, percent; without it the error is stated and misses no target.
    #[serde(default)]
    pub limit_percent: Option<f64>,
    pub seconds: f64,
    /// Between two samples, seconds.
    pub interval: f64,
    #[serde(default = "one")]
    pub packages: usize,
    /// Of each package.
    pub static_watts: f64,
    /// Whether the session is told the static power.
    pub static_known: bool,
    /// Uniform noise on each package's power, to each side; drawn anew every millisecond.
    #[serde(default)]
    pub noise_watts: f64,
    /// Samples are up to this part of an interval late.
    #[serde(default = "a_little")]
    pub late: f64,
    #[serde(default)]
    pub counter: Counter,
    /// What belongs to no job: `other`.
    #[serde(default)]
    pub background: Option<Job>,
    pub jobs: Vec<Job>,
}

/// An energy counter.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Counter {
    pub joules_per_count: f64,
    pub range: u64,
    pub start: u64,
    pub refresh_ms: f64,
    pub max_watts: f64,
}

impl Default for Counter {
    /// What most RAPL counters are.
    fn default() -> Self {
        Self {
            joules_per_count: 1.0 / 16384.0,
            range: 1 << 32,
            start: 0,
            refresh_ms: 1.0,
            max_watts: 500.0,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    pub joules_per_cpu_second: f64,
    /// Where it runs, the same on each; without it, on package 0.
    #[serde(default = "first")]
    pub packages: Vec<usize>,
    pub load: Load,
}

/// Busy CPUs over time, on each package.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(tag = "shape", rename_all = "lowercase", deny_unknown_fields)]
pub(crate) enum Load {
    Constant {
        cpus: f64,
    },
    /// Busy at the beginning of each period. Processes that live for a millisecond are this, too.
    Bursts {
        cpus: f64,
        busy: f64,
        period: f64,
    },
    Sine {
        mean: f64,
        swing: f64,
        period: f64,
    },
    /// From one moment to another.
    Once {
        cpus: f64,
        from: f64,
        to: f64,
    },
}

impl Load {
    pub(crate) fn cpus(&self, time: f64) -> f64 {
        match *self {
            Self::Constant { cpus } => cpus,
            Self::Bursts { cpus, busy, period } if time % period < busy => cpus,
            Self::Sine { mean, swing, period } => {
                mean + swing * (time * std::f64::consts::TAU / period).sin()
            }
            Self::Once { cpus, from, to } if (from..to).contains(&time) => cpus,
            Self::Bursts { .. } | Self::Once { .. } => 0.0,
        }
    }
}

fn one() -> usize {
    1
}

fn a_little() -> f64 {
    0.05
}

fn first() -> Vec<usize> {
    vec![0]
}

/// All scenarios of a directory, by name.
pub(crate) fn load_all(directory: &Path) -> Result<Vec<(String, Scenario)>> {
    let load = |path: &Path| -> Result<Scenario> {
        let scenario: Scenario = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        let packages = scenario.jobs.iter().flat_map(|job| &job.packages);
        ensure!(packages.max() < Some(&scenario.packages), "a job on a package that is not there");
        Ok(scenario)
    };
    let scenarios = files(directory)?
        .into_iter()
        .map(|(name, path)| Ok((name, load(&path).with_context(|| path.display().to_string())?)));
    scenarios.collect()
}

/// The JSON files of a directory and what the table calls them, in order.
pub(super) fn files(directory: &Path) -> Result<Vec<(String, PathBuf)>> {
    let listed = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut paths = listed
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<PathBuf>>>()
        .with_context(|| directory.display().to_string())?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
    paths.sort();
    ensure!(!paths.is_empty(), "{} holds no scenario", directory.display());
    let name =
        |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().replace('-', " ");
    Ok(paths.into_iter().map(|path| (name(&path), path)).collect())
}

/// A scenario of this seed; jobs do the same work in a CPU-second.
pub(crate) fn random(seed: u64) -> Scenario {
    let mut random = Rng::with_seed(seed);
    let packages = random.usize(1..=4);
    let joules_per_cpu_second = between(&mut random, 4.0, 25.0);
    let load = |random: &mut Rng| {
        let cpus = between(random, 0.2, 4.0);
        let period = between(random, 0.3, 6.0);
        match random.u8(..3) {
            0 => Load::Constant { cpus },
            1 => Load::Bursts { cpus, busy: period * between(random, 0.2, 0.8), period },
            _ => Load::Sine { mean: cpus, swing: cpus * between(random, 0.1, 0.9), period },
        }
    };
    let job = |random: &mut Rng| Job {
        joules_per_cpu_second,
        packages: {
            let mut on: Vec<usize> = (0..packages).filter(|_| random.bool()).collect();
            if on.is_empty() {
                on.push(random.usize(..packages));
            }
            on
        },
        load: load(random),
    };
    Scenario {
        description: format!("random scenario {seed}"),
        limit_percent: None,
        seconds: 20.0,
        interval: if random.bool() { 1.0 } else { 0.1 },
        packages,
        static_watts: between(&mut random, 5.0, 80.0),
        static_known: true,
        noise_watts: between(&mut random, 0.0, 3.0),
        late: between(&mut random, 0.0, 0.2),
        counter: Counter { start: random.u64(..1 << 32), ..Counter::default() },
        background: Some(Job {
            load: Load::Constant { cpus: between(&mut random, 0.01, 0.2) },
            packages: (0..packages).collect(),
            joules_per_cpu_second,
        }),
        jobs: (0..random.usize(1..=6)).map(|_| job(&mut random)).collect(),
    }
}

fn between(random: &mut Rng, low: f64, high: f64) -> f64 {
    low + random.f64() * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_is_a_scenario() {
        let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        assert!(load_all(&files).unwrap().len() >= 10);
    }

    #[test]
    fn a_seed_is_a_scenario() {
        let text = |seed| serde_json::to_string(&random(seed)).unwrap();
        assert_eq!(text(7), text(7));
        assert_ne!(text(7), text(8));
    }
}
