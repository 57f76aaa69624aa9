//! Whose a process is: pid → cgroup → workload.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::sample::SLOT_OTHER;
use crate::workload::hierarchy::Version;

/// Tells the GPU meter whose a process is. Asked from the poller's thread.
pub trait PidOwner: Send + 'static {
    /// The slot of a pid of the initial pid namespace, looked up now; `SLOT_OTHER` for a process
    /// of no workload, `None` if the process is gone and was never seen.
    fn slot_of(&self, pid: u32) -> Option<usize>;

    /// Whether the pids that the driver gives mean anything here.
    fn sees_host_pids(&self) -> bool {
        true
    }
}

impl<F: Fn(u32) -> Option<usize> + Send + 'static> PidOwner for F {
    fn slot_of(&self, pid: u32) -> Option<usize> {
        self(pid)
    }
}

/// Paths (from the hierarchy's root, with a leading slash) and slots of the watched workloads.
/// Shared: workloads are added while the meter runs.
pub type Workloads = Arc<RwLock<Vec<(String, usize)>>>;

/// Maps pids through `/proc/PID/cgroup`. A process that has exited keeps the slot that it was last
/// seen in, because the driver's samples still speak of it then.
#[derive(Debug)]
pub struct Owners {
    procfs: PathBuf,
    hierarchy: Version,
    workloads: Workloads,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    by_pid: HashMap<u32, (usize, Age)>,
    now: Age,
}

/// Counts questions, for want of a better clock.
type Age = u64;

/// Exited processes are remembered up to about this many.
const MOST_SEEN: usize = 4096;

impl Owners {
    pub fn new(procfs: &Path, hierarchy: Version, workloads: Workloads) -> Self {
        Self { procfs: procfs.to_owned(), hierarchy, workloads, seen: Mutex::default() }
    }

    fn read(&self, pid: u32) -> Option<usize> {
        let directory = self.procfs.join(pid.to_string());
        // The start time before and after: else the cgroup might be that of the pid's next owner.
        let started = start_time(&directory)?;
        let cgroup = fs::read_to_string(directory.join("cgroup")).ok()?;
        if start_time(&directory) != Some(started) {
            return None;
        }
        let line = self.hierarchy.line_in(&cgroup);
        Some(line.map_or(SLOT_OTHER, |(_, path)| self.nearest(path)))
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

impl PidOwner for Owners {
    fn slot_of(&self, pid: u32) -> Option<usize> {
        let alive = self.read(pid);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.now += 1;
        let now = seen.now;
        if let Some(slot) = alive {
            seen.by_pid.insert(pid, (slot, now));
        }
        if seen.by_pid.len() > MOST_SEEN {
            let mut ages: Vec<Age> = seen.by_pid.values().map(|(_, age)| *age).collect();
            let (_, &mut middle, _) = ages.select_nth_unstable(MOST_SEEN / 2);
            seen.by_pid.retain(|_, (_, age)| *age >= middle);
        }
        seen.by_pid.get(&pid).map(|(slot, _)| *slot)
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

        fn owners(&self, hierarchy: Version, workloads: &[(&str, usize)]) -> Owners {
            let list = workloads.iter().map(|(path, slot)| ((*path).to_owned(), *slot)).collect();
            Owners::new(self.0.path(), hierarchy, Arc::new(RwLock::new(list)))
        }
    }

    #[test]
    fn the_nearest_workload_above_owns_a_process() {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.process(10, 5, "1:cpuacct,cpu:/x\n0::/a/b/c\n");
        tree.process(11, 5, "0::/ab\n");
        let owners = tree.owners(Version::V2, &[("/a", 2), ("/a/b", 3)]);
        assert_eq!(owners.slot_of(10), Some(3));
        assert_eq!(owners.slot_of(11), Some(SLOT_OTHER));
        let owners = tree.owners(Version::V1 { controller: "cpuacct".into() }, &[("/x", 4)]);
        assert_eq!(owners.slot_of(10), Some(4));
        let owners = tree.owners(Version::V2, &[("/", 2)]);
        assert_eq!(owners.slot_of(11), Some(2));
    }

    #[test]
    fn a_process_that_exited_keeps_its_owner() {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.process(10, 5, "0::/a\n");
        let owners = tree.owners(Version::V2, &[("/a", 2), ("/b", 3)]);
        assert_eq!(owners.slot_of(10), Some(2));
        fs::remove_dir_all(tree.0.path().join("10")).unwrap();
        assert_eq!(owners.slot_of(10), Some(2));
        assert_eq!(owners.slot_of(12), None);
        tree.process(10, 900, "0::/b\n");
        assert_eq!(owners.slot_of(10), Some(3));
    }

    #[test]
    fn memory_of_the_dead_is_bounded() {
        let tree = Tree(tempfile::tempdir().unwrap());
        let owners = tree.owners(Version::V2, &[]);
        let mut seen = owners.seen.lock().unwrap();
        for pid in 0..=MOST_SEEN as u32 {
            seen.by_pid.insert(pid, (2, u64::from(pid)));
        }
        drop(seen);
        owners.slot_of(1_000_000);
        assert!(owners.seen.lock().unwrap().by_pid.len() < MOST_SEEN);
    }

    #[test]
    fn nonsense_in_procfs_is_a_process_of_nobody() {
        let tree = Tree(tempfile::tempdir().unwrap());
        tree.process(10, 5, "what\n::\n0:\n");
        let owners = tree.owners(Version::V2, &[("/a", 2)]);
        assert_eq!(owners.slot_of(10), Some(SLOT_OTHER));
        fs::write(tree.0.path().join("10/stat"), "10 (a").unwrap();
        assert_eq!(owners.slot_of(11), None);
    }
}
