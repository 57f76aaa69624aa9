//! Power from the CPU model's figures and utilisation, for machines that show no counter. It is an
//! estimate and says so; it never stands beside a measurement.
//!
//! Power of a package = idle watts × its CPUs + (max − idle) watts × CPUs busy. Integrated, that is
//! a counter: microjoules since the first reading, computed in integers from the readings' totals
//! rather than summed up, so that nothing drifts and the same readings give the same counts.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::base::Component;
use crate::event::{Domain, Reading, SLOT_IDLE};
use crate::host::cpu::CpuModel;
use crate::host::parse_cpu_list;
use crate::host::topology::Topology;
use crate::meter::EnergyMeter;

/// The figures, with where they come from.
const CPU_POWER: &str = include_str!("../../data/cpu_power.csv");

/// Watts of one logical CPU.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct CpuPower {
    pub microarchitecture: String,
    vendor: String,
    family: String,
    models: String,
    steppings: String,
    pub idle_watts: f64,
    pub max_watts: f64,
}

impl CpuPower {
    fn matches(&self, cpu: &CpuModel) -> bool {
        let among = |list: &str, value: Option<u32>| {
            list.is_empty()
                || value.is_some_and(|value| {
                    parse_cpu_list(&list.replace(' ', ","))
                        .is_some_and(|values| values.contains(&(value as usize)))
                })
        };
        (self.vendor == "*" || self.vendor == cpu.vendor)
            && (self.family == "*"
                || cpu.family.is_some_and(|family| self.family == family.to_string()))
            && among(&self.models, cpu.model)
            && among(&self.steppings, cpu.stepping)
    }

    /// The first row that fits this processor; the last row fits any.
    pub fn of(cpu: &CpuModel) -> Option<Self> {
        rows().find(|row| row.matches(cpu))
    }
}

fn rows() -> impl Iterator<Item = CpuPower> {
    let reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(CPU_POWER.as_bytes());
    reader.into_deserialize().flatten()
}

/// The estimate as an energy counter, one domain a package.
#[derive(Debug)]
pub struct EstimateMeter {
    domains: Vec<Domain>,
    packages: Vec<Package>,
    basis: String,
    start: Option<u64>,
}

#[derive(Debug)]
struct Package {
    /// Microwatts with nothing running.
    idle: u64,
    /// Microwatts that one busy CPU adds.
    per_busy_cpu: u64,
    /// CPU time at the first reading, and at the last: busy time does not go back.
    busy_start: u64,
    busy: u64,
}

impl EstimateMeter {
    /// `None` only if the built-in table has no row for any processor.
    pub fn new(cpu: &CpuModel, topology: &Topology) -> Option<Self> {
        let power = CpuPower::of(cpu)?;
        let microwatts = |watts: f64| (watts * 1e6).round() as u64;
        let mut cpus = vec![0_u64; topology.packages.len()];
        // CPUs that could be plugged in one day draw nothing today.
        let online = |number: &usize| cpu.online.is_empty() || cpu.online.contains(number);
        for number in (0..topology.package_of_cpu.len()).filter(online) {
            if let Some(count) = cpus.get_mut(topology.package_of_cpu[number]) {
                *count += 1;
            }
        }
        let domains = topology.packages.iter().zip(&cpus).enumerate();
        Some(Self {
            domains: domains
                .map(|(index, (package, cpus))| Domain {
                    name: package.name.clone(),
                    component: Component::Cpu,
                    package: index,
                    joules_per_count: 1e-6,
                    range: None,
                    // CPU time may arrive in lumps when windows are short; only nonsense is refused.
                    max_watts: 10.0 * power.max_watts * (*cpus).max(1) as f64,
                })
                .collect(),
            packages: cpus
                .iter()
                .map(|cpus| Package {
                    idle: microwatts(power.idle_watts) * cpus,
                    per_busy_cpu: microwatts((power.max_watts - power.idle_watts).max(0.0)),
                    busy_start: 0,
                    busy: 0,
                })
                .collect(),
            basis: basis(cpu, &power),
            start: None,
        })
    }

    /// Which figures it rests on, in words.
    pub fn basis(&self) -> &str {
        &self.basis
    }

    /// Watts with nothing running, by domain.
    pub fn static_watts(&self) -> BTreeMap<String, f64> {
        let watts = self.packages.iter().map(|package| package.idle as f64 * 1e-6);
        self.domains.iter().map(|domain| domain.name.clone()).zip(watts).collect()
    }
}

fn basis(cpu: &CpuModel, power: &CpuPower) -> String {
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

impl EnergyMeter for EstimateMeter {
    fn domains(&self) -> &[Domain] {
        &self.domains
    }

    fn read(
        &mut self,
        mono_ns: u64,
        cpu_ns: &[Vec<u64>],
        readings: &mut Vec<Option<Reading>>,
        _problems: &mut Vec<String>,
    ) {
        readings.clear();
        let first = self.start.is_none();
        let elapsed = mono_ns.saturating_sub(*self.start.get_or_insert(mono_ns));
        for (index, package) in self.packages.iter_mut().enumerate() {
            let slots = cpu_ns.get(index).into_iter().flatten().enumerate();
            let busy = slots.filter(|(slot, _)| *slot != SLOT_IDLE).map(|(_, ns)| ns).sum();
            if first {
                package.busy_start = busy;
            }
            package.busy = package.busy.max(busy);
            readings.push(Some(Reading { mono_ns, count: package.microjoules(elapsed) }));
        }
    }
}

impl Package {
    fn microjoules(&self, elapsed_ns: u64) -> u64 {
        let busy_ns = self.busy.saturating_sub(self.busy_start);
        // Microwatts × nanoseconds leave 64 bits after 18 seconds at a kilowatt.
        let idle = u128::from(self.idle) * u128::from(elapsed_ns);
        let dynamic = u128::from(self.per_busy_cpu) * u128::from(busy_ns);
        u64::try_from((idle + dynamic) / 1_000_000_000).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::host::topology;

    fn cpu(vendor: &str, family: u32, model: u32, stepping: u32) -> CpuModel {
        CpuModel {
            vendor: vendor.to_owned(),
            family: Some(family),
            model: Some(model),
            stepping: Some(stepping),
            ..CpuModel::default()
        }
    }

    fn topology(package_of_cpu: Vec<usize>) -> Topology {
        let packages = 0..=package_of_cpu.iter().copied().max().unwrap_or(0);
        let packages = packages.map(|n| topology::Package { name: format!("package-{n}") });
        Topology { packages: packages.collect(), package_of_cpu }
    }

    #[test]
    fn every_line_of_the_table_is_a_row() {
        let lines = CPU_POWER.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(rows().count(), lines - 1);
        for row in rows() {
            assert!(0.0 < row.idle_watts && row.idle_watts < row.max_watts, "{row:?}");
            for list in [&row.models, &row.steppings] {
                assert!(parse_cpu_list(&list.replace(' ', ",")).is_some(), "{row:?}");
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
            (CpuModel::default(), "the average of all"),
        ] {
            assert_eq!(CpuPower::of(&cpu).unwrap().microarchitecture, expected, "{cpu:?}");
        }
    }

    #[test]
    fn counts_are_the_model_exactly() {
        // 0.7391 W idle and 2.2822 W busy: Zen 4, three CPUs on two packages, CPU 3 offline.
        let mut model = cpu("AuthenticAMD", 25, 17, 1);
        model.online = vec![0, 1, 2];
        let mut meter = EstimateMeter::new(&model, &topology(vec![0, 0, 1, 1])).unwrap();
        assert_eq!(meter.static_watts()["package-0"], 1.4782);
        assert_eq!(meter.static_watts()["package-1"], 0.7391);

        let (mut readings, mut problems) = (Vec::new(), Vec::new());
        let second = 1_000_000_000;
        let mut counts = |mono_ns, cpu_ns: &[Vec<u64>]| {
            meter.read(mono_ns, cpu_ns, &mut readings, &mut problems);
            readings.iter().map(|reading| reading.unwrap().count).collect::<Vec<_>>()
        };
        // Whatever happened before the first reading is not billed.
        assert_eq!(counts(5 * second, &[vec![7 * second, 9, 3], vec![]]), [0, 0]);
        // Idle time is no work, whoever counts it.
        let idle = [vec![7 * second, 9 * second, 3], vec![0, 8 * second]];
        assert_eq!(counts(15 * second, &idle), [14_782_000, 7_391_000]);
        // Two busy seconds of other and one of a workload.
        let busy = [vec![9 * second, 0, second + 3], vec![]];
        assert_eq!(counts(15 * second, &busy)[0], 14_782_000 + 3 * 1_543_100);
        // Busy time that goes back is held, not billed twice.
        assert_eq!(counts(15 * second, &idle)[0], 14_782_000 + 3 * 1_543_100);
        assert!(problems.is_empty());
    }

    #[test]
    fn centuries_do_not_overflow() {
        let mut meter = EstimateMeter::new(&CpuModel::default(), &topology(vec![0; 512])).unwrap();
        let (mut readings, mut problems) = (Vec::new(), Vec::new());
        meter.read(0, &[], &mut readings, &mut problems);
        meter.read(u64::MAX, &[vec![u64::MAX / 2]], &mut readings, &mut problems);
        assert!(readings[0].unwrap().count > 1 << 40);
    }
}
