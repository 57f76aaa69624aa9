//! RAPL energy counters.

pub mod perf;
pub mod powercap;
