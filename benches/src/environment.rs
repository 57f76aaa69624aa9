//! Where figures were taken, so that nobody compares what cannot be compared.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// The machine and what is fixed about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub cpu: String,
    pub cpus: usize,
    /// GiB, rounded.
    pub memory_gib: u64,
    pub architecture: String,
    /// "none", or the hypervisor's name.
    pub virtualisation: String,
}

/// The state that the machine was in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    pub kernel: String,
    /// Of CPU 0; `None` where nobody but the hypervisor knows.
    pub governor: Option<String>,
    /// Runnable processes, mean of the last minute, before the suite began.
    pub load: Option<f64>,
    pub git_revision: Option<String>,
    /// The tree had changes that are in no commit.
    pub git_modified: bool,
    pub version: String,
}

impl Machine {
    pub(crate) fn read() -> Self {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let memory = read("/proc/meminfo").unwrap_or_default();
        let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
        Self {
            cpu: field("model name").or_else(|| field("CPU part")).unwrap_or_default(),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: kib.unwrap_or(0).saturating_add(1 << 19) >> 20,
            architecture: std::env::consts::ARCH.to_owned(),
            virtualisation: virtualisation(field("flags").as_deref()),
        }
    }
}

impl State {
    pub(crate) fn read() -> Self {
        let load = read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").unwrap_or_default(),
            governor: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            load,
            git_revision: git(&["rev-parse", "--short=12", "HEAD"]),
            git_modified: git(&["status", "--porcelain", "--untracked-files=no"])
                .is_some_and(|changes| !changes.is_empty()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

fn virtualisation(flags: Option<&str>) -> String {
    let product = read("/sys/class/dmi/id/product_name");
    let vendor = read("/sys/class/dmi/id/sys_vendor");
    let named = [vendor, product].into_iter().flatten().collect::<Vec<_>>().join(" ");
    match flags {
        Some(flags) if !flags.split(' ').any(|flag| flag == "hypervisor") => "none".to_owned(),
        Some(_) if named.is_empty() => "a hypervisor that does not say its name".to_owned(),
        Some(_) => named,
        None => "unknown".to_owned(),
    }
}

fn read(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn git(arguments: &[&str]) -> Option<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("git").arg("-C").arg(here).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
