//! What every category is given, and what it gives back.

use std::cell::{Cell, OnceCell};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::simulators::cgroup::v2_mount;
use crate::statistics;

/// How much is measured. Two results can be compared whatever these were.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Simulated GPUs.
    pub gpu_count: u32,
    pub model_size: ModelSize,
    /// How long one turn of a measurement is, but of `overhead`, seconds.
    pub duration: f64,
    /// How often each variant takes its turn; `overhead` takes several times as many.
    pub turns: usize,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ModelSize {
    /// Two layers; for CI.
    Tiny,
    /// Like distilbert: batch 16, 100 steps.
    Small,
    /// Like bert-large: batch 8, 50 steps.
    Large,
}

impl ModelSize {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::Large => "large",
        }
    }
}

/// What a figure has to be below.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// Ours.
    pub below: f64,
    /// What the project was asked for.
    pub asked: Option<f64>,
    /// A figure inside its noise meets it too, if floor and interval show that it is below `asked`.
    pub or_noise: bool,
}

impl Target {
    pub(crate) fn below(below: f64) -> Self {
        Self { below, asked: None, or_noise: false }
    }

    pub(crate) fn asked(self, asked: f64) -> Self {
        Self { asked: Some(asked), ..self }
    }
}

/// One figure; less is better.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Metric {
    pub name: String,
    pub unit: String,
    /// The median of the samples, where there are any and nothing else is said; NaN where it could not
    /// be had.
    #[serde(deserialize_with = "or_nan")]
    pub value: f64,
    /// 95 % confidence interval.
    pub interval: Option<(f64, f64)>,
    /// How far two values of the same thing lie apart by chance.
    pub noise: Option<f64>,
    /// What each turn gave.
    pub samples: Vec<f64>,
    /// Against nothing at all, so that it may well be 0: an overhead, a growth. Only of such a figure can
    /// it be said that it lies inside the noise.
    #[serde(default)]
    pub difference: bool,
    pub target: Option<Target>,
}

/// JSON has no NaN: it is written as null.
fn or_nan<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Metric {
    /// The median of several turns.
    pub(crate) fn of_turns(name: impl Into<String>, unit: &str, samples: Vec<f64>) -> Self {
        Self {
            name: name.into(),
            unit: unit.to_owned(),
            value: statistics::median(&samples),
            interval: (!samples.is_empty()).then(|| statistics::interval(&samples)),
            noise: (!samples.is_empty()).then(|| statistics::noise(&samples)),
            samples,
            difference: false,
            target: None,
        }
    }

    /// A figure that comes out the same each time.
    pub(crate) fn exact(name: impl Into<String>, unit: &str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit: unit.to_owned(),
            value,
            interval: None,
            noise: None,
            samples: Vec::new(),
            difference: false,
            target: None,
        }
    }

    pub(crate) fn with_noise(self, noise: f64) -> Self {
        Self { noise: Some(noise), ..self }
    }

    pub(crate) fn against_nothing(self) -> Self {
        Self { difference: true, ..self }
    }

    pub(crate) fn with_target(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    pub(crate) fn inside_noise(&self) -> bool {
        self.difference
            && (self.noise.is_some_and(|noise| self.value.abs() <= noise)
                || self.interval.is_some_and(|(low, high)| low <= 0.0 && high >= 0.0))
    }

    /// By how much the target is missed, which is nothing or less where the noise is too loud to tell.
    /// A figure that is not a number misses it.
    pub(crate) fn missed_by(&self) -> Option<f64> {
        let target = self.target?;
        let enough_is_known = target.asked.is_none_or(|asked| {
            self.noise < Some(asked) && self.interval.is_none_or(|(_, high)| high < asked)
        });
        let met = match target.or_noise {
            true => enough_is_known && (self.value < target.below || self.inside_noise()),
            false => self.value < target.below,
        };
        (!met).then_some(self.value - target.below)
    }
}

/// A part that could not be measured here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    pub what: String,
    pub why: String,
}

/// What one category found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub category: String,
    pub seconds: f64,
    pub metrics: Vec<Metric>,
    pub skipped: Vec<Skipped>,
    /// Why it ended early, if it did.
    pub failure: Option<String>,
    /// What is worth keeping and is no figure to compare: points of a plot, what a table needs.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub data: serde_json::Map<String, serde_json::Value>,
}

impl Outcome {
    pub(crate) fn skip(&mut self, what: impl Into<String>, why: impl Into<String>) {
        self.skipped.push(Skipped { what: what.into(), why: why.into() });
    }
}

/// The suite: settings, the agent's binary, the screen.
#[derive(Debug)]
pub(crate) struct Bench {
    pub settings: Settings,
    /// The `ecoprobe` to be measured.
    pub agent: PathBuf,
    /// Where results and plots go.
    pub results: PathBuf,
    probe_works: OnceCell<Result<(), String>>,
    drawn: Cell<bool>,
}

impl Bench {
    pub(crate) fn new(
        settings: Settings,
        agent: Option<PathBuf>,
        results: PathBuf,
    ) -> Result<Self> {
        let agent = match agent {
            Some(agent) => agent,
            None => std::env::current_exe()?.with_file_name("ecoprobe"),
        };
        ensure!(
            agent.exists(),
            "{} is not there; `cargo xtask bench` builds it, or name one with --ecoprobe",
            agent.display()
        );
        // Before hours are spent, not after.
        std::fs::create_dir_all(&results)
            .and_then(|()| tempfile::tempfile_in(&results))
            .with_context(|| format!("cannot write to {}", results.display()))?;
        Ok(Self { settings, agent, results, probe_works: OnceCell::new(), drawn: Cell::new(false) })
    }

    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs_f64(self.settings.duration)
    }

    /// Says what is going on: in place on a terminal, else a line each.
    pub(crate) fn progress(&self, what: impl std::fmt::Display) {
        crate::interrupt::stop_if_interrupted();
        let mut screen = std::io::stderr().lock();
        // Nobody misses a progress line that could not be written.
        if screen.is_terminal() {
            let _ = write!(screen, "\r\x1b[K{what} ");
            let _ = screen.flush();
            self.drawn.set(true);
        } else {
            let _ = writeln!(screen, "{what}");
        }
    }

    /// Clears the progress line.
    pub(crate) fn quiet(&self) {
        if self.drawn.take() {
            eprint!("\r\x1b[K");
        }
    }

    /// Whether the probe can be loaded here; else why not, in the agent's words.
    pub(crate) fn probe_works(&self) -> Result<(), String> {
        self.probe_works
            .get_or_init(|| self.try_probe().map_err(|error| format!("{error:#}")))
            .clone()
    }

    fn try_probe(&self) -> Result<()> {
        let output = Command::new(&self.agent)
            .args(["--cgroup", "/", "--duration", "20ms", "--interval", "10ms"])
            .args(["--cpu-energy", "none", "--format", "json"])
            .stdin(Stdio::null())
            .output()
            .with_context(|| self.agent.display().to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("it does not say why").to_owned();
        ensure!(output.status.success(), "{last}");
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        ensure!(mounts.contains(" cgroup2 "), "cgroup2 is not mounted");
        let own = v2_mount().join(format!("test-{}-bench", std::process::id()));
        std::fs::create_dir(&own)
            .and_then(|()| std::fs::remove_dir(&own))
            .with_context(|| format!("cannot make {}", own.display()))?;
        Ok(())
    }
}

/// 1,000 and 10,000 as people write them.
pub(crate) fn thousands(number: usize) -> String {
    ecoprobe::door::count(number as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_below_it_or_in_noise_that_is_low_enough() {
        let target = Target { below: 0.1, asked: Some(5.0), or_noise: true };
        let overhead = |value: f64, noise| {
            let metric = Metric::exact("training", "%", value).with_noise(noise).against_nothing();
            metric.with_target(target).missed_by().is_none()
        };
        assert!(overhead(0.05, 0.2));
        assert!(overhead(0.8, 1.0));
        assert!(!overhead(1.2, 1.0));
        // Noise that could hide more than was asked for shows nothing.
        assert!(!overhead(0.05, 6.0));
        // So does an interval that reaches so far, however quiet the A/A run was.
        let wide = Metric { interval: Some((-1.0, 6.0)), ..Metric::exact("training", "%", 0.05) };
        let wide = wide.with_noise(0.2).against_nothing().with_target(target);
        assert!(wide.inside_noise() && wide.missed_by().is_some());
        let tick = |value| Metric::exact("tick", "µs", value).with_target(Target::below(100.0));
        assert!(tick(99.0).missed_by().is_none());
        assert_eq!(tick(130.0).missed_by(), Some(30.0));
        assert!(tick(f64::NAN).missed_by().is_some());
    }

    #[test]
    fn only_a_difference_can_be_inside_the_noise() {
        let figure = Metric::exact("p99", "µs", 115.0).with_noise(133.0);
        assert!(!figure.inside_noise());
        assert!(figure.against_nothing().inside_noise());
        let interval = Some((-0.1, 0.3));
        let added = Metric { interval, ..Metric::exact("added", "%", 0.2).with_noise(0.1) };
        assert!(!added.inside_noise());
        assert!(added.against_nothing().inside_noise());
    }
}
