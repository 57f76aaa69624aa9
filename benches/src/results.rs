//! Results as files, and one result against another.

use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::environment::{Machine, State};
use crate::harness::{Metric, Outcome, Settings};
use crate::statistics::difference;

pub(crate) const SCHEMA: &str = "ecoprobe.bench/1";

/// With fewer turns on either side there is no distribution to resample.
const FEW: usize = 4;

/// A run of the suite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    pub schema: String,
    /// RFC 3339.
    pub start: String,
    pub end: String,
    pub machine: Machine,
    pub state: State,
    pub settings: Settings,
    pub outcomes: Vec<Outcome>,
}

impl Results {
    pub(crate) fn metrics(&self) -> impl Iterator<Item = (&Outcome, &Metric)> {
        self.outcomes
            .iter()
            .flat_map(|outcome| outcome.metrics.iter().map(move |metric| (outcome, metric)))
    }

    /// The same figure in this result.
    fn find(&self, outcome: &Outcome, metric: &Metric) -> Option<&Metric> {
        let same = |o: &Outcome, m: &Metric| {
            (&o.category, &m.name, &m.unit) == (&outcome.category, &metric.name, &metric.unit)
        };
        self.metrics().find(|(o, m)| same(o, m)).map(|(_, metric)| metric)
    }

    fn has(&self, category: &str) -> bool {
        self.outcomes.iter().any(|outcome| outcome.category == category)
    }

    /// Categories that the other does not have.
    fn categories_beyond(&self, other: &Self) -> Vec<String> {
        let names = self.outcomes.iter().map(|outcome| outcome.category.clone());
        names.filter(|category| !other.has(category)).collect()
    }

    /// Figures that the other does not have, of categories that it has.
    fn metrics_beyond(&self, other: &Self) -> Vec<String> {
        let ours = self.metrics().filter(|(outcome, metric)| {
            other.has(&outcome.category) && other.find(outcome, metric).is_none()
        });
        ours.map(|(outcome, metric)| full_name(outcome, metric)).collect()
    }

    /// Writes it where nothing is overwritten: the file is named by its time and categories.
    pub(crate) fn save(&self, directory: &Path) -> Result<PathBuf> {
        let categories: Vec<&str> =
            self.outcomes.iter().map(|outcome| outcome.category.as_str()).collect();
        let what = if categories.len() > 1 { "all" } else { categories.first().unwrap_or(&"none") };
        let time = self.start.split('.').next().unwrap_or(&self.start).replace(':', "");
        let name = format!("{}-{what}", time.trim_end_matches('Z'));
        let text = serde_json::to_string_pretty(self)? + "\n";
        // Where nothing can be measured, runs end within a second.
        let mut path = directory.join(format!("{name}.json"));
        for number in 2.. {
            match fs::File::create_new(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    path = directory.join(format!("{name}-{number}.json"));
                }
                file => {
                    file.and_then(|mut file| file.write_all(text.as_bytes()))
                        .with_context(|| format!("cannot write {}", path.display()))?;
                    break;
                }
            }
        }
        Ok(path)
    }

    /// Reads what a run on this machine is to be compared with. The inner error says why that result
    /// cannot be.
    ///
    /// # Errors
    ///
    /// If the file is no result at all.
    pub(crate) fn baseline(path: &Path, here: &Machine) -> Result<Result<Self, String>> {
        #[derive(Deserialize)]
        struct AnySchema {
            schema: String,
        }
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the baseline {}", path.display()))?;
        let path = path.display();
        let none = || format!("{path} is no result of this suite");
        let AnySchema { schema } = serde_json::from_str(&text).with_context(none)?;
        if schema != SCHEMA {
            return Ok(Err(format!(
                "the baseline has the schema {schema:?}, this suite writes {SCHEMA}: not compared"
            )));
        }
        let results: Self = serde_json::from_str(&text).with_context(none)?;
        if results.machine != *here {
            return Ok(Err(format!(
                "the baseline is of another machine: not compared\n  there: {}\n  here:  {}",
                describe(&results.machine),
                describe(here)
            )));
        }
        Ok(Ok(results))
    }

    /// What github-action-benchmark calls `customSmallerIsBetter`.
    pub(crate) fn for_github(&self) -> serde_json::Value {
        // It has no way to say that a figure could not be had.
        let finite = self.metrics().filter(|(_, metric)| metric.value.is_finite());
        let entries = finite.map(|(outcome, metric)| {
            let mut entry = serde_json::json!({
                "name": full_name(outcome, metric),
                "unit": metric.unit,
                "value": metric.value,
            });
            if let Some((low, high)) = metric.interval {
                entry["range"] = format!("± {}", significant((high - low) / 2.0)).into();
            }
            if let Some(noise) = metric.noise {
                entry["extra"] = format!("noise floor {}", significant(noise)).into();
            }
            entry
        });
        entries.collect()
    }
}

/// One metric in two results.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Compared {
    pub name: String,
    pub unit: String,
    pub before: f64,
    pub after: f64,
    pub verdict: Verdict,
    /// How sure it is that the direction is the one it seems to be, 0.5 to 1; `None` for figures
    /// that come out the same each time.
    pub confidence: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Better,
    Same,
    Worse,
}

/// One result against another.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Comparison {
    /// What both have.
    pub metrics: Vec<Compared>,
    /// What only one of them has, in sentences.
    pub notes: Vec<String>,
}

pub(crate) fn compare(before: &Results, after: &Results) -> Comparison {
    let mut metrics = Vec::new();
    let mut few = Vec::new();
    for (outcome, metric) in after.metrics() {
        let Some(old) = before.find(outcome, metric) else { continue };
        let name = full_name(outcome, metric);
        match compare_one(name.clone(), old, metric) {
            Some(compared) => metrics.push(compared),
            None => few.push(name),
        }
    }
    let notes = [
        ("categories of the baseline that were not run now", before.categories_beyond(after)),
        ("categories that the baseline does not have", after.categories_beyond(before)),
        ("in the baseline, and not measured now", before.metrics_beyond(after)),
        ("measured now, and not in the baseline", after.metrics_beyond(before)),
        ("not compared for want of turns", few),
    ];
    let notes = notes.into_iter().filter(|(_, names)| !names.is_empty());
    Comparison {
        metrics,
        notes: notes.map(|(what, names)| format!("{what}: {}", names.join("; "))).collect(),
    }
}

fn full_name(outcome: &Outcome, metric: &Metric) -> String {
    format!("{}: {}", outcome.category, metric.name)
}

/// Worse, or better, is what differs by more than the noise of either with 95 % confidence. `None`: too
/// few turns to tell.
fn compare_one(name: String, before: &Metric, after: &Metric) -> Option<Compared> {
    let noise = before.noise.unwrap_or(0.0).max(after.noise.unwrap_or(0.0));
    let (interval, confidence) = match (before.samples.len(), after.samples.len()) {
        (0, 0) => {
            let apart = after.value - before.value;
            ((apart, apart), None)
        }
        (FEW.., FEW..) => {
            let difference = difference(&before.samples, &after.samples);
            let sure = difference.higher.max(1.0 - difference.higher);
            // Resampling so few turns says 100 % where chance would sort them alike now and then.
            let chance = 1.0 / orders(before.samples.len(), after.samples.len());
            (difference.interval, Some(sure.min(1.0 - chance)))
        }
        _ => return None,
    };
    // Where nothing is random, what rounding does is no change.
    let noise = noise.max(1e-9 * before.value.abs());
    let verdict = match interval {
        (low, _) if low > noise => Verdict::Worse,
        (_, high) if high < -noise => Verdict::Better,
        _ => Verdict::Same,
    };
    let unit = after.unit.clone();
    let (before, after) = (before.value, after.value);
    Some(Compared { name, unit, before, after, verdict, confidence })
}

/// In how many ways the turns of two runs can lie among each other.
fn orders(one: usize, other: usize) -> f64 {
    (1..=one).map(|n| (other + n) as f64 / n as f64).product()
}

pub(crate) fn describe(machine: &Machine) -> String {
    let Machine { cpu, cpus, memory_gib, architecture, virtualisation } = machine;
    format!("{cpus} × {cpu} ({architecture}), {memory_gib} GiB, virtualisation: {virtualisation}")
}

/// Three significant digits, no exponent in the range that people read.
pub(crate) fn significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-5..9).contains(&magnitude) {
        return format!("{value:.2e}");
    }
    let digits = usize::try_from(2 - magnitude).unwrap_or(0);
    format!("{value:.digits$}")
}

/// A table of columns; all but the first `left` are aligned right.
pub(crate) fn table(rows: &[Vec<String>], left: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let wide = |text: &String| text.chars().count();
    let width = |column| rows.iter().filter_map(|row| row.get(column)).map(wide).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            // Writing to a string cannot fail.
            let _ = if column < left || column + 1 == columns {
                write!(line, "{gap}{cell:<width$}")
            } else {
                write!(line, "{gap}{cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::ModelSize;

    fn results(metrics: Vec<Metric>) -> Results {
        let machine = Machine {
            cpu: "a CPU".into(),
            cpus: 2,
            memory_gib: 4,
            architecture: "x86_64".into(),
            virtualisation: "none".into(),
        };
        let state = State {
            kernel: "6.1".into(),
            governor: None,
            load: Some(0.1),
            git_revision: None,
            git_modified: false,
            version: "0".into(),
        };
        let settings = Settings {
            gpu_count: 8,
            model_size: ModelSize::Tiny,
            duration: 1.0,
            turns: 5,
            seed: 1,
        };
        let outcome = Outcome { category: "latency".into(), metrics, ..Outcome::default() };
        Results {
            schema: SCHEMA.into(),
            start: "2026-01-02T03:04:05.678Z".into(),
            end: "2026-01-02T03:05:05Z".into(),
            machine,
            state,
            settings,
            outcomes: vec![outcome],
        }
    }

    fn turns(around: f64) -> Metric {
        let samples = (0..11).map(|i| around + f64::from(i * 7 % 11) * 0.1).collect();
        Metric::of_turns("tick", "µs", samples)
    }

    fn verdict(before: Metric, after: Metric) -> Verdict {
        compare(&results(vec![before]), &results(vec![after])).metrics[0].verdict
    }

    #[test]
    fn a_change_beyond_the_noise_is_told() {
        assert_eq!(verdict(turns(10.0), turns(10.1)), Verdict::Same);
        assert_eq!(verdict(turns(10.0), turns(13.0)), Verdict::Worse);
        assert_eq!(verdict(turns(13.0), turns(10.0)), Verdict::Better);
        let exact = |value| Metric::exact("error", "%", value);
        assert_eq!(verdict(exact(1.0), exact(1.0)), Verdict::Same);
        assert_eq!(verdict(exact(1.0), exact(1.1)), Verdict::Worse);
        assert_eq!(verdict(exact(1.0).with_noise(0.2), exact(1.1)), Verdict::Same);
    }

    /// As a run of so many turns measures it; each is off by up to `spread` of it, to either side.
    fn measured(random: &mut fastrand::Rng, truth: f64, spread: f64, turns: usize) -> Metric {
        let mut turn = || truth * (1.0 + spread * (random.f64() + random.f64() - 1.0));
        Metric::of_turns("tick", "µs", (0..turns).map(|_| turn()).collect())
    }

    #[test]
    fn two_runs_of_the_same_agree_and_a_tenth_on_a_quiet_metric_is_caught() {
        const PAIRS: usize = 30;
        let mut random = fastrand::Rng::with_seed(1);
        for turns in [5, 11] {
            let mut verdicts = |factor: f64, spread| -> Vec<Verdict> {
                let mut one = || {
                    let before = measured(&mut random, 50.0, spread, turns);
                    verdict(before, measured(&mut random, 50.0 * factor, spread, turns))
                };
                (0..PAIRS).map(|_| one()).collect()
            };
            let count = |verdicts: Vec<Verdict>, wanted| {
                verdicts.into_iter().filter(|verdict| *verdict == wanted).count()
            };
            // Of 100 that agree, one may seem not to.
            let same = count(verdicts(1.0, 0.3), Verdict::Same);
            assert!(same >= PAIRS - 1, "{same} of {PAIRS} pairs of {turns} turns agree");
            assert_eq!(count(verdicts(1.1, 0.02), Verdict::Worse), PAIRS);
            assert_eq!(count(verdicts(0.9, 0.02), Verdict::Better), PAIRS);
        }
    }

    #[test]
    fn what_only_one_has_is_said() {
        let metric = |name: &str| Metric::exact(name, "µs", 1.0);
        let before = results(vec![metric("tick"), metric("start")]);
        let mut after = results(vec![metric("tick"), metric("stop")]);
        after.outcomes.push(Outcome { category: "memory".into(), ..Outcome::default() });
        let comparison = compare(&before, &after);
        assert_eq!(comparison.metrics.len(), 1);
        assert_eq!(
            comparison.notes,
            [
                "categories that the baseline does not have: memory",
                "in the baseline, and not measured now: latency: start",
                "measured now, and not in the baseline: latency: stop",
            ]
        );
        let comparison = compare(&after, &before);
        assert_eq!(comparison.notes[0], "categories of the baseline that were not run now: memory");
        assert!(compare(&before, &before).notes.is_empty());
        let few = results(vec![Metric::of_turns("tick", "µs", vec![2.0; 3])]);
        let comparison = compare(&before, &few);
        assert!(comparison.metrics.is_empty());
        assert_eq!(comparison.notes[1], "not compared for want of turns: latency: tick");
        // What changed its unit is another figure.
        let mut other = before.clone();
        other.outcomes[0].metrics[0].unit = "ms".into();
        assert_eq!(compare(&before, &other).metrics.len(), 1);
        assert_eq!(compare(&before, &other).notes.len(), 2);
    }

    #[test]
    fn another_machine_or_schema_is_not_compared_and_what_is_no_result_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("baseline.json");
        let here = results(vec![turns(1.0)]);
        let load = |text: &str| {
            fs::write(&path, text).unwrap();
            Results::baseline(&path, &here.machine)
        };
        let mut there = here.clone();
        there.machine.cpus = 64;
        let why = load(&serde_json::to_string(&there).unwrap()).unwrap().unwrap_err();
        assert!(why.contains("another machine: not compared"), "{why}");
        let why = load(r#"{"schema": "ecoprobe.bench/2"}"#).unwrap().unwrap_err();
        assert!(why.contains("ecoprobe.bench/2") && why.contains("not compared"), "{why}");
        let same_schema = format!(r#"{{"schema": "{SCHEMA}", "outcomes": 7}}"#);
        for text in ["{}", "", "not JSON", "[1]", &same_schema] {
            let error = format!("{:#}", load(text).unwrap_err());
            assert!(error.contains("no result of this suite"), "{text}: {error}");
        }
        assert!(Results::baseline(&directory.path().join("none"), &here.machine).is_err());
    }

    #[test]
    fn few_turns_are_never_quite_sure() {
        assert_eq!(orders(4, 4), 70.0);
        let turns = |from: f64| {
            let samples = (0..4).map(|n| from + f64::from(n) * 0.01).collect();
            Metric::of_turns("tick", "µs", samples)
        };
        let compared = compare_one(String::new(), &turns(1.0), &turns(2.0)).unwrap();
        assert_eq!(compared.verdict, Verdict::Worse);
        assert_eq!(compared.confidence, Some(1.0 - 1.0 / 70.0));
    }

    #[test]
    fn a_committed_result_is_the_same_as_itself() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            if !text.contains(SCHEMA) {
                continue;
            }
            let results: Results = serde_json::from_str(&text).unwrap();
            let compared = compare(&results, &results);
            assert!(!compared.metrics.is_empty(), "{}", path.display());
            for one in compared.metrics {
                assert_eq!(one.verdict, Verdict::Same, "{}: {}", path.display(), one.name);
            }
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let results = results(vec![turns(1.0)]);
        let path = results.save(directory.path()).unwrap();
        assert!(path.ends_with("2026-01-02T030405-latency.json"), "{}", path.display());
        assert_eq!(Results::baseline(&path, &results.machine).unwrap().unwrap(), results);
        let path = results.save(directory.path()).unwrap();
        assert!(path.ends_with("2026-01-02T030405-latency-2.json"), "{}", path.display());
    }

    #[test]
    fn a_figure_that_could_not_be_had_is_saved_loaded_and_kept_from_github() {
        let directory = tempfile::tempdir().unwrap();
        let results = results(vec![Metric::of_turns("tick", "µs", Vec::new()), turns(1.0)]);
        let path = results.save(directory.path()).unwrap();
        let loaded = Results::baseline(&path, &results.machine).unwrap().unwrap();
        assert!(loaded.outcomes[0].metrics[0].value.is_nan());
        assert_eq!(compare(&loaded, &results).metrics[0].verdict, Verdict::Same);
        assert_eq!(results.for_github().as_array().unwrap().len(), 1);
    }

    #[test]
    fn github_gets_its_list() {
        let list = results(vec![turns(1.0)]).for_github();
        assert_eq!(list[0]["name"], "latency: tick");
        assert_eq!(list[0]["value"], 1.5);
        assert!(list[0]["range"].as_str().unwrap().starts_with("± 0."));
    }

    #[test]
    fn three_digits() {
        let cases = [(0.0, "0"), (0.01234, "0.0123"), (-5.678, "-5.68"), (123.4, "123")];
        for (value, text) in cases {
            assert_eq!(significant(value), text);
        }
        assert_eq!(significant(12_345_678.0), "12345678");
        assert_eq!(significant(1e-12), "1.00e-12");
        assert_eq!(significant(f64::NAN), "NaN");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["a", "1 µs", "x"]), row(["bcd", "10 µs", "y"])], 1);
        assert_eq!(text, "a     1 µs  x\nbcd  10 µs  y\n");
    }
}
