//! Which CPU belongs to which package, from sysfs.

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
