//! Nanoseconds per context switch, by the kernel's own account of BPF run time.
//!
//! The kernel's statistics cost time themselves, some tens of nanoseconds that are counted as the
//! program's. They are the same for every program, so what counts is the difference to the empty
//! one. Programs take turns, because a virtual machine's speed drifts.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use aya::programs::BtfTracePoint;
use aya::{Btf, Ebpf, EbpfLoader};
use ecoprobe::meter::cpu_time::{CpuTime, Hook, LoadOptions};

const REFERENCE: &[u8] = aya::include_bytes_aligned!("../bpf/reference.o");
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
const BTF: &str = "/sys/kernel/btf/vmlinux";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each program takes its turn.
    #[arg(long, default_value_t = 11)]
    rounds: usize,
    /// Round trips of `perf bench sched pipe` in a turn; each is two switches.
    #[arg(long, default_value_t = 100_000)]
    loops: u32,
    /// CPU that the two processes share.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Write the result here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq)]
enum Program {
    Empty,
    Clock,
    Ours(Hook),
}

const PROGRAMS: [(Program, &str); 4] = [
    (Program::Empty, "empty tp_btf program"),
    (Program::Clock, "one clock read and a store"),
    (Program::Ours(Hook::TpBtf), "ecoprobe, tp_btf"),
    (Program::Ours(Hook::RawTp), "ecoprobe, raw_tp (fallback)"),
];

#[derive(serde::Serialize)]
struct Row {
    program: &'static str,
    /// Nanoseconds per event: median, and the least and most of all rounds.
    median_ns: f64,
    min_ns: f64,
    max_ns: f64,
    /// Median of the differences to the empty program's turn in the same round.
    above_empty_ns: f64,
}

pub(crate) fn bench(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0, "at least one round");
    let _statistics = Statistics::enable()?;
    let mut reference = EbpfLoader::new().load(REFERENCE).context("cannot load the programs")?;
    let btf = Btf::from_sys_fs()?;
    for name in ["empty", "clock"] {
        program(&mut reference, name)?.load("sched_switch", &btf)?;
    }
    let mut rounds = vec![Vec::new(); PROGRAMS.len()];
    for round in 0..=args.rounds {
        for (place, (kind, name)) in PROGRAMS.iter().enumerate() {
            eprint!("\rround {round} of {}: {name:30}", args.rounds);
            let ns = turn(*kind, &mut reference, args)?;
            // The first round warms up.
            if round > 0 {
                rounds[place].push(ns);
            }
        }
    }
    eprintln!("\r{:50}", "");
    let empty = rounds[0].clone();
    let rows: Vec<Row> = PROGRAMS
        .iter()
        .zip(&rounds)
        .map(|((_, program), ns)| {
            let differences = ns.iter().zip(&empty).map(|(ns, empty)| ns - empty).collect();
            Row {
                program,
                median_ns: median(ns.clone()),
                min_ns: ns.iter().copied().fold(f64::INFINITY, f64::min),
                max_ns: ns.iter().copied().fold(0.0, f64::max),
                above_empty_ns: median(differences),
            }
        })
        .collect();
    println!("| program | ns/event, median (min–max) | above the empty one |");
    println!("|---|---|---|");
    for row in &rows {
        println!(
            "| {} | {:.0} ({:.0}–{:.0}) | {:+.0} |",
            row.program, row.median_ns, row.min_ns, row.max_ns, row.above_empty_ns
        );
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Attaches one program, makes switches, and returns its nanoseconds per event.
fn turn(kind: Program, reference: &mut Ebpf, args: &Args) -> Result<f64> {
    let name = match kind {
        Program::Empty => "empty",
        Program::Clock => "clock",
        Program::Ours(hook) => {
            let mut probe = CpuTime::load(LoadOptions {
                btf: Path::new(BTF),
                package_of_cpu: vec![0; aya::util::nr_cpus().map_err(|(_, error)| error)?],
                packages: 1,
                v1_controller: None,
                hierarchy_id: 0,
                max_workloads: 1,
                hook: Some(hook),
            })?;
            probe.attach()?;
            switches(args)?;
            return probe.stats().ns_per_event.context("the kernel kept no statistics");
        }
    };
    let program = program(reference, name)?;
    let (count, time) = (program.info()?.run_count(), program.info()?.run_time());
    let link = program.attach()?;
    switches(args)?;
    program.detach(link)?;
    let info = program.info()?;
    let events = info.run_count() - count;
    ensure!(events > 0, "the kernel kept no statistics");
    Ok((info.run_time() - time).as_nanos() as f64 / events as f64)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut BtfTracePoint> {
    Ok(ebpf.program_mut(name).context("the reference object lacks a program")?.try_into()?)
}

fn switches(args: &Args) -> Result<()> {
    let status = Command::new("taskset")
        .args(["-c", &args.cpu.to_string(), "perf", "bench", "sched", "pipe", "-l"])
        .arg(args.loops.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .context(
            "cannot run `taskset` and `perf`; on Debian they are in util-linux and linux-perf",
        )?;
    ensure!(status.success(), "perf bench sched pipe: {status}");
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// `kernel.bpf_stats_enabled`, put back as it was.
struct Statistics {
    before: String,
}

impl Statistics {
    fn enable() -> Result<Self> {
        let before = std::fs::read_to_string(STATISTICS).context(STATISTICS)?;
        std::fs::write(STATISTICS, "1")
            .with_context(|| format!("cannot write {STATISTICS}; run it as root"))?;
        Ok(Self { before })
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = std::fs::write(STATISTICS, self.before.trim());
    }
}
