//! What `doctor` looks for. A missing thing is a finding, never an error.

mod energy;
mod gpu;

use std::io;
use std::path::Path;

use aya::programs::ProgramType;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Abilities, Check, Group, Level};
use crate::base::Error;
use crate::collector::{Needs, load_options};
use crate::config::Doctor;
use crate::host::Roots;
use crate::host::kernel::{self, Capabilities, Capability};
use crate::host::topology::{Grain, Topology};
use crate::probe::Probe;
use crate::workload::hierarchy::{Hierarchies, Hierarchy};

const AS_ROOT: &str = "run as root: sudo ecoprobe ...";
const AS_ROOT_OR_WITH_BPF: &str = "run as root or with CAP_BPF and CAP_PERFMON";

/// Every check, and what follows from them.
pub(super) fn run(config: &Doctor) -> (Vec<Group>, Abilities) {
    let roots = &config.roots;
    let (time, cpu_time) = cpu_time(roots);
    let (energy, cpu_energy, dram_energy) = energy::checks(roots);
    let (gpu, gpu_energy) = gpu::checks(config);
    let groups = vec![
        Group { name: "CPU time", checks: time },
        Group { name: "CPU energy", checks: energy },
        Group { name: "GPU energy", checks: gpu },
    ];
    (groups, Abilities { cpu_time, cpu_energy, dram_energy, gpu_energy })
}

impl Check {
    fn new(name: &'static str, level: Level, detail: impl Into<String>) -> Self {
        Self { name, found: level != Level::Missing, level, detail: detail.into(), mend: None }
    }

    fn absent(mut self) -> Self {
        self.found = false;
        self
    }

    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}

fn cpu_time(roots: &Roots) -> (Vec<Check>, bool) {
    let hierarchies = Hierarchies::find(roots);
    let mut necessary = vec![btf(&roots.sysfs), bpf(), cgroups(roots, &hierarchies)];
    let mut can = necessary.iter().all(|check| check.level != Level::Missing);
    // What is missing for it has been said by now.
    let followed = hierarchies.as_ref().ok().and_then(|found| found.iter().next());
    if let Some(hierarchy) = followed.filter(|_| can) {
        let probe = probe(roots, hierarchy);
        can = probe.level != Level::Missing;
        necessary.push(probe);
    }
    let mut checks = vec![kernel_release(&roots.procfs)];
    checks.extend(necessary);
    checks.push(capabilities(&roots.procfs));
    checks.push(unprivileged_bpf(&roots.procfs));
    checks.push(locked_memory());
    checks.push(lockdown(&roots.sysfs));
    (checks, can)
}

/// Loads and attaches what a run does, for a moment.
fn probe(roots: &Roots, hierarchy: &Hierarchy) -> Check {
    const NAME: &str = "probe";
    let load = || -> anyhow::Result<&'static str> {
        let cpus = aya::util::nr_cpus().map_err(|(path, error)| {
            anyhow::Error::new(error).context(format!("cannot count the CPUs ({path})"))
        })?;
        let topology = Topology::read(&roots.sysfs, cpus, Grain::default());
        let btf = kernel::btf_path(&roots.sysfs);
        let mut probe =
            Probe::load(load_options(&btf, &roots.sysfs, hierarchy, &topology, Needs::USUAL)?)?;
        probe.attach()?;
        Ok(probe.hook().name())
    };
    match load() {
        Ok(hook) => Check::new(NAME, Level::Ok, format!("loads and attaches to {hook}")),
        Err(error) => {
            let check = Check::new(NAME, Level::Missing, format!("{error:#}"));
            match error.downcast_ref() {
                Some(Error::Denied(_)) => check.mend(AS_ROOT_OR_WITH_BPF),
                _ => check,
            }
        }
    }
}

fn kernel_release(procfs: &Path) -> Check {
    match kernel::release(procfs) {
        Some(release) => Check::new("kernel", Level::Info, format!("Linux {release}")),
        None => Check::new("kernel", Level::Warning, "release unknown")
            .absent()
            .mend(format!("mount procfs at {} (--procfs says where it is)", procfs.display())),
    }
}

fn btf(sysfs: &Path) -> Check {
    let path = kernel::btf_path(sysfs);
    let missing = |detail: String| {
        Check::new("BTF", Level::Missing, detail)
            .mend("boot a kernel built with CONFIG_DEBUG_INFO_BTF=y (the distributions' are)")
    };
    match kernel::btf(sysfs) {
        Ok(btf) if btf.bytes == 0 => missing(format!("{} is empty", path.display())),
        Ok(btf) if btf.sched_switch => {
            let detail = format!("{}, {} KiB, with sched_switch", path.display(), btf.bytes / 1024);
            Check::new("BTF", Level::Ok, detail)
        }
        Ok(_) => missing(format!("{} does not describe sched_switch", path.display())),
        Err(error) => missing(format!("{}: {error}", path.display())),
    }
}

/// Loads the smallest program of the kind that the probe is.
fn bpf() -> Check {
    const NAME: &str = "bpf";
    match aya::sys::is_program_supported(ProgramType::RawTracePoint) {
        Ok(true) => Check::new(NAME, Level::Ok, "a tracing program loads"),
        Ok(false) => Check::new(NAME, Level::Missing, "this kernel knows no such tracing programs")
            .mend("boot a kernel built with CONFIG_BPF_EVENTS=y (the distributions' are)"),
        Err(error) => {
            let error = anyhow::Error::from(error);
            let check = Check::new(NAME, Level::Missing, format!("{error:#}"));
            let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
            match cause.and_then(io::Error::raw_os_error) {
                Some(libc::EPERM | libc::EACCES) => check
                    .mend(format!("{AS_ROOT_OR_WITH_BPF}; in a container allow the bpf syscall")),
                Some(libc::ENOSYS) => check.mend("boot a kernel built with CONFIG_BPF_SYSCALL"),
                _ => check,
            }
        }
    }
}

/// The hierarchies that a run finds. One that counts CPU time has to be among them.
fn cgroups(roots: &Roots, found: &Result<Hierarchies, Error>) -> Check {
    const NAME: &str = "cgroups";
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let mend = match &roots.cgroupfs {
                Some(_) => "give --cgroupfs the directory where cgroup2 is mounted",
                None => "mount -t cgroup2 none /sys/fs/cgroup",
            };
            return Check::new(NAME, Level::Missing, error.to_string()).mend(mend);
        }
    };
    let mounts: Vec<_> = found.iter().map(|hierarchy| hierarchy.to_string()).collect();
    Check::new(NAME, Level::Ok, format!("{}: {}", found.kind(), mounts.join(", ")))
}

fn capabilities(procfs: &Path) -> Check {
    const NAME: &str = "capabilities";
    let who = if nix::unistd::geteuid().is_root() { "root" } else { "not root" };
    let Some(ours) = Capabilities::read(procfs) else {
        let detail = format!("{who}; {} does not show this process", procfs.display());
        return Check::new(NAME, Level::Info, detail).absent();
    };
    let (held, lacking): (Vec<_>, Vec<_>) =
        Capability::ALL.into_iter().partition(|capability| ours.has(*capability));
    let list = |capabilities: &[Capability]| match capabilities {
        [] => "none".to_owned(),
        some => some.iter().map(|capability| capability.name()).collect::<Vec<_>>().join(" "),
    };
    let detail = match lacking.as_slice() {
        [] => format!("{who}; {}", list(&held)),
        lacking => format!("{who}; {}; lacking {}", list(&held), list(lacking)),
    };
    // CAP_SYS_ADMIN is what older kernels ask for instead of the two.
    let enough = ours.has(Capability::SysAdmin)
        || (ours.has(Capability::Bpf) && ours.has(Capability::Perfmon));
    if enough {
        Check::new(NAME, Level::Ok, detail)
    } else {
        Check::new(NAME, Level::Warning, detail).absent().mend(AS_ROOT)
    }
}

fn unprivileged_bpf(procfs: &Path) -> Check {
    const NAME: &str = "kernel.unprivileged_bpf_disabled";
    match kernel::sysctl(procfs, "kernel/unprivileged_bpf_disabled") {
        Some(value) => Check::new(NAME, Level::Info, format!("{value} (any value suits root)")),
        None => Check::new(NAME, Level::Info, "not there").absent(),
    }
}

fn locked_memory() -> Check {
    const NAME: &str = "locked memory";
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => Check::new(NAME, Level::Ok, "unlimited"),
        Ok((bytes, _)) => Check::new(
            NAME,
            Level::Info,
            format!("{} KiB; kernels before 5.11 count BPF maps against it", bytes / 1024),
        ),
        Err(error) => Check::new(NAME, Level::Info, error.desc()).absent(),
    }
}

fn lockdown(sysfs: &Path) -> Check {
    const NAME: &str = "lockdown";
    match kernel::lockdown(sysfs).as_deref() {
        Some("confidentiality") => {
            Check::new(NAME, Level::Warning, "confidentiality: BPF may not read kernel memory")
                .mend("boot with lockdown=integrity")
        }
        Some(mode) => Check::new(NAME, Level::Ok, mode),
        None => Check::new(NAME, Level::Info, "not in use, or not shown").absent(),
    }
}
