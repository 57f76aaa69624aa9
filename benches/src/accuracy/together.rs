//! Pairs of workloads that were measured on real machines, alone and side by side.
//!
//! Who draws what while two run together cannot be measured; what each draws alone can, and their
//! ratio is about that of their shares. Runs are put together from the measured powers, second by
//! second, and the share that the report gives to the first is held against the ratio.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ecoprobe::base::WorkloadId;
use ecoprobe::door::{Report, Run};
use ecoprobe::event::{Counts, CpuTimes, Event, PAIRED, PackageTime, Reading, Sample};
use serde::Serialize;

use super::judge::{SIGMAS, one_digit, standard_error};
use super::load::{normal, seeded};
use super::scenario::Scenario;
use super::simulate::{header, workload};
use crate::harness::{Bench, Metric, Outcome, Target};
use crate::results::table;

/// Noise of a second's energy, relative.
const NOISE: f64 = 0.002;
/// CPUs that are busy for nobody in particular.
const OTHER: f64 = 0.005;
const ROUNDS: usize = 3;
/// Points of share that may be with the wrong one beyond what CPU time alone puts there.
const BEYOND: f64 = 2.0;
/// Points that the ratio may lie outside of a bar: it is no truth to the last digit.
const OUTSIDE: f64 = 1.0;

/// What the metrics of pairs begin with.
pub(crate) const PAIR: &str = "pair ";

/// A steady power: of nobody, of one workload, or of two.
#[derive(Debug, Clone, PartialEq)]
struct Power {
    machine: Machine,
    /// Names and threads.
    running: Vec<(String, f64)>,
    seconds: f64,
    watts: f64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Machine {
    name: String,
    configuration: String,
}

impl Machine {
    /// As the table's first lines say.
    fn cores(&self) -> f64 {
        if self.name == "big" { 32.0 } else { 6.0 }
    }

    fn threads_per_core(&self) -> usize {
        if self.configuration == "HT" { 2 } else { 1 }
    }
}

/// Powers measured by davidson-consulting/software-energy-model-evaluation, one a line.
fn parse(text: &str) -> Result<Vec<Power>> {
    let lines = text.lines().filter(|line| !line.starts_with('#')).skip(1);
    let lines = lines.filter(|line| !line.is_empty());
    let power = |line: &str| {
        let [machine, configuration, a, n_a, b, n_b, seconds, watts] =
            line.split(',').collect::<Vec<_>>()[..]
        else {
            bail!("eight columns are wanted");
        };
        let running =
            [(a, n_a), (b, n_b)].into_iter().filter(|(name, _)| !["", "idle"].contains(name));
        let running = running.map(|(name, threads)| Ok((name.to_owned(), threads.parse()?)));
        let machine = Machine { name: machine.to_owned(), configuration: configuration.to_owned() };
        let running = running.collect::<Result<_>>()?;
        Ok(Power { machine, running, seconds: seconds.parse()?, watts: watts.parse()? })
    };
    lines.map(|line| power(line).with_context(|| line.to_owned())).collect()
}

/// Two that ran together, what each draws alone, and what the machine draws with nobody running.
#[derive(Debug)]
struct Pair<'a> {
    together: &'a Power,
    alone: [f64; 2],
    idle: f64,
}

/// Pairs of which both were measured alone; the longest measurement counts.
fn pairs(powers: &[Power]) -> (Vec<Pair<'_>>, Vec<String>) {
    let of = |machine: &Machine, running: &[(String, f64)]| {
        let same = powers.iter().filter(|one| &one.machine == machine && one.running == running);
        same.max_by(|one, other| one.seconds.total_cmp(&other.seconds)).map(|one| one.watts)
    };
    let (mut pairs, mut lacking) = (Vec::new(), Vec::new());
    for together in powers.iter().filter(|one| one.running.len() == 2) {
        let alone = |one: usize| of(&together.machine, &together.running[one..=one]);
        match (alone(0), alone(1), of(&together.machine, &[])) {
            (Some(a), Some(b), Some(idle)) => pairs.push(Pair { together, alone: [a, b], idle }),
            _ => lacking.push(together.name()),
        }
    }
    (pairs, lacking)
}

impl Power {
    fn name(&self) -> String {
        let running = self.running.iter().map(|(name, threads)| format!("{name} {threads}"));
        let Machine { name, configuration } = &self.machine;
        format!("{} ({name}, {configuration})", running.collect::<Vec<_>>().join(" + "))
    }
}

/// Seconds of one round of a run: idle, the first alone, the second, both.
#[derive(Debug, Clone, Copy)]
struct Round {
    name: &'static str,
    seconds: [usize; 4],
}

/// A tenth of each is idle.
const RUNS: [Round; 2] = [
    Round { name: "together only", seconds: [6, 0, 0, 54] },
    Round { name: "alone, too", seconds: [6, 18, 18, 18] },
];

impl Pair<'_> {
    /// Share of the first, by what the two draw alone.
    fn ratio(&self) -> f64 {
        let [a, b] = self.alone.map(|watts| watts - self.idle);
        a / (a + b)
    }

    fn threads(&self) -> [f64; 2] {
        [0, 1].map(|one| self.together.running[one].1)
    }

    /// The report of some rounds: the counter follows what was measured.
    fn run(&self, round: Round) -> Report {
        let machine = &self.together.machine;
        let cores = machine.cores();
        let threads_per_core = machine.threads_per_core();
        let scenario = Scenario {
            cpus: Some(cores * threads_per_core as f64),
            threads_per_core,
            static_known: false,
            ..Scenario::quiet()
        };
        let mut run = Run::open(header(&scenario));
        (0..2).for_each(|number| run.apply(&Event::Workload(workload(number))));
        let mut random = seeded(1, 1);
        let [a, b] = self.threads();
        let watts = [self.idle, self.alone[0], self.alone[1], self.together.watts];
        let (mut times, mut paired, mut awake, mut joules) = ([0.0; 3], [0.0; 3], 0.0, 0.0);
        let mut second = 0_u64;
        let mut sample = |times: [f64; 3], paired: [f64; 3], awake: f64, joules: f64| {
            let mono_ns = second * 1_000_000_000;
            second += 1;
            let ns = |seconds: [f64; 3]| seconds.map(|seconds| (seconds * 1e9) as u64);
            let of_workloads = |ns: [u64; 3]| vec![(WorkloadId(1), ns[1]), (WorkloadId(2), ns[2])];
            let (times, paired) = (ns(times), ns(paired));
            let mut time = PackageTime {
                other: times[0],
                workloads: of_workloads(times),
                ..PackageTime::default()
            };
            if threads_per_core > 1 {
                let counts = Counts { other: paired[0], workloads: of_workloads(paired) };
                time.features.insert(PAIRED, counts);
            }
            let cpu = CpuTimes { packages: vec![time], unplaced: PackageTime::default() };
            let count = (joules / scenario.counter.joules_per_count) as u64;
            let energy = vec![Some(Reading { mono_ns, count })];
            let awake_ns = Some((awake * 1e9) as u64);
            run.apply(&Event::Sample(Sample { mono_ns, ends_window: true, cpu, awake_ns, energy }));
        };
        sample(times, paired, awake, joules);
        for _ in 0..ROUNDS {
            let running = [[0.0, 0.0], [a, 0.0], [0.0, b], [a, b]];
            for ((seconds, running), watts) in round.seconds.iter().zip(running).zip(watts) {
                let cpus = [OTHER, running[0], running[1]];
                let busy: f64 = cpus.iter().sum();
                let part = if busy > cores && threads_per_core > 1 {
                    2.0 * (busy - cores) / busy
                } else {
                    0.0
                };
                for _ in 0..*seconds {
                    for (place, cpus) in cpus.iter().enumerate() {
                        times[place] += cpus;
                        paired[place] += cpus * part.min(1.0);
                    }
                    awake += busy.min(1.0);
                    joules += watts * (1.0 + NOISE * normal(&mut random));
                    sample(times, paired, awake, joules);
                }
            }
        }
        run.report()
    }

    /// The share that the report has for the first while both run, and half of its bar. What each
    /// drew alone is known, and is left out.
    fn share(&self, round: Round, report: &Report) -> (f64, Option<f64>) {
        let alone = [0, 1]
            .map(|one| (self.alone[one] - self.idle) * (ROUNDS * round.seconds[1 + one]) as f64);
        let together = [0, 1].map(|one| {
            report.workloads[one].energy_j.cpu.map_or(f64::NAN, |joules| joules - alone[one])
        });
        let sum = together[0] + together[1];
        let bar = standard_error(&report.workloads[0]).map(|joules| SIGMAS * joules / sum);
        (together[0] / sum, bar)
    }
}

/// A row of the table; shares in percent.
#[derive(Debug, Serialize)]
struct Row {
    pair: String,
    run: &'static str,
    by_energy_alone: f64,
    by_cpu_time: f64,
    share: f64,
    half_bar: Option<f64>,
}

/// Each pair in `file`, in runs of both sorts.
pub(super) fn pairs_of_workloads(bench: &Bench, file: &Path, outcome: &mut Outcome) -> Result<()> {
    const WHAT: &str = "pairs of workloads as they were measured";
    if !file.exists() {
        outcome.skip(WHAT, format!("{} is not there; name one with --powers", file.display()));
        return Ok(());
    }
    bench.progress(format_args!("accuracy: {WHAT}"));
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let powers = parse(&text).with_context(|| file.display().to_string())?;
    let (pairs, lacking) = pairs(&powers);
    for name in lacking {
        outcome.skip(format!("{WHAT}: {name}"), "one of them was not measured alone");
    }
    let mut rows = Vec::new();
    for (pair, round) in pairs.iter().flat_map(|pair| RUNS.map(|round| (pair, round))) {
        let (share, bar) = pair.share(round, &pair.run(round));
        let [a, b] = pair.threads();
        let row = Row {
            pair: pair.together.name(),
            run: round.name,
            by_energy_alone: 100.0 * pair.ratio(),
            by_cpu_time: 100.0 * a / (a + b),
            share: 100.0 * share,
            half_bar: bar.map(|bar| 100.0 * bar),
        };
        let off = |share: f64| (share - row.by_energy_alone).abs();
        let metric = |what: &str, value| {
            let name = format!("{PAIR}{}, {}: {what}", row.pair, row.run);
            Metric::exact(name, "points", value).against_nothing()
        };
        let beyond = off(row.share) - off(row.by_cpu_time);
        let beyond = metric("share of the first, beyond CPU time", beyond);
        outcome.metrics.push(beyond.with_target(Target::below(BEYOND)));
        if let Some(half) = row.half_bar {
            let outside = metric("outside of the bar", (off(row.share) - half).max(0.0));
            outcome.metrics.push(outside.with_target(Target::below(OUTSIDE)));
        }
        rows.push(serde_json::to_value(row)?);
    }
    outcome.data.insert("pairs".to_owned(), rows.into());
    Ok(())
}

/// The pairs as a table, if there are any.
pub(crate) fn rows(outcome: &Outcome) -> Option<String> {
    let pairs = outcome.data.get("pairs")?.as_array().filter(|all| !all.is_empty())?;
    let head = ["share of the first, %", "", "by energy alone", "by CPU time", "report", "± bar"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(pairs.iter().map(|row| {
        let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
        let figures = ["by_energy_alone", "by_cpu_time", "share", "half_bar"];
        let figures = figures.map(|name| one_digit(&row[name]));
        [text("pair"), text("run")].into_iter().chain(figures).collect()
    }));
    Some(format!("\nPairs of workloads as they were measured.\n\n{}", table(&rows, 2)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# Made up.\n\
        machine,cfg,a,n_a,b,n_b,window_s,power_w\n\
        small,HT,idle,0,,0,2.0,10\n\
        small,HT,x,3,,0,2.0,99\n\
        small,HT,x,3,,0,30.0,40\n\
        small,HT,y,3,,0,30.0,40\n\
        small,HT,x,3,y,3,30.0,70\n\
        small,noHT,x,3,y,3,30.0,70\n";

    #[test]
    fn the_longest_measurement_of_the_same_machine_counts() {
        let powers = parse(TABLE).unwrap();
        let (pairs, lacking) = pairs(&powers);
        assert_eq!((pairs.len(), lacking), (1, vec!["x 3 + y 3 (small, noHT)".to_owned()]));
        assert_eq!((pairs[0].alone, pairs[0].idle), ([40.0; 2], 10.0));
        assert!(parse("head\nsmall,HT,x,3,y,3,30.0\n").is_err());
        assert!(parse("head\nsmall,HT,x,three,y,3,30.0,70\n").is_err());
    }

    #[test]
    fn two_that_are_alike_share_alike() {
        let powers = parse(TABLE).unwrap();
        let (pairs, _) = pairs(&powers);
        for round in RUNS {
            let report = pairs[0].run(round);
            let seconds = ROUNDS * round.seconds.iter().sum::<usize>();
            assert_eq!(report.window.samples, 1 + seconds as u64);
            let (share, _) = pairs[0].share(round, &report);
            assert!((share - 0.5).abs() < 0.01, "{}: {share}", round.name);
        }
    }
}
