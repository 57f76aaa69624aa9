//! How wrong it can be: joules against power models whose truth is known, CPU time against the
//! kernel.

pub(crate) mod family;
mod gpu;
pub(crate) mod judge;
mod live;
mod load;
mod machine;
mod rapl;
pub(crate) mod scenario;
pub(crate) mod simulate;
pub(crate) mod together;

use std::path::{Path, PathBuf};

use anyhow::Result;

use self::scenario::{Scenario, load_all, random};
use self::simulate::simulate;
use crate::harness::{Bench, Metric, Outcome, Target};
use crate::statistics::{median, quantile};

/// Books close to this, or the arithmetic is wrong.
const BOOKS: f64 = 1e-9;

/// Another sequence of random numbers changes an error by about this much, percent.
const CHANCE: f64 = 0.05;

const RANDOM_SCENARIOS: u64 = 100;

#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Args {
    /// Only this family of scenarios: a file in `benches/families/`, without `.json`; or `all` of them,
    /// and the pairs. As often as wanted.
    #[arg(long, value_name = "NAME", value_parser = parse_family)]
    family: Vec<String>,
    /// Steady powers of workloads alone and in pairs [default: ../shared/facts/solo-and-together.csv,
    /// beside the checkout].
    #[arg(long, env = "BENCHMARK_POWERS", value_name = "FILE")]
    powers: Option<PathBuf>,
}

fn parse_family(name: &str) -> Result<String, String> {
    let known = family::names().map_err(|error| format!("{error:#}"))?;
    if name == "all" || known.iter().any(|one| one == name) {
        return Ok(name.to_owned());
    }
    Err(format!("there are all, {}", known.join(", ")))
}

impl Args {
    fn powers(&self) -> PathBuf {
        let beside = "../../shared/facts/solo-and-together.csv";
        let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(beside);
        self.powers.clone().unwrap_or_else(default)
    }
}

pub(crate) fn bench(bench: &Bench, args: &Args, outcome: &mut Outcome) -> Result<()> {
    if !args.family.is_empty() {
        let all = args.family.iter().any(|name| name == "all");
        judge::families(bench, if all { &[] } else { &args.family }, outcome)?;
        return if all {
            together::pairs_of_workloads(bench, &args.powers(), outcome)
        } else {
            Ok(())
        };
    }
    let mut books: f64 = 0.0;
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    for (name, scenario) in load_all(&files)? {
        bench.progress(format_args!("accuracy: {name}"));
        let found = simulate(&scenario, bench.settings.seed);
        books = books.max(found.books);
        let errors: Vec<f64> = found.errors.iter().map(|error| error * 100.0).collect();
        outcome.data.insert(
            name.clone(),
            serde_json::json!({"errors_percent": errors, "books": found.books}),
        );
        let metric = Metric::exact(name, "%", found.worst_percent()).with_noise(CHANCE);
        outcome.metrics.push(match scenario.limit_percent {
            Some(limit) => metric.with_target(Target::below(limit).asked(10.0)),
            None => metric,
        });
    }
    books = books.max(random_scenarios(bench, outcome));
    books = books.max(judge::families(bench, &[], outcome)?);
    let metric = Metric::exact("books, worst of all scenarios and windows", "", books);
    outcome.metrics.push(metric.with_noise(BOOKS).with_target(Target::below(BOOKS)));
    together::pairs_of_workloads(bench, &args.powers(), outcome)?;
    gpu::joules(bench, outcome)?;
    live::cpu_time(bench, outcome)?;
    rapl::counter(bench, outcome)
}

/// The error's distribution, with the static power given and learned; and the worst books.
fn random_scenarios(bench: &Bench, outcome: &mut Outcome) -> f64 {
    let (mut given, mut learned) = (Vec::new(), Vec::new());
    let (mut books, mut unknown): (f64, u32) = (0.0, 0);
    for number in 0..RANDOM_SCENARIOS {
        if number % 10 == 0 {
            bench.progress(format_args!("accuracy: random scenarios, {number}"));
        }
        let seed = bench.settings.seed.wrapping_mul(1_000_003).wrapping_add(number);
        let scenario = random(seed);
        let found = simulate(&scenario, seed);
        books = books.max(found.books);
        given.push(found.worst_percent());
        let found = simulate(&Scenario { static_known: false, ..scenario }, seed);
        books = books.max(found.books);
        // A session that says that it could not tell is not wrong.
        if found.static_known {
            learned.push(found.worst_percent());
        } else {
            unknown += 1;
        }
    }
    outcome.data.insert("random_static_power_not_told".to_owned(), unknown.into());
    for (name, errors, limit) in
        [("static power given", &given, 3.0), ("static power learned", &learned, 10.0)]
    {
        let count = errors.len();
        let what = |which| format!("{count} random scenarios, {name}, {which}");
        let metric = |which, value| Metric::exact(what(which), "%", value).with_noise(CHANCE);
        let p95 = metric("p95", quantile(errors, 0.95));
        outcome.metrics.extend([
            metric("median", median(errors)),
            p95.with_target(Target::below(limit).asked(10.0)),
            metric("worst", quantile(errors, 1.0)),
        ]);
    }
    books
}
