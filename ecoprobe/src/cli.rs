//! The command line, and nothing else: parsing touches no file and no kernel.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::event::settings::{GivenStaticPower, IdlePolicy};
use crate::meter::choose::CpuEnergyChoice;
use crate::meter::gpu::GpuEnergyChoice;
use crate::output::Format;

/// Joules per workload: an eBPF CPU-time probe merged with RAPL and NVML energy counters.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = "Exit codes: 0 done; 1 failed while running; 2 wrong usage; 3 no such \
    workload; 4 this host or these permissions cannot do it. `run` exits as its command did.")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub watch: WatchArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a command in a cgroup of its own, then report; exits as the command did.
    Run(Box<RunArgs>),
    /// The same report from a recording; needs no root and no hardware.
    Replay(ReplayArgs),
    /// What this host can measure, what it cannot, and how to mend it.
    Doctor(DoctorArgs),
}

/// Watch what is already running.
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Workload: a cgroup path, its last component, a cgroup id, a container id, a Slurm job, a
    /// systemd unit, or a glob over paths. May be given several times.
    #[arg(long = "cgroup", value_name = "NAME", required = true)]
    pub cgroups: Vec<String>,
    #[command(flatten)]
    pub measure: MeasureArgs,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub measure: MeasureArgs,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

/// Options that every measuring command takes.
#[derive(Debug, Args)]
pub struct MeasureArgs {
    /// How long a window is, at least 1ms. Counters are read more often where they need it.
    #[arg(long, value_name = "D", default_value = "1s", value_parser = parse_interval)]
    pub interval: Duration,
    /// Stop after this long. Without it: until Ctrl-C, or until every watched cgroup is gone.
    #[arg(long, value_name = "D", value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Where the CPU's energy figures come from.
    #[arg(long, value_enum, default_value_t)]
    pub cpu_energy: CpuEnergyChoice,
    /// Where the GPUs' energy figures come from.
    #[arg(long, value_enum, default_value_t)]
    pub gpu_energy: GpuEnergyChoice,
    /// The NVML library to load.
    #[arg(long, value_name = "PATH")]
    pub nvml_lib: Option<PathBuf>,
    /// Time between readings of each GPU's energy and power.
    #[arg(long, value_name = "D", default_value = "100ms", value_parser = parse_interval)]
    pub gpu_interval: Duration,
    /// Time between readings of who uses each GPU.
    #[arg(long, value_name = "D", default_value = "1s", value_parser = parse_interval)]
    pub gpu_process_interval: Duration,
    #[command(flatten)]
    pub roots: RootArgs,
    /// Keep the raw samples here, for `replay`.
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// How many workloads the probe can tell apart; the time of more goes to `other` [default:
    /// 4096, or twice as many as there are at the start]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_workloads: Option<u32>,
    #[command(flatten)]
    pub settings: SettingsArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Where the host's file systems are mounted.
#[derive(Debug, Clone, Args)]
pub struct RootArgs {
    /// Where the host's sysfs is mounted.
    #[arg(long, value_name = "DIR", default_value = "/sys")]
    pub sysfs: PathBuf,
    /// Where the host's procfs is mounted.
    #[arg(long, value_name = "DIR", default_value = "/proc")]
    pub procfs: PathBuf,
    /// Where the host's cgroup file system is mounted [default: from the mount table].
    #[arg(long, value_name = "DIR")]
    pub cgroupfs: Option<PathBuf>,
    /// Where the host's root is mounted, for /run, /var/log and /var/lib of an agent in a container
    /// [default: /, or the root of process 1 of --procfs].
    #[arg(long, value_name = "DIR")]
    pub hostfs: Option<PathBuf>,
}

/// How readings become joules, grams and money. The defaults of `replay` are the recording's.
#[derive(Debug, Args)]
pub struct SettingsArgs {
    /// The packages' power with nothing running, watts in all, if you know it; or by domain, a GPU
    /// by its UUID: package-0=20,GPU-5a4c...=60. [default: calibrated while running]
    #[arg(long, value_name = "W", value_parser = parse_static_power)]
    pub static_power: Option<GivenStaticPower>,
    /// Idle energy: a line of its own, or shared out by CPU time. [default: separate]
    #[arg(long, value_enum)]
    pub idle: Option<IdlePolicy>,
    /// Bill a GPU's idle energy to whoever holds memory on it.
    #[arg(long)]
    pub gpu_idle_to_holders: bool,
    /// How unlike the workloads' power per busy CPU is: standard deviation, as a part of the mean,
    /// 0 (all alike) to 1. [default: what real workloads are like]
    #[arg(long, value_name = "PART", value_parser = parse_part)]
    pub price_spread: Option<f64>,
    /// Carbon intensity of the electricity, grams of CO2e per kWh.
    #[arg(long, value_name = "G", value_parser = parse_not_negative)]
    pub carbon_intensity: Option<f64>,
    /// Power usage effectiveness of the building, at least 1.
    #[arg(long, value_name = "X", value_parser = parse_pue)]
    pub pue: Option<f64>,
    /// Price of a kWh.
    #[arg(long, value_name = "P", value_parser = parse_not_negative)]
    pub price: Option<f64>,
}

#[derive(Debug, Args)]
pub struct OutputArgs {
    /// What goes to standard output.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Write the result here instead.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// A file made with --record.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub settings: SettingsArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[arg(long, value_enum, default_value_t)]
    pub format: DoctorFormat,
    /// The NVML library to look for.
    #[arg(long, value_name = "PATH")]
    pub nvml_lib: Option<PathBuf>,
    #[command(flatten)]
    pub roots: RootArgs,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum DoctorFormat {
    #[default]
    Table,
    Json,
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    // What is added to the time of a clock must not run over.
    const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => Err("a duration is at most 100 years".into()),
        Err(error) => Err(format!("{error}; write a number with its unit, as in 100ms, 1s or 2m")),
    }
}

fn parse_interval(text: &str) -> Result<Duration, String> {
    let interval = parse_duration(text)?;
    if interval < Duration::from_millis(1) {
        return Err("an interval is at least 1ms: the energy counters move no faster".into());
    }
    Ok(interval)
}

fn parse_not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("expected a number that is not negative".into()),
    }
}

fn parse_part(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a number from 0 to 1".into()),
    }
}

fn parse_pue(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 1.0 => Ok(value),
        _ => Err("expected a number of at least 1".into()),
    }
}

fn parse_static_power(text: &str) -> Result<GivenStaticPower, String> {
    if !text.contains('=') {
        return parse_not_negative(text).map(GivenStaticPower::Total);
    }
    let mut by_domain = std::collections::BTreeMap::new();
    for pair in text.split(',') {
        let (domain, watts) =
            pair.split_once('=').ok_or_else(|| format!("`{pair}` is not DOMAIN=WATTS"))?;
        let (domain, watts) = (domain.trim(), parse_not_negative(watts.trim())?);
        if by_domain.insert(domain.to_owned(), watts).is_some() {
            return Err(format!("`{domain}` is named twice"));
        }
    }
    Ok(GivenStaticPower::ByDomain(by_domain))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn nonsense_is_refused_before_anything_is_opened() {
        for arguments in [
            &["ecoprobe", "--cgroup", "a", "--interval", "0"][..],
            &["ecoprobe", "--cgroup", "a", "--interval", "0s"],
            &["ecoprobe", "--cgroup", "a", "--interval", "1us"],
            &["ecoprobe", "--cgroup", "a", "--duration", "500000000000y"],
            &["ecoprobe", "--cgroup", "a", "--pue", "0.5"],
            &["ecoprobe", "--cgroup", "a", "--price-spread", "1.5"],
            &["ecoprobe", "--cgroup", "a", "--price-spread", "NaN"],
            &["ecoprobe", "--cgroup", "a", "--price", "-1"],
            &["ecoprobe", "--cgroup", "a", "--static-power", "nan"],
            &["ecoprobe", "--cgroup", "a", "--static-power", "package-0"],
            &["ecoprobe", "--cgroup", "a", "--static-power", "package-0=1,package-0=2"],
            &["ecoprobe", "--interval", "1s"],
            &["ecoprobe", "run"],
        ] {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{arguments:?}");
        }
    }

    #[test]
    fn a_subcommand_needs_no_cgroup() {
        assert!(Cli::try_parse_from(["ecoprobe", "replay", "file"]).is_ok());
        assert!(Cli::try_parse_from(["ecoprobe", "run", "--", "true", "-x"]).is_ok());
    }

    #[test]
    fn static_power_is_a_total_or_by_domain() {
        assert_eq!(parse_static_power("40"), Ok(GivenStaticPower::Total(40.0)));
        let by_domain = parse_static_power("package-0=20, package-1=22.5").unwrap();
        let GivenStaticPower::ByDomain(watts) = by_domain else { panic!("{by_domain:?}") };
        assert_eq!(watts["package-1"], 22.5);
    }
}
