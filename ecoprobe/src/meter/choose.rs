//! Which source the CPU's energy comes from. Facts are found, a pure function decides, the sources
//! are opened; and the one that is kept has worked once: its counters moved.

use std::path::PathBuf;
use std::time::Instant;

use super::EnergyMeter;
use super::rapl::Unavailable;
use super::rapl::alive::{Counters, drop_dead};
use super::rapl::perf::PerfMeter;
use super::rapl::powercap::PowercapMeter;
use crate::base::error::Error;
use crate::event::sources::{CpuEnergyKind, CpuEnergySource, CpuFacts};
use crate::host::Roots;
use crate::host::cpu::{Architecture, CpuModel};
use crate::host::topology::{Grain, Topology};

/// The source that is used, and what the report says about it.
#[derive(Debug)]
pub struct CpuEnergy {
    /// `None` for an estimate, and if no figures were asked for.
    pub meter: Option<Box<dyn EnergyMeter>>,
    /// Its `basis` is for whoever makes the estimate.
    pub source: CpuEnergySource,
    /// What a package is depends on what is counted.
    pub topology: Topology,
    /// What an estimate would rest on.
    pub cpu: CpuFacts,
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
pub(crate) struct Facts {
    /// `None`: usable.
    pub perf: Option<Unavailable>,
    pub powercap: Option<Unavailable>,
    pub virtual_machine: bool,
    pub architecture: Architecture,
}

/// The source to use, and why no better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
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
pub(crate) fn decide(choice: CpuEnergyChoice, facts: &Facts) -> Result<Decision, Error> {
    let by_name = |kind, name, unavailable: &Option<Unavailable>| match unavailable {
        None => Ok(Decision { kind, notes: Vec::new() }),
        Some(why) => Err(Error::Cannot(format!(
            "--cpu-energy {name} cannot be used: {}",
            explain(kind, why, facts)
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
    match (&facts.perf, &facts.powercap) {
        (None, _) => Decision { kind: CpuEnergyKind::Perf, notes: Vec::new() },
        (Some(perf), None) => {
            // Powercap measures just as well: only what somebody might want to mend is said.
            let mendable = !matches!(perf, Unavailable::Absent);
            let note = || {
                let why = explain(CpuEnergyKind::Perf, perf, facts);
                format!("CPU energy comes from powercap, not from perf: {why}")
            };
            Decision {
                kind: CpuEnergyKind::Powercap,
                notes: mendable.then(note).into_iter().collect(),
            }
        }
        (Some(perf), Some(powercap)) => Decision {
            kind: CpuEnergyKind::Estimate,
            notes: vec![why_estimate(perf, powercap, facts)],
        },
    }
}

/// Both reasons, and what would mend each; the other half of the advice, to estimate, is taken
/// already.
fn why_estimate(perf: &Unavailable, powercap: &Unavailable, facts: &Facts) -> String {
    let mend = |kind, why| Mend::of(kind, why, facts).map_or("", |mend| mend.what);
    let for_perf = mend(CpuEnergyKind::Perf, perf);
    let for_powercap = mend(CpuEnergyKind::Powercap, powercap);
    let why = match (perf, powercap) {
        (Unavailable::Absent, Unavailable::Absent) => {
            let mend =
                if for_powercap.is_empty() { String::new() } else { format!(" ({for_powercap})") };
            format!("this machine shows no RAPL counter{mend}")
        }
        _ => {
            let mut why = format!("perf: {}", what(CpuEnergyKind::Perf, perf));
            if for_perf != for_powercap && !for_perf.is_empty() {
                why += &format!("; {for_perf}");
            }
            why += &format!("; powercap: {}", what(CpuEnergyKind::Powercap, powercap));
            if !for_powercap.is_empty() {
                why += &format!("; {for_powercap}");
            }
            why
        }
    };
    format!("CPU energy is an estimate, not a measurement: {why}")
}

/// Why, in words of its own for what is not there.
fn what(kind: CpuEnergyKind, why: &Unavailable) -> String {
    match (kind, why) {
        (CpuEnergyKind::Perf, Unavailable::Absent) => {
            "there is no `power` PMU under bus/event_source/devices".to_owned()
        }
        (_, Unavailable::Absent) => "there is no intel-rapl zone under class/powercap".to_owned(),
        _ => why.to_string(),
    }
}

/// Why, and what to do.
fn explain(kind: CpuEnergyKind, why: &Unavailable, facts: &Facts) -> String {
    let what = what(kind, why);
    match mend(kind, why, facts) {
        Some(mend) => format!("{what}; {mend}"),
        None => what,
    }
}

/// The one line that mends it; `None` where none is known.
pub(crate) fn mend(kind: CpuEnergyKind, why: &Unavailable, facts: &Facts) -> Option<String> {
    Mend::of(kind, why, facts).map(|mend| match mend.or_estimate {
        true => format!("{}, or use --cpu-energy estimate", mend.what),
        false => mend.what.to_owned(),
    })
}

struct Mend {
    what: &'static str,
    or_estimate: bool,
}

impl Mend {
    fn of(kind: CpuEnergyKind, why: &Unavailable, facts: &Facts) -> Option<Self> {
        let nothing_there = matches!(why, Unavailable::Absent | Unavailable::Empty);
        let what = match (why, kind) {
            (Unavailable::Broken(_), _) => return None,
            (Unavailable::Denied(_), CpuEnergyKind::Perf) => "run as root, or with CAP_PERFMON",
            (Unavailable::Denied(_), _) => "run as root, or with CAP_DAC_READ_SEARCH",
            (Unavailable::Masked(_), _) => {
                "a container runtime masks them: run the container privileged, or mount the host's \
                 /sys into it and name that with --sysfs"
            }
            (Unavailable::Absent | Unavailable::Empty, _) => match facts.architecture {
                Architecture::Arm => {
                    "Arm processors have no RAPL (some machines show power in class/hwmon, which \
                     is not read): measure elsewhere"
                }
                Architecture::Power => {
                    "POWER processors have no RAPL (their OCC shows power in class/hwmon, which is \
                     not read): measure elsewhere"
                }
                Architecture::Other => "this architecture has no RAPL: measure elsewhere",
                Architecture::X86 if facts.virtual_machine => {
                    "the hypervisor of this virtual machine hides RAPL: measure on the host"
                }
                Architecture::X86 if *why == Unavailable::Empty => {
                    "the firmware or a hypervisor holds the counters back: measure elsewhere"
                }
                Architecture::X86 if kind == CpuEnergyKind::Perf => "try `modprobe rapl`",
                Architecture::X86 => "try `modprobe intel_rapl_msr`",
            },
        };
        Some(Self { what, or_estimate: nothing_there })
    }
}

/// A source that is open, and has yet to show that its counters move.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) meter: Box<dyn Counters>,
    pub(crate) topology: Topology,
    pub(crate) notes: Vec<String>,
    opened: Instant,
}

type Found = Result<Candidate, Unavailable>;

/// The sources that a choice may come down to, open. Time passes usefully between
/// [`Opened::open`] and [`Opened::confirm`]: a counter is given some before it is called dead.
#[derive(Debug)]
pub struct Opened {
    choice: CpuEnergyChoice,
    cpu: CpuModel,
    sysfs: PathBuf,
    possible_cpus: usize,
    pub(crate) perf: Found,
    pub(crate) powercap: Found,
    /// Of a machine whose energy nobody counts.
    plain: Topology,
}

impl Opened {
    /// Opens what `choice` may come down to, on a machine of so many possible CPUs.
    ///
    /// # Errors
    ///
    /// [`Error::Cannot`] as [`decide`].
    pub fn open(
        choice: CpuEnergyChoice,
        roots: &Roots,
        possible_cpus: usize,
    ) -> Result<Self, Error> {
        use CpuEnergyChoice::{Auto, Perf, Powercap};

        let sysfs = roots.sysfs.clone();
        let mut opened = Self {
            choice,
            cpu: CpuModel::read(&roots.procfs),
            plain: Topology::read(&sysfs, possible_cpus, Grain::default()),
            sysfs,
            possible_cpus,
            // What nobody will use is not opened, and counts as absent.
            perf: Err(Unavailable::Absent),
            powercap: Err(Unavailable::Absent),
        };
        if matches!(choice, Auto | Perf) {
            let by_socket = opened.cpu.counts_by_socket();
            opened.perf = PerfMeter::open(&opened.sysfs, possible_cpus, by_socket)
                .map(|(meter, topology, notes)| Candidate::new(meter, topology, notes));
        }
        if choice == Powercap || (choice == Auto && opened.perf.is_err()) {
            opened.open_powercap();
        }
        opened.decide()?;
        Ok(opened)
    }

    fn open_powercap(&mut self) {
        self.powercap = PowercapMeter::open(&self.sysfs, self.possible_cpus)
            .map(|(meter, topology, notes)| Candidate::new(meter, topology, notes));
    }

    /// What a package is, should the source that is preferred now work. [`CpuEnergy::topology`] is
    /// what counts.
    pub fn topology(&self) -> &Topology {
        let chosen = match self.decide().map(|decision| decision.kind) {
            Ok(CpuEnergyKind::Perf) => self.perf.as_ref().ok(),
            Ok(CpuEnergyKind::Powercap) => self.powercap.as_ref().ok(),
            _ => None,
        };
        chosen.map_or(&self.plain, |candidate| &candidate.topology)
    }

    /// Waits until the counters of the source have moved, or have had the time to; what is dead
    /// gives way to the next source, and a note says so.
    ///
    /// # Errors
    ///
    /// [`Error::Cannot`] as [`decide`]: a source that was asked for by name is dead.
    pub fn confirm(mut self) -> Result<CpuEnergy, Error> {
        if self.perf.is_ok() {
            prove(&mut self.perf);
            if self.perf.is_err() && self.choice == CpuEnergyChoice::Auto {
                self.open_powercap();
            }
        }
        if self.perf.is_err() {
            prove(&mut self.powercap);
        }
        let Decision { kind, mut notes } = self.decide()?;
        let chosen = match kind {
            CpuEnergyKind::Perf => self.perf.ok(),
            CpuEnergyKind::Powercap => self.powercap.ok(),
            CpuEnergyKind::Estimate | CpuEnergyKind::None => None,
        };
        let (meter, topology) = match chosen {
            Some(Candidate { meter, topology, notes: more, .. }) => {
                notes.extend(more);
                (Some(meter as Box<dyn EnergyMeter>), topology)
            }
            None => (None, self.plain),
        };
        let domains = match (&meter, kind) {
            (Some(meter), _) => meter.domains().iter().map(|domain| domain.name.clone()).collect(),
            (None, CpuEnergyKind::Estimate) => {
                topology.packages.iter().map(|package| package.name.clone()).collect()
            }
            (None, _) => Vec::new(),
        };
        let cpu = self.cpu.facts(&topology);
        let source = CpuEnergySource { kind, domains, basis: None };
        Ok(CpuEnergy { meter, source, topology, cpu, notes })
    }

    /// The same trial of every source, for whoever wants to know of all of them.
    pub(crate) fn confirm_all(&mut self) {
        if self.perf.is_ok() {
            self.open_powercap();
        }
        prove(&mut self.perf);
        prove(&mut self.powercap);
    }

    pub(crate) fn decide(&self) -> Result<Decision, Error> {
        decide(self.choice, &self.facts())
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts {
            perf: self.perf.as_ref().err().cloned(),
            powercap: self.powercap.as_ref().err().cloned(),
            virtual_machine: self.cpu.virtual_machine,
            architecture: self.cpu.architecture(),
        }
    }

    pub(crate) fn cpu(&self) -> &CpuModel {
        &self.cpu
    }
}

impl Candidate {
    fn new(meter: impl Counters + 'static, topology: Topology, notes: Vec<String>) -> Self {
        Self { meter: Box::new(meter), topology, notes, opened: Instant::now() }
    }
}

/// A source whose counters are all dead is none.
fn prove(found: &mut Found) {
    if let Ok(Candidate { meter, notes, opened, .. }) = found
        && let Err(dead) = drop_dead(meter.as_mut(), *opened, notes)
    {
        *found = Err(dead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(perf: Option<Unavailable>, powercap: Option<Unavailable>) -> Facts {
        Facts { perf, powercap, virtual_machine: false, architecture: Architecture::X86 }
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
            architecture: Architecture::X86,
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

    #[test]
    fn the_advice_is_for_this_architecture() {
        let message = |architecture, unavailable: Unavailable, choice| {
            let facts = Facts {
                perf: Some(unavailable.clone()),
                powercap: Some(unavailable),
                virtual_machine: false,
                architecture,
            };
            match decide(choice, &facts) {
                Ok(decision) => decision.notes.concat(),
                Err(error) => error.to_string(),
            }
        };
        use CpuEnergyChoice::{Auto, Perf, Powercap};
        for choice in [Auto, Perf, Powercap] {
            for why in [Unavailable::Absent, Unavailable::Empty] {
                for architecture in [Architecture::Arm, Architecture::Power, Architecture::Other] {
                    let said = message(architecture, why.clone(), choice);
                    assert!(!said.contains("modprobe") && said.contains("no RAPL"), "{said}");
                }
            }
            assert!(message(Architecture::X86, Unavailable::Absent, choice).contains("modprobe"));
            // What is there needs no module.
            let dead = message(Architecture::X86, Unavailable::Empty, choice);
            assert!(!dead.contains("modprobe") && dead.contains("stay at zero"), "{dead}");
            let masked = Unavailable::Masked("/sys/class/powercap/intel-rapl:0".into());
            let said = message(Architecture::X86, masked, choice);
            assert!(said.contains("lead nowhere") && said.contains("--sysfs"), "{said}");
            // Nobody who is given the estimate needs to be told to use it.
            assert_eq!(dead.contains("--cpu-energy estimate"), choice != Auto, "{dead}");
        }
    }
}
