//! The narrow door through which the project's own tests and benchmarks reach inside. It is no promise
//! to anybody else: whatever is here may be gone tomorrow.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Parser as _;

pub use crate::collector::Last;
pub use crate::command::doctor::{Check, Diagnosis, Level, diagnose, doctor};
pub use crate::command::run::child::{Child, SpawnError, exit_code};
pub use crate::command::signals::Signals;
pub use crate::config::Doctor;
pub use crate::host::Roots;
pub use crate::host::priority::Undisturbed;
pub use crate::host::topology::{Grain, Topology};
pub use crate::meter::awake::{AwakeSource, Opened as OpenedAwake};
pub use crate::meter::choose::{CpuEnergyChoice, Opened};
pub use crate::meter::gpu::{GpuEnd, GpuMeter, GpuOptions, PidOwner, Whose};
pub use crate::meter::rapl::Unavailable;
pub use crate::meter::rapl::perf::PerfMeter;
pub use crate::meter::rapl::powercap::PowercapMeter;
pub use crate::meter::{CpuEnergy, EnergyMeter};
pub use crate::output::units::count;
pub use crate::output::{Format, Target, open_quiet};
pub use crate::probe::{CgroupNews, Fate, Hook, LoadOptions, Probe, RunTime};
pub use crate::recording::read;
pub use crate::view::report::{ComponentBooks, Node, Report};
pub use crate::workload::Place;
pub use crate::workload::hierarchy::{Hierarchies, Version};
pub use crate::workload::names::{Change, Made, Selection, resolve};
pub use crate::workload::owner::{Owner, Owners, Watched};
pub use crate::workload::scope::{Scope, clean_up_stale};

use crate::base::own::Own;
use crate::cli::Cli;
use crate::collector::{Collector, Newcomers};
use crate::config::Config;
use crate::energy::books::Books;
use crate::event::{Event, Header};
use crate::host::powercap::{self, ZoneKind};
use crate::view;
use crate::view::report::WindowReport;

/// The books of a run whose events come from the caller.
#[derive(Debug)]
pub struct Run(Books);

impl Run {
    pub fn open(header: Header) -> Self {
        Self(Books::open(header, true))
    }

    pub fn apply(&mut self, event: &Event) {
        self.0.apply(event);
    }

    /// The newest window.
    pub fn window(&self) -> Option<WindowReport> {
        view::window(&self.0)
    }

    /// The report of all events so far, as if there were no more.
    pub fn report(&mut self) -> Report {
        self.0.finish();
        view::report(&mut self.0, Own::default())
    }
}

/// A measurement of this machine whose ticks are the caller's.
#[derive(Debug)]
pub struct Live {
    collector: Collector,
    books: Books,
}

impl Live {
    /// As `ecoprobe --cgroup ...` with these arguments, up to the first sample.
    ///
    /// # Errors
    ///
    /// Whatever such a command would say.
    pub fn watch(arguments: impl IntoIterator<Item = impl Into<OsString>>) -> anyhow::Result<Self> {
        let arguments = arguments.into_iter().map(Into::into);
        let cli = Cli::try_parse_from(std::iter::once("ecoprobe".into()).chain(arguments))?;
        let Config::Watch(config) = Config::new(cli, false)? else {
            anyhow::bail!("name something to watch");
        };
        let options = &config.measure.collect;
        let mut selection = crate::workload::names::resolve(&config.names, &options.roots)?;
        let workloads = selection.start();
        let (mut collector, header) =
            Collector::open(options, &selection.hierarchy, workloads, Newcomers::Ignored)?;
        let mut books = Books::open(header, false);
        let emit = &mut |event: &Event| {
            books.apply(event);
        };
        collector.begin(emit);
        collector.tick(Last::No, true, emit);
        Ok(Self { collector, books })
    }

    pub fn tick(&mut self, last: Last) {
        self.collector.tick(last, true, &mut |event| {
            self.books.apply(event);
        });
    }

    /// The report of everything up to the last tick.
    pub fn finish(mut self) -> Report {
        let own = self.collector.finish(&mut |event| {
            self.books.apply(event);
        });
        self.books.finish();
        view::report(&mut self.books, own)
    }
}

/// The files of the package counters that powercap shows, one a package.
pub fn package_counters(sysfs: &Path) -> Vec<PathBuf> {
    let zones = powercap::zones(sysfs).into_iter();
    let packages = zones.filter(|zone| zone.kind == ZoneKind::Package && !zone.mmio);
    packages.map(|zone| zone.path.join("energy_uj")).collect()
}
