//! Who is billed for the energy of one domain.
//!
//! Each window's energy `E` over a time `t` is shared by weights `w` (CPU time on that package, use
//! of that GPU). Two sums are kept for each slot `i`: its joules by share, `A = Σ E·w/Σw`, and its
//! seconds by share, `B = Σ t·w/Σw`. With a static power `S`, what running added is
//!
//! ```text
//! dynamic = max(0, A − S·B)        idle = Σ E − Σ dynamic
//! ```
//!
//! `S` enters only when the account is settled. So it may be learned while measuring, and is then
//! applied to the whole run, at a cost that depends on the number of slots and not of windows. Idle
//! energy is the remainder: the books close by construction.

use crate::energy::units::{Joules, Seconds, Watts};

/// What a domain drew between two readings.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Window {
    pub energy: Joules,
    pub time: Seconds,
}

/// A slot's part in the use of a domain, relative to the other slots of the same window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    pub slot: usize,
    pub weight: f64,
}

/// A sum that keeps what rounding cuts off (Knuth's TwoSum): books must close to 1e-9 after
/// months of windows.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    value: f64,
    cut_off: f64,
}

impl Sum {
    fn add(&mut self, term: f64) {
        let sum = self.value + term;
        let added = sum - self.value;
        self.cut_off += (self.value - (sum - added)) + (term - added);
        self.value = sum;
    }

    fn get(self) -> f64 {
        self.value + self.cut_off
    }
}

/// `A` and `B` of one slot.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    joules: Sum,
    seconds: Sum,
}

impl Cell {
    fn add(&mut self, energy: Joules, time: Seconds) {
        self.joules.add(energy.0);
        self.seconds.add(time.0);
    }

    fn bill(self, static_power: Watts) -> Bill {
        let joules = self.joules.get();
        let dynamic = (joules - static_power.0 * self.seconds.get()).max(0.0);
        Bill { dynamic: Joules(dynamic), idle: Joules(joules - dynamic) }
    }
}

/// The account of one domain.
#[derive(Debug, Clone, Default)]
pub struct Account {
    known: Option<Watts>,
    measured: Sum,
    /// Time measured, and the part of it that can have been at the known static power.
    time: Sum,
    static_time: Sum,
    slots: Vec<Cell>,
    /// Windows in which nobody used the domain.
    nobody: Cell,
    /// Static seconds by who held the domain; empty unless holders are ever named.
    held: Vec<Sum>,
}

/// Where idle energy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdleTo {
    /// It is a line of its own.
    Nobody,
    /// Those who used the domain, by use.
    Users,
    /// Those who held it, used or not, in equal parts.
    Holders,
}

/// What one slot owes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Bill {
    /// What running added.
    pub dynamic: Joules,
    /// Its part of the idle energy.
    pub idle: Joules,
}

/// A settled account: `measured` = `idle` + `unattributed` + every bill.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Settlement {
    pub measured: Joules,
    /// Idle energy that no slot is billed for.
    pub idle: Joules,
    /// What running added while nobody was seen running.
    pub unattributed: Joules,
    /// By slot; a slot beyond the end owes nothing.
    pub bills: Vec<Bill>,
}

impl Account {
    /// An account whose static power may be `known` beforehand. It can be more than what some window
    /// measures; such a window counts as static for only as long as its energy would last, so
    /// that idle energy never exceeds what was measured.
    pub fn new(known: Option<Watts>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Enters one window, shared by the weights that are above zero.
    pub fn add(&mut self, window: Window, shares: &[Share]) {
        self.enter(window, self.static_time(window), shares);
    }

    /// As `add`; `holders` are slots that held the domain, whether they used it or not.
    pub fn add_held(&mut self, window: Window, shares: &[Share], holders: &[usize]) {
        let static_time = self.static_time(window);
        self.enter(window, static_time, shares);
        let part = static_time.0 / holders.len() as f64;
        for &slot in holders {
            at(&mut self.held, slot).add(part);
        }
    }

    fn static_time(&self, Window { energy, time }: Window) -> Seconds {
        match self.known {
            Some(known) if known * time > energy => Seconds(energy.0 / known.0),
            _ => time,
        }
    }

    fn enter(&mut self, Window { energy, time }: Window, static_time: Seconds, shares: &[Share]) {
        self.measured.add(energy.0);
        self.time.add(time.0);
        self.static_time.add(static_time.0);
        let users = || shares.iter().filter(|share| share.weight > 0.0);
        let total: f64 = users().map(|share| share.weight).sum();
        if !(total > 0.0 && total.is_finite()) {
            return self.nobody.add(energy, static_time);
        }
        for share in users() {
            let part = share.weight / total;
            at(&mut self.slots, share.slot).add(energy * part, static_time * part);
        }
    }

    /// True until the first window.
    pub fn is_empty(&self) -> bool {
        self.time.get() == 0.0 && self.measured.get() == 0.0
    }

    /// Part of the measured time in which less was drawn than the static power known beforehand.
    pub fn overdrawn(&self) -> f64 {
        let time = self.time.get();
        if time > 0.0 { 1.0 - self.static_time.get() / time } else { 0.0 }
    }

    /// Settles the account with the best static power known by now. `None`: it could not be told,
    /// nothing is set apart and everything goes by use.
    pub fn settle(&self, static_power: Option<Watts>, idle_to: IdleTo) -> Settlement {
        let static_power = static_power.unwrap_or_default();
        let mut bills: Vec<Bill> = self.slots.iter().map(|cell| cell.bill(static_power)).collect();
        let measured = self.measured.get();
        let unattributed = self.nobody.bill(static_power).dynamic;
        let dynamic: Joules = bills.iter().map(|bill| bill.dynamic).sum();
        let all_idle = (measured - dynamic.0 - unattributed.0).max(0.0);

        if idle_to != IdleTo::Users {
            bills.iter_mut().for_each(|bill| bill.idle = Joules(0.0));
        }
        let time = self.static_time.get();
        if idle_to == IdleTo::Holders && time > 0.0 {
            for (slot, held) in self.held.iter().enumerate() {
                at(&mut bills, slot).idle = Joules(all_idle * (held.get() / time).min(1.0));
            }
        }
        let billed: Joules = bills.iter().map(|bill| bill.idle).sum();
        let idle = Joules((all_idle - billed.0).max(0.0));
        Settlement { measured: Joules(measured), idle, unattributed, bills }
    }
}

/// The entry of `slot`, which is made if the list is too short.
fn at<T: Clone + Default>(list: &mut Vec<T>, slot: usize) -> &mut T {
    if slot >= list.len() {
        list.resize(slot + 1, T::default());
    }
    &mut list[slot]
}
