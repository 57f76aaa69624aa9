//! Where the host's file systems are mounted. All of them are arguments, so that a test tree is read
//! by the same code as the host's.

use std::path::{Path, PathBuf};

#[derive(Debug, Clone)]
pub struct Roots {
    pub sysfs: PathBuf,
    pub procfs: PathBuf,
    /// Instead of the mount table: a cgroup2 mount, or a directory of mounts as `/sys/fs/cgroup` is
    /// on v1 and hybrid hosts.
    pub cgroupfs: Option<PathBuf>,
    /// The host's root, for `/run`, `/var/log` and `/var/lib`.
    pub hostfs: Option<PathBuf>,
}

impl Default for Roots {
    fn default() -> Self {
        Self { sysfs: "/sys".into(), procfs: "/proc".into(), cgroupfs: None, hostfs: None }
    }
}

impl Roots {
    /// A path of the host's root. An agent in a container that was handed the host's procfs sees the
    /// host's files through the root of the host's init.
    pub fn on_host(&self, path: &str) -> PathBuf {
        let path = path.trim_start_matches('/');
        match &self.hostfs {
            Some(root) => root.join(path),
            None if self.procfs == Path::new("/proc") => Path::new("/").join(path),
            None => self.procfs.join("1/root").join(path),
        }
    }

    /// Where the kubelet keeps `<namespace>_<pod>_<uid>/`: the one place on a node that joins a
    /// pod's name to its uid without asking the API server.
    pub fn pod_logs(&self) -> PathBuf {
        self.on_host("var/log/pods")
    }
}
