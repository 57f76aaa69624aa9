//! Nanoseconds per context switch, by the kernel's own account of BPF run time.
//!
//! What is counted: from just before the program's first instruction to just after its last, as
//! the kernel's BPF statistics have it, over every `sched_switch` of the machine. Nearly all of them are
//! those of a ring: two or three tasks that wake each other, pinned to one CPU, in cgroups of our own.
//! The trampoline that calls a program is not counted, for any of them.
//!
//! The statistics cost time themselves, some tens of nanoseconds that are counted as the program's.
//! They are the same for every program, so what counts is the difference to the empty one, which runs
//! beside the same ring.
//!
//! Programs take short turns, each loaded afresh, in an order that rotates, and a turn's figure is the
//! median of slices of a few milliseconds: a hypervisor that stops the CPU inside a program spoils one
//! slice, and a machine whose speed drifts does so for all programs of a round.

mod program;
mod retired;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::Btf;
use aya::sys::{Stats, enable_stats};
use ecoprobe::door::Hook;
use nix::sched::sched_getaffinity;
use nix::unistd::Pid;
use serde::Serialize;

use self::program::{Attached, Size};
use self::retired::Retired;
use crate::harness::{Bench, Metric, Outcome, Target};
use crate::results::table;
use crate::ring::Ring;
use crate::simulators::cgroup::{TestCgroup, v2_mount};
use crate::statistics::{interval, least, median};

/// After attaching: code is patched and caches are cold.
const SETTLE: Duration = Duration::from_millis(10);
const SLICE: Duration = Duration::from_millis(5);
const SLICES: usize = 8;

#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Args {
    /// How often each program takes its turn.
    #[arg(long, default_value_t = Self::default().rounds, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rounds: u32,
    /// CPU that the tasks share.
    #[arg(long, default_value_t = Self::default().cpu, value_name = "N")]
    cpu: usize,
}

impl Default for Args {
    fn default() -> Self {
        Self { rounds: 51, cpu: 0 }
    }
}

/// The tasks that take turns on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tasks {
    /// Two of one cgroup, the one that ran last.
    OneCgroup,
    /// One of each of two cgroups, which the probe finds among those that it remembers of the CPU.
    TwoCgroups,
    /// One of each of three, of which one is the root, selected with 1,000 others: its tasks are asked
    /// whether they are the kernel's. No option makes a switch cost more.
    EveryOption,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// A program of `reference.o`.
    Reference(&'static str),
    Ours(Hook),
    /// With paired time: CPUs 0 and 1, 2 and 3 and so on are taken for the threads of one core.
    Paired,
}

const EMPTY: Program = Program::Reference("empty");

/// Programs beside the tasks. Each is compared with the empty one beside the same tasks.
const CASES: [(Program, Tasks, &str); 11] = [
    (EMPTY, Tasks::OneCgroup, "empty tp_btf program"),
    (Program::Reference("clock"), Tasks::OneCgroup, "one clock read and a store"),
    (Program::Ours(Hook::TpBtf), Tasks::OneCgroup, "ecoprobe, tp_btf"),
    (Program::Paired, Tasks::OneCgroup, "ecoprobe, tp_btf, cores of two threads"),
    (Program::Ours(Hook::RawTp), Tasks::OneCgroup, "ecoprobe, raw_tp (fallback)"),
    (EMPTY, Tasks::TwoCgroups, "empty tp_btf program, two cgroups"),
    (
        Program::Ours(Hook::TpBtf),
        Tasks::TwoCgroups,
        "ecoprobe, tp_btf, two cgroups taking turns on a CPU",
    ),
    (
        Program::Paired,
        Tasks::TwoCgroups,
        "ecoprobe, tp_btf, cores of two threads, two cgroups taking turns on a CPU",
    ),
    (EMPTY, Tasks::EveryOption, "empty tp_btf program, three cgroups"),
    (Program::Ours(Hook::TpBtf), Tasks::EveryOption, "ecoprobe, tp_btf, every option on"),
    (
        Program::Paired,
        Tasks::EveryOption,
        "ecoprobe, tp_btf, cores of two threads, every option on",
    ),
];

#[derive(Debug, Serialize)]
struct Row {
    program: &'static str,
    /// Nanoseconds per event, of all turns.
    median_ns: f64,
    min_ns: f64,
    /// Median of the differences to the empty program's turn in the same round, and its 95 %
    /// confidence interval.
    above_empty_ns: f64,
    above_empty_95: (f64, f64),
    /// Between the least of all turns and the empty program's least.
    min_above_empty_ns: f64,
}

/// What a program came to in one turn.
#[derive(Debug, Clone, Copy)]
struct Turn {
    ns: f64,
    /// Retired in the kernel, per context switch.
    instructions: Option<f64>,
}

pub(crate) fn bench(bench: &Bench, args: Args, outcome: &mut Outcome) -> Result<()> {
    if let Err(why) = bench.probe_works() {
        outcome.skip("probe", why);
        return Ok(());
    }
    let usable = sched_getaffinity(Pid::from_raw(0))?.is_set(args.cpu).unwrap_or(false);
    ensure!(usable, "CPU {} is none that we may use", args.cpu);
    // Counted by file descriptor: others may want the statistics too, and they end with us.
    let _statistics = enable_stats(Stats::RunTime).context("cannot turn BPF statistics on")?;
    let btf = Btf::from_sys_fs()?;
    let cgroups = Cgroups::new();
    let mut retired = match Retired::open(args.cpu) {
        Ok(retired) => Some(retired),
        Err(why) => {
            outcome.skip("retired instructions", format!("no hardware PMU here: {why}"));
            None
        }
    };
    let mut turns = vec![Vec::new(); CASES.len()];
    let mut found = vec![Vec::new(); CASES.len()];
    // The first round warms up.
    for round in 0..=args.rounds as usize {
        bench
            .progress(format_args!("probe: programs take turns, round {round} of {}", args.rounds));
        for place in 0..CASES.len() {
            let place = (place + round) % CASES.len();
            let (program, tasks, _) = CASES[place];
            let _ring = Ring::start(&cgroups.of(tasks), args.cpu)?;
            let attached = match program {
                Program::Reference(name) => Attached::reference(name, &btf)?,
                Program::Ours(hook) => Attached::ours(hook, &cgroups.selected(tasks)?, false)?,
                Program::Paired => Attached::ours(Hook::TpBtf, &cgroups.selected(tasks)?, true)?,
            };
            let turn = measure(&attached, retired.as_mut())?;
            if round > 0 {
                turns[place].push(turn);
            } else {
                found[place] = attached.sizes;
            }
        }
    }
    bench.quiet();
    times(&turns, outcome);
    sizes(&found, outcome);
    Ok(())
}

/// The cgroups of the tasks, gone when dropped.
struct Cgroups {
    one: TestCgroup,
    other: TestCgroup,
    root: PathBuf,
}

impl Cgroups {
    fn new() -> Self {
        let [one, other] = ["one", "other"].map(|name| TestCgroup::v2(&format!("bench-{name}")));
        Self { one, other, root: v2_mount() }
    }

    /// Where the tasks are.
    fn of(&self, tasks: Tasks) -> Vec<&Path> {
        match tasks {
            Tasks::OneCgroup => vec![self.one.path(), self.one.path()],
            Tasks::TwoCgroups => vec![self.one.path(), self.other.path()],
            Tasks::EveryOption => vec![self.one.path(), self.other.path(), &self.root],
        }
    }

    /// The ids of what the probe is told to watch.
    fn selected(&self, tasks: Tasks) -> Result<Vec<u64>> {
        let mut ids = vec![self.one.id(), self.other.id()];
        if tasks == Tasks::EveryOption {
            ids.push(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&self.root)?));
            // Nobody is in them, so they need not be there.
            ids.extend((0..1_000).map(|number| u64::MAX - number));
        }
        Ok(ids)
    }
}

/// Nanoseconds per event of the program that was just attached.
fn measure(attached: &Attached, mut retired: Option<&mut Retired>) -> Result<Turn> {
    std::thread::sleep(SETTLE);
    if let Some(retired) = &mut retired {
        // From here on.
        retired.per_switch()?;
    }
    let mut slices = Vec::with_capacity(SLICES);
    let mut before = attached.run_time()?;
    for _ in 0..SLICES {
        std::thread::sleep(SLICE);
        let after = attached.run_time()?;
        let runs = after.runs - before.runs;
        ensure!(runs > 0, "the kernel counted no run of the program");
        slices.push((after.time - before.time).as_nanos() as f64 / runs as f64);
        before = after;
    }
    let instructions = retired.map(Retired::per_switch).transpose()?;
    Ok(Turn { ns: median(&slices), instructions })
}

/// A metric for each program but the empty ones, and a table of all.
fn times(turns: &[Vec<Turn>], outcome: &mut Outcome) {
    let mut rows = Vec::new();
    for ((program, tasks, name), own) in CASES.into_iter().zip(turns) {
        let mut cases = CASES.iter().zip(turns);
        let empty = cases.find(|((program, beside, _), _)| (*program, *beside) == (EMPTY, tasks));
        let Some((_, empty)) = empty else { continue };
        let ns = |turns: &[Turn]| turns.iter().map(|turn| turn.ns).collect::<Vec<_>>();
        let above: Vec<f64> = own.iter().zip(empty).map(|(own, empty)| own.ns - empty.ns).collect();
        let instructions: Vec<f64> = own
            .iter()
            .zip(empty)
            .filter_map(|(own, empty)| Some(own.instructions? - empty.instructions?))
            .collect();
        rows.push(Row {
            program: name,
            median_ns: median(&ns(own)),
            min_ns: least(&ns(own)),
            above_empty_ns: median(&above),
            above_empty_95: interval(&above),
            min_above_empty_ns: least(&ns(own)) - least(&ns(empty)),
        });
        if program == EMPTY {
            continue;
        }
        let metric = Metric::of_turns(format!("{name}, above the empty one"), "ns", above);
        let metric = metric.against_nothing();
        outcome.metrics.push(match (program, tasks) {
            (Program::Ours(Hook::TpBtf), Tasks::OneCgroup) => {
                metric.with_target(Target::below(15.0))
            }
            (Program::Paired, Tasks::OneCgroup) => metric.with_target(Target::below(23.0)),
            _ => metric,
        });
        if !instructions.is_empty() {
            let name = format!("{name}, retired above the empty one");
            let metric = Metric::of_turns(name, "instructions", instructions);
            outcome.metrics.push(metric.against_nothing());
        }
    }
    // As the README has it.
    eprintln!(
        "| program | ns/event, median (least) | above the empty one [95 % interval] | of the least |"
    );
    eprintln!("|---|---|---|---|");
    for row in &rows {
        eprintln!(
            "| {} | {:.1} ({:.1}) | {:+.1} [{:+.1}, {:+.1}] | {:+.1} |",
            row.program,
            row.median_ns,
            row.min_ns,
            row.above_empty_ns,
            row.above_empty_95.0,
            row.above_empty_95.1,
            row.min_above_empty_ns
        );
    }
    outcome.data.insert("rows".to_owned(), serde_json::json!(rows));
}

/// A table of all programs, and metrics of those that a switch runs through.
fn sizes(sizes: &[Vec<Size>], outcome: &mut Outcome) {
    let mut data = serde_json::Map::new();
    let head = ["program", "instructions", "JITed bytes", "instructions verified"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for ((program, tasks, case), sizes) in CASES.into_iter().zip(sizes) {
        // Beside other tasks they are the same.
        if tasks != Tasks::OneCgroup {
            continue;
        }
        for size in sizes {
            let name = format!("{case}: {}", size.program);
            let figures = [size.instructions, Some(size.jited_bytes), size.verified];
            let cells = figures.map(|figure| figure.map_or("-".to_owned(), |n| n.to_string()));
            rows.push([name.clone()].into_iter().chain(cells).collect());
            data.insert(name, serde_json::json!(size));
            if !matches!(program, Program::Ours(_)) || !size.program.starts_with("sched_switch") {
                continue;
            }
            let units = ["instructions", "bytes", "instructions"];
            let whats = ["translated", "JITed", "verified"];
            for ((what, unit), figure) in whats.into_iter().zip(units).zip(figures) {
                let name = format!("{case}, {what}");
                outcome.metrics.extend(figure.map(|n| Metric::exact(name, unit, n.into())));
            }
        }
    }
    eprint!("\n{}\n", table(&rows, 1));
    outcome.data.insert("programs".to_owned(), data.into());
}
