//! The RAPL zones under `class/powercap`.
//!
//! The kernel shows each zone twice, as a link in the class directory and nested in its parent;
//! copies of a tree show either. A zone's id (`intel-rapl:0:1`) is unique, so both are walked and
//! each id is taken once. AMD registers its packages under the same `intel-rapl` name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::read_value;
use super::topology::PackageId;

/// One RAPL zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Zone {
    /// "intel-rapl:0" or "intel-rapl:0:1".
    pub id: String,
    pub path: PathBuf,
    /// What its `name` file says; empty if that cannot be read.
    pub name: String,
    pub kind: ZoneKind,
    /// The package that it is, or lies in; `None` for psys.
    pub package: Option<PackageId>,
    /// The memory-mapped view of counters that the MSR view normally shows as well.
    pub mmio: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ZoneKind {
    Package,
    Dram,
    /// Part of the package: never added to it.
    Core,
    /// Part of the package (graphics and the like): never added to it.
    Uncore,
    /// The whole platform, packages included: never added to them.
    Psys,
    Unknown,
}

impl ZoneKind {
    fn of(name: &str) -> Self {
        match name {
            "dram" => Self::Dram,
            "core" => Self::Core,
            "uncore" => Self::Uncore,
            "psys" => Self::Psys,
            name if PackageId::parse(name).is_some() => Self::Package,
            _ => Self::Unknown,
        }
    }
}

/// Every RAPL zone of the tree, sorted by id.
pub(crate) fn zones(sysfs: &Path) -> Vec<Zone> {
    let mut found = BTreeMap::new();
    walk(&sysfs.join("class/powercap"), 0, &mut found);
    let names: BTreeMap<String, String> = found
        .iter()
        .map(|(id, path)| (id.clone(), read_value(&path.join("name")).unwrap_or_default()))
        .collect();
    found
        .into_iter()
        .map(|(id, path)| {
            let name = names.get(&id).cloned().unwrap_or_default();
            let parent = parent(&id).and_then(|parent| names.get(parent));
            Zone {
                kind: ZoneKind::of(&name),
                package: PackageId::parse(parent.unwrap_or(&name)),
                mmio: id.starts_with("intel-rapl-mmio"),
                id,
                path,
                name,
            }
        })
        .collect()
}

/// Zones of the class directory that lead nowhere: container runtimes mask what the links point to
/// with an empty directory.
pub(crate) fn masked(sysfs: &Path) -> Vec<PathBuf> {
    let class = sysfs.join("class/powercap");
    let leads_nowhere = |path: &Path| match fs::read_dir(path) {
        // Every zone has files.
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == ErrorKind::NotFound,
    };
    let mut masked: Vec<PathBuf> = fs::read_dir(class)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| is_zone_id(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .filter(|path| leads_nowhere(path))
        .collect();
    masked.sort_unstable();
    masked
}

/// The packages that have a zone.
pub(super) fn package_ids(sysfs: &Path) -> BTreeSet<PackageId> {
    let packages = |zone: &Zone| zone.kind == ZoneKind::Package;
    zones(sysfs).iter().filter(|zone| packages(zone)).filter_map(|zone| zone.package).collect()
}

/// Control type, zone, subzone: no tree is deeper, and a link that leads back up ends here.
const DEEPEST: usize = 3;

fn walk(directory: &Path, depth: usize, found: &mut BTreeMap<String, PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let named = |name: &str| name.starts_with("intel-rapl");
    let directories: Vec<(String, PathBuf)> = entries
        .flatten()
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .filter(|(name, path)| named(name) && path.is_dir())
        .collect();
    // This level before the next: the class directory's own links are the paths people know.
    for (name, path) in directories.iter().filter(|(name, _)| is_zone_id(name)) {
        found.entry(name.clone()).or_insert_with(|| path.clone());
    }
    if depth < DEEPEST {
        directories.iter().for_each(|(_, path)| walk(path, depth + 1, found));
    }
}

/// `intel-rapl:N`, `intel-rapl:N:M` and the same of `intel-rapl-mmio`.
fn is_zone_id(name: &str) -> bool {
    let mut parts = name.split(':');
    let control = parts.next();
    let mut numbers = 0;
    let all = parts.all(|part| {
        numbers += 1;
        part.parse::<u32>().is_ok()
    });
    matches!(control, Some("intel-rapl" | "intel-rapl-mmio")) && all && (1..=2).contains(&numbers)
}

/// Of `intel-rapl:0:1`, `intel-rapl:0`.
fn parent(id: &str) -> Option<&str> {
    let (parent, _) = id.rsplit_once(':')?;
    parent.contains(':').then_some(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_ids() {
        for id in ["intel-rapl:0", "intel-rapl:12:3", "intel-rapl-mmio:0"] {
            assert!(is_zone_id(id), "{id}");
        }
        for other in ["intel-rapl", "intel-rapl:", "intel-rapl:0:1:2", "intel-rapl:x", "dtpm:0"] {
            assert!(!is_zone_id(other), "{other}");
        }
        assert_eq!(parent("intel-rapl:0:1"), Some("intel-rapl:0"));
        assert_eq!(parent("intel-rapl:0"), None);
    }
}
