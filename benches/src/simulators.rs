//! What the integration tests use too: cgroups and loads of our own, sysfs trees, power models.

#[path = "../../tests/sim/mod.rs"]
mod sim;

#[path = "../../tests/sim/cgroup.rs"]
pub(crate) mod cgroup;
#[path = "../../tests/sim/load.rs"]
pub(crate) mod load;

pub(crate) use sim::{Feed, Feeder, Machine, Power, Sysfs};
