//! Walking cgroup trees that are large, deep, and change while they are walked.

use std::fs;
use std::io;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A cgroup: its path relative to the mount, and its id, which is the directory's inode number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) id: u64,
}

impl Node {
    /// The cgroup at `path` below `top`, if there is one.
    pub(super) fn at(top: &Path, path: PathBuf) -> Option<Self> {
        let metadata = fs::metadata(top.join(&path)).ok()?;
        metadata.is_dir().then(|| Self { path, id: metadata.ino() })
    }
}

/// Shows `visit` every cgroup below `top` (not `top` itself) with its path relative to `top` and
/// its id, parents before children; where `visit` says false, nothing below is walked.
///
/// A cgroup directory holds dozens of files and most cgroups are leaves, so what counts is to open
/// as few directories as possible: kernfs, like most file systems, gives a directory two links
/// and one more for each subdirectory, and a leaf is never opened. Types and ids come with the
/// directory listing. What vanishes meanwhile is passed over, and so is what lies deeper than
/// PATH_MAX.
pub(super) fn walk(top: &Path, mut visit: impl FnMut(&Path, u64) -> bool) {
    const LEAF: u64 = 2;
    let mut pending = vec![PathBuf::new()];
    while let Some(mut path) = pending.pop() {
        let Ok(entries) = fs::read_dir(top.join(&path)) else { continue };
        for entry in entries.map_while(Result::ok) {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            path.push(entry.file_name());
            let enter = visit(&path, entry.ino())
                && entry.metadata().is_ok_and(|metadata| metadata.nlink() != LEAF);
            if enter {
                pending.push(path.clone());
            }
            path.pop();
        }
    }
}

/// Whether any process lives in the cgroup `directory` or below it.
pub(super) fn populated(directory: &Path) -> bool {
    // v2 keeps the answer for the whole subtree; v1 and the root cgroup do not have the file.
    if let Ok(events) = fs::read_to_string(directory.join("cgroup.events")) {
        return events.lines().any(|line| line == "populated 1");
    }
    let has_processes = |directory: &Path| {
        fs::read(directory.join("cgroup.procs")).is_ok_and(|processes| !processes.is_empty())
    };
    let mut found = has_processes(directory);
    if !found {
        walk(directory, |path, _| {
            found = found || has_processes(&directory.join(path));
            !found
        });
    }
    found
}

/// Whether a process lives in the cgroup `directory` itself.
pub(super) fn holds(directory: &Path, pid: u32) -> bool {
    // A threaded cgroup has threads only; the first thread of a process has its id.
    let processes = fs::read_to_string(directory.join("cgroup.procs"))
        .or_else(|_| fs::read_to_string(directory.join("cgroup.threads")));
    processes.is_ok_and(|text| text.lines().any(|line| line.parse() == Ok(pid)))
}

/// Removes the cgroup `directory` with those below it. A cgroup is removed by `rmdir` although it
/// holds files; one with processes refuses.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let mut children = Vec::new();
    walk(directory, |path, _| {
        children.push(directory.join(path));
        true
    });
    for child in children.iter().rev() {
        // The one that matters is the last: it fails if any of these did.
        let _ = fs::remove_dir(child);
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn paths(top: &Path, enter: impl Fn(&Path) -> bool) -> Vec<String> {
        let mut paths = Vec::new();
        walk(top, |path, id| {
            assert_eq!(Node::at(top, path.into()), Some(Node { path: path.into(), id }));
            paths.push(path.display().to_string());
            enter(path)
        });
        paths.sort();
        paths
    }

    #[test]
    fn every_directory_is_visited_and_no_file() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/b/c")).unwrap();
        fs::create_dir_all(top.path().join("d")).unwrap();
        fs::write(top.path().join("a/cgroup.procs"), "").unwrap();
        assert_eq!(paths(top.path(), |_| true), ["a", "a/b", "a/b/c", "d"]);
        assert_eq!(paths(top.path(), |path| path != Path::new("a")), ["a", "d"]);
    }

    #[test]
    fn deep_trees_and_odd_names_are_walked() {
        let top = tempfile::tempdir().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", 1000).collect();
        fs::create_dir_all(top.path().join(deep)).unwrap();
        fs::create_dir(top.path().join(OsStr::from_bytes(b"\xff"))).unwrap();
        let paths = paths(top.path(), |_| true);
        assert_eq!(paths.len(), 1001);
        assert!(paths.contains(&"\u{fffd}".to_owned()));
    }

    #[test]
    fn what_vanishes_during_the_walk_is_passed_over() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/b")).unwrap();
        let mut visited = 0;
        walk(top.path(), |path, _| {
            visited += 1;
            let _ = fs::remove_dir_all(top.path().join(path));
            true
        });
        assert_eq!(visited, 1);
    }

    #[test]
    fn a_subtree_is_populated_if_any_cgroup_in_it_is() {
        let top = tempfile::tempdir().unwrap();
        let child = top.path().join("a/b");
        fs::create_dir_all(&child).unwrap();
        fs::write(top.path().join("cgroup.procs"), "").unwrap();
        fs::write(child.join("cgroup.procs"), "").unwrap();
        assert!(!populated(top.path()));
        fs::write(child.join("cgroup.procs"), "17\n").unwrap();
        assert!(populated(top.path()));
        // v2's own answer is taken over ours.
        fs::write(top.path().join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
        assert!(!populated(top.path()));
    }
}
