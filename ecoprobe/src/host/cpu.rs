//! What `/proc/cpuinfo` says about the processor.

use std::path::Path;

use super::topology::Topology;
use crate::event::sources::CpuFacts;

/// The family of instruction sets, as far as energy counters depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    X86,
    Arm,
    Power,
    Other,
}

impl Architecture {
    /// That of this program, for a machine that does not say.
    fn ours() -> Self {
        match std::env::consts::ARCH {
            "x86" | "x86_64" => Self::X86,
            "arm" | "aarch64" => Self::Arm,
            "powerpc" | "powerpc64" => Self::Power,
            _ => Self::Other,
        }
    }
}

/// The processor, as far as it says. Of a mixed machine (big.LITTLE) the first CPU speaks for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CpuModel {
    /// "GenuineIntel", "AuthenticAMD"; on Arm the implementer, "0x41".
    pub vendor: String,
    /// Decimal; on Arm the architecture.
    pub family: Option<u32>,
    /// Decimal; on Arm the part number.
    pub model: Option<u32>,
    pub stepping: Option<u32>,
    /// "AMD EPYC 7763 64-Core Processor"; hypervisors shorten it. Empty on Arm.
    pub name: String,
    /// Numbers of the CPUs that are online.
    pub online: Vec<usize>,
    /// Running under a hypervisor that says so.
    pub virtual_machine: bool,
    /// `None` if cpuinfo looks like none that is known.
    told_architecture: Option<Architecture>,
}

impl CpuModel {
    /// Reads `cpuinfo` of the procfs at `procfs`; what is not there stays empty.
    pub(crate) fn read(procfs: &Path) -> Self {
        let cpuinfo = super::read(&procfs.join("cpuinfo")).unwrap_or_default();
        Self::parse(&String::from_utf8_lossy(&cpuinfo))
    }

    pub(crate) fn architecture(&self) -> Architecture {
        self.told_architecture.unwrap_or_else(Architecture::ours)
    }

    /// A maker whose package counters are by socket, whatever dies its topology shows: the `power`
    /// PMU of some kernels names a CPU for each CCD, and each of these events counts all of the
    /// package (Linux: "perf/x86/rapl: Fix the energy-pkg event for AMD CPUs").
    pub(crate) fn counts_by_socket(&self) -> bool {
        matches!(self.vendor.as_str(), "AuthenticAMD" | "HygonGenuine")
    }

    /// What an estimate rests on.
    pub(crate) fn facts(&self, topology: &Topology) -> CpuFacts {
        CpuFacts {
            vendor: self.vendor.clone(),
            family: self.family,
            model: self.model,
            stepping: self.stepping,
            name: self.name.clone(),
            virtual_machine: self.virtual_machine,
            // CPUs that could be plugged in one day draw nothing today.
            online_cpus: topology.count(|cpu| self.online.is_empty() || self.online.contains(&cpu)),
        }
    }

    fn parse(cpuinfo: &str) -> Self {
        let mut cpu = Self::default();
        for line in cpuinfo.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let (key, value) = (key.trim(), value.trim());
            let told = match key {
                "vendor_id" if value.starts_with("IBM/") => Some(Architecture::Other),
                "vendor_id" => Some(Architecture::X86),
                "CPU implementer" => Some(Architecture::Arm),
                "cpu" if value.starts_with("POWER") => Some(Architecture::Power),
                "hart" | "isa" => Some(Architecture::Other),
                _ => None,
            };
            cpu.told_architecture = cpu.told_architecture.or(told);
            match key {
                "processor" => cpu.online.extend(value.parse::<usize>()),
                "vendor_id" | "CPU implementer" if cpu.vendor.is_empty() => {
                    cpu.vendor = value.to_owned();
                }
                "model name" if cpu.name.is_empty() => cpu.name = value.to_owned(),
                "cpu family" | "CPU architecture" => cpu.family = cpu.family.or(number(value)),
                "model" | "CPU part" => cpu.model = cpu.model.or(number(value)),
                "stepping" => cpu.stepping = cpu.stepping.or(number(value)),
                "flags" if !cpu.virtual_machine => {
                    cpu.virtual_machine = value.split(' ').any(|flag| flag == "hypervisor");
                }
                _ => {}
            }
        }
        cpu
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x86_and_arm() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 85\n\
            model name\t: Intel(R) Xeon(R)\nstepping\t: 7\nflags\t\t: fpu hypervisor avx\n\n\
            processor\t: 3\nvendor_id\t: GenuineIntel\nmodel\t\t: 1\n";
        let cpu = CpuModel::parse(text);
        assert_eq!((cpu.family, cpu.model, cpu.stepping), (Some(6), Some(85), Some(7)));
        assert_eq!((cpu.online.as_slice(), cpu.virtual_machine), (&[0, 3][..], true));
        assert_eq!((cpu.architecture(), cpu.counts_by_socket()), (Architecture::X86, false));

        let text =
            "processor\t: 0\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU part\t: 0xd0c\n";
        let cpu = CpuModel::parse(text);
        assert_eq!((cpu.vendor.as_str(), cpu.model), ("0x41", Some(0xd0c)));
        assert!(!cpu.virtual_machine && cpu.name.is_empty());
        assert_eq!(cpu.architecture(), Architecture::Arm);

        let power = "processor\t: 0\ncpu\t\t: POWER9, altivec supported\nclock\t\t: 3.8GHz\n";
        assert_eq!(CpuModel::parse(power).architecture(), Architecture::Power);
        assert_eq!(CpuModel::default().architecture(), Architecture::ours());
        for vendor in ["AuthenticAMD", "HygonGenuine"] {
            assert!(CpuModel::parse(&format!("vendor_id : {vendor}\n")).counts_by_socket());
        }

        assert_eq!(CpuModel::parse("\0\u{fffd}:::\nprocessor: x"), CpuModel::default());
    }
}
