//! The cgroup hierarchies of this host: what is mounted where.
//!
//! A host has one v2 hierarchy, any number of v1 hierarchies with a controller or two each, or both
//! ("hybrid"). Ids are unique within a hierarchy only, so the probe follows exactly one.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::Roots;
use crate::base::error::Error;

/// The v1 controllers that kernels have had. What else stands among the options of a mount is an
/// option, or the name of a hierarchy without controllers, which the probe cannot follow.
const CONTROLLERS: [&str; 14] = [
    "cpuacct",
    "cpu",
    "cpuset",
    "memory",
    "blkio",
    "devices",
    "freezer",
    "pids",
    "perf_event",
    "net_cls",
    "net_prio",
    "hugetlb",
    "rdma",
    "misc",
];

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
    /// Id and path of this hierarchy in the text of a `/proc/PID/cgroup`, whose lines are
    /// `ID:CONTROLLERS:PATH`; v2's is `0::PATH`.
    pub fn line_in<'a>(&self, text: &'a str) -> Option<(&'a str, &'a str)> {
        text.lines().find_map(|line| {
            let (id, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
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
    /// Which cgroup the mount point shows, as seen from this process's cgroup namespace: "/" almost
    /// always, a path inside containers that were given a part of the tree, "/.." and the like
    /// for a mount that shows more than the namespace.
    pub root: String,
    pub layout: Layout,
}

impl Hierarchy {
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
    /// slash. Bytes that are not UTF-8 are shown as U+FFFD.
    pub fn cgroup(&self, relative: &Path) -> String {
        let root = if self.root.starts_with("/..") { "" } else { self.root.trim_end_matches('/') };
        let relative = relative.to_string_lossy();
        if relative.is_empty() && !root.is_empty() {
            root.to_owned()
        } else {
            format!("{root}/{relative}")
        }
    }

    /// Where a cgroup lies below the mount, by its path from the hierarchy's root, whether or not it
    /// exists; `None` for one that the mount does not show.
    pub fn relative(&self, cgroup: &str) -> Option<PathBuf> {
        let cgroup = clean(Path::new(cgroup))?;
        if self.root.starts_with("/..") {
            return Some(cgroup);
        }
        cgroup.strip_prefix(clean(Path::new(&self.root))?).map(Path::to_owned).ok()
    }

    /// The cgroup of a process ("self" or a pid) in this hierarchy, as a path from the hierarchy's
    /// root; `None` if the process is gone or lies outside of this cgroup namespace.
    pub fn cgroup_of(&self, procfs: &Path, process: impl fmt::Display) -> Option<String> {
        let text = fs::read(procfs.join(process.to_string()).join("cgroup")).ok()?;
        self.cgroup_in(&String::from_utf8_lossy(&text))
    }

    fn cgroup_in(&self, text: &str) -> Option<String> {
        let (_, path) = self.version.line_in(text)?;
        // The kernel marks the cgroup of a process that outlived it.
        let path = path.strip_suffix(" (deleted)").unwrap_or(path);
        (!path.starts_with("/..")).then(|| path.to_owned())
    }

    /// The kernel's number of this hierarchy; 0 for v2.
    pub fn id(&self, procfs: &Path) -> Option<u32> {
        let text = fs::read(procfs.join("self/cgroup")).ok()?;
        self.version.line_in(&String::from_utf8_lossy(&text))?.0.parse().ok()
    }

    /// The controller to follow where this is a v1 hierarchy.
    pub fn v1_controller(&self) -> Option<&str> {
        match &self.version {
            Version::V2 => None,
            Version::V1 { controller } => Some(controller),
        }
    }

    /// Lower is preferred: v2, then the v1 controllers that exist for CPU time.
    fn preference(&self) -> usize {
        match &self.version {
            Version::V2 => 0,
            Version::V1 { controller } if controller == "cpuacct" => 1,
            Version::V1 { controller } if controller == "cpu" => 2,
            Version::V1 { .. } => 3,
        }
    }
}

impl fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::V2 => write!(f, "cgroup v2 at {}", self.mount.display()),
            Version::V1 { controller } => {
                write!(f, "cgroup v1 ({controller}) at {}", self.mount.display())
            }
        }
    }
}

/// All hierarchies that the probe could follow, the preferred ones first.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    mounts: Vec<Hierarchy>,
}

impl Hierarchies {
    /// From the mount table, or from `roots.cgroupfs` where that is given. At least one, or an error.
    pub fn find(roots: &Roots) -> Result<Self, Error> {
        let mounts = match &roots.cgroupfs {
            Some(directory) => detect(directory)?,
            None => {
                let table = roots.procfs.join("self/mountinfo");
                let text = fs::read(&table).map_err(|error| {
                    Error::Cannot(format!(
                        "cannot read the mount table {}: {error}; mount procfs, or say where it is \
                         with --procfs, or name the cgroup mount with --cgroupfs",
                        table.display()
                    ))
                })?;
                parse_mountinfo(&text)
            }
        };
        if mounts.is_empty() {
            return Err(Error::Cannot(
                "no cgroup file system is mounted that the probe could follow; mount one (mount -t \
                 cgroup2 cgroup2 /sys/fs/cgroup), or say where it is with --cgroupfs"
                    .into(),
            ));
        }
        Ok(Self::new(mounts))
    }

    fn new(mut mounts: Vec<Hierarchy>) -> Self {
        let has = |v2: bool| mounts.iter().any(|mount| (mount.version == Version::V2) == v2);
        let layout = match (has(true), has(false)) {
            (true, true) => Layout::Hybrid,
            (false, true) => Layout::V1,
            _ => Layout::V2,
        };
        for mount in &mut mounts {
            mount.layout = layout;
        }
        // A hierarchy may be mounted in several places: the one that shows all of it serves best.
        mounts.sort_by_cached_key(|mount| (mount.preference(), !mount.is_whole()));
        Self { mounts }
    }

    /// The hierarchies that a name is looked for in, best first; indices for [`Self::get`].
    pub(super) fn preferred(&self) -> Vec<usize> {
        let mut seen = Vec::new();
        let indices = self.mounts.iter().enumerate().filter_map(|(index, mount)| {
            let first = !seen.contains(&&mount.version);
            seen.push(&mount.version);
            // A host with nothing but other controllers is odd, but no reason to find nothing.
            (first && (mount.preference() < 3 || index == 0)).then_some(index)
        });
        indices.collect()
    }

    pub(super) fn get(&self, index: usize) -> &Hierarchy {
        &self.mounts[index]
    }

    /// v2 if there is one, else v1 cpuacct, else cpu, in the order in which they are preferred.
    pub fn iter(&self) -> impl Iterator<Item = &Hierarchy> {
        self.preferred().into_iter().map(|index| &self.mounts[index])
    }

    /// "v2", "v1" or "hybrid".
    pub fn kind(&self) -> &'static str {
        self.mounts.first().map_or("none", Hierarchy::kind)
    }

    /// The mount that an absolute path lies under, whether or not it exists, and the rest of the
    /// path. `literal` components at its beginning may hold symbolic links, as /sys/fs/cgroup/cpu
    /// is on most v1 hosts.
    pub(super) fn locate(&self, path: &Path, literal: usize) -> Option<(usize, PathBuf)> {
        let under = |path: &Path| {
            let rests = self.mounts.iter().enumerate().filter_map(|(index, mount)| {
                Some((index, clean(path.strip_prefix(&mount.mount).ok()?)?))
            });
            // The innermost mount.
            rests.min_by_key(|(_, rest)| rest.as_os_str().len())
        };
        if !path.is_absolute() {
            return None;
        }
        under(path).or_else(|| {
            let head: PathBuf = path.components().take(literal).collect();
            let tail: PathBuf = path.components().skip(literal).collect();
            under(&fs::canonicalize(head).ok()?.join(tail))
        })
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

fn v1(controllers: &[&str], mount: PathBuf, root: String) -> Option<Hierarchy> {
    // The order of CONTROLLERS is the order of preference.
    let controller = CONTROLLERS.into_iter().find(|known| controllers.contains(known))?;
    let version = Version::V1 { controller: controller.to_owned() };
    Some(Hierarchy { version, mount, root, layout: Layout::V1 })
}

fn v2(mount: PathBuf, root: String) -> Hierarchy {
    Hierarchy { version: Version::V2, mount, root, layout: Layout::V2 }
}

/// proc_pid_mountinfo(5). Lines that make no sense are passed over.
fn parse_mountinfo(text: &[u8]) -> Vec<Hierarchy> {
    let mut mounts: Vec<Hierarchy> = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some((mount_point, hierarchy)) = parse_mount(line) else { continue };
        // Whatever is mounted later on the same place hides what was there.
        mounts.retain(|earlier| earlier.mount != mount_point);
        mounts.extend(hierarchy);
    }
    mounts
}

/// A line's mount point, and what is there if it is a hierarchy that the probe can follow.
fn parse_mount(line: &[u8]) -> Option<(PathBuf, Option<Hierarchy>)> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let (root, mount) = (unescape(fields.get(3)?), PathBuf::from(unescape(fields.get(4)?)));
    let root = root.to_string_lossy().into_owned();
    // Any number of optional fields ends with a dash.
    let separator = fields.iter().skip(6).position(|field| field == b"-")? + 6;
    let hierarchy = match *fields.get(separator + 1)? {
        b"cgroup2" => Some(v2(mount.clone(), root)),
        b"cgroup" => {
            let options = String::from_utf8_lossy(fields.get(separator + 3)?).into_owned();
            v1(&options.split(',').collect::<Vec<_>>(), mount.clone(), root)
        }
        _ => None,
    };
    Some((mount, hierarchy))
}

/// The kernel writes blanks, newlines and backslashes as three octal digits.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = (first == b'\\')
            .then(|| std::str::from_utf8(tail.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(escaped.unwrap_or(first));
        rest = if escaped.is_some() { &tail[3..] } else { tail };
    }
    OsString::from_vec(bytes)
}

/// What `--cgroupfs` names: a mount, or a directory of mounts.
fn detect(directory: &Path) -> Result<Vec<Hierarchy>, Error> {
    let usage = |what: &str| {
        Error::Usage(format!(
            "--cgroupfs {}: {what}; name the mount of a cgroup2 file system, or the directory that \
             the v1 controllers are mounted in",
            directory.display()
        ))
    };
    let top = fs::canonicalize(directory).map_err(|error| usage(&error.to_string()))?;
    let root = || "/".to_owned();
    let is_v2 = |path: &Path| path.join("cgroup.controllers").exists();
    if is_v2(&top) {
        return Ok(vec![v2(top, root())]);
    }
    // One v1 mount is told by the files that its controllers bring.
    for (controller, file) in [("cpuacct", "cpuacct.usage"), ("cpu", "cpu.shares")] {
        if top.join(file).exists() || top.file_name().is_some_and(|name| name == controller) {
            return Ok(v1(&[controller], top, root()).into_iter().collect());
        }
    }
    let mut mounts = Vec::new();
    for entry in fs::read_dir(&top).map_err(|error| usage(&error.to_string()))?.flatten() {
        // Not the links from `cpu` and `cpuacct` to `cpu,cpuacct`.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let name = String::from_utf8_lossy(entry.file_name().as_bytes()).into_owned();
        let names: Vec<&str> = name.split(',').collect();
        if name == "unified" && is_v2(&path) {
            mounts.push(v2(path, root()));
        } else if names.iter().all(|name| CONTROLLERS.contains(name)) {
            mounts.extend(v1(&names, path, root()));
        }
    }
    if mounts.is_empty() { Err(usage("no cgroup file system is there")) } else { Ok(mounts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(table: &str) -> Vec<(String, String, String)> {
        let hierarchies = Hierarchies::new(parse_mountinfo(table.as_bytes()));
        let mounts = hierarchies.mounts.into_iter().map(|hierarchy| {
            let version = match hierarchy.version {
                Version::V2 => "v2".to_owned(),
                Version::V1 { controller } => controller,
            };
            (version, hierarchy.mount.display().to_string(), hierarchy.root)
        });
        mounts.collect()
    }

    fn owned(rows: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
        rows.iter().map(|&(a, b, c)| (a.into(), b.into(), c.into())).collect()
    }

    #[test]
    fn a_v2_host_has_one_mount() {
        let table = "\
            25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            35 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(summary(table), owned(&[("v2", "/sys/fs/cgroup", "/")]));
        assert_eq!(Hierarchies::new(parse_mountinfo(table.as_bytes())).kind(), "v2");
    }

    #[test]
    fn a_hybrid_host_prefers_v2_then_cpu_time() {
        // A Debian 10 host: cpu and cpuacct together, systemd's own hierarchy without controllers.
        let table = "\
            31 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
            33 31 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
            37 31 0:32 / /sys/fs/cgroup/memory rw shared:15 - cgroup cgroup rw,memory\n\
            38 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw shared:16 - cgroup cgroup rw,cpu,cpuacct\n\
            32 31 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            summary(table),
            owned(&[
                ("v2", "/sys/fs/cgroup/unified", "/"),
                ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/"),
                ("memory", "/sys/fs/cgroup/memory", "/"),
            ])
        );
        let hierarchies = Hierarchies::new(parse_mountinfo(table.as_bytes()));
        assert_eq!((hierarchies.kind(), hierarchies.preferred()), ("hybrid", vec![0, 1]));
    }

    #[test]
    fn hidden_mounts_escapes_and_nonsense() {
        let table = "\
            31 25 0:26 / /a\\040b rw - cgroup2 cgroup2 rw\n\
            32 25 0:27 /docker/1 /c rw - cgroup cgroup rw,cpuacct\n\
            33 25 0:28 / /c rw - tmpfs tmpfs rw\n\
            34 25 0:29 /x /d rw master:1 propagate_from:2 - cgroup cgroup rw,cpu\n\
            \n-\n36 25 0:29 / /e rw -\n37 25 0:29 / /f rw - cgroup\n38\n";
        assert_eq!(summary(table), owned(&[("v2", "/a b", "/"), ("cpu", "/d", "/x")]));
        assert_eq!(unescape(b"\\04"), "\\04");
        assert_eq!(unescape(b"\\999\\134"), "\\999\\");
    }

    #[test]
    fn a_part_of_the_tree_keeps_the_paths_of_the_whole() {
        let mut hierarchy = v2("/m".into(), "/docker/1".into());
        assert_eq!(hierarchy.cgroup(Path::new("a/b")), "/docker/1/a/b");
        assert_eq!(hierarchy.cgroup(Path::new("")), "/docker/1");
        assert_eq!(hierarchy.relative("/docker/1/a"), Some("a".into()));
        assert_eq!(hierarchy.relative("/docker/12"), None);
        hierarchy.root = "/".into();
        assert_eq!(hierarchy.cgroup(Path::new("")), "/");
        assert_eq!(hierarchy.cgroup(Path::new("a")), "/a");
        assert_eq!(hierarchy.relative("//a/./b/"), Some("a/b".into()));
        assert_eq!(hierarchy.relative("/a/../.."), None);
        // The host's tree inside of a container with a cgroup namespace.
        hierarchy.root = "/../..".into();
        assert_eq!(hierarchy.cgroup(Path::new("a")), "/a");
        assert_eq!(hierarchy.relative("/a"), Some("a".into()));
    }

    #[test]
    fn a_process_is_in_one_cgroup_of_each_hierarchy() {
        let text = "12:cpu,cpuacct:/a\n1:name=systemd:/b\n0::/c:d (deleted)\n";
        let v1 = v1(&["cpu", "cpuacct"], "/m".into(), "/".into()).unwrap();
        assert_eq!(v1.cgroup_in(text).as_deref(), Some("/a"));
        let v2 = v2("/m".into(), "/".into());
        assert_eq!(v2.cgroup_in(text).as_deref(), Some("/c:d"));
        assert_eq!(v2.cgroup_in("0::/../x\n"), None);
        assert_eq!(v2.cgroup_in(""), None);
    }

    #[test]
    fn cgroupfs_is_a_mount_or_a_directory_of_mounts() {
        let top = tempfile::tempdir().unwrap();
        let roots = |directory: &Path| Roots {
            procfs: "/nonexistent".into(),
            cgroupfs: Some(directory.into()),
            hostfs: Some("/nonexistent".into()),
            ..Roots::default()
        };
        let error = Hierarchies::find(&roots(top.path())).unwrap_err();
        assert!(matches!(error, Error::Usage(_)), "{error}");

        for name in ["unified", "cpu,cpuacct", "memory", "systemd", "cpuset"] {
            fs::create_dir(top.path().join(name)).unwrap();
        }
        std::os::unix::fs::symlink("cpu,cpuacct", top.path().join("cpu")).unwrap();
        assert_eq!(Hierarchies::find(&roots(top.path())).unwrap().kind(), "v1");
        fs::write(top.path().join("unified/cgroup.controllers"), "").unwrap();
        let hierarchies = Hierarchies::find(&roots(top.path())).unwrap();
        assert_eq!(hierarchies.kind(), "hybrid");
        assert_eq!(hierarchies.iter().count(), 2);
        let path = top.path().join("cpu/a/b");
        let (index, rest) = hierarchies.locate(&path, path.components().count() - 2).unwrap();
        let cpuacct = Version::V1 { controller: "cpuacct".into() };
        assert_eq!((&hierarchies.get(index).version, rest), (&cpuacct, "a/b".into()));

        assert_eq!(Hierarchies::find(&roots(&top.path().join("unified"))).unwrap().kind(), "v2");
        let missing = Hierarchies::find(&roots(Path::new("/nonexistent"))).unwrap_err();
        assert!(matches!(missing, Error::Usage(_)), "{missing}");
    }

    #[test]
    fn no_mount_is_an_error_that_says_what_to_do() {
        let procfs = tempfile::tempdir().unwrap();
        let roots = Roots {
            procfs: procfs.path().into(),
            cgroupfs: None,
            hostfs: Some("/nonexistent".into()),
            ..Roots::default()
        };
        let error = Hierarchies::find(&roots).unwrap_err().to_string();
        assert!(error.contains("--procfs"), "{error}");
        fs::create_dir(procfs.path().join("self")).unwrap();
        fs::write(procfs.path().join("self/mountinfo"), "1 2 0:1 / / rw - ext4 x rw\n").unwrap();
        let error = Hierarchies::find(&roots).unwrap_err().to_string();
        assert!(error.contains("mount -t"), "{error}");
    }
}
