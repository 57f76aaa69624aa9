//! The mount table, parsed once for everybody who asks what is mounted where.
//!
//! Not by the `procfs` crate: it takes lines for UTF-8 and leaves the escapes of mount points in, and
//! one odd mount somewhere would take the whole table along.

use std::collections::{HashMap, HashSet};
use std::ffi::{CString, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) id: u64,
    parent: u64,
    /// Which directory of the file system is shown at the mount point; of a cgroup file system, its
    /// path as seen from this process's cgroup namespace.
    pub(crate) root: PathBuf,
    pub(crate) point: PathBuf,
    pub(crate) file_system: String,
    /// The options of the file system, not those of the mount.
    pub(crate) options: Vec<String>,
}

impl Mount {
    pub(crate) fn is_cgroup(&self) -> bool {
        ["cgroup", "cgroup2"].contains(&&*self.file_system)
    }
}

/// The mounts of this process's mount namespace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Mounts {
    mounts: Vec<Mount>,
}

impl Mounts {
    /// From `self/mountinfo` of this procfs.
    pub(crate) fn read(procfs: &Path) -> io::Result<Self> {
        Ok(Self::parse(&super::read(&Self::table(procfs))?))
    }

    /// The file that [`Mounts::read`] reads.
    pub(crate) fn table(procfs: &Path) -> PathBuf {
        procfs.join("self/mountinfo")
    }

    /// proc_pid_mountinfo(5). Lines that make no sense are passed over.
    pub(crate) fn parse(text: &[u8]) -> Self {
        Self { mounts: text.split(|byte| *byte == b'\n').filter_map(parse_line).collect() }
    }

    /// The cgroup mounts that are found at their mount points: what was mounted over is in the table
    /// for as long as it lives, and cannot be reached.
    pub(crate) fn cgroups(&self) -> impl Iterator<Item = &Mount> {
        self.reachable(Mount::is_cgroup)
    }

    /// No other mount is touched than those that are `wanted`: one of a server that is gone would
    /// keep us waiting.
    fn reachable(&self, wanted: impl Fn(&Mount) -> bool) -> impl Iterator<Item = &Mount> {
        let children = self.children();
        let ids: HashSet<u64> = self.mounts.iter().map(|mount| mount.id).collect();
        let wanted = self.mounts.iter().filter(move |mount| wanted(mount));
        wanted.filter(move |mount| is_reachable(mount, &ids, &children))
    }

    /// The mount that `path` lies on, if the kernel tells (since 5.8) and the table has it.
    pub(crate) fn holding(&self, path: &Path) -> Option<&Mount> {
        let id = mount_id(path)?;
        self.mounts.iter().find(|mount| mount.id == id)
    }

    /// The mounts by what they are mounted on, and where. What is mounted on something that the table
    /// does not have (the root's own parent; beyond a chroot) is mounted on 0.
    fn children(&self) -> Children<'_> {
        let ids: HashSet<u64> = self.mounts.iter().map(|mount| mount.id).collect();
        let key = |mount: &Mount| match mount.parent {
            parent if parent != mount.id && ids.contains(&parent) => parent,
            _ => NOWHERE,
        };
        // Of two on one place the later hides the earlier.
        self.mounts.iter().map(|mount| ((key(mount), &*mount.point), mount)).collect()
    }
}

/// No mount has this id.
const NOWHERE: u64 = 0;

type Children<'a> = HashMap<(u64, &'a Path), &'a Mount>;

/// The kernel's own answer, if it is about this table; a test's tree has mounts of its own.
fn is_reachable(mount: &Mount, ids: &HashSet<u64>, children: &Children<'_>) -> bool {
    match mount_id(&mount.point) {
        Some(id) if id == mount.id => true,
        Some(id) if ids.contains(&id) => false,
        _ => walk(&mount.point, children).is_some_and(|found| found.id == mount.id),
    }
}

/// What a walk along `path` ends on, as the kernel walks: into whatever is mounted on the place where
/// it stands.
fn walk<'a>(path: &Path, children: &Children<'a>) -> Option<&'a Mount> {
    let mut current: Option<&Mount> = None;
    let mut steps = 0;
    let mut places: Vec<&Path> = path.ancestors().collect();
    while let Some(place) = places.pop() {
        while let Some(next) =
            children.get(&(current.map_or(NOWHERE, |mount| mount.id), place)).copied()
        {
            steps += 1;
            // A table in which mounts lie on each other in a circle.
            if steps > children.len() {
                return None;
            }
            current = Some(next);
        }
    }
    current
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let number = |index: usize| std::str::from_utf8(fields.get(index)?).ok()?.parse().ok();
    // Any number of optional fields ends with a dash.
    let separator = fields.iter().skip(6).position(|field| field == b"-")? + 6;
    let text = |index: usize| Some(String::from_utf8_lossy(fields.get(index)?).into_owned());
    let options = text(separator + 3).unwrap_or_default();
    Some(Mount {
        id: number(0)?,
        parent: number(1)?,
        root: unescape(fields.get(3)?).into(),
        point: unescape(fields.get(4)?).into(),
        file_system: text(separator + 1)?,
        options: options.split(',').map(str::to_owned).collect(),
    })
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

/// The id of the mount that a path ends on; `None` where there is nothing, or the kernel does not say.
fn mount_id(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path ends with a NUL, and the kernel writes no more than a `statx` into the buffer,
    // which is as large; both outlive the call.
    let result = unsafe {
        libc::statx(
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_DONT_SYNC,
            libc::STATX_MNT_ID,
            found.as_mut_ptr(),
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: it is all integers, which were zero before the kernel wrote to them.
    let found = unsafe { found.assume_init() };
    (found.stx_mask & libc::STATX_MNT_ID != 0).then_some(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids that no mount of the test's own machine has.
    fn reachable(table: &str) -> Vec<String> {
        let mounts = Mounts::parse(table.as_bytes());
        mounts.reachable(|_| true).map(|mount| mount.point.display().to_string()).collect()
    }

    #[test]
    fn a_line_has_a_root_a_point_and_options() {
        let table = "1000001 25 0:26 /x\\040y /a\\040b rw,nosuid shared:7 master:1 - cgroup cg rw,cpu,cpuacct\n";
        let mounts = Mounts::parse(table.as_bytes());
        let [mount] = &mounts.mounts[..] else { panic!("{mounts:?}") };
        assert_eq!((&*mount.root, &*mount.point), (Path::new("/x y"), Path::new("/a b")));
        assert_eq!((&*mount.file_system, mount.options.len()), ("cgroup", 3));
        assert_eq!(unescape(b"\\04"), "\\04");
        assert_eq!(unescape(b"\\999\\134"), "\\999\\");
        let nonsense = "\n-\n36 25 0:29 / /e rw -\nx 25 0:29 / /f rw - cgroup\n38\n";
        assert!(Mounts::parse(nonsense.as_bytes()).mounts.is_empty());
        // What is not UTF-8 takes nothing else along.
        let mounts =
            Mounts::parse(b"1 2 0:1 / /\xff rw - tmpfs x rw\n3 1 0:1 / /b rw - proc p rw\n");
        assert_eq!(mounts.mounts[0].point.as_os_str().as_bytes(), b"/\xff");
        assert_eq!(mounts.mounts.len(), 2);
    }

    #[test]
    fn what_was_mounted_over_is_not_reachable() {
        let hybrid = "\
            9000001 1 0:1 / /none rw - ext4 x rw\n\
            9000002 9000001 0:2 / /none/cg rw - tmpfs x rw\n\
            9000003 9000002 0:3 / /none/cg/cpu rw - cgroup x rw,cpu\n\
            9000004 9000002 0:4 / /none/cg/unified rw - cgroup2 x rw\n";
        assert_eq!(reachable(hybrid).len(), 4, "a control");
        // Over the tmpfs that the others are mounted on.
        let over = format!("{hybrid}9000005 9000002 0:4 /job /none/cg rw - cgroup2 x rw\n");
        assert_eq!(reachable(&over), ["/none", "/none/cg"]);
        let mounts = Mounts::parse(over.as_bytes());
        assert_eq!(mounts.reachable(|_| true).last().unwrap().root, Path::new("/job"));
        // And on top of that one something inside.
        let inside = format!("{over}9000006 9000005 0:3 / /none/cg/cpu rw - cgroup x rw,cpu\n");
        assert_eq!(reachable(&inside), ["/none", "/none/cg", "/none/cg/cpu"]);
        // Twice on one place, however the table tells of the lower one.
        let twice = format!("{hybrid}9000007 9000004 0:9 / /none/cg/unified rw - tmpfs x rw\n");
        assert_eq!(
            Mounts::parse(twice.as_bytes()).reachable(|_| true).last().unwrap().id,
            9_000_007
        );
        let twice = format!("{hybrid}9000007 9000002 0:9 / /none/cg/unified rw - tmpfs x rw\n");
        assert_eq!(Mounts::parse(twice.as_bytes()).reachable(|_| true).count(), 4);
        // A longer name is no place inside.
        let beside = format!("{hybrid}9000008 9000001 0:9 / /none/c rw - tmpfs x rw\n");
        assert_eq!(reachable(&beside).len(), 5);
        // Above all of it.
        let above = format!("{hybrid}9000009 9000001 0:9 / /none rw - tmpfs x rw\n");
        assert_eq!(reachable(&above), ["/none"]);
        // A circle ends.
        reachable("5000001 5000002 0:1 / /a rw - x x rw\n5000002 5000001 0:1 / /a rw - x x rw\n");
    }

    #[test]
    fn the_kernel_says_which_mount_a_path_lies_on() {
        let mounts = Mounts::read(Path::new("/proc")).unwrap();
        assert_eq!(mounts.holding(Path::new("/proc/self")).unwrap().file_system, "proc");
        assert!(mounts.holding(Path::new("/nonexistent")).is_none());
        // By the kernel's answers and by our own walk: the same.
        let children = mounts.children();
        for mount in mounts.reachable(|_| true).filter(|mount| mount_id(&mount.point).is_some()) {
            let walked = walk(&mount.point, &children).map(|found| found.id);
            assert_eq!(walked, Some(mount.id), "{}", mount.point.display());
        }
    }
}
