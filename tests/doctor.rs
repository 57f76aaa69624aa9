//! `doctor` on this host, which the tests require to be able to run the probe, and on simulated ones.

#![allow(clippy::unwrap_used)]

mod sim;

use std::path::Path;
use std::process::Command;

use ecoprobe::door::{Check, Diagnosis, Doctor, Level, Roots, diagnose, doctor};
use ecoprobe::event::sources::CpuEnergyKind;
use sim::{Machine, Sysfs};

fn arguments(sysfs: &Path, procfs: &Path) -> Doctor {
    let roots = Roots { sysfs: sysfs.into(), procfs: procfs.into(), cgroupfs: None, hostfs: None };
    Doctor { json: false, nvml_lib: None, roots }
}

fn find<'a>(diagnosis: &'a Diagnosis, name: &str) -> &'a Check {
    let mut checks = diagnosis.groups.iter().flat_map(|group| &group.checks);
    checks.find(|check| check.name == name).unwrap()
}

#[test]
#[ignore = "needs root, and a host that can run the probe"]
fn this_host_can_run_the_probe() {
    let arguments = arguments("/sys".as_ref(), "/proc".as_ref());
    let diagnosis = diagnose(&arguments);
    for name in ["BTF", "bpf", "cgroups", "probe", "capabilities"] {
        assert_eq!(find(&diagnosis, name).level, Level::Ok, "{:?}", find(&diagnosis, name));
    }
    assert!(diagnosis.can.cpu_time);
    assert_eq!(doctor(&arguments).unwrap(), std::process::ExitCode::SUCCESS);
}

#[test]
fn an_empty_host_is_a_finding_not_a_failure() {
    let (sysfs, procfs) = (Sysfs::new(), Sysfs::new());
    let arguments = arguments(sysfs.path(), procfs.path());
    let diagnosis = diagnose(&arguments);
    assert!(!diagnosis.can.cpu_time && !diagnosis.can.dram_energy);
    assert_eq!(diagnosis.can.cpu_energy, CpuEnergyKind::Estimate);
    for name in ["cgroups", "perf power PMU", "powercap"] {
        let check = find(&diagnosis, name);
        assert!(!check.found && check.level == Level::Missing, "{check:?}");
        assert!(check.mend.is_some(), "{check:?}");
    }
    assert_eq!(doctor(&arguments).unwrap(), std::process::ExitCode::from(4));
    let json = serde_json::to_value(&diagnosis).unwrap();
    assert_eq!(json["schema"], "ecoprobe.doctor/1");
    assert_eq!(json["groups"][0]["name"], "CPU time");
    assert_eq!(json["can"]["cpu_energy"], "estimate");
}

#[test]
fn every_zone_is_named_with_its_use() {
    let machine = Machine::new(1).with("core").with("dram").with_psys().with_mmio();
    let sysfs = machine.build();
    sysfs.zone("package-0").set(1_000_000);
    sysfs.zone("dram-0").set(1_000_000);
    sysfs.write("kernel/btf/vmlinux", "nothing of sched_switch");
    let diagnosis = diagnose(&arguments(sysfs.path(), "/proc".as_ref()));
    let zones: Vec<_> = diagnosis.groups[1]
        .checks
        .iter()
        .filter(|check| check.name == "powercap zone")
        .map(|check| check.detail.as_str())
        .collect();
    assert_eq!(
        zones,
        [
            "intel-rapl-mmio:0 package-0: the same counter as the MSR zone: not used",
            "intel-rapl:0 package-0: used",
            "intel-rapl:0:0 core: part of the package: never added to it",
            "intel-rapl:0:1 dram: used",
            "intel-rapl:1 psys: the whole platform, packages included: never added to them",
        ]
    );
    assert_eq!(diagnosis.can.cpu_energy, CpuEnergyKind::Powercap);
    assert!(diagnosis.can.dram_energy && !diagnosis.can.cpu_time);
    assert_eq!(find(&diagnosis, "powercap").detail, "reads package-0 dram-0");
    assert!(find(&diagnosis, "BTF").detail.contains("does not describe sched_switch"));
    // powercap measures: what perf lacks needs no mending.
    assert_eq!(find(&diagnosis, "perf power PMU").mend, None);
}

/// What doctor says of CPU energy where the machine is a test tree.
fn energy_of(sysfs: &Sysfs) -> Diagnosis {
    diagnose(&arguments(sysfs.path(), "/proc".as_ref()))
}

#[test]
fn dead_counters_are_told_from_ones_that_count() {
    let sysfs = Machine::new(1).build();
    let dead = energy_of(&sysfs);
    assert_eq!(dead.can.cpu_energy, CpuEnergyKind::Estimate);
    let check = find(&dead, "powercap");
    assert!(check.level == Level::Missing && check.detail.contains("stay at zero"), "{check:?}");
    assert!(find(&dead, "powercap zone").detail.ends_with("stays at zero: not used"));
    sysfs.zone("package-0").set(1_000_000);
    assert_eq!(energy_of(&sysfs).can.cpu_energy, CpuEnergyKind::Powercap);
}

#[test]
fn where_the_time_awake_comes_from_is_told() {
    let sysfs = Sysfs::new();
    let awake = || find(&energy_of(&sysfs), "awake time").clone();
    let estimated = "estimated from how long each CPU idles";
    let none = awake();
    assert!(none.found && none.level == Level::Info, "{none:?}");
    assert!(none.detail.starts_with(estimated) && none.detail.contains("are counted"), "{none:?}");
    // The kernel's cpu-clock, described as package C-states and as the clock at whose rate they count: a
    // package that always sleeps; and then a counter that stays at zero.
    let clock = "event=0x00";
    sysfs.add_pmu("msr", 1, None, &[("tsc", clock)]);
    sysfs.add_pmu("cstate_pkg", 1, Some("0"), &[("c6-residency", clock)]);
    let counted = awake();
    assert_eq!(counted.detail, "counted by the packages: c6-residency on CPU 0");
    assert_eq!(counted.level, Level::Ok);
    sysfs.add_pmu("cstate_pkg", 1, Some("0"), &[("c6-residency", "event=0x08")]);
    let dead = awake();
    assert!(
        dead.detail.starts_with(estimated) && dead.detail.contains("no package slept"),
        "{dead:?}"
    );
}

#[test]
fn masked_zones_are_told_from_none() {
    let sysfs = Machine::new(1).build();
    std::fs::remove_dir_all(sysfs.path().join("devices")).unwrap();
    let diagnosis = energy_of(&sysfs);
    let check = find(&diagnosis, "powercap");
    assert!(check.detail.contains("lead nowhere"), "{check:?}");
    assert!(check.mend.as_ref().unwrap().contains("--sysfs"), "{check:?}");
    assert!(find(&diagnosis, "powercap zone").detail.ends_with("leads nowhere"));
}

#[test]
#[ignore = "needs root, and a host that can run the probe"]
fn a_partial_sysfs_is_no_reason_not_to_measure() {
    let sysfs = Machine::new(1).build();
    sysfs.zone("package-0").set(1_000_000);
    let diagnosis = energy_of(&sysfs);
    assert!(find(&diagnosis, "BTF").detail.starts_with("/sys/kernel/btf/vmlinux"));
    assert!(find(&diagnosis, "probe").found && diagnosis.can.cpu_time);
    assert_eq!(diagnosis.can.cpu_energy, CpuEnergyKind::Powercap);
    assert!(diagnosis.summary.contains("can measure CPU time"));
}

#[test]
#[ignore = "needs root, and a host that can run the probe"]
fn to_be_root_is_no_advice_for_what_root_cannot_mend() {
    let sysfs = Machine::new(1).build();
    sysfs.write("kernel/btf/vmlinux", "\0btf_trace_sched_switch\0");
    let diagnosis = diagnose(&arguments(sysfs.path(), "/proc".as_ref()));
    assert_eq!(find(&diagnosis, "BTF").level, Level::Ok);
    let probe = find(&diagnosis, "probe");
    assert!(probe.level == Level::Missing && probe.detail.contains("not BTF"), "{probe:?}");
    assert_eq!(probe.mend, None);

    let mut powerless = Command::new("setpriv");
    powerless.args(["--bounding-set=-all", "--inh-caps=-all"]);
    powerless.arg(env!("CARGO_BIN_EXE_ecoprobe")).arg("doctor");
    let found = String::from_utf8(powerless.output().unwrap().stdout).unwrap();
    let mut lines = found.lines().skip_while(|line| !line.starts_with("  no  bpf "));
    assert!(lines.next().is_some(), "{found}");
    assert!(lines.next().unwrap().contains("run as root or with CAP_BPF"), "{found}");
}
