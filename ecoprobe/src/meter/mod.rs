//! Everything that reads a counter. I/O lives here; nothing here knows what a joule is billed to.

pub(crate) mod awake;
pub(crate) mod choose;
pub(crate) mod gpu;
mod perf_events;
pub(crate) mod rapl;

pub use choose::CpuEnergy;

use crate::event::{Domain, Reading};

/// A source of energy counters. A new source is one new file and one line where sources are chosen.
pub trait EnergyMeter: std::fmt::Debug {
    /// What `read` returns, in that order; never changes.
    fn domains(&self) -> &[Domain];

    /// Reads every domain once, into `readings` (cleared first), one entry a domain. Of a counter
    /// that cannot be read it is the reason, without the domain's name.
    fn read(&mut self, readings: &mut Vec<Result<Reading, String>>);
}
