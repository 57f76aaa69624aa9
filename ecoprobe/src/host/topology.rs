//! Which CPU belongs to which package, and which two are one core, from sysfs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use super::{parse_cpu_list, powercap, read_value};

/// The packages of this machine, in the order used everywhere (`CpuTimes::packages`, `Domain::package`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    pub packages: Vec<Package>,
    /// Index into `packages` for each possible CPU number; `None` while it is not known: a CPU that
    /// is offline has no topology.
    pub package_of_cpu: Vec<Option<usize>>,
    grain: Grain,
    /// In the order of `packages`.
    ids: Vec<PackageId>,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub socket: u32,
    pub die: u32,
}

/// What one package is: a socket, unless a counter was found for each of its dies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grain {
    /// Sockets that are counted by die.
    pub by_die: BTreeSet<u32>,
    /// Dies whose counter is that of another die of their socket.
    pub same: BTreeMap<PackageId, PackageId>,
}

impl Grain {
    /// The package that energy of `id` is counted with.
    pub fn package(&self, id: PackageId) -> PackageId {
        let die = id.die.filter(|_| self.by_die.contains(&id.socket));
        let id = PackageId { die, ..id };
        self.same.get(&id).copied().unwrap_or(id)
    }

    fn of(&self, place: Place) -> PackageId {
        self.package(PackageId { socket: place.socket, die: Some(place.die) })
    }
}

impl Topology {
    /// Reads the packages of the machine whose sysfs is at `sysfs`, and which of them each of
    /// `possible_cpus` CPUs belongs to.
    ///
    /// Packages are those of the CPUs and those that RAPL has a zone for: one whose CPUs are all
    /// offline, or that has none (a test tree larger than this machine). With no topology at all
    /// every CPU is in the first package, `package-0` if there is no zone either.
    pub fn read(sysfs: &Path, possible_cpus: usize, grain: Grain) -> Self {
        let places = places(sysfs, possible_cpus);
        let mut ids: BTreeSet<PackageId> =
            places.iter().flatten().map(|&place| grain.of(place)).collect();
        for zone in powercap::package_ids(sysfs) {
            let zone = grain.package(zone);
            // A zone of a whole socket is no package beside its dies.
            if zone.die.is_some() || !ids.iter().any(|id| id.socket == zone.socket) {
                ids.insert(zone);
            }
        }
        if ids.is_empty() {
            ids.insert(PackageId { socket: 0, die: None });
        }
        let ids: Vec<PackageId> = ids.into_iter().collect();
        let packages = ids.iter().map(|id| Package { name: id.to_string() }).collect();
        let mut topology = Self { packages, package_of_cpu: Vec::new(), grain, ids };
        let told = places.iter().any(Option::is_some);
        let package = |place: Option<Place>| match place {
            Some(place) => topology.index(place),
            None => (!told).then_some(0),
        };
        topology.package_of_cpu = places.into_iter().map(package).collect();
        topology
    }

    /// Index of the package of that name.
    pub fn package(&self, name: &str) -> Option<usize> {
        self.packages.iter().position(|package| package.name == name)
    }

    /// Looks again for a CPU that was offline when the topology was read; `None` while its package
    /// is not known, and if it lies in none of `packages`.
    pub fn place(&self, sysfs: &Path, cpu: usize) -> Option<usize> {
        place_of_cpu(sysfs, cpu).and_then(|place| self.index(place))
    }

    /// How many of these CPUs are in each package.
    pub fn count(&self, mut among: impl FnMut(usize) -> bool) -> Vec<u64> {
        let mut counts = vec![0; self.packages.len()];
        for (cpu, package) in self.package_of_cpu.iter().enumerate() {
            if let Some(count) = package.and_then(|package| counts.get_mut(package))
                && among(cpu)
            {
                *count += 1;
            }
        }
        counts
    }

    fn index(&self, place: Place) -> Option<usize> {
        let id = self.grain.of(place);
        self.ids.iter().position(|other| *other == id)
    }
}

/// The other thread of each CPU's core, as far as both are online. Of cores with more than two threads,
/// as POWER and Xeon Phi have, nothing is said.
pub(crate) fn siblings(sysfs: &Path, possible_cpus: usize) -> Vec<Option<usize>> {
    let named: Vec<_> = (0..possible_cpus).map(|cpu| named_sibling(sysfs, cpu)).collect();
    // While a CPU goes, only one of the two may know it.
    let agrees = |cpu: usize, sibling: &usize| named.get(*sibling) == Some(&Some(cpu));
    (0..possible_cpus).map(|cpu| named[cpu].filter(|sibling| agrees(cpu, sibling))).collect()
}

fn named_sibling(sysfs: &Path, cpu: usize) -> Option<usize> {
    let path = sysfs.join(format!("devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"));
    match parse_cpu_list(&read_value(&path).ok()?)?[..] {
        [first, second] if first == cpu => Some(second),
        [first, second] if second == cpu => Some(first),
        _ => None,
    }
}

/// Which CPUs are online, in the kernel's words: for comparing, when CPUs come and go.
pub(crate) fn online(sysfs: &Path) -> String {
    read_value(&sysfs.join("devices/system/cpu/online")).unwrap_or_default()
}

/// Where each of `possible_cpus` CPUs sits, as far as it can be told.
pub(crate) fn places(sysfs: &Path, possible_cpus: usize) -> Vec<Option<Place>> {
    (0..possible_cpus).map(|cpu| place_of_cpu(sysfs, cpu)).collect()
}

/// `None` for an offline CPU, and where the tree shows no topology. A machine that does not know
/// says -1.
fn place_of_cpu(sysfs: &Path, cpu: usize) -> Option<Place> {
    let directory = sysfs.join(format!("devices/system/cpu/cpu{cpu}/topology"));
    let number =
        |file| read_value(&directory.join(file)).ok().and_then(|text| text.parse::<u32>().ok());
    Some(Place { socket: number("physical_package_id")?, die: number("die_id").unwrap_or(0) })
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

    fn read(root: &tempfile::TempDir, cpus: usize) -> Topology {
        Topology::read(root.path(), cpus, Grain::default())
    }

    #[test]
    fn no_topology_is_one_package() {
        let topology = read(&tree(&[]), 4);
        assert_eq!(names(&topology), ["package-0"]);
        assert_eq!(topology.package_of_cpu, [Some(0); 4]);
    }

    #[test]
    fn sockets_are_sorted_by_id_not_by_cpu() {
        let root = machine(&[("10", "0"), ("2", "0"), ("10", "0"), ("-1", "0")], &[]);
        let topology = read(&root, 5);
        assert_eq!(names(&topology), ["package-2", "package-10"]);
        // CPU 3 does not know, CPU 4 is offline: neither is in the first package for that.
        assert_eq!(topology.package_of_cpu, [Some(1), Some(0), Some(1), None, None]);
        assert_eq!(topology.count(|_| true), [1, 2]);
        assert_eq!(topology.count(|cpu| cpu < 2), [1, 1]);
    }

    #[test]
    fn a_cpu_that_comes_online_later_is_in_its_package() {
        // All of socket 1 is offline; its zone is there all the same.
        let zones = [
            ("class/powercap/intel-rapl:0/name", "package-0\n"),
            ("class/powercap/intel-rapl:1/name", "package-1\n"),
        ];
        let root = machine(&[("0", "0")], &zones);
        let topology = read(&root, 3);
        assert_eq!(names(&topology), ["package-0", "package-1"]);
        assert_eq!(topology.package_of_cpu, [Some(0), None, None]);
        assert_eq!(topology.place(root.path(), 1), None);
        for (number, socket) in [(1, "1"), (2, "7")] {
            for (path, content) in cpu(number, socket, "0") {
                let path = root.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
        }
        assert_eq!(topology.place(root.path(), 1), Some(1));
        // Nobody knew of that socket.
        assert_eq!(topology.place(root.path(), 2), None);
    }

    #[test]
    fn siblings_are_the_two_threads_of_a_core() {
        let siblings = |lists: &[&str]| {
            let files: Vec<_> = lists
                .iter()
                .enumerate()
                .map(|(cpu, list)| (format!("{CPU}{cpu}/topology/thread_siblings_list"), *list))
                .collect();
            let files: Vec<_> = files.iter().map(|(p, c)| (p.as_str(), *c)).collect();
            siblings(tree(&files).path(), 4)
        };
        assert_eq!(siblings(&["0,2\n", "1,3\n", "0,2\n", "1,3\n"]), [2, 3, 0, 1].map(Some));
        assert_eq!(siblings(&["0-1", "0-1"]), [Some(1), Some(0), None, None]);
        for nobodys in [&["0", "1", "2", "3"][..], &[], &["0-3", "0-3", "0-3", "0-3"], &["x", "9"]]
        {
            assert_eq!(siblings(nobodys), [None; 4], "{nobodys:?}");
        }
        // One that has just gone, one beyond those that are possible, and two that disagree.
        assert_eq!(siblings(&["0,2", "1,9", "2", "3"]), [None; 4]);
        assert_eq!(siblings(&["0-1", "1-2", "1-2", "3"]), [None, Some(2), Some(1), None]);
    }

    #[test]
    fn dies_count_only_where_they_have_a_counter_of_their_own() {
        let cpus = [("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")];
        let root = machine(&cpus, &[("class/powercap/intel-rapl:0/name", "package-0\n")]);
        let by_die = |sockets: &[u32]| Grain {
            by_die: sockets.iter().copied().collect(),
            same: BTreeMap::new(),
        };
        let read = |grain| Topology::read(root.path(), 4, grain);
        let topology = read(by_die(&[]));
        assert_eq!(names(&topology), ["package-0", "package-1"]);
        let topology = read(by_die(&[0, 1]));
        let all = ["package-0-die-0", "package-0-die-1", "package-1-die-0", "package-1-die-1"];
        assert_eq!(names(&topology), all);
        assert_eq!(topology.package_of_cpu, [0, 1, 2, 3].map(Some));
        let topology = read(by_die(&[1]));
        assert_eq!(names(&topology), ["package-0", "package-1-die-0", "package-1-die-1"]);

        let mut grain = by_die(&[0]);
        let die = |die| PackageId { socket: 0, die: Some(die) };
        grain.same.insert(die(1), die(0));
        let topology = read(grain);
        assert_eq!(names(&topology), ["package-0-die-0", "package-1"]);
        assert_eq!(topology.package_of_cpu, [0, 0, 1, 1].map(Some));
    }

    #[test]
    fn zones_without_cpus_are_packages_without_cpus() {
        let root = tree(&[
            ("class/powercap/intel-rapl:0/name", "package-0\n"),
            ("class/powercap/intel-rapl:1/name", "package-1\n"),
            ("class/powercap/intel-rapl:2/name", "psys\n"),
        ]);
        let topology = read(&root, 2);
        assert_eq!(names(&topology), ["package-0", "package-1"]);
        assert_eq!(topology.package_of_cpu, [Some(0); 2]);
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
