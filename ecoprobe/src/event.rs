//! What was read, before anybody interprets it: the events that flow from the collector to the
//! session, and the lines of a recording. A live run and a replay feed the session the same events,
//! which is why they give the same report.
//!
//! Counters are kept as the integers the hardware gave, so that a recording loses nothing.

pub mod sources;

use serde::{Deserialize, Serialize};

use self::sources::{Host, Sources};
use crate::base::{Component, WorkloadId};

/// Version of the recording format; the first line of every recording carries it.
pub const RECORDING_SCHEMA: &str = "ecoprobe.recording/1";

/// Where CPU time goes that belongs to no selected workload: other cgroups, kernel threads.
pub const SLOT_OTHER: usize = ecoprobe_ebpf::SLOT_OTHER as usize;
/// Where the time of an idle CPU goes.
pub const SLOT_IDLE: usize = ecoprobe_ebpf::SLOT_IDLE as usize;
/// The slot of the first workload; workload `i` has slot `SLOT_FIRST + i`.
pub const SLOT_FIRST: usize = ecoprobe_ebpf::SLOT_FIRST as usize;

/// One line of a recording, in the order things happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Event {
    /// Always first, once.
    Header(Box<Header>),
    /// A workload was found. Its slot is `SLOT_FIRST` plus the number of workloads before it.
    Workload(Workload),
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
    pub schema: String,
    /// Version of ecoprobe that wrote it.
    pub version: String,
    /// Wall-clock time of the first sample, RFC 3339. Everything else is monotonic.
    pub start: String,
    pub host: Host,
    pub sources: Sources,
    /// Names of the packages ("package-0"), in the order of `Sample::cpu_ns`.
    pub packages: Vec<String>,
    /// The energy counters, in the order of `Sample::energy`.
    pub domains: Vec<Domain>,
    pub settings: Settings,
}

/// How the readings are to be interpreted; `replay` may override each.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Watts with nothing running, by domain name, where the user knows them.
    pub static_watts: std::collections::BTreeMap<String, f64>,
    pub idle: IdlePolicy,
    /// Idle energy of a GPU goes to whoever holds memory on it.
    pub gpu_idle_to_holders: bool,
    /// Grams of CO2e per kWh.
    pub carbon_intensity: Option<f64>,
    /// Power usage effectiveness: watts at the meter of the building per watt here; at least 1.
    pub pue: Option<f64>,
    /// Money per kWh, in whatever currency the user thinks in.
    pub price: Option<f64>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IdlePolicy {
    /// Idle energy is a line of its own.
    #[default]
    Separate,
    /// Idle energy is shared out by CPU time.
    Share,
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
    /// Counts up from 1. Recordings from before have none.
    #[serde(default = "no_id")]
    pub id: WorkloadId,
    /// What the user called it, or the match of the user's glob.
    pub name: String,
    /// Path from the hierarchy's root, with a leading slash.
    pub cgroup: String,
    pub cgroup_id: u64,
    pub kind: WorkloadKind,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
}

fn no_id() -> WorkloadId {
    WorkloadId(0)
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
}

/// Every counter at one instant, cumulative.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// CLOCK_MONOTONIC when CPU time was read, nanoseconds.
    pub mono_ns: u64,
    /// CPU time in nanoseconds since the probe was loaded: a row a package, a column a slot.
    /// A row may be shorter than the number of slots: what is absent is 0 so far.
    pub cpu_ns: Vec<Vec<u64>>,
    /// One for each of `Header::domains`; `None` while a counter cannot be read.
    pub energy: Vec<Option<Reading>>,
}

/// CPU time at one instant, cumulative, nanoseconds; it never goes back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuTimes {
    /// By package, in the order of `Header::packages`.
    pub packages: Vec<PackageTime>,
    /// Time on CPUs whose package is not known.
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
}

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
    /// Who used it, by slot (`SLOT_OTHER` for processes of no workload). Weights are relative:
    /// SM-seconds, bytes held or the like. Empty: nobody.
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
    pub slot: usize,
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
