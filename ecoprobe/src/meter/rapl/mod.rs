//! RAPL energy counters: the kernel shows the same registers as a perf PMU and as powercap zones.
//!
//! Domains overlap: core and uncore lie inside the package, psys outside of it, the memory-mapped
//! zones show packages that the MSR zones show already, and dies may share the counter of their
//! socket. Only package and DRAM are read, each counter once, so there is nothing to add up twice.

pub(crate) mod alive;
pub(crate) mod overlap;
pub(crate) mod perf;
pub(crate) mod powercap;

use std::path::PathBuf;

/// What no socket draws, watts. The hungriest server sockets are specified for 500 W (EPYC 9965, Xeon
/// 6980P) and limited to less than twice that for milliseconds; four times leaves room for the next
/// generations and still refuses a counter that jumped.
const MOST_PACKAGE_WATTS: f64 = 2_000.0;
/// What the memory of one socket does not draw, watts: 24 modules of 20 W, doubled.
const MOST_DRAM_WATTS: f64 = 1_000.0;

/// Why a source cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("there is none")]
    Absent,
    /// There, but not for us.
    #[error("{}: permission denied", .0.display())]
    Denied(PathBuf),
    /// There, but what it leads to is hidden.
    #[error("zones are there but lead nowhere ({})", .0.display())]
    Masked(PathBuf),
    /// There, but nothing moves: what a hypervisor shows that filters the registers.
    #[error("the counters stay at zero")]
    Empty,
    /// There, but it makes no sense: a sentence.
    #[error("{0}")]
    Broken(String),
}

/// "dram-0" of "package-0", "dram-0-die-1" of "package-0-die-1".
fn dram_name(package: &str) -> String {
    format!("dram-{}", package.strip_prefix("package-").unwrap_or(package))
}
