//! Real cgroups for tests: made on construction, gone on drop, also when a test panics.
//!
//! Deliberately independent of the library: its mount table is read by other code than ours.

// Every test file includes this one and uses its own part of it.
#![allow(dead_code)]

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where the v2 hierarchy is mounted. Panics where it is not: a test that needs it must not pass.
pub(crate) fn v2_mount() -> PathBuf {
    mount("cgroup2", None).expect("cgroup2 is not mounted")
}

pub(crate) fn has_v2() -> bool {
    mount("cgroup2", None).is_some()
}

/// Where the v1 hierarchy of `controller` is mounted, on hosts that have it.
pub(crate) fn v1_mount(controller: &str) -> Option<PathBuf> {
    mount("cgroup", Some(controller))
}

fn mount(file_system: &str, option: Option<&str>) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    mounts.lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let is_it = fields[2] == file_system
            && option.is_none_or(|option| fields[3].split(',').any(|one| one == option));
        is_it.then(|| PathBuf::from(fields[1]))
    })
}

#[derive(Debug)]
pub(crate) struct TestCgroup {
    mount: PathBuf,
    path: PathBuf,
}

impl TestCgroup {
    /// In the v2 hierarchy. The name carries the pid and a number: tests run side by side.
    pub(crate) fn v2(name: &str) -> Self {
        Self::at_top(v2_mount(), name)
    }

    /// In a v1 hierarchy, "cpuacct" for one.
    pub(crate) fn v1(controller: &str, name: &str) -> Self {
        let mount = v1_mount(controller);
        Self::at_top(mount.unwrap_or_else(|| panic!("{controller} is not mounted")), name)
    }

    fn at_top(mount: PathBuf, name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-{}-{number}-{name}", std::process::id());
        Self::make(mount.clone(), mount.join(name))
    }

    fn make(mount: PathBuf, path: PathBuf) -> Self {
        fs::create_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { mount, path }
    }

    /// A child cgroup, with a guard of its own; the parent's removes it too.
    pub(crate) fn child(&self, name: &str) -> Self {
        Self::make(self.mount.clone(), self.path.join(name))
    }

    /// A cgroup of the same path in the v2 hierarchy.
    pub(crate) fn twin_in_v2(&self) -> Self {
        let mount = v2_mount();
        let path = mount.join(self.cgroup().trim_start_matches('/'));
        Self::make(mount, path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// As the probe sees it: the path from the hierarchy's root, with a leading slash.
    pub(crate) fn cgroup(&self) -> String {
        let relative = self.path.strip_prefix(&self.mount).expect("a cgroup lies under its mount");
        format!("/{}", relative.display())
    }

    pub(crate) fn id(&self) -> u64 {
        fs::metadata(&self.path).expect("a cgroup of this test").ino()
    }

    /// Moves a process, all threads of it.
    pub(crate) fn add(&self, pid: u32) {
        let processes = self.path.join("cgroup.procs");
        fs::write(&processes, pid.to_string())
            .unwrap_or_else(|error| panic!("{pid} into {}: {error}", processes.display()));
    }

    /// The kernel's own account of the CPU time of this cgroup and those below it, nanoseconds: in
    /// steps of a microsecond on v2 (`cpu.stat`), exact on v1 (`cpuacct.usage`).
    pub(crate) fn usage_ns(&self) -> u64 {
        let read = |file: &str| fs::read_to_string(self.path.join(file));
        let number = |text: &str| text.trim().parse::<u64>().expect("a number");
        if let Ok(usage) = read("cpuacct.usage") {
            return number(&usage);
        }
        let stat = read("cpu.stat").expect("cpu.stat");
        let line = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
        number(line.expect("usage_usec")) * 1000
    }
}

impl Drop for TestCgroup {
    fn drop(&mut self) {
        // A cgroup is busy for a moment after its last process was waited for.
        for _ in 0..100 {
            match remove(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    thread::sleep(Duration::from_millis(5));
                }
                _ => return,
            }
        }
        eprintln!("left behind: {}", self.path.display());
    }
}

/// Of every `TestCgroup` that this process has made in the v2 hierarchy, for a process that has to end
/// without dropping them.
pub(crate) fn remove_all_of_this_process() {
    let mount = v2_mount();
    let prefix = format!("test-{}-", std::process::id());
    for _ in 0..1000 {
        let mut left = false;
        for entry in fs::read_dir(&mount).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                left |= remove(&entry.path()).is_err();
            }
        }
        if !left {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whoever is left inside was put there by a test, and outlived it by mistake.
fn remove(path: &Path) -> io::Result<()> {
    for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().filter(|pid| *pid > 0) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
