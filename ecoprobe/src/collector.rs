//! The tick: read every counter, then tell. What it tells are events; who listens is not its business.

mod admissions;
mod counters;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;

use self::admissions::Admissions;
use self::counters::Counters;
use crate::base::own::{Own, Quantiles};
use crate::base::{Component, Error, Patience, User, WorkloadId, monotonic_ns};
use crate::event::settings::{Settings, Wishes};
use crate::event::sources::{
    CpuEnergyKind, CpuTimeSource, GpuEnergyKind, GpuEnergySource, Host, Sources, StaticPowerSource,
};
use crate::event::{Domain, Event, Header, Reading, Sample, longest_interval};
use crate::host::topology::{self, Package, Topology};
use crate::host::{self, Roots};
use crate::meter::EnergyMeter;
use crate::meter::awake::{self, Awake};
use crate::meter::choose::{CpuEnergyChoice, Opened};
use crate::meter::gpu::{GpuEnergyChoice, GpuMeter, GpuOptions, PidOwner, Whose};
use crate::probe::{Exits, Fate, LoadOptions, Probe};
use crate::workload::hierarchy::Hierarchy;
use crate::workload::names::{Change, Made};
use crate::workload::owner::{Owner, Owners, Watched};

/// How long the GPU driver has for its last readings.
const GPU_PATIENCE: Duration = Duration::from_secs(3);
/// In a hurry it leaves this to those who write.
const AFTER_GPU: Duration = Duration::from_millis(400);

/// How many workloads can be told apart at a time where nothing else is asked for.
const USUAL_WORKLOADS: u32 = 4096;

/// What to read, and where.
#[derive(Debug, Clone)]
pub struct Options {
    pub roots: Roots,
    pub cpu_energy: CpuEnergyChoice,
    pub gpu_energy: GpuEnergyChoice,
    /// The NVML library to load; `None`: the system's.
    pub nvml_lib: Option<PathBuf>,
    /// Time between readings of each GPU's energy and power, and of who uses it.
    pub gpu_interval: Duration,
    pub gpu_process_interval: Duration,
    pub max_workloads: Option<u32>,
    pub wishes: Wishes,
}

/// Whether a tick is the last one of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    No,
    Yes,
}

/// Whether cgroups that are made later may become workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Newcomers {
    /// They are billed from the first if [`Collector::settle_newcomers`] is called when the news of them
    /// has been dealt with.
    Welcome,
    Ignored,
}

/// What happened to cgroups of the followed hierarchy.
#[derive(Debug, Default)]
pub(crate) struct CgroupChanges {
    /// In the order of the events.
    pub made: Vec<Made>,
    /// Ids, likewise.
    pub removed: Vec<u64>,
    /// Some events did not fit into the probe's queue.
    pub lost: bool,
}

/// How long after a look for CPUs that have come or gone the next one comes, nanoseconds.
const PLACE_AGAIN_NS: u64 = 1_000_000_000;

/// Everything that is read.
#[derive(Debug)]
pub(crate) struct Collector {
    probe: Probe,
    meters: Vec<Box<dyn EnergyMeter>>,
    counters: Counters,
    awake: Awake,
    /// With those that are estimated.
    domains: usize,
    gpu: Option<GpuMeter>,
    /// Who is who, for the GPU meter's thread.
    watched: Watched,
    nvml_us: Quantiles,
    topology: Topology,
    sysfs: PathBuf,
    /// When was last looked which CPUs have come or gone, CLOCK_MONOTONIC.
    looked_ns: u64,
    /// Which were online then, where cores have two threads.
    online: Option<String>,
    /// Buffers of the tick.
    sample: Sample,
    readings: Vec<Result<Reading, String>>,
    of_meter: Vec<Result<Reading, String>>,
    gpu_events: Vec<Event>,
    ended: Vec<WorkloadId>,
    /// What was found while opening.
    found: Vec<Event>,
    collect_ns: Histogram<u64>,
    longest_interval: Option<Duration>,
    admissions: Admissions,
    seen_lost_events: u64,
    /// With the driver, at the end.
    patience: Patience,
}

impl Collector {
    /// Opens every meter and attaches the probe. Nothing is told before [`Collector::begin`].
    /// What `began` is known to all from the first look on.
    pub(crate) fn open(
        options: &Options,
        hierarchy: &Hierarchy,
        began: Vec<Change>,
        newcomers: Newcomers,
    ) -> anyhow::Result<(Self, Header)> {
        let roots = &options.roots;
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
            anyhow::Error::new(error).context(format!("cannot count the CPUs ({path})"))
        })?;
        let energy = Opened::open(options.cpu_energy, roots, cpus)?.confirm()?;
        let awake = awake::Opened::open(&roots.sysfs).confirm();
        let topology = energy.topology;
        let meters: Vec<_> = energy.meter.into_iter().collect();
        let mut domains: Vec<_> =
            meters.iter().flat_map(|meter| meter.domains()).cloned().collect();
        if energy.source.kind == CpuEnergyKind::Estimate {
            domains.extend(topology.packages.iter().enumerate().map(estimated));
        }

        let most = options.max_workloads.unwrap_or_else(|| {
            USUAL_WORKLOADS.max(u32::try_from(began.len() * 2).unwrap_or(u32::MAX))
        });
        let btf = host::kernel::btf_path(&roots.sysfs);
        let needs = Needs {
            max_workloads: most,
            newcomers,
            exits: options.gpu_energy != GpuEnergyChoice::None,
        };
        // Before the siblings are looked up: a change meanwhile is noticed later.
        let online = topology::online(&roots.sysfs);
        let mut probe =
            Probe::load(load_options(&btf, &roots.sysfs, hierarchy, &topology, needs)?)?;
        let online = probe.has_siblings().then_some(online);
        // Before the GPU meter takes its first look at who is on a device.
        let watched = Watched::default();
        let (mut admissions, mut events) = (Admissions::default(), Vec::new());
        for change in began {
            let has_room = select(&mut probe, &watched, &change)?;
            events.extend(admissions.news(change, has_room).map(Event::Workload));
        }
        let gpu = open_gpu(options, hierarchy, &watched, probe.take_exits())?;
        if gpu.meter.is_some() {
            probe.watch_exits()?;
        }
        let settings = options.wishes.apply(Settings::default(), &domains, &gpu.source)?;
        probe.attach()?;

        let header = Header {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start: now_to_the_millisecond(),
            host: host(roots, &topology),
            cpu: Some(energy.cpu),
            sources: Sources {
                cpu_time: CpuTimeSource::ebpf(probe.hook().name(), hierarchy.kind()),
                cpu_energy: energy.source,
                gpu_energy: gpu.source,
                static_power: StaticPowerSource::default(),
            },
            packages: topology.packages.iter().map(|package| package.name.clone()).collect(),
            domains,
            settings,
        };
        let counters = meters.iter().flat_map(|meter| meter.domains());
        let collector = Self {
            counters: Counters::new(counters),
            awake,
            domains: header.domains.len(),
            longest_interval: longest_interval(&header.domains),
            probe,
            meters,
            gpu: gpu.meter,
            watched,
            nvml_us: Quantiles::default(),
            topology,
            sysfs: roots.sysfs.clone(),
            looked_ns: 0,
            online,
            sample: Sample::default(),
            readings: Vec::new(),
            of_meter: Vec::new(),
            gpu_events: Vec::new(),
            ended: Vec::new(),
            found: energy
                .notes
                .into_iter()
                .chain(gpu.warnings)
                .map(|message| Event::Warning { message })
                .chain(events)
                .collect(),
            // Up to a minute, to three digits.
            collect_ns: Histogram::new_with_max(60_000_000_000, 3)
                .context("cannot make a histogram")?,
            admissions,
            seen_lost_events: 0,
            patience: Patience::default(),
        };
        Ok((collector, header))
    }

    /// How far apart readings may be, so that no counter wraps unseen; `None`: none can.
    pub(crate) fn longest_interval(&self) -> Option<Duration> {
        self.longest_interval
    }

    /// Has the end hurry when others do.
    pub(crate) fn share(&mut self, patience: &Patience) {
        self.patience = patience.clone();
    }

    /// Tells what was found while opening.
    pub(crate) fn begin(&mut self, emit: &mut dyn FnMut(&Event)) {
        for event in std::mem::take(&mut self.found) {
            emit(&event);
        }
    }

    /// Takes in what became of a workload. Beyond the capacity its time stays in `other`, and the
    /// report says so.
    pub(crate) fn apply(
        &mut self,
        change: Change,
        emit: &mut dyn FnMut(&Event),
    ) -> anyhow::Result<()> {
        let has_room = select(&mut self.probe, &self.watched, &change)?;
        if let Some(workload) = self.admissions.news(change, has_room) {
            emit(&Event::Workload(workload));
        }
        Ok(())
    }

    /// Reads every counter and tells. The last tick waits until the GPUs' counters have moved past it,
    /// so that its window holds all that is left of their energy.
    pub(crate) fn tick(&mut self, last: Last, ends_window: bool, emit: &mut dyn FnMut(&Event)) {
        if last == Last::Yes {
            self.probe.settle_all_newcomers();
        }
        let start = monotonic_ns();
        self.read();
        self.sample.ends_window = self.counters.let_end(ends_window, &self.readings, last);
        // What the GPU meter's thread has published; the driver itself is never waited for.
        if let Some(gpu) = &self.gpu {
            gpu.drain(&mut self.gpu_events);
        }
        self.collect_ns.saturating_record(monotonic_ns().saturating_sub(start));

        // From here on nothing is part of the tick any more.
        if last == Last::Yes {
            self.finish_gpu();
        }
        // Before the sample: its window is to hold all that is known by now.
        for event in self.gpu_events.drain(..) {
            emit(&event);
        }
        let sample = Event::Sample(std::mem::take(&mut self.sample));
        emit(&sample);
        if let Event::Sample(sample) = sample {
            self.sample = sample;
        }
        for id in self.ended.drain(..) {
            emit(&Event::Ended { id });
            self.admissions.ended(id);
            self.probe.forget(id);
        }
        self.place_cpus();
        let mut news = self.counters.judge(&self.readings, last);
        news.extend(self.probe.warnings());
        for message in news {
            emit(&Event::Warning { message });
        }
    }

    fn read(&mut self) {
        self.sample.mono_ns = self.probe.read(&mut self.sample.cpu, &mut self.ended);
        self.readings.clear();
        for meter in &mut self.meters {
            meter.read(&mut self.of_meter);
            self.readings.append(&mut self.of_meter);
        }
        let energy = &mut self.sample.energy;
        energy.clear();
        energy.extend(self.readings.iter().map(|reading| reading.as_ref().ok().copied()));
        // What is estimated has no counter.
        energy.resize(self.domains, None);
        self.sample.awake_ns = self.awake.tick(self.sample.mono_ns, self.probe.awake_ns());
    }

    /// A CPU that comes online has a package, and a sibling, from then on.
    fn place_cpus(&mut self) {
        let now = monotonic_ns();
        let wanted = !self.probe.unplaced_cpus().is_empty() || self.online.is_some();
        if !wanted || now < self.looked_ns + PLACE_AGAIN_NS {
            return;
        }
        self.looked_ns = now;
        if let Some(before) = &mut self.online {
            let online = topology::online(&self.sysfs);
            if online != *before {
                *before = online;
                let cpus = self.topology.package_of_cpu.len();
                self.probe.set_siblings(&topology::siblings(&self.sysfs, cpus));
            }
        }
        for cpu in self.probe.unplaced_cpus().to_vec() {
            if let Some(package) = self.topology.place(&self.sysfs, cpu) {
                self.probe.place(cpu, package);
            }
        }
    }

    /// Ends the GPU meter; what it had left to say lands in `gpu_events`.
    fn finish_gpu(&mut self) {
        if let Some(gpu) = self.gpu.take() {
            let end = gpu.finish(self.patience.keeping(AFTER_GPU).at_most(GPU_PATIENCE));
            self.nvml_us = end.nvml_us;
            self.gpu_events.extend(end.events);
        }
    }

    /// Cgroups of the followed hierarchy since the last call.
    pub(crate) fn cgroup_events(&mut self) -> CgroupChanges {
        let mut changes = CgroupChanges::default();
        for news in self.probe.cgroup_news() {
            match news.what {
                Fate::Made(path) => changes.made.push(Made { id: news.cgroup_id, path }),
                Fate::Removed => changes.removed.push(news.cgroup_id),
            }
        }
        let lost = self.probe.lost_events();
        changes.lost = lost != self.seen_lost_events;
        self.seen_lost_events = lost;
        changes
    }

    /// Bills new cgroups to nobody of their own, unless they have begun by now or are `undecided`. To
    /// be called whenever changes have been applied.
    pub(crate) fn settle_newcomers(&mut self, undecided: impl Fn(u64) -> bool) {
        self.probe.settle_newcomers(undecided);
    }

    /// Becomes readable when [`Collector::cgroup_events`] has something; but a tick may have come across
    /// it before.
    pub(crate) fn cgroup_events_fd(&self) -> anyhow::Result<OwnedFd> {
        self.probe.cgroup_events_fd().context("cannot wait for the probe's events")
    }

    /// Tells what is left to tell, and what all of it has cost.
    pub(crate) fn finish(&mut self, emit: &mut dyn FnMut(&Event)) -> Own {
        // Unless the last tick has been there.
        self.finish_gpu();
        for event in self.gpu_events.drain(..) {
            emit(&event);
        }
        if let Some(message) = self.admissions.warning() {
            emit(&Event::Warning { message });
        }
        let late = self.probe.begun_late();
        if late > 0 {
            let message = format!(
                "{late} cgroups were made faster than the probe could follow: what they ran before \
                 they were noticed is not billed to them"
            );
            emit(&Event::Warning { message });
        }
        Own {
            collect_us: quantiles_us(&self.collect_ns),
            nvml_us: self.nvml_us,
            probe: self.probe.stats(),
            ..host::own::so_far()
        }
    }
}

/// What a run needs the probe to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Needs {
    max_workloads: u32,
    newcomers: Newcomers,
    exits: bool,
}

impl Needs {
    /// The most that a run needs where no option is given.
    pub(crate) const USUAL: Self =
        Self { max_workloads: USUAL_WORKLOADS, newcomers: Newcomers::Welcome, exits: true };
}

/// What the probe is loaded with.
pub(crate) fn load_options<'a>(
    btf: &'a Path,
    sysfs: &Path,
    hierarchy: &'a Hierarchy,
    topology: &Topology,
    needs: Needs,
) -> Result<LoadOptions<'a>, Error> {
    let hierarchy_id = hierarchy
        .id(Path::new("/proc"))
        .ok_or_else(|| Error::Cannot(format!("/proc/self/cgroup does not mention {hierarchy}")))?;
    Ok(LoadOptions {
        btf,
        package_of_cpu: topology.package_of_cpu.clone(),
        packages: topology.packages.len(),
        sibling_of_cpu: topology::siblings(sysfs, topology.package_of_cpu.len()),
        v1_controller: hierarchy.v1_controller(),
        hierarchy_id,
        max_workloads: needs.max_workloads,
        newcomers: needs.newcomers == Newcomers::Welcome,
        exits: needs.exits,
        hook: None,
    })
}

/// Has everybody who reads follow a change. `false`: there is no room for it.
fn select(probe: &mut Probe, watched: &Watched, change: &Change) -> Result<bool, Error> {
    match change {
        Change::Began(workload) | Change::Moved { workload } => {
            if !probe.begin(workload.id, workload.cgroup_id)? {
                return Ok(false);
            }
        }
        // It has the cgroup that it had, or has none here because there was no room for it.
        Change::Renamed(_) => {}
        Change::Gone { cgroup_id, .. } => probe.end(*cgroup_id),
    }
    watched.apply(change);
    Ok(true)
}

/// A package whose energy is worked out from its CPU time: it has no counter.
fn estimated((package, named): (usize, &Package)) -> Domain {
    Domain {
        name: named.name.clone(),
        component: Component::Cpu,
        package,
        joules_per_count: 1e-6,
        range: None,
        max_watts: 0.0,
    }
}

/// The GPU meter, if there is one to be had.
struct OpenedGpu {
    meter: Option<GpuMeter>,
    source: GpuEnergySource,
    warnings: Vec<String>,
}

fn open_gpu(
    options: &Options,
    hierarchy: &Hierarchy,
    watched: &Watched,
    exits: Option<Exits>,
) -> Result<OpenedGpu, Error> {
    if options.gpu_energy == GpuEnergyChoice::None {
        let source = GpuEnergySource::default();
        return Ok(OpenedGpu { meter: None, source, warnings: Vec::new() });
    }
    let wanted = GpuOptions {
        required: options.gpu_energy == GpuEnergyChoice::Nvml,
        library: options.nvml_lib.clone(),
        procfs: options.roots.procfs.clone(),
        interval: options.gpu_interval,
        process_interval: options.gpu_process_interval,
    };
    let owners = Owners::new(&options.roots.procfs, hierarchy, watched.clone());
    let (meter, source, warnings) = GpuMeter::start(wanted, Processes { owners, exits })?;
    let meter = (source.kind != GpuEnergyKind::None).then_some(meter);
    Ok(OpenedGpu { meter, source, warnings })
}

/// Whose a process is or was: the living by their cgroups, the others by what the probe noted.
struct Processes {
    owners: Owners,
    exits: Option<Exits>,
}

impl PidOwner for Processes {
    fn living(&self, pid: u32) -> Whose {
        match self.owners.living(pid) {
            Owner::Gone => Whose::Gone,
            Owner::User(user) => Whose::User(user),
            Owner::Unknown(why) => Whose::Unknown(why),
        }
    }

    fn exited(&self, pid: u32) -> Option<(User, u64)> {
        self.exits.as_ref()?.find(pid)
    }

    fn sees_host_pids(&self) -> bool {
        self.owners.sees_host_pids()
    }
}

/// Wall-clock time, RFC 3339.
fn now_to_the_millisecond() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Millisecond).unwrap_or(now).to_string()
}

fn quantiles_us(ns: &Histogram<u64>) -> Quantiles {
    let at = |quantile| (!ns.is_empty()).then(|| ns.value_at_quantile(quantile) as f64 / 1e3);
    Quantiles { p50: at(0.5), p99: at(0.99), max: at(1.0) }
}

fn host(roots: &Roots, topology: &Topology) -> Host {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    Host {
        name: name.unwrap_or_default(),
        kernel: host::kernel::release(&roots.procfs)
            .or_else(|| host::kernel::release(Path::new("/proc")))
            .unwrap_or_default(),
        cpus: online.and_then(|count| usize::try_from(count).ok()).unwrap_or(0),
        packages: topology.packages.len(),
    }
}
