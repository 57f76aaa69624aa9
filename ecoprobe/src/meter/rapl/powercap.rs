//! RAPL through `/sys/class/powercap`: one file a counter, each with its own range.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{MOST_DRAM_WATTS, MOST_PACKAGE_WATTS, Unavailable, dram_name};
use crate::base::Component;
use crate::base::monotonic_ns;
use crate::event::{Domain, Reading};
use crate::host::powercap::{Zone, ZoneKind, zones};
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
    /// Opens what can be read; the second value says in sentences what cannot, and what is odd.
    ///
    /// # Errors
    ///
    /// If no package can be read.
    pub fn open(sysfs: &Path, topology: &Topology) -> Result<(Self, Vec<String>), Unavailable> {
        let zones = zones(sysfs);
        let mut meter = Self { domains: Vec::new(), counters: Vec::new() };
        let (mut notes, mut refused) = (Vec::new(), Vec::new());
        for (package, zone) in select(&zones, &mut notes) {
            let name = package.to_string();
            let Some(index) = topology.package(&name) else {
                notes.push(format!("{} names {name}, which the topology lacks: left out", zone.id));
                continue;
            };
            let mut counter = Counter::new(&zone.path, &mut notes);
            let name = if zone.kind == ZoneKind::Dram { dram_name(&name) } else { name };
            if let Err(error) = counter.read() {
                notes.push(format!("{name} is left out: {}", error.sentence(&counter.path)));
                refused.push((counter.path, error));
                continue;
            }
            let (component, most) = match zone.kind {
                ZoneKind::Dram => (Component::Dram, MOST_DRAM_WATTS),
                _ => (Component::Cpu, MOST_PACKAGE_WATTS),
            };
            meter.domains.push(Domain {
                name,
                component,
                package: index,
                joules_per_count: 1e-6,
                range: counter.max.and_then(|max| max.checked_add(1)),
                max_watts: most.max(2.0 * largest_limit(&zone.path)),
            });
            meter.counters.push(counter);
        }
        if meter.domains.iter().any(|domain| domain.component == Component::Cpu) {
            return Ok((meter, notes));
        }
        let denied = |error: &ReadError| matches!(error, ReadError::Io(error) if error.kind() == ErrorKind::PermissionDenied);
        Err(match refused.into_iter().next() {
            None => Unavailable::Absent,
            Some((path, error)) if denied(&error) => Unavailable::Denied(path),
            Some((path, error)) => Unavailable::Broken(error.sentence(&path)),
        })
    }
}

impl EnergyMeter for PowercapMeter {
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
        for (domain, counter) in self.domains.iter().zip(&mut self.counters) {
            let reading = counter.read();
            if let Err(error) = &reading {
                problems.push(format!(
                    "{} cannot be read: {}",
                    domain.name,
                    error.sentence(&counter.path)
                ));
            }
            readings.push(reading.ok());
        }
    }
}

/// The zones to read, packages in order, each package before its DRAM. Of two zones that claim to be
/// the same counter the MSR one is read, then the first.
fn select<'a>(zones: &'a [Zone], notes: &mut Vec<String>) -> Vec<(PackageId, &'a Zone)> {
    let has_package = |mmio: bool, package: PackageId| {
        let found = |zone: &Zone| zone.mmio == mmio && zone.package == Some(package);
        zones.iter().any(|zone| found(zone) && zone.kind == ZoneKind::Package)
    };
    let mut chosen: BTreeMap<(PackageId, bool), &Zone> = BTreeMap::new();
    for zone in zones {
        let wanted = matches!(zone.kind, ZoneKind::Package | ZoneKind::Dram);
        match zone.package {
            Some(package) if wanted => {
                if zone.mmio && has_package(false, package) {
                    continue;
                }
                let first = chosen.entry((package, zone.kind == ZoneKind::Dram)).or_insert(zone);
                if first.id != zone.id {
                    notes.push(format!("{} shows {} again: left out", zone.id, first.id));
                }
            }
            None if zone.kind == ZoneKind::Dram => {
                notes.push(format!("{} (dram) lies in no package: left out", zone.id));
            }
            _ => {}
        }
    }
    chosen.into_iter().map(|((package, _), zone)| (package, zone)).collect()
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

/// One `energy_uj`, kept open.
#[derive(Debug)]
struct Counter {
    path: PathBuf,
    file: Option<OpenFile>,
    /// The largest value it shows before it starts again at 0; `None` if it does not say.
    max: Option<u64>,
    last: Option<u64>,
}

impl Counter {
    fn new(zone: &Path, notes: &mut Vec<String>) -> Self {
        let path = zone.join("max_energy_range_uj");
        let max =
            read_value(&path).ok().and_then(|text| text.parse::<u64>().ok()).filter(|max| *max > 0);
        if max.is_none() {
            // Guessing a range would turn every reset into gigajoules or less than nothing.
            notes.push(format!(
                "{} does not say where the counter wraps: the energy of a window in which it does \
                 will be missing",
                path.display()
            ));
        }
        Self { path: zone.join("energy_uj"), file: None, max, last: None }
    }

    /// Reads the kept-open file; if that fails, opens it anew, once. A file of a test tree may have
    /// been replaced or taken away, in which case the old one still reads, but stands still: so a
    /// count that did not move is believed only while the path leads to the same file.
    fn read(&mut self) -> Result<Reading, ReadError> {
        if let Some(open) = &self.file {
            match read_count(&open.file, self.max) {
                Ok(reading) if Some(reading.count) != self.last || open.is_at(&self.path) => {
                    self.last = Some(reading.count);
                    return Ok(reading);
                }
                _ => self.file = None,
            }
        }
        let open = OpenFile::open(&self.path)?;
        let reading = read_count(&open.file, self.max)?;
        self.file = Some(open);
        self.last = Some(reading.count);
        Ok(reading)
    }
}

/// A file, and which one it is: its device and inode.
#[derive(Debug)]
struct OpenFile {
    file: File,
    identity: (u64, u64),
}

impl OpenFile {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let found = file.metadata()?;
        Ok(Self { file, identity: (found.dev(), found.ino()) })
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == self.identity)
    }
}

#[derive(Debug)]
enum ReadError {
    Io(io::Error),
    Empty,
    /// What it holds instead of a count, cut short.
    NotACount(String),
    BeyondRange {
        count: u64,
        max: u64,
    },
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl ReadError {
    fn sentence(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Io(error) if error.kind() == ErrorKind::PermissionDenied => {
                format!("{path}: permission denied (energy is for root only since Linux 5.10)")
            }
            Self::Io(error) => format!("{path}: {error}"),
            Self::Empty => format!("{path} is empty"),
            Self::NotACount(text) => format!("{path} holds `{text}`, not a count of microjoules"),
            Self::BeyondRange { count, max } => {
                format!("{path} holds {count}, beyond its max_energy_range_uj of {max}")
            }
        }
    }
}

/// One count, stamped with the middle of its own read.
fn read_count(file: &File, max: Option<u64>) -> Result<Reading, ReadError> {
    // 20 digits are the most that fit 64 bits.
    let mut buffer = [0; 32];
    let (mut before, mut length) = (monotonic_ns(), file.read_at(&mut buffer, 0)?);
    if length == 0 {
        // Somebody truncates before writing.
        (before, length) = (monotonic_ns(), file.read_at(&mut buffer, 0)?);
    }
    let after = monotonic_ns();
    let text = buffer.get(..length).unwrap_or_default().trim_ascii();
    if text.is_empty() {
        return Err(ReadError::Empty);
    }
    let count = std::str::from_utf8(text)
        .ok()
        // `parse` would take a plus sign, which no kernel writes.
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        // A full buffer may have cut the number off.
        .filter(|_| length < buffer.len())
        .and_then(|text| text.parse::<u64>().ok())
        .ok_or_else(|| {
            let text = String::from_utf8_lossy(text);
            ReadError::NotACount(text.chars().take(20).flat_map(char::escape_default).collect())
        })?;
    match max {
        Some(max) if count > max => Err(ReadError::BeyondRange { count, max }),
        _ => Ok(Reading { mono_ns: before.midpoint(after), count }),
    }
}
