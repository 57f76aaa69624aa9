//! Whose a process is: pid → cgroup → workload.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::hierarchy::Hierarchy;
use super::names::Change;
use super::place::{Place, without_mark};
use super::shown::shown_path;
use crate::base::WorkloadId;
use crate::base::id::User;
use crate::host;

/// Whose a process is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// There is no such process.
    Gone,
    User(User),
    /// It cannot be told, for a reason that the reader of the report should know.
    Unknown(String),
}

/// Which cgroups belong to which workload, for those that look from other threads.
#[derive(Debug, Clone, Default)]
pub struct Watched(Arc<RwLock<HashMap<u64, WorkloadId>>>);

impl Watched {
    pub fn insert(&self, cgroup_id: u64, id: WorkloadId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(cgroup_id, id);
    }

    pub fn remove(&self, cgroup_id: u64) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&cgroup_id);
    }

    pub fn apply(&self, change: &Change) {
        match change {
            Change::Began(workload) | Change::Moved { workload } => {
                self.insert(workload.cgroup_id, workload.id);
            }
            // The cgroup is the same.
            Change::Renamed(_) => {}
            Change::Gone { cgroup_id, .. } => self.remove(*cgroup_id),
        }
    }

    fn get(&self, cgroup_id: u64) -> Option<WorkloadId> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&cgroup_id).copied()
    }
}

/// Maps pids through `/proc/PID/cgroup`: to the id of the nearest watched cgroup, at or above the
/// process's own.
#[derive(Debug, Clone)]
pub struct Owners {
    procfs: PathBuf,
    hierarchy: Hierarchy,
    watched: Watched,
}

impl Owners {
    pub fn new(procfs: &Path, hierarchy: &Hierarchy, watched: Watched) -> Self {
        Self { procfs: procfs.to_owned(), hierarchy: hierarchy.clone(), watched }
    }

    /// Of the process that has this pid of the initial pid namespace now.
    pub fn living(&self, pid: u32) -> Owner {
        /// A process may be moved while it is looked at, not again and again.
        const ATTEMPTS: u32 = 4;
        let directory = self.procfs.join(pid.to_string());
        for _ in 0..ATTEMPTS {
            match self.look(&directory) {
                Ok(Some(owner)) => return owner,
                Ok(None) => {}
                // A process that ends has no files, or refuses to read them.
                Err(error) if error.kind() == ErrorKind::NotFound => return Owner::Gone,
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Owner::Gone,
                Err(error) => {
                    return Owner::Unknown(format!(
                        "who the processes in {} are cannot be read: {error}; run as root",
                        self.procfs.display()
                    ));
                }
            }
        }
        Owner::Unknown("a process was moved from cgroup to cgroup while it was looked at".into())
    }

    /// `None`: it was moved meanwhile, or the pid is another process's by now.
    fn look(&self, directory: &Path) -> io::Result<Option<Owner>> {
        let read = || -> io::Result<_> {
            Ok((start_time(directory)?, host::read(&directory.join("cgroup"))?))
        };
        let before = read()?;
        let owner = match self.hierarchy.version.line_in(&before.1) {
            Some((_, path)) => self.at(path),
            None => Owner::Unknown(format!(
                "{} does not mention {}",
                self.procfs.join("PID/cgroup").display(),
                self.hierarchy
            )),
        };
        Ok((read()? == before).then_some(owner))
    }

    /// Of a process in this cgroup, which the kernel wrote into its `/proc/PID/cgroup`.
    fn at(&self, cgroup: &Path) -> Owner {
        match self.hierarchy.place(cgroup) {
            // What the mount does not show cannot have been selected, nor lie in what was.
            Place::Outside => Owner::User(User::Other),
            Place::Unknown(why) => Owner::Unknown(why),
            Place::Below(path) => self.nearest(&path),
        }
    }

    /// The nearest watched cgroup at or above a path below the mount.
    fn nearest(&self, path: &Path) -> Owner {
        let mount = &self.hierarchy.mount;
        // Of a removed cgroup, the kernel marks the last component.
        let unmarked = without_mark(path).filter(|_| !mount.join(path).exists());
        for ancestor in unmarked.unwrap_or(path).ancestors() {
            match fs::metadata(mount.join(ancestor)) {
                Ok(metadata) => {
                    if let Some(id) = self.watched.get(metadata.ino()) {
                        return Owner::User(User::Workload(id));
                    }
                }
                // It was removed; what it was in may live.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    return Owner::Unknown(format!(
                        "the cgroup {} cannot be looked at: {error}",
                        shown_path(&mount.join(ancestor))
                    ));
                }
            }
        }
        Owner::User(User::Other)
    }

    /// Whether the pids that a GPU's driver gives mean anything here.
    pub fn sees_host_pids(&self) -> bool {
        shows_host_pids(&self.procfs)
    }
}

/// The driver speaks of pids as the initial pid namespace has them. `/proc/1/ns/pid` tells which
/// namespace a procfs shows, whichever this process is in itself: an agent in a container may have
/// the host's procfs mounted elsewhere.
pub(crate) fn shows_host_pids(procfs: &Path) -> bool {
    // PROC_PID_INIT_INO, include/linux/proc_ns.h
    const INITIAL: &str = "pid:[4026531836]";
    let shows = |pid: &str| fs::read_link(procfs.join(pid).join("ns/pid")).ok();
    // Only root may look at process 1; `self` is good enough where that is refused.
    shows("1").or_else(|| shows("self")).is_none_or(|link| link == Path::new(INITIAL))
}

/// Field 22 of `/proc/PID/stat`; the name before it may hold anything, a parenthesis included.
fn start_time(directory: &Path) -> io::Result<u64> {
    let stat = host::read(&directory.join("stat"))?;
    let after_name = stat.iter().rposition(|byte| *byte == b')').map(|at| &stat[at + 1..]);
    let fields = after_name.and_then(|fields| std::str::from_utf8(fields).ok());
    let started = fields.and_then(|fields| fields.split_whitespace().nth(19)?.parse().ok());
    started.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "its stat makes no sense"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;

    use super::*;
    use crate::workload::hierarchy::Hierarchies;

    /// A procfs and a cgroup mount, both of directories.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new(cgroups: &[&str]) -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            fs::create_dir_all(tree.mount()).unwrap();
            fs::write(tree.mount().join("cgroup.controllers"), "").unwrap();
            fs::create_dir_all(tree.procfs().join("self")).unwrap();
            for cgroup in cgroups {
                fs::create_dir_all(tree.mount().join(cgroup)).unwrap();
            }
            tree
        }

        fn mount(&self) -> PathBuf {
            self.0.path().join("cgroup")
        }

        fn procfs(&self) -> PathBuf {
            self.0.path().join("proc")
        }

        fn process(&self, pid: u32, started: u64, cgroup: &[u8]) {
            let directory = self.procfs().join(pid.to_string());
            fs::create_dir_all(&directory).unwrap();
            let fields = "0 ".repeat(18);
            fs::write(directory.join("stat"), format!("{pid} (a) b) S {fields}{started} 0\n"))
                .unwrap();
            fs::write(directory.join("cgroup"), cgroup).unwrap();
        }

        /// The mount shows this as seen from our cgroup namespace.
        fn hierarchy(&self, root: &str) -> Hierarchy {
            let table = format!(
                "9000001 1 0:1 {root} {} rw - cgroup2 x rw\n",
                fs::canonicalize(self.mount()).unwrap().display()
            );
            fs::write(self.procfs().join("self/mountinfo"), table).unwrap();
            let roots = crate::host::Roots { procfs: self.procfs(), ..Default::default() };
            Hierarchies::find(&roots).unwrap().get(0).clone()
        }

        fn owners(&self, root: &str, workloads: &[(&str, u64)]) -> Owners {
            let watched = Watched::default();
            for (path, id) in workloads {
                let cgroup = fs::metadata(self.mount().join(path)).unwrap().ino();
                watched.insert(cgroup, WorkloadId(*id));
            }
            Owners::new(&self.procfs(), &self.hierarchy(root), watched)
        }
    }

    fn workload(id: u64) -> Owner {
        Owner::User(User::Workload(WorkloadId(id)))
    }

    const OTHER: Owner = Owner::User(User::Other);

    #[test]
    fn the_nearest_workload_above_owns_a_process() {
        let tree = Tree::new(&["a/b/c", "ab"]);
        tree.process(10, 5, b"1:cpuacct,cpu:/x\n0::/a/b/c\n");
        tree.process(11, 5, b"0::/ab\n");
        tree.process(13, 5, b"0::/\n");
        let owners = tree.owners("/", &[("a", 2), ("a/b", 3)]);
        assert_eq!(owners.living(10), workload(3));
        assert_eq!(owners.living(11), OTHER);
        assert_eq!(owners.living(12), Owner::Gone);
        let owners = tree.owners("/", &[("", 2)]);
        assert_eq!([11, 13].map(|pid| owners.living(pid)), [workload(2), workload(2)]);
    }

    #[test]
    fn a_removed_cgroups_process_belongs_to_what_it_was_in() {
        let tree = Tree::new(&["a/b", "a/c (deleted)"]);
        let owners = tree.owners("/", &[("a", 2), ("a/b", 3), ("a/c (deleted)", 4)]);
        tree.process(10, 5, b"0::/a/x/y (deleted)\n");
        tree.process(11, 5, b"0::/a/c (deleted)\n");
        assert_eq!(owners.living(10), workload(2));
        assert_eq!(owners.living(11), workload(4), "a cgroup may be called so");
        // Under the same path there is another by now: who was in the old one is with the name.
        tree.process(12, 5, b"0::/a/b (deleted)\n");
        assert_eq!(owners.living(12), workload(3));
    }

    #[test]
    fn paths_are_relative_to_our_cgroup_namespace() {
        let tree = Tree::new(&["hunt/agent", "hunt/job/step", "else"]);
        tree.process(10, 5, b"0::/../job/step\n");
        tree.process(11, 5, b"0::/../../else\n");
        tree.process(12, 5, b"0::/../../../x\n");
        let own = |pid: u32| {
            fs::write(tree.mount().join("hunt/agent/cgroup.procs"), format!("{pid}\n")).unwrap();
            fs::write(tree.procfs().join("self/cgroup"), "0::/\n").unwrap();
            tree.owners("/../..", &[("hunt/job", 2), ("hunt", 1)])
        };
        let owners = own(std::process::id());
        assert_eq!([10, 11, 12].map(|pid| owners.living(pid)), [workload(2), OTHER, OTHER]);

        // Where nobody can say where the namespace lies, that is the answer: not `other`.
        let owners = own(1);
        assert!(matches!(owners.living(10), Owner::Unknown(why) if why.contains("namespace")));
        assert_eq!(owners.living(11), OTHER, "what is known stays known");
        // A mount that shows the namespace alone: what is beside it was not selected.
        assert_eq!(tree.owners("/", &[("hunt", 1)]).living(10), OTHER);
        // A part of the tree.
        let part = tree.owners("/../job", &[("", 1)]);
        tree.process(13, 5, b"0::/../job/hunt/job\n");
        assert_eq!([10, 13].map(|pid| part.living(pid)), [workload(1), workload(1)]);
    }

    #[test]
    fn names_that_are_no_text_are_names() {
        let tree = Tree::new(&[]);
        let name = |byte: u8| Path::new(std::ffi::OsStr::from_bytes(&[byte])).to_owned();
        for byte in [0xfe, 0xff] {
            fs::create_dir(tree.mount().join(name(byte))).unwrap();
        }
        tree.process(10, 5, b"0::/\xfe\n");
        tree.process(11, 5, b"0::/\xff\n");
        let watched = Watched::default();
        let cgroup = fs::metadata(tree.mount().join(name(0xff))).unwrap().ino();
        watched.insert(cgroup, WorkloadId(1));
        let owners = Owners::new(&tree.procfs(), &tree.hierarchy("/"), watched);
        assert_eq!([10, 11].map(|pid| owners.living(pid)), [OTHER, workload(1)]);
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let tree = Tree::new(&["a"]);
        let owners = tree.owners("/", &[("a", 2)]);
        for nonsense in [&b"what\n::\n0:\n"[..], b"", b"0::a\n", b"0::/a/../b\n"] {
            tree.process(10, 5, nonsense);
            assert!(matches!(owners.living(10), Owner::Unknown(_)), "{nonsense:?}");
        }
        fs::write(tree.procfs().join("10/stat"), "10 (a").unwrap();
        assert!(matches!(owners.living(10), Owner::Unknown(_)));
        assert_eq!(owners.living(11), Owner::Gone);
    }

    #[test]
    fn ids_are_what_changes_say() {
        let watched = Watched::default();
        // More than 32 bits.
        watched.insert(1 << 40 | 7, WorkloadId(3));
        assert_eq!((watched.get(1 << 40 | 7), watched.get(7)), (Some(WorkloadId(3)), None));
        watched.apply(&Change::Gone { id: WorkloadId(3), cgroup_id: 1 << 40 | 7 });
        assert_eq!(watched.get(1 << 40 | 7), None);
    }
}
