//! Names, cgroups, workloads: which cgroup a name means, what lives in it, and the cgroup that
//! `ecoprobe run` makes for its command.

mod closest;
mod glob;
mod handle;
mod hierarchies;
pub(crate) mod hierarchy;
mod metadata;
pub(crate) mod names;
pub(crate) mod owner;
mod place;
mod pods;
mod query;
pub(crate) mod scope;
mod selection;
mod shown;
mod tree;

pub use self::place::Place;
pub(crate) use crate::host::Roots;
