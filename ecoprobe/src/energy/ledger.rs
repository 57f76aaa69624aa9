//! The postings of one domain, added up, and what each sum depends on.
//!
//! The static power `S` may still be learned while windows are split with it. So that what is learned
//! late corrects what was billed early, two more sums are kept for each user: its joules by use,
//! `A = Σ E·w/Σw`, and its static seconds by use, `B = Σ t·w/Σw`. What it is to have is
//!
//! ```text
//! dynamic = max(0, A − S·B)        idle = Σ E − Σ dynamic
//! ```
//!
//! and [`DomainLedger::correct`] posts the difference between that and what was posted, at a cost that
//! depends on the number of users and not of windows. Idle energy is the remainder: the books close by
//! construction. So much for GPUs and estimates, whose dynamic energy all goes by one kind of use; where a
//! model of the whole run says what each user is to have, [`DomainLedger::correct_to`] posts the
//! difference to that.

use rustc_hash::FxHashMap;

use super::attribute::{IdleTo, Posting, ROUNDING, Static, Window, attribute};
use super::model::Figure;
use super::usage::Usage;
use crate::base::{Account, Joules, Seconds, User, Watts};

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

    /// Adds what is missing to `target`, and says how much that was.
    fn make(&mut self, target: f64) -> Joules {
        let missing = target - self.get();
        *self = Self { value: target, cut_off: 0.0 };
        Joules(missing)
    }
}

/// One user's sums.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    /// `A` and `B`.
    joules: Sum,
    static_seconds: Sum,
    /// Its part of the static seconds in which somebody held the domain.
    held_seconds: Sum,
    /// What was posted.
    dynamic: Sum,
    idle: Sum,
    /// Standard error of the dynamic energy, where it is known.
    stderr: Option<f64>,
}

impl Line {
    fn due(&self, static_power: Watts) -> f64 {
        (self.joules.get() - static_power.0 * self.static_seconds.get()).max(0.0)
    }

    fn bill(&self) -> Bill {
        Bill {
            dynamic: Joules(self.dynamic.get()),
            idle: Joules(self.idle.get()),
            stderr: self.stderr.map(Joules),
        }
    }

    fn take(&mut self, other: &Self) {
        for (sum, more) in [
            (&mut self.joules, other.joules),
            (&mut self.static_seconds, other.static_seconds),
            (&mut self.held_seconds, other.held_seconds),
            (&mut self.dynamic, other.dynamic),
            (&mut self.idle, other.idle),
        ] {
            sum.add(more.value);
            sum.add(more.cut_off);
        }
        if let (Some(sum), Some(more)) = (&mut self.stderr, other.stderr) {
            *sum += more;
        }
    }
}

/// What everybody is to have of a run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Due {
    pub(crate) idle: Joules,
    /// What was drawn beyond that while nobody ran.
    pub(crate) nobody: Joules,
    pub(crate) users: Vec<(User, Figure)>,
}

/// How late a counter may show what was drawn: it refreshes every so often, not when it is read. What
/// is missing for longer was not drawn.
const LATENESS: Seconds = Seconds(0.1);

/// What one user owes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bill {
    /// What running added.
    pub(crate) dynamic: Joules,
    /// Its part of the idle energy.
    pub(crate) idle: Joules,
    /// Standard error of `dynamic`, as of the last correction; `None` where nothing says what it is.
    pub(crate) stderr: Option<Joules>,
}

impl Default for Bill {
    /// Nothing, for sure.
    fn default() -> Self {
        Self { dynamic: Joules(0.0), idle: Joules(0.0), stderr: Some(Joules(0.0)) }
    }
}

impl Bill {
    pub(crate) fn is_some(&self) -> bool {
        self.dynamic.0 != 0.0 || self.idle.0 != 0.0
    }
}

/// The sums of one domain: `measured` = `idle` + `unattributed` + every user's bill, once corrected.
#[derive(Debug, Clone, Default)]
pub(crate) struct DomainLedger {
    known: Option<Watts>,
    measured: Sum,
    /// Time measured, and the part of it that can have been at the static power.
    time: Sum,
    static_time: Sum,
    /// Time at the static power whose energy the counter has not shown yet.
    owed: Seconds,
    lines: FxHashMap<User, Line>,
    /// Of those who cannot be told, and of windows in which nobody used the domain.
    nobody: Line,
    idle: Sum,
}

impl DomainLedger {
    /// A domain whose static power may be `known` beforehand. It can be more than what some window
    /// measures; such a window counts as static for only as long as its energy would last, so
    /// that idle energy never exceeds what was measured. A tenth of a second of what is missing is
    /// made up for by the windows that follow, because counters are read between two refreshes.
    pub(crate) fn new(known: Option<Watts>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Splits a window with the static power as it is known now, adds the postings up, and hands each
    /// of them to `post`.
    pub(crate) fn enter(
        &mut self,
        window: Window,
        usage: Usage<'_>,
        static_power: Option<Watts>,
        idle_to: IdleTo,
        mut post: impl FnMut(Posting),
    ) {
        let floor = self.floor(window, static_power.unwrap_or_default());
        // What is still learned is applied to the whole run in the end: no window is cut short.
        let static_time = if self.known.is_some() { floor.time } else { window.time };
        self.measured.add(window.energy.0);
        self.time.add(window.time.0);
        self.static_time.add(static_time.0);
        for (user, part, of_idle) in usage.parts() {
            let line = self.lines.entry(user).or_default();
            line.joules.add((window.energy * part).0);
            line.static_seconds.add((static_time * of_idle).0);
        }
        let untold = if usage.total() > 0.0 { usage.untold_part() } else { 1.0 };
        if untold > 0.0 {
            self.nobody.joules.add((window.energy * untold).0);
            self.nobody.static_seconds.add((static_time * untold).0);
        }
        for user in usage.holders {
            let held = static_time.0 / usage.holders.len() as f64;
            self.lines.entry(*user).or_default().held_seconds.add(held);
        }
        attribute(window, usage, floor, idle_to, |posting| {
            self.add(posting);
            post(posting);
        });
    }

    fn floor(&mut self, Window { energy, time }: Window, power: Watts) -> Static {
        let due = time + self.owed;
        if power * due <= energy {
            self.owed = Seconds(0.0);
            return Static { power, time: due };
        }
        let covered = Seconds(energy.0 / power.0);
        self.owed = Seconds((due - covered).0.min(LATENESS.0));
        Static { power, time: covered }
    }

    fn add(&mut self, Posting { account, dynamic, idle }: Posting) {
        let line = match account {
            Account::Workload(id) => self.lines.entry(User::Workload(id)).or_default(),
            Account::Other => self.lines.entry(User::Other).or_default(),
            Account::Unattributed => &mut self.nobody,
            Account::Idle => return self.idle.add(idle.0),
        };
        line.dynamic.add(dynamic.0);
        line.idle.add(idle.0);
    }

    /// Posts what is missing to what everybody is to have by the best static power known now. `None`:
    /// it could not be told, nothing is set apart and everything goes by use.
    pub(crate) fn correct(
        &mut self,
        static_power: Option<Watts>,
        idle_to: IdleTo,
        mut post: impl FnMut(Posting),
    ) {
        const NOTHING: Joules = Joules(0.0);
        let power = static_power.unwrap_or_default();
        let measured = self.measured.get();
        let unattributed = self.nobody.due(power);
        let dynamic: f64 = self.lines.values().map(|line| line.due(power)).sum();
        let all_idle = (measured - dynamic - unattributed).max(0.0);
        let by_holding = all_idle / self.static_time.get();
        let mut left = all_idle;
        for (user, line) in &mut self.lines {
            let due = line.due(power);
            let idle = match idle_to {
                IdleTo::Nobody => 0.0,
                IdleTo::Users => (line.joules.get() - due).max(0.0),
                IdleTo::Holders if by_holding.is_finite() => line.held_seconds.get() * by_holding,
                IdleTo::Holders => 0.0,
            };
            left -= idle;
            let (dynamic, idle) = (line.dynamic.make(due), line.idle.make(idle));
            post(Posting { account: (*user).into(), dynamic, idle });
        }
        let dynamic = self.nobody.dynamic.make(unattributed);
        post(Posting { account: Account::Unattributed, dynamic, idle: NOTHING });
        let idle = self.idle.make(if left > measured * ROUNDING { left } else { 0.0 });
        post(Posting { account: Account::Idle, dynamic: NOTHING, idle });
    }

    /// Posts what is missing to what everybody is to have by a model of the whole run. What is set apart
    /// as idle is what is left; if that is shared by use, by the time of each.
    pub(crate) fn correct_to(&mut self, due: &Due, idle_to: IdleTo, mut post: impl FnMut(Posting)) {
        const NOTHING: Joules = Joules(0.0);
        let measured = self.measured.get();
        let positive = |joules: f64| if joules > 0.0 { joules } else { 0.0 };
        let users: f64 = due.users.iter().map(|(_, figure)| positive(figure.value)).sum();
        let nobody = positive(due.nobody.0);
        let sum = users + nobody + positive(due.idle.0);
        // Nobody has less than nothing: what that takes, all others give back.
        let clipped = due.idle.0 < 0.0 || due.users.iter().any(|(_, figure)| figure.value < 0.0);
        let over = (sum / measured - 1.0).abs() > 1e-9;
        let scale = if sum > 0.0 && (clipped || over) { measured / sum } else { 1.0 };
        let all_idle = positive(measured - (users + nobody) * scale);
        let mut left = all_idle;
        let by_time = all_idle / self.static_time.get();
        let mut due_to: FxHashMap<User, Figure> = due.users.iter().copied().collect();
        for (user, figure) in &due.users {
            if figure.value > 0.0 {
                self.lines.entry(*user).or_default();
            }
        }
        for (user, line) in &mut self.lines {
            let figure = due_to.remove(user).unwrap_or_default();
            let idle = match idle_to {
                IdleTo::Users if by_time.is_finite() => line.static_seconds.get() * by_time,
                _ => 0.0,
            };
            left -= idle;
            let (dynamic, idle) =
                (line.dynamic.make(positive(figure.value) * scale), line.idle.make(idle));
            line.stderr = Some(figure.stderr.min(measured));
            post(Posting { account: (*user).into(), dynamic, idle });
        }
        let dynamic = self.nobody.dynamic.make(nobody * scale);
        post(Posting { account: Account::Unattributed, dynamic, idle: NOTHING });
        let idle = self.idle.make(if left > measured * ROUNDING { left } else { 0.0 });
        post(Posting { account: Account::Idle, dynamic: NOTHING, idle });
    }

    /// Dynamic energy is off by this part of itself.
    pub(crate) fn set_relative_stderr(&mut self, part: f64) {
        for line in self.lines.values_mut() {
            line.stderr = Some(part * line.dynamic.get());
        }
    }

    /// True until the first window.
    pub(crate) fn is_empty(&self) -> bool {
        self.time.get() == 0.0 && self.measured.get() == 0.0
    }

    /// A second or more was measured and not one count came: that is no machine that draws nothing,
    /// but a counter that is not connected to anything.
    pub(crate) fn is_dead(&self) -> bool {
        self.measured.get() == 0.0 && self.time.get() >= 1.0
    }

    /// It measured something: its sums are figures.
    pub(crate) fn has_figures(&self) -> bool {
        !self.is_empty() && !self.is_dead()
    }

    /// Part of the measured time in which less was drawn than the static power known beforehand.
    pub(crate) fn overdrawn(&self) -> f64 {
        let time = self.time.get();
        if time > 0.0 { 1.0 - self.static_time.get() / time } else { 0.0 }
    }

    pub(crate) fn measured(&self) -> Joules {
        Joules(self.measured.get())
    }

    /// Idle energy that no user is billed for.
    pub(crate) fn idle(&self) -> Joules {
        Joules(self.idle.get())
    }

    /// What running added while nobody was known to run.
    pub(crate) fn unattributed(&self) -> Joules {
        Joules(self.nobody.dynamic.get())
    }

    /// `None`: it never used the domain.
    pub(crate) fn bill(&self, user: User) -> Option<Bill> {
        self.lines.get(&user).map(Line::bill)
    }

    /// One user's sums become another's.
    pub(crate) fn fold(&mut self, user: User, into: User) {
        if let Some(line) = self.lines.remove(&user) {
            self.lines.entry(into).or_default().take(&line);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::WorkloadId;

    fn user(index: usize) -> User {
        User::Workload(WorkloadId(index as u64))
    }

    /// What the tests want to see of a corrected ledger.
    #[derive(Debug)]
    struct Settlement {
        measured: Joules,
        idle: Joules,
        unattributed: Joules,
        bills: Vec<Bill>,
    }

    const USERS: usize = 9;

    impl DomainLedger {
        fn window(&mut self, window: Window, users: &[(User, f64)], untold: f64, holders: &[User]) {
            let usage = Usage { users, untold, holders, ..Usage::default() };
            self.enter(window, usage, self.known, IdleTo::Nobody, |_| {});
        }

        fn settle(&mut self, static_power: Option<Watts>, idle_to: IdleTo) -> Settlement {
            self.correct(static_power, idle_to, |_| {});
            let bills = (0..USERS).map(|index| self.bill(user(index)).unwrap_or_default());
            Settlement {
                measured: self.measured(),
                idle: self.idle(),
                unattributed: self.unattributed(),
                bills: bills.collect(),
            }
        }
    }

    fn window(joules: f64, seconds: f64) -> Window {
        Window { energy: Joules(joules), time: Seconds(seconds) }
    }

    fn shares(weights: &[f64]) -> Vec<(User, f64)> {
        weights.iter().enumerate().map(|(index, &weight)| (user(index), weight)).collect()
    }

    #[test]
    fn a_counter_that_never_moves_is_dead() {
        let mut ledger = DomainLedger::new(None);
        ledger.window(window(0.0, 0.9), &[], 0.0, &[]);
        assert!(!ledger.is_dead());
        ledger.window(window(0.0, 0.2), &[], 0.0, &[]);
        assert!(ledger.is_dead());
        ledger.window(window(1e-6, 0.2), &[], 0.0, &[]);
        assert!(!ledger.is_dead());
    }

    #[test]
    fn a_late_counter_costs_no_idle_energy() {
        let mut ledger = DomainLedger::new(Some(Watts(20.0)));
        let user = shares(&[1.0]);
        // 25 W all the time, but every other window is read before the counter has moved.
        for _ in 0..50 {
            ledger.window(window(0.0, 0.01), &user, 0.0, &[]);
            ledger.window(window(0.5, 0.01), &user, 0.0, &[]);
        }
        let settled = ledger.settle(Some(Watts(20.0)), IdleTo::Nobody);
        assert!((settled.idle.0 - 20.0).abs() < 1e-9, "{settled:?}");
        // What is missing for longer than a counter can be late was never drawn.
        let mut ledger = DomainLedger::new(Some(Watts(20.0)));
        ledger.window(window(10.0, 1.0), &user, 0.0, &[]);
        ledger.window(window(100.0, 1.0), &user, 0.0, &[]);
        let settled = ledger.settle(Some(Watts(20.0)), IdleTo::Nobody);
        assert!((settled.idle.0 - (10.0 + 22.0)).abs() < 1e-9, "{settled:?}");
    }

    #[test]
    fn who_cannot_be_told_is_billed_to_nobody() {
        let mut ledger = DomainLedger::new(None);
        ledger.window(window(100.0, 2.0), &[(user(1), 3.0)], 1.0, &[]);
        let settled = ledger.settle(Some(Watts(10.0)), IdleTo::Nobody);
        assert_eq!(dynamic(&settled)[..2], [0.0, 60.0]);
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
        let mut ledger = DomainLedger::default();
        ledger.window(window(60.0, 1.0), &shares(&[1.0, 0.0, 3.0]), 0.0, &[]);
        let settled = ledger.settle(Some(Watts(20.0)), IdleTo::Nobody);
        assert_eq!(dynamic(&settled)[..3], [10.0, 0.0, 30.0]);
        assert_eq!((settled.idle.0, settled.unattributed.0), (20.0, 0.0));

        let shared = ledger.settle(Some(Watts(20.0)), IdleTo::Users);
        assert_eq!(dynamic(&shared)[..3], [10.0, 0.0, 30.0]);
        assert_eq!(shared.bills[2].idle, Joules(15.0));
        assert_eq!(shared.idle, Joules(0.0));

        // Not known: nothing is set apart.
        let unknown = ledger.settle(None, IdleTo::Nobody);
        assert_eq!(unknown.idle, Joules(0.0));
        assert_eq!(unknown.bills[2].dynamic, Joules(45.0));
    }

    #[test]
    fn energy_without_a_user_is_idle_or_unattributed() {
        let mut ledger = DomainLedger::default();
        ledger.window(window(50.0, 1.0), &[], 0.0, &[]);
        let settled = ledger.settle(Some(Watts(20.0)), IdleTo::Users);
        assert_eq!((settled.idle.0, settled.unattributed.0), (20.0, 30.0));
    }

    #[test]
    fn a_static_power_above_what_was_measured_leaves_nothing_below_zero() {
        let mut ledger = DomainLedger::new(Some(Watts(40.0)));
        ledger.window(window(10.0, 1.0), &shares(&[1.0]), 0.0, &[]);
        ledger.window(window(60.0, 1.0), &shares(&[1.0]), 0.0, &[]);
        let settled = ledger.settle(Some(Watts(40.0)), IdleTo::Nobody);
        // The second window makes up for a tenth of a second of the first.
        assert!((settled.idle.0 - 54.0).abs() < 1e-9, "{settled:?}");
        assert!((settled.bills[0].dynamic.0 - 16.0).abs() < 1e-9, "{settled:?}");
        assert!((ledger.overdrawn() - 0.325).abs() < 1e-12);
    }

    #[test]
    fn idle_energy_goes_to_holders_in_equal_parts() {
        let mut ledger = DomainLedger::default();
        ledger.window(window(100.0, 1.0), &shares(&[1.0]), 0.0, &[user(0), user(3)]);
        ledger.window(window(60.0, 1.0), &[], 0.0, &[]);
        let settled = ledger.settle(Some(Watts(60.0)), IdleTo::Holders);
        assert_eq!(
            settled.bills[0],
            Bill { dynamic: Joules(40.0), idle: Joules(30.0), stderr: None }
        );
        assert_eq!(
            settled.bills[3],
            Bill { dynamic: Joules(0.0), idle: Joules(30.0), stderr: None }
        );
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
        let mut ledger = DomainLedger::default();
        let users = shares(&[0.1, 0.7, 1e-9, 3.3]);
        let mut seconds = 0.1;
        for _ in 0..1_000_000 {
            seconds = if seconds > 0.3 { 0.1 } else { seconds * 1.000_1 };
            ledger.window(window(seconds * 31.7, seconds), &users, 0.0, &[]);
        }
        for idle_to in [IdleTo::Nobody, IdleTo::Users] {
            let settled = ledger.settle(None, idle_to);
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

    fn ledger(entries: &[Entry], known: Option<Watts>) -> DomainLedger {
        let mut ledger = DomainLedger::new(known);
        for Entry { window, weights, holders } in entries {
            let holders: Vec<User> = holders.iter().map(|index| user(*index)).collect();
            ledger.window(*window, &shares(weights), 0.0, &holders);
        }
        ledger
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
            check(&ledger(&entries, watts.filter(|_| known)).settle(watts, idle_to))?;
        }

        #[test]
        fn a_given_static_power_takes_no_more_than_there_is(
            entries in entries(), watts in 0.0..200.0,
        ) {
            let settled =
                ledger(&entries, Some(Watts(watts))).settle(Some(Watts(watts)), IdleTo::Nobody);
            let most = |window: &Window| window.energy.0.min(watts * window.time.0);
            let least: f64 = entries.iter().map(|entry| most(&entry.window)).sum();
            let time: f64 = entries.iter().map(|entry| entry.window.time.0).sum();
            let rounding = 1e-9 * settled.measured.0;
            prop_assert!(settled.idle.0 >= least - rounding);
            prop_assert!(settled.idle.0 <= settled.measured.0.min(watts * time) + rounding);
        }

        #[test]
        fn the_order_of_workloads_and_windows_does_not_matter(
            entries in entries(), watts in 0.0..200.0, idle_to in policy(),
        ) {
            let workloads = 6;
            let reversed: Vec<Entry> = entries.iter().rev().cloned().map(|mut entry| {
                entry.weights.resize(workloads, 0.0);
                entry.weights.reverse();
                entry.holders.iter_mut().for_each(|workload| *workload = (workloads + 7 - *workload) % (workloads + 2));
                entry
            }).collect();
            let here = ledger(&entries, None).settle(Some(Watts(watts)), idle_to);
            let there = ledger(&reversed, None).settle(Some(Watts(watts)), idle_to);
            let tolerance = 1e-9 * here.measured.0;
            prop_assert!((here.idle.0 - there.idle.0).abs() <= tolerance);
            for workload in 0..workloads {
                let bill = |settled: &Settlement, workload: usize| {
                    settled.bills.get(workload).copied().unwrap_or_default().dynamic.0
                };
                prop_assert!((bill(&here, workload) - bill(&there, workloads - 1 - workload)).abs() <= tolerance);
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
                ledger(entries, known.then_some(watts)).settle(Some(watts), idle_to)
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
