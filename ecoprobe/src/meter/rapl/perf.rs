//! RAPL through the perf `power` PMU: 64-bit counters that the kernel keeps from wrapping, and one
//! read for all counters of a package.

use std::io::{self, ErrorKind};
use std::path::Path;

use super::alive::{self, Counters, has_package};
use super::overlap::{self, Shown, Use, View};
use super::{MOST_DRAM_WATTS, MOST_PACKAGE_WATTS, Unavailable, dram_name};
use crate::base::Component;
use crate::base::monotonic_ns;
use crate::event::{Domain, Reading};
use crate::host::power_pmu::{self, PowerPmu};
use crate::host::powercap::ZoneKind;
use crate::host::topology::{self, PackageId, Place, Topology};
use crate::meter::EnergyMeter;
use crate::meter::perf_events::Events;

/// The events that are read; the others overlap with them.
const EVENTS: [(&str, Component, f64); 2] = [
    ("energy-pkg", Component::Cpu, MOST_PACKAGE_WATTS),
    ("energy-ram", Component::Dram, MOST_DRAM_WATTS),
];

/// Reads the `power` PMU: a group of events for each CPU of its mask.
#[derive(Debug)]
pub struct PerfMeter {
    domains: Vec<Domain>,
    groups: Vec<Group>,
}

impl PerfMeter {
    /// Opens the PMU that `sysfs` describes, on a machine of so many CPUs whose maker counts
    /// `by_socket` or does not. What a package is there the topology says; the last value says in
    /// sentences what is left out. Whether the counters move is for later.
    ///
    /// # Errors
    ///
    /// If no package's counter can be opened.
    pub fn open(
        sysfs: &Path,
        possible_cpus: usize,
        by_socket: bool,
    ) -> Result<(Self, Topology, Vec<String>), Unavailable> {
        let broken = |problem: crate::host::BadFact| Unavailable::Broken(problem.to_string());
        let pmu = power_pmu::read(sysfs).map_err(broken)?.ok_or(Unavailable::Absent)?;
        let mut notes: Vec<String> =
            pmu.problems.iter().map(|problem| format!("an event is left out: {problem}")).collect();
        let package_event = EVENTS[0].0;
        if !pmu.events.iter().any(|event| event.name == package_event) {
            let about = |file: &str| file.split('.').next() == Some(package_event);
            let known = pmu.problems.iter().find(|problem| {
                problem.path.file_name().is_some_and(|file| about(&file.to_string_lossy()))
            });
            return Err(Unavailable::Broken(match known {
                Some(problem) => format!("it has no usable {package_event} event: {problem}"),
                None => format!("it describes no {package_event} event"),
            }));
        }

        let places = topology::places(sysfs, possible_cpus);
        let view = |cpu: &usize| View {
            kind: ZoneKind::Package,
            package: places
                .get(*cpu)
                .copied()
                .flatten()
                .map(|Place { socket, die }| PackageId { socket, die: Some(die) }),
            mmio: false,
            equals: None,
            works: true,
        };
        let views: Vec<View> = pmu.cpus.iter().map(view).collect();
        let plan = overlap::plan(Shown::ByEvent { by_socket }, &views);
        let topology = Topology::read(sysfs, possible_cpus, plan.grain);

        let mut meter = Self { domains: Vec::new(), groups: Vec::new() };
        let mut errors: Vec<(PackageId, Refused)> = Vec::new();
        for (&cpu, used) in pmu.cpus.iter().zip(&plan.uses) {
            let package = match *used {
                Use::Read(package) => package,
                // It counts the same as another CPU's, and stands in for one that is refused.
                Use::Again { of, .. } => match plan.uses.get(of) {
                    Some(&Use::Read(package)) if uncounted(&errors, package) => package,
                    _ => continue,
                },
                _ => continue,
            };
            let refused = meter.open_package(&pmu, cpu, package, &topology);
            if matches!(used, Use::Again { .. }) {
                errors.retain(|(other, _)| *other != package);
            }
            errors.extend(refused.into_iter().map(|refused| (package, refused)));
        }
        notes.extend(errors.iter().map(|(_, Refused { name, cpu, error, .. })| {
            format!("{name} is left out: perf_event_open on CPU {cpu}: {error}")
        }));
        let refused = errors.into_iter().map(|(_, refused)| refused);
        let refused = refused.filter(|refused| refused.component == Component::Cpu);
        let refused = refused.map(|refused| refused.error).next();
        if has_package(&meter.domains) {
            return Ok((meter, topology, notes));
        }
        Err(match refused {
            Some(error) if error.kind() == ErrorKind::PermissionDenied => {
                Unavailable::Denied("perf_event_open".into())
            }
            Some(error) => Unavailable::Broken(format!("perf_event_open on it: {error}")),
            None => Unavailable::Absent,
        })
    }

    /// Opens the events of one package that are not open yet; returns those that cannot be.
    fn open_package(
        &mut self,
        pmu: &PowerPmu,
        cpu: usize,
        package: PackageId,
        topology: &Topology,
    ) -> Vec<Refused> {
        let mut package_name = package.to_string();
        let index = topology.package(&package_name).unwrap_or(0);
        if self.domains.iter().any(|domain| domain.name == package_name) {
            // The topology does not tell the two apart, the PMU does: no joule is left out.
            package_name = format!("{package_name}-cpu-{cpu}");
        }
        let mut errors = Vec::new();
        let mut group = Group::default();
        for (event_name, component, max_watts) in EVENTS {
            let event = pmu.events.iter().find(|event| event.name == event_name);
            let Some(event) = event else { continue };
            let name = match component {
                Component::Dram => dram_name(&package_name),
                _ => package_name.clone(),
            };
            if self.domains.iter().any(|domain| domain.name == name) {
                continue;
            }
            let mut opened = group.events.add(pmu.kind, event.config, cpu);
            // One that does not go with the others may go alone.
            if opened.is_err() && !group.events.is_empty() {
                let mut own = Group::default();
                opened = own.events.add(pmu.kind, event.config, cpu);
                if opened.is_ok() {
                    self.groups.push(std::mem::replace(&mut group, own));
                }
            }
            if let Err(error) = opened {
                errors.push(Refused { name, component, cpu, error });
                continue;
            }
            group.domains.push(Some(self.domains.len()));
            self.domains.push(Domain {
                name,
                component,
                package: index,
                joules_per_count: event.joules_per_count,
                range: None,
                max_watts,
            });
        }
        if !group.events.is_empty() {
            self.groups.push(group);
        }
        errors
    }
}

/// An event that cannot be opened.
struct Refused {
    /// Of its domain.
    name: String,
    component: Component,
    cpu: usize,
    error: io::Error,
}

/// Whether the package's own event was refused.
fn uncounted(errors: &[(PackageId, Refused)], package: PackageId) -> bool {
    errors.iter().any(|(other, it)| *other == package && it.component == Component::Cpu)
}

impl Counters for PerfMeter {
    fn retain(&mut self, keep: &[bool]) {
        let mut kept = 0;
        let renumbered: Vec<Option<usize>> = keep
            .iter()
            .map(|keep| {
                kept += usize::from(*keep);
                keep.then(|| kept - 1)
            })
            .collect();
        for place in self.groups.iter_mut().flat_map(|group| &mut group.domains) {
            *place = place.and_then(|domain| renumbered.get(domain).copied().flatten());
        }
        self.groups.retain(|group| group.domains.iter().any(Option::is_some));
        alive::retain(&mut self.domains, keep);
    }
}

impl EnergyMeter for PerfMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, readings: &mut Vec<Result<Reading, String>>) {
        readings.clear();
        readings.resize_with(self.domains.len(), || Ok(Reading { mono_ns: 0, count: 0 }));
        for group in &self.groups {
            let mut counts = [0; EVENTS.len()];
            let before = monotonic_ns();
            let result = group.events.read(&mut counts[..group.domains.len()]);
            let mono_ns = before.midpoint(monotonic_ns());
            for (place, &count) in group.domains.iter().zip(&counts) {
                if let Some(reading) = place.and_then(|domain| readings.get_mut(domain)) {
                    *reading = match &result {
                        Ok(()) => Ok(Reading { mono_ns, count }),
                        Err(error) => Err(format!("the power PMU: {error}")),
                    };
                }
            }
        }
    }
}

/// Events of one package that are read together.
#[derive(Debug, Default)]
struct Group {
    events: Events,
    /// For each event in order, its domain; `None` for one that is left out.
    domains: Vec<Option<usize>>,
}
