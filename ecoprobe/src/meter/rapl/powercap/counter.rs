//! One `energy_uj` file, kept open.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::base::monotonic_ns;
use crate::event::Reading;
use crate::host::powercap::{Zone, ZoneKind};
use crate::host::{open, read_value};

/// The largest value of the counter, in its zone.
const RANGE: &str = "max_energy_range_uj";

/// One `energy_uj`, kept open.
#[derive(Debug)]
pub(super) struct Counter {
    pub(super) path: PathBuf,
    file: Option<OpenFile>,
    /// The largest value it shows before it starts again at 0; `None` if it does not say.
    pub(super) max: Option<u64>,
    last: Option<u64>,
}

impl Counter {
    /// Of a package or of DRAM; the others are not read.
    pub(super) fn of(zone: &Zone) -> Option<Self> {
        if !matches!(zone.kind, ZoneKind::Package | ZoneKind::Dram) {
            return None;
        }
        let max = read_value(&zone.path.join(RANGE)).ok();
        let max = max.and_then(|text| text.parse::<u64>().ok()).filter(|max| *max > 0);
        Some(Self { path: zone.path.join("energy_uj"), file: None, max, last: None })
    }

    /// What is odd about it, in a sentence.
    pub(super) fn oddity(&self, zone: &Zone) -> Option<String> {
        // Guessing a range would turn every reset into gigajoules or less than nothing.
        self.max.is_none().then(|| {
            format!(
                "{} does not say where the counter wraps: the energy of a window in which it does \
                 will be missing",
                zone.path.join(RANGE).display()
            )
        })
    }

    /// Reads the kept-open file; if that fails, opens it anew, once. A file of a test tree may have
    /// been replaced or taken away, in which case the old one still reads, but stands still: so a
    /// count that did not move is believed only while the path leads to the same file.
    pub(super) fn read(&mut self) -> Result<Reading, ReadError> {
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
        let file = open(path)?;
        let found = file.metadata()?;
        Ok(Self { file, identity: (found.dev(), found.ino()) })
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == self.identity)
    }
}

#[derive(Debug)]
pub(super) enum ReadError {
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
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::Io(error) if error.kind() == ErrorKind::PermissionDenied)
    }

    pub(super) fn sentence(&self, path: &Path) -> String {
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
