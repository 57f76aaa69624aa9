//! The benchmark suite: what ecoprobe costs, and how wrong it can be. One category a file.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod accuracy;
mod agent;
mod environment;
mod harness;
mod interrupt;
mod latency;
mod memory;
mod overhead;
mod plot;
mod probe;
mod profile;
mod results;
mod ring;
mod scalability;
mod simulators;
mod statistics;
mod summary;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};

use crate::environment::{Machine, State};
use crate::harness::{Bench, ModelSize, Outcome, Settings};
use crate::results::{Results, SCHEMA};

/// As clap has it.
const WRONG_USAGE: u8 = 2;

/// What ecoprobe costs, and how wrong it can be.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
#[command(after_help = "Exit codes: 0 every target met; 1 a target missed, a regression against \
    the baseline, or a category that failed; 2 wrong usage. Parts that this machine cannot run are \
    named, and miss no target.")]
struct Cli {
    /// Without one: all.
    #[command(subcommand)]
    category: Option<Category>,
    /// Measure nothing; leave a flame graph of ecoprobe under this load with the results.
    #[arg(long, value_enum, value_name = "NAME")]
    profile: Option<profile::Profile>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Options of every category")]
struct Options {
    /// Simulated GPUs.
    #[arg(long, global = true, env = "BENCHMARK_GPU_COUNT", default_value_t = 8)]
    #[arg(value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    gpu_count: u32,
    /// The model that is trained.
    #[arg(long, global = true, env = "BENCHMARK_MODEL_SIZE", default_value = "small")]
    model_size: ModelSize,
    /// How long one turn of a measurement is, but of `overhead`, seconds [default: 5, tiny: 2].
    #[arg(long, global = true, env = "BENCHMARK_DURATION", value_name = "SECONDS")]
    #[arg(value_parser = parse_seconds)]
    duration: Option<f64>,
    /// How often each variant takes its turn; in `overhead` a multiple [default: 11, tiny: 5].
    #[arg(long, global = true, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(4..=1000))]
    turns: Option<u32>,
    /// Of everything random.
    #[arg(long, global = true, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// A result to compare with; exit 1 on a regression beyond the noise.
    #[arg(long, global = true, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// What goes to standard output.
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Format,
    /// Where results and plots go [default: benches/results].
    #[arg(long, global = true, value_name = "DIR")]
    results: Option<PathBuf>,
    /// The ecoprobe to be measured [default: the one beside this program].
    #[arg(long, global = true, value_name = "PATH")]
    ecoprobe: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// What is also saved under the results.
    Json,
    /// The `customSmallerIsBetter` list of github-action-benchmark.
    GithubActionBenchmark,
}

#[derive(Subcommand)]
enum Category {
    /// How much longer work takes with ecoprobe beside it.
    Overhead,
    /// How long a tick takes, with 10 to 10,000 cgroups.
    Latency,
    /// What it holds: its own memory and the kernel's, with 10 to 10,000 cgroups, and over churn.
    Memory,
    /// How cost grows with cgroups, samples, GPUs and context switches; a plot of each.
    Scalability,
    /// How wrong it can be: joules against known power models, CPU time against the kernel.
    Accuracy(accuracy::Args),
    /// Nanoseconds per context switch: our probe, an empty program, a clock reader.
    Probe(probe::Args),
    /// Every category.
    All,
}

impl std::fmt::Debug for Category {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Category {
    fn name(&self) -> &'static str {
        match self {
            Self::Overhead => "overhead",
            Self::Latency => "latency",
            Self::Memory => "memory",
            Self::Scalability => "scalability",
            Self::Accuracy(_) => "accuracy",
            Self::Probe(_) => "probe",
            Self::All => "all",
        }
    }

    fn parts(&self) -> Vec<&'static str> {
        match self {
            Self::All => vec!["accuracy", "latency", "memory", "overhead", "probe", "scalability"],
            one => vec![one.name()],
        }
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected seconds, 0.1 to 3600".into()),
    }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let machine = Machine::read();
    // Before hours are spent, not after.
    let baseline = cli.options.compare.as_deref().map(|path| Results::baseline(path, &machine));
    let baseline = match baseline.transpose() {
        Ok(baseline) => baseline,
        Err(error) => {
            eprintln!("bench: {error:#}");
            return ExitCode::from(WRONG_USAGE);
        }
    };
    let done = run(&cli, machine, baseline);
    interrupt::stop_if_interrupted();
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `true`: every target is met and nothing got worse than the baseline, if that can be compared.
fn run(cli: &Cli, machine: Machine, baseline: Option<Result<Results, String>>) -> Result<bool> {
    if let Some(Err(why)) = &baseline {
        eprintln!("{why}");
    }
    let temporary = interrupt::temporary_files()?;
    let bench = bench(&cli.options)?;
    interrupt::clean_up_on_signals(temporary.path())?;

    if let Some(profile) = cli.profile {
        let svg = profile::record(profile, &bench)
            .with_context(|| format!("no profile of {}", profile.name()))?;
        bench.quiet();
        println!("{}", svg.display());
        return Ok(true);
    }
    let start = jiff::Timestamp::now();
    let state = State::read();
    let category = cli.category.as_ref().unwrap_or(&Category::All);
    let outcomes = category.parts().into_iter().map(|name| measure(name, cli, &bench));
    let results = Results {
        schema: SCHEMA.to_owned(),
        start: start.to_string(),
        outcomes: outcomes.collect(),
        end: jiff::Timestamp::now().to_string(),
        machine,
        state,
        settings: bench.settings.clone(),
    };
    bench.quiet();
    let saved = results.save(&bench.results)?;
    match cli.options.format {
        Format::Table => print!("{}", summary::tables(&results)),
        Format::Json => println!("{}", serde_json::to_string_pretty(&results)?),
        Format::GithubActionBenchmark => {
            println!("{}", serde_json::to_string_pretty(&results.for_github())?);
        }
    }
    eprintln!("saved as {}", saved.display());
    let regressed = match baseline {
        Some(Ok(baseline)) => summary::comparison(&baseline, &results),
        // Once more, where it is seen.
        Some(Err(why)) => {
            eprintln!("{why}");
            false
        }
        None => false,
    };
    let missed = summary::missed(&results);
    Ok(!regressed && !missed)
}

fn bench(options: &Options) -> Result<Bench> {
    let tiny = options.model_size == ModelSize::Tiny;
    let settings = Settings {
        gpu_count: options.gpu_count,
        model_size: options.model_size,
        duration: options.duration.unwrap_or(if tiny { 2.0 } else { 5.0 }),
        turns: options.turns.map_or(if tiny { 5 } else { 11 }, |turns| turns as usize),
        seed: options.seed,
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let results = options.results.clone().unwrap_or_else(|| here.join("results"));
    Bench::new(settings, options.ecoprobe.clone(), results)
}

/// One category. What fails is said, and the others go on.
fn measure(name: &str, cli: &Cli, bench: &Bench) -> Outcome {
    let probe_args = match &cli.category {
        Some(Category::Probe(given)) => *given,
        _ => probe::Args::default(),
    };
    let accuracy_args = match &cli.category {
        Some(Category::Accuracy(given)) => given.clone(),
        _ => accuracy::Args::default(),
    };
    let start = Instant::now();
    let mut outcome = Outcome { category: name.to_owned(), ..Outcome::default() };
    let done = match name {
        "latency" => latency::bench(bench, &mut outcome),
        "overhead" => overhead::bench(bench, &mut outcome),
        "scalability" => scalability::bench(bench, &mut outcome),
        "memory" => memory::bench(bench, &mut outcome),
        "accuracy" => accuracy::bench(bench, &accuracy_args, &mut outcome),
        _ => probe::bench(bench, probe_args, &mut outcome),
    };
    interrupt::stop_if_interrupted();
    bench.quiet();
    if let Err(error) = done {
        eprintln!("{name} failed: {error:#}");
        outcome.failure = Some(format!("{error:#}"));
    }
    outcome.seconds = start.elapsed().as_secs_f64();
    outcome
}
