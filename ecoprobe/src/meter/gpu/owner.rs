//! Whose a process is: pid → cgroup → workload.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crate::event::SLOT_OTHER;
use crate::workload::hierarchy::Version;

/// Tells the GPU meter whose a process is. Asked from the poller's thread.
pub trait PidOwner: Send + 'static {
    /// The slot of the process that has this pid of the initial pid namespace now; `SLOT_OTHER` for
    /// a process of no workload, `None` if there is no such process.
    fn living(&self, pid: u32) -> Option<usize>;

    /// Who had this pid last and has exited, if that is known.
    fn exited(&self, _pid: u32) -> Option<Exit> {
        None
    }

    /// The slot of the process that had this pid at `at_ns` (CLOCK_MONOTONIC); `None` if that cannot
    /// be told any more.
    fn slot_of(&self, pid: u32, at_ns: u64) -> Option<usize> {
        // In this order: one that exits in between is in the second answer.
        History { present: self.living(pid), exited: self.exited(pid) }.slot_at(at_ns)
    }

    /// Whether the pids that the driver gives mean anything here.
    fn sees_host_pids(&self) -> bool {
        true
    }
}

impl<F: Fn(u32) -> Option<usize> + Send + 'static> PidOwner for F {
    fn living(&self, pid: u32) -> Option<usize> {
        self(pid)
    }
}

/// The slot of the process that had a pid last and has exited, and when that was, CLOCK_MONOTONIC in
/// nanoseconds.
pub type Exit = (usize, u64);

/// Who has had a pid of late.
#[derive(Debug, Clone, Copy)]
pub(super) struct History {
    pub(super) exited: Option<Exit>,
    /// The slot of who has it now, or was last seen to have it.
    pub(super) present: Option<usize>,
}

impl History {
    /// The slot of who had it at that instant.
    pub(super) fn slot_at(self, at_ns: u64) -> Option<usize> {
        match self.exited {
            // Whoever has the pid now came later, unless only a thread of it has exited: all the same.
            Some((slot, exit_ns)) if exit_ns >= at_ns => Some(slot),
            // A driver may speak of a process for a moment after its exit.
            exited => self.present.or(exited.map(|(slot, _)| slot)),
        }
    }
}

/// Paths (from the hierarchy's root, with a leading slash) and slots of the watched workloads.
/// Shared: workloads are added while the meter runs.
pub type Workloads = Arc<RwLock<Vec<(String, usize)>>>;

/// Maps pids through `/proc/PID/cgroup`, and those of processes that have exited, because the
/// driver's samples still speak of them, through what the probe noted then.
pub struct Owners<E> {
    procfs: PathBuf,
    hierarchy: Version,
    workloads: Workloads,
    exited: E,
}

impl<E> std::fmt::Debug for Owners<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Owners").field("procfs", &self.procfs).finish_non_exhaustive()
    }
}

impl<E: Fn(u32) -> Option<Exit>> Owners<E> {
    pub fn new(procfs: &Path, hierarchy: Version, workloads: Workloads, exited: E) -> Self {
        Self { procfs: procfs.to_owned(), hierarchy, workloads, exited }
    }

    /// The slot of the nearest workload at or above a path.
    fn nearest(&self, path: &str) -> usize {
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        let workloads = self.workloads.read().unwrap_or_else(PoisonError::into_inner);
        let above = workloads.iter().filter(|(root, _)| {
            let below = path.strip_prefix(root.trim_end_matches('/'));
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        above.max_by_key(|(root, _)| root.trim_end_matches('/').len()).map_or(SLOT_OTHER, |w| w.1)
    }
}

impl<E: Fn(u32) -> Option<Exit> + Send + 'static> PidOwner for Owners<E> {
    fn living(&self, pid: u32) -> Option<usize> {
        let directory = self.procfs.join(pid.to_string());
        // The start time before and after: else the cgroup might be that of the pid's next owner.
        let started = start_time(&directory)?;
        let cgroup = fs::read(directory.join("cgroup")).ok()?;
        if start_time(&directory) != Some(started) {
            return None;
        }
        let line = self.hierarchy.line_in(&cgroup);
        Some(line.map_or(SLOT_OTHER, |(_, path)| self.nearest(&path.to_string_lossy())))
    }

    fn exited(&self, pid: u32) -> Option<Exit> {
        (self.exited)(pid)
    }

    fn sees_host_pids(&self) -> bool {
        shows_host_pids(&self.procfs)
    }
}

/// The driver speaks of pids as the initial pid namespace has them. `/proc/1/ns/pid` tells which
/// namespace a procfs shows, whichever this process is in itself: an agent in a container may have
/// the host's procfs mounted elsewhere.
pub(super) fn shows_host_pids(procfs: &Path) -> bool {
    // PROC_PID_INIT_INO, include/linux/proc_ns.h
    const INITIAL: &str = "pid:[4026531836]";
    let shows = |pid: &str| fs::read_link(procfs.join(pid).join("ns/pid")).ok();
    // Only root may look at process 1; `self` is good enough where that is refused.
    shows("1").or_else(|| shows("self")).is_none_or(|link| link == Path::new(INITIAL))
}

/// Field 22 of `/proc/PID/stat`; the name before it may hold anything, a parenthesis included.
fn start_time(directory: &Path) -> Option<u64> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Tree(tempfile::TempDir);

    impl Tree {
        fn process(&self, pid: u32, started: u64, cgroup: &str) {
            let directory = self.0.path().join(pid.to_string());
            fs::create_dir_all(&directory).unwrap();
            let fields = "0 ".repeat(18);
            fs::write(directory.join("stat"), format!("{pid} (a) b) S {fields}{started} 0\n"))
                .unwrap();
            fs::write(directory.join("cgroup"), cgroup).unwrap();
        }

        fn owners(&self, hierarchy: Version, workloads: &[(&str, usize)]) -> impl PidOwner {
            self.owners_and_exited(hierarchy, workloads, None)
        }

        /// Of pid 10 it is known who had it and has exited.
        fn owners_and_exited(
            &self,
            hierarchy: Version,
            workloads: &[(&str, usize)],
            exit: Option<Exit>,
        ) -> impl PidOwner {
            let list = workloads.iter().map(|(path, slot)| ((*path).to_owned(), *slot)).collect();
            let exited = move |pid| exit.filter(|_| pid == 10);
            Owners::new(self.0.path(), hierarchy, Arc::new(RwLock::new(list)), exited)
        }
    }

    #[test]
    fn the_nearest_workload_above_owns_a_process() {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.process(10, 5, "1:cpuacct,cpu:/x\n0::/a/b/c\n");
        tree.process(11, 5, "0::/ab\n");
        let owners = tree.owners(Version::V2, &[("/a", 2), ("/a/b", 3)]);
        assert_eq!(owners.slot_of(10, 1), Some(3));
        assert_eq!(owners.slot_of(11, 1), Some(SLOT_OTHER));
        assert_eq!(owners.slot_of(12, 1), None);
        let owners = tree.owners(Version::V1 { controller: "cpuacct".into() }, &[("/x", 4)]);
        assert_eq!(owners.slot_of(10, 1), Some(4));
        let owners = tree.owners(Version::V2, &[("/", 2)]);
        assert_eq!(owners.slot_of(11, 1), Some(2));
    }

    #[test]
    fn who_had_a_pid_before_and_who_has_it_now_are_told_apart() {
        let tree = Tree(tempfile::tempdir().unwrap());
        let owners = || tree.owners_and_exited(Version::V2, &[("/a", 2)], Some((3, 1000)));
        // Nobody has it now: a sample that is late by a little still means who had it.
        assert_eq!([900, 1000, 1100].map(|at| owners().slot_of(10, at)), [Some(3); 3]);
        tree.process(10, 5, "0::/a\n");
        let found = [900, 1000, 1100].map(|at| owners().slot_of(10, at));
        assert_eq!(found, [Some(3), Some(3), Some(2)]);
    }

    #[test]
    fn nonsense_in_procfs_is_a_process_of_nobody() {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.process(10, 5, "what\n::\n0:\n");
        let owners = tree.owners(Version::V2, &[("/a", 2)]);
        assert_eq!(owners.slot_of(10, 1), Some(SLOT_OTHER));
        fs::write(tree.0.path().join("10/stat"), "10 (a").unwrap();
        assert_eq!(owners.slot_of(11, 1), None);
    }
}
