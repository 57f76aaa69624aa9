//! One cgroup hierarchy: its version, where it is mounted, and where in it a process is.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

pub use super::hierarchies::Hierarchies;
use super::place::{self, Place, Seen};
use super::shown::shown_path;
use super::tree;
use crate::host;

/// The inode number, and so the cgroup id, of the root of every hierarchy.
const ROOT_ID: u64 = 1;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    V2,
    /// By the controller that finds a task's cgroup in the kernel: cpuacct or cpu if this hierarchy
    /// has them, as v1 names it (`blkio` is `io` in the kernel's types).
    V1 {
        controller: String,
    },
}

impl Version {
    /// Id and path of this hierarchy in what a `/proc/PID/cgroup` holds, whose lines are
    /// `ID:CONTROLLERS:PATH`; v2's is `0::PATH`. The path is as seen from this process's cgroup
    /// namespace.
    pub fn line_in<'a>(&self, text: &'a [u8]) -> Option<(&'a str, &'a Path)> {
        text.split(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let id = std::str::from_utf8(fields.next()?).ok()?;
            let controllers = std::str::from_utf8(fields.next()?).ok()?;
            let path = Path::new(OsStr::from_bytes(fields.next()?));
            let is_own = match self {
                Self::V2 => controllers.is_empty(),
                Self::V1 { controller } => controllers.split(',').any(|one| one == controller),
            };
            is_own.then_some((id, path))
        })
    }
}

/// What is mounted on this host, all hierarchies together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    V2,
    V1,
    Hybrid,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    pub mount: PathBuf,
    pub layout: Layout,
    /// Which cgroup the mount point shows: the namespace's root almost always, something below it
    /// inside containers that were given a part of the tree, something above where a mount of the
    /// host's shows more than the namespace.
    root: Seen,
    /// Named by the user, who may mean a directory that does not hold this process.
    given: bool,
    procfs: PathBuf,
    /// Where the root of this process's cgroup namespace lies below the mount, once it was needed.
    namespace: OnceLock<Result<PathBuf, String>>,
}

impl Hierarchy {
    pub(super) fn new(version: Version, mount: PathBuf, root: Seen, procfs: &Path) -> Self {
        let layout = if version == Version::V2 { Layout::V2 } else { Layout::V1 };
        let (procfs, namespace) = (procfs.to_owned(), OnceLock::new());
        Self { version, mount, layout, root, given: false, procfs, namespace }
    }

    pub(super) fn given(self) -> Self {
        Self { given: true, ..self }
    }

    pub(super) fn is_given(&self) -> bool {
        self.given
    }

    /// "v2", "v1" or "hybrid": what is mounted on this host, for the report.
    pub fn kind(&self) -> &'static str {
        match self.layout {
            Layout::V2 => "v2",
            Layout::V1 => "v1",
            Layout::Hybrid => "hybrid",
        }
    }

    /// Whether the mount shows the whole hierarchy, and not a container's part of it.
    pub fn is_whole(&self) -> bool {
        fs::metadata(&self.mount).is_ok_and(|metadata| metadata.ino() == ROOT_ID)
    }

    /// The cgroup at `relative` below the mount, as a path from the hierarchy's root with a leading
    /// slash, as far up as this process can see. Bytes that are not UTF-8 are shown as `\xff`.
    pub fn cgroup(&self, relative: &Path) -> String {
        let mut path = PathBuf::from("/");
        if self.root.up == 0 {
            path.push(&self.root.down);
        }
        // To push nothing would end the path with a slash.
        if !relative.as_os_str().is_empty() {
            path.push(relative);
        }
        shown_path(&path).into_owned()
    }

    /// Where a cgroup lies below the mount, by its path from the hierarchy's root as people write it,
    /// whether or not it exists; `None` for one that the mount does not show.
    pub fn relative(&self, cgroup: &Path) -> Option<PathBuf> {
        let cgroup = clean(cgroup)?;
        if self.root.up > 0 {
            return Some(cgroup);
        }
        cgroup.strip_prefix(&self.root.down).map(Path::to_owned).ok()
    }

    /// Where a cgroup lies below the mount, by its path as the kernel wrote it into a
    /// `/proc/PID/cgroup` that this process has read.
    pub fn place(&self, cgroup: &Path) -> Place {
        match Seen::parse(cgroup) {
            Some(seen) => place::place(&seen, &self.root, || self.namespace()),
            None => Place::Unknown(format!("`{}` is no path of a cgroup", shown_path(cgroup))),
        }
    }

    /// Where a cgroup lies below the mount, by its path as people write it who see what this process
    /// sees; `None` where that is how the mount shows it anyhow.
    pub(super) fn in_namespace(&self, cgroup: &Path) -> Option<PathBuf> {
        let cgroup = clean(cgroup).filter(|_| self.root.up > 0)?;
        Some(self.namespace().ok()?.join(cgroup))
    }

    /// Where this process's own cgroup lies.
    pub fn own_place(&self) -> Place {
        match self.own_path() {
            Ok(path) => self.place(&path),
            Err(why) => Place::Unknown(why),
        }
    }

    fn own_path(&self) -> Result<PathBuf, String> {
        let file = self.procfs.join("self/cgroup");
        let text = host::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let line = self.version.line_in(&text);
        let path = line.map(|(_, path)| path.to_owned());
        path.ok_or_else(|| format!("{} does not mention {self}", file.display()))
    }

    /// Where the root of this process's cgroup namespace lies below the mount.
    pub(super) fn namespace(&self) -> Result<PathBuf, String> {
        self.namespace.get_or_init(|| self.find_namespace()).clone()
    }

    /// No file says so where the mount shows more than the namespace. But this process knows where it
    /// is in the namespace, and finds itself below the mount.
    fn find_namespace(&self) -> Result<PathBuf, String> {
        if self.root.up == 0 {
            return if self.root.down.as_os_str().is_empty() {
                Ok(PathBuf::new())
            } else {
                Err("the cgroup mount does not show the root of this cgroup namespace".into())
            };
        }
        let lost = || {
            format!(
                "cgroup paths of other processes cannot be read from inside of this cgroup \
                 namespace: {} does not show where it lies; run ecoprobe in the host's cgroup \
                 namespace (docker run --cgroupns=host)",
                shown_path(&self.mount)
            )
        };
        let own = self.own_path()?;
        let own = Seen::parse(&own).filter(|own| own.up == 0 && self.root.down == Path::new(""));
        let below = own.ok_or_else(lost)?.down;
        let depth = self.root.up + below.components().count();
        let mut found = None;
        tree::walk(&self.mount, |path, _| {
            let deep = path.components().count();
            if found.is_none() && deep == depth && path.ends_with(&below) {
                let holds = tree::holds(&self.mount.join(path), std::process::id());
                found = holds.then(|| path.components().take(self.root.up).collect());
            }
            found.is_none() && deep < depth
        });
        found.ok_or_else(lost)
    }

    /// The kernel's number of this hierarchy; 0 for v2.
    pub fn id(&self, procfs: &Path) -> Option<u32> {
        let text = host::read(&procfs.join("self/cgroup")).ok()?;
        self.version.line_in(&text)?.0.parse().ok()
    }

    /// The controller to follow where this is a v1 hierarchy.
    pub fn v1_controller(&self) -> Option<&str> {
        match &self.version {
            Version::V2 => None,
            Version::V1 { controller } => Some(controller),
        }
    }

    /// Lower is preferred: v2, then the v1 controllers that exist for CPU time.
    pub(super) fn preference(&self) -> usize {
        match &self.version {
            Version::V2 => 0,
            Version::V1 { controller } if controller == "cpuacct" => 1,
            Version::V1 { controller } if controller == "cpu" => 2,
            Version::V1 { .. } => 3,
        }
    }

    /// How much of the hierarchy the mount leaves out: of several mounts the one that shows most
    /// serves best.
    pub(super) fn lacks(&self) -> impl Ord + use<> {
        let Seen { up, down } = &self.root;
        (!self.is_whole(), std::cmp::Reverse(*up), down.components().count())
    }
}

impl fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::V2 => write!(f, "cgroup v2 at {}", shown_path(&self.mount)),
            Version::V1 { controller } => {
                write!(f, "cgroup v1 ({controller}) at {}", shown_path(&self.mount))
            }
        }
    }
}

/// The path without slashes at its ends and empty components; `None` if it begins where a shell is
/// (`.`), or climbs.
pub(super) fn clean(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::RootDir => {}
            Component::CurDir | Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(root: &str, procfs: &Path) -> Hierarchy {
        let root = Seen::parse(Path::new(root)).unwrap();
        Hierarchy::new(Version::V2, "/m".into(), root, procfs)
    }

    #[test]
    fn a_part_of_the_tree_keeps_the_paths_of_the_whole() {
        let hierarchy = |root: &str| v2(root, Path::new("/nonexistent"));
        let relative = |hierarchy: &Hierarchy, path: &str| hierarchy.relative(Path::new(path));
        let part = hierarchy("/docker/1");
        assert_eq!(part.cgroup(Path::new("a/b")), "/docker/1/a/b");
        assert_eq!(part.cgroup(Path::new("")), "/docker/1");
        assert_eq!(relative(&part, "/docker/1/a"), Some("a".into()));
        assert_eq!(relative(&part, "/docker/12"), None);
        let whole = hierarchy("/");
        assert_eq!(whole.cgroup(Path::new("")), "/");
        assert_eq!(whole.cgroup(Path::new("a")), "/a");
        assert_eq!(relative(&whole, "//a/./b/"), Some("a/b".into()));
        assert_eq!(relative(&whole, "/a/../.."), None);
        // The host's tree inside of a container with a cgroup namespace.
        let hosts = hierarchy("/../..");
        assert_eq!(hosts.cgroup(Path::new("a")), "/a");
        assert_eq!(relative(&hosts, "/a"), Some("a".into()));
    }

    #[test]
    fn names_that_are_no_text_are_told_apart() {
        let hierarchy = v2("/", Path::new("/nonexistent"));
        let cgroup = |bytes| hierarchy.cgroup(Path::new(OsStr::from_bytes(bytes)));
        assert_eq!((cgroup(b"a/\xff"), cgroup(b"a/\xfe")), ("/a/\\xff".into(), "/a/\\xfe".into()));
    }

    #[test]
    fn a_process_is_in_one_cgroup_of_each_hierarchy() {
        let text = b"12:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c:d (deleted)\n";
        let v1 = Version::V1 { controller: "cpuacct".into() };
        assert_eq!(v1.line_in(text), Some(("12", Path::new("/a"))));
        assert_eq!(Version::V2.line_in(text), Some(("0", Path::new("/c:d (deleted)"))));
        assert_eq!(Version::V2.line_in(b"1:name=systemd:/b\n"), None);
        for nonsense in [&b""[..], b":", b"0:\n\n::", b"\xff::/a"] {
            assert_eq!(v1.line_in(nonsense), None);
        }
    }

    #[test]
    fn our_own_place_is_found_where_the_mount_shows_more_than_the_namespace() {
        let top = tempfile::tempdir().unwrap();
        let procfs = top.path().join("proc");
        fs::create_dir_all(procfs.join("self")).unwrap();
        fs::write(procfs.join("self/cgroup"), "0::/in\n").unwrap();
        let mount = top.path().join("cgroup");
        for (path, pids) in [
            ("hunt/agent/in", format!("1\n{}\n", std::process::id())),
            ("hunt/other/in", format!("1{}\n", std::process::id())),
            ("hunt/agent", String::new()),
        ] {
            fs::create_dir_all(mount.join(path)).unwrap();
            fs::write(mount.join(path).join("cgroup.procs"), pids).unwrap();
        }
        let hierarchy = || Hierarchy { mount: mount.clone(), ..v2("/../..", &procfs) };
        assert_eq!(hierarchy().namespace(), Ok("hunt/agent".into()));
        assert_eq!(hierarchy().own_place(), Place::Below("hunt/agent/in".into()));
        assert_eq!(hierarchy().place(Path::new("/../job")), Place::Below("hunt/job".into()));

        // Where it is not found, that is said.
        fs::write(mount.join("hunt/agent/in/cgroup.procs"), "1\n").unwrap();
        let Place::Unknown(why) = hierarchy().place(Path::new("/../job")) else { panic!() };
        assert!(why.contains("cannot be read") && why.contains("--cgroupns"), "{why}");
        assert_eq!(hierarchy().place(Path::new("/../../job")), Place::Below("job".into()));
        // This process was moved out of the namespace's root.
        fs::write(procfs.join("self/cgroup"), "0::/../x\n").unwrap();
        assert!(hierarchy().namespace().is_err());
        fs::remove_file(procfs.join("self/cgroup")).unwrap();
        assert!(matches!(hierarchy().own_place(), Place::Unknown(_)));
    }
}
