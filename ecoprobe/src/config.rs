//! The validated configuration: what the command line asks for, in the words of those who do it.
//! Nothing is opened here.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::Error;
use crate::cli::{Cli, Command, DoctorFormat, MeasureArgs, OutputArgs, SettingsArgs};
use crate::collector;
use crate::event::settings::Wishes;
use crate::host::Roots;
use crate::output::{self, Target};

/// What is to be done.
#[derive(Debug)]
pub enum Config {
    Watch(Watch),
    Run(Run),
    Replay(Replay),
    Doctor(Doctor),
}

/// Measure what is already running.
#[derive(Debug)]
pub struct Watch {
    pub names: Vec<String>,
    pub measure: Measure,
}

/// Measure a command.
#[derive(Debug)]
pub struct Run {
    /// Its name and arguments; not empty.
    pub command: Vec<OsString>,
    pub measure: Measure,
}

/// What every measuring command needs to know.
#[derive(Debug)]
pub struct Measure {
    /// The length of a window.
    pub interval: Duration,
    pub duration: Option<Duration>,
    pub collect: collector::Options,
    /// Where the raw samples go.
    pub record: Option<PathBuf>,
    pub output: Target,
}

#[derive(Debug)]
pub struct Replay {
    pub file: PathBuf,
    pub wishes: Wishes,
    pub output: Target,
}

#[derive(Debug)]
pub struct Doctor {
    pub json: bool,
    pub nvml_lib: Option<PathBuf>,
    pub roots: Roots,
}

impl Config {
    /// `elevated`: this program has rights that its caller lacks (set-user-id or file capabilities).
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] for what contradicts itself, and [`Error::Cannot`] for what such a caller may
    /// not ask for.
    pub fn new(cli: Cli, elevated: bool) -> Result<Self, Error> {
        match cli.command {
            None => {
                let measure = Measure::new(cli.watch.measure, elevated)?;
                Ok(Self::Watch(Watch { names: cli.watch.cgroups, measure }))
            }
            Some(Command::Run(args)) => {
                let measure = Measure::new(args.measure, elevated)?;
                Ok(Self::Run(Run { command: args.command, measure }))
            }
            Some(Command::Replay(args)) => {
                let output = target(args.output);
                output::distinct(Some(&args.file), &output)?;
                Ok(Self::Replay(Replay { file: args.file, wishes: wishes(args.settings), output }))
            }
            Some(Command::Doctor(args)) => {
                let roots = roots(args.roots);
                refuse_foreign_code(elevated, &roots, args.nvml_lib.as_ref())?;
                are_there(&roots)?;
                let json = args.format == DoctorFormat::Json;
                Ok(Self::Doctor(Doctor { json, nvml_lib: args.nvml_lib, roots }))
            }
        }
    }
}

impl Measure {
    fn new(args: MeasureArgs, elevated: bool) -> Result<Self, Error> {
        let roots = roots(args.roots);
        refuse_foreign_code(elevated, &roots, args.nvml_lib.as_ref())?;
        are_there(&roots)?;
        let output = target(args.output);
        output::distinct(args.record.as_deref(), &output)?;
        Ok(Self {
            interval: args.interval,
            duration: args.duration,
            collect: collector::Options {
                roots,
                cpu_energy: args.cpu_energy,
                gpu_energy: args.gpu_energy,
                nvml_lib: args.nvml_lib,
                gpu_interval: args.gpu_interval,
                gpu_process_interval: args.gpu_process_interval,
                max_workloads: args.max_workloads,
                wishes: wishes(args.settings),
            },
            record: args.record,
            output,
        })
    }
}

/// A library of the caller's choice would run with our rights, and files of his choice would be read
/// with them.
fn refuse_foreign_code(
    elevated: bool,
    roots: &Roots,
    library: Option<&PathBuf>,
) -> Result<(), Error> {
    let usual = Roots::default();
    let foreign = [
        (library.is_some(), "--nvml-lib"),
        (roots.sysfs != usual.sysfs, "--sysfs"),
        (roots.procfs != usual.procfs, "--procfs"),
        (roots.cgroupfs.is_some(), "--cgroupfs"),
        (roots.hostfs.is_some(), "--hostfs"),
    ];
    match foreign.into_iter().find(|(given, _)| elevated && *given) {
        Some((_, option)) => Err(Error::Cannot(format!(
            "{option} is refused: ecoprobe has rights here that its caller lacks (file capabilities \
             or set-user-id); run it as root without them to use the option"
        ))),
        None => Ok(()),
    }
}

/// A mount that was forgotten, or mistyped, is not a machine without counters.
fn are_there(roots: &Roots) -> Result<(), Error> {
    let given = [(Some(&roots.sysfs), "--sysfs"), (roots.hostfs.as_ref(), "--hostfs")];
    for (path, option) in given {
        if let Some(path) = path.filter(|path| !path.is_dir()) {
            return Err(Error::Usage(format!(
                "{option}: {} is not a directory; is it mounted here?",
                path.display()
            )));
        }
    }
    Ok(())
}

fn roots(args: crate::cli::RootArgs) -> Roots {
    let crate::cli::RootArgs { sysfs, procfs, cgroupfs, hostfs } = args;
    Roots { sysfs, procfs, cgroupfs, hostfs }
}

fn target(OutputArgs { format, output }: OutputArgs) -> Target {
    Target { format, file: output, others: None }
}

fn wishes(args: SettingsArgs) -> Wishes {
    Wishes {
        static_power: args.static_power,
        idle: args.idle,
        gpu_idle_to_holders: args.gpu_idle_to_holders,
        price_spread: args.price_spread,
        carbon_intensity: args.carbon_intensity,
        pue: args.pue,
        price: args.price,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn config(options: &[&str], elevated: bool) -> Result<Config, Error> {
        Config::new(Cli::parse_from(["ecoprobe"].iter().chain(options)), elevated)
    }

    #[test]
    fn foreign_code_is_refused_with_borrowed_rights() {
        let options = [
            ["--nvml-lib", "/tmp/x.so"],
            ["--sysfs", "/tmp"],
            ["--procfs", "/tmp"],
            ["--cgroupfs", "/tmp"],
            ["--hostfs", "/tmp"],
        ];
        for [option, value] in options {
            for command in [&["--cgroup", "a"][..], &["doctor"]] {
                let all: Vec<&str> = command.iter().copied().chain([option, value]).collect();
                assert!(config(&all, false).is_ok(), "{all:?}");
                let Err(Error::Cannot(why)) = config(&all, true) else { panic!("{all:?}") };
                assert!(why.starts_with(option), "{why}");
            }
        }
        assert!(config(&["--cgroup", "a", "--sysfs", "/sys"], true).is_ok());
        assert!(config(&["replay", "x"], true).is_ok());
    }

    #[test]
    fn a_root_that_is_not_there_is_no_machine_without_counters() {
        for option in ["--sysfs", "--hostfs"] {
            for value in ["/no/such/mount", "/etc/passwd"] {
                for command in [&["--cgroup", "a"][..], &["doctor"]] {
                    let all: Vec<&str> = command.iter().copied().chain([option, value]).collect();
                    let Err(Error::Usage(why)) = config(&all, false) else { panic!("{all:?}") };
                    assert!(why.starts_with(option) && why.contains(value), "{why}");
                }
            }
            assert!(config(&["--cgroup", "a", option, "/tmp"], false).is_ok());
        }
    }

    #[test]
    fn a_result_over_its_recording_is_refused() {
        let options = ["--cgroup", "a", "--record", "/tmp/x", "--output", "/tmp/x"];
        assert!(matches!(config(&options, false), Err(Error::Usage(_))));
    }
}
