//! What makes a sequence of events a recording.

use crate::base::id::User;
use crate::event::{Event, GpuWindow, Header, SLOT_FIRST, Sample};

/// What the events so far allow the next one to be. Reader and writer check the same, so that what
/// was recorded can be replayed, and nothing behind the reader meets an index that leads nowhere.
#[derive(Debug, Default)]
pub(super) struct Shape {
    /// Packages and domains; `None` before the header.
    header: Option<(usize, usize)>,
    workloads: usize,
    /// Of the newest sample.
    mono_ns: Option<u64>,
}

impl Shape {
    pub(super) fn check(&mut self, event: &Event) -> Result<(), String> {
        match (event, self.header) {
            (Event::Header(header), None) => self.begin(header)?,
            (Event::Header(_), Some(_)) => return Err("a second header".into()),
            (_, None) => return Err("an event before the header".into()),
            (Event::Workload(_), _) => self.workloads += 1,
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
        Ok(())
    }

    fn slots(&self) -> usize {
        SLOT_FIRST + self.workloads
    }

    fn check_sample(&self, sample: &Sample, packages: usize, domains: usize) -> Result<(), String> {
        let (rows, readings) = (sample.cpu_ns.len(), sample.energy.len());
        if rows != packages {
            return Err(format!("CPU time of {rows} packages where the header has {packages}"));
        }
        if readings != domains {
            return Err(format!("{readings} energy readings where the header has {domains}"));
        }
        let unknown = |row: &Vec<u64>| row.iter().skip(self.slots()).any(|ns| *ns > 0);
        if sample.cpu_ns.iter().any(unknown) {
            return Err("CPU time of a workload that was not introduced".into());
        }
        if self.mono_ns.is_some_and(|before| sample.mono_ns <= before) {
            return Err("it is no later than the sample before it".into());
        }
        Ok(())
    }

    fn check_gpu(&self, window: &GpuWindow) -> Result<(), String> {
        if window.to_ns < window.from_ns {
            return Err("a GPU window that ends before it begins".into());
        }
        if !is_amount(window.millijoules) || !window.busy.is_none_or(is_amount) {
            return Err("a GPU window with a figure that is no amount".into());
        }
        for usage in &window.usage {
            let introduced = (self.slots() - SLOT_FIRST) as u64;
            if matches!(usage.user, User::Workload(id) if id.0 >= introduced) {
                return Err("GPU usage of a workload that was not introduced".into());
            }
            if !is_amount(usage.weight) || !usage.busy_seconds.is_none_or(is_amount) {
                return Err("GPU usage that is no amount".into());
            }
        }
        Ok(())
    }
}

fn check_header(header: &Header) -> Result<(), String> {
    for (index, domain) in header.domains.iter().enumerate() {
        let name = &domain.name;
        if header.domains[..index].iter().any(|other| other.name == *name) {
            return Err(format!("{name} is there twice"));
        }
        if domain.package >= header.packages.len() {
            return Err(format!("{name} belongs to a package that the header does not have"));
        }
        if !is_amount(domain.joules_per_count) || domain.joules_per_count == 0.0 {
            return Err(format!("{name} has no joules per count"));
        }
        // JSON knows no infinity: it would be read back as a missing figure.
        if !is_amount(domain.max_watts) || domain.range == Some(0) {
            return Err(format!("{name} has a limit that is no amount"));
        }
    }
    let settings = &header.settings;
    let optional = [settings.carbon_intensity, settings.pue, settings.price];
    let amounts = settings.static_watts.values().copied().chain(optional.into_iter().flatten());
    if !amounts.into_iter().all(is_amount) {
        return Err("a setting that is no amount".into());
    }
    match settings.pue {
        Some(pue) if pue < 1.0 => Err("a PUE below 1".into()),
        _ => Ok(()),
    }
}

pub(super) fn is_amount(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}
