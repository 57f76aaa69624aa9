//! The cgroup that `ecoprobe run` makes for its command.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal;
use nix::unistd::Pid;

use super::Roots;
use super::hierarchy::{Hierarchies, Hierarchy};
use super::place::Place;
use super::shown::shown_path;
use super::tree::{self, Node};
use crate::base::WorkloadId;
use crate::base::error::Error;
use crate::event::{Workload, WorkloadKind};

/// Followed by the pid of the ecoprobe that made it.
const PREFIX: &str = "ecoprobe-run-";

/// A cgroup of our own, removed when dropped. Accounting of CPU time needs no controller, so none
/// is enabled.
#[derive(Debug)]
pub struct Scope {
    hierarchy: Hierarchy,
    directory: PathBuf,
    node: Node,
    /// Held for as long as we live, whatever pid namespace we live in: nobody cleans up what is
    /// locked. Ours by its inode; nothing is ever written there.
    _lock: Flock<File>,
}

impl Scope {
    /// Makes it below this process's own cgroup, so that the limits and the delegation that hold
    /// for us hold for the command; below the nearest ancestor where that cannot be, but not above
    /// the root of this process's cgroup namespace; in a v1 hierarchy for CPU time where there is no
    /// v2.
    pub fn create(roots: &Roots) -> Result<Self, Error> {
        let hierarchies = Hierarchies::find(roots)?;
        let mut refused: Option<Error> = None;
        for hierarchy in hierarchies.everywhere() {
            let own = match own_cgroup(hierarchy) {
                Ok(own) => own,
                Err(why) => {
                    refused.get_or_insert(why);
                    continue;
                }
            };
            // Up to the root of our cgroup namespace: above it is not the container's.
            let top = hierarchy.namespace().unwrap_or_default();
            for parent in own.ancestors().take_while(|parent| parent.starts_with(&top)) {
                match Self::create_in(hierarchy, parent) {
                    Ok(scope) => return Ok(scope),
                    // The nearest one's reason is the one to mend.
                    Err(error) => {
                        refused.get_or_insert_with(|| {
                            Error::Cannot(format!(
                                "cannot make a cgroup for the command in {}: {error}; {}",
                                shown_path(&hierarchy.mount.join(parent)),
                                remedy(&error)
                            ))
                        });
                    }
                }
            }
        }
        Err(refused.unwrap_or_else(|| Error::Cannot("no cgroup file system is mounted".into())))
    }

    fn create_in(hierarchy: &Hierarchy, parent: &Path) -> io::Result<Self> {
        let path = parent.join(format!("{PREFIX}{}", std::process::id()));
        let directory = hierarchy.mount.join(&path);
        match fs::create_dir(&directory) {
            // Left by one that had our pid before us.
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists && is_unlocked(&directory) =>
            {
                tree::remove(&directory)?;
                fs::create_dir(&directory)?;
            }
            result => result?,
        }
        let scope = Self::open(hierarchy, directory.clone(), path);
        if scope.is_err() {
            let _ = fs::remove_dir(&directory);
        }
        scope
    }

    fn open(hierarchy: &Hierarchy, directory: PathBuf, path: PathBuf) -> io::Result<Self> {
        let lock = Flock::lock(File::open(&directory)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno)?;
        let node = Node::at(&hierarchy.mount, path).ok_or(Errno::ENOENT)?;
        let scope = Self { hierarchy: hierarchy.clone(), directory, node, _lock: lock };
        // Below a threaded cgroup nothing but threads of its own processes may enter.
        let kind = fs::read_to_string(scope.directory.join("cgroup.type"));
        if kind.is_ok_and(|kind| kind.trim() != "domain") {
            return Err(Errno::EOPNOTSUPP.into());
        }
        scope.processes()?;
        Ok(scope)
    }

    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// The cgroup's directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cgroup as a workload that is called `name`.
    pub fn workload(&self, name: &str) -> Workload {
        Workload {
            // The only one of its run.
            id: WorkloadId(1),
            name: name.to_owned(),
            cgroup: self.hierarchy.cgroup(&self.node.path),
            cgroup_id: self.node.id,
            kind: WorkloadKind::Run,
            labels: Default::default(),
        }
    }

    /// `cgroup.procs`, open for writing: a process that writes "0" to it moves itself in.
    pub fn processes(&self) -> io::Result<File> {
        File::options().write(true).open(self.directory.join("cgroup.procs"))
    }

    /// Removes the cgroup with what the command made inside. If processes of the command still live
    /// there it stays, for a later start to clean up, and a sentence says so.
    pub fn close(self) -> Option<String> {
        let error = self.remove().err()?;
        let why = if tree::populated(&self.directory) {
            "processes that the command left behind still run in it".to_owned()
        } else {
            error.to_string()
        };
        Some(format!(
            "the cgroup {} stays: {why}; ecoprobe removes it when it next starts and finds it empty",
            shown_path(&self.directory)
        ))
    }

    /// A cgroup is busy for a moment after its last process was waited for.
    fn remove(&self) -> io::Result<()> {
        const ATTEMPTS: u32 = 20;
        const PAUSE: Duration = Duration::from_millis(5);
        let mut attempt = 1;
        loop {
            match tree::remove(&self.directory) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt < ATTEMPTS => {
                    attempt += 1;
                    thread::sleep(PAUSE);
                }
                result => return result,
            }
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        // After `close` there is nothing left to do, or it was said why.
        if self.directory.exists() && !tree::populated(&self.directory) {
            let _ = self.remove();
        }
    }
}

/// Where this process's own cgroup lies below the mount. Somewhere else its limits would not hold for
/// the command; where the user named the directory, that is what was asked for.
fn own_cgroup(hierarchy: &Hierarchy) -> Result<PathBuf, Error> {
    let why = match hierarchy.own_place() {
        Place::Below(path) => return Ok(path),
        Place::Outside | Place::Unknown(_) if hierarchy.is_given() => return Ok(PathBuf::new()),
        Place::Outside => format!("{hierarchy} does not show it"),
        Place::Unknown(why) => why,
    };
    Err(Error::Cannot(format!(
        "cannot make a cgroup for the command inside of ecoprobe's own: {why}; or name the directory \
         to make it in with --cgroupfs"
    )))
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EACCES | Errno::EPERM) => {
            "run as root, or in a cgroup that is delegated to you (systemd-run --user --scope -p \
             Delegate=yes)"
        }
        Some(Errno::EROFS) => {
            "it is mounted read-only; in a container, mount it writable (-v \
             /sys/fs/cgroup:/sys/fs/cgroup:rw)"
        }
        Some(Errno::EAGAIN | Errno::ENOSPC) => {
            "raise cgroup.max.descendants or cgroup.max.depth there, or remove cgroups"
        }
        _ => "start the command yourself and watch its cgroup with --cgroup",
    }
}

/// Removes what an ecoprobe that was killed left behind: cgroups called `ecoprobe-run-<pid>`
/// anywhere, with no process in them, whose pid is dead and that nobody has locked. Returns how
/// many.
pub fn clean_up_stale(hierarchies: &Hierarchies) -> usize {
    let mut removed = 0;
    for hierarchy in hierarchies.iter() {
        let mut ours = Vec::new();
        tree::walk(&hierarchy.mount, |path, _| {
            ours.extend(owner(path).map(|pid| (hierarchy.mount.join(path), pid)));
            true
        });
        // Inner ones first: a run may be nested in a run that still lives.
        for (directory, pid) in ours.into_iter().rev() {
            if is_stale(&directory, pid) && tree::remove(&directory).is_ok() {
                removed += 1;
            }
        }
    }
    removed
}

/// The pid that a cgroup of ours is named after.
fn owner(path: &Path) -> Option<Pid> {
    let pid = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.parse().ok()?;
    // Others would name groups of processes.
    (pid > 0).then(|| Pid::from_raw(pid))
}

fn is_stale(directory: &Path, owner: Pid) -> bool {
    let is_dead = signal::kill(owner, None) == Err(Errno::ESRCH);
    is_dead && !tree::populated(directory) && is_unlocked(directory)
}

/// Whether no living ecoprobe claims it. A pid alone does not tell: its owner may live in a pid
/// namespace where that pid means somebody else.
fn is_unlocked(directory: &Path) -> bool {
    File::open(directory)
        .is_ok_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_ours_have_an_owner() {
        assert_eq!(owner(Path::new("a/ecoprobe-run-17")), Some(Pid::from_raw(17)));
        for other in ["ecoprobe-run-", "ecoprobe-run-x", "ecoprobe-run--1", "ecoprobe-run-0", "a"] {
            assert_eq!(owner(Path::new(other)), None, "{other}");
        }
    }

    /// A directory that stands for a v2 mount; one without control files in its cgroups.
    fn fixture() -> (tempfile::TempDir, Roots) {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("cgroup.controllers"), "").unwrap();
        let roots = Roots {
            procfs: "/nonexistent".into(),
            cgroupfs: Some(top.path().into()),
            hostfs: Some("/nonexistent".into()),
            ..Roots::default()
        };
        (top, roots)
    }

    #[test]
    fn where_none_can_be_made_it_says_what_to_do() {
        let (_top, roots) = fixture();
        // The directories of the fixture have no cgroup.procs to enter by.
        let error = Scope::create(&roots).unwrap_err();
        assert!(matches!(&error, Error::Cannot(text) if text.contains("--cgroup")), "{error}");
        assert!(remedy(&Errno::EROFS.into()).contains("writable"));
        assert!(remedy(&Errno::EACCES.into()).contains("root"));
    }

    #[test]
    fn what_is_locked_alive_or_populated_stays() {
        let (top, roots) = fixture();
        let make = |name: &str| {
            let path = top.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        // Above every pid_max.
        let dead = make("a/ecoprobe-run-2000000001/inside/deeper");
        let locked = make("a/ecoprobe-run-2000000002");
        let alive = make(&format!("ecoprobe-run-{}", std::process::id()));
        let populated = make("ecoprobe-run-2000000003");
        fs::write(populated.join("cgroup.procs"), "1\n").unwrap();
        let lock = File::open(&locked).unwrap();
        let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();

        let hierarchies = Hierarchies::find(&roots).unwrap();
        assert_eq!(clean_up_stale(&hierarchies), 1);
        assert!(!dead.exists() && !top.path().join("a/ecoprobe-run-2000000001").exists());
        assert!(locked.exists() && alive.exists() && populated.exists());
        drop(lock);
        assert_eq!(clean_up_stale(&hierarchies), 1);
        assert!(!locked.exists());
    }
}
