//! What was seen of a domain and is not yet learned from.

use super::arrears::Bill;
use super::row::Active;
use crate::energy::usage::Ran;

/// What one user did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Use {
    pub(super) cpu: f64,
    pub(super) paired: f64,
    pub(super) bill: Bill,
}

/// What was seen and is not yet learned from.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    pub(super) time: f64,
    pub(super) energy: f64,
    pub(super) awake: f64,
    pub(super) idle: Bill,
    pub(super) users: Vec<(usize, Use)>,
}

/// What is the same for all users of a window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// CPU-seconds of all users together.
    pub(super) busy: f64,
    /// Seconds in which the machine was awake.
    pub(super) awake: f64,
    /// The part of the CPU time that was paired, where nobody measured it.
    pub(super) paired: Option<f64>,
}

impl Reading {
    pub(super) fn of(&self, ran: &Ran) -> Option<Use> {
        let cpu = ran.ns * 1e-9;
        if !(cpu > 0.0 && cpu.is_finite()) {
            return None;
        }
        let paired = self.paired.map_or(ran.paired_ns * 1e-9, |part| part * cpu);
        Some(Use { cpu, paired: paired.clamp(0.0, cpu), bill: Bill::default() })
    }
}

impl Use {
    pub(super) fn active(self, member: usize, column: Option<usize>) -> Active {
        let Self { cpu, paired, .. } = self;
        Active { member, column, sum: None, cpu, paired, off: 0.0 }
    }

    pub(super) fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.paired += other.paired;
        self.bill.add(other.bill);
    }
}

impl Pool {
    pub(super) fn load(&self) -> f64 {
        self.users.iter().map(|(_, used)| used.cpu).sum::<f64>() / self.time
    }

    pub(super) fn power(&self) -> f64 {
        self.energy / self.time
    }

    pub(super) fn absorb(&mut self, other: Self) {
        self.time += other.time;
        self.energy += other.energy;
        self.awake += other.awake;
        self.idle.add(other.idle);
        for (place, used) in other.users {
            match self.users.iter_mut().find(|(known, _)| *known == place) {
                Some((_, sum)) => sum.add(used),
                None => self.users.push((place, used)),
            }
        }
    }

    pub(super) fn fold(&mut self, place: usize, to: usize) {
        let Some(index) = self.users.iter().position(|(known, _)| *known == place) else { return };
        let (_, used) = self.users.swap_remove(index);
        match self.users.iter_mut().find(|(known, _)| *known == to) {
            Some((_, sum)) => sum.add(used),
            None => self.users.push((to, used)),
        }
    }
}
