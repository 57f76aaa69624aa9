//! Which CPU belongs to which package, from sysfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::{power_pmu, powercap, read_value};

/// The packages of this machine, in the order used everywhere (`Sample::cpu_ns`, `Domain::package`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    pub packages: Vec<Package>,
    /// Index into `packages` for each possible CPU number.
    pub package_of_cpu: Vec<usize>,
}

/// A RAPL package: one socket, or one die where the hardware counts by die.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// "package-0", or "package-0-die-1".
    pub name: String,
}

/// What the kernel calls a RAPL package. Displays as, and parses from, the name of its powercap zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackageId {
    pub socket: u32,
    pub die: Option<u32>,
}

impl PackageId {
    /// `package-0` or `package-0-die-1`; `None` for anything else.
    pub fn parse(name: &str) -> Option<Self> {
        let (socket, die) = match name.strip_prefix("package-")?.split_once("-die-") {
            Some((socket, die)) => (socket, Some(die.parse().ok()?)),
            None => (name.strip_prefix("package-")?, None),
        };
        Some(Self { socket: socket.parse().ok()?, die })
    }
}

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "package-{}", self.socket)?;
        self.die.map_or(Ok(()), |die| write!(f, "-die-{die}"))
    }
}

/// Socket and die of one CPU.
type Place = (u32, u32);

impl Topology {
    /// Reads the packages of the machine whose sysfs is at `sysfs`, and which of them each of
    /// `possible_cpus` CPUs belongs to.
    ///
    /// Packages are those of the CPUs and those that RAPL has a zone for; a zone without a CPU (a
    /// test tree larger than this machine) is a package without CPUs. CPUs that are offline or
    /// without topology go to the first package; with no topology at all there is one, `package-0`.
    pub fn read(sysfs: &Path, possible_cpus: usize) -> Self {
        let places: Vec<Option<Place>> =
            (0..possible_cpus).map(|cpu| place_of_cpu(sysfs, cpu)).collect();
        let zones = powercap::package_ids(sysfs);
        let mask = power_pmu::cpumask(sysfs).unwrap_or_default();
        let by_die = zones.iter().any(|zone| zone.die.is_some()) || one_per_die(&mask, &places);

        let id = |(socket, die): Place| PackageId { socket, die: by_die.then_some(die) };
        let mut ids: BTreeSet<PackageId> = places.iter().flatten().copied().map(id).collect();
        ids.extend(zones);
        if ids.is_empty() {
            ids.insert(PackageId { socket: 0, die: None });
        }
        let index: BTreeMap<PackageId, usize> = ids.into_iter().zip(0..).collect();
        Self {
            package_of_cpu: places
                .into_iter()
                .map(|place| place.and_then(|place| index.get(&id(place)).copied()).unwrap_or(0))
                .collect(),
            packages: index.into_keys().map(|id| Package { name: id.to_string() }).collect(),
        }
    }

    /// Index of the package of that name.
    pub fn package(&self, name: &str) -> Option<usize> {
        self.packages.iter().position(|package| package.name == name)
    }
}

/// `None` for an offline CPU, and where the tree shows no topology. A machine that does not know
/// says -1.
fn place_of_cpu(sysfs: &Path, cpu: usize) -> Option<Place> {
    let directory = sysfs.join(format!("devices/system/cpu/cpu{cpu}/topology"));
    let number =
        |file| read_value(&directory.join(file)).ok().and_then(|text| text.parse::<u32>().ok());
    Some((number("physical_package_id")?, number("die_id").unwrap_or(0)))
}

/// Whether the `power` PMU names one CPU for each die rather than one for each socket. AMD shows
/// dies in its topology, yet counts by socket: the topology alone cannot tell.
fn one_per_die(mask: &[usize], places: &[Option<Place>]) -> bool {
    let places: Vec<Place> =
        mask.iter().filter_map(|&cpu| places.get(cpu).copied().flatten()).collect();
    let sockets: BTreeSet<u32> = places.iter().map(|place| place.0).collect();
    let dies: BTreeSet<Place> = places.iter().copied().collect();
    dies.len() > sockets.len()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }

    fn names(topology: &Topology) -> Vec<&str> {
        topology.packages.iter().map(|package| package.name.as_str()).collect()
    }

    const CPU: &str = "devices/system/cpu/cpu";

    fn cpu(number: usize, socket: &str, die: &str) -> [(String, String); 2] {
        let directory = format!("{CPU}{number}/topology");
        [
            (format!("{directory}/physical_package_id"), format!("{socket}\n")),
            (format!("{directory}/die_id"), format!("{die}\n")),
        ]
    }

    fn machine(cpus: &[(&str, &str)], more: &[(&str, &str)]) -> tempfile::TempDir {
        let files: Vec<_> =
            cpus.iter().enumerate().flat_map(|(n, (socket, die))| cpu(n, socket, die)).collect();
        let mut files: Vec<_> = files.iter().map(|(p, c)| (p.as_str(), c.as_str())).collect();
        files.extend(more);
        tree(&files)
    }

    #[test]
    fn no_topology_is_one_package() {
        let topology = Topology::read(tree(&[]).path(), 4);
        assert_eq!(names(&topology), ["package-0"]);
        assert_eq!(topology.package_of_cpu, [0; 4]);
    }

    #[test]
    fn sockets_are_sorted_by_id_not_by_cpu() {
        let root = machine(&[("10", "0"), ("2", "0"), ("10", "0"), ("-1", "0")], &[]);
        let topology = Topology::read(root.path(), 5);
        assert_eq!(names(&topology), ["package-2", "package-10"]);
        // CPU 3 does not know, CPU 4 is offline.
        assert_eq!(topology.package_of_cpu, [1, 0, 1, 0, 0]);
    }

    #[test]
    fn dies_count_only_where_rapl_does() {
        let cpus = [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")];
        let mask = "bus/event_source/devices/power/cpumask";
        let zone = "class/powercap/intel-rapl:0/name";
        for (more, expected) in [
            (vec![], 2),
            (vec![(mask, "0,2")], 2),
            (vec![(mask, "0-3")], 4),
            (vec![(zone, "package-0\n")], 2),
            (vec![(zone, "package-0-die-0\n")], 4),
        ] {
            let topology = Topology::read(machine(&cpus, &more).path(), 4);
            assert_eq!(topology.packages.len(), expected, "{more:?}");
            if expected == 4 {
                assert_eq!(names(&topology)[3], "package-1-die-1");
                assert_eq!(topology.package_of_cpu, [0, 1, 2, 3]);
            }
        }
    }

    #[test]
    fn zones_without_cpus_are_packages_without_cpus() {
        let root = tree(&[
            ("class/powercap/intel-rapl:0/name", "package-0\n"),
            ("class/powercap/intel-rapl:1/name", "package-1\n"),
            ("class/powercap/intel-rapl:2/name", "psys\n"),
        ]);
        let topology = Topology::read(root.path(), 2);
        assert_eq!(names(&topology), ["package-0", "package-1"]);
        assert_eq!(topology.package_of_cpu, [0, 0]);
        assert_eq!(topology.package("package-1"), Some(1));
    }

    #[test]
    fn package_names() {
        for name in ["package-0", "package-12", "package-1-die-3"] {
            assert_eq!(PackageId::parse(name).unwrap().to_string(), name);
        }
        for name in ["psys", "package-", "package-x", "package-0-die-", "package--1", "dram"] {
            assert_eq!(PackageId::parse(name), None, "{name}");
        }
    }
}
