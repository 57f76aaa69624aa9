//! The kernel and our permissions in it.

use std::io;
use std::path::{Path, PathBuf};

use super::{read, read_value};

/// `kernel.osrelease`.
pub(crate) fn release(procfs: &Path) -> Option<String> {
    sysctl(procfs, "kernel/osrelease")
}

/// A sysctl by its path under `sys/`; `None` where this kernel lacks it.
pub(crate) fn sysctl(procfs: &Path, name: &str) -> Option<String> {
    read_value(&procfs.join("sys").join(name)).ok()
}

/// The kernel's own BTF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelBtf {
    pub bytes: usize,
    /// It describes the arguments of `sched_switch`, so `tp_btf/sched_switch` can attach.
    pub sched_switch: bool,
}

/// Reads `kernel/btf/vmlinux`.
///
/// # Errors
///
/// Where the kernel was built without `CONFIG_DEBUG_INFO_BTF`, or hides it.
pub(crate) fn btf(sysfs: &Path) -> io::Result<KernelBtf> {
    // A raw tracepoint's arguments are a typedef of this name. Finding the string costs less than
    // parsing 200,000 types, and nothing else is called so.
    const TYPEDEF: &[u8] = b"\0btf_trace_sched_switch\0";
    let btf = read(&btf_path(sysfs))?;
    let sched_switch = btf.windows(TYPEDEF.len()).any(|window| window == TYPEDEF);
    Ok(KernelBtf { bytes: btf.len(), sched_switch })
}

/// Where the kernel shows its BTF: under `sysfs`, or, if that is a tree without it (a container may
/// have been given parts of /sys), under /sys: the running kernel's is the same everywhere.
pub(crate) fn btf_path(sysfs: &Path) -> PathBuf {
    btf_path_or(sysfs, Path::new("/sys"))
}

fn btf_path_or(sysfs: &Path, ours: &Path) -> PathBuf {
    const FILE: &str = "kernel/btf/vmlinux";
    let (given, ours) = (sysfs.join(FILE), ours.join(FILE));
    if given.exists() || !ours.exists() { given } else { ours }
}

/// "none", "integrity" or "confidentiality"; `None` without lockdown (or securityfs).
pub(crate) fn lockdown(sysfs: &Path) -> Option<String> {
    let modes = read_value(&sysfs.join("kernel/security/lockdown")).ok()?;
    let (_, mode) = modes.split_once('[')?;
    mode.split_once(']').map(|(mode, _)| mode.to_owned())
}

/// The capabilities that matter here, by their bit (`linux/capability.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capability {
    DacReadSearch = 2,
    SysAdmin = 21,
    SysResource = 24,
    Perfmon = 38,
    Bpf = 39,
}

impl Capability {
    pub(crate) const ALL: [Self; 5] =
        [Self::Bpf, Self::Perfmon, Self::SysAdmin, Self::DacReadSearch, Self::SysResource];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::DacReadSearch => "CAP_DAC_READ_SEARCH",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::SysResource => "CAP_SYS_RESOURCE",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }
}

/// Our effective capabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Capabilities(u64);

impl Capabilities {
    /// From `self/status`; `None` where this procfs does not show us (another pid namespace's).
    pub(crate) fn read(procfs: &Path) -> Option<Self> {
        let status = read(&procfs.join("self/status")).ok()?;
        let status = String::from_utf8_lossy(&status);
        let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(mask.trim(), 16).ok().map(Self)
    }

    pub(crate) fn has(self, capability: Capability) -> bool {
        self.0 >> capability as u32 & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn btf_is_the_running_kernels_wherever_it_is_shown() {
        let (given, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let found = || btf_path_or(given.path(), ours.path());
        let show = |root: &Path| {
            fs::create_dir_all(root.join("kernel/btf")).unwrap();
            fs::write(root.join("kernel/btf/vmlinux"), "btf").unwrap();
        };
        // Nowhere: what is missing is the file that was asked for.
        assert!(found().starts_with(given.path()));
        show(ours.path());
        assert!(found().starts_with(ours.path()));
        show(given.path());
        assert!(found().starts_with(given.path()));
    }

    #[test]
    fn capabilities_by_bit() {
        let bpf_only = Capabilities(1 << 39);
        assert!(bpf_only.has(Capability::Bpf) && !bpf_only.has(Capability::Perfmon));
    }

    #[test]
    fn lockdown_is_the_mode_in_brackets() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(lockdown(root.path()), None);
        fs::create_dir_all(root.path().join("kernel/security")).unwrap();
        let modes = "none [integrity] confidentiality\n";
        fs::write(root.path().join("kernel/security/lockdown"), modes).unwrap();
        assert_eq!(lockdown(root.path()).as_deref(), Some("integrity"));
    }
}
