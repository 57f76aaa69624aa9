//! Nanoseconds per context switch, by the kernel's own account of BPF run time.
//!
//! What is counted: from just before the program's first instruction to just after its last, as
//! the kernel's BPF statistics have it, over every `sched_switch` of the machine. Nearly all of them are
//! `perf bench sched pipe`: two tasks that wake each other, pinned to one CPU, in a cgroup of their
//! own that our probe has selected. The trampoline that calls a program is not counted, for any of
//! them. Where tasks of two cgroups take turns on one CPU, ours costs some 15 ns more; with more than
//! two, a hash lookup.
//!
//! The statistics cost time themselves, some tens of nanoseconds that are counted as the program's.
//! They are the same for every program, so what counts is the difference to the empty one.
//!
//! The pipe runs all the time. Programs take short turns, each loaded afresh, in an order that
//! rotates, and a turn's figure is the median of slices of a few milliseconds: a hypervisor that
//! stops the CPU inside a program spoils one slice, and a machine whose speed drifts does so for
//! all programs of a round.

use std::io::IsTerminal as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::BtfTracePoint;
use aya::sys::{Stats, enable_stats};
use aya::{Btf, EbpfLoader};
use ecoprobe::meter::cpu_time::{CpuTime, Hook, LoadOptions, RunTime};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::statistics::{interval, least, median};

const REFERENCE: &[u8] = aya::include_bytes_aligned!("../bpf/reference.o");
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// After attaching: code is patched and caches are cold.
const SETTLE: Duration = Duration::from_millis(10);
const SLICE: Duration = Duration::from_millis(5);
const SLICES: usize = 8;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each program takes its turn.
    #[arg(long, default_value_t = 51)]
    rounds: usize,
    /// CPU that the two tasks share.
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Write the result here as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq)]
enum Program {
    Reference(&'static str),
    Ours(Hook),
}

/// The empty one first: the others are compared with it.
const PROGRAMS: [(Program, &str); 4] = [
    (Program::Reference("empty"), "empty tp_btf program"),
    (Program::Reference("clock"), "one clock read and a store"),
    (Program::Ours(Hook::TpBtf), "ecoprobe, tp_btf"),
    (Program::Ours(Hook::RawTp), "ecoprobe, raw_tp (fallback)"),
];

#[derive(serde::Serialize)]
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

pub(crate) fn bench(args: &Args) -> Result<()> {
    ensure!(args.rounds > 0, "at least one round");
    // Counted by file descriptor: others may want the statistics too, and they end with us.
    let _statistics = enable_stats(Stats::RunTime)
        .context("cannot turn the kernel's BPF statistics on; run it as root")?;
    let btf = Btf::from_sys_fs()?;
    let cgroup = Cgroup::new()?;
    let mut pipe = Pipe::start(&cgroup, args.cpu)?;
    let mut turns = vec![Vec::new(); PROGRAMS.len()];
    // The first round warms up.
    for round in 0..=args.rounds {
        if std::io::stderr().is_terminal() {
            eprint!("\rround {round} of {} ", args.rounds);
        }
        for place in 0..PROGRAMS.len() {
            let place = (place + round) % PROGRAMS.len();
            let ns = match PROGRAMS[place].0 {
                Program::Reference(name) => turn_of_reference(name, &btf)?,
                Program::Ours(hook) => turn_of_ours(hook, &cgroup)?,
            };
            if round > 0 {
                turns[place].push(ns);
            }
        }
        pipe.ensure_running()?;
    }
    if std::io::stderr().is_terminal() {
        eprint!("\r{:30}\r", "");
    }

    let empty = &turns[0];
    let rows: Vec<Row> = PROGRAMS
        .iter()
        .zip(&turns)
        .map(|((_, program), ns)| {
            let above: Vec<f64> = ns.iter().zip(empty).map(|(ns, empty)| ns - empty).collect();
            Row {
                program,
                median_ns: median(ns),
                min_ns: least(ns),
                above_empty_ns: median(&above),
                above_empty_95: interval(&above),
                min_above_empty_ns: least(ns) - least(empty),
            }
        })
        .collect();
    println!(
        "| program | ns/event, median (least) | above the empty one [95 % interval] | of the least |"
    );
    println!("|---|---|---|---|");
    for row in &rows {
        println!(
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
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)?;
        std::fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn turn_of_reference(name: &str, btf: &Btf) -> Result<f64> {
    let mut object = EbpfLoader::new().btf(None).load(REFERENCE).context("cannot load programs")?;
    let program = object.program_mut(name).context("the reference object lacks a program")?;
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load("sched_switch", btf)?;
    program.attach()?;
    nanoseconds(|| {
        let info = program.info().ok()?;
        Some(RunTime { runs: info.run_count(), time: info.run_time() })
    })
}

fn turn_of_ours(hook: Hook, cgroup: &Cgroup) -> Result<f64> {
    let mut probe = CpuTime::load(LoadOptions {
        btf: Path::new(BTF),
        package_of_cpu: vec![0; aya::util::nr_cpus().map_err(|(_, error)| error)?],
        packages: 1,
        v1_controller: None,
        hierarchy_id: 0,
        max_workloads: 1,
        exits: false,
        hook: Some(hook),
    })?;
    probe.add_workload(cgroup.id()?)?.context("no room for a workload")?;
    probe.attach()?;
    nanoseconds(|| probe.run_time())
}

/// Nanoseconds per event of the program that was just attached.
fn nanoseconds(run_time: impl Fn() -> Option<RunTime>) -> Result<f64> {
    std::thread::sleep(SETTLE);
    let mut slices = Vec::with_capacity(SLICES);
    let mut before = run_time().context("no statistics")?;
    for _ in 0..SLICES {
        std::thread::sleep(SLICE);
        let after = run_time().context("no statistics")?;
        let runs = after.runs - before.runs;
        ensure!(runs > 0, "the kernel counted no run of the program");
        slices.push((after.time - before.time).as_nanos() as f64 / runs as f64);
        before = after;
    }
    Ok(median(&slices))
}

/// Two tasks that do nothing but switch; they end with it.
struct Pipe(Child);

impl Pipe {
    fn start(cgroup: &Cgroup, cpu: usize) -> Result<Self> {
        const SCRIPT: &str =
            r#"echo $$ >"$0/cgroup.procs" && exec taskset -c "$1" perf bench sched pipe -l "$2""#;
        let child = Command::new("sh")
            .args(["-c", SCRIPT])
            .arg(&cgroup.0)
            .args([cpu.to_string(), i32::MAX.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("cannot run `sh`")?;
        let mut pipe = Self(child);
        std::thread::sleep(Duration::from_millis(200));
        pipe.ensure_running()?;
        Ok(pipe)
    }

    fn ensure_running(&mut self) -> Result<()> {
        if let Some(status) = self.0.try_wait()? {
            bail!(
                "`taskset` and `perf bench sched pipe`: {status}; on Debian they are in \
                 util-linux and linux-perf"
            );
        }
        Ok(())
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

/// A cgroup of our own, gone when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Result<Self> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?;
            (fields.next()? == "cgroup2").then_some(path)
        });
        let mount = mount.context("cgroup2 is not mounted")?;
        let path = Path::new(mount).join(format!("ecoprobe-bench-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    fn id(&self) -> Result<u64> {
        Ok(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&self.0)?))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy for a moment after its last process was killed.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("cannot remove {}", self.0.display());
    }
}
