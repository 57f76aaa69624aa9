//! Names, cgroups, workloads: which cgroup a name means, what lives in it, and the cgroup that
//! `ecoprobe run` makes for its command.

mod closest;
mod glob;
mod handle;
mod hierarchies;
pub mod hierarchy;
mod metadata;
pub mod names;
pub mod owner;
mod place;
mod pods;
mod query;
pub mod scope;
mod selection;
mod shown;
mod tree;

pub use self::place::Place;
pub use crate::host::Roots;
