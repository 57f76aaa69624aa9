//! What makes a sequence of events a recording.

use std::collections::{HashMap, HashSet};

use crate::base::{Component, User, WorkloadId};
use crate::event::{Counts, Event, Feature, GpuWindow, Header, PackageTime, Sample};

pub(super) const UNKNOWN_GPU_USER: &str = "GPU usage of a workload that was not introduced";

/// Far more than any machine has. A recording is made by anybody: what it says of itself must not
/// decide how much memory it takes.
const MOST_PACKAGES: usize = 1024;
const MOST_DOMAINS: usize = 4096;
const MOST_FEATURES: usize = 16;
/// RAPL counts in steps of some 10 µJ to 1 mJ.
const MOST_JOULES_PER_COUNT: f64 = 1e6;

/// What the events so far allow the next one to be. Reader and writer check the same, so that what
/// was recorded can be replayed, and nothing behind the reader meets an index that leads nowhere.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Packages and domains; `None` before the header.
    header: Option<(usize, usize)>,
    /// Those that have not ended, and their newest CPU time by place (each package, and CPUs of no known
    /// one; then likewise each feature), up to the last place where they ran. Ids ascend, so the highest tells of the others whether they were introduced.
    living: HashMap<WorkloadId, Vec<u64>>,
    highest: u64,
    /// Of the newest sample, by place: idle and other.
    times: Vec<[u64; 2]>,
    features: Vec<Feature>,
    awake_ns: u64,
    /// Of the first format: its writers' CPU times could fall.
    pub(super) may_fall: bool,
    /// Of the newest sample.
    mono_ns: Option<u64>,
}

impl Shape {
    pub(super) fn check(&mut self, event: &Event) -> Result<(), String> {
        match (event, self.header) {
            (Event::Header(header), None) => self.begin(header)?,
            (Event::Header(_), Some(_)) => return Err("a second header".into()),
            (_, None) => return Err("an event before the header".into()),
            (Event::Workload(workload), _) => {
                if workload.id == WorkloadId(0) {
                    return Err("a workload whose id is 0".into());
                }
                self.living.entry(workload.id).or_default();
                self.highest = self.highest.max(workload.id.0);
            }
            (Event::Ended { id }, _) => {
                if !self.was_introduced(*id) {
                    return Err("the end of a workload that was not introduced".into());
                }
                self.living.remove(id);
            }
            (Event::Sample(sample), Some((packages, domains))) => {
                self.check_sample(sample, packages, domains)?;
                self.mono_ns = Some(sample.mono_ns);
            }
            (Event::Gpu(window), _) => self.check_gpu(window)?,
            (Event::Warning { .. }, _) => {}
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, header: &Header) -> Result<(), String> {
        check_header(header)?;
        self.header = Some((header.packages.len(), header.domains.len()));
        self.times = vec![[0; 2]; header.packages.len() + 1];
        Ok(())
    }

    fn check_sample(
        &mut self,
        sample: &Sample,
        packages: usize,
        domains: usize,
    ) -> Result<(), String> {
        let (rows, readings) = (sample.cpu.packages.len(), sample.energy.len());
        check_rows(rows, packages)?;
        if readings != domains {
            return Err(format!("{readings} energy readings where the header has {domains}"));
        }
        if self.mono_ns.is_some_and(|before| sample.mono_ns <= before) {
            return Err("it is no later than the sample before it".into());
        }
        for (place, time) in sample.cpu.packages.iter().chain([&sample.cpu.unplaced]).enumerate() {
            let PackageTime { idle, other, workloads, features } = time;
            self.check_counts(place, [*idle, *other], workloads)?;
            for (feature, Counts { other, workloads }) in features {
                let known = self.features.iter().position(|known| known == feature);
                let index = known.unwrap_or(self.features.len());
                if index == MOST_FEATURES {
                    return Err(format!("more than {MOST_FEATURES} features"));
                }
                if known.is_none() {
                    self.features.push(feature.clone());
                }
                let place = place + (packages + 1) * (index + 1);
                self.check_counts(place, [0, *other], workloads)?;
            }
        }
        if let Some(awake_ns) = sample.awake_ns
            && awake_ns < std::mem::replace(&mut self.awake_ns, awake_ns)
        {
            return Err("time awake that is less than before".into());
        }
        Ok(())
    }

    fn check_counts(
        &mut self,
        place: usize,
        [idle, other]: [u64; 2],
        workloads: &[(WorkloadId, u64)],
    ) -> Result<(), String> {
        if self.times.len() <= place {
            self.times.resize(place + 1, [0; 2]);
        }
        let before = std::mem::replace(&mut self.times[place], [idle, other]);
        let mut falls = idle < before[0] || other < before[1];
        let mut last = None;
        for &(id, ns) in workloads {
            let Some(times) = self.living.get_mut(&id) else {
                let why = if self.was_introduced(id) { "has ended" } else { "was not introduced" };
                return Err(format!("CPU time of a workload that {why}"));
            };
            if last.replace(id).is_some_and(|last| last >= id) {
                return Err("workloads that do not ascend".into());
            }
            if times.len() <= place {
                times.resize(place + 1, 0);
            }
            falls |= std::mem::replace(&mut times[place], ns) > ns;
        }
        if falls && !self.may_fall {
            return Err("CPU time that is less than in the sample before".into());
        }
        Ok(())
    }

    fn was_introduced(&self, id: WorkloadId) -> bool {
        (1..=self.highest).contains(&id.0)
    }

    fn check_gpu(&self, window: &GpuWindow) -> Result<(), String> {
        if window.to_ns < window.from_ns {
            return Err("a GPU window that ends before it begins".into());
        }
        let optional = [window.busy, window.resolution_ms, window.mean_power_w];
        let amounts = [window.millijoules, window.lost_weight].into_iter();
        if !amounts.chain(optional.into_iter().flatten()).all(is_amount) {
            return Err("a GPU window with a figure that is no amount".into());
        }
        for usage in &window.usage {
            // Drivers tell late, of those who have ended too.
            if matches!(usage.user, User::Workload(id) if !self.was_introduced(id)) {
                return Err(UNKNOWN_GPU_USER.into());
            }
            if !is_amount(usage.weight) || !usage.busy_seconds.is_none_or(is_amount) {
                return Err("GPU usage that is no amount".into());
            }
        }
        Ok(())
    }
}

/// That a sample has CPU time of as many packages as the header has.
pub(super) fn check_rows(rows: usize, packages: usize) -> Result<(), String> {
    match rows == packages {
        true => Ok(()),
        false => Err(format!("CPU time of {rows} packages where the header has {packages}")),
    }
}

fn check_header(header: &Header) -> Result<(), String> {
    let counts = [
        (header.packages.len(), MOST_PACKAGES, "packages"),
        (header.domains.len(), MOST_DOMAINS, "domains"),
    ];
    for (count, most, what) in counts {
        if count > most {
            return Err(format!("{count} {what}, and no machine has more than {most}"));
        }
    }
    if header.start.parse::<jiff::Timestamp>().is_err() {
        return Err("a start that is no time (RFC 3339)".into());
    }
    let mut names = HashSet::new();
    for domain in &header.domains {
        let name = &domain.name;
        if !names.insert(name) {
            return Err(format!("{name} is there twice"));
        }
        if domain.package >= header.packages.len() {
            return Err(format!("{name} belongs to a package that the header does not have"));
        }
        let joules = domain.joules_per_count;
        if !is_amount(joules) || joules == 0.0 {
            return Err(format!("{name} has no joules per count"));
        }
        if domain.component == Component::Gpu {
            return Err(format!("{name} is a GPU's: those have no counter here"));
        }
        let most = domain.range.unwrap_or(u64::MAX) as f64 * domain.joules_per_count;
        if !is_amount(most) {
            return Err(format!("{name} can count more joules than there are"));
        }
        if joules > MOST_JOULES_PER_COUNT {
            return Err(format!("{name} counts in steps that no counter has"));
        }
        // JSON knows no infinity: it would be read back as a missing figure.
        if !is_amount(domain.max_watts) || domain.range == Some(0) {
            return Err(format!("{name} has a limit that is no amount"));
        }
    }
    let settings = &header.settings;
    let optional = [settings.carbon_intensity, settings.pue, settings.price, settings.price_spread];
    let amounts = settings.static_watts.values().copied().chain(optional.into_iter().flatten());
    if !amounts.into_iter().all(is_amount) {
        return Err("a setting that is no amount".into());
    }
    match settings.pue {
        Some(pue) if pue < 1.0 => Err("a PUE below 1".into()),
        _ if settings.price_spread.is_some_and(|spread| spread > 1.0) => {
            Err("a spread of prices above 1".into())
        }
        _ => Ok(()),
    }
}

pub(super) fn is_amount(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{CpuTimes, Domain, Workload};
    use crate::recording::tests::{gpu, header_of, sample, workload};

    #[test]
    fn a_machine_has_only_so_many_packages_and_domains() {
        let begin = |header: &Header| Shape::default().begin(header);
        begin(&header_of(MOST_PACKAGES, 500.0)).unwrap();
        let error = begin(&header_of(MOST_PACKAGES + 1, 500.0)).unwrap_err();
        assert_eq!(error, "1025 packages, and no machine has more than 1024");

        let mut header = header_of(1, 500.0);
        let domain = header.domains.remove(0);
        let numbered = |number| Domain { name: format!("core-{number}"), ..domain.clone() };
        header.domains = (0..MOST_DOMAINS).map(numbered).collect();
        begin(&header).unwrap();
        header.domains.push(numbered(MOST_DOMAINS));
        let error = begin(&header).unwrap_err();
        assert_eq!(error, "4097 domains, and no machine has more than 4096");
        header.domains.drain(2..);
        header.domains[1].name = "core-0".into();
        assert_eq!(begin(&header).unwrap_err(), "core-0 is there twice");
    }

    #[test]
    fn a_workload_takes_memory_where_it_ran() {
        let mut shape = Shape::default();
        shape.check(&Event::Header(Box::new(header_of(MOST_PACKAGES, 500.0)))).unwrap();
        shape.check(&workload("a")).unwrap();
        assert_eq!(shape.living[&WorkloadId(1)].capacity(), 0);
        let ran = |place, ns| {
            let mut packages = vec![PackageTime::default(); MOST_PACKAGES];
            packages[place] =
                PackageTime { workloads: vec![(WorkloadId(1), ns)], ..PackageTime::default() };
            CpuTimes { packages, unplaced: PackageTime::default() }
        };
        let energy = vec![None; MOST_PACKAGES];
        let mut check = |mono_ns, cpu| {
            let energy = energy.clone();
            let sample = Sample { mono_ns, ends_window: true, cpu, energy, ..Sample::default() };
            shape.check(&Event::Sample(sample))
        };
        check(1, ran(1, 5)).unwrap();
        check(2, ran(0, 5)).unwrap();
        check(3, ran(1, 5)).unwrap();
        check(4, ran(1, 4)).unwrap_err();
    }

    #[test]
    fn workloads_that_ended_are_forgotten_and_their_gpu_time_may_still_come() {
        let mut shape = Shape::default();
        shape.check(&Event::Header(Box::new(header_of(1, 500.0)))).unwrap();
        let Event::Workload(one) = workload("a") else { unreachable!() };
        for id in 1..=1000 {
            shape.check(&Event::Workload(Workload { id: WorkloadId(id), ..one.clone() })).unwrap();
            shape.check(&Event::Ended { id: WorkloadId(id) }).unwrap();
            assert!(shape.living.is_empty(), "{id}");
        }
        shape.check(&gpu(1.0, 7)).unwrap();
        shape.check(&gpu(1.0, 1001)).unwrap_err();
        // One that comes back.
        shape.check(&workload("a")).unwrap();
        shape.check(&sample(1, 1)).unwrap();
    }
}
