//! A dynamic perf PMU as `bus/event_source/devices/NAME` describes it: a type number, the CPUs to open
//! events on, and for each event a string of terms whose bits `format/` assigns.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{BadFact, parse_cpu_list, read_value};

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Pmu {
    directory: PathBuf,
    /// `perf_event_attr::type`.
    pub kind: u32,
    /// One CPU for each of what it counts (a package, a die): events are opened on these. `None`: it
    /// names none, and counts on any.
    pub cpus: Option<Vec<usize>>,
    /// Sorted by name.
    pub events: Vec<PmuEvent>,
    /// Events that make no sense, each in a sentence.
    pub problems: Vec<BadFact>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PmuEvent {
    /// "energy-pkg", "c6-residency", "tsc", ...
    pub name: String,
    /// `perf_event_attr::config`, `config1`, `config2`.
    pub config: [u64; 3],
}

impl Pmu {
    /// Reads the description of the PMU of that name; `None` where there is no such PMU.
    ///
    /// # Errors
    ///
    /// If the PMU's type or its CPUs cannot be told. An event that makes no sense is only a problem.
    pub(crate) fn read(sysfs: &Path, name: &str) -> Result<Option<Self>, BadFact> {
        let directory = sysfs.join("bus/event_source/devices").join(name);
        let path = directory.join("type");
        let kind = match read_value(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(BadFact::new(&path, error)),
            Ok(text) => text.parse().map_err(|_| BadFact::new(&path, "not a PMU type"))?,
        };
        let cpus = cpumask(&directory.join("cpumask"))?;
        let mut pmu = Self { directory, kind, cpus, events: Vec::new(), problems: Vec::new() };
        let mut names: Vec<String> = fs::read_dir(pmu.directory.join("events"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| !name.contains('.'))
            .collect();
        names.sort_unstable();
        for name in names {
            match pmu.config(&name) {
                Ok(config) => pmu.events.push(PmuEvent { name, config }),
                Err(problem) => pmu.problems.push(problem),
            }
        }
        Ok(Some(pmu))
    }

    pub(crate) fn event(&self, name: &str) -> Option<&PmuEvent> {
        self.events.iter().find(|event| event.name == name)
    }

    /// The file that would name the CPUs.
    pub(crate) fn cpumask(&self) -> PathBuf {
        self.directory.join("cpumask")
    }

    /// What stands beside an event, in a file such as `energy-pkg.unit`, and which file that is.
    pub(crate) fn beside(&self, event: &str, suffix: &str) -> Result<(PathBuf, String), BadFact> {
        let path = self.directory.join(format!("events/{event}{suffix}"));
        let text = read_value(&path).map_err(|error| BadFact::new(&path, error))?;
        Ok((path, text))
    }

    fn config(&self, event: &str) -> Result<[u64; 3], BadFact> {
        let (path, terms) = self.beside(event, "")?;
        let format = |term: &str| read_value(&self.directory.join("format").join(term)).ok();
        encode(&terms, format)
            .ok_or_else(|| BadFact::new(&path, format!("`{terms}` cannot be encoded")))
    }
}

/// The CPUs that events are opened on; `None` if there is no such file.
fn cpumask(path: &Path) -> Result<Option<Vec<usize>>, BadFact> {
    let text = match read_value(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|error| BadFact::new(path, error))?,
    };
    let cpus = parse_cpu_list(&text).ok_or_else(|| BadFact::new(path, "not a list of CPUs"))?;
    if cpus.is_empty() {
        return Err(BadFact::new(path, "names no CPU"));
    }
    Ok(Some(cpus))
}

/// The config words of an event string such as `event=0x02,umask=1`, where `format` tells the place
/// of each term: `config:0-7` or `config1:0-3,8`. A term without a value is 1.
fn encode(terms: &str, format: impl Fn(&str) -> Option<String>) -> Option<[u64; 3]> {
    let mut config = [0; 3];
    for term in terms.split(',').map(str::trim) {
        let (key, value) = term.split_once('=').unwrap_or((term, "1"));
        let mut value = parse_number(value)?;
        if let Some(word) = word_of(key) {
            config[word] = value;
            continue;
        }
        // A file name, not a path.
        if key.is_empty() || key.contains('/') {
            return None;
        }
        let format = format(key)?;
        let (word, ranges) = format.split_once(':')?;
        let word = &mut config[word_of(word)?];
        for bit in parse_cpu_list(ranges)? {
            *word |= (value & 1).checked_shl(bit.try_into().ok()?)?;
            value >>= 1;
        }
        if value != 0 {
            return None;
        }
    }
    Some(config)
}

fn word_of(name: &str) -> Option<usize> {
    ["config", "config1", "config2"].iter().position(|word| *word == name)
}

fn parse_number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(terms: &str) -> Option<[u64; 3]> {
        encode(terms, |term| {
            let format = match term {
                "event" => "config:0-7",
                "umask" => "config:8-15",
                "split" => "config1:0-3,32-35",
                "flag" => "config2:63",
                "beyond" => "config:60-70",
                "broken" => "conf:x",
                _ => return None,
            };
            Some(format.to_owned())
        })
    }

    #[test]
    fn terms_go_where_the_format_says() {
        assert_eq!(encoded("event=0x02"), Some([2, 0, 0]));
        assert_eq!(encoded("event=0x02, umask=3"), Some([0x302, 0, 0]));
        assert_eq!(encoded("split=0xa5"), Some([0, 0xa_0000_0005, 0]));
        assert_eq!(encoded("flag"), Some([0, 0, 1 << 63]));
        assert_eq!(encoded("config=0x7,config1=2"), Some([7, 2, 0]));
    }

    #[test]
    fn nonsense_is_refused() {
        for terms in
            ["", "event=", "event=0x100", "event=-1", "other=1", "beyond=0x7ff", "broken=1", "../x"]
        {
            assert_eq!(encoded(terms), None, "{terms}");
        }
    }
}
