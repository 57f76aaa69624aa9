//! RAPL through `/sys/class/powercap`: one file a counter, each with its own range.

mod counter;
mod equal;

use std::path::Path;

use self::counter::{Counter, ReadError};
use super::alive::{self, Counters, has_package};
use super::overlap::{self, Plan, Shown, Use, View};
use super::{MOST_DRAM_WATTS, MOST_PACKAGE_WATTS, Unavailable, dram_name};
use crate::base::Component;
use crate::event::{Domain, Reading};
use crate::host::powercap::{Zone, ZoneKind, masked, zones};
use crate::host::read_value;
use crate::host::topology::{PackageId, Topology};
use crate::meter::EnergyMeter;

/// Reads the package and DRAM zones of a powercap tree.
#[derive(Debug)]
pub struct PowercapMeter {
    domains: Vec<Domain>,
    counters: Vec<Counter>,
}

impl PowercapMeter {
    /// Opens what can be read, on a machine of so many CPUs. What a package is there the topology
    /// says; the last value says in sentences what is left out, and what is odd. Whether the counters
    /// move is for later.
    ///
    /// # Errors
    ///
    /// If no package can be read.
    pub fn open(
        sysfs: &Path,
        possible_cpus: usize,
    ) -> Result<(Self, Topology, Vec<String>), Unavailable> {
        let Found { zones, mut counters, mut failed, plan } = Found::look(sysfs);
        let masked = masked(sysfs);
        let topology = Topology::read(sysfs, possible_cpus, plan.grain);

        let mut meter = Self { domains: Vec::new(), counters: Vec::new() };
        let (mut notes, mut refused) = (Vec::new(), None);
        if let Some(first) = masked.first().filter(|_| !zones.is_empty()) {
            let count = masked.len();
            notes.push(format!("{count} zones lead nowhere (such as {})", first.display()));
        }
        let mut read: Vec<(PackageId, usize)> = Vec::new();
        for (index, (zone, used)) in zones.iter().zip(&plan.uses).enumerate() {
            match *used {
                Use::Read(package) => read.push((package, index)),
                Use::Again { of, told: true } => {
                    let first = zones.get(of).map_or("another zone", |zone| zone.id.as_str());
                    notes.push(format!("{} shows {first} again: left out", zone.id));
                }
                Use::Homeless => {
                    notes.push(format!("{} ({}) lies in no package: left out", zone.id, zone.name));
                }
                Use::Again { .. } | Use::Inside | Use::Around | Use::Unknown => {}
            }
        }
        // Packages in order, each before its DRAM.
        read.sort_by_key(|&(package, index)| (package, zones[index].kind == ZoneKind::Dram, index));
        for (package, index) in read {
            let (zone, Some(counter)) = (&zones[index], counters[index].take()) else { continue };
            let name = meter.free_name(package, zone);
            let Some(package) = topology.package(&package.to_string()) else {
                notes.push(format!("{} names {name}, which the topology lacks: left out", zone.id));
                continue;
            };
            if let Some(error) = failed[index].take() {
                notes.push(format!("{name} is left out: {}", error.sentence(&counter.path)));
                refused.get_or_insert((counter.path, error));
                continue;
            }
            notes.extend(counter.oddity(zone));
            let (component, most) = match zone.kind {
                ZoneKind::Dram => (Component::Dram, MOST_DRAM_WATTS),
                _ => (Component::Cpu, MOST_PACKAGE_WATTS),
            };
            meter.domains.push(Domain {
                name,
                component,
                package,
                joules_per_count: 1e-6,
                range: counter.max.and_then(|max| max.checked_add(1)),
                max_watts: most.max(2.0 * largest_limit(&zone.path)),
            });
            meter.counters.push(counter);
        }
        if has_package(&meter.domains) {
            return Ok((meter, topology, notes));
        }
        Err(match (refused, masked.into_iter().next()) {
            (Some((path, error)), _) if error.is_denied() => Unavailable::Denied(path),
            (Some((path, error)), _) => Unavailable::Broken(error.sentence(&path)),
            (None, Some(masked)) => Unavailable::Masked(masked),
            (None, None) => Unavailable::Absent,
        })
    }

    /// What the zone's counter is called. Two counters of one package keep their zones' names.
    fn free_name(&self, package: PackageId, zone: &Zone) -> String {
        let name = |package: PackageId| match zone.kind {
            ZoneKind::Dram => dram_name(&package.to_string()),
            _ => package.to_string(),
        };
        let taken = |name: &String| self.domains.iter().any(|domain| domain.name == *name);
        Some(name(package)).filter(|name| !taken(name)).unwrap_or_else(|| {
            zone.package.map(name).filter(|name| !taken(name)).unwrap_or_else(|| zone.id.clone())
        })
    }
}

/// Every zone of a tree, and what becomes of it.
struct Found {
    zones: Vec<Zone>,
    /// Of packages and DRAM.
    counters: Vec<Option<Counter>>,
    failed: Vec<Option<ReadError>>,
    plan: Plan,
}

impl Found {
    fn look(sysfs: &Path) -> Self {
        let zones = zones(sysfs);
        let mut counters: Vec<Option<Counter>> = zones.iter().map(Counter::of).collect();
        let read = |counter: &mut Option<Counter>| counter.as_mut()?.read().err();
        let failed: Vec<Option<ReadError>> = counters.iter_mut().map(read).collect();
        let equals = equal::equal_counters(&zones, &mut counters, &failed);
        let view = |((zone, equals), failed): ((&Zone, Option<usize>), &Option<ReadError>)| View {
            kind: zone.kind,
            package: zone.package,
            mmio: zone.mmio,
            equals,
            works: failed.is_none(),
        };
        let views: Vec<View> = zones.iter().zip(equals).zip(&failed).map(view).collect();
        let plan = overlap::plan(Shown::ByZone, &views);
        Self { zones, counters, failed, plan }
    }
}

/// Every zone of the tree with what it is used for.
pub(crate) fn uses(sysfs: &Path) -> Vec<(Zone, Use)> {
    let Found { zones, plan, .. } = Found::look(sysfs);
    zones.into_iter().zip(plan.uses).collect()
}

impl Counters for PowercapMeter {
    fn retain(&mut self, keep: &[bool]) {
        alive::retain(&mut self.domains, keep);
        alive::retain(&mut self.counters, keep);
    }
}

impl EnergyMeter for PowercapMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(&mut self, readings: &mut Vec<Result<Reading, String>>) {
        readings.clear();
        readings.extend(self.counters.iter_mut().map(|counter| {
            let reading = counter.read();
            reading.map_err(|error| error.sentence(&counter.path))
        }));
    }
}

/// The largest limit that the zone can be set to, watts; 0 if it has none. Beyond 10 kW it is not a
/// limit but nonsense.
fn largest_limit(zone: &Path) -> f64 {
    (0..3)
        .filter_map(|constraint| {
            let file = zone.join(format!("constraint_{constraint}_max_power_uw"));
            read_value(&file).ok()?.parse::<u64>().ok()
        })
        .map(|microwatts| microwatts as f64 * 1e-6)
        .filter(|watts| *watts <= 10_000.0)
        .fold(0.0, f64::max)
}
