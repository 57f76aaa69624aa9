//! What can be told: the events that the collector emits and that a recording holds. A live run and a
//! replay hand the same events to the same consumers, which is why they give the same report.
//!
//! Counters are kept as the integers the hardware gave, so that a recording loses nothing.

pub mod settings;
pub mod sources;
mod wrap;

pub use wrap::longest_interval;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use self::settings::Settings;
use self::sources::{CpuFacts, Host, Sources};
use crate::base::{Component, User, WorkloadId};

/// One line of a recording, in the order things happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event {
    /// Always first, once.
    Header(Box<Header>),
    /// A workload began; or, if its id is known already, its cgroup or its name is another now.
    Workload(Workload),
    /// Nothing more will come for this workload.
    Ended { id: WorkloadId },
    /// Every counter, read at one instant.
    Sample(Sample),
    /// What one GPU drew between two readings of the driver, and who used it.
    Gpu(GpuWindow),
    /// Something the reader of the report should know.
    Warning { message: String },
}

/// What does not change during a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Version of ecoprobe that wrote it.
    pub version: String,
    /// Wall-clock time of the first sample, RFC 3339. Everything else is monotonic.
    pub start: String,
    pub host: Host,
    /// The processor: what an estimate of its energy rests on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuFacts>,
    pub sources: Sources,
    /// Names of the packages ("package-0"), in the order of `CpuTimes::packages`.
    pub packages: Vec<String>,
    /// The energy counters, in the order of `Sample::energy`.
    pub domains: Vec<Domain>,
    pub settings: Settings,
}

/// One energy counter of the CPU side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Domain {
    /// "package-0", "dram-0".
    pub name: String,
    pub component: Component,
    /// Index into `Header::packages`: the CPUs whose time shares this energy.
    pub package: usize,
    /// Joules of one count.
    pub joules_per_count: f64,
    /// The counter's values are `0..range`, then it starts again; `None` for 64-bit counters.
    pub range: Option<u64>,
    /// More than this cannot be drawn by the hardware, watts.
    pub max_watts: f64,
}

/// A cgroup subtree that energy is billed to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    pub id: WorkloadId,
    /// What the user called it, or the match of the user's glob.
    pub name: String,
    /// Path from the hierarchy's root, with a leading slash.
    pub cgroup: String,
    pub cgroup_id: u64,
    pub kind: WorkloadKind,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadKind {
    Cgroup,
    Container,
    Pod,
    Slurm,
    Systemd,
    /// The command of `ecoprobe run`.
    Run,
    /// Many that ended long ago, together.
    Ended,
}

/// Every counter at one instant, cumulative.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// CLOCK_MONOTONIC when CPU time was read, nanoseconds.
    pub mono_ns: u64,
    /// A window of the run ends here. Counters are read as often as they need, so a window may hold
    /// many samples.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub ends_window: bool,
    pub cpu: CpuTimes,
    /// How long any CPU of the machine was awake since the probe was attached, nanoseconds; it never
    /// goes back. `None`: not known here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub awake_ns: Option<u64>,
    /// One for each of `Header::domains`; `None` while a counter cannot be read.
    pub energy: Vec<Option<Reading>>,
}

impl Sample {
    /// Makes this sample and a later one a single one. Counters are cumulative, so no CPU time is
    /// lost, and no joule unless a counter may have wrapped twice meanwhile. But the energy between the
    /// two is split as one, by the sum of CPU time: what single workloads are billed, and the static
    /// power that is learned, may come out differently.
    pub fn absorb(&mut self, later: &Self) {
        self.mono_ns = later.mono_ns;
        self.ends_window |= later.ends_window;
        let packages = later.cpu.packages.len().max(self.cpu.packages.len());
        self.cpu.packages.resize_with(packages, PackageTime::default);
        for (time, later) in self.cpu.packages.iter_mut().zip(&later.cpu.packages) {
            time.absorb(later);
        }
        self.cpu.unplaced.absorb(&later.cpu.unplaced);
        self.awake_ns = later.awake_ns.or(self.awake_ns);
        self.energy.resize(self.energy.len().max(later.energy.len()), None);
        for (reading, later) in self.energy.iter_mut().zip(&later.energy) {
            *reading = later.or(*reading);
        }
    }
}

fn yes() -> bool {
    true
}

fn is_yes(value: &bool) -> bool {
    *value
}

/// CPU time at one instant, cumulative, nanoseconds; it never goes back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuTimes {
    /// By package, in the order of `Header::packages`.
    pub packages: Vec<PackageTime>,
    /// Time on CPUs whose package is not known.
    #[serde(default, skip_serializing_if = "PackageTime::is_empty")]
    pub unplaced: PackageTime,
}

/// CPU time on one package since the probe was attached, nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PackageTime {
    /// Of the idle tasks.
    pub idle: u64,
    /// Of everybody who is no workload.
    pub other: u64,
    /// Of the workloads whose time has changed since the sample before, by id. What does not stand
    /// here is as it was.
    pub workloads: Vec<(WorkloadId, u64)>,
    /// More that a power model may ask for, by name. What is not here is not known on this machine.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub features: BTreeMap<Feature, Counts>,
}

/// The name of something that is counted for each workload beside its CPU time.
pub type Feature = Cow<'static, str>;

/// The part of the CPU time in which the other thread of the same core was busy, nanoseconds.
pub const PAIRED: Feature = Cow::Borrowed("paired");

/// A feature of everybody's running on one package, cumulative; it never goes back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts {
    /// Of everybody who is no workload.
    pub other: u64,
    /// Likewise as [`PackageTime::workloads`]: those whose count has changed.
    pub workloads: Vec<(WorkloadId, u64)>,
}

impl PackageTime {
    fn absorb(&mut self, later: &Self) {
        self.idle = later.idle;
        self.other = later.other;
        absorb(&mut self.workloads, &later.workloads);
        for (feature, later) in &later.features {
            let counts = self.features.entry(feature.clone()).or_default();
            counts.other = later.other;
            absorb(&mut counts.workloads, &later.workloads);
        }
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Of each workload the newest count.
fn absorb(counts: &mut Vec<(WorkloadId, u64)>, later: &[(WorkloadId, u64)]) {
    let mut newest: BTreeMap<_, _> = counts.drain(..).collect();
    newest.extend(later.iter().copied());
    counts.extend(newest);
}

/// So many readings of a counter in a row may fail: the next one has what was drawn meanwhile. Of a
/// counter that was away for longer, what it counted in the time is missing.
pub(crate) const BRIDGED: u32 = 3;

/// One counter and when it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub mono_ns: u64,
    pub count: u64,
}

/// What one GPU drew between two readings, and who used it meanwhile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuWindow {
    pub uuid: String,
    /// CLOCK_MONOTONIC of the two readings, nanoseconds.
    pub from_ns: u64,
    pub to_ns: u64,
    /// What the driver's energy counter advanced by, or the integral of power, millijoules.
    pub millijoules: f64,
    /// Share of the time the device was busy, 0 to 1; `None` where the driver does not say.
    pub busy: Option<f64>,
    /// How `usage` was found.
    pub method: GpuMethod,
    /// Who used it. Weights are relative: SM-seconds, bytes held or the like. Empty: nobody.
    pub usage: Vec<GpuUsage>,
    /// Usage could not be had (permission, pid namespace): energy has nobody to bill.
    #[serde(default)]
    pub unknown_users: bool,
    /// Weight, in the unit of `usage`, of processes that were gone before anybody could tell whose
    /// they were: their share of the energy goes to nobody, and to no one else either.
    #[serde(default)]
    pub lost_weight: f64,
    /// How far apart the instants are at which the energy is known, milliseconds: the counter's
    /// refresh or our polling, whichever is coarser. Nothing finer than this is real.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution_ms: Option<f64>,
    /// Mean of the instantaneous power readings, watts: a second opinion on `millijoules`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_power_w: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GpuUsage {
    #[serde(rename = "workload")]
    pub user: User,
    /// Relative share of the dynamic energy.
    pub weight: f64,
    /// Time that this workload kept the device busy, seconds; `None` if unknown.
    pub busy_seconds: Option<f64>,
    /// It holds memory on the device (idle energy may go to it).
    pub holds: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GpuMethod {
    /// One workload alone held the device.
    Sole,
    /// By SM utilisation.
    Utilisation,
    /// By memory held: utilisation could not be had.
    Memory,
    /// By slice size and utilisation of MIG instances: a model.
    Mig,
}
