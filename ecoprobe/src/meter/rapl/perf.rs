//! RAPL through the perf `power` PMU: 64-bit counters that the kernel keeps from wrapping, and one
//! read for all counters of a package.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

// The `power` PMU is a dynamic one: its type, its codes and its CPUs are whatever this machine's sysfs
// says. The perf-event crate of the same author opens the kernel's own kinds of events, on a task or
// a CPU, and keeps such attributes to itself; what is needed here is the call, and this is it.
use perf_event_open_sys::bindings::{PERF_FLAG_FD_CLOEXEC, PERF_FORMAT_GROUP, perf_event_attr};
use perf_event_open_sys::perf_event_open;

use super::alive::{self, Counters, has_package};
use super::overlap::{self, Shown, Use, View};
use super::{MOST_DRAM_WATTS, MOST_PACKAGE_WATTS, Unavailable, dram_name};
use crate::base::Component;
use crate::base::monotonic_ns;
use crate::event::{Domain, Reading};
use crate::host::power_pmu::{self, PmuEvent, PowerPmu};
use crate::host::powercap::ZoneKind;
use crate::host::topology::{self, PackageId, Place, Topology};
use crate::meter::EnergyMeter;

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
            let mut opened = group.add(pmu.kind, event, cpu);
            // One that does not go with the others may go alone.
            if opened.is_err() && group.leader.is_some() {
                let mut own = Group::default();
                opened = own.add(pmu.kind, event, cpu);
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
        if group.leader.is_some() {
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
            let result = group.read(&mut counts);
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
    leader: Option<File>,
    /// Only kept from being closed.
    members: Vec<OwnedFd>,
    /// For each event in order, its domain; `None` for one that is left out.
    domains: Vec<Option<usize>>,
}

impl Group {
    fn add(&mut self, kind: u32, event: &PmuEvent, cpu: usize) -> io::Result<()> {
        let fd = open_event(kind, event.config, cpu, self.leader.as_ref())?;
        match self.leader {
            None => self.leader = Some(fd.into()),
            Some(_) => self.members.push(fd),
        }
        Ok(())
    }

    /// Reads all of the group's counts, in the order of `add`.
    fn read(&self, counts: &mut [u64; EVENTS.len()]) -> io::Result<()> {
        const WORD: usize = size_of::<u64>();
        // PERF_FORMAT_GROUP: the number of values, then the values.
        let mut buffer = [0; WORD * (1 + EVENTS.len())];
        let mut leader = self.leader.as_ref().ok_or(ErrorKind::NotFound)?;
        let length = leader.read(&mut buffer)?;
        let mut words = buffer
            .get(..length)
            .unwrap_or_default()
            .chunks_exact(WORD)
            .map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
        // An event whose CPU went offline is in error and reads as nothing at all.
        let expected = self.domains.len();
        if words.next() != Some(expected as u64) || words.len() != expected {
            return Err(io::Error::other("the counters went away (is their CPU still online?)"));
        }
        for (count, word) in counts.iter_mut().zip(words) {
            *count = word;
        }
        Ok(())
    }
}

/// Opens a counting event for everything that happens on `cpu`.
fn open_event(
    kind: u32,
    config: [u64; 3],
    cpu: usize,
    leader: Option<&File>,
) -> io::Result<OwnedFd> {
    let mut attributes = perf_event_attr {
        type_: kind,
        size: size_of::<perf_event_attr>() as u32,
        config: config[0],
        // Filters (exclude_user and so on) stay off: the PMU counts watts of everybody, and refuses.
        read_format: PERF_FORMAT_GROUP as u64,
        ..Default::default()
    };
    attributes.__bindgen_anon_3.config1 = config[1];
    attributes.__bindgen_anon_4.config2 = config[2];
    let cpu = cpu.try_into().map_err(|_| ErrorKind::InvalidInput)?;
    let leader = leader.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: `attributes` is a valid perf_event_attr whose `size` is its own, and lives through the
    // call; the kernel reads it and keeps no pointer to it.
    let fd =
        unsafe { perf_event_open(&mut attributes, -1, cpu, leader, PERF_FLAG_FD_CLOEXEC.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
