//! Scenarios: a machine that is made up, so that the truth about it is known.

use std::ops::Range;
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
    /// Logical CPUs of each package; without it, as many as are asked for.
    #[serde(default)]
    pub cpus: Option<f64>,
    #[serde(default = "one")]
    pub threads_per_core: usize,
    /// What a CPU-second beside a busy sibling draws, of one on a core of its own.
    #[serde(default = "whole")]
    pub paired_weight: f64,
    /// Of each package, with every CPU of the machine asleep.
    pub static_watts: f64,
    /// What each package draws on top while any CPU of the machine is awake.
    #[serde(default)]
    pub awake_watts: f64,
    /// How much more a CPU-second draws with all CPUs busy than with one: −0.3 is 30 % less. Needs
    /// `cpus`.
    #[serde(default)]
    pub bend: f64,
    /// A package draws no more than this.
    #[serde(default)]
    pub cap_watts: Option<f64>,
    /// A warm package draws this part of its mean dynamic power of the last half minute on top.
    #[serde(default)]
    pub warm_up: f64,
    /// How the dynamic power of a package wanders at the same load.
    #[serde(default)]
    pub common: Wander,
    /// How what one job draws in a CPU-second wanders.
    #[serde(default)]
    pub own: Wander,
    /// For this part of each `asleep_period` nothing runs.
    #[serde(default)]
    pub asleep: f64,
    #[serde(default = "long")]
    pub asleep_period: f64,
    /// Whether the session is told the static power.
    pub static_known: bool,
    /// Noise on each package's power, as if uniform to each side and drawn anew every millisecond.
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
    /// It is read so long after CPU time was; the sample says so.
    pub after_ms: f64,
    /// It shows what was drawn so long ago; nobody says so.
    pub lag_ms: f64,
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
            after_ms: 0.05,
            lag_ms: 0.0,
        }
    }
}

/// A random walk that is pulled back, relative: its standard deviation, and the seconds in which it
/// forgets.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wander {
    pub part: f64,
    pub seconds: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Job {
    pub joules_per_cpu_second: f64,
    /// Where it runs, the same on each; without it, on package 0.
    #[serde(default = "first")]
    pub packages: Vec<usize>,
    /// It runs on one of its packages at a time, for this many seconds on average.
    #[serde(default)]
    pub moves: Option<f64>,
    pub load: Load,
    /// Jobs with the same number draw the same random times.
    #[serde(default)]
    pub stream: Option<u64>,
    #[serde(default)]
    pub phases: Option<Phases>,
}

/// What a job draws in a CPU-second is another in each phase: up to `part` more or less.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Phases {
    pub part: f64,
    /// Mean length.
    pub seconds: f64,
}

/// Busy CPUs over time, on each package. Mean times are those of exponential distributions.
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
    /// Busy and not, for random times.
    OnOff {
        cpus: f64,
        mean_busy: f64,
        mean_idle: f64,
    },
    /// Another number of CPUs each time.
    Levels {
        low: f64,
        high: f64,
        mean: f64,
    },
    /// Busy in every turn whose number is `turn` modulo `of`: with a common stream, never together.
    Turns {
        cpus: f64,
        turn: u64,
        of: u64,
        mean: f64,
    },
}

impl Load {
    /// Before and after it there is nothing.
    pub(crate) fn life(&self) -> Range<f64> {
        match *self {
            Self::Once { from, to, .. } => from..to,
            _ => 0.0..f64::INFINITY,
        }
    }
}

impl Scenario {
    /// A machine on which nothing runs, every watt of it known.
    pub(crate) fn quiet() -> Self {
        Self {
            description: String::new(),
            limit_percent: None,
            seconds: 20.0,
            interval: 1.0,
            packages: 1,
            cpus: None,
            threads_per_core: 1,
            paired_weight: 1.0,
            static_watts: 20.0,
            awake_watts: 0.0,
            bend: 0.0,
            cap_watts: None,
            warm_up: 0.0,
            common: Wander::default(),
            own: Wander::default(),
            asleep: 0.0,
            asleep_period: long(),
            static_known: true,
            noise_watts: 0.0,
            late: a_little(),
            counter: Counter::default(),
            background: None,
            jobs: Vec::new(),
        }
    }

    /// The grid of what changes all the time, seconds.
    pub(crate) fn step(&self) -> f64 {
        (self.interval / 25.0).clamp(5e-5, 2e-2)
    }
}

fn whole() -> f64 {
    1.0
}

fn long() -> f64 {
    10.0
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
        moves: None,
        stream: None,
        phases: None,
        packages: {
            let mut on: Vec<usize> = (0..packages).filter(|_| random.bool()).collect();
            if on.is_empty() {
                on.push(random.usize(..packages));
            }
            on
        },
        load: load(random),
    };
    let background = Job {
        load: Load::Constant { cpus: between(&mut random, 0.01, 0.2) },
        packages: (0..packages).collect(),
        ..job(&mut random)
    };
    Scenario {
        description: format!("random scenario {seed}"),
        interval: if random.bool() { 1.0 } else { 0.1 },
        packages,
        static_watts: between(&mut random, 5.0, 80.0),
        noise_watts: between(&mut random, 0.0, 3.0),
        late: between(&mut random, 0.0, 0.2),
        counter: Counter { start: random.u64(..1 << 32), ..Counter::default() },
        background: Some(background),
        jobs: (0..random.usize(1..=6)).map(|_| job(&mut random)).collect(),
        ..Scenario::quiet()
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
