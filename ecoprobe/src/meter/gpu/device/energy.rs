//! Reading a device's energy: what is believed, what is refused, and what stands in for a counter
//! that does not count.

use std::time::Duration;

use super::{Device, EnergySource, Question, Without, power};
use crate::base::monotonic_ns;
use crate::meter::gpu::clock::Clock;
use crate::meter::gpu::counter::Verdict;
use crate::meter::gpu::curve::PowerStep;
use crate::meter::gpu::driver::{DriverSample, PowerScope, SampleKind, Timed};
use crate::meter::gpu::fault::{Fault, Remedy};
use crate::meter::gpu::owner::PidOwner;
use crate::meter::gpu::poller::{Context, LOOK_AT_MOST};

/// For how long a counter that was never seen to move is waited for. Those seen in the field refresh
/// every 20 to 100 ms; until then power is integrated beside it.
pub(in crate::meter::gpu) const FIRST_MOVE_WITHIN: Duration = Duration::from_millis(1200);

/// For how long one that has moved may stand still, and in how many of its refreshes.
const STILL_NS: u64 = 3_000_000_000;
const STILL_REFRESHES: u64 = 5;

/// How much of the power that is read beside the counter is kept while that does not move.
const KEPT_NS: u64 = 60_000_000_000;

/// A counter need not move on a device that draws less than this: it may be off. Milliwatts.
const DRAWS_MW: f64 = 1000.0;

/// When a counter has not moved for that long, the average of power is asked for, too, where there
/// is no other.
const SUSPICIOUS_NS: u64 = 1_000_000_000;

impl Device {
    /// Reads only the energy, and only as long as nothing can begin.
    pub(in super::super) fn prime<O: PidOwner>(
        &mut self,
        context: &mut Context<O>,
        elapsed: Duration,
    ) {
        if self.primed(elapsed) {
            return;
        }
        self.read_energy(context);
        if self.source == EnergySource::Counter && elapsed >= LOOK_AT_MOST && !self.lost {
            self.read_power_beside(context, true);
        }
    }

    /// Whether there is nothing more to wait for before the start.
    pub(in super::super) fn primed(&self, elapsed: Duration) -> bool {
        let curve = self.state.curve();
        if self.lost || elapsed >= FIRST_MOVE_WITHIN {
            return true;
        }
        match self.source {
            EnergySource::Samples | EnergySource::Power => {
                curve.first_ns().is_some() || elapsed >= LOOK_AT_MOST
            }
            EnergySource::Counter => {
                // Power is asked for once it has not moved for so long.
                let asked = self.state.stand_in.mean_milliwatts().is_some() || self.power_untold();
                curve.primed()
                    || elapsed >= LOOK_AT_MOST
                        && (curve.advances() > 0 || asked && self.stand_in_milliwatts() < DRAWS_MW)
            }
        }
    }

    fn power_untold(&self) -> bool {
        let untold = |question| self.declined.contains(question);
        [Question::InstantPower, Question::AveragePower].iter().all(untold)
    }

    /// Judges the counter after the first look at it: one that stands still while power is drawn
    /// gives way.
    pub(in super::super) fn judge_first_look(&mut self) {
        let dead = self.source == EnergySource::Counter
            && !self.lost
            && self.state.curve().advances() == 0
            && self.stand_in_milliwatts() >= DRAWS_MW;
        if dead {
            self.source = EnergySource::Power;
            // One that never said anything sensible is none.
            let any = self.state.curve().last_count();
            self.without = Some(if any.is_some() { Without::Motion } else { Without::Counter });
            let stand_in = self.state.stand_in.clone();
            self.state.counter.replace(stand_in);
        }
    }

    /// The fast group: energy, and power as a second opinion.
    pub(in super::super) fn read<O: PidOwner>(&mut self, context: &mut Context<O>) {
        if self.lost {
            return;
        }
        self.state.counter.curve_mut().begin_if_stuck(LOOK_AT_MOST.as_nanos() as u64);
        self.read_energy(context);
        if self.source != EnergySource::Counter || self.lost {
            return;
        }
        let suspicious = self.still_for_ns() >= SUSPICIOUS_NS;
        self.read_power_beside(context, suspicious);
        if self.has_stopped() {
            self.give_way(context);
        }
    }

    pub(super) fn read_energy<O: PidOwner>(&mut self, context: &mut Context<O>) {
        let driver = &*context.driver;
        let fault = match self.source {
            EnergySource::Counter => match driver.energy(self.handle) {
                Ok(energy) => return self.count(context, energy),
                Err(fault) => fault,
            },
            EnergySource::Samples => {
                let since = Clock::now().not_ahead(self.state.power_since_us);
                self.state.power_since_us = since;
                match driver.samples(self.handle, SampleKind::Power, since) {
                    Ok(samples) if !samples.is_empty() => {
                        return self.integrate(context, &samples);
                    }
                    Err(fault) if fault.remedy() != Remedy::Nothing => fault,
                    _ => return self.miss_samples(context),
                }
            }
            EnergySource::Power => match power(driver, self.handle) {
                Ok(power) => return self.take_power(context, power),
                Err(fault) => fault,
            },
        };
        match (fault.remedy(), &fault) {
            (Remedy::Nothing, _) => {}
            // The device answers; what it says is not believed.
            (_, Fault::Nonsense(what)) => {
                let what = what.clone();
                self.refuse(context, &what);
            }
            _ => self.lose(context, &fault),
        }
    }

    fn count<O: PidOwner>(&mut self, context: &mut Context<O>, energy: Timed<u64>) {
        let before = self.state.curve().advances();
        match self.state.counter.count(energy.ns, energy.value) {
            Verdict::Believed => {
                if self.state.curve().advances() != before {
                    self.state.stand_in.clear();
                }
            }
            Verdict::Doubted { first: true } => {
                // In case that it is a new count: who ran in the old one is told now.
                let census = self.take_census(context);
                self.state.census.merge(census);
            }
            Verdict::Doubted { first: false } => {}
            Verdict::Returned => {
                self.state.stand_in.clear();
                self.say_returned(context);
            }
            Verdict::Anew => self.renew(context),
        }
    }

    /// Goes on with a count that does not follow from the one before.
    fn renew<O: PidOwner>(&mut self, context: &mut Context<O>) {
        let uuid = &self.uuid;
        if self.state.curve().advances() == 0 {
            context.warn_once(format!("first {uuid}"), || {
                format!("the first reading of the energy counter of GPU {uuid} was refused")
            });
        } else {
            context.warn_once(format!("broken {uuid}"), || {
                format!(
                    "the energy counter of GPU {uuid} jumped (a reset, or the driver was loaded \
                     anew): what it drew around that moment is not counted"
                )
            });
        }
        self.change_curve(context, |state| state.counter.renew());
        self.state.stand_in.clear();
    }

    /// At the end there is no time left for doubts.
    pub(super) fn settle_doubts<O: PidOwner>(&mut self, context: &mut Context<O>) {
        if self.state.counter.seems_anew() {
            self.renew(context);
        } else if self.state.counter.is_doubted() {
            self.say_returned(context);
        }
    }

    fn say_returned<O>(&self, context: &mut Context<O>) {
        let uuid = &self.uuid;
        context.warn_once(format!("returned {uuid}"), || {
            format!(
                "the energy counter of GPU {uuid} jumped for a moment: what it showed then was \
                 refused"
            )
        });
    }

    fn refuse<O>(&self, context: &mut Context<O>, what: &str) {
        let uuid = &self.uuid;
        context.warn_once(format!("refused {uuid}"), || {
            format!("GPU {uuid} gives readings that cannot be true, which are refused: {what}")
        });
    }

    fn integrate<O: PidOwner>(&mut self, context: &mut Context<O>, samples: &[DriverSample]) {
        let clock = Clock::now();
        let newest = samples.iter().map(|sample| sample.us).max().unwrap_or(0);
        let first = self.state.power_since_us == 0;
        if samples.len() > 1 {
            self.state.counter.curve_mut().power_has_settled();
        }
        for sample in samples {
            let ns = clock.mono_ns(sample.us);
            // Of what the driver remembers from before, only where the curve begins.
            if ns <= clock.now_ns && (sample.us == newest || !first) {
                self.take_power(context, Timed { ns, value: sample.value });
            }
        }
        self.state.power_since_us = self.state.power_since_us.max(newest);
    }

    /// There are no new samples: none yet, or none any more.
    fn miss_samples<O: PidOwner>(&mut self, context: &mut Context<O>) {
        let since_ns = self.state.curve().last_ns().unwrap_or(self.state.began_ns);
        if monotonic_ns().saturating_sub(since_ns) < STILL_NS {
            return;
        }
        let Ok(power) = power(&*context.driver, self.handle) else { return };
        let uuid = &self.uuid;
        context.warn_once(format!("samples {uuid}"), || {
            format!(
                "GPU {uuid} has no new samples of its power: from here on its power is read instead"
            )
        });
        self.source = EnergySource::Power;
        self.change_curve(context, |state| {
            state.counter.curve_mut().power_anew(power.ns, power.value);
        });
    }

    fn take_power<O: PidOwner>(&mut self, context: &mut Context<O>, power: Timed<f64>) {
        match self.state.counter.curve_mut().power(power.ns, power.value) {
            PowerStep::Taken => {}
            PowerStep::Refused => self.refuse_power(context, power.value),
            PowerStep::Broken => {
                let uuid = &self.uuid;
                context.warn_once(format!("power anew {uuid}"), || {
                    format!(
                        "GPU {uuid} told no power that can be true for a while: what it drew then \
                         is not counted"
                    )
                });
                self.change_curve(context, |state| {
                    state.counter.curve_mut().power_anew(power.ns, power.value);
                });
            }
        }
    }

    fn refuse_power<O>(&self, context: &mut Context<O>, milliwatts: f64) {
        let (watts, most) = (milliwatts * 1e-3, self.most_watts);
        self.refuse(
            context,
            &format!("a power of {watts:.0} W, where {most:.0} W is more than it can draw"),
        );
    }

    /// Power beside the counter, as a second opinion and in case that it stops. The average, which
    /// says little of a moment, only where there is need.
    fn read_power_beside<O: PidOwner>(&mut self, context: &mut Context<O>, need: bool) {
        let handle = self.handle;
        let instant = self.ask(Question::InstantPower, context, |driver| {
            driver.instant_power(handle, PowerScope::Gpu)
        });
        let power = match instant {
            None if need => {
                self.ask(Question::AveragePower, context, |driver| driver.average_power(handle))
            }
            instant => instant,
        };
        let Some(Timed { ns, value }) = power else { return };
        let stand_in = &mut self.state.stand_in;
        // A device may be off for weeks.
        if stand_in.ends().is_some_and(|[(first_ns, _), _]| ns.saturating_sub(first_ns) > KEPT_NS) {
            stand_in.clear();
        }
        let step = match stand_in.first_ns() {
            None if value <= self.most_watts * 1e3 => PowerStep::Broken,
            None => PowerStep::Refused,
            Some(_) => stand_in.power(ns, value),
        };
        match step {
            PowerStep::Taken => {}
            PowerStep::Broken => stand_in.power_anew(ns, value),
            PowerStep::Refused => return self.refuse_power(context, value),
        }
        if instant.is_some() {
            self.state.power.0 += value;
            self.state.power.1 += 1;
        }
    }

    /// Mean power since the counter last moved; 0 where it is not known.
    fn stand_in_milliwatts(&self) -> f64 {
        self.state.stand_in.mean_milliwatts().unwrap_or(0.0)
    }

    fn still_for_ns(&self) -> u64 {
        self.state.counter.still_for_ns()
    }

    fn has_stopped(&self) -> bool {
        let refresh = self.state.curve().refresh_ns().unwrap_or(0);
        let patience = STILL_NS.max(STILL_REFRESHES * refresh);
        self.still_for_ns() >= patience
            && self.state.stand_in.ends().is_some_and(|[first, last]| {
                // Of most of the time power is known.
                last.0 - first.0 >= patience / 4 * 3
            })
            && self.stand_in_milliwatts() >= DRAWS_MW
    }

    /// A counter that has stopped gives way to the power that was read beside it.
    fn give_way<O: PidOwner>(&mut self, context: &mut Context<O>) {
        let uuid = &self.uuid;
        context.warn_once(format!("stopped {uuid}"), || {
            format!(
                "the energy counter of GPU {uuid} stands still while it draws power: from there on \
                 its energy is the integral of power"
            )
        });
        (self.source, self.without) = (EnergySource::Power, Some(Without::Motion));
        self.change_curve(context, |state| {
            let stand_in = state.stand_in.clone();
            state.counter.replace(stand_in);
        });
    }
}
