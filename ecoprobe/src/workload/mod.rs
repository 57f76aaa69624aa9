//! Names, cgroups, workloads: which cgroup a name means, what lives in it, and the cgroup that
//! `ecoprobe run` makes for its command.

mod closest;
mod glob;
mod handle;
pub mod hierarchy;
pub mod metadata;
pub mod names;
pub mod owner;
mod pods;
pub mod scope;
mod tree;

pub use crate::host::Roots;
