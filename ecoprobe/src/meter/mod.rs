//! Everything that reads a counter. I/O lives here; nothing here knows what a joule is billed to.

pub mod choose;
pub mod estimate;
pub mod gpu;
pub mod rapl;

pub use choose::{CpuEnergy, open_cpu_energy};

use crate::event::{Domain, Reading};

/// A source of CPU-side energy counters. A new source is one new file and one line where sources
/// are chosen.
pub trait EnergyMeter: std::fmt::Debug {
    /// What `read` returns, in that order; never changes.
    fn domains(&self) -> &[Domain];

    /// Reads every domain once, into `readings` (cleared first). A counter that cannot be read is
    /// `None`, and `problems` gains one sentence that names it and the reason.
    ///
    /// `cpu_ns` is the CPU time just read, by package and slot, for sources that derive energy
    /// from utilisation; `mono_ns` is when.
    fn read(
        &mut self,
        mono_ns: u64,
        cpu_ns: &[Vec<u64>],
        readings: &mut Vec<Option<Reading>>,
        problems: &mut Vec<String>,
    );
}
