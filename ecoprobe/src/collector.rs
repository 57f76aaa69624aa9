//! The tick: read every counter, then tell. What it tells are events; who listens is not its business.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;

use crate::base::own::{Own, Quantiles};
use crate::base::{Error, WorkloadId, monotonic_ns};
use crate::event::settings::{Settings, Wishes};
use crate::event::sources::{CpuTimeSource, GpuEnergyKind, GpuEnergySource, Host, Sources};
use crate::event::{Event, Header, PackageTime, Sample, Workload};
use crate::host::topology::Topology;
use crate::host::{self, Roots};
use crate::meter::choose::CpuEnergyChoice;
use crate::meter::gpu::{GpuEnergyChoice, GpuMeter, GpuOptions, Owners, Workloads};
use crate::meter::{EnergyMeter, open_cpu_energy};
use crate::probe::{CpuTime, Exits, LoadOptions};
use crate::workload::hierarchy::Hierarchy;

/// After how many readings in a row that failed it is said that a counter cannot be read.
const PATIENCE: u32 = 3;

/// How long the GPU driver has for its last readings.
const GPU_PATIENCE: Duration = Duration::from_secs(3);

/// How many workloads can be told apart at a time where nothing else is asked for.
const USUAL_WORKLOADS: u32 = 4096;

/// What to read, and where.
#[derive(Debug, Clone)]
pub struct Options {
    pub roots: Roots,
    pub cpu_energy: CpuEnergyChoice,
    pub gpu_energy: GpuEnergyChoice,
    /// The NVML library to load; `None`: the system's.
    pub nvml_lib: Option<std::path::PathBuf>,
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

/// What happened to cgroups of the followed hierarchy.
#[derive(Debug, Default)]
pub struct CgroupChanges {
    /// Ids, in the order of the events.
    pub made: Vec<u64>,
    pub removed: Vec<u64>,
    /// Some events did not fit into the probe's queue.
    pub lost: bool,
}

/// Everything that is read.
#[derive(Debug)]
pub struct Collector {
    cpu_time: CpuTime,
    meters: Vec<Box<dyn EnergyMeter>>,
    /// Of the energy counters, in the order of the header's domains.
    names: Vec<String>,
    /// How often in a row each has failed.
    failures: Vec<u32>,
    gpu: Option<GpuMeter>,
    /// Who is who, for the GPU meter's thread.
    owners: Workloads,
    nvml_us: Quantiles,
    /// Buffers of the tick.
    sample: Sample,
    rows: Vec<Vec<u64>>,
    problems: Vec<String>,
    gpu_events: Vec<Event>,
    /// What was found while opening.
    warnings: Vec<String>,
    collect_ns: Histogram<u64>,
    longest_interval: Option<Duration>,
    refused_workloads: usize,
    seen_lost_events: u64,
}

impl Collector {
    /// Opens every meter and attaches the probe. Nothing is told before [`Collector::begin`].
    pub fn open(
        options: &Options,
        hierarchy: &Hierarchy,
        most: usize,
    ) -> anyhow::Result<(Self, Header)> {
        let roots = &options.roots;
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
            anyhow::Error::new(error).context(format!("cannot count the CPUs ({path})"))
        })?;
        let topology = Topology::read(&roots.sysfs, cpus);
        let energy = open_cpu_energy(options.cpu_energy, roots, &topology)?;
        let meters: Vec<_> = energy.meter.into_iter().collect();
        let domains: Vec<_> = meters.iter().flat_map(|meter| meter.domains()).cloned().collect();

        let most = options
            .max_workloads
            .unwrap_or_else(|| USUAL_WORKLOADS.max(u32::try_from(most * 2).unwrap_or(u32::MAX)));
        let hierarchy_id = hierarchy.id(Path::new("/proc")).ok_or_else(|| {
            Error::Cannot(format!("/proc/self/cgroup does not mention {hierarchy}"))
        })?;
        let mut cpu_time = CpuTime::load(LoadOptions {
            btf: &btf_path(roots),
            package_of_cpu: topology.package_of_cpu.clone(),
            packages: topology.packages.len(),
            v1_controller: hierarchy.v1_controller(),
            hierarchy_id,
            max_workloads: most,
            exits: options.gpu_energy != GpuEnergyChoice::None,
            hook: None,
        })?;
        let owners = Workloads::default();
        // After the probe: loading it keeps other threads from opening files for a moment.
        let gpu = open_gpu(options, hierarchy, &owners, cpu_time.take_exits())?;
        if gpu.meter.is_some() {
            cpu_time.watch_exits()?;
        }
        let settings = options.wishes.apply(Settings::default(), &domains, &gpu.source)?;
        cpu_time.attach()?;

        let header = Header {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start: now_to_the_millisecond(),
            host: host(roots, &topology),
            sources: Sources {
                cpu_time: CpuTimeSource::ebpf(cpu_time.hook().name(), hierarchy.kind()),
                cpu_energy: energy.source,
                gpu_energy: gpu.source,
                static_power: energy.static_power,
            },
            packages: topology.packages.iter().map(|package| package.name.clone()).collect(),
            domains,
            settings,
        };
        let collector = Self {
            names: header.domains.iter().map(|domain| domain.name.clone()).collect(),
            failures: vec![0; header.domains.len()],
            cpu_time,
            meters,
            gpu: gpu.meter,
            owners,
            nvml_us: Quantiles::default(),
            sample: Sample::default(),
            rows: Vec::new(),
            problems: Vec::new(),
            gpu_events: Vec::new(),
            warnings: energy.notes.into_iter().chain(gpu.warnings).collect(),
            // Up to a minute, to three digits.
            collect_ns: Histogram::new_with_max(60_000_000_000, 3)
                .context("cannot make a histogram")?,
            longest_interval: longest_interval(&header.domains),
            refused_workloads: 0,
            seen_lost_events: 0,
        };
        Ok((collector, header))
    }

    /// How far apart readings may be, so that no counter wraps unseen; `None`: as far as you like.
    pub fn longest_interval(&self) -> Option<Duration> {
        self.longest_interval
    }

    /// Tells what was found while opening.
    pub fn begin(&mut self, emit: &mut dyn FnMut(&Event)) {
        for message in std::mem::take(&mut self.warnings) {
            emit(&Event::Warning { message });
        }
    }

    /// Bills a cgroup to a workload from now on. Beyond the capacity its time stays in `other`, and
    /// the report says so.
    pub fn add(&mut self, workload: &Workload, emit: &mut dyn FnMut(&Event)) -> anyhow::Result<()> {
        let Some(slot) = self.cpu_time.add_workload(workload.cgroup_id)? else {
            self.refused_workloads += 1;
            return Ok(());
        };
        let mut owners = self.owners.write().unwrap_or_else(PoisonError::into_inner);
        owners.push((workload.cgroup.clone(), slot));
        drop(owners);
        emit(&Event::Workload(workload.clone()));
        Ok(())
    }

    /// Reads every counter and tells. The last tick waits until the GPUs' counters have moved past it,
    /// so that its window holds all that is left of their energy.
    pub fn tick(&mut self, last: Last, ends_window: bool, emit: &mut dyn FnMut(&Event)) {
        let start = monotonic_ns();
        self.read();
        self.sample.ends_window = ends_window;
        match (&self.gpu, last) {
            (Some(_), Last::Yes) => {}
            // What the GPU meter's thread has published; the driver itself is never waited for.
            (Some(gpu), Last::No) => gpu.drain(&mut self.gpu_events),
            (None, _) => {}
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
        for message in self.judge(last) {
            emit(&Event::Warning { message });
        }
        for message in self.cpu_time.warnings() {
            emit(&Event::Warning { message });
        }
    }

    fn read(&mut self) {
        let sample = &mut self.sample;
        self.problems.clear();
        sample.mono_ns = self.cpu_time.read(&mut self.rows);
        sample.cpu.packages.resize_with(self.rows.len(), PackageTime::default);
        for (row, time) in self.rows.iter().zip(&mut sample.cpu.packages) {
            time.other = row[0];
            time.idle = row[1];
            time.workloads.clear();
            let workloads = row[2..].iter().zip(1..).filter(|(ns, _)| **ns > 0);
            time.workloads.extend(workloads.map(|(ns, id)| (WorkloadId(id), *ns)));
        }
        for meter in &mut self.meters {
            meter.read(sample.mono_ns, &self.rows, &mut sample.energy, &mut self.problems);
        }
    }

    /// Ends the GPU meter; what it had left to say lands in `gpu_events`.
    fn finish_gpu(&mut self) {
        if let Some(gpu) = self.gpu.take() {
            let end = gpu.finish(GPU_PATIENCE);
            self.nvml_us = end.nvml_us;
            self.gpu_events.extend(end.events);
        }
    }

    /// What there is to say about counters that cannot be read, or can again.
    fn judge(&mut self, last: Last) -> Vec<String> {
        let mut news = Vec::new();
        for (index, failures) in self.failures.iter_mut().enumerate() {
            let name = &self.names[index];
            if self.sample.energy.get(index).is_some_and(Option::is_some) {
                if *failures >= PATIENCE {
                    news.push(format!("{name}: the energy counter can be read again"));
                }
                *failures = 0;
                continue;
            }
            let before = *failures;
            *failures = failures.saturating_add(1);
            if before >= PATIENCE || (*failures < PATIENCE && last == Last::No) {
                continue;
            }
            *failures = (*failures).max(PATIENCE);
            let why = self.problems.iter().find(|problem| problem.contains(name.as_str()));
            let why = why.or(self.problems.first()).map_or("no reason given", String::as_str);
            news.push(format!(
                "{name}: the energy counter cannot be read: {why}; what was counted before stays in \
                 the report, what it counts from here on is missing"
            ));
        }
        news
    }

    /// Cgroups of the followed hierarchy since the last call.
    pub fn cgroup_events(&mut self) -> CgroupChanges {
        let mut changes = CgroupChanges::default();
        self.cpu_time.cgroup_events(|event| {
            let ids = if event.made != 0 { &mut changes.made } else { &mut changes.removed };
            ids.push(event.cgroup_id);
        });
        let lost = self.cpu_time.lost_events();
        changes.lost = lost != self.seen_lost_events;
        self.seen_lost_events = lost;
        changes
    }

    /// Becomes readable when [`Collector::cgroup_events`] has news.
    pub fn cgroup_events_fd(&self) -> anyhow::Result<OwnedFd> {
        self.cpu_time.cgroup_events_fd().context("cannot wait for the probe's events")
    }

    /// Tells what is left to tell, and what all of it has cost.
    pub fn finish(&mut self, emit: &mut dyn FnMut(&Event)) -> Own {
        // Unless the last tick has been there.
        self.finish_gpu();
        for event in self.gpu_events.drain(..) {
            emit(&event);
        }
        if self.refused_workloads > 0 {
            let message = format!(
                "{} workloads found no room and are part of `other`; raise --max-workloads",
                self.refused_workloads
            );
            emit(&Event::Warning { message });
        }
        Own {
            collect_us: quantiles_us(&self.collect_ns),
            nvml_us: self.nvml_us,
            probe: self.cpu_time.stats(),
            ..host::own::so_far()
        }
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
    owners: &Workloads,
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
    let exited = move |pid| exits.as_ref()?.find(pid);
    let (procfs, version) = (&options.roots.procfs, hierarchy.version.clone());
    let owner = Owners::new(procfs, version, owners.clone(), exited);
    let (meter, source, warnings) = GpuMeter::start(wanted, owner)?;
    let meter = (source.kind != GpuEnergyKind::None).then_some(meter);
    Ok(OpenedGpu { meter, source, warnings })
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

/// The BTF of the running kernel is the same under every sysfs; a partial tree may lack it.
fn btf_path(roots: &Roots) -> std::path::PathBuf {
    let given = host::kernel::btf_path(&roots.sysfs);
    if given.exists() { given } else { host::kernel::btf_path(Path::new("/sys")) }
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

/// A third of the time in which the fastest counter can wrap.
fn longest_interval(domains: &[crate::event::Domain]) -> Option<Duration> {
    let wraps = domains.iter().filter_map(|domain| {
        let joules = domain.range? as f64 * domain.joules_per_count;
        Some(joules / domain.max_watts).filter(|seconds| seconds.is_finite() && *seconds > 0.0)
    });
    let shortest = wraps.reduce(f64::min)?;
    Duration::try_from_secs_f64(shortest / 3.0).ok()
}
