//! Which source the CPU's energy comes from: facts are found, a pure function decides, and only the
//! source that it names is kept.

use super::EnergyMeter;
use super::estimate::EstimateMeter;
use super::rapl::Unavailable;
use super::rapl::perf::PerfMeter;
use super::rapl::powercap::PowercapMeter;
use crate::base::error::Error;
use crate::event::sources::{CpuEnergyKind, CpuEnergySource, StaticPowerKind, StaticPowerSource};
use crate::host::Roots;
use crate::host::cpu::CpuModel;
use crate::host::topology::Topology;

/// The opened source, and what the report says about it.
#[derive(Debug)]
pub struct CpuEnergy {
    /// `None` if no figures were asked for.
    pub meter: Option<Box<dyn EnergyMeter>>,
    pub source: CpuEnergySource,
    /// The estimate knows its static power; what is measured, the session learns.
    pub static_power: StaticPowerSource,
    /// What the user should know: a sentence each.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum CpuEnergyChoice {
    /// perf, else powercap, else the estimate.
    #[default]
    Auto,
    /// RAPL through the `power` PMU.
    Perf,
    /// RAPL through /sys/class/powercap.
    Powercap,
    /// From the CPU model's figures and utilisation: not a measurement.
    Estimate,
    None,
}

/// What the decision rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// `None`: usable.
    pub perf: Option<Unavailable>,
    pub powercap: Option<Unavailable>,
    pub virtual_machine: bool,
}

/// The source to use, and why no better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub kind: CpuEnergyKind,
    pub notes: Vec<String>,
}

/// Decides on a source. A measurement goes before the estimate, and the PMU before powercap: it has
/// no wrap and one read for all.
///
/// # Errors
///
/// [`Error::Cannot`] if a source was asked for by name and cannot be used; the message says what to
/// do.
pub fn decide(choice: CpuEnergyChoice, facts: &Facts) -> Result<Decision, Error> {
    let by_name = |kind, name, unavailable: &Option<Unavailable>| match unavailable {
        None => Ok(Decision { kind, notes: Vec::new() }),
        Some(why) => Err(Error::Cannot(format!(
            "--cpu-energy {name} cannot be used: {}",
            explain(kind, why, facts.virtual_machine)
        ))),
    };
    match choice {
        CpuEnergyChoice::None => Ok(Decision { kind: CpuEnergyKind::None, notes: Vec::new() }),
        CpuEnergyChoice::Estimate => {
            Ok(Decision { kind: CpuEnergyKind::Estimate, notes: Vec::new() })
        }
        CpuEnergyChoice::Perf => by_name(CpuEnergyKind::Perf, "perf", &facts.perf),
        CpuEnergyChoice::Powercap => by_name(CpuEnergyKind::Powercap, "powercap", &facts.powercap),
        CpuEnergyChoice::Auto => Ok(automatic(facts)),
    }
}

fn automatic(facts: &Facts) -> Decision {
    let explain = |kind, why| explain(kind, why, facts.virtual_machine);
    match (&facts.perf, &facts.powercap) {
        (None, _) => Decision { kind: CpuEnergyKind::Perf, notes: Vec::new() },
        (Some(perf), None) => {
            // Powercap measures just as well: only what somebody might want to mend is said.
            let mendable = !matches!(perf, Unavailable::Absent);
            let note = || {
                let why = explain(CpuEnergyKind::Perf, perf);
                format!("CPU energy comes from powercap, not from perf: {why}")
            };
            Decision {
                kind: CpuEnergyKind::Powercap,
                notes: mendable.then(note).into_iter().collect(),
            }
        }
        (Some(perf), Some(powercap)) => Decision {
            kind: CpuEnergyKind::Estimate,
            notes: vec![match (perf, powercap) {
                (Unavailable::Absent, Unavailable::Absent) => format!(
                    "CPU energy is an estimate, not a measurement: this machine shows no RAPL \
                     counter{}",
                    mend(CpuEnergyKind::Powercap, powercap, facts.virtual_machine).map_or(
                        String::new(),
                        |mend| {
                            // The other half of the advice is taken already.
                            format!(" ({})", mend.split(", or use").next().unwrap_or(mend))
                        }
                    )
                ),
                _ => format!(
                    "CPU energy is an estimate, not a measurement: perf: {}; powercap: {}",
                    explain(CpuEnergyKind::Perf, perf),
                    explain(CpuEnergyKind::Powercap, powercap)
                ),
            }],
        },
    }
}

/// Why, and what to do.
fn explain(kind: CpuEnergyKind, why: &Unavailable, virtual_machine: bool) -> String {
    let what = match (kind, why) {
        (CpuEnergyKind::Perf, Unavailable::Absent) => {
            "there is no `power` PMU under bus/event_source/devices".to_owned()
        }
        (_, Unavailable::Absent) => "there is no intel-rapl zone under class/powercap".to_owned(),
        _ => why.to_string(),
    };
    match mend(kind, why, virtual_machine) {
        Some(mend) => format!("{what}; {mend}"),
        None => what,
    }
}

/// The one line that mends it; `None` where none is known.
pub(crate) fn mend(
    kind: CpuEnergyKind,
    why: &Unavailable,
    virtual_machine: bool,
) -> Option<&'static str> {
    match (why, kind) {
        (Unavailable::Broken(_), _) => None,
        (Unavailable::Denied(_), CpuEnergyKind::Perf) => Some("run as root, or with CAP_PERFMON"),
        (Unavailable::Denied(_), _) => Some("run as root, or with CAP_DAC_READ_SEARCH"),
        (Unavailable::Absent | Unavailable::Empty, _) if virtual_machine => Some(
            "the hypervisor of this virtual machine hides RAPL: measure on the host, or use \
             --cpu-energy estimate",
        ),
        (Unavailable::Absent | Unavailable::Empty, CpuEnergyKind::Perf) => {
            Some("try `modprobe rapl`, or use --cpu-energy estimate")
        }
        (Unavailable::Absent | Unavailable::Empty, _) => {
            Some("try `modprobe intel_rapl_msr`, or use --cpu-energy estimate")
        }
    }
}

/// Opens the source that `choice` asks for.
///
/// # Errors
///
/// [`Error::Cannot`] as [`decide`].
pub fn open_cpu_energy(
    choice: CpuEnergyChoice,
    roots: &Roots,
    topology: &Topology,
) -> Result<CpuEnergy, Error> {
    use CpuEnergyChoice::{Auto, Perf, Powercap};

    let cpu = CpuModel::read(&roots.procfs);
    // What nobody will use is not opened, and counts as absent.
    let mut perf = Err(Unavailable::Absent);
    if matches!(choice, Auto | Perf) {
        perf = PerfMeter::open(&roots.sysfs, topology);
    }
    let mut powercap = Err(Unavailable::Absent);
    if choice == Powercap || (choice == Auto && perf.is_err()) {
        powercap = PowercapMeter::open(&roots.sysfs, topology);
    }
    let facts = Facts {
        perf: perf.as_ref().err().cloned(),
        powercap: powercap.as_ref().err().cloned(),
        virtual_machine: cpu.virtual_machine,
    };
    let Decision { kind, mut notes } = decide(choice, &facts)?;

    let mut basis = None;
    let mut static_power = StaticPowerSource::default();
    let mut measured = |(meter, more): (Box<dyn EnergyMeter>, Vec<String>)| {
        notes.extend(more);
        meter
    };
    let meter = match kind {
        CpuEnergyKind::Perf => perf.ok().map(|(m, more)| measured((Box::new(m), more))),
        CpuEnergyKind::Powercap => powercap.ok().map(|(m, more)| measured((Box::new(m), more))),
        CpuEnergyKind::Estimate => EstimateMeter::new(&cpu, topology).map(|meter| {
            basis = Some(meter.basis().to_owned());
            static_power.kind = StaticPowerKind::Estimate;
            let watts = meter.static_watts().into_iter();
            static_power.watts = watts.map(|(domain, watts)| (domain, Some(watts))).collect();
            Box::new(meter) as Box<dyn EnergyMeter>
        }),
        CpuEnergyKind::None => None,
    };
    let domains = meter.iter().flat_map(|meter| meter.domains());
    let domains = domains.map(|domain| domain.name.clone()).collect();
    Ok(CpuEnergy { source: CpuEnergySource { kind, domains, basis }, meter, static_power, notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(perf: Option<Unavailable>, powercap: Option<Unavailable>) -> Facts {
        Facts { perf, powercap, virtual_machine: false }
    }

    fn auto(perf: Option<Unavailable>, powercap: Option<Unavailable>) -> Decision {
        decide(CpuEnergyChoice::Auto, &facts(perf, powercap)).unwrap()
    }

    #[test]
    fn auto_takes_the_best_there_is_and_says_why_no_better() {
        let absent = || Some(Unavailable::Absent);
        assert_eq!(auto(None, None), Decision { kind: CpuEnergyKind::Perf, notes: vec![] });
        assert_eq!(auto(absent(), None), Decision { kind: CpuEnergyKind::Powercap, notes: vec![] });
        let empty = auto(Some(Unavailable::Empty), None);
        assert_eq!(empty.kind, CpuEnergyKind::Powercap);
        assert!(empty.notes[0].contains("stay at zero"), "{empty:?}");

        let none = auto(absent(), absent());
        assert_eq!(none.kind, CpuEnergyKind::Estimate);
        assert!(none.notes[0].contains("modprobe"), "{none:?}");
        let denied = auto(absent(), Some(Unavailable::Denied("/sys/energy_uj".into())));
        assert_eq!(denied.kind, CpuEnergyKind::Estimate);
        assert!(denied.notes[0].contains("run as root"), "{denied:?}");
    }

    #[test]
    fn by_name_it_is_that_source_or_an_error_that_says_what_to_do() {
        let machine = |unavailable: Option<Unavailable>, virtual_machine| Facts {
            perf: unavailable.clone(),
            powercap: unavailable,
            virtual_machine,
        };
        for (choice, kind) in [
            (CpuEnergyChoice::Perf, CpuEnergyKind::Perf),
            (CpuEnergyChoice::Powercap, CpuEnergyKind::Powercap),
        ] {
            assert_eq!(decide(choice, &machine(None, true)).unwrap().kind, kind);
            for (why, virtual_machine, what_to_do) in [
                (Unavailable::Absent, true, "measure on the host"),
                (Unavailable::Absent, false, "modprobe"),
                (Unavailable::Denied("/x".into()), true, "run as root"),
                (Unavailable::Empty, true, "--cpu-energy estimate"),
                (Unavailable::Broken("/x is odd".into()), false, "/x is odd"),
            ] {
                let error = decide(choice, &machine(Some(why), virtual_machine)).unwrap_err();
                let Error::Cannot(message) = &error else { panic!("{error:?}") };
                assert!(message.contains(what_to_do), "{message}");
            }
        }
        let broken = machine(Some(Unavailable::Empty), false);
        let kind = |choice| decide(choice, &broken).unwrap().kind;
        assert_eq!(kind(CpuEnergyChoice::Estimate), CpuEnergyKind::Estimate);
        assert_eq!(kind(CpuEnergyChoice::None), CpuEnergyKind::None);
    }
}
