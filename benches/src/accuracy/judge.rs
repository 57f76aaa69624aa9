//! Families of scenarios, judged: how wrong the joules of jobs are beside two simpler ways to share
//! them, and how often the bars hold the truth.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{available_parallelism, scope};

use anyhow::Result;
use ecoprobe::door::Report;
use serde::Serialize;
use serde_json::Value;

use super::family::{Family, Limits, load_all};
use super::scenario::Scenario;
use super::simulate::{Found, simulate};
use crate::harness::{Bench, Metric, Outcome, Target};
use crate::results::table;
use crate::statistics::{median, noise, quantile};

/// Of a job with less of the dynamic energy, nobody asks how wrong it is in percent.
const LEAST: f64 = 0.005;
/// Two-sided 95 % of a normal distribution.
pub(super) const SIGMAS: f64 = 1.96;
/// Bars of 95 % may hold the truth this often, percent.
const COVERED: (f64, f64) = (90.0, 99.0);
/// Points of share that may be with the wrong owner beyond what CPU time alone puts there.
const BEYOND: f64 = 2.0;

/// One scenario, judged.
#[derive(Debug, Default)]
struct Judged {
    report: Way,
    /// CPU-time shares of the dynamic energy as the report has it: one price for all.
    equal: Way,
    /// CPU-time shares of the dynamic energy as it is.
    told: Way,
    bars: Bars,
    books: f64,
}

/// One way to share the joules.
#[derive(Debug, Default)]
struct Way {
    /// Of jobs that matter, percent, no sign.
    errors: Vec<f64>,
    /// Joules with the wrong owner, percent of the dynamic energy.
    moved: f64,
    /// The same, had all of them been shared out: points of share.
    misplaced: f64,
}

/// Bars of jobs that matter and have one.
#[derive(Debug, Default)]
struct Bars {
    count: usize,
    covering: usize,
    /// Half, percent of the truth.
    widths: Vec<f64>,
}

/// What a family came to: a row of the table.
#[derive(Debug, Serialize)]
struct Row {
    scenarios: usize,
    jobs: usize,
    report: Figures,
    equal: Figures,
    told: Figures,
    /// Points of share.
    beyond: f64,
    bars: usize,
    covered_percent: Option<f64>,
    half_bar_percent: Option<f64>,
    missed: Vec<String>,
}

/// Of one way, percent.
#[derive(Debug, Serialize)]
struct Figures {
    median: f64,
    p95: f64,
    worst: f64,
    /// Mean of the scenarios.
    moved: f64,
}

/// Runs the families in `benches/families/`, or those of them that are named; the worst books.
pub(super) fn families(bench: &Bench, only: &[String], outcome: &mut Outcome) -> Result<f64> {
    let mut families = load_all()?;
    families.retain(|(name, _)| only.is_empty() || only.contains(&name.replace(' ', "-")));
    let mut books: f64 = 0.0;
    let mut rows = serde_json::Map::new();
    for (name, family) in families {
        bench.progress(format_args!("accuracy: {name}"));
        let count = (bench.settings.turns as f64 * family.per_turn).ceil() as u64;
        let first = seed(&name, bench.settings.seed);
        let judged = judge_all(&family, (0..count).map(|number| first.wrapping_add(number)));
        books = judged.iter().fold(books, |worst, one| worst.max(one.books));
        let (row, metrics) = sum_up(&name, &family, &judged);
        outcome.metrics.extend(metrics);
        rows.insert(name, serde_json::to_value(row)?);
    }
    outcome.data.insert("families".to_owned(), rows.into());
    Ok(books)
}

/// Each family has machines of its own.
fn seed(name: &str, seed: u64) -> u64 {
    let hash = name
        .bytes()
        .fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    hash << 16
}

/// On all CPUs; in the order of the seeds.
fn judge_all(family: &Family, seeds: impl Iterator<Item = u64>) -> Vec<Judged> {
    let seeds: Vec<u64> = seeds.collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
            let scenario = family.scenario(*seed);
            done.push((*seed, judge(&scenario, &simulate(&scenario, *seed))));
        }
        done
    };
    let threads = available_parallelism().map_or(1, usize::from);
    let mut judged = scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().flat_map(|thread| match thread.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Vec<_>>()
    });
    judged.sort_by_key(|(seed, _)| *seed);
    judged.into_iter().map(|(_, judged)| judged).collect()
}

fn judge(scenario: &Scenario, found: &Found) -> Judged {
    let report = &found.report;
    let billed: Vec<f64> = std::iter::once(report.node.cpu.other_j)
        .chain(report.workloads.iter().map(|workload| workload.energy_j.cpu))
        .map(|joules| joules.unwrap_or(0.0))
        .collect();
    let learned = |package| {
        let watts = &report.sources.static_power.watts;
        watts.get(&format!("package-{package}")).copied().flatten().unwrap_or(0.0)
    };
    Judged {
        report: Way::of(&billed, &found.truth),
        equal: Way::of(&found.by_time.bills(learned), &found.truth),
        told: Way::of(&found.by_time.bills(|_| scenario.static_watts), &found.truth),
        bars: Bars::of(report, &found.truth),
        books: found.books,
    }
}

/// The jobs that matter, by place; everybody else is the first and no job.
fn that_matter(truth: &[f64]) -> impl Iterator<Item = (usize, f64)> {
    let least = LEAST * truth.iter().sum::<f64>();
    truth.iter().copied().enumerate().skip(1).filter(move |(_, joules)| *joules >= least)
}

impl Way {
    fn of(billed: &[f64], truth: &[f64]) -> Self {
        let sums = [billed.iter().sum::<f64>(), truth.iter().sum::<f64>()];
        let apart = |sums: [f64; 2]| {
            let differences =
                billed.iter().zip(truth).map(|(b, t)| (b / sums[0] - t / sums[1]).abs());
            50.0 * differences.sum::<f64>()
        };
        Self {
            errors: that_matter(truth)
                .map(|(place, joules)| 100.0 * (billed[place] / joules - 1.0).abs())
                .collect(),
            moved: apart([sums[1]; 2]),
            misplaced: if sums[0] > 0.0 { apart(sums) } else { 100.0 },
        }
    }
}

impl Bars {
    fn of(report: &Report, truth: &[f64]) -> Self {
        let mut bars = Self::default();
        for (place, joules) in that_matter(truth) {
            let workload = &report.workloads[place - 1];
            let (Some(billed), Some(error)) = (workload.energy_j.cpu, standard_error(workload))
            else {
                continue;
            };
            bars.count += 1;
            bars.covering += usize::from((billed - joules).abs() <= SIGMAS * error);
            bars.widths.push(100.0 * SIGMAS * error / joules);
        }
        bars
    }
}

/// Of the joules of a workload's CPU time, as whoever reads the report finds it; `None` while a report
/// has none.
pub(super) fn standard_error(workload: &impl Serialize) -> Option<f64> {
    serde_json::to_value(workload).ok()?["stderr_j"]["cpu"].as_f64()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// How far beyond what is allowed, percent, so few bars show the coverage to be: with 95 % confidence
/// (Wilson's interval).
fn off_coverage(covering: usize, count: usize) -> f64 {
    let (n, part) = (count as f64, covering as f64 / count as f64);
    let z = SIGMAS * SIGMAS / n;
    let middle = (part + z / 2.0) / (1.0 + z);
    let reach = (z * (part * (1.0 - part) + z / 4.0)).sqrt() / (1.0 + z);
    let (least, most) = (100.0 * (middle - reach), 100.0 * (middle + reach));
    (COVERED.0 - most).max(least - COVERED.1).max(0.0)
}

fn sum_up(name: &str, family: &Family, judged: &[Judged]) -> (Row, Vec<Metric>) {
    let bars: usize = judged.iter().map(|one| one.bars.count).sum();
    let covering: usize = judged.iter().map(|one| one.bars.covering).sum();
    let widths: Vec<f64> = judged.iter().flat_map(|one| &one.bars.widths).copied().collect();
    let beyond = judged.iter().map(|one| one.report.misplaced - one.equal.misplaced);
    let beyond: Vec<f64> = beyond.collect();
    let figures = |way: fn(&Judged) -> &Way| Figures::of(judged.iter().map(way));
    let (report, equal) = (figures(|one| &one.report), figures(|one| &one.equal));
    let metric = |what: &str, unit, value, each: &[f64]| {
        let metric = Metric::exact(format!("{FAMILY}{name}, {what}"), unit, value);
        // Of other seeds it would be another.
        if each.is_empty() { metric } else { metric.with_noise(noise(each)) }
    };
    let limited = |metric: Metric, limit: Option<f64>| match limit {
        Some(limit) => metric.with_target(Target::below(limit)),
        None => metric,
    };
    let Limits { median_percent, worst_percent } = family.limits;
    let errors: Vec<f64> = judged.iter().flat_map(|one| &one.report.errors).copied().collect();
    let moved: Vec<f64> = judged.iter().map(|one| one.report.moved).collect();
    let apart = mean(&beyond);
    let error = metric("error of a job, median", "%", report.median, &errors);
    let mut metrics = vec![
        limited(error, median_percent),
        metric("joules with the wrong owner", "%", report.moved, &moved),
        metric("wrong owner, beyond CPU-time shares", "points", apart, &beyond)
            .against_nothing()
            .with_target(Target::below(BEYOND)),
    ];
    if worst_percent.is_some() {
        let worst = metric("error of a job, worst", "%", report.worst, &errors);
        metrics.push(limited(worst, worst_percent));
    }
    if bars > 0 {
        let off = off_coverage(covering, bars);
        let off = metric("coverage of the bars, beyond 90 to 99 %", "points", off, &[]);
        metrics.push(off.with_target(Target::below(f64::MIN_POSITIVE)));
        metrics.push(metric("half a bar, median", "%", median(&widths), &widths));
    }
    let missed = metrics.iter().filter(|metric| metric.missed_by().is_some());
    let missed = missed.map(|metric| metric.name[FAMILY.len() + name.len() + 2..].to_owned());
    let row = Row {
        scenarios: judged.len(),
        jobs: judged.iter().map(|one| one.report.errors.len()).sum(),
        report,
        equal,
        told: figures(|one| &one.told),
        beyond: apart,
        bars,
        covered_percent: (bars > 0).then(|| 100.0 * covering as f64 / bars as f64),
        half_bar_percent: (bars > 0).then(|| median(&widths)),
        missed: missed.collect(),
    };
    (row, metrics)
}

impl Figures {
    fn of<'a>(ways: impl Iterator<Item = &'a Way>) -> Self {
        let ways: Vec<&Way> = ways.collect();
        let errors: Vec<f64> = ways.iter().flat_map(|way| &way.errors).copied().collect();
        Self {
            median: median(&errors),
            p95: quantile(&errors, 0.95),
            worst: quantile(&errors, 1.0),
            moved: mean(&ways.iter().map(|way| way.moved).collect::<Vec<_>>()),
        }
    }
}

/// What the metrics of families begin with.
pub(crate) const FAMILY: &str = "family ";

/// The families as a table, if there are any.
pub(crate) fn rows(outcome: &Outcome) -> Option<String> {
    let families = outcome.data.get("families")?.as_object().filter(|all| !all.is_empty())?;
    let head = [
        "family",
        "jobs",
        "median",
        "p95",
        "worst",
        "one price",
        "told",
        "moved",
        "one price",
        "told",
        "beyond",
        "covered",
        "half a bar",
        "missed",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(families.iter().map(|(name, row)| {
        let missed = row["missed"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let [report, equal, told] = ["report", "equal", "told"].map(|way| &row[way]);
        let figures = [
            &report["median"],
            &report["p95"],
            &report["worst"],
            &equal["median"],
            &told["median"],
            &report["moved"],
            &equal["moved"],
            &told["moved"],
            &row["beyond"],
            &row["covered_percent"],
            &row["half_bar_percent"],
        ];
        let figures = figures.map(one_digit);
        let missed = missed.collect::<Vec<_>>().join("; ");
        [name.clone(), row["jobs"].to_string()].into_iter().chain(figures).chain([missed]).collect()
    }));
    Some(format!("{EXPLAINED}{}", table(&rows, 1)))
}

/// One digit after the point; a dash for what could not be had.
pub(super) fn one_digit(value: &Value) -> String {
    // Not "-0.0".
    let rounded = |value: f64| (value * 10.0).round() / 10.0 + 0.0;
    value.as_f64().map_or_else(|| "–".to_owned(), |value| format!("{:.1}", rounded(value)))
}

const EXPLAINED: &str = "\nFamilies. Error of a job, %: of the report; median with CPU-time shares of the report's dynamic energy\n\
    (one price), and of the true one (told). Joules with the wrong owner, % of the dynamic energy: likewise.\n\
    Points of share with the wrong owner beyond CPU-time shares; how often 95 % bars hold the truth, %, and\n\
    half a bar, % of the truth, median.\n\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_with_the_wrong_owner() {
        let truth = [10.0, 40.0, 50.0];
        let way = Way::of(&truth, &truth);
        assert_eq!((way.moved, way.misplaced, &way.errors), (0.0, 0.0, &vec![0.0, 0.0]));
        let way = Way::of(&[10.0, 50.0, 40.0], &truth);
        assert!((way.moved - 10.0).abs() < 1e-9 && (way.misplaced - 10.0).abs() < 1e-9);
        assert!((way.errors[0] - 25.0).abs() < 1e-9 && (way.errors[1] - 20.0).abs() < 1e-9);
        // Half as much again for each is with nobody wrong but whoever owns the rest.
        let way = Way::of(&[15.0, 60.0, 75.0], &truth);
        assert!((way.moved - 25.0).abs() < 1e-9 && way.misplaced < 1e-9);
    }

    #[test]
    fn few_bars_show_little() {
        assert_eq!(off_coverage(20, 20), 0.0);
        assert!(off_coverage(1000, 1000) > 0.5);
        assert_eq!(off_coverage(8, 10), 0.0);
        assert!(off_coverage(800, 1000) > 5.0);
        assert_eq!(off_coverage(950, 1000), 0.0);
    }

    #[test]
    fn the_standard_error_is_that_of_the_report() {
        let of = |error: Value| standard_error(&serde_json::json!({"stderr_j": error}));
        assert_eq!(of(serde_json::json!({"cpu": 1.5, "total": 2.0})), Some(1.5));
        assert_eq!(of(serde_json::json!({"cpu": null})), None);
        assert_eq!(standard_error(&()), None);
    }
}
