//! Where a cgroup lies below a mount.
//!
//! The kernel writes the paths in `/proc/PID/cgroup`, and the roots in the mount table, as seen from
//! the reader's cgroup namespace (cgroup_namespaces(7)): the namespace's own root is `/`, what lies
//! beside it is `/../job`. A mount keeps showing what it showed where it was made, the host's whole
//! tree for one, so both have to be brought together.

use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// A path as seen from a cgroup namespace: so many steps up from the namespace's root, then down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) up: usize,
    pub(super) down: PathBuf,
}

impl Seen {
    /// Of `/..` and names, as the kernel writes them; `None` for anything else.
    pub(super) fn parse(path: &Path) -> Option<Self> {
        let mut seen = Self { up: 0, down: PathBuf::new() };
        for component in path.components() {
            match component {
                Component::RootDir => {}
                // The kernel goes up first.
                Component::ParentDir if seen.down.as_os_str().is_empty() => seen.up += 1,
                Component::Normal(name) => seen.down.push(name),
                Component::ParentDir | Component::CurDir | Component::Prefix(_) => return None,
            }
        }
        path.is_absolute().then_some(seen)
    }
}

/// Where a cgroup lies, by its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Below the mount, by the path from there.
    Below(PathBuf),
    /// The mount does not show it.
    Outside,
    /// It cannot be told, for a reason.
    Unknown(String),
}

/// Where `cgroup` lies below a mount that shows `root`. `namespace` finds where the namespace's own
/// root lies below the mount; it is asked only where nothing else helps.
pub(super) fn place(
    cgroup: &Seen,
    root: &Seen,
    namespace: impl FnOnce() -> Result<PathBuf, String>,
) -> Place {
    if cgroup.up > root.up {
        // Beside an ancestor of all that is shown, or such an ancestor itself.
        return Place::Outside;
    }
    if cgroup.up == root.up {
        // Up to the same ancestor, and down from there.
        return match cgroup.down.strip_prefix(&root.down) {
            Ok(rest) => Place::Below(rest.to_owned()),
            Err(_) => Place::Outside,
        };
    }
    if !root.down.as_os_str().is_empty() {
        // The mount shows something beside our ancestors, the cgroup lies below one of them.
        return Place::Outside;
    }
    // The mount shows an ancestor of ours, the cgroup lies below a nearer one, whose name is needed.
    match namespace() {
        Ok(own) => {
            let names: Vec<_> = own.components().collect();
            match names.len().checked_sub(cgroup.up) {
                Some(kept) if names.len() == root.up => {
                    let mut path: PathBuf = names[..kept].iter().collect();
                    path.push(&cgroup.down);
                    Place::Below(path)
                }
                _ => Place::Unknown("the cgroup namespace has moved".into()),
            }
        }
        Err(why) => Place::Unknown(why),
    }
}

/// Without the mark that the kernel puts behind the path of a removed cgroup. A cgroup may be called
/// so: ask first whether it is there.
pub(super) fn without_mark(path: &Path) -> Option<&Path> {
    let bytes = path.as_os_str().as_bytes().strip_suffix(b" (deleted)")?;
    Some(Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(path: &str) -> Seen {
        Seen::parse(Path::new(path)).unwrap()
    }

    fn at(cgroup: &str, root: &str, own: Option<&str>) -> Place {
        let own = own.map(PathBuf::from).ok_or_else(|| "unknown".to_owned());
        place(&seen(cgroup), &seen(root), || own)
    }

    fn below(path: &str) -> Place {
        Place::Below(path.into())
    }

    #[test]
    fn without_namespaces_a_mount_shows_all_or_a_part() {
        assert_eq!(at("/a/b", "/", None), below("a/b"));
        assert_eq!(at("/", "/", None), below(""));
        assert_eq!(at("/docker/1/a", "/docker/1", None), below("a"));
        assert_eq!(at("/docker/1", "/docker/1", None), below(""));
        assert_eq!(at("/docker/12", "/docker/1", None), Place::Outside);
        assert_eq!(at("/", "/docker/1", None), Place::Outside);
        // The namespace's own tree: what lies beside it is not in it.
        assert_eq!(at("/../job", "/", None), Place::Outside);
    }

    #[test]
    fn the_hosts_mount_in_a_namespace_needs_the_namespaces_own_place() {
        // The namespace's root is hunt/agent of the host's mount.
        assert_eq!(at("/../job", "/../..", Some("hunt/agent")), below("hunt/job"));
        assert_eq!(at("/", "/../..", Some("hunt/agent")), below("hunt/agent"));
        assert_eq!(at("/in/side", "/../..", Some("hunt/agent")), below("hunt/agent/in/side"));
        // From the mount's own root down it is not needed.
        assert_eq!(at("/../../other/x", "/../..", None), below("other/x"));
        assert_eq!(at("/../..", "/../..", None), below(""));
        // Else it is said.
        assert_eq!(at("/../job", "/../..", None), Place::Unknown("unknown".into()));
        assert!(matches!(at("/", "/../..", Some("moved")), Place::Unknown(_)));
    }

    #[test]
    fn a_part_that_lies_beside_the_namespace() {
        assert_eq!(at("/../job/step", "/../job", None), below("step"));
        assert_eq!(at("/../job2", "/../job", None), Place::Outside);
        assert_eq!(at("/mine", "/../job", None), Place::Outside);
        assert_eq!(at("/../../x", "/../job", None), Place::Outside);
        assert_eq!(at("/../x", "/../../batch", None), Place::Outside);
        assert_eq!(at("/../../batch/x", "/../../batch", None), below("x"));
    }

    #[test]
    fn what_no_kernel_writes_is_not_understood() {
        for path in ["", "a", "./a", "/a/../b", "a/.."] {
            assert_eq!(Seen::parse(Path::new(path)), None, "{path}");
        }
        assert_eq!(without_mark(Path::new("/a (deleted)")), Some(Path::new("/a")));
        assert_eq!(without_mark(Path::new("/a")), None);
    }
}
