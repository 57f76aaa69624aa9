//! One device: its energy curve, who is on it, and the windows made of both.

mod census;
mod visit;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::visit::{Alone, Phase, SHARP_NS};
use super::clock::Clock;
use super::curve::{Curve, Step};
use super::fault::{Fault, Remedy};
use super::nvml::{Driver, Handle, Sample, SampleKind, Snapshot};
use super::owner::PidOwner;
use super::poller::{Context, LOOK_AT_MOST};
use super::usage::{Census, Owner, Sampling, Timeline, shares};
use crate::base::monotonic_ns;
use crate::event::sources::{GpuDevice, GpuReadMethod};
use crate::event::{Event, GpuWindow};

/// Where a device's energy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The energy counter.
    Counter,
    /// The driver's own power samples, integrated.
    Samples,
    /// Power readings of ours, integrated.
    Power,
}

/// Questions that a device may not support; asked until it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    InstantPower,
    Processes,
    Graphics,
    Mps,
    Utilisation,
    Mig,
    InstanceUse,
    BusySamples,
    BusyNow,
}

/// What `Timeline` keeps of how busy the device was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Busy {
    Known,
    Busy,
}

#[derive(Debug)]
pub(super) struct Device {
    uuid: String,
    name: String,
    index: u32,
    handle: Handle,
    source: Source,
    /// It does not answer, and its books have stopped.
    lost: bool,
    declined: BTreeSet<Question>,
    state: State,
}

/// What begins anew when a device comes back.
#[derive(Debug, Default)]
struct State {
    curve: Curve,
    /// Where the last window ended.
    edge_ns: Option<u64>,
    phase: Phase,
    alone: Alone,
    /// Newest power sample seen, where those are integrated.
    power_since_us: u64,
    /// Sum and number of instantaneous power readings in this window, milliwatts.
    power: (f64, u32),
    polled_ns: u64,
    census: Census,
    /// Whose the processes of the last census were.
    owners: BTreeMap<u32, Owner>,
    /// The MIG instances at the last poll, by GPU instance and compute instance.
    instances: BTreeMap<(u32, u32), Instance>,
    sampling: Sampling,
    ran: Timeline<Owner>,
    busy_since_us: u64,
    busy: Timeline<Busy>,
}

/// A MIG instance at one poll.
#[derive(Debug)]
struct Instance {
    snapshot: Snapshot,
    /// Who is on it, and their shares of it.
    tenants: Vec<(Owner, f64)>,
}

impl State {
    fn new() -> Self {
        Self { polled_ns: monotonic_ns(), ..Self::default() }
    }
}

impl Device {
    /// Looks a device up and finds out how its energy can be read.
    ///
    /// # Errors
    ///
    /// One sentence, if it cannot.
    pub(super) fn find(driver: &Driver, index: u32) -> Result<Self, String> {
        let handle = driver
            .device(index)
            .map_err(|fault| format!("GPU {index} cannot be opened: {fault}"))?;
        let uuid =
            driver.uuid(handle).map_err(|fault| format!("GPU {index} has no UUID: {fault}"))?;
        let name = driver.name(handle).unwrap_or_else(|_| "GPU".into());
        let source = match driver.energy(handle) {
            Ok(_) => Source::Counter,
            // It may come back, and whether it has a counter is known only then.
            Err(fault) if fault.remedy() == Remedy::Wait => Source::Counter,
            Err(fault) => match driver.samples(handle, SampleKind::Power, 0) {
                Ok(samples) if !samples.is_empty() => Source::Samples,
                _ if power(driver, handle).is_ok() => Source::Power,
                _ => {
                    return Err(format!(
                        "GPU {uuid} gives neither energy nor power and is left out: {fault}"
                    ));
                }
            },
        };
        let (lost, declined) = (false, BTreeSet::new());
        let state = State::new();
        Ok(Self { uuid, name, index, handle, source, lost, declined, state })
    }

    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn describe(&self) -> GpuDevice {
        let method = match self.source {
            Source::Counter => GpuReadMethod::Counter,
            Source::Samples | Source::Power => GpuReadMethod::Power,
        };
        GpuDevice { uuid: self.uuid.clone(), name: self.name.clone(), index: self.index, method }
    }

    /// A sentence if there is no energy counter: what stands in for it.
    pub(super) fn stand_in(&self, interval: Duration) -> Option<String> {
        let what = match self.source {
            Source::Counter => return None,
            Source::Samples => "the driver's power samples".to_owned(),
            Source::Power => format!("power, read every {} ms", interval.as_millis()),
        };
        Some(format!(
            "GPU {} has no energy counter: its energy is the integral of {what}",
            self.uuid
        ))
    }

    /// Reads only the energy, and only while the curve has no beginning.
    pub(super) fn prime<O: PidOwner>(&mut self, context: &mut Context<O>) {
        if !self.primed() {
            self.read_energy(context);
        }
    }

    pub(super) fn primed(&self) -> bool {
        self.lost
            || match self.source {
                Source::Counter => self.state.curve.primed(),
                Source::Samples | Source::Power => self.state.curve.first_ns().is_some(),
            }
    }

    /// The fast group: energy, and power as a second opinion.
    pub(super) fn read<O: PidOwner>(&mut self, context: &mut Context<O>) {
        if self.lost {
            return;
        }
        self.state.curve.begin_if_stuck(LOOK_AT_MOST.as_nanos() as u64);
        self.read_energy(context);
        if self.source != Source::Counter || self.lost {
            return;
        }
        let handle = self.handle;
        let power =
            self.ask(Question::InstantPower, context, |driver| driver.instant_power(handle));
        if let Some((_, milliwatts)) = power {
            self.state.power.0 += milliwatts;
            self.state.power.1 += 1;
        }
    }

    fn read_energy<O: PidOwner>(&mut self, context: &mut Context<O>) {
        let driver = &context.driver;
        let fault = match self.source {
            Source::Counter => match driver.energy(self.handle) {
                Ok((ns, millijoules)) => return self.count(context, ns, millijoules),
                Err(fault) => fault,
            },
            Source::Samples => {
                let since = Clock::now().not_ahead(self.state.power_since_us);
                self.state.power_since_us = since;
                match driver.samples(self.handle, SampleKind::Power, since) {
                    Ok(samples) => return self.integrate(&samples),
                    Err(fault) if fault.remedy() == Remedy::Nothing => return,
                    Err(fault) => fault,
                }
            }
            Source::Power => match power(driver, self.handle) {
                Ok((ns, milliwatts)) => return self.state.curve.power(ns, milliwatts),
                Err(fault) => fault,
            },
        };
        self.lose(context, &fault);
    }

    fn count<O: PidOwner>(&mut self, context: &mut Context<O>, ns: u64, millijoules: u64) {
        if self.state.curve.count(ns, millijoules) != Step::Broken {
            return;
        }
        let uuid = &self.uuid;
        context.warn_once(format!("broken {uuid}"), || {
            format!(
                "the energy counter of GPU {uuid} jumped (a reset, or the driver was loaded \
                 anew): what it drew around that moment is not counted"
            )
        });
        // It still tells who ran since the last survey.
        let census = self.take_census(context);
        self.restart(context, census);
        self.state.curve.count(ns, millijoules);
    }

    fn integrate(&mut self, samples: &[Sample]) {
        let clock = Clock::now();
        let newest = samples.iter().map(|sample| sample.us).max().unwrap_or(0);
        let first = self.state.power_since_us == 0;
        for sample in samples {
            let ns = clock.mono_ns(sample.us);
            // Of what the driver remembers from before, only where the curve begins.
            if ns <= clock.now_ns && (sample.us == newest || !first) {
                self.state.curve.power(ns, sample.value);
            }
        }
        self.state.power_since_us = self.state.power_since_us.max(newest);
    }

    /// Whether the energy is known at a moment no earlier than that, or never will be.
    pub(super) fn covers(&self, ns: u64) -> bool {
        self.lost || self.state.curve.knot_within(SHARP_NS, ns, u64::MAX).is_some()
    }

    /// When the utilisation samples up to the end of the curve have surely been delivered.
    pub(super) fn told_ns(&self) -> u64 {
        self.state.curve.last_ns().map_or(0, |last| last + self.state.sampling.lag_ns())
    }

    /// The last windows: one up to `ns`, where the run ended, and what the counter tells beyond that.
    /// In one, power would be taken as constant, and who ran last be billed for what came then.
    pub(super) fn close<O: PidOwner>(&mut self, context: &mut Context<O>, ns: u64, ask: bool) {
        if self.lost {
            return;
        }
        if self.state.curve.last_ns().is_none_or(|last| last < ns) {
            self.state.curve.settle();
        }
        let census = if ask { self.take_census(context) } else { self.state.census.clone() };
        let edge = self.state.curve.last_ns();
        self.window(context, edge.map(|last| last.min(ns)), census.clone());
        self.window(context, edge, census);
    }

    fn read_busy<O: PidOwner>(&mut self, context: &mut Context<O>, polled: (u64, u64)) {
        let (handle, since) = (self.handle, Clock::now().not_ahead(self.state.busy_since_us));
        self.state.busy_since_us = since;
        let samples = self.ask(Question::BusySamples, context, |driver| {
            driver.samples(handle, SampleKind::Busy, since)
        });
        if let Some(samples) = samples {
            let clock = Clock::now();
            for sample in samples {
                let to = clock.mono_ns(sample.us).min(polled.1);
                let from = match self.state.busy_since_us {
                    0 => to,
                    before => clock.mono_ns(before),
                };
                self.state.busy_since_us = self.state.busy_since_us.max(sample.us);
                self.state.busy.add(Busy::Busy, from, to, sample.value.min(100.0) / 100.0);
                self.state.busy.add(Busy::Known, from, to, 1.0);
            }
        } else if self.declined.contains(&Question::BusySamples)
            && let Some(percent) =
                self.ask(Question::BusyNow, context, |driver| driver.busy(handle))
        {
            self.state.busy.add(Busy::Busy, polled.0, polled.1, f64::from(percent) / 100.0);
            self.state.busy.add(Busy::Known, polled.0, polled.1, 1.0);
        }
    }

    /// Publishes what the device drew from the last edge to this one.
    fn window<O>(&mut self, context: &Context<O>, edge: Option<u64>, census: Census) {
        let state = &mut self.state;
        let (Some(from_ns), Some(to_ns)) = (state.edge_ns.or(state.curve.first_ns()), edge) else {
            state.census = census;
            return;
        };
        // Nothing is known beyond the last edge yet: all of it is carried over, who was there too.
        if to_ns <= from_ns {
            return state.census.merge(census);
        }
        let (Some(from), Some(to)) = (state.curve.at(from_ns), state.curve.at(to_ns)) else {
            return;
        };
        let seconds = (to_ns - from_ns) as f64 * 1e-9;
        let ran = state.ran.take(from_ns, to_ns);
        let busy = state.busy.take(from_ns, to_ns);
        let busy = match (busy.get(&Busy::Busy), busy.get(&Busy::Known)) {
            (Some(busy), Some(known)) if *known > 0.0 => Some((busy / known).clamp(0.0, 1.0)),
            _ => None,
        };
        let split = shares(&state.census, &census, &ran, busy.map(|busy| busy * seconds));
        state.alone.note(&split);
        let spacing = state.curve.forget_before(to_ns);
        let (sum, readings) = std::mem::take(&mut state.power);
        state.edge_ns = Some(to_ns);
        state.census = census;
        context.publish(Event::Gpu(GpuWindow {
            uuid: self.uuid.clone(),
            from_ns,
            to_ns,
            millijoules: to - from,
            busy,
            method: split.method,
            usage: split.usage,
            unknown_users: split.unknown_users,
            lost_weight: split.lost_weight,
            resolution_ms: spacing.map(|ns| ns / 1e6),
            mean_power_w: (readings > 0).then(|| sum / f64::from(readings) / 1e3),
        }));
    }

    /// Closes the books at the last moment that is known, and begins new ones.
    fn restart<O>(&mut self, context: &Context<O>, census: Census) {
        let edge = self.state.curve.last_ns();
        self.window(context, edge, census);
        self.state = State::new();
    }

    fn lose<O>(&mut self, context: &mut Context<O>, fault: &Fault) {
        context.warn(format!("GPU {} stopped answering ({fault}): its books stop here", self.uuid));
        self.restart(context, self.state.census.clone());
        self.lost = true;
    }

    /// Tries to find a lost device again, where it was or elsewhere.
    fn regain<O>(&mut self, context: &mut Context<O>) -> bool {
        let driver = &context.driver;
        let found = match driver.device_by_uuid(&self.uuid) {
            Err(Fault::Missing) => driver
                .device(self.index)
                .ok()
                .filter(|handle| driver.uuid(*handle).is_ok_and(|uuid| uuid == self.uuid)),
            answer => answer.ok(),
        };
        let answers = |handle: &Handle| match self.source {
            Source::Counter => driver.energy(*handle).is_ok(),
            Source::Samples => driver.samples(*handle, SampleKind::Power, 0).is_ok(),
            Source::Power => power(driver, *handle).is_ok(),
        };
        let Some(handle) = found.filter(answers) else { return false };
        context.warn(format!("GPU {} answers again: its books go on from here", self.uuid));
        self.handle = handle;
        self.lost = false;
        self.declined.clear();
        self.state = State::new();
        true
    }

    /// Asks the driver something that a device may decline to answer.
    fn ask<T, O>(
        &mut self,
        question: Question,
        context: &mut Context<O>,
        ask: impl FnOnce(&Driver) -> Result<T, Fault>,
    ) -> Option<T> {
        if self.declined.contains(&question) {
            return None;
        }
        match ask(&context.driver) {
            Ok(answer) => Some(answer),
            Err(fault) => {
                match fault.remedy() {
                    Remedy::Forget => {
                        self.declined.insert(question);
                    }
                    Remedy::Tell => self.tell(context, question.subject(), &fault),
                    // If the device is gone, the next reading of its energy says so.
                    Remedy::Wait | Remedy::Nothing => {}
                }
                None
            }
        }
    }

    fn tell<O>(&self, context: &mut Context<O>, subject: &str, fault: &Fault) {
        let uuid = &self.uuid;
        context.warn_once(format!("{subject} {uuid}"), || {
            format!("GPU {uuid} does not tell {subject}: {fault}")
        });
    }
}

impl Question {
    fn subject(self) -> &'static str {
        match self {
            Self::InstantPower => "its power",
            Self::Processes | Self::Graphics | Self::Mps => "who is on it",
            Self::Utilisation | Self::InstanceUse => "who computes on it",
            Self::Mig => "whether it is partitioned",
            Self::BusySamples | Self::BusyNow => "how busy it is",
        }
    }
}

/// Power now, milliwatts: of the moment where the driver gives that, else its average.
fn power(driver: &Driver, device: Handle) -> Result<(u64, f64), Fault> {
    driver.instant_power(device).or_else(|_| driver.average_power(device))
}
