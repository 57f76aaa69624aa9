//! Names, cgroups, workloads: which cgroup a name means, what lives in it, and the cgroup that
//! `ecoprobe run` makes for its command.

mod closest;
mod glob;
mod handle;
pub mod hierarchy;
pub mod metadata;
pub mod names;
mod pods;
pub mod scope;
mod tree;

use std::path::{Path, PathBuf};

use crate::cli;

/// Where this module looks. All of them are arguments, so that a test tree is read by the same code
/// as the host's.
#[derive(Debug, Clone)]
pub struct Roots {
    pub procfs: PathBuf,
    /// Instead of the mount table: a cgroup2 mount, or a directory of mounts as `/sys/fs/cgroup` is
    /// on v1 and hybrid hosts.
    pub cgroupfs: Option<PathBuf>,
    /// Where the kubelet keeps `<namespace>_<pod>_<uid>/`: the one place on a node that joins a
    /// pod's name to its uid without asking the API server.
    pub pod_logs: PathBuf,
}

impl From<&cli::Roots> for Roots {
    fn from(roots: &cli::Roots) -> Self {
        // An agent in a container that was handed the host's procfs sees the host's files through
        // the root of the host's init.
        let host = if roots.procfs == Path::new("/proc") {
            PathBuf::from("/")
        } else {
            roots.procfs.join("1/root")
        };
        Self {
            procfs: roots.procfs.clone(),
            cgroupfs: roots.cgroupfs.clone(),
            pod_logs: host.join("var/log/pods"),
        }
    }
}
