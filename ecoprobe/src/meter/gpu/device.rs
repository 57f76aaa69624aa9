//! One device: its energy curve, who is on it, and the windows made of both.

mod census;
mod edge;
mod energy;
mod loss;
#[cfg(test)]
mod tests;

pub(super) use self::energy::FIRST_MOVE_WITHIN;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use self::edge::{Phase, SHARP_NS, SameUser};
use super::counter::Counter;
use super::curve::Curve;
use super::driver::{Driver, Handle, PowerScope, SampleKind, Timed};
use super::fault::{Fault, Remedy};
use super::owner::{Owner, PidOwner, Present};
use super::plausible::most_watts;
use super::poller::Context;
use super::sampling::{Sampling, Timeline};
use super::shares::{Census, shares};
use super::superchip::{Facts, counts_a_module};
use crate::base::monotonic_ns;
use crate::event::sources::{GpuDevice, GpuReadMethod};
use crate::event::{Event, GpuMethod, GpuWindow};

/// Where a device's energy comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EnergySource {
    /// The energy counter.
    Counter,
    /// The driver's own power samples, integrated.
    Samples,
    /// Power readings of ours, integrated.
    Power,
}

/// Why it is not the energy counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    /// The driver has none.
    Counter,
    /// It stands still while power is drawn.
    Motion,
    /// It counts the module's energy, and a CPU is on the module.
    Module,
}

/// Questions that a device may not support; asked until it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Question {
    InstantPower,
    AveragePower,
    Processes,
    Graphics,
    Mps,
    Utilisation,
    Partitions,
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
    source: EnergySource,
    without: Option<Without>,
    /// It cannot draw more.
    most_watts: f64,
    /// It does not answer, and its books have stopped.
    lost: bool,
    /// Where the books stopped when it was lost: when, and what the counter showed then, until it is
    /// known what was drawn since.
    gap: Option<(u64, f64)>,
    declined: BTreeSet<Question>,
    state: State,
}

/// What begins anew when a device comes back.
#[derive(Debug)]
struct State {
    began_ns: u64,
    counter: Counter,
    /// The integral of power since the counter last moved: in case that it does not any more.
    stand_in: Curve,
    /// Where the last window ended.
    edge_ns: Option<u64>,
    phase: Phase,
    same_user: SameUser,
    /// Newest power sample seen, where those are integrated.
    power_since_us: u64,
    /// Sum and number of instantaneous power readings in this window, milliwatts.
    power: (f64, u32),
    polled_ns: u64,
    census: Census,
    /// Whose the processes of the last census were.
    owners: BTreeMap<u32, Present>,
    /// Who was on each instance at the last poll, and their shares of it, by place.
    tenants: BTreeMap<(u32, u32), Vec<(Owner, f64)>>,
    sampling: Sampling,
    ran: Timeline<Owner>,
    busy_since_us: u64,
    busy: Timeline<Busy>,
}

impl State {
    fn new(most_watts: f64) -> Self {
        Self {
            began_ns: monotonic_ns(),
            counter: Counter::new(most_watts),
            stand_in: Curve::new(most_watts),
            edge_ns: None,
            phase: Phase::default(),
            same_user: SameUser::default(),
            power_since_us: 0,
            power: (0.0, 0),
            polled_ns: monotonic_ns(),
            census: Census::default(),
            owners: BTreeMap::new(),
            tenants: BTreeMap::new(),
            sampling: Sampling::default(),
            ran: Timeline::default(),
            busy_since_us: 0,
            busy: Timeline::default(),
        }
    }

    fn curve(&self) -> &Curve {
        self.counter.curve()
    }
}

impl Device {
    /// Looks a device up and finds out how its energy can be read.
    ///
    /// # Errors
    ///
    /// One sentence, if it cannot.
    pub(super) fn find(driver: &dyn Driver, index: u32) -> Result<Self, String> {
        let handle = driver
            .device(index)
            .map_err(|fault| format!("GPU {index} cannot be opened: {fault}"))?;
        let uuid =
            driver.uuid(handle).map_err(|fault| format!("GPU {index} has no UUID: {fault}"))?;
        let name = driver.name(handle).unwrap_or_else(|_| "GPU".into());
        let (source, without) = choose(driver, handle, &name).map_err(|fault| {
            format!("GPU {uuid} gives neither energy nor power and is left out: {fault}")
        })?;
        let most_watts = most_watts(driver.most_power(handle).ok());
        Ok(Self {
            uuid,
            name,
            index,
            handle,
            source,
            without,
            most_watts,
            lost: false,
            gap: None,
            declined: BTreeSet::new(),
            state: State::new(most_watts),
        })
    }

    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn describe(&self) -> GpuDevice {
        let method = match self.source {
            EnergySource::Counter => GpuReadMethod::Counter,
            EnergySource::Samples | EnergySource::Power => GpuReadMethod::Power,
        };
        GpuDevice { uuid: self.uuid.clone(), name: self.name.clone(), index: self.index, method }
    }

    /// Why energy is not, or should not be, from the device's energy counter, in a few words.
    pub(super) fn without_counter(&self) -> Option<&'static str> {
        match (self.without?, self.source) {
            (Without::Counter, _) => Some("has no energy counter"),
            (Without::Motion, _) => {
                Some("has an energy counter that stands still while power is drawn")
            }
            (Without::Module, EnergySource::Counter) => Some(
                "shares a module with a CPU, and its energy counter may hold that of both; its own \
                 power is not told",
            ),
            (Without::Module, _) => {
                Some("shares a module with a CPU, and its energy counter may hold that of both")
            }
        }
    }

    /// A sentence if energy is not from the energy counter: what stands in for it.
    pub(super) fn stand_in(&self, interval: Duration) -> Option<String> {
        let (uuid, why) = (&self.uuid, self.without_counter()?);
        let what = match self.source {
            EnergySource::Counter => return Some(format!("GPU {uuid} {why}")),
            EnergySource::Samples => "the driver's power samples".to_owned(),
            EnergySource::Power => format!("power, read every {} ms", interval.as_millis()),
        };
        Some(format!("GPU {uuid} {why}: its energy is the integral of {what}"))
    }

    /// Whether the energy is known at a moment no earlier than that, or never will be.
    pub(super) fn covers(&self, ns: u64) -> bool {
        self.lost || self.state.counter.covers(ns, SHARP_NS)
    }

    /// When the utilisation samples up to the end of the curve have surely been delivered.
    pub(super) fn told_ns(&self) -> u64 {
        self.state.curve().last_ns().map_or(0, |last| last + self.state.sampling.lag_ns())
    }

    /// The last windows: one up to `ns`, where the run ended, and what the counter tells beyond that.
    /// In one, power would be taken as constant, and who ran last be billed for what came then.
    pub(super) fn close<O: PidOwner>(&mut self, context: &mut Context<O>, ns: u64, ask: bool) {
        if self.lost {
            return;
        }
        self.settle_doubts(context);
        if self.state.curve().last_ns().is_none_or(|last| last < ns) {
            self.state.counter.curve_mut().settle();
        }
        let census = if ask { self.take_census(context) } else { self.state.census.clone() };
        let edge = self.state.curve().last_ns();
        self.window(context, edge.map(|last| last.min(ns)), census.clone());
        self.window(context, edge, census);
    }

    /// Publishes what the device drew from the last edge to this one.
    fn window<O>(&mut self, context: &mut Context<O>, edge: Option<u64>, census: Census) {
        self.close_gap(context);
        let state = &mut self.state;
        let curve = state.counter.curve_mut();
        let (Some(from_ns), Some(to_ns)) = (state.edge_ns.or(curve.first_ns()), edge) else {
            state.census = census;
            return;
        };
        // Nothing is known beyond the last edge yet: all of it is carried over, who was there too.
        if to_ns <= from_ns {
            return state.census.merge(census);
        }
        let (Some(from), Some(to)) = (curve.at(from_ns), curve.at(to_ns)) else {
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
        state.same_user.note(&split);
        let spacing = curve.forget_before(to_ns);
        let (sum, readings) = std::mem::take(&mut state.power);
        state.edge_ns = Some(to_ns);
        state.census = census;
        if split.memory_untold {
            self.warn_memory_untold(context);
        }
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

    fn warn_memory_untold<O>(&self, context: &mut Context<O>) {
        let uuid = &self.uuid;
        context.warn_once(format!("memory {uuid}"), || {
            format!(
                "GPU {uuid} does not tell how much memory each of its processes holds: where \
                 memory is to decide, its users count alike"
            )
        });
    }

    /// Publishes what the device drew when it could not be asked: nobody knows who used it then.
    fn publish_unattended<O>(&self, context: &Context<O>, from_ns: u64, to_ns: u64, drawn: f64) {
        context.publish(Event::Gpu(GpuWindow {
            uuid: self.uuid.clone(),
            from_ns,
            to_ns,
            millijoules: drawn,
            busy: None,
            method: GpuMethod::Sole,
            usage: Vec::new(),
            unknown_users: true,
            lost_weight: 0.0,
            resolution_ms: Some((to_ns - from_ns) as f64 / 1e6),
            mean_power_w: None,
        }));
    }

    /// Closes the window that the curve so far allows, and goes on with another curve.
    fn change_curve<O: PidOwner>(
        &mut self,
        context: &mut Context<O>,
        change: impl FnOnce(&mut State),
    ) {
        // It still tells who ran since the last survey.
        let census = self.take_census(context);
        let edge = self.state.curve().last_ns();
        self.window(context, edge, census.clone());
        change(&mut self.state);
        self.state.edge_ns = None;
        self.state.census = census;
    }

    /// Asks the driver something that a device may decline to answer.
    fn ask<T, O>(
        &mut self,
        question: Question,
        context: &mut Context<O>,
        ask: impl FnOnce(&dyn Driver) -> Result<T, Fault>,
    ) -> Option<T> {
        if self.declined.contains(&question) {
            return None;
        }
        match ask(&*context.driver) {
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
            Self::InstantPower | Self::AveragePower => "its power",
            Self::Processes | Self::Graphics | Self::Mps => "who is on it",
            Self::Utilisation | Self::InstanceUse => "who computes on it",
            Self::Partitions => "whether it is partitioned",
            Self::BusySamples | Self::BusyNow => "how busy it is",
        }
    }
}

/// Finds out where the energy of a device can be had from.
fn choose(
    driver: &dyn Driver,
    device: Handle,
    name: &str,
) -> Result<(EnergySource, Option<Without>), Fault> {
    let counter = || match counts_a_module(facts(driver, device, name)) {
        true if power(driver, device).is_ok() => (EnergySource::Power, Some(Without::Module)),
        true => (EnergySource::Counter, Some(Without::Module)),
        false => (EnergySource::Counter, None),
    };
    match driver.energy(device) {
        Ok(_) => Ok(counter()),
        // It may come back, and whether it has a counter is known only then.
        Err(fault) if fault.remedy() == Remedy::Wait => Ok(counter()),
        // A driver that has just been woken up may need a moment to make sense: the first look at the
        // counter will tell.
        Err(Fault::Nonsense(_)) if power(driver, device).is_ok() => Ok(counter()),
        Err(fault) => match driver.samples(device, SampleKind::Power, 0) {
            Ok(samples) if !samples.is_empty() => {
                Ok((EnergySource::Samples, Some(Without::Counter)))
            }
            _ if power(driver, device).is_ok() => Ok((EnergySource::Power, Some(Without::Counter))),
            _ => Err(fault),
        },
    }
}

/// Asks for no more than it takes: where the driver is slow and devices are many, calls add up.
fn facts<'a>(driver: &dyn Driver, device: Handle, name: &'a str) -> Facts<'a> {
    let watts = |scope| driver.instant_power(device, scope).ok().map(|power| power.value * 1e-3);
    let by_name = Facts { name, ..Facts::default() };
    if counts_a_module(by_name) {
        return by_name;
    }
    let Some(module_watts) = watts(PowerScope::Module) else { return by_name };
    let facts =
        Facts { module_watts: Some(module_watts), gpu_watts: watts(PowerScope::Gpu), ..by_name };
    if !counts_a_module(facts) {
        return facts;
    }
    // Load may have changed in between: once more, the other way round.
    let gpu_watts = facts.gpu_watts.zip(watts(PowerScope::Gpu)).map(|(a, b)| a.max(b));
    let module_watts = watts(PowerScope::Module).map(|again| again.min(module_watts));
    Facts { module_watts, gpu_watts, ..facts }
}

/// Power now, milliwatts: of the moment where the driver gives that, else its average.
fn power(driver: &dyn Driver, device: Handle) -> Result<Timed<f64>, Fault> {
    driver.instant_power(device, PowerScope::Gpu).or_else(|_| driver.average_power(device))
}
