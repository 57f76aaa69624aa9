//! Power from the CPU model's figures and utilisation, for machines that show no counter. It is an
//! estimate and says so; it never stands beside a measurement.
//!
//! Power of a package = its CPUs × (idle watts + (max − idle) watts × how far power has risen at its
//! load): a guest's share of a server, by its CPUs, as if all of that server were as busy as they are.

mod curve;

use serde::Deserialize;

use self::curve::{Maker, Spread};
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
    /// Whether servers of this very microarchitecture are behind the figures.
    own: bool,
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
    /// CPUs that are online, by package.
    cpus: Vec<u64>,
    /// Microwatts of one CPU with nothing running.
    idle: u64,
    /// Microwatts that one CPU adds when all are busy.
    rise: u64,
    maker: Maker,
    spread: Spread,
    basis: String,
}

impl Estimate {
    /// `None` only if the built-in table has no row for any processor.
    pub(crate) fn of(cpu: &CpuFacts) -> Option<Self> {
        let power = CpuPower::of(cpu)?;
        let microwatts = |watts: f64| (watts * 1e6).round() as u64;
        let maker = Maker::of(&cpu.vendor);
        let mut estimate = Self {
            cpus: cpu.online_cpus.clone(),
            idle: microwatts(power.idle_watts),
            rise: microwatts((power.max_watts - power.idle_watts).max(0.0)),
            maker,
            spread: Spread::of(maker, power.own, cpu.virtual_machine),
            basis: String::new(),
        };
        estimate.basis = estimate.words(cpu, &power);
        Some(estimate)
    }

    /// Which figures it rests on and how far they can be off, in words.
    pub(crate) fn basis(&self) -> &str {
        &self.basis
    }

    /// Standard error of the energy that running adds, which is what workloads are billed, as a part
    /// of it; [`Spread`] says how it was found. It is nearly all one unknown, the level of this machine:
    /// what is off is off in all windows and workloads of a run alike, and does not average out.
    pub(crate) fn relative_stderr(&self) -> f64 {
        self.spread.dynamic
    }

    /// Standard error of what [`static_watts`](Self::static_watts) says, and of idle energy, as a part
    /// of it; otherwise likewise.
    pub(crate) fn static_relative_stderr(&self) -> f64 {
        self.spread.idle
    }

    /// What a package draws with nothing running; `None` for one that it does not know.
    pub(crate) fn static_watts(&self, package: usize) -> Option<Watts> {
        let cpus = *self.cpus.get(package)?;
        Some(Watts(self.idle.saturating_mul(cpus) as f64 * 1e-6))
    }

    /// What a package drew in a window of `time_ns` in which its CPUs ran for `busy_ns` together, in
    /// 10⁻¹⁸ J: exact, so that the same windows give the same sum. More than all of its CPU time is all
    /// of it, and a window without time has no energy.
    ///
    /// Power does not rise in proportion to load, and what is known of a window is its mean load: the
    /// same run cut into other windows gives other energy. A steady load hardly cares; one that comes in
    /// bursts between which little runs is billed what they add in short windows, and in long ones up
    /// to some two and a half times that, as the curve starts steep. The curve's own loads are means
    /// over 240 s.
    pub(crate) fn attojoules(&self, package: usize, busy_ns: u64, time_ns: u64) -> Option<u128> {
        let cpu_time = u128::from(*self.cpus.get(package)?) * u128::from(time_ns);
        // Microwatts × nanoseconds are 10⁻¹⁵ J, and the curve is in thousandths.
        let idle = u128::from(self.idle).saturating_mul(cpu_time).saturating_mul(1000);
        let risen = self.maker.rise(busy_ns, cpu_time);
        Some(idle.saturating_add(u128::from(self.rise).saturating_mul(risen)))
    }

    fn words(&self, cpu: &CpuFacts, power: &CpuPower) -> String {
        let name = match (cpu.name.as_str(), cpu.vendor.as_str()) {
            ("", "") => "an unknown processor".to_owned(),
            ("", vendor) => format!("a processor of vendor {vendor}"),
            (name, _) => name.to_owned(),
        };
        let number = |value: Option<u32>| value.map_or("?".to_owned(), |value| value.to_string());
        let cpus = match cpu.online_cpus.iter().fold(0, |sum: u64, cpus| sum.saturating_add(*cpus))
        {
            1 => "1 CPU".to_owned(),
            cpus => format!("{cpus} CPUs"),
        };
        let share = match cpu.virtual_machine {
            true => format!("this guest's share of a server, {cpus}, as if all of it were as busy"),
            false => format!("for {cpus}"),
        };
        format!(
            "{name} (family {}, model {}) taken as {}: {:.2} W idle and {:.2} W busy per logical CPU, \
             whole-server figures that Cloud Carbon Footprint derives from SPECpower_ssj2008, and between \
             them the median curve of {} there; {share}; standard error ± {:.0} % of what running adds, \
             ± {:.0} % of idle",
            number(cpu.family),
            number(cpu.model),
            power.microarchitecture,
            power.idle_watts,
            power.max_watts,
            self.maker.servers(),
            self.relative_stderr() * 100.0,
            self.static_relative_stderr() * 100.0
        )
    }
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
            .filter(|row| row.own)
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

    const SECOND: u64 = 1_000_000_000;

    /// Packages of 2 CPUs and of 1.
    fn estimate(vendor: &str, family: u32, model: u32, guest: bool) -> Estimate {
        let cpu = cpu(vendor, family, model, 1);
        let cpu = CpuFacts { online_cpus: vec![2, 1], virtual_machine: guest, ..cpu };
        Estimate::of(&cpu).unwrap()
    }

    /// 0.7391 W idle and 2.2822 W busy.
    fn zen_4() -> Estimate {
        estimate("AuthenticAMD", 25, 17, true)
    }

    #[test]
    fn energy_follows_the_curve_from_idle_to_full() {
        let estimate = zen_4();
        let microjoules = |package, busy_ns, time_ns| {
            let energy = estimate.attojoules(package, busy_ns, time_ns)?;
            Some((energy / 1_000_000_000_000, energy % 1_000_000_000_000))
        };
        assert_eq!(estimate.static_watts(0), Some(Watts(1.4782)));
        assert_eq!(estimate.static_watts(1), Some(Watts(0.7391)));
        assert_eq!(microjoules(1, 0, 10 * SECOND), Some((7_391_000, 0)));
        assert_eq!(microjoules(1, 10 * SECOND, 10 * SECOND), Some((22_822_000, 0)));
        // One of two CPUs is half of the load, 0.570 of the way; the smallest piece of a step counts.
        let half = 10 * (1_478_200 + 3_086_200 * 570 / 1000) * 1_000_000_000_000;
        assert_eq!(estimate.attojoules(0, 10 * SECOND, 10 * SECOND), Some(half));
        let more = 1_543_100 * 10 * (642 - 570);
        assert_eq!(estimate.attojoules(0, 10 * SECOND + 1, 10 * SECOND), Some(half + more));
        // A package that it does not know draws nothing known, not 0 J.
        assert_eq!((microjoules(2, SECOND, SECOND), estimate.static_watts(2)), (None, None));
    }

    /// What half of the CPU time adds, as a part of what all of it adds.
    fn half_load(estimate: &Estimate) -> f64 {
        let energy = |busy_ns| estimate.attojoules(0, busy_ns, SECOND).unwrap();
        (energy(SECOND) - energy(0)) as f64 / (energy(2 * SECOND) - energy(0)) as f64
    }

    #[test]
    fn each_maker_has_its_curve_and_its_spread() {
        for (vendor, family, model, half, (alone, guest, idle), servers) in [
            ("AuthenticAMD", 25, 17, 0.570, (0.20, 0.55, 0.25), "AMD servers"),
            // The 4th generation stands in for the 5th.
            ("AuthenticAMD", 26, 2, 0.570, (0.58, 0.58, 0.55), "AMD servers"),
            ("GenuineIntel", 6, 143, 0.399, (0.26, 0.40, 0.82), "Intel servers"),
            ("GenuineIntel", 15, 1, 0.399, (0.29, 0.44, 0.82), "Intel servers"),
            ("0x41", 8, 0xd0c, 0.432, (0.36, 0.44, 0.55), "all servers"),
            ("", 0, 0, 0.432, (0.36, 0.44, 0.55), "all servers"),
        ] {
            for (is_guest, dynamic) in [(false, alone), (true, guest)] {
                let estimate = estimate(vendor, family, model, is_guest);
                assert_eq!(half_load(&estimate), half, "{vendor}");
                let stderr = (estimate.relative_stderr(), estimate.static_relative_stderr());
                assert_eq!(stderr, (dynamic, idle), "{vendor}");
                assert!(estimate.basis().contains(&format!("median curve of {servers} there")));
            }
        }
    }

    #[test]
    fn the_basis_says_whose_figures_they_are_and_how_sure() {
        assert_eq!(
            zen_4().basis(),
            "a processor of vendor AuthenticAMD (family 25, model 17) taken as EPYC 4th Gen: 0.74 W \
             idle and 2.28 W busy per logical CPU, whole-server figures that Cloud Carbon Footprint \
             derives from SPECpower_ssj2008, and between them the median curve of AMD servers there; \
             this guest's share of a server, 3 CPUs, as if all of it were as busy; standard error \
             ± 55 % of what running adds, ± 25 % of idle"
        );
        let host = estimate("AuthenticAMD", 25, 17, false);
        assert!(host.basis().contains("there; for 3 CPUs; standard error ± 20 %"));
    }

    #[test]
    fn a_window_has_no_more_than_its_time() {
        let estimate = zen_4();
        let full = estimate.attojoules(0, 2 * SECOND, SECOND);
        assert_eq!(full, Some(4_564_400 * 1_000_000_000_000));
        for busy_ns in [2 * SECOND + 1, u64::MAX] {
            assert_eq!(estimate.attojoules(0, busy_ns, SECOND), full);
        }
        assert_eq!(estimate.attojoules(0, 0, 0), Some(0));
        assert_eq!(estimate.attojoules(0, SECOND, 0), Some(0));
    }

    #[test]
    fn centuries_do_not_overflow() {
        let cpu = CpuFacts { online_cpus: vec![512, u64::MAX, 0], ..CpuFacts::default() };
        let estimate = Estimate::of(&cpu).unwrap();
        assert!(estimate.attojoules(0, u64::MAX / 2, u64::MAX) > Some(1 << 100));
        assert_eq!(estimate.attojoules(1, u64::MAX, u64::MAX), Some(u128::MAX));
        assert_eq!(estimate.attojoules(2, u64::MAX, u64::MAX), Some(0));
        assert!(estimate.static_watts(1).unwrap().0.is_finite());
        assert_eq!(estimate.static_watts(2), Some(Watts(0.0)));
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
