//! What `doctor` looks for. A missing thing is a finding, never an error.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aya::programs::ProgramType;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Abilities, Check, Group, Level};
use crate::base::Component;
use crate::cli::DoctorArgs;
use crate::event::sources::{CpuEnergyKind, GpuDevice, GpuReadMethod};
use crate::host::Roots;
use crate::host::cpu::CpuModel;
use crate::host::kernel::{self, Capabilities, Capability};
use crate::host::mounts::CgroupMounts;
use crate::host::power_pmu;
use crate::host::powercap::{self, ZoneKind};
use crate::host::topology::Topology;
use crate::meter::EnergyMeter;
use crate::meter::choose::CpuEnergyChoice;
use crate::meter::choose::{self, Facts};
use crate::meter::gpu::inspect::{DeviceOffer, Lack, Offer, Refusal, inspect};
use crate::meter::rapl::Unavailable;
use crate::meter::rapl::perf::PerfMeter;
use crate::meter::rapl::powercap::PowercapMeter;

const AS_ROOT: &str = "run as root: sudo ecoprobe ...";

/// Every check, and what follows from them.
pub(super) fn run(args: &DoctorArgs) -> (Vec<Group>, Abilities) {
    let roots = args.roots.host();
    let (time, cpu_time) = cpu_time(&roots);
    let (energy, cpu_energy, dram_energy) = cpu_energy(&roots);
    let (gpu, gpu_energy) = gpu_energy(args);
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
    let necessary = [btf(&roots.sysfs), bpf(), hierarchy(roots)];
    let can = necessary.iter().all(|check| check.level != Level::Missing);
    let mut checks = vec![kernel_release(&roots.procfs)];
    checks.extend(necessary);
    checks.push(capabilities(&roots.procfs));
    checks.push(unprivileged_bpf(&roots.procfs));
    checks.push(locked_memory());
    checks.push(lockdown(&roots.sysfs));
    (checks, can)
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
        Ok(false) => Check::new(NAME, Level::Missing, "tracing programs do not load").mend(
            "run as root or with CAP_BPF and CAP_PERFMON; in a container allow the bpf syscall",
        ),
        Err(error) => {
            let error = anyhow::Error::from(error);
            Check::new(NAME, Level::Missing, format!("{error:#}")).mend(
                "run as root or with CAP_BPF and CAP_PERFMON; the kernel needs CONFIG_BPF_SYSCALL",
            )
        }
    }
}

fn hierarchy(roots: &Roots) -> Check {
    const NAME: &str = "cgroups";
    if let Some(root) = &roots.cgroupfs {
        let detail = format!("{} (given)", root.display());
        return match root.is_dir() {
            true => Check::new(NAME, Level::Ok, detail),
            false => {
                Check::new(NAME, Level::Missing, format!("{} is no directory", root.display()))
                    .mend("give --cgroupfs the directory where cgroup2 is mounted")
            }
        };
    }
    let mounts = CgroupMounts::read(&roots.procfs);
    let show = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    match (show(&mounts.v2), show(&mounts.v1)) {
        (Some(v2), Some(v1)) => {
            Check::new(NAME, Level::Ok, format!("hybrid: v2 at {v2}, v1 CPU accounting at {v1}"))
        }
        (Some(v2), None) => Check::new(NAME, Level::Ok, format!("v2 at {v2}")),
        (None, Some(v1)) => Check::new(NAME, Level::Ok, format!("v1 CPU accounting at {v1}")),
        (None, None) => Check::new(NAME, Level::Missing, "no hierarchy that counts CPU time")
            .mend("mount -t cgroup2 none /sys/fs/cgroup"),
    }
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

fn cpu_energy(roots: &Roots) -> (Vec<Check>, CpuEnergyKind, bool) {
    let cpu = CpuModel::read(&roots.procfs);
    let topology = Topology::read(&roots.sysfs, aya::util::nr_cpus().unwrap_or(1));
    let perf = PerfMeter::open(&roots.sysfs, &topology);
    let powercap = PowercapMeter::open(&roots.sysfs, &topology);
    let facts = Facts {
        perf: perf.as_ref().err().cloned(),
        powercap: powercap.as_ref().err().cloned(),
        virtual_machine: cpu.virtual_machine,
    };
    // `auto` always finds something.
    let kind = choose::decide(CpuEnergyChoice::Auto, &facts)
        .map_or(CpuEnergyKind::None, |decision| decision.kind);

    let perf = perf.as_ref().map(|(meter, notes)| (meter as &dyn EnergyMeter, notes.as_slice()));
    let powercap =
        powercap.as_ref().map(|(meter, notes)| (meter as &dyn EnergyMeter, notes.as_slice()));
    let chosen = match kind {
        CpuEnergyKind::Perf => perf.ok(),
        CpuEnergyKind::Powercap => powercap.ok(),
        _ => None,
    };
    let dram = chosen.is_some_and(|(meter, _)| {
        meter.domains().iter().any(|domain| domain.component == Component::Dram)
    });

    // One source that measures is enough.
    let measured = perf.is_ok() || powercap.is_ok();
    let mut checks = vec![
        source("perf power PMU", CpuEnergyKind::Perf, perf, &facts, measured),
        pmu_events(&roots.sysfs),
        paranoid(&roots.procfs),
        source("powercap", CpuEnergyKind::Powercap, powercap, &facts, measured),
    ];
    checks.extend(zones(&roots.sysfs));
    checks.push(match (dram, measured) {
        (true, _) => Check::new("DRAM", Level::Ok, "has its own counter"),
        (false, true) => {
            Check::new("DRAM", Level::Info, "this processor has no counter for it").absent()
        }
        (false, false) => Check::new("DRAM", Level::Info, "no counter").absent(),
    });
    checks.push(virtualisation(&cpu));
    checks.push(processor(&cpu, &topology, kind));
    (checks, kind, dram)
}

fn source(
    name: &'static str,
    kind: CpuEnergyKind,
    opened: Result<(&dyn EnergyMeter, &[String]), &Unavailable>,
    facts: &Facts,
    measured: bool,
) -> Check {
    match opened {
        Ok((meter, notes)) => {
            let names: Vec<_> = meter.domains().iter().map(|domain| domain.name.as_str()).collect();
            let mut detail = format!("reads {}", names.join(" "));
            notes.iter().for_each(|note| detail += &format!("; {note}"));
            let level = if notes.is_empty() { Level::Ok } else { Level::Warning };
            Check::new(name, level, detail)
        }
        Err(why) => {
            let level = if measured { Level::Info } else { Level::Missing };
            let check = Check::new(name, level, why.to_string()).absent();
            match choose::mend(kind, why, facts.virtual_machine) {
                Some(mend) if !measured => check.mend(mend),
                _ => check,
            }
        }
    }
}

fn pmu_events(sysfs: &Path) -> Check {
    const NAME: &str = "perf energy events";
    match power_pmu::read(sysfs) {
        Ok(Some(pmu)) => {
            let names: Vec<_> = pmu.events.iter().map(|event| event.name.as_str()).collect();
            let cpus: Vec<_> = pmu.cpus.iter().map(usize::to_string).collect();
            Check::new(NAME, Level::Info, format!("{} on CPU {}", names.join(" "), cpus.join(",")))
        }
        Ok(None) => Check::new(NAME, Level::Info, "none").absent(),
        Err(problem) => Check::new(NAME, Level::Warning, problem.to_string()).absent(),
    }
}

fn paranoid(procfs: &Path) -> Check {
    const NAME: &str = "kernel.perf_event_paranoid";
    match kernel::sysctl(procfs, "kernel/perf_event_paranoid") {
        Some(value) => {
            let note = "(above 0 perf energy takes root or CAP_PERFMON)";
            Check::new(NAME, Level::Info, format!("{value} {note}"))
        }
        None => Check::new(NAME, Level::Info, "not there").absent(),
    }
}

/// Every zone, with what it is used for.
fn zones(sysfs: &Path) -> Vec<Check> {
    let zones = powercap::zones(sysfs);
    let packages: Vec<_> = zones
        .iter()
        .filter(|zone| zone.kind == ZoneKind::Package && !zone.mmio)
        .filter_map(|zone| zone.package)
        .collect();
    let zone = |zone: &powercap::Zone| {
        let again = zone.mmio && zone.package.is_some_and(|package| packages.contains(&package));
        let used = match zone.kind {
            _ if again => "the same counter as the MSR zone: not used",
            ZoneKind::Package | ZoneKind::Dram => "used",
            ZoneKind::Core | ZoneKind::Uncore => "part of the package: never added to it",
            ZoneKind::Psys => "the whole platform, packages included: never added to them",
            ZoneKind::Unknown => "unknown: not used",
        };
        Check::new("powercap zone", Level::Info, format!("{} {}: {used}", zone.id, zone.name))
    };
    zones.iter().map(zone).collect()
}

fn virtualisation(cpu: &CpuModel) -> Check {
    let detail = match cpu.virtual_machine {
        true => "a virtual machine: hypervisors usually hide energy counters",
        false => "no hypervisor announces itself",
    };
    Check::new("virtualisation", Level::Info, detail)
}

fn processor(cpu: &CpuModel, topology: &Topology, kind: CpuEnergyKind) -> Check {
    use crate::meter::estimate::EstimateMeter;
    let name = match cpu.name.as_str() {
        "" => "unknown",
        name => name,
    };
    let packages = topology.packages.len();
    let plural = if packages == 1 { "" } else { "s" };
    let detail = format!("{name}, {packages} package{plural}");
    match EstimateMeter::new(cpu, topology).filter(|_| kind == CpuEnergyKind::Estimate) {
        Some(meter) => Check::new(
            "processor",
            Level::Warning,
            format!("{detail}; an estimate would rest on: {}", meter.basis()),
        ),
        None => Check::new("processor", Level::Info, detail),
    }
}

fn gpu_energy(args: &DoctorArgs) -> (Vec<Check>, bool) {
    let library = nvml_library(args.nvml_lib.as_deref());
    let driver = driver(&args.roots.procfs);
    // A library that was named may bring its own driver; without one, there is nothing to start.
    let start = library.found && (driver.found || args.nvml_lib.is_some());
    let mut checks = vec![driver, library];
    if !start {
        return (checks, false);
    }
    match inspect(args.nvml_lib.as_deref(), &args.roots.procfs) {
        Ok(offer) => {
            let can = offer.devices.iter().any(Result::is_ok);
            checks.extend(nvml(&offer));
            (checks, can)
        }
        Err(Refusal { why, mend }) => {
            checks.push(Check::new("NVML", Level::Missing, why).mend(mend));
            (checks, false)
        }
    }
}

fn nvml(offer: &Offer) -> Vec<Check> {
    let count = offer.devices.len();
    let plural = if count == 1 { "" } else { "s" };
    let level = if count == 0 { Level::Missing } else { Level::Ok };
    let mut checks = vec![Check::new("NVML", level, format!("starts; {count} device{plural}"))];
    if count > 0 && !offer.host_pids {
        let detail = "processes of the host cannot be seen here: GPU energy has nobody to bill";
        checks.push(Check::new("process ids", Level::Warning, detail).absent().mend(
            "run in the host's pid namespace (docker --pid=host, Kubernetes hostPID: true), or \
             give the host's procfs with --procfs",
        ));
    }
    checks.extend(offer.devices.iter().map(device));
    checks
}

fn device(offer: &Result<DeviceOffer, String>) -> Check {
    const NAME: &str = "GPU";
    let offer = match offer {
        Ok(offer) => offer,
        Err(why) => return Check::new(NAME, Level::Missing, why.as_str()),
    };
    let GpuDevice { uuid, name, index, method } = &offer.device;
    let energy = match method {
        GpuReadMethod::Counter => "energy counter",
        GpuReadMethod::Power => "no energy counter: power is integrated",
    };
    let users = match (&offer.processes, &offer.utilisation) {
        (Err(lack), _) => format!("who is on it is not told ({})", lack.why),
        _ if offer.mig => "MIG: shared by slices".to_owned(),
        (Ok(count), Ok(())) => format!("utilisation by process; processes now: {count}"),
        (Ok(count), Err(lack)) => {
            format!(
                "no utilisation by process ({}): shared by memory; processes now: {count}",
                lack.why
            )
        }
    };
    let detail = format!("{index} {name} {uuid}: {energy}; {users}");
    let denied = |lack: &Lack| lack.denied;
    let told = offer.processes.is_ok() && (offer.mig || offer.utilisation.is_ok());
    if offer.processes.as_ref().is_err_and(denied) || offer.utilisation.as_ref().is_err_and(denied)
    {
        Check::new(NAME, Level::Warning, detail).mend(AS_ROOT)
    } else {
        Check::new(NAME, if told { Level::Ok } else { Level::Warning }, detail)
    }
}

fn driver(procfs: &Path) -> Check {
    const NAME: &str = "NVIDIA driver";
    match fs::read_to_string(procfs.join("driver/nvidia/version")) {
        Ok(version) => {
            let line = version.lines().next().unwrap_or_default().trim().to_owned();
            Check::new(NAME, Level::Ok, line)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Check::new(NAME, Level::Info, "not loaded (no NVIDIA GPU, or none for this container)")
                .absent()
        }
        Err(error) => Check::new(NAME, Level::Warning, error.to_string()).absent(),
    }
}

/// Whether the dynamic linker would find NVML.
fn nvml_library(given: Option<&Path>) -> Check {
    const NAME: &str = "NVML library";
    if let Some(path) = given {
        // What is only a name is for the linker to find.
        return match path.components().count() == 1 || path.is_file() {
            true => Check::new(NAME, Level::Ok, path.display().to_string()),
            false => Check::new(NAME, Level::Missing, format!("{}: no such file", path.display()))
                .mend("give --nvml-lib the path of libnvidia-ml.so.1"),
        };
    }
    match find_library(&["libnvidia-ml.so.1", "libnvidia-ml.so"]) {
        Some(path) => Check::new(NAME, Level::Ok, path.display().to_string()),
        None => Check::new(NAME, Level::Info, "libnvidia-ml.so.1 not found").absent().mend(
            "with an NVIDIA GPU: install the driver's libnvidia-ml1, or pass --nvml-lib PATH",
        ),
    }
}

fn find_library(names: &[&str]) -> Option<PathBuf> {
    let search = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut candidates: Vec<PathBuf> = std::env::split_paths(&search)
        .flat_map(|directory| names.iter().map(move |name| directory.join(name)))
        .collect();
    // The linker's cache is a table and the strings it points to: the paths, each ended by a NUL.
    let cache = fs::read("/etc/ld.so.cache").unwrap_or_default();
    let paths = cache.split(|byte| *byte == 0).filter_map(|text| std::str::from_utf8(text).ok());
    candidates.extend(
        paths
            .filter(|path| path.starts_with('/'))
            .map(PathBuf::from)
            .filter(|path| names.iter().any(|name| path.ends_with(name))),
    );
    candidates.into_iter().find(|path| path.is_file())
}
