//! The perf `power` PMU: energy events, each with its unit and its scale.

use std::path::Path;

use super::BadFact;
use super::pmu::{Pmu, PmuEvent};

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PowerPmu {
    /// `perf_event_attr::type`.
    pub kind: u32,
    /// One CPU for each package (or die): events are opened on these.
    pub cpus: Vec<usize>,
    /// Sorted by name.
    pub events: Vec<EnergyEvent>,
    /// Events that make no sense, each in a sentence.
    pub problems: Vec<BadFact>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EnergyEvent {
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
    let Some(mut pmu) = Pmu::read(sysfs, "power")? else { return Ok(None) };
    let Some(cpus) = pmu.cpus.take() else {
        return Err(BadFact::new(&pmu.cpumask(), "there is no such file"));
    };
    let mut problems = std::mem::take(&mut pmu.problems);
    let mut events = Vec::new();
    for PmuEvent { name, config } in std::mem::take(&mut pmu.events) {
        match joules_per_count(&pmu, &name) {
            Ok(joules_per_count) => events.push(EnergyEvent { name, config, joules_per_count }),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(Some(PowerPmu { kind: pmu.kind, cpus, events, problems }))
}

fn joules_per_count(pmu: &Pmu, event: &str) -> Result<f64, BadFact> {
    let (path, unit) = pmu.beside(event, ".unit")?;
    if unit != "Joules" {
        return Err(BadFact::new(&path, format!("the unit is `{unit}`, not Joules")));
    }
    let (path, scale) = pmu.beside(event, ".scale")?;
    scale
        .parse()
        .ok()
        .filter(|scale: &f64| scale.is_finite() && *scale > 0.0)
        .ok_or_else(|| BadFact::new(&path, format!("`{scale}` is no scale")))
}
