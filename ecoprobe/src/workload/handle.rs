//! From a cgroup's id to its path in two system calls, however many cgroups there are.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::tree::Node;

/// A mounted hierarchy whose file handles may be opened.
#[derive(Debug)]
pub(super) struct Handles {
    mount: PathBuf,
    directory: File,
    /// `<procfs>/self/fd`, which knows the path of everything that is open.
    descriptors: PathBuf,
}

impl Handles {
    /// `None` without CAP_DAC_READ_SEARCH, and on anything that is not a cgroup file system.
    pub(super) fn of(mount: &Path, procfs: &Path) -> Option<Self> {
        let directory = File::open(mount).ok()?;
        let id = directory.metadata().ok()?.ino();
        let descriptors = procfs.join("self/fd");
        let handles = Self { mount: mount.to_owned(), directory, descriptors };
        handles.find(id).map(|_| handles)
    }

    /// The cgroup with this id; `None` if it is gone, or not below the mount.
    pub(super) fn find(&self, id: u64) -> Option<Node> {
        let file = self.open(id).ok()?;
        let path = fs::read_link(self.descriptors.join(file.as_raw_fd().to_string())).ok()?;
        let path = path.strip_prefix(&self.mount).ok()?.to_owned();
        // The link of one that is being removed has " (deleted)" at its end.
        Node::at(&self.mount, path).filter(|node| node.id == id)
    }

    fn open(&self, id: u64) -> io::Result<OwnedFd> {
        /// `struct file_handle` with kernfs' own payload, the 64-bit id (include/linux/exportfs.h).
        #[repr(C)]
        struct KernfsHandle {
            bytes: u32,
            kind: i32,
            id: u64,
        }
        const FILEID_KERNFS: i32 = 0xfe;
        let mut handle = KernfsHandle { bytes: 8, kind: FILEID_KERNFS, id };
        // SAFETY: the handle is laid out as a file_handle with as many bytes of payload as it says,
        // and outlives the call.
        let fd = unsafe {
            libc::open_by_handle_at(
                self.directory.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and it is nobody else's.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Roots;

    #[test]
    fn a_directory_of_another_file_system_has_no_handles() {
        let top = tempfile::tempdir().unwrap();
        assert!(Handles::of(top.path(), Path::new("/proc")).is_none());
        assert!(Handles::of(Path::new("/nonexistent"), Path::new("/proc")).is_none());
    }

    #[test]
    #[ignore = "needs root: it opens files by handle"]
    fn ids_of_both_versions_lead_to_paths() {
        let roots = Roots {
            procfs: "/proc".into(),
            cgroupfs: None,
            hostfs: Some("/nonexistent".into()),
            ..Roots::default()
        };
        let hierarchies = crate::workload::hierarchy::Hierarchies::find(&roots).unwrap();
        for hierarchy in hierarchies.iter() {
            let path = PathBuf::from(format!("test-{}-handle", std::process::id()));
            let directory = hierarchy.mount.join(&path);
            fs::create_dir(&directory).unwrap();
            let id = fs::metadata(&directory).map(|metadata| metadata.ino());
            let handles = Handles::of(&hierarchy.mount, &roots.procfs);
            let found = handles.as_ref().zip(id.as_ref().ok()).map(|(it, id)| it.find(*id));
            fs::remove_dir(&directory).unwrap();
            let id = id.unwrap();
            assert_eq!(found, Some(Some(Node { path, id })), "{hierarchy}");
            assert_eq!(handles.unwrap().find(id), None);
        }
    }
}
