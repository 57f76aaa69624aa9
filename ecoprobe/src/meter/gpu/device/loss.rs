//! A device that does not answer any more, and one that answers again.

use super::{Device, EnergySource, State, power};
use crate::meter::gpu::driver::{Driver, Handle, SampleKind};
use crate::meter::gpu::fault::{Fault, Kind};
use crate::meter::gpu::poller::Context;

impl Device {
    pub(super) fn lose<O>(&mut self, context: &mut Context<O>, fault: &Fault) {
        context.warn(format!("GPU {} stopped answering ({fault}): its books stop here", self.uuid));
        // Closes the books at the last moment that is known, and begins new ones.
        let edge = self.state.curve().last_ns();
        self.window(context, edge, self.state.census.clone());
        if self.source == EnergySource::Counter
            && let Some([_, last]) = self.state.curve().ends()
        {
            self.gap = Some(last);
        }
        self.state = State::new(self.most_watts);
        self.lost = true;
    }

    /// Tries to find a lost device again, where it was or elsewhere.
    pub(super) fn regain<O>(&mut self, context: &mut Context<O>) -> bool {
        let driver = &*context.driver;
        let Some(handle) = self.find_again(driver).filter(|handle| self.answers(driver, *handle))
        else {
            return false;
        };
        context.warn(format!("GPU {} answers again: its books go on from here", self.uuid));
        self.handle = handle;
        self.lost = false;
        self.declined.clear();
        self.state = State::new(self.most_watts);
        true
    }

    fn find_again(&self, driver: &dyn Driver) -> Option<Handle> {
        match driver.device_by_uuid(&self.uuid) {
            Err(Fault::Missing) => self.at_its_index(driver),
            Err(fault) if fault.kind() == Some(Kind::NotLoaded) => {
                driver.reconnect().ok()?;
                driver.device_by_uuid(&self.uuid).ok().or_else(|| self.at_its_index(driver))
            }
            answer => answer.ok(),
        }
    }

    fn at_its_index(&self, driver: &dyn Driver) -> Option<Handle> {
        let same = |handle: &Handle| driver.uuid(*handle).is_ok_and(|uuid| uuid == self.uuid);
        driver.device(self.index).ok().filter(same)
    }

    fn answers(&self, driver: &dyn Driver, handle: Handle) -> bool {
        match self.source {
            EnergySource::Counter => driver.energy(handle).is_ok(),
            EnergySource::Samples => driver.samples(handle, SampleKind::Power, 0).is_ok(),
            EnergySource::Power => power(driver, handle).is_ok(),
        }
    }

    /// Once the counter of a device that was lost is known again: if it went on, so did the device,
    /// and what it counted meanwhile belongs into the books.
    pub(super) fn close_gap<O>(&mut self, context: &mut Context<O>) {
        let (Some((from_ns, before)), Some([(to_ns, now), _])) =
            (self.gap, self.state.curve().ends())
        else {
            return;
        };
        self.gap = None;
        let seconds = to_ns.saturating_sub(from_ns) as f64 * 1e-9;
        let drawn = now - before;
        if to_ns > from_ns && (0.0..=self.most_watts * 1e3 * (seconds + 1.0)).contains(&drawn) {
            return self.publish_unattended(context, from_ns, to_ns, drawn);
        }
        context.warn(format!(
            "the energy counter of GPU {} began anew while it did not answer: what it drew then is \
             not known",
            self.uuid
        ));
    }
}
