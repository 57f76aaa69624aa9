//! One run: events in, report out.
//!
//! The session keeps counters' differences and accounts, and nothing else: no clock, no I/O and no
//! randomness. The same events give the same report to the byte, which is all that `replay` is.

mod cpu;
mod gpu;
mod report;
#[cfg(test)]
mod tests;

use crate::base::units::Seconds;
use crate::event::{Event, GpuWindow, Header, SLOT_FIRST, SLOT_OTHER, Sample, Workload};
use crate::session::cpu::{Meter, Package};
use crate::session::gpu::Gpu;

/// Distinct warnings that are kept word for word; of more, only the number is.
const MOST_WARNINGS: usize = 64;

/// Everything a run has measured so far.
#[derive(Debug)]
pub struct Session {
    header: Header,
    workloads: Vec<Workload>,
    clock: Option<Clock>,
    samples: u64,
    /// Samples that were not later than the one before.
    ignored_samples: u64,
    packages: Vec<Package>,
    /// CPU time by slot, all packages together, nanoseconds.
    busy_ns: Vec<u64>,
    meters: Vec<Meter>,
    gpus: Vec<Gpu>,
    warnings: Vec<String>,
    further_warnings: u64,
}

/// CLOCK_MONOTONIC of the first, the last but one and the last sample, nanoseconds.
#[derive(Debug, Clone, Copy)]
struct Clock {
    first_ns: u64,
    previous_ns: u64,
    newest_ns: u64,
}

impl Session {
    /// A session of the run that `header` describes.
    pub fn new(header: Header) -> Self {
        let meters = header.domains.iter().map(|domain| Meter::new(domain, &header)).collect();
        let devices = &header.sources.gpu_energy.devices;
        let gpus = devices.iter().map(|device| Gpu::new(&device.uuid, &header)).collect();
        Self {
            packages: header.packages.iter().map(|_| Package::default()).collect(),
            meters,
            gpus,
            header,
            workloads: Vec::new(),
            clock: None,
            samples: 0,
            ignored_samples: 0,
            busy_ns: Vec::new(),
            warnings: Vec::new(),
            further_warnings: 0,
        }
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Takes in the next event of a recording. A header is what `new` was made with, and is passed
    /// over.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Header(_) => {}
            Event::Workload(workload) => self.workload(workload.clone()),
            Event::Sample(sample) => self.sample(sample),
            Event::Gpu(window) => self.gpu(window),
            Event::Warning { message } => self.warning(message),
        }
    }

    /// A workload was found; what its slot counted before the newest sample is not its own.
    pub fn workload(&mut self, workload: Workload) {
        self.workloads.push(workload);
    }

    /// Every counter, read at one instant. The tick calls this: it allocates nothing once every
    /// slot has been seen.
    pub fn sample(&mut self, sample: &Sample) {
        let now = sample.mono_ns;
        let clock = match self.clock {
            None => Clock { first_ns: now, previous_ns: now, newest_ns: now },
            // Nothing is lost: the next sample is compared with the one before this one.
            Some(clock) if now <= clock.newest_ns => {
                self.ignored_samples += 1;
                return;
            }
            Some(clock) => Clock { previous_ns: clock.newest_ns, newest_ns: now, ..clock },
        };
        let first = self.clock.is_none();
        self.clock = Some(clock);
        self.samples += 1;

        let slots = SLOT_FIRST + self.workloads.len();
        for (index, package) in self.packages.iter_mut().enumerate() {
            let row = sample.cpu_ns.get(index).map_or(&[][..], Vec::as_slice);
            package.advance(row, slots, first);
            for share in package.shares() {
                if share.slot >= self.busy_ns.len() {
                    self.busy_ns.resize(slots, 0);
                }
                // Exact: a window's nanoseconds are far below 2^53.
                let busy_ns = &mut self.busy_ns[share.slot];
                *busy_ns = busy_ns.saturating_add(share.weight as u64);
            }
        }
        for (index, (meter, domain)) in self.meters.iter_mut().zip(&self.header.domains).enumerate()
        {
            let reading = sample.energy.get(index).copied().flatten();
            let package = self.packages.get(domain.package);
            meter.advance(domain, reading, package, now);
        }
        for gpu in &mut self.gpus {
            gpu.sample(clock.first_ns, clock.newest_ns);
        }
    }

    /// What a GPU drew between two readings of the driver, and who used it. It may come before or
    /// after the samples of its time; what lies outside of the samples is cut off.
    pub fn gpu(&mut self, window: &GpuWindow) {
        let slots = SLOT_FIRST + self.workloads.len();
        let position = self.gpus.iter().position(|gpu| gpu.uuid() == window.uuid);
        let index = position.unwrap_or_else(|| {
            self.gpus.push(Gpu::new(&window.uuid, &self.header));
            self.gpus.len() - 1
        });
        let gpu = &mut self.gpus[index];
        gpu.take(window, slots);
        if let Some(clock) = self.clock {
            gpu.settle(clock.first_ns, clock.newest_ns);
        }
    }

    /// Whether the report will carry this warning already.
    pub fn knows_warning(&self, message: &str) -> bool {
        self.warnings.iter().any(|known| known == message)
    }

    /// Something the reader of the report should know; said once, however often it is found.
    pub fn warning(&mut self, message: &str) {
        if self.knows_warning(message) {
            return;
        }
        if self.warnings.len() < MOST_WARNINGS {
            self.warnings.push(message.to_owned());
        } else {
            self.further_warnings += 1;
        }
    }
}

impl Clock {
    /// The newest window's length.
    fn window(self) -> Seconds {
        Seconds::from_ns(self.newest_ns - self.previous_ns)
    }

    /// From the first sample to the last.
    fn run(self) -> Seconds {
        Seconds::from_ns(self.newest_ns - self.first_ns)
    }
}

/// A slot that no workload was announced for is nobody's: it is billed to `other`. `slots` is one
/// past the last known slot.
fn billed_to(slot: usize, slots: usize) -> usize {
    if (SLOT_FIRST..slots).contains(&slot) { slot } else { SLOT_OTHER }
}
