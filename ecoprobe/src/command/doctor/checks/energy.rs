//! What there is to measure the CPU's energy with: the same facts, the same trial and the same
//! decision as a run's.

use std::path::Path;

use super::super::{Check, Level};
use crate::base::Component;
use crate::energy::estimate::Estimate;
use crate::event::sources::CpuEnergyKind;
use crate::host::cpu::CpuModel;
use crate::host::power_pmu;
use crate::host::powercap;
use crate::host::topology::Topology;
use crate::host::{Roots, kernel};
use crate::meter::awake::{self, AwakeSource};
use crate::meter::choose::{self, Candidate, CpuEnergyChoice, Facts, Opened};
use crate::meter::rapl::Unavailable;
use crate::meter::rapl::overlap::Use;

pub(super) fn checks(roots: &Roots) -> (Vec<Check>, CpuEnergyKind, bool) {
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    let mut opened = match Opened::open(CpuEnergyChoice::Auto, roots, cpus) {
        Ok(opened) => opened,
        // `auto` always finds something.
        Err(error) => {
            let check = Check::new("CPU energy", Level::Missing, error.to_string());
            return (vec![check], CpuEnergyKind::None, false);
        }
    };
    opened.confirm_all();
    let facts = opened.facts();
    let kind = opened.decide().map_or(CpuEnergyKind::None, |decision| decision.kind);
    let chosen = match kind {
        CpuEnergyKind::Perf => opened.perf.as_ref().ok(),
        CpuEnergyKind::Powercap => opened.powercap.as_ref().ok(),
        _ => None,
    };
    let dram = chosen.is_some_and(|chosen| {
        chosen.meter.domains().iter().any(|domain| domain.component == Component::Dram)
    });

    // One source that measures is enough.
    let measured = chosen.is_some();
    let (perf, powercap) = (&opened.perf, &opened.powercap);
    let mut checks = vec![
        source("perf power PMU", CpuEnergyKind::Perf, perf, &facts, measured),
        pmu_events(&roots.sysfs),
        paranoid(&roots.procfs),
        source("powercap", CpuEnergyKind::Powercap, powercap, &facts, measured),
    ];
    checks.extend(zones(&roots.sysfs, powercap));
    checks.push(match (dram, measured) {
        (true, _) => Check::new("DRAM", Level::Ok, "has its own counter"),
        (false, true) => Check::new("DRAM", Level::Info, "no counter for it that works").absent(),
        (false, false) => Check::new("DRAM", Level::Info, "no counter").absent(),
    });
    checks.push(awake_time(&roots.sysfs));
    checks.push(virtualisation(opened.cpu()));
    checks.push(processor(opened.cpu(), opened.topology(), kind));
    (checks, kind, dram)
}

fn source(
    name: &'static str,
    kind: CpuEnergyKind,
    found: &Result<Candidate, Unavailable>,
    facts: &Facts,
    measured: bool,
) -> Check {
    match found {
        Ok(Candidate { meter, notes, .. }) => {
            let names: Vec<_> = meter.domains().iter().map(|domain| domain.name.as_str()).collect();
            let mut detail = format!("reads {}", names.join(" "));
            notes.iter().for_each(|note| detail += &format!("; {note}"));
            let level = if notes.is_empty() { Level::Ok } else { Level::Warning };
            Check::new(name, level, detail)
        }
        Err(why) => {
            let level = if measured { Level::Info } else { Level::Missing };
            let check = Check::new(name, level, why.to_string()).absent();
            match choose::mend(kind, why, facts) {
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
fn zones(sysfs: &Path, powercap: &Result<Candidate, Unavailable>) -> Vec<Check> {
    let dead = matches!(powercap, Err(Unavailable::Empty));
    let zone = |zone: &powercap::Zone, used: &str| {
        Check::new("powercap zone", Level::Info, format!("{} {}: {used}", zone.id, zone.name))
    };
    let zones = crate::meter::rapl::powercap::uses(sysfs);
    let mut checks: Vec<Check> = zones
        .iter()
        .map(|(found, used)| {
            let said = match used {
                Use::Read(_) if dead => "its counter stays at zero: not used".to_owned(),
                Use::Read(_) => "used".to_owned(),
                Use::Again { of, .. } => match zones.get(*of).map(|(other, _)| other) {
                    Some(other) if found.mmio && !other.mmio => {
                        "the same counter as the MSR zone: not used".to_owned()
                    }
                    Some(other) => format!("the same counter as {}: not used", other.id),
                    None => "shown already: not used".to_owned(),
                },
                Use::Inside => "part of the package: never added to it".to_owned(),
                Use::Around => {
                    "the whole platform, packages included: never added to them".to_owned()
                }
                Use::Homeless => "in no package: not used".to_owned(),
                Use::Unknown => "unknown: not used".to_owned(),
            };
            zone(found, &said)
        })
        .collect();
    checks.extend(powercap::masked(sysfs).iter().map(|path| {
        let detail = format!("{} leads nowhere", path.display());
        Check::new("powercap zone", Level::Info, detail).absent()
    }));
    checks
}

/// How long any CPU was awake, which steps up what a package draws.
fn awake_time(sysfs: &Path) -> Check {
    const NAME: &str = "awake time";
    let mut opened = awake::Opened::open(sysfs);
    opened.prove();
    let facts = opened.facts();
    let decision = awake::decide(&facts);
    let check = match (decision.source, decision.why) {
        (AwakeSource::PackageStates, _) => {
            let states = opened.describe().unwrap_or_default();
            Check::new(NAME, Level::Ok, format!("counted by the packages: {states}"))
        }
        (AwakeSource::Accounts, why) => {
            let why = why.map_or(String::new(), |why| format!(" ({why})"));
            let detail = format!("estimated from how long each CPU idles{why}");
            Check::new(NAME, Level::Info, detail)
        }
    };
    match facts.package_states {
        Some(Unavailable::Denied(_)) => check.mend("run as root, or with CAP_PERFMON"),
        _ => check,
    }
}

fn virtualisation(cpu: &CpuModel) -> Check {
    let detail = match cpu.virtual_machine {
        true => "a virtual machine: hypervisors usually hide energy counters",
        false => "no hypervisor announces itself",
    };
    Check::new("virtualisation", Level::Info, detail)
}

fn processor(cpu: &CpuModel, topology: &Topology, kind: CpuEnergyKind) -> Check {
    let name = match cpu.name.as_str() {
        "" => "unknown",
        name => name,
    };
    let packages = topology.packages.len();
    let plural = if packages == 1 { "" } else { "s" };
    let detail = format!("{name}, {packages} package{plural}");
    let estimate = Estimate::of(&cpu.facts(topology));
    match estimate.filter(|_| kind == CpuEnergyKind::Estimate) {
        Some(estimate) => Check::new(
            "processor",
            Level::Warning,
            format!("{detail}; an estimate would rest on: {}", estimate.basis()),
        ),
        None => Check::new("processor", Level::Info, detail),
    }
}
