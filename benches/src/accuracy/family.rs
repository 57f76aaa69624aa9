//! Families of scenarios: ranges from which a seed draws a machine and its jobs. The files in
//! `benches/families/`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use fastrand::Rng;
use serde::Deserialize;

use super::load::seeded;
use super::scenario::{Counter, Job, Load, Phases, Scenario, Wander, files};

/// A number that is drawn: itself, `[from, to]`, `{"log": [from, to]}`, or one `{"of": [...]}`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub(crate) enum Draw {
    Is(f64),
    Between([f64; 2]),
    /// Even in the logarithm.
    Log {
        log: [f64; 2],
    },
    Of {
        of: Vec<f64>,
    },
}

impl Draw {
    fn number(&self, random: &mut Rng) -> f64 {
        match self {
            Self::Is(number) => *number,
            Self::Between([from, to]) => from + random.f64() * (to - from),
            Self::Log { log: [from, to] } => from * (to / from).powf(random.f64()),
            Self::Of { of } => of[random.usize(..of.len())],
        }
    }

    /// A whole number, both ends as likely as what is between.
    fn count(&self, random: &mut Rng) -> usize {
        match self {
            Self::Between([from, to]) => (from + random.f64() * (to - from + 1.0)).floor() as usize,
            draw => draw.number(random).round() as usize,
        }
    }

    /// Whether there is something to draw, from `least` up.
    fn is_from(&self, least: f64) -> bool {
        match self {
            Self::Is(number) => *number >= least,
            Self::Between([from, to]) => least <= *from && from <= to,
            Self::Log { log: [from, to] } => least <= *from && 0.0 < *from && from <= to,
            Self::Of { of } => !of.is_empty() && of.iter().all(|number| *number >= least),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Family {
    #[expect(dead_code, reason = "for whoever reads the file")]
    description: String,
    /// The error that is allowed of a job, percent.
    #[serde(default)]
    pub limits: Limits,
    /// Scenarios for each of `--turns`.
    #[serde(default = "twice")]
    pub per_turn: f64,
    /// Whether the session is told the static power.
    #[serde(default)]
    static_known: bool,
    seconds: Draw,
    interval: Draw,
    #[serde(default)]
    machine: Machine,
    #[serde(default)]
    sampling: Sampling,
    jobs: Vec<Group>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Limits {
    pub median_percent: Option<f64>,
    pub worst_percent: Option<f64>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Machine {
    packages: Draw,
    /// Logical CPUs of a package.
    cpus: Draw,
    threads_per_core: Draw,
    paired_weight: Draw,
    /// With 16 CPUs; fewer or more draw (16 / CPUs)^0.4 of it.
    joules_per_cpu_second: Draw,
    /// Static watts, as part of what all CPUs draw when they are busy.
    static_part: Draw,
    /// The step of waking up, as part of the static watts.
    awake_part: Draw,
    bend: Draw,
    /// The limit leaves this part of what all CPUs would draw.
    cap_part: Option<Draw>,
    warm_up: Draw,
    common: Wanders,
    own: Wanders,
    /// Noise, as part of all that the package can draw.
    noise_part: Draw,
    /// CPUs of each package that are busy for nobody in particular.
    background_cpus: Draw,
    /// Part of the run in which nothing runs, and in how many pieces.
    asleep: Draw,
    pauses: Draw,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanders {
    part: Draw,
    seconds: Draw,
}

impl Default for Machine {
    /// What real machines are like, one thread a core.
    fn default() -> Self {
        let between = |from, to| Draw::Between([from, to]);
        Self {
            packages: Draw::Is(1.0),
            cpus: Draw::Of { of: vec![4.0, 8.0, 16.0, 32.0, 64.0] },
            threads_per_core: Draw::Is(1.0),
            paired_weight: between(0.5, 0.65),
            joules_per_cpu_second: between(3.0, 15.0),
            static_part: between(0.1, 0.35),
            awake_part: between(0.5, 2.3),
            bend: between(-0.05, 0.03),
            cap_part: None,
            warm_up: between(0.0, 0.03),
            common: Wanders { part: between(0.003, 0.012), seconds: between(0.5, 10.0) },
            own: Wanders { part: between(0.01, 0.03), seconds: between(0.5, 5.0) },
            noise_part: between(0.01, 0.1),
            background_cpus: between(0.005, 0.1),
            asleep: between(0.1, 0.3),
            pauses: between(2.0, 6.0),
        }
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sampling {
    /// Samples are up to this part of an interval late.
    late: Draw,
    refresh_ms: Draw,
    after_ms: Draw,
    lag_ms: Draw,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            late: Draw::Between([0.0, 0.05]),
            refresh_ms: Draw::Is(1.0),
            after_ms: Draw::Between([0.0, 0.2]),
            lag_ms: Draw::Is(0.0),
        }
    }
}

/// Jobs that are alike but for what is drawn anew for each.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Group {
    #[serde(default)]
    count: Option<Draw>,
    /// Instead of a count.
    #[serde(default)]
    count_per_second: Option<Draw>,
    /// How far prices lie apart: each job has 1 or this times the machine's, and both occur.
    #[serde(default = "alike")]
    apart: Draw,
    /// CPUs, as part of what each job has of a package if all have the same.
    #[serde(default = "fair")]
    cpus: Draw,
    shapes: Vec<Shape>,
    /// Of one level, burst or life.
    #[serde(default = "seconds")]
    mean_seconds: Draw,
    #[serde(default)]
    phases: Option<Wanders>,
    #[serde(default)]
    together: Together,
    /// One of these for each job where there are several packages.
    #[serde(default = "anywhere")]
    on: Vec<On>,
}

/// What jobs run on.
#[derive(Debug, Clone, Copy)]
struct Room {
    seconds: f64,
    packages: usize,
    /// Of each package.
    cpus: f64,
    /// Joules in a CPU-second.
    price: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Shape {
    Constant,
    OnOff,
    Levels,
    Bursts,
    Sine,
    /// It comes at some time and goes again; some are there from the start.
    Once,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Together {
    #[default]
    Free,
    /// All of the group run at the same times.
    Always,
    /// One of the group at a time, and now and then none.
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum On {
    One,
    All,
    Moves,
}

fn twice() -> f64 {
    2.0
}

fn alike() -> Draw {
    Draw::Is(1.0)
}

fn fair() -> Draw {
    Draw::Between([0.3, 1.9])
}

fn seconds() -> Draw {
    Draw::Log { log: [1.0, 12.0] }
}

fn anywhere() -> Vec<On> {
    vec![On::One, On::All, On::Moves]
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("families")
}

/// The names of the files, without `.json`.
pub(crate) fn names() -> Result<Vec<String>> {
    Ok(files(&directory())?.into_iter().map(|(name, _)| name.replace(' ', "-")).collect())
}

/// All families, by name.
pub(crate) fn load_all() -> Result<Vec<(String, Family)>> {
    let load = |path: &Path| -> Result<Family> {
        let family: Family = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        family.check()?;
        Ok(family)
    };
    files(&directory())?
        .into_iter()
        .map(|(name, path)| Ok((name, load(&path).with_context(|| path.display().to_string())?)))
        .collect()
}

impl Family {
    fn check(&self) -> Result<()> {
        ensure!(self.seconds.is_from(1.0), "`seconds` is to be 1 at least");
        ensure!(self.interval.is_from(1e-3), "`interval` is to be 0.001 at least");
        ensure!(self.machine.packages.is_from(1.0), "`packages` is to be 1 at least");
        ensure!(self.machine.cpus.is_from(1.0), "`cpus` is to be 1 at least");
        ensure!(!self.jobs.is_empty(), "there are no jobs");
        for group in &self.jobs {
            ensure!(!group.shapes.is_empty() && !group.on.is_empty(), "a group without a shape");
            let counts = [&group.count, &group.count_per_second];
            ensure!(
                counts.into_iter().flatten().count() == 1,
                "a group has a `count` or a `count_per_second`"
            );
        }
        Ok(())
    }

    /// The scenario of a seed.
    pub(crate) fn scenario(&self, seed: u64) -> Scenario {
        let random = &mut seeded(seed, 1 << 56);
        let machine = &self.machine;
        let (interval, seconds) = (self.interval.number(random), self.seconds.number(random));
        let packages = machine.packages.count(random);
        let cpus = machine.cpus.number(random).round();
        let price = machine.joules_per_cpu_second.number(random);
        let price = price * (16.0 / cpus.max(8.0)).powf(0.4);
        let threads_per_core = machine.threads_per_core.count(random);
        let paired_weight = machine.paired_weight.number(random);
        let full = cpus * price * if threads_per_core > 1 { paired_weight } else { 1.0 };
        let static_watts = full * machine.static_part.number(random);
        let awake_watts = static_watts * machine.awake_part.number(random);
        let most = static_watts + awake_watts + full;
        let cap = machine.cap_part.as_ref().map(|part| full * part.number(random));
        let pauses = machine.pauses.number(random);
        let everybody = (0..packages).collect();
        let background = Job {
            joules_per_cpu_second: price,
            packages: everybody,
            moves: None,
            load: Load::Levels {
                low: 0.0,
                high: 2.0 * machine.background_cpus.number(random),
                mean: 1.0,
            },
            stream: None,
            phases: None,
        };
        let sampling = &self.sampling;
        Scenario {
            description: format!("seed {seed}"),
            limit_percent: None,
            seconds: (seconds / interval).round().max(3.0) * interval,
            interval,
            packages,
            cpus: Some(cpus),
            threads_per_core,
            paired_weight,
            static_watts,
            awake_watts,
            bend: machine.bend.number(random),
            cap_watts: cap.map(|cap| static_watts + awake_watts + cap),
            warm_up: machine.warm_up.number(random),
            common: machine.common.draw(random),
            own: machine.own.draw(random),
            asleep: machine.asleep.number(random),
            asleep_period: seconds / pauses,
            static_known: self.static_known,
            noise_watts: most * machine.noise_part.number(random),
            late: sampling.late.number(random),
            counter: Counter {
                start: random.u64(..1 << 32),
                refresh_ms: sampling.refresh_ms.number(random),
                after_ms: sampling.after_ms.number(random),
                lag_ms: sampling.lag_ms.number(random),
                // Spikes of noise and warmth included.
                max_watts: 4.0 * most,
                ..Counter::default()
            },
            background: Some(background),
            jobs: self.jobs(random, Room { seconds, packages, cpus, price }),
        }
    }

    fn jobs(&self, random: &mut Rng, room: Room) -> Vec<Job> {
        let counts: Vec<usize> = self
            .jobs
            .iter()
            .map(|group| match (&group.count, &group.count_per_second) {
                (Some(count), _) => count.count(random),
                (None, rate) => {
                    let rate = rate.as_ref().map_or(1.0, |rate| rate.number(random));
                    (room.seconds * rate).round() as usize
                }
            })
            .map(|count| count.max(1))
            .collect();
        let fair = room.cpus / counts.iter().sum::<usize>() as f64;
        let groups = self.jobs.iter().zip(&counts).zip(0..);
        groups
            .flat_map(|((group, count), stream)| group.jobs(random, *count, stream, room, fair))
            .collect()
    }
}

impl Wanders {
    fn draw(&self, random: &mut Rng) -> Wander {
        Wander { part: self.part.number(random), seconds: self.seconds.number(random) }
    }
}

impl Group {
    /// So many jobs; each has `fair` CPUs if all have the same.
    fn jobs(&self, random: &mut Rng, count: usize, stream: u64, room: Room, fair: f64) -> Vec<Job> {
        let Room { seconds, packages, cpus, price } = room;
        let apart = self.apart.number(random);
        let mut dear: Vec<bool> = (0..count).map(|_| random.bool()).collect();
        if count > 1 && dear.iter().all(|one| *one == dear[0]) {
            dear[0] = !dear[0];
        }
        // Whoever is not free draws the same times.
        let mean = self.mean_seconds.number(random);
        let same = random.clone();
        let load = |number: usize, level: f64, random: &mut Rng| match self.together {
            Together::Free => {
                let mean = self.mean_seconds.number(random);
                self.shape(random).load(random, level, mean, seconds)
            }
            Together::Always => {
                let same = &mut same.clone();
                self.shape(same).load(same, level, mean, seconds)
            }
            Together::Never => {
                Load::Turns { cpus: level, turn: number as u64, of: count as u64 + 1, mean }
            }
        };
        let mut jobs = Vec::new();
        for (number, dear) in dear.into_iter().enumerate() {
            // Threads are whole, where there is room for them.
            let part = fair * self.cpus.number(random);
            let level = if part > 1.0 { part.round() } else { part.max(0.02) }.min(cpus);
            let on = if packages > 1 { self.on[random.usize(..self.on.len())] } else { On::All };
            jobs.push(Job {
                joules_per_cpu_second: price * if dear { apart } else { 1.0 },
                packages: match on {
                    On::One => vec![random.usize(..packages)],
                    On::All | On::Moves => (0..packages).collect(),
                },
                moves: (on == On::Moves).then_some(3.0 * mean),
                load: load(number, level, random),
                stream: (self.together != Together::Free).then_some(stream),
                phases: self.phases.as_ref().map(|phases| {
                    let Wander { part, seconds } = phases.draw(random);
                    Phases { part, seconds }
                }),
            });
        }
        jobs
    }

    fn shape(&self, random: &mut Rng) -> Shape {
        self.shapes[random.usize(..self.shapes.len())]
    }
}

impl Shape {
    fn load(self, random: &mut Rng, cpus: f64, mean: f64, seconds: f64) -> Load {
        let part = 0.2 + 0.6 * random.f64();
        match self {
            Self::Constant => Load::Constant { cpus },
            Self::OnOff => {
                Load::OnOff { cpus, mean_busy: mean, mean_idle: mean * (0.3 + 1.7 * random.f64()) }
            }
            Self::Levels => Load::Levels { low: 0.0, high: cpus, mean },
            Self::Bursts => {
                let period = 2.0 * mean;
                Load::Bursts { cpus, busy: part * period, period }
            }
            Self::Sine => Load::Sine { mean: 0.6 * cpus, swing: part * cpus, period: 3.0 * mean },
            Self::Once => {
                let from = random.f64() * (seconds + mean / 2.0) - mean / 2.0;
                let length = -mean * (1.0 - random.f64()).ln();
                Load::Once { cpus, from, to: from + length + 0.05 }
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn all() -> Vec<(String, Family)> {
        load_all().unwrap()
    }

    #[test]
    fn every_file_is_a_family_and_a_seed_a_scenario() {
        let families = all();
        assert!(families.len() >= 20);
        for (name, family) in families {
            let text = |seed| serde_json::to_string(&family.scenario(seed)).unwrap();
            assert_eq!(text(7), text(7), "{name}");
            assert_ne!(text(7), text(8), "{name}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let family = |jobs: &str| {
            let text = format!(
                r#"{{"description": "", "seconds": 10, "interval": [0.1, 1], "jobs": [{jobs}]}}"#
            );
            serde_json::from_str::<Family>(&text).map_err(anyhow::Error::from)?.check()
        };
        family(r#"{"count": {"of": [2, 3]}, "shapes": ["onoff"]}"#).unwrap();
        for wrong in [
            "",
            r#"{"shapes": ["onoff"]}"#,
            r#"{"count": 2, "count_per_second": 1, "shapes": ["onoff"]}"#,
            r#"{"count": 2, "shapes": []}"#,
            r#"{"count": 2, "shapes": ["onoff"], "price": 3}"#,
            r#"{"count": {"log": [1, 2], "of": [3]}, "shapes": ["onoff"]}"#,
        ] {
            assert!(family(wrong).is_err(), "{wrong}");
        }
    }
}
