//! The cgroup hierarchies of this host: what is mounted where.
//!
//! A host has one v2 hierarchy, any number of v1 hierarchies with a controller or two each, or both
//! ("hybrid"). Ids are unique within a hierarchy only, so the probe follows exactly one.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::hierarchy::{Hierarchy, Layout, Version, clean};
use super::place::Seen;
use crate::base::error::Error;
use crate::host::Roots;
use crate::host::mounts::{Mount, Mounts};

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

/// All hierarchies that the probe could follow, the preferred ones first.
#[derive(Debug, Clone)]
pub struct Hierarchies {
    mounts: Vec<Hierarchy>,
}

impl Hierarchies {
    /// From the mount table, or from `roots.cgroupfs` where that is given. At least one, or an error.
    pub fn find(roots: &Roots) -> Result<Self, Error> {
        let mounts = match &roots.cgroupfs {
            Some(directory) => detect(directory, &roots.procfs)?,
            None => {
                let mounts = Mounts::read(&roots.procfs).map_err(|error| {
                    Error::Cannot(format!(
                        "cannot read the mount table {}: {error}; mount procfs, or say where it is \
                         with --procfs, or name the cgroup mount with --cgroupfs",
                        Mounts::table(&roots.procfs).display()
                    ))
                })?;
                let found = mounts.cgroups().filter_map(|mount| {
                    hierarchy(mount, mount.point.clone(), Path::new(""), &roots.procfs)
                });
                found.collect()
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
        // A hierarchy may be mounted in several places.
        mounts.sort_by_cached_key(|mount| (mount.preference(), mount.lacks()));
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

    /// As [`Hierarchies::iter`], with every place that a hierarchy is mounted in: one may be read-only.
    pub(super) fn everywhere(&self) -> impl Iterator<Item = &Hierarchy> {
        let preferred: Vec<_> = self.iter().map(|hierarchy| &hierarchy.version).collect();
        self.mounts.iter().filter(move |mount| preferred.contains(&&mount.version))
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

/// The version of a v1 hierarchy with these controllers; `None` without any.
fn v1<'a>(controllers: impl Iterator<Item = &'a str> + Clone) -> Option<Version> {
    // The order of CONTROLLERS is the order of preference.
    let first = CONTROLLERS.into_iter().find(|known| controllers.clone().any(|one| one == *known));
    first.map(|controller| Version::V1 { controller: controller.to_owned() })
}

/// The hierarchy that a mount shows at `directory`, which lies so far `below` its mount point.
fn hierarchy(mount: &Mount, directory: PathBuf, below: &Path, procfs: &Path) -> Option<Hierarchy> {
    let version = match &*mount.file_system {
        "cgroup2" => Version::V2,
        _ => v1(mount.options.iter().map(String::as_str))?,
    };
    let root =
        if below.as_os_str().is_empty() { mount.root.clone() } else { mount.root.join(below) };
    Some(Hierarchy::new(version, directory, Seen::parse(&root)?, procfs))
}

/// What `--cgroupfs` names: a mount or a part of one, or a directory of mounts.
fn detect(directory: &Path, procfs: &Path) -> Result<Vec<Hierarchy>, Error> {
    let usage = |what: &str| {
        Error::Usage(format!(
            "--cgroupfs {}: {what}; name the mount of a cgroup2 file system, or the directory that \
             the v1 controllers are mounted in",
            directory.display()
        ))
    };
    let top = fs::canonicalize(directory).map_err(|error| usage(&error.to_string()))?;
    let mounts = Mounts::read(procfs).unwrap_or_default();
    // What the kernel knows of the directory, if it is a cgroup's; a test's tree is not.
    let known = |path: &Path| {
        let mount = mounts.holding(path).filter(|mount| mount.is_cgroup())?;
        let below = path.strip_prefix(&mount.point).ok()?;
        hierarchy(mount, path.to_owned(), below, procfs)
    };
    let like = |version: Version, path: PathBuf| {
        let root = Seen { up: 0, down: PathBuf::new() };
        known(&path).unwrap_or_else(|| Hierarchy::new(version, path, root, procfs)).given()
    };
    if let Some(hierarchy) = known(&top) {
        return Ok(vec![hierarchy.given()]);
    }
    let is_v2 = |path: &Path| path.join("cgroup.controllers").exists();
    if is_v2(&top) {
        return Ok(vec![like(Version::V2, top)]);
    }
    // One v1 mount is told by the files that its controllers bring.
    for (controller, file) in [("cpuacct", "cpuacct.usage"), ("cpu", "cpu.shares")] {
        if top.join(file).exists() || top.file_name().is_some_and(|name| name == controller) {
            return Ok(v1([controller].into_iter()).map(|it| like(it, top)).into_iter().collect());
        }
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&top).map_err(|error| usage(&error.to_string()))?.flatten() {
        // Not the links from `cpu` and `cpuacct` to `cpu,cpuacct`.
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let path = entry.path();
        let name = String::from_utf8_lossy(entry.file_name().as_bytes()).into_owned();
        let names = name.split(',');
        if name == "unified" && is_v2(&path) {
            found.push(like(Version::V2, path));
        } else if names.clone().all(|name| CONTROLLERS.contains(&name)) {
            found.extend(v1(names).map(|it| like(it, path)));
        }
    }
    if found.is_empty() { Err(usage("no cgroup file system is there")) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a host with this mount table; the ids are none of the test's own machine.
    fn find(table: &str) -> Hierarchies {
        let procfs = tempfile::tempdir().unwrap();
        fs::create_dir(procfs.path().join("self")).unwrap();
        fs::write(procfs.path().join("self/mountinfo"), table.replace("ID", "900000")).unwrap();
        let roots = Roots { procfs: procfs.path().into(), ..Roots::default() };
        Hierarchies::find(&roots).unwrap()
    }

    fn summary(table: &str) -> Vec<(String, String, String)> {
        let mounts = find(table).mounts.into_iter().map(|hierarchy| {
            let root = hierarchy.cgroup(Path::new(""));
            let version = match hierarchy.version {
                Version::V2 => "v2".to_owned(),
                Version::V1 { controller } => controller,
            };
            (version, hierarchy.mount.display().to_string(), root)
        });
        mounts.collect()
    }

    fn owned(rows: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
        rows.iter().map(|&(a, b, c)| (a.into(), b.into(), c.into())).collect()
    }

    #[test]
    fn a_v2_host_has_one_mount() {
        let table = "\
            ID25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
            ID35 ID25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(summary(table), owned(&[("v2", "/sys/fs/cgroup", "/")]));
        assert_eq!(find(table).kind(), "v2");
    }

    #[test]
    fn a_hybrid_host_prefers_v2_then_cpu_time() {
        // A Debian 10 host: cpu and cpuacct together, systemd's own hierarchy without controllers.
        let table = "\
            ID31 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
            ID33 ID31 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd\n\
            ID37 ID31 0:32 / /sys/fs/cgroup/memory rw shared:15 - cgroup cgroup rw,memory\n\
            ID38 ID31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw shared:16 - cgroup cgroup rw,cpu,cpuacct\n\
            ID32 ID31 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            summary(table),
            owned(&[
                ("v2", "/sys/fs/cgroup/unified", "/"),
                ("cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/"),
                ("memory", "/sys/fs/cgroup/memory", "/"),
            ])
        );
        let hierarchies = find(table);
        assert_eq!((hierarchies.kind(), hierarchies.preferred()), ("hybrid", vec![0, 1]));
    }

    #[test]
    fn hidden_mounts_escapes_and_nonsense() {
        let table = "\
            ID31 25 0:26 / /a\\040b rw - cgroup2 cgroup2 rw\n\
            ID32 25 0:27 /docker/1 /c rw - cgroup cgroup rw,cpuacct\n\
            ID33 ID32 0:28 / /c rw - tmpfs tmpfs rw\n\
            ID34 25 0:29 /x /d rw master:1 propagate_from:2 - cgroup cgroup rw,cpu\n\
            \n-\n36 25 0:29 / /e rw -\n37 25 0:29 / /f rw - cgroup\n38\n";
        assert_eq!(summary(table), owned(&[("v2", "/a b", "/"), ("cpu", "/d", "/x")]));
    }

    #[test]
    fn of_two_mounts_the_one_that_shows_more_serves() {
        let table = "\
            ID1 25 0:1 /docker/1 /a rw - cgroup2 x rw\n\
            ID2 25 0:1 / /b rw - cgroup2 x rw\n\
            ID3 25 0:1 /../.. /c rw - cgroup2 x rw\n";
        let mounts: Vec<_> = summary(table).into_iter().map(|(_, mount, _)| mount).collect();
        assert_eq!(mounts, ["/c", "/b", "/a"]);
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
