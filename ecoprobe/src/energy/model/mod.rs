//! Power models: how much a domain draws with nothing running, and how much each of those who run adds.
//! Each figure has a standard error. The formulas, where they come from and what was tried are in
//! `docs/model.md`.

mod arrears;
mod bank;
mod filter;
mod hypothesis;
pub(crate) mod line;
mod pool;
mod row;

pub(crate) use self::bank::Bank;

use super::attribute::Window;
use super::usage::Running;
use crate::base::{Component, Watts};

/// A figure and its standard error.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Figure {
    pub(crate) value: f64,
    pub(crate) stderr: f64,
}

/// One window, as the model sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observation<'a> {
    pub(crate) window: Window,
    pub(crate) running: Running<'a>,
}

/// What is known of a domain before anything was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Traits {
    /// CPUs whose time shares the domain's energy.
    pub(crate) cpus: Option<f64>,
    /// Paired time is measured, and how long the machine is awake.
    pub(crate) paired: bool,
    pub(crate) awake: bool,
    /// What is drawn asleep, as a part of what is drawn with all CPUs busy, and the standard deviation
    /// of that.
    pub(crate) ratio: (f64, f64),
    /// Standard deviation of the workloads' prices, relative to the common one; 0: all are alike.
    pub(crate) spread: f64,
    /// How often the counter is refreshed, seconds, and joules of one count.
    pub(crate) refresh: f64,
    pub(crate) resolution: f64,
}

/// Real workloads differ by 10 to 20 % (`docs/model.md`), some by 2:1: a bar has to hold for
/// these too.
const PRICE_SPREAD: f64 = 0.4;

impl Traits {
    /// Of a package or its memory, with this many CPUs.
    pub(crate) fn of(
        component: Component,
        cpus: Option<f64>,
        spread: Option<f64>,
        resolution: f64,
    ) -> Self {
        // Of packages: 0.22 is the median of whole servers (SPECpower since 2019), and single packages
        // are at 0.16 to 0.18 (`docs/model.md`). Memory is refreshed whether it is used or not.
        let ratio = if component == Component::Dram { (0.4, 0.2) } else { (0.22, 0.08) };
        let spread = spread.unwrap_or(PRICE_SPREAD);
        Self { cpus, paired: false, awake: false, ratio, spread, refresh: 1e-3, resolution }
    }
}

/// What is known of a domain's static power: what it draws with nothing running.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum StaticPower {
    /// It was known beforehand.
    Given(Watts),
    /// It was learned; `stderr` is its standard error.
    Calibrated {
        watts: Watts,
        stderr: Watts,
    },
    /// What was seen says little: it rests on what machines are like. `stderr` says how much.
    Assumed {
        watts: Watts,
        stderr: Watts,
    },
    Unknown(Unknown),
}

impl StaticPower {
    /// Where it is known well enough to be called that.
    pub(crate) fn watts(self) -> Option<Watts> {
        match self {
            Self::Given(watts) | Self::Calibrated { watts, .. } => Some(watts),
            Self::Assumed { .. } | Self::Unknown(_) => None,
        }
    }
}

/// Why a static power is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(clippy::enum_variant_names, reason = "it is the load that is unknown")]
pub(crate) enum Unknown {
    /// Too little has been seen so far.
    TooShort,
    /// How busy the domain was could not be had: a partitioned GPU does not say.
    LoadUnknown,
    /// The load did not vary enough for what the power's noise is.
    LoadTooEven,
    /// The line through what was seen has no possible power at no load. A GPU that is half busy
    /// with light kernels and then fully with heavy ones does this.
    NotALine,
}

/// How a workload's energy was told from that of others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    /// Next to nobody else ran.
    Alone,
    /// By its time, at the price that all have.
    Shared,
    /// At a price of its own.
    OwnPrice,
    /// Nothing was measured.
    Estimate,
}

/// What a model could not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    TooShort,
    NeverAsleep,
    /// Power does not follow the load: the package is at its limit.
    Capped,
    /// Power is not what the model makes of the load.
    Misfit,
}

/// A model's terms.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    /// Watts with nothing running, and watts more when any CPU wakes.
    pub(crate) asleep: Figure,
    pub(crate) awake: Figure,
    /// Joules of a CPU-second.
    pub(crate) price: Figure,
    /// What a CPU-second counts beside a busy thread of the same core. `None`: not measured.
    pub(crate) paired_weight: Option<Figure>,
    /// Mean absolute difference between what windows drew and what was predicted, relative.
    pub(crate) residual: f64,
    pub(crate) rows: u64,
    pub(crate) doubts: Vec<Doubt>,
}
