//! Power from the CPU model's figures and utilisation, for machines that show no counter. It is an
//! estimate and says so; it never stands beside a measurement.
//!
//! Power of a package = idle watts × its CPUs + (max − idle) watts × CPUs busy.

use serde::Deserialize;

use crate::base::Watts;
use crate::event::sources::CpuFacts;

/// The figures, with where they come from.
const CPU_POWER: &str = include_str!("../../data/cpu_power.csv");

/// Watts of one logical CPU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct CpuPower {
    microarchitecture: String,
    vendor: String,
    family: String,
    models: String,
    steppings: String,
    idle_watts: f64,
    max_watts: f64,
}

impl CpuPower {
    fn matches(&self, cpu: &CpuFacts) -> bool {
        let among = |list: &str, value: Option<u32>| {
            list.is_empty() || value.is_some_and(|value| is_among(list, value).unwrap_or(false))
        };
        (self.vendor == "*" || self.vendor == cpu.vendor)
            && (self.family == "*"
                || cpu.family.is_some_and(|family| self.family == family.to_string()))
            && among(&self.models, cpu.model)
            && among(&self.steppings, cpu.stepping)
    }

    /// The first row that fits this processor; the last row fits any.
    fn of(cpu: &CpuFacts) -> Option<Self> {
        rows().find(|row| row.matches(cpu))
    }
}

/// Whether a list such as `0-15 32-95` holds the value; `None` if it is no such list.
fn is_among(list: &str, value: u32) -> Option<bool> {
    let mut found = false;
    for part in list.split_whitespace() {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        found |= (first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?).contains(&value);
    }
    Some(found)
}

fn rows() -> impl Iterator<Item = CpuPower> {
    let reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(CPU_POWER.as_bytes());
    reader.into_deserialize().flatten()
}

/// What each package of one machine is thought to draw.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Estimate {
    packages: Vec<PackagePower>,
    basis: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct PackagePower {
    /// Microwatts with nothing running.
    idle: u64,
    /// Microwatts that one busy CPU adds.
    per_busy_cpu: u64,
}

impl Estimate {
    /// `None` only if the built-in table has no row for any processor.
    pub(crate) fn of(cpu: &CpuFacts) -> Option<Self> {
        let power = CpuPower::of(cpu)?;
        let microwatts = |watts: f64| (watts * 1e6).round() as u64;
        let package = |&cpus: &u64| PackagePower {
            idle: microwatts(power.idle_watts).saturating_mul(cpus),
            per_busy_cpu: microwatts((power.max_watts - power.idle_watts).max(0.0)),
        };
        Some(Self {
            packages: cpu.online_cpus.iter().map(package).collect(),
            basis: basis(cpu, &power),
        })
    }

    /// Which figures it rests on, in words.
    pub(crate) fn basis(&self) -> &str {
        &self.basis
    }

    /// What a package draws with nothing running; `None` for one that it does not know.
    pub(crate) fn static_watts(&self, package: usize) -> Option<Watts> {
        self.packages.get(package).map(|package| Watts(package.idle as f64 * 1e-6))
    }

    /// What a package drew in the times since one instant, `busy_ns` of all its CPUs together:
    /// computed in integers from totals rather than summed up, so that nothing drifts and the same
    /// readings give the same counts.
    pub(crate) fn microjoules(&self, package: usize, busy_ns: u64, time_ns: u64) -> Option<u64> {
        let package = self.packages.get(package)?;
        // Microwatts × nanoseconds leave 64 bits after 18 seconds at a kilowatt.
        let idle = u128::from(package.idle) * u128::from(time_ns);
        let dynamic = u128::from(package.per_busy_cpu) * u128::from(busy_ns);
        Some(u64::try_from((idle + dynamic) / 1_000_000_000).unwrap_or(u64::MAX))
    }
}

fn basis(cpu: &CpuFacts, power: &CpuPower) -> String {
    let name = match (cpu.name.as_str(), cpu.vendor.as_str()) {
        ("", "") => "an unknown processor".to_owned(),
        ("", vendor) => format!("a processor of vendor {vendor}"),
        (name, _) => name.to_owned(),
    };
    let number = |value: Option<u32>| value.map_or("?".to_owned(), |value| value.to_string());
    format!(
        "{name} (family {}, model {}) taken as {}: {:.2} W idle and {:.2} W busy per logical CPU, \
         whole-server figures that Cloud Carbon Footprint derives from SPECpower_ssj2008",
        number(cpu.family),
        number(cpu.model),
        power.microarchitecture,
        power.idle_watts,
        power.max_watts
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn cpu(vendor: &str, family: u32, model: u32, stepping: u32) -> CpuFacts {
        CpuFacts {
            vendor: vendor.to_owned(),
            family: Some(family),
            model: Some(model),
            stepping: Some(stepping),
            ..CpuFacts::default()
        }
    }

    #[test]
    fn every_line_of_the_table_is_a_row() {
        let lines = CPU_POWER.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(rows().count(), lines - 1);
        for row in rows() {
            assert!(0.0 < row.idle_watts && row.idle_watts < row.max_watts, "{row:?}");
            for list in [&row.models, &row.steppings] {
                assert!(is_among(list, 0).is_some(), "{row:?}");
            }
        }
    }

    #[test]
    fn the_last_row_is_the_mean_of_the_others() {
        let rows: Vec<_> = rows().collect();
        let (last, others) = rows.split_last().unwrap();
        let mut seen = BTreeSet::new();
        let others: Vec<_> = others
            .iter()
            .filter(|row| !row.microarchitecture.contains("(for"))
            .filter(|row| seen.insert(row.microarchitecture.as_str()))
            .collect();
        let mean = |value: fn(&CpuPower) -> f64| {
            others.iter().map(|row| value(row)).sum::<f64>() / others.len() as f64
        };
        assert!((last.idle_watts - mean(|row| row.idle_watts)).abs() < 1e-4);
        assert!((last.max_watts - mean(|row| row.max_watts)).abs() < 1e-4);
    }

    #[test]
    fn processors_find_their_row() {
        for (cpu, expected) in [
            (cpu("GenuineIntel", 6, 85, 4), "Skylake"),
            (cpu("GenuineIntel", 6, 85, 7), "Cascade Lake"),
            (cpu("GenuineIntel", 6, 143, 8), "Sapphire Rapids"),
            (cpu("GenuineIntel", 15, 85, 4), "the average of all"),
            (cpu("AuthenticAMD", 25, 1, 1), "EPYC 3rd Gen"),
            (cpu("AuthenticAMD", 25, 17, 1), "EPYC 4th Gen"),
            (cpu("AuthenticAMD", 26, 2, 1), "EPYC 4th Gen (for the 5th)"),
            (cpu("0x41", 8, 0xd0c, 3), "EPYC 2nd Gen (for Arm servers)"),
            (CpuFacts::default(), "the average of all"),
        ] {
            assert_eq!(CpuPower::of(&cpu).unwrap().microarchitecture, expected, "{cpu:?}");
        }
    }

    /// 0.7391 W idle and 2.2822 W busy: Zen 4, two CPUs on one package and one on another.
    fn zen_4() -> Estimate {
        let cpu = CpuFacts { online_cpus: vec![2, 1], ..cpu("AuthenticAMD", 25, 17, 1) };
        Estimate::of(&cpu).unwrap()
    }

    #[test]
    fn energy_is_the_model_in_whole_microjoules() {
        let estimate = zen_4();
        let second = 1_000_000_000;
        assert_eq!(estimate.static_watts(0), Some(Watts(1.4782)));
        assert_eq!(estimate.static_watts(1), Some(Watts(0.7391)));
        assert_eq!(estimate.microjoules(1, 0, 10 * second), Some(7_391_000));
        let busy = estimate.microjoules(0, 3 * second + 3, 10 * second);
        assert_eq!(busy, Some(14_782_000 + 3 * 1_543_100));
        // A package that it does not know draws nothing known, not 0 J.
        assert_eq!(
            (estimate.microjoules(2, second, second), estimate.static_watts(2)),
            (None, None)
        );
    }

    #[test]
    fn centuries_do_not_overflow() {
        let cpu = CpuFacts { online_cpus: vec![512, u64::MAX], ..CpuFacts::default() };
        let estimate = Estimate::of(&cpu).unwrap();
        assert!(estimate.microjoules(0, u64::MAX / 2, u64::MAX) > Some(1 << 40));
        assert_eq!(estimate.microjoules(1, 0, u64::MAX), Some(u64::MAX));
    }

    #[test]
    fn lists_of_models() {
        assert_eq!(is_among("0-15 32-95", 32), Some(true));
        assert_eq!(is_among("0-15 32-95", 31), Some(false));
        assert_eq!(is_among("42 45", 45), Some(true));
        assert_eq!(is_among("", 1), Some(false));
        assert_eq!(is_among("4x", 4), None);
    }
}
