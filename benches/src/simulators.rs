//! What the integration tests use too: cgroups and loads of our own, sysfs trees, power models.

#[path = "../../tests/sim/mod.rs"]
mod sim;

pub(crate) use sim::{Feed, Feeder, Machine, Power, Sysfs, cgroup, load, machine};
