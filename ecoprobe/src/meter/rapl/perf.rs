//! RAPL through the perf `power` PMU: 64-bit counters that the kernel keeps from wrapping, and one
//! read for all counters of a package.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use perf_event_open_sys::bindings::{PERF_FLAG_FD_CLOEXEC, PERF_FORMAT_GROUP, perf_event_attr};
use perf_event_open_sys::perf_event_open;

use super::{MOST_DRAM_WATTS, MOST_PACKAGE_WATTS, Unavailable, dram_name};
use crate::base::Component;
use crate::base::monotonic_ns;
use crate::event::{Domain, Reading};
use crate::host::power_pmu::{self, PmuEvent, PowerPmu};
use crate::host::topology::Topology;
use crate::meter::EnergyMeter;

/// The events that are read; the others overlap with them.
const EVENTS: [(&str, Component, f64); 2] = [
    ("energy-pkg", Component::Cpu, MOST_PACKAGE_WATTS),
    ("energy-ram", Component::Dram, MOST_DRAM_WATTS),
];

/// How long a counter may stay at zero before it is taken for dead. The registers move every
/// millisecond or so, by 61 µJ a step at most machines: at 1 W 20 ms are hundreds of steps.
const FIRST_MOVE: Duration = Duration::from_millis(20);

/// Reads the `power` PMU: a group of events for each CPU of its mask.
#[derive(Debug)]
pub struct PerfMeter {
    domains: Vec<Domain>,
    groups: Vec<Group>,
}

impl PerfMeter {
    /// Opens the PMU that `sysfs` describes and waits for its counters to move; the second value
    /// says in sentences what is left out.
    ///
    /// # Errors
    ///
    /// If no package's counter can be opened, or none moves.
    pub fn open(sysfs: &Path, topology: &Topology) -> Result<(Self, Vec<String>), Unavailable> {
        let broken = |problem: crate::host::BadFact| Unavailable::Broken(problem.to_string());
        let pmu = power_pmu::read(sysfs).map_err(broken)?.ok_or(Unavailable::Absent)?;
        let mut notes: Vec<String> =
            pmu.problems.iter().map(|problem| format!("an event is left out: {problem}")).collect();
        if !pmu.events.iter().any(|event| event.name == EVENTS[0].0) {
            return Err(Unavailable::Broken(format!("it has no usable {} event", EVENTS[0].0)));
        }
        let mut meter = Self { domains: Vec::new(), groups: Vec::new() };
        let mut refused = None;
        for &cpu in &pmu.cpus {
            match meter.open_group(&pmu, cpu, topology) {
                Ok(()) => {}
                Err(error) => {
                    notes.push(format!("the package of CPU {cpu} is left out: {error}"));
                    refused.get_or_insert(error);
                }
            }
        }
        if let Some(error) = refused.filter(|_| meter.groups.is_empty()) {
            return Err(match error.kind() {
                ErrorKind::PermissionDenied => Unavailable::Denied("perf_event_open".into()),
                _ => Unavailable::Broken(format!("perf_event_open on it: {error}")),
            });
        }
        meter.drop_dead(&mut notes);
        if meter.domains.iter().any(|domain| domain.component == Component::Cpu) {
            Ok((meter, notes))
        } else {
            Err(Unavailable::Empty)
        }
    }

    fn open_group(&mut self, pmu: &PowerPmu, cpu: usize, topology: &Topology) -> io::Result<()> {
        let package = topology.package_of_cpu.get(cpu).copied().unwrap_or(0);
        let mut package_name = topology
            .packages
            .get(package)
            .map_or_else(|| format!("package-{package}"), |package| package.name.clone());
        if self.domains.iter().any(|domain| domain.name == package_name) {
            // The topology does not tell the two apart, the PMU does: no joule is left out.
            package_name = format!("{package_name}-cpu-{cpu}");
        }
        let mut group = Group { leader: None, members: Vec::new(), domains: Vec::new() };
        let mut domains = Vec::new();
        for (name, component, max_watts) in EVENTS {
            let Some(event) = pmu.events.iter().find(|event| event.name == name) else { continue };
            group.add(pmu.kind, event, cpu)?;
            group.domains.push(Some(self.domains.len() + domains.len()));
            domains.push(Domain {
                name: match component {
                    Component::Dram => dram_name(&package_name),
                    _ => package_name.clone(),
                },
                component,
                package,
                joules_per_count: event.joules_per_count,
                range: None,
                max_watts,
            });
        }
        self.domains.extend(domains);
        self.groups.push(group);
        Ok(())
    }

    /// Leaves out the counters that stay at zero: a hypervisor may show the PMU and no energy.
    fn drop_dead(&mut self, notes: &mut Vec<String>) {
        let started = Instant::now();
        let (mut readings, mut problems) = (Vec::new(), Vec::new());
        let moved = |reading: &Option<Reading>| reading.is_some_and(|reading| reading.count > 0);
        loop {
            problems.clear();
            self.read(0, &[], &mut readings, &mut problems);
            if readings.iter().all(moved) || started.elapsed() >= FIRST_MOVE {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        notes.append(&mut problems);
        let alive: Vec<bool> = readings.iter().map(moved).collect();
        let mut kept = 0;
        let renumbered: Vec<Option<usize>> = alive
            .iter()
            .map(|alive| {
                kept += usize::from(*alive);
                alive.then(|| kept - 1)
            })
            .collect();
        for place in self.groups.iter_mut().flat_map(|group| &mut group.domains) {
            *place = place.and_then(|domain| renumbered.get(domain).copied().flatten());
        }
        let mut alive = alive.into_iter();
        self.domains.retain(|domain| {
            let keep = alive.next().unwrap_or(false);
            if !keep {
                notes.push(format!("{} is left out: its counter stays at zero", domain.name));
            }
            keep
        });
    }
}

impl EnergyMeter for PerfMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(
        &mut self,
        _mono_ns: u64,
        _cpu_ns: &[Vec<u64>],
        readings: &mut Vec<Option<Reading>>,
        problems: &mut Vec<String>,
    ) {
        readings.clear();
        readings.resize(self.domains.len(), None);
        for group in &self.groups {
            let mut counts = [0; EVENTS.len()];
            let before = monotonic_ns();
            let result = group.read(&mut counts);
            let mono_ns = before.midpoint(monotonic_ns());
            for (place, &count) in group.domains.iter().zip(&counts) {
                let Some(domain) = *place else { continue };
                match &result {
                    Ok(()) => {
                        if let Some(reading) = readings.get_mut(domain) {
                            *reading = Some(Reading { mono_ns, count });
                        }
                    }
                    Err(error) => problems.extend(self.domains.get(domain).map(|domain| {
                        format!("{} cannot be read from the power PMU: {error}", domain.name)
                    })),
                }
            }
        }
    }
}

/// The events of one package, read together.
#[derive(Debug)]
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
