//! CPU time per cgroup, from the probe.
//!
//! `load` puts the probe into the kernel, `read` takes what it counted out of shared memory. A read
//! makes no system call.

mod load;
mod read;

pub use load::{CpuTime, Exits, Hook, LoadOptions, RunTime};
