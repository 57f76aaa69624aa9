//! A sysfs of our own: powercap zones, CPU topology and the `power` PMU.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// How the zones lie in `class/powercap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As the kernel does: nested directories under `devices/virtual/powercap`, and a link to each
    /// zone, at whatever depth, in the class directory.
    Kernel,
    /// Every zone is a directory of the class directory.
    Flat,
    /// Nested in the class directory, without links.
    Nested,
}

/// A machine with RAPL zones, to be built.
#[derive(Debug, Clone)]
pub struct Machine {
    packages: Vec<String>,
    subzones: Vec<&'static str>,
    psys: bool,
    mmio: bool,
    layout: Layout,
    max_uj: u64,
}

impl Machine {
    /// So many sockets, each with a package zone. An AMD machine is just this.
    pub fn new(sockets: usize) -> Self {
        Self {
            packages: (0..sockets).map(|socket| format!("package-{socket}")).collect(),
            subzones: Vec::new(),
            psys: false,
            mmio: false,
            layout: Layout::Kernel,
            // 2^32 steps of 61 µJ: what Intel machines say.
            max_uj: 262_143_328_850,
        }
    }

    /// A zone for each die of each socket, as on Cascade Lake-AP.
    pub fn dies(mut self, dies: usize) -> Self {
        let sockets = std::mem::take(&mut self.packages);
        let dies = |socket: &String| {
            (0..dies).map(|die| format!("{socket}-die-{die}")).collect::<Vec<_>>()
        };
        self.packages = sockets.iter().flat_map(dies).collect();
        self
    }

    /// A zone in each package: "core", "uncore" or "dram".
    pub fn with(mut self, subzone: &'static str) -> Self {
        self.subzones.push(subzone);
        self
    }

    /// The whole platform, beside the packages.
    pub fn with_psys(mut self) -> Self {
        self.psys = true;
        self
    }

    /// Every package a second time, as `intel-rapl-mmio`.
    pub fn with_mmio(mut self) -> Self {
        self.mmio = true;
        self
    }

    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// The largest count of every zone, microjoules; after it comes 0.
    pub fn range(mut self, max_uj: u64) -> Self {
        self.max_uj = max_uj;
        self
    }

    pub fn build(self) -> Sysfs {
        let mut sysfs = Sysfs::new();
        let mut id = 0;
        for package in &self.packages {
            let parent = format!("intel-rapl:{id}");
            sysfs.add_zone(self.layout, &parent, package, package, self.max_uj);
            for (number, name) in self.subzones.iter().enumerate() {
                let key = format!("{name}{}", package.trim_start_matches("package"));
                let id = format!("{parent}:{number}");
                sysfs.add_zone(self.layout, &id, name, &key, self.max_uj);
            }
            if self.mmio {
                let (mmio, key) = (format!("intel-rapl-mmio:{id}"), format!("mmio-{package}"));
                sysfs.add_zone(self.layout, &mmio, package, &key, self.max_uj);
            }
            id += 1;
        }
        if self.psys {
            let id = format!("intel-rapl:{id}");
            sysfs.add_zone(self.layout, &id, "psys", "psys", self.max_uj);
        }
        sysfs
    }
}

const IN_MEMORY: &str = "/dev/shm";

fn prefix() -> String {
    format!("test-{}-", std::process::id())
}

/// Trees that this process has in memory, for a process that has to end without dropping them.
pub fn remove_all_of_this_process() {
    for entry in std::fs::read_dir(IN_MEMORY).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The tree, removed when dropped.
#[derive(Debug)]
pub struct Sysfs {
    root: TempDir,
    zones: Vec<(String, Zone)>,
}

impl Sysfs {
    /// A machine without any counter.
    pub fn new() -> Self {
        // In memory, as sysfs is: on a disk each read would be noted in a journal (`relatime`).
        let root = tempfile::Builder::new().prefix(&prefix()).tempdir_in(IN_MEMORY);
        let root = root.or_else(|_| tempfile::tempdir()).unwrap();
        Self { root, zones: Vec::new() }
    }

    /// For `--sysfs`.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// "package-0", "dram-0", "core-1", "mmio-package-0", "psys".
    pub fn zone(&self, key: &str) -> Zone {
        let found = self.zones.iter().find(|(other, _)| other == key);
        found.unwrap_or_else(|| panic!("no zone {key}")).1.clone()
    }

    /// Adds a file anywhere.
    pub fn write(&self, path: &str, content: &str) {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// CPU `number` sits on that socket and die.
    pub fn add_cpu(&self, number: usize, socket: u32, die: u32) {
        let directory = format!("devices/system/cpu/cpu{number}/topology");
        self.write(&format!("{directory}/physical_package_id"), &format!("{socket}\n"));
        self.write(&format!("{directory}/die_id"), &format!("{die}\n"));
    }

    /// A `power` PMU of that perf type whose events are (name, event string, joules per count).
    ///
    /// With type 1 (PERF_TYPE_SOFTWARE) the kernel really counts: `event=0x00` is cpu-clock, which
    /// at 1e-9 is exactly a watt for each CPU; `event=0x08` (emulation faults) stays at zero.
    pub fn add_power_pmu(&self, kind: u32, cpumask: &str, events: &[(&str, &str, &str)]) {
        let terms: Vec<_> = events.iter().map(|(name, terms, _)| (*name, *terms)).collect();
        self.add_pmu("power", kind, Some(cpumask), &terms);
        for (name, _, scale) in events {
            let event = format!("bus/event_source/devices/power/events/{name}");
            self.write(&format!("{event}.scale"), &format!("{scale}\n"));
            self.write(&format!("{event}.unit"), "Joules\n");
        }
    }

    /// A PMU of that perf type whose events are (name, event string).
    pub fn add_pmu(&self, name: &str, kind: u32, cpumask: Option<&str>, events: &[(&str, &str)]) {
        let directory = format!("bus/event_source/devices/{name}");
        self.write(&format!("{directory}/type"), &format!("{kind}\n"));
        self.write(&format!("{directory}/format/event"), "config:0-7\n");
        if let Some(cpumask) = cpumask {
            self.write(&format!("{directory}/cpumask"), &format!("{cpumask}\n"));
        }
        for (name, terms) in events {
            self.write(&format!("{directory}/events/{name}"), &format!("{terms}\n"));
        }
    }

    fn add_zone(&mut self, layout: Layout, id: &str, name: &str, key: &str, max_uj: u64) {
        let class = self.path().join("class/powercap");
        let control = id.split(':').next().unwrap();
        let parent = id.rsplit_once(':').map(|(parent, _)| parent).filter(|p| p.contains(':'));
        let nested = |top: PathBuf| top.join(control).join(parent.unwrap_or("")).join(id);
        let directory = match layout {
            Layout::Flat => class.join(id),
            Layout::Nested => nested(class.clone()),
            Layout::Kernel => nested(self.path().join("devices/virtual/powercap")),
        };
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all(&class).unwrap();
        if layout == Layout::Kernel {
            symlink(&directory, class.join(id)).unwrap();
            // Each zone of the kernel's links back to its parent and to its class.
            symlink(directory.parent().unwrap(), directory.join("device")).unwrap();
            symlink(&class, directory.join("subsystem")).unwrap();
            if !class.join(control).exists() {
                let control_type = self.path().join("devices/virtual/powercap").join(control);
                symlink(control_type, class.join(control)).unwrap();
            }
        }
        fs::write(directory.join("name"), format!("{name}\n")).unwrap();
        fs::write(directory.join("max_energy_range_uj"), format!("{max_uj}\n")).unwrap();
        let zone = Zone { directory, max_uj };
        zone.set(0);
        self.zones.push((key.to_owned(), zone));
    }
}

/// One zone's directory.
#[derive(Debug, Clone)]
pub struct Zone {
    pub directory: PathBuf,
    pub max_uj: u64,
}

impl Zone {
    pub fn energy(&self) -> PathBuf {
        self.directory.join("energy_uj")
    }

    /// Writes the count in place, wrapped into the range.
    pub fn set(&self, total_uj: u64) {
        self.set_text(&format!("{}\n", self.wrap(total_uj)));
    }

    /// Writes anything in place.
    pub fn set_text(&self, text: &str) {
        fs::write(self.energy(), text).unwrap();
    }

    /// What the counter shows after so many microjoules.
    pub fn wrap(&self, total_uj: u64) -> u64 {
        self.max_uj.checked_add(1).map_or(total_uj, |range| total_uj % range)
    }

    /// Takes the counter away; `set` brings it back, as another file.
    pub fn remove(&self) {
        fs::remove_file(self.energy()).unwrap();
    }
}
