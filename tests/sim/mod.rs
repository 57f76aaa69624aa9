//! Simulators that the integration tests share. Use them as `mod sim;`, then for instance
//!
//! ```ignore
//! let machine = sim::Machine::new(2).with("dram").range(262_143_328_850).build();
//! let feeder = sim::Feeder::start(Duration::from_millis(5), vec![sim::Feed {
//!     zone: machine.zone("package-0"),
//!     start_uj: 0,
//!     power: sim::Power::load(20.0, 15.0, Some(sim::CpuClock::new(root)), vec![job_a, job_b]),
//! }]);
//! // ... run `ecoprobe --sysfs` machine.path() ...
//! let truth = feeder.truth();      // joules since the start: static, dynamic, by job
//! ```

#![allow(dead_code, unreachable_pub, reason = "a module of several tests; none uses all of it")]
#![allow(clippy::unwrap_used, reason = "a simulator that cannot be set up is a failed test")]

pub mod cgroup;
pub mod cli;
mod feeder;
pub mod load;
pub mod machine;

#[allow(unused_imports, reason = "no test uses all of it")]
pub use feeder::{CpuClock, Feed, Feeder, Power, Truth};
#[allow(unused_imports, reason = "no test uses all of it")]
pub use machine::{Layout, Machine, Sysfs, Zone};
