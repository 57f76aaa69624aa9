//! The tick: read every meter, then commit. A tick whose reading failed commits nothing, so the next
//! one covers its time too and no joule is billed by the wrong CPU time.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::Context as _;
use hdrhistogram::Histogram;

use crate::base::WorkloadId;
use crate::base::error::Error;
use crate::base::id::User;
use crate::base::monotonic_ns;
use crate::base::own::{Own, Quantiles};
use crate::cli::MeasureArgs;
use crate::command::settings::settings;
use crate::event::sources::{CpuTimeSource, GpuEnergyKind, GpuEnergySource, Host, Sources};
use crate::event::{CpuTimes, SLOT_FIRST, SLOT_IDLE, SLOT_OTHER};
use crate::event::{Event, Header, RECORDING_SCHEMA, Sample, Settings, Workload};
use crate::host::Roots;
use crate::host::{self, topology::Topology};
use crate::meter::gpu::GpuEnergyChoice;
use crate::meter::gpu::{GpuMeter, GpuOptions, Owners, Workloads};
use crate::meter::{EnergyMeter, open_cpu_energy};
use crate::probe::{Exits, LoadOptions, Probe};
use crate::recording::{Recorder, RecordingError};
use crate::session::Session;
use crate::view::report::Report;
use crate::workload::hierarchy::Hierarchy;

/// How many ticks in a row a counter may fail before the others go on without it.
const PATIENCE: u32 = 3;

/// How an energy counter answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Good,
    /// For so many ticks: nothing is committed meanwhile.
    Failing(u32),
    /// The others go on without it.
    Lost,
}

/// How long the GPU driver has for its last readings.
const GPU_PATIENCE: Duration = Duration::from_secs(3);

/// Slots where nothing else is asked for.
const USUAL_WORKLOADS: u32 = 4096;

/// Everything that is read, and the session that it is committed to.
#[derive(Debug)]
pub struct Collector {
    cpu_time: Probe,
    cpu_times: CpuTimes,
    ended: Vec<WorkloadId>,
    energy: Option<Box<dyn EnergyMeter>>,
    /// By domain.
    health: Vec<Health>,
    started: bool,
    session: Session,
    gpu: Option<GpuMeter>,
    /// Who is who, for the GPU meter's thread.
    owners: Workloads,
    nvml_us: Quantiles,
    /// `None` if nothing is to be recorded, or once it could not be.
    recorder: Option<Recorder>,
    recording_failed: bool,
    /// Buffers of the tick: it allocates nothing.
    sample: Sample,
    problems: Vec<String>,
    gpu_events: Vec<Event>,
    collect_ns: Histogram<u64>,
    refused_workloads: usize,
    seen_lost_events: u64,
    /// What standard error should hear, in order.
    notes: Vec<String>,
}

impl Collector {
    /// Opens every meter, attaches the probe and takes the first sample.
    pub fn open(
        args: &MeasureArgs,
        hierarchy: &Hierarchy,
        workloads: &[Workload],
    ) -> anyhow::Result<Self> {
        let roots = &args.roots.host();
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
            anyhow::Error::new(error).context(format!("cannot count the CPUs ({path})"))
        })?;
        let topology = Topology::read(&roots.sysfs, cpus);
        let energy = open_cpu_energy(args.cpu_energy, roots, &topology)?;
        let domains = energy.meter.as_ref().map_or(&[][..], |meter| meter.domains()).to_vec();

        let most = args.max_workloads.unwrap_or_else(|| {
            USUAL_WORKLOADS.max(u32::try_from(workloads.len() * 2).unwrap_or(u32::MAX))
        });
        let hierarchy_id = hierarchy.id(Path::new("/proc")).ok_or_else(|| {
            Error::Cannot(format!("/proc/self/cgroup does not mention {hierarchy}"))
        })?;
        let mut cpu_time = Probe::load(LoadOptions {
            btf: &btf_path(roots),
            package_of_cpu: topology.package_of_cpu.iter().copied().map(Some).collect(),
            packages: topology.packages.len(),
            v1_controller: hierarchy.v1_controller(),
            hierarchy_id,
            max_workloads: most,
            exits: args.gpu_energy != GpuEnergyChoice::None,
            hook: None,
        })?;

        // Before the GPU meter takes its first look at who is on a device.
        let owners = Workloads::default();
        let mut billed = Vec::with_capacity(workloads.len());
        for workload in workloads {
            if enrol(&mut cpu_time, &owners, workload)? {
                billed.push(workload);
            }
        }

        // After the probe: loading it keeps other threads from opening files for a moment.
        let gpu = open_gpu(args, hierarchy, &owners, cpu_time.take_exits())?;
        if gpu.meter.is_some() {
            cpu_time.watch_exits()?;
        }
        let settings = settings(&args.settings, Settings::default(), &domains, &gpu.source)?;
        cpu_time.attach()?;

        let header = Header {
            schema: RECORDING_SCHEMA.to_owned(),
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
        let mut recorder = args.record.as_deref().map(Recorder::create).transpose()?;
        if let Some(recorder) = &mut recorder {
            recorder.write(&Event::Header(Box::new(header.clone())))?;
        }
        let mut collector = Self {
            health: vec![Health::Good; header.domains.len()],
            started: false,
            session: Session::new(header),
            cpu_time,
            cpu_times: CpuTimes::default(),
            ended: Vec::new(),
            energy: energy.meter,
            gpu: gpu.meter,
            owners,
            nvml_us: Quantiles::default(),
            recorder,
            recording_failed: false,
            sample: Sample::default(),
            problems: Vec::new(),
            gpu_events: Vec::new(),
            // Up to a minute, to three digits.
            collect_ns: Histogram::new_with_max(60_000_000_000, 3)
                .context("cannot make a histogram")?,
            refused_workloads: workloads.len() - billed.len(),
            seen_lost_events: 0,
            notes: Vec::new(),
        };
        for note in energy.notes.into_iter().chain(gpu.warnings) {
            collector.warn(note);
        }
        for workload in billed {
            collector.announce(workload.clone());
        }
        collector.tick(Last::No);
        Ok(collector)
    }

    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Bills a cgroup from now on. Beyond the capacity its time stays in `other`, and the report
    /// says so.
    pub fn add(&mut self, workload: Workload) -> anyhow::Result<()> {
        if !enrol(&mut self.cpu_time, &self.owners, &workload)? {
            self.refused_workloads += 1;
            return Ok(());
        }
        self.announce(workload);
        Ok(())
    }

    fn announce(&mut self, workload: Workload) {
        let event = Event::Workload(workload);
        self.session.apply(&event);
        self.record(&event);
    }

    /// Something that the reader of the report should know; also for standard error. Said once,
    /// however often it is found.
    pub fn warn(&mut self, message: String) {
        if self.session.knows_warning(&message) {
            return;
        }
        self.notes.push(message.clone());
        let event = Event::Warning { message };
        self.session.apply(&event);
        self.record(&event);
    }

    /// What there is to say on standard error since the last call.
    pub fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Reads every meter and commits. `false`: a counter failed and nothing was committed; the next
    /// tick covers this one's time. The last tick waits until the GPUs' counters have moved past
    /// it, so that its window holds all that is left of their energy.
    pub fn tick(&mut self, last: Last) -> bool {
        let start = monotonic_ns();
        self.read();
        let read = monotonic_ns();
        match (&self.gpu, last) {
            (Some(_), Last::Yes) => self.finish_gpu(),
            // What the GPU meter's thread has published; the driver itself is never waited for.
            (Some(gpu), Last::No) => gpu.drain(&mut self.gpu_events),
            (None, _) => {}
        }
        let waited = if last == Last::Yes { monotonic_ns().saturating_sub(read) } else { 0 };
        // Before the sample: its window is to hold all that is known by now.
        for event in &self.gpu_events {
            self.session.apply(event);
        }
        let mut news = Vec::new();
        let commit = self.judge(last, &mut news);
        if commit {
            self.session.sample(&self.sample);
            self.started = true;
        }
        self.collect_ns.saturating_record(monotonic_ns().saturating_sub(start + waited));

        // From here on nothing is part of the tick any more.
        self.record_gpu_events();
        news.extend(self.cpu_time.warnings());
        for message in news {
            self.warn(message);
        }
        if commit && self.recorder.is_some() {
            self.record(&Event::Sample(self.sample.clone()));
        }
        commit
    }

    /// Ends the GPU meter; what it had left to say lands in `gpu_events`.
    fn finish_gpu(&mut self) {
        if let Some(gpu) = self.gpu.take() {
            let end = gpu.finish(GPU_PATIENCE);
            self.nvml_us = end.nvml_us;
            self.gpu_events.extend(end.events);
        }
    }

    /// The session has seen them already.
    fn record_gpu_events(&mut self) {
        let mut events = std::mem::take(&mut self.gpu_events);
        for event in events.drain(..) {
            if let Event::Warning { message } = &event {
                self.notes.push(message.clone());
            }
            self.record(&event);
        }
        self.gpu_events = events;
    }

    fn read(&mut self) {
        let sample = &mut self.sample;
        self.problems.clear();
        sample.mono_ns = self.cpu_time.read(&mut self.cpu_times, &mut self.ended);
        sample.cpu_ns.resize_with(self.cpu_times.packages.len(), Vec::new);
        for (row, times) in sample.cpu_ns.iter_mut().zip(&self.cpu_times.packages) {
            let most = times.workloads.last().map_or(0, |(id, _)| slot_of(*id) + 1);
            row.resize(row.len().max(most).max(SLOT_FIRST), 0);
            row[SLOT_OTHER] = times.other;
            row[SLOT_IDLE] = times.idle;
            for &(id, ns) in &times.workloads {
                row[slot_of(id)] = ns;
            }
        }
        if let Some(meter) = &mut self.energy {
            meter.read(sample.mono_ns, &sample.cpu_ns, &mut sample.energy, &mut self.problems);
        }
    }

    /// Whether the sample may be committed: every counter answered, or has been given up. A counter
    /// is given up when it has failed too often, and when there is nothing to wait for.
    fn judge(&mut self, last: Last, news: &mut Vec<String>) -> bool {
        let waiting = self.started && last == Last::No;
        let mut commit = true;
        for (index, health) in self.health.iter_mut().enumerate() {
            let name = &self.session.header().domains[index].name;
            if self.sample.energy.get(index).is_some_and(Option::is_some) {
                if *health == Health::Lost {
                    news.push(format!("{name}: the energy counter can be read again"));
                }
                *health = Health::Good;
                continue;
            }
            let failures = match *health {
                Health::Good => 1,
                Health::Failing(failures) => failures + 1,
                Health::Lost => continue,
            };
            if waiting && failures <= PATIENCE {
                *health = Health::Failing(failures);
                commit = false;
            } else {
                *health = Health::Lost;
                let why = self.problems.iter().find(|problem| problem.contains(name.as_str()));
                let why = why.or(self.problems.first()).map_or("no reason given", String::as_str);
                news.push(format!(
                    "{name}: the energy counter cannot be read: {why}; what was counted before \
                     stays in the report, what it counts from here on is missing"
                ));
            }
        }
        commit
    }

    /// Cgroups of the followed hierarchy since the last call: the ids made, the ids removed, and
    /// whether some events were lost.
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

    /// The report of everything up to the last tick, and the end of the recording.
    pub fn finish(&mut self) -> Report {
        // Unless the last tick has been there.
        self.finish_gpu();
        for event in &self.gpu_events {
            self.session.apply(event);
        }
        self.record_gpu_events();
        if self.refused_workloads > 0 {
            self.warn(format!(
                "{} workloads found no room and are part of `other`; raise --max-workloads",
                self.refused_workloads
            ));
        }
        if let Some(recorder) = self.recorder.take()
            && let Err(error) = recorder.finish()
        {
            self.give_up_recording(error);
        }
        self.session.report(self.own())
    }

    /// Whether a recording that was asked for is not, or not all, there.
    pub fn recording_failed(&self) -> bool {
        self.recording_failed
    }

    fn own(&self) -> Own {
        Own {
            collect_us: quantiles_us(&self.collect_ns),
            nvml_us: self.nvml_us,
            probe: self.cpu_time.stats(),
            ..host::own::so_far()
        }
    }

    fn record(&mut self, event: &Event) {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.write(event)
        {
            self.give_up_recording(error);
        }
    }

    /// Without it the run goes on: what is being measured cannot be measured again.
    fn give_up_recording(&mut self, error: RecordingError) {
        self.recorder = None;
        self.recording_failed = true;
        let error = anyhow::Error::from(error);
        self.warn(format!("{error:#}; the run goes on without it"));
    }
}

/// Has every meter bill a cgroup from now on; `false`: there is no room for it.
fn enrol(cpu_time: &mut Probe, owners: &Workloads, workload: &Workload) -> Result<bool, Error> {
    let mut owners = owners.write().unwrap_or_else(PoisonError::into_inner);
    let id = WorkloadId(owners.len() as u64);
    if !cpu_time.begin(id, workload.cgroup_id)? {
        return Ok(false);
    }
    owners.push((workload.cgroup.clone(), slot_of(id)));
    Ok(true)
}

fn slot_of(id: WorkloadId) -> usize {
    SLOT_FIRST + id.0 as usize
}

/// The GPU meter, if there is one to be had.
struct OpenedGpu {
    meter: Option<GpuMeter>,
    source: GpuEnergySource,
    warnings: Vec<String>,
}

fn open_gpu(
    args: &MeasureArgs,
    hierarchy: &Hierarchy,
    owners: &Workloads,
    exits: Option<Exits>,
) -> Result<OpenedGpu, Error> {
    if args.gpu_energy == GpuEnergyChoice::None {
        let source = GpuEnergySource::default();
        return Ok(OpenedGpu { meter: None, source, warnings: Vec::new() });
    }
    let options = GpuOptions {
        required: args.gpu_energy == GpuEnergyChoice::Nvml,
        library: args.nvml_lib.clone(),
        procfs: args.roots.procfs.clone(),
        interval: args.gpu_interval,
        process_interval: args.gpu_process_interval,
    };
    let exited = move |pid| {
        let (user, at) = exits.as_ref()?.find(pid)?;
        Some(match user {
            User::Workload(id) => (slot_of(id), at),
            User::Other => (SLOT_OTHER, at),
        })
    };
    let (procfs, version) = (&args.roots.procfs, hierarchy.version.clone());
    let owner = Owners::new(procfs, version, owners.clone(), exited);
    let (meter, source, warnings) = GpuMeter::start(options, owner)?;
    let meter = (source.kind != GpuEnergyKind::None).then_some(meter);
    Ok(OpenedGpu { meter, source, warnings })
}

/// Wall-clock time, RFC 3339.
fn now_to_the_millisecond() -> String {
    let now = jiff::Timestamp::now();
    now.round(jiff::Unit::Millisecond).unwrap_or(now).to_string()
}

/// Whether a tick is the last one of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Last {
    No,
    Yes,
}

/// What happened to cgroups.
#[derive(Debug, Default)]
pub struct CgroupChanges {
    pub made: Vec<u64>,
    pub removed: Vec<u64>,
    pub lost: bool,
}

fn quantiles_us(ns: &Histogram<u64>) -> Quantiles {
    let at = |quantile| (!ns.is_empty()).then(|| ns.value_at_quantile(quantile) as f64 / 1e3);
    Quantiles { p50: at(0.5), p99: at(0.99), max: at(1.0) }
}

/// The BTF of the running kernel is the same under every sysfs; a partial tree may lack it.
fn btf_path(roots: &Roots) -> PathBuf {
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
