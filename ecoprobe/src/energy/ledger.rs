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

use crate::base::units::{Joules, Seconds, Watts};

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

/// The slot of whoever used a domain and cannot be told: its share is `unattributed`.
pub const NOBODY: usize = usize::MAX;

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

/// How late a counter may show what was drawn: it refreshes every so often, not when it is read. What
/// is missing for longer was not drawn.
const LATENESS: Seconds = Seconds(0.1);

/// The account of one domain.
#[derive(Debug, Clone, Default)]
pub struct Account {
    known: Option<Watts>,
    measured: Sum,
    /// Time measured, and the part of it that can have been at the known static power.
    time: Sum,
    static_time: Sum,
    /// Time at the known static power whose energy the counter has not shown yet.
    owed: Seconds,
    slots: Vec<Cell>,
    /// What is shared to [`NOBODY`], and windows in which nobody used the domain.
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
    /// that idle energy never exceeds what was measured. A tenth of a second of what is missing is
    /// made up for by the windows that follow, because counters are read between two refreshes.
    pub fn new(known: Option<Watts>) -> Self {
        Self::owing(known, Seconds(0.0))
    }

    /// An account that goes on where another one, by its [`Account::owed`], stopped.
    pub fn owing(known: Option<Watts>, owed: Seconds) -> Self {
        Self { known, owed, ..Self::default() }
    }

    /// Static time that the windows to come have to make up for.
    pub fn owed(&self) -> Seconds {
        self.owed
    }

    /// Enters one window, shared by the weights that are above zero.
    pub fn add(&mut self, window: Window, shares: &[Share]) {
        let static_time = self.static_time(window);
        self.enter(window, static_time, shares);
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

    fn static_time(&mut self, Window { energy, time }: Window) -> Seconds {
        let Some(known) = self.known else { return time };
        let due = time + self.owed;
        if known * due <= energy {
            self.owed = Seconds(0.0);
            return due;
        }
        let covered = Seconds(energy.0 / known.0);
        self.owed = Seconds((due - covered).0.min(LATENESS.0));
        covered
    }

    fn enter(&mut self, Window { energy, time }: Window, static_time: Seconds, shares: &[Share]) {
        self.measured.add(energy.0);
        self.time.add(time.0);
        self.static_time.add(static_time.0);
        let users = || shares.iter().filter(|share| share.weight > 0.0);
        let total: f64 = users().map(|share| share.weight).sum();
        if !total.is_normal() {
            return self.nobody.add(energy, static_time);
        }
        let inverse = total.recip();
        for share in users() {
            let part = share.weight * inverse;
            let cell = match share.slot {
                NOBODY => &mut self.nobody,
                slot => at(&mut self.slots, slot),
            };
            cell.add(energy * part, static_time * part);
        }
    }

    /// True until the first window.
    pub fn is_empty(&self) -> bool {
        self.time.get() == 0.0 && self.measured.get() == 0.0
    }

    /// A second or more was measured and not one count came: that is no machine that draws nothing,
    /// but a counter that is not connected to anything.
    pub fn is_dead(&self) -> bool {
        self.measured.get() == 0.0 && self.time.get() >= 1.0
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
#[inline]
fn at<T: Clone + Default>(list: &mut Vec<T>, slot: usize) -> &mut T {
    if slot >= list.len() {
        grow(list, slot + 1);
    }
    &mut list[slot]
}

#[cold]
fn grow<T: Clone + Default>(list: &mut Vec<T>, slots: usize) {
    list.resize(slots, T::default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn window(joules: f64, seconds: f64) -> Window {
        Window { energy: Joules(joules), time: Seconds(seconds) }
    }

    fn shares(weights: &[f64]) -> Vec<Share> {
        weights.iter().enumerate().map(|(slot, &weight)| Share { slot, weight }).collect()
    }

    #[test]
    fn a_counter_that_never_moves_is_dead() {
        let mut account = Account::new(None);
        account.add(window(0.0, 0.9), &[]);
        assert!(!account.is_dead());
        account.add(window(0.0, 0.2), &[]);
        assert!(account.is_dead());
        account.add(window(1e-6, 0.2), &[]);
        assert!(!account.is_dead());
    }

    #[test]
    fn a_late_counter_costs_no_idle_energy() {
        let mut account = Account::new(Some(Watts(20.0)));
        let user = shares(&[1.0]);
        // 25 W all the time, but every other window is read before the counter has moved.
        for _ in 0..50 {
            account.add(window(0.0, 0.01), &user);
            account.add(window(0.5, 0.01), &user);
        }
        let settled = account.settle(Some(Watts(20.0)), IdleTo::Nobody);
        assert!((settled.idle.0 - 20.0).abs() < 1e-9, "{settled:?}");
        // What is missing for longer than a counter can be late was never drawn.
        let mut account = Account::new(Some(Watts(20.0)));
        account.add(window(10.0, 1.0), &user);
        account.add(window(100.0, 1.0), &user);
        let settled = account.settle(Some(Watts(20.0)), IdleTo::Nobody);
        assert!((settled.idle.0 - (10.0 + 22.0)).abs() < 1e-9, "{settled:?}");
    }

    #[test]
    fn who_cannot_be_told_is_billed_to_nobody() {
        let mut account = Account::new(None);
        let shares = [Share { slot: 1, weight: 3.0 }, Share { slot: NOBODY, weight: 1.0 }];
        account.add(window(100.0, 2.0), &shares);
        let settled = account.settle(Some(Watts(10.0)), IdleTo::Nobody);
        assert_eq!(dynamic(&settled), [0.0, 60.0]);
        assert_eq!((settled.unattributed, settled.idle), (Joules(20.0), Joules(20.0)));
    }

    fn dynamic(settled: &Settlement) -> Vec<f64> {
        settled.bills.iter().map(|bill| bill.dynamic.0).collect()
    }

    fn sum(settled: &Settlement) -> f64 {
        let bills: Joules = settled.bills.iter().map(|bill| bill.dynamic + bill.idle).sum();
        (settled.idle + settled.unattributed + bills).0
    }

    /// Closed to 1e-9, and nothing negative.
    fn check(settled: &Settlement) -> Result<(), TestCaseError> {
        let measured = settled.measured.0;
        prop_assert!((sum(settled) - measured).abs() <= 1e-9 * measured, "{settled:?}");
        let bills = settled.bills.iter().flat_map(|bill| [bill.dynamic, bill.idle]);
        for joules in bills.chain([settled.idle, settled.unattributed]) {
            prop_assert!(joules.0 >= 0.0, "{settled:?}");
        }
        Ok(())
    }

    #[test]
    fn static_energy_is_set_apart_and_the_rest_goes_by_use() {
        let mut account = Account::default();
        account.add(window(60.0, 1.0), &shares(&[1.0, 0.0, 3.0]));
        let settled = account.settle(Some(Watts(20.0)), IdleTo::Nobody);
        assert_eq!(dynamic(&settled), [10.0, 0.0, 30.0]);
        assert_eq!((settled.idle.0, settled.unattributed.0), (20.0, 0.0));

        let shared = account.settle(Some(Watts(20.0)), IdleTo::Users);
        assert_eq!(dynamic(&shared), [10.0, 0.0, 30.0]);
        assert_eq!(shared.bills[2].idle, Joules(15.0));
        assert_eq!(shared.idle, Joules(0.0));

        // Not known: nothing is set apart.
        let unknown = account.settle(None, IdleTo::Nobody);
        assert_eq!(unknown.idle, Joules(0.0));
        assert_eq!(unknown.bills[2].dynamic, Joules(45.0));
    }

    #[test]
    fn energy_without_a_user_is_idle_or_unattributed() {
        let mut account = Account::default();
        account.add(window(50.0, 1.0), &[]);
        let settled = account.settle(Some(Watts(20.0)), IdleTo::Users);
        assert_eq!((settled.idle.0, settled.unattributed.0), (20.0, 30.0));
    }

    #[test]
    fn a_static_power_above_what_was_measured_leaves_nothing_below_zero() {
        let mut account = Account::new(Some(Watts(40.0)));
        account.add(window(10.0, 1.0), &shares(&[1.0]));
        account.add(window(60.0, 1.0), &shares(&[1.0]));
        let settled = account.settle(Some(Watts(40.0)), IdleTo::Nobody);
        // The second window makes up for a tenth of a second of the first.
        assert!((settled.idle.0 - 54.0).abs() < 1e-9, "{settled:?}");
        assert!((settled.bills[0].dynamic.0 - 16.0).abs() < 1e-9, "{settled:?}");
        assert!((account.overdrawn() - 0.325).abs() < 1e-12);
    }

    #[test]
    fn idle_energy_goes_to_holders_in_equal_parts() {
        let mut account = Account::default();
        account.add_held(window(100.0, 1.0), &shares(&[1.0]), &[0, 3]);
        account.add_held(window(60.0, 1.0), &[], &[]);
        let settled = account.settle(Some(Watts(60.0)), IdleTo::Holders);
        assert_eq!(settled.bills[0], Bill { dynamic: Joules(40.0), idle: Joules(30.0) });
        assert_eq!(settled.bills[3], Bill { dynamic: Joules(0.0), idle: Joules(30.0) });
        assert_eq!((settled.idle.0, settled.unattributed.0), (60.0, 0.0));
    }

    #[test]
    fn a_sum_keeps_what_rounding_cuts_off() {
        let mut sum = Sum::default();
        sum.add(1.0);
        // Each of these is lost in a plain sum.
        (0..1_000_000).for_each(|_| sum.add(1e-16));
        assert!((sum.get() - (1.0 + 1e-10)).abs() < 1e-15);
    }

    #[test]
    fn books_close_after_a_million_windows() {
        let mut account = Account::default();
        let users = shares(&[0.1, 0.7, 1e-9, 3.3]);
        let mut seconds = 0.1;
        for _ in 0..1_000_000 {
            seconds = if seconds > 0.3 { 0.1 } else { seconds * 1.000_1 };
            account.add(window(seconds * 31.7, seconds), &users);
        }
        for idle_to in [IdleTo::Nobody, IdleTo::Users] {
            let settled = account.settle(None, idle_to);
            let error = sum(&settled) / settled.measured.0 - 1.0;
            assert!(error.abs() < 1e-13, "{error}");
        }
    }

    #[derive(Debug, Clone)]
    struct Entry {
        window: Window,
        weights: Vec<f64>,
        holders: Vec<usize>,
    }

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let weight = prop_oneof![2 => Just(0.0), 3 => 0.0..1e10, 1 => 0.0..1e-6];
        let joules = prop_oneof![1 => Just(0.0), 5 => 0.0..500.0];
        let entry = (
            joules,
            1e-4..10.0,
            proptest::collection::vec(weight, 0..6),
            proptest::sample::subsequence(vec![0, 1, 2, 7], 0..=4),
        );
        let entry = entry.prop_map(|(joules, seconds, weights, holders)| Entry {
            window: window(joules, seconds),
            weights,
            holders,
        });
        proptest::collection::vec(entry, 0..40)
    }

    fn account(entries: &[Entry], known: Option<Watts>) -> Account {
        let mut account = Account::new(known);
        for Entry { window, weights, holders } in entries {
            account.add_held(*window, &shares(weights), holders);
        }
        account
    }

    fn policy() -> impl Strategy<Value = IdleTo> {
        prop_oneof![Just(IdleTo::Nobody), Just(IdleTo::Users), Just(IdleTo::Holders)]
    }

    proptest! {
        #[test]
        fn books_close_and_nothing_is_negative(
            entries in entries(),
            watts in proptest::option::of(0.0..200.0),
            known: bool,
            idle_to in policy(),
        ) {
            let watts = watts.map(Watts);
            check(&account(&entries, watts.filter(|_| known)).settle(watts, idle_to))?;
        }

        #[test]
        fn a_given_static_power_takes_no_more_than_there_is(
            entries in entries(), watts in 0.0..200.0,
        ) {
            let settled =
                account(&entries, Some(Watts(watts))).settle(Some(Watts(watts)), IdleTo::Nobody);
            let most = |window: &Window| window.energy.0.min(watts * window.time.0);
            let least: f64 = entries.iter().map(|entry| most(&entry.window)).sum();
            let time: f64 = entries.iter().map(|entry| entry.window.time.0).sum();
            let rounding = 1e-9 * settled.measured.0;
            prop_assert!(settled.idle.0 >= least - rounding);
            prop_assert!(settled.idle.0 <= settled.measured.0.min(watts * time) + rounding);
        }

        #[test]
        fn the_order_of_slots_and_windows_does_not_matter(
            entries in entries(), watts in 0.0..200.0, idle_to in policy(),
        ) {
            let slots = 6;
            let reversed: Vec<Entry> = entries.iter().rev().cloned().map(|mut entry| {
                entry.weights.resize(slots, 0.0);
                entry.weights.reverse();
                entry.holders.iter_mut().for_each(|slot| *slot = (slots + 7 - *slot) % (slots + 2));
                entry
            }).collect();
            let here = account(&entries, None).settle(Some(Watts(watts)), idle_to);
            let there = account(&reversed, None).settle(Some(Watts(watts)), idle_to);
            let tolerance = 1e-9 * here.measured.0;
            prop_assert!((here.idle.0 - there.idle.0).abs() <= tolerance);
            for slot in 0..slots {
                let bill = |settled: &Settlement, slot: usize| {
                    settled.bills.get(slot).copied().unwrap_or_default().dynamic.0
                };
                prop_assert!((bill(&here, slot) - bill(&there, slots - 1 - slot)).abs() <= tolerance);
            }
        }

        #[test]
        fn cutting_windows_in_two_changes_nothing(
            entries in entries(),
            cut in 0.01..0.99,
            watts in 0.0..200.0,
            known: bool,
            idle_to in policy(),
        ) {
            let halves: Vec<Entry> = entries.iter().flat_map(|entry| {
                [cut, 1.0 - cut].map(|part| Entry {
                    window: Window {
                        energy: entry.window.energy * part,
                        time: entry.window.time * part,
                    },
                    ..entry.clone()
                })
            }).collect();
            let watts = Watts(watts);
            let settle = |entries| {
                account(entries, known.then_some(watts)).settle(Some(watts), idle_to)
            };
            let (whole, halved) = (settle(&entries), settle(&halves));
            let tolerance = 1e-9 * whole.measured.0;
            prop_assert!((whole.idle.0 - halved.idle.0).abs() <= tolerance);
            prop_assert_eq!(whole.bills.len(), halved.bills.len());
            for (a, b) in whole.bills.iter().zip(&halved.bills) {
                prop_assert!((a.dynamic.0 - b.dynamic.0).abs() <= tolerance);
                prop_assert!((a.idle.0 - b.idle.0).abs() <= tolerance);
            }
        }
    }
}
