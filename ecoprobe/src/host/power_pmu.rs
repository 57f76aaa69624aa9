//! The perf `power` PMU as `bus/event_source/devices/power` describes it: a type number, the CPUs
//! to open events on, and for each event a string of terms whose bits `format/` assigns.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::{BadFact, parse_cpu_list, read_value};

const DIRECTORY: &str = "bus/event_source/devices/power";

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PowerPmu {
    /// `perf_event_attr::type`.
    pub kind: u32,
    /// One CPU for each package (or die): events are opened on these.
    pub cpus: Vec<usize>,
    /// Sorted by name.
    pub events: Vec<PmuEvent>,
    /// Events that make no sense, each in a sentence.
    pub problems: Vec<BadFact>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PmuEvent {
    /// "energy-pkg", "energy-ram", "energy-cores", "energy-psys", ...
    pub name: String,
    /// `perf_event_attr::config`, `config1`, `config2`.
    pub config: [u64; 3],
    /// Joules of one count.
    pub joules_per_count: f64,
}

/// Reads the description; `None` where there is no such PMU.
///
/// # Errors
///
/// If the PMU's type or its CPUs cannot be told. An event that makes no sense is only a problem.
pub(crate) fn read(sysfs: &Path) -> Result<Option<PowerPmu>, BadFact> {
    let directory = sysfs.join(DIRECTORY);
    let path = directory.join("type");
    let kind = match read_value(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(BadFact::new(&path, error)),
        Ok(text) => text.parse().map_err(|_| BadFact::new(&path, "not a PMU type"))?,
    };
    let cpus = cpumask(sysfs)?;
    let path = directory.join("cpumask");
    if cpus.is_empty() {
        return Err(BadFact::new(&path, "names no CPU"));
    }
    let (mut events, mut problems) = (Vec::new(), Vec::new());
    let mut names: Vec<String> = fs::read_dir(directory.join("events"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !name.contains('.'))
        .collect();
    names.sort_unstable();
    for name in names {
        match read_event(&directory, name) {
            Ok(event) => events.push(event),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(Some(PowerPmu { kind, cpus, events, problems }))
}

/// The CPUs that events are opened on.
fn cpumask(sysfs: &Path) -> Result<Vec<usize>, BadFact> {
    let path = sysfs.join(DIRECTORY).join("cpumask");
    let text = read_value(&path).map_err(|error| BadFact::new(&path, error))?;
    parse_cpu_list(&text).ok_or_else(|| BadFact::new(&path, "not a list of CPUs"))
}

fn read_event(directory: &Path, name: String) -> Result<PmuEvent, BadFact> {
    let value = |suffix: &str| {
        let path = directory.join(format!("events/{name}{suffix}"));
        let text = read_value(&path).map_err(|error| BadFact::new(&path, error))?;
        Ok((path, text))
    };
    let (path, unit) = value(".unit")?;
    if unit != "Joules" {
        return Err(BadFact::new(&path, format!("the unit is `{unit}`, not Joules")));
    }
    let (path, scale) = value(".scale")?;
    let joules_per_count = scale
        .parse()
        .ok()
        .filter(|scale: &f64| scale.is_finite() && *scale > 0.0)
        .ok_or_else(|| BadFact::new(&path, format!("`{scale}` is no scale")))?;
    let (path, terms) = value("")?;
    let format = |term: &str| read_value(&directory.join("format").join(term)).ok();
    let config = encode(&terms, format)
        .ok_or_else(|| BadFact::new(&path, format!("`{terms}` cannot be encoded")))?;
    Ok(PmuEvent { name, config, joules_per_count })
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
