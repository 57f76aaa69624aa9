//! Everything that reads a counter. I/O lives here; nothing here knows what a joule is billed to.

pub mod cpu_energy;
pub mod cpu_time;
pub mod estimate;
pub mod gpu;
pub mod rapl;

pub use cpu_energy::{CpuEnergy, open_cpu_energy};

use crate::sample::{Domain, Reading};

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

/// CLOCK_MONOTONIC, nanoseconds: the one clock of every reading.
pub fn monotonic_ns() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    // CLOCK_MONOTONIC exists on every Linux and never reads negative.
    now.map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
