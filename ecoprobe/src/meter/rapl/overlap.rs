//! Which of the counters that a machine shows are read: one pure function decides from who made the
//! processor, what the counters are called, where they sit, and which of them are equal.

use std::collections::{BTreeMap, BTreeSet};

use crate::host::powercap::ZoneKind;
use crate::host::topology::{Grain, PackageId};

/// One counter as a source shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct View {
    pub(crate) kind: ZoneKind,
    /// The package that it is, or lies in; `None` where that is not known.
    pub(crate) package: Option<PackageId>,
    /// Memory-mapped.
    pub(crate) mmio: bool,
    /// An earlier view of the same socket that shows the same count, over several of its moves.
    pub(crate) equals: Option<usize>,
    /// It could be read.
    pub(crate) works: bool,
}

/// Who shows the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Zones, each with a name: two of one name are one counter.
    ByZone,
    /// Events, one on each CPU that the PMU names. Two on one place are two counters that the
    /// topology cannot tell apart, unless the maker counts by socket.
    ByEvent { by_socket: bool },
}

/// What becomes of a view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// It is read, as this package's.
    Read(PackageId),
    /// The view of that index shows it already; told only where somebody might miss it.
    Again {
        of: usize,
        told: bool,
    },
    /// Part of the package: never added to it.
    Inside,
    /// The whole platform, packages included: never added to them.
    Around,
    /// It lies in no package.
    Homeless,
    Unknown,
}

/// What to read, and what a package is on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In the order of the views.
    pub(crate) uses: Vec<Use>,
    pub(crate) grain: Grain,
}

/// Decides on every view. A socket is counted by die only if its views say so, and are not known to
/// be one counter.
pub(crate) fn plan(shown: Shown, views: &[View]) -> Plan {
    // First, which views are the only ones of their counter.
    let mut again: Vec<Option<Use>> = vec![None; views.len()];
    for (index, view) in views.iter().enumerate() {
        let earlier = (0..index).filter(|&other| again[other].is_none());
        // What does not work takes nobody's place.
        let stands_in = |&other: &usize| views[other].works || !view.works;
        let mut alike = earlier.filter(|&other| views[other].kind == view.kind).filter(stands_in);
        again[index] = match (shown, view.package) {
            _ if !matches!(view.kind, ZoneKind::Package | ZoneKind::Dram) => None,
            (_, None) => None,
            (Shown::ByEvent { by_socket: false }, Some(_)) => None,
            (Shown::ByEvent { by_socket: true }, Some(package)) => alike
                .find(|&other| views[other].package.is_some_and(|it| it.socket == package.socket))
                .map(|of| Use::Again { of, told: false }),
            (Shown::ByZone, Some(package)) => {
                let msr = |&other: &usize| {
                    let other = &views[other];
                    let zone = (other.mmio, other.kind, other.package);
                    zone == (false, ZoneKind::Package, Some(package))
                };
                // The memory-mapped view of a package is left alone with all that lies in it.
                let mut msr_views = (0..views.len()).filter(msr).filter(stands_in);
                let mmio = msr_views.next().filter(|_| view.mmio);
                let named = alike.find(|&other| views[other].package == Some(package));
                let equals = view.equals.filter(|&other| other < index);
                mmio.map(|of| Use::Again { of, told: false })
                    .or(named.map(|of| Use::Again { of, told: true }))
                    .or(equals.map(|of| Use::Again { of, told: true }))
            }
        };
    }

    let grain = grain(shown, views, &again);
    let used = |(view, again): (&View, Option<Use>)| match (view.kind, view.package) {
        (ZoneKind::Core | ZoneKind::Uncore, _) => Use::Inside,
        (ZoneKind::Psys, _) => Use::Around,
        (ZoneKind::Unknown, _) => Use::Unknown,
        (ZoneKind::Package | ZoneKind::Dram, Some(package)) => {
            again.unwrap_or(Use::Read(grain.package(package)))
        }
        // A machine that does not tell its sockets apart is one.
        (ZoneKind::Package, None) if shown != Shown::ByZone => {
            Use::Read(PackageId { socket: 0, die: None })
        }
        (ZoneKind::Package | ZoneKind::Dram, None) => Use::Homeless,
    };
    Plan { uses: views.iter().zip(again).map(used).collect(), grain }
}

/// What a package is on each socket, where dies are told apart.
fn grain(shown: Shown, views: &[View], again: &[Option<Use>]) -> Grain {
    let mut grain = Grain::default();
    // The dies of each socket, with the die whose counter counts each.
    let mut sockets: BTreeMap<u32, BTreeMap<PackageId, PackageId>> = BTreeMap::new();
    for (view, again) in views.iter().zip(again) {
        let Some(package) = view.package.filter(|package| package.die.is_some()) else { continue };
        let counted = match again {
            _ if view.kind != ZoneKind::Package => continue,
            Some(Use::Again { of, .. }) => views[*of].package.unwrap_or(package),
            _ => package,
        };
        sockets.entry(package.socket).or_default().entry(package).or_insert(counted);
    }
    for (socket, dies) in sockets {
        let counters: BTreeSet<&PackageId> = dies.values().collect();
        let by_die = match shown {
            // Named by die, and not known to be the socket's.
            Shown::ByZone => counters.len() > 1 || dies.len() == 1,
            // An event's place has a die, whatever it counts.
            Shown::ByEvent { .. } => counters.len() > 1,
        };
        if by_die {
            grain.by_die.insert(socket);
            grain.same.extend(dies.into_iter().filter(|(die, counted)| die != counted));
        }
    }
    grain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str) -> View {
        let package = PackageId::parse(name);
        View { kind: ZoneKind::Package, package, mmio: false, equals: None, works: true }
    }

    fn dram(name: &str) -> View {
        View { kind: ZoneKind::Dram, ..package(name) }
    }

    fn equal(view: View, other: usize) -> View {
        View { equals: Some(other), ..view }
    }

    fn read(name: &str) -> Use {
        Use::Read(PackageId::parse(name).unwrap())
    }

    fn again(of: usize) -> Use {
        Use::Again { of, told: true }
    }

    fn zones(views: &[View]) -> Plan {
        plan(Shown::ByZone, views)
    }

    #[test]
    fn only_package_and_dram_are_read() {
        let kind = |kind| View { kind, ..package("package-0") };
        let psys = View { kind: ZoneKind::Psys, package: None, ..package("psys") };
        let lost = View { package: None, ..dram("package-0") };
        let views = [
            package("package-0"),
            kind(ZoneKind::Core),
            kind(ZoneKind::Uncore),
            dram("package-0"),
            psys,
            lost,
            kind(ZoneKind::Unknown),
        ];
        let expected = [
            read("package-0"),
            Use::Inside,
            Use::Inside,
            read("package-0"),
            Use::Around,
            Use::Homeless,
            Use::Unknown,
        ];
        assert_eq!(zones(&views), Plan { uses: expected.to_vec(), grain: Grain::default() });
    }

    #[test]
    fn the_memory_mapped_view_is_read_only_where_it_is_alone() {
        let mmio = |view| View { mmio: true, ..view };
        let views = [mmio(package("package-0")), mmio(dram("package-0")), package("package-0")];
        let again = Use::Again { of: 2, told: false };
        assert_eq!(zones(&views).uses, [again, again, read("package-0")]);
        assert_eq!(zones(&views[..1]).uses, [read("package-0")]);
        let other = [mmio(package("package-1")), package("package-0")];
        assert_eq!(zones(&other).uses, [read("package-1"), read("package-0")]);
    }

    #[test]
    fn what_does_not_work_takes_nobodys_place() {
        let broken = |view| View { works: false, ..view };
        let mmio = |view| View { mmio: true, ..view };
        // The package's registers are refused, their memory-mapped view is not.
        let views = [mmio(package("package-0")), broken(package("package-0"))];
        assert_eq!(zones(&views).uses, [read("package-0"), again(0)]);
        let views = [broken(package("package-0")), package("package-0")];
        assert_eq!(zones(&views).uses, [read("package-0"), read("package-0")]);
        // Where none works, the usual one is what is said to be missing.
        let views = [broken(mmio(package("package-0"))), broken(package("package-0"))];
        let left_out = Use::Again { of: 1, told: false };
        assert_eq!(zones(&views).uses, [left_out, read("package-0")]);
    }

    #[test]
    fn several_zones_of_one_name_are_one_counter() {
        let views =
            [package("package-0"), dram("package-0"), package("package-0"), dram("package-0")];
        assert_eq!(zones(&views).uses, [read("package-0"), read("package-0"), again(0), again(1)]);
    }

    #[test]
    fn dies_that_show_one_counter_are_one_package() {
        let die = |die: usize| package(&format!("package-1-die-{die}"));
        let mirrored = [package("package-0"), die(0), equal(die(1), 1), equal(die(2), 1)];
        let plan = zones(&mirrored);
        let expected = [read("package-0"), read("package-1"), again(1), again(1)];
        assert_eq!((plan.uses.as_slice(), plan.grain), (&expected[..], Grain::default()));

        // Cascade Lake-AP: every die counts for itself.
        let plan = zones(&[die(0), die(1)]);
        assert_eq!(plan.uses, [read("package-1-die-0"), read("package-1-die-1")]);
        assert_eq!(plan.grain.by_die, BTreeSet::from([1]));
        // A lone die is what its zone calls it.
        assert_eq!(zones(&[die(0)]).uses, [read("package-1-die-0")]);

        // Two counters for four dies.
        let plan = zones(&[die(0), equal(die(1), 0), die(2), equal(die(3), 2)]);
        let expected = [read("package-1-die-0"), again(0), read("package-1-die-2"), again(2)];
        assert_eq!(plan.uses, expected);
        let id = |die| PackageId { socket: 1, die: Some(die) };
        assert_eq!(plan.grain.same, BTreeMap::from([(id(1), id(0)), (id(3), id(2))]));
        assert_eq!(plan.grain.package(id(3)), id(2));
    }

    #[test]
    fn memory_of_a_merged_die_goes_with_its_socket() {
        let die = |die: usize| format!("package-0-die-{die}");
        let views = [package(&die(0)), dram(&die(0)), equal(package(&die(1)), 0), dram(&die(1))];
        let expected = [read("package-0"), read("package-0"), again(0), read("package-0")];
        assert_eq!(zones(&views).uses, expected);
    }

    #[test]
    fn events_of_one_socket_are_one_where_the_maker_counts_by_socket() {
        let views = ["package-0-die-0", "package-0-die-1", "package-1-die-0"].map(package);
        let amd = plan(Shown::ByEvent { by_socket: true }, &views);
        let again = Use::Again { of: 0, told: false };
        assert_eq!(amd.uses, [read("package-0"), again, read("package-1")]);
        assert_eq!(amd.grain, Grain::default());

        let intel = plan(Shown::ByEvent { by_socket: false }, &views);
        let dies = [read("package-0-die-0"), read("package-0-die-1"), read("package-1")];
        assert_eq!(intel.uses, dies);
        assert_eq!(intel.grain.by_die, BTreeSet::from([0]));

        // One event a socket, on whatever die: the socket's.
        let views = ["package-0-die-3", "package-1-die-3"].map(package);
        let intel = plan(Shown::ByEvent { by_socket: false }, &views);
        assert_eq!(intel.uses, [read("package-0"), read("package-1")]);
    }

    #[test]
    fn events_that_cannot_be_told_apart_are_all_read() {
        let nowhere = View { package: None, ..package("package-0") };
        for by_socket in [true, false] {
            let plan = plan(Shown::ByEvent { by_socket }, &[nowhere.clone(), nowhere.clone()]);
            assert_eq!(plan.uses, [read("package-0"); 2]);
        }
        let same = plan(
            Shown::ByEvent { by_socket: false },
            &[package("package-0-die-0"), package("package-0-die-0")],
        );
        assert_eq!(same.uses, [read("package-0"); 2]);
    }
}
