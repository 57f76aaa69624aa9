//! This machine. Facts about it are read from files, and nothing is decided here: what follows from a
//! fact is for a pure function elsewhere. Root paths are arguments, so a test tree is a machine. Two
//! files act on our own process instead: `priority` and `stdout`.

pub(crate) mod btf;
pub(crate) mod cpu;
pub(crate) mod kernel;
pub(crate) mod mounts;
pub(crate) mod own;
pub(crate) mod pmu;
pub(crate) mod power_pmu;
pub(crate) mod powercap;
pub(crate) mod priority;
pub(crate) mod roots;
pub(crate) mod stdout;
pub(crate) mod topology;

pub use roots::Roots;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// A file of sysfs or procfs that says something no kernel says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub(crate) struct BadFact {
    pub path: PathBuf,
    pub reason: String,
}

impl BadFact {
    pub(crate) fn new(path: &Path, reason: impl ToString) -> Self {
        Self { path: path.to_owned(), reason: reason.to_string() }
    }
}

/// Whether this program has rights that its caller lacks: set-user-id, or file capabilities
/// (`AT_SECURE`, getauxval(3)).
pub fn is_elevated() -> bool {
    // SAFETY: getauxval reads a number of our own process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// What a file of the kernel holds. Everything under a root that was given to us is read by this or
/// by [`read_value`].
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a one-value file holds, without the white space around it. No attribute is longer than a
/// page: whatever claims to be is cut off there.
pub(crate) fn read_value(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    open(path)?.take(4096).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// Opens what the kernel provides as a file. What else may stand in a tree that is given to us must not
/// make us wait: a FIFO without a writer.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"))
    }
}

/// The CPUs of a list such as `0,18` or `0-3,8-11`; `None` if it is not one.
pub(crate) fn parse_cpu_list(text: &str) -> Option<Vec<usize>> {
    /// More than any kernel is built for (`NR_CPUS`); a range that goes further is nonsense.
    const MOST: usize = 65_536;
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= MOST {
            return None;
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&fifo, directory.path(), Path::new("/dev/zero")] {
            for error in [read_value(path).unwrap_err(), read(path).unwrap_err()] {
                assert_eq!(error.to_string(), "it is no file", "{}", path.display());
            }
        }
    }

    #[test]
    fn a_tree_of_fifos_is_a_machine_that_says_nothing() {
        let root = tempfile::tempdir().unwrap();
        let files =
            ["cpuinfo", "self/mountinfo", "self/status", "self/cgroup", "kernel/btf/vmlinux"];
        for file in files.map(|file| root.path().join(file)) {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        assert_eq!(cpu::CpuModel::read(root.path()), cpu::CpuModel::default());
        assert!(mounts::Mounts::read(root.path()).is_err());
        assert!(kernel::Capabilities::read(root.path()).is_none());
        assert!(kernel::btf(root.path()).is_err());
        assert!(btf::KernelLayout::read(&kernel::btf_path(root.path())).is_err());
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(parse_cpu_list("0,18\n"), Some(vec![0, 18]));
        assert_eq!(parse_cpu_list("0-2,8,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_cpu_list(""), Some(vec![]));
        for nonsense in ["a", "3-1", "0-99999999999", "-1", "1-"] {
            assert_eq!(parse_cpu_list(nonsense), None, "{nonsense}");
        }
    }
}
