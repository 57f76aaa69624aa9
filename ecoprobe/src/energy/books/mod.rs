//! The books of a run: events in, accounts out.
//!
//! They keep the counters' differences and the accounts, and nothing else: no clock, no I/O and no
//! randomness. The same events give the same books to the byte, which is all that `replay` is.

mod coverage;
mod cpu;
mod gpu;
mod roster;
mod totals;
mod warnings;
mod window;

use std::collections::BTreeSet;
use std::sync::Arc;

pub(crate) use self::coverage::{Coverage, Covered};
pub(crate) use self::roster::{Member, Roster};
pub(crate) use self::totals::{Sums, Totals};
pub(crate) use self::window::WindowSums;

use self::cpu::{CpuDomain, PackageUsage};
use self::gpu::GpuDomain;
use self::window::Recent;
use crate::base::{Seconds, User, Watts};
use crate::energy::attribute::IdleTo;
use crate::energy::estimate::Estimate;
pub(crate) use crate::energy::ledger::Bill;
use crate::energy::ledger::DomainLedger;
use crate::energy::model::StaticPower;
use crate::event::settings::IdlePolicy;
use crate::event::sources::{CpuEnergyKind, StaticPowerKind};
use crate::event::{Event, GpuWindow, Header, Sample};

/// Distinct warnings that are kept word for word; of more, only the number is.
const MOST_WARNINGS: usize = 64;

/// How many further warnings are remembered, so that none is counted twice.
const MOST_FURTHER: usize = 4096;

/// Everything that a run has measured so far.
#[derive(Debug)]
pub(crate) struct Books {
    header: Header,
    clock: Option<Clock>,
    samples: u64,
    /// Samples that were not later than the one before.
    ignored_samples: u64,
    roster: Roster,
    usage: PackageUsage,
    cpu: Vec<CpuDomain>,
    gpus: Vec<GpuDomain>,
    /// What the CPU's energy is worked out from where it is not measured.
    estimate: Option<Arc<Estimate>>,
    /// `None` where nobody asks for windows.
    recent: Option<Recent>,
    warnings: Vec<String>,
    further_warnings: BTreeSet<u64>,
}

/// CLOCK_MONOTONIC of samples, nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Clock {
    first_ns: u64,
    newest_ns: u64,
}

impl Books {
    /// The books of the run that `header` describes. Windows are kept only where they are wanted.
    pub(crate) fn open(header: Header, windows: bool) -> Self {
        let is_estimate = header.sources.cpu_energy.kind == CpuEnergyKind::Estimate;
        let estimate = header.cpu.as_ref().filter(|_| is_estimate).and_then(Estimate::of);
        let estimate = estimate.map(Arc::new);
        let domains = header.domains.iter();
        let cpu =
            domains.map(|domain| CpuDomain::new(domain, &header, estimate.as_ref())).collect();
        let devices = &header.sources.gpu_energy.devices;
        let gpus = devices.iter().map(|device| GpuDomain::new(&device.uuid, &header)).collect();
        Self {
            roster: Roster::default(),
            usage: PackageUsage::new(header.packages.len()),
            cpu,
            gpus,
            estimate,
            header,
            clock: None,
            samples: 0,
            ignored_samples: 0,
            recent: windows.then(Recent::default),
            warnings: Vec::new(),
            further_warnings: BTreeSet::new(),
        }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn roster(&self) -> &Roster {
        &self.roster
    }

    pub(crate) fn samples(&self) -> u64 {
        self.samples
    }

    /// From the first sample to the last.
    pub(crate) fn length(&self) -> Seconds {
        self.clock.map_or(Seconds(0.0), |clock| clock.run())
    }

    /// Takes in the next event, and says whether a window of the run has ended with it. A header is
    /// what `open` was called with, and is passed over.
    pub(crate) fn apply(&mut self, event: &Event) -> bool {
        match event {
            Event::Header(_) => {}
            Event::Workload(workload) => self.roster.enter(workload.clone()),
            Event::Ended { id } => {
                if let Some((oldest, into)) = self.roster.end(*id) {
                    if let Some(recent) = &mut self.recent {
                        recent.fold(oldest, into);
                    }
                    let (oldest, into) = (User::Workload(oldest), User::Workload(into));
                    self.cpu.iter_mut().for_each(|domain| domain.fold(oldest, into));
                    self.gpus.iter_mut().for_each(|domain| domain.fold(oldest, into));
                }
            }
            Event::Sample(sample) => return self.sample(sample),
            Event::Gpu(window) => self.gpu(window),
            Event::Warning { message } => self.warning(message),
        }
        false
    }

    fn sample(&mut self, sample: &Sample) -> bool {
        let now = sample.mono_ns;
        let first = self.clock.is_none();
        let clock = match self.clock {
            None => Clock { first_ns: now, newest_ns: now },
            // Nothing is lost: the next sample is compared with the one before this one.
            Some(clock) if now <= clock.newest_ns => {
                self.ignored_samples += 1;
                return false;
            }
            Some(clock) => Clock { newest_ns: now, ..clock },
        };
        self.clock = Some(clock);
        self.samples += 1;
        if let Some(recent) = &mut self.recent {
            recent.begin(clock.first_ns, now);
        }

        self.usage.advance(sample, &mut self.roster, first, self.recent.as_mut());
        let idle_to = idle_to(self.header.settings.idle);
        for (index, domain) in self.cpu.iter_mut().enumerate() {
            let reading = sample.energy.get(index).copied().flatten();
            let running = self.usage.of(domain.package());
            domain.advance(now, reading, running, &self.roster, idle_to, self.recent.as_mut());
        }
        let idle_to = self.gpu_idle_to();
        for gpu in &mut self.gpus {
            gpu.settle(clock, &self.roster, idle_to, self.recent.as_mut());
        }
        let ends = sample.ends_window && !first;
        if let Some(recent) = self.recent.as_mut().filter(|_| ends) {
            recent.close(now);
            self.gpus.iter_mut().for_each(GpuDomain::end_window);
        }
        ends
    }

    /// What a GPU drew between two readings of the driver, and who used it. It may come before or
    /// after the samples of its time; what lies outside of the samples is cut off.
    fn gpu(&mut self, window: &GpuWindow) {
        let idle_to = self.gpu_idle_to();
        let position = self.gpus.iter().position(|gpu| gpu.uuid() == window.uuid);
        let index = position.unwrap_or_else(|| {
            self.gpus.push(GpuDomain::new(&window.uuid, &self.header));
            self.gpus.len() - 1
        });
        let gpu = &mut self.gpus[index];
        gpu.take(window);
        if let Some(clock) = self.clock {
            gpu.settle(clock, &self.roster, idle_to, self.recent.as_mut());
        }
    }

    /// Which figures an estimate of the CPU's energy rests on, in words.
    pub(crate) fn basis(&self) -> Option<&str> {
        self.estimate.as_deref().map(Estimate::basis)
    }

    /// There will be no more events: what waited for another reading is believed now.
    pub(crate) fn finish(&mut self) {
        let idle_to = idle_to(self.header.settings.idle);
        for domain in &mut self.cpu {
            domain.finish(&self.roster, idle_to, self.recent.as_mut());
        }
    }

    /// Brings everything that was posted up to what is known now.
    pub(crate) fn correct(&mut self) {
        let by_policy = idle_to(self.header.settings.idle);
        let of_gpus = self.gpu_idle_to();
        self.cpu.iter_mut().for_each(|domain| domain.correct(by_policy));
        self.gpus.iter_mut().for_each(|domain| domain.correct(of_gpus));
    }

    fn gpu_idle_to(&self) -> IdleTo {
        match self.header.settings {
            ref settings if settings.gpu_idle_to_holders => IdleTo::Holders,
            ref settings => idle_to(settings.idle),
        }
    }
}

fn idle_to(policy: IdlePolicy) -> IdleTo {
    match policy {
        IdlePolicy::Separate => IdleTo::Nobody,
        IdlePolicy::Share => IdleTo::Users,
    }
}

impl Clock {
    fn run(self) -> Seconds {
        Seconds::from_ns(self.newest_ns - self.first_ns)
    }
}

/// What is known of one domain's static power, for the report.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    pub(crate) domain: &'a str,
    pub(crate) power: StaticPower,
    /// How it was known beforehand.
    pub(crate) beforehand: Option<StaticPowerKind>,
}

/// The static power of `domain` that the user gave.
fn given_static_power(domain: &str, header: &Header) -> Option<(Watts, StaticPowerKind)> {
    let watts = *header.settings.static_watts.get(domain)?;
    is_amount(watts).then_some((Watts(watts), StaticPowerKind::Given))
}

/// That of an estimate in a recording of the first format, whose energy is recorded as a counter's.
fn recorded_estimate(domain: &str, header: &Header) -> Option<(Watts, StaticPowerKind)> {
    let source = &header.sources.static_power;
    let watts = source.watts.get(domain).copied().flatten()?;
    let known = source.kind == StaticPowerKind::Estimate && is_amount(watts);
    known.then_some((Watts(watts), StaticPowerKind::Estimate))
}

fn is_amount(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}
