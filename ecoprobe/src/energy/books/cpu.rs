//! The CPU side: from cumulative CPU time and energy counters to windows.

use std::sync::Arc;

use super::roster::Roster;
use super::window::Recent;
use super::{Known, given_static_power, recorded_estimate};
use crate::base::{Component, Joules, Seconds, User, Watts};
use crate::energy::attribute::{IdleTo, Window};
use crate::energy::counter::{Counter, Outcome, Reason};
use crate::energy::estimate::Estimate;
use crate::energy::ledger::DomainLedger;
use crate::energy::model::{Bank, Method, Observation, StaticPower, Summary, Traits};
use crate::energy::usage::{Gathered, Ran, Running, Usage};
use crate::event::sources::{Host, StaticPowerKind};
use crate::event::{CpuTimes, Domain, Header, PAIRED, PackageTime, Reading, Sample};

/// What each package's users did in the newest sample.
#[derive(Debug)]
pub(super) struct PackageUsage {
    /// By package; the last one stands for CPUs whose package is not known.
    users: Vec<Vec<Ran>>,
    /// Whether paired time is measured there.
    paired: Vec<bool>,
    has_paired: Vec<bool>,
    /// The highest CPU time of those who are no workload, likewise, and of it the paired part, nanoseconds.
    other_ns: Vec<[u64; 2]>,
    /// How long the machine was awake, and what the newest sample told of that.
    awake: Option<Seconds>,
    awake_ns: Option<u64>,
}

impl PackageUsage {
    pub(super) fn new(packages: usize) -> Self {
        Self {
            users: vec![Vec::new(); packages + 1],
            paired: vec![false; packages + 1],
            has_paired: vec![false; packages + 1],
            other_ns: vec![[0; 2]; packages + 1],
            awake: None,
            awake_ns: None,
        }
    }

    /// Finds what everybody gained since the sample before; the `first` one is where counting starts.
    pub(super) fn advance(
        &mut self,
        sample: &Sample,
        roster: &mut Roster,
        first: bool,
        mut recent: Option<&mut Recent>,
    ) {
        let CpuTimes { packages, unplaced: elsewhere } = &sample.cpu;
        let unplaced = self.users.len() - 1;
        let packages = packages.iter().take(unplaced).enumerate();
        for users in &mut self.users {
            users.clear();
        }
        for (place, time) in packages.chain([(unplaced, elsewhere)]) {
            let PackageTime { other, workloads, features, .. } = time;
            let paired = features.get(&PAIRED);
            // A difference needs both ends.
            let had_paired = std::mem::replace(&mut self.has_paired[place], paired.is_some());
            self.paired[place] = had_paired && paired.is_some();
            let users = &mut self.users[place];
            let highest = &mut self.other_ns[place];
            let others = [*other, paired.map_or(highest[1], |paired| paired.other)];
            let [gained, gained_paired] = [0, 1].map(|index| {
                let before = highest[index];
                highest[index] = before.max(others[index]);
                if first { 0 } else { others[index].saturating_sub(before) }
            });
            if gained > 0 {
                users.push(Ran::new(User::Other, gained, gained_paired));
            }
            let mut paired = paired.map_or(&[][..], |paired| &paired.workloads).iter().peekable();
            for &(id, ns) in workloads {
                while paired.next_if(|(other, _)| *other < id).is_some() {}
                let paired = paired.next_if(|(other, _)| *other == id);
                let paired = paired.map_or(0, |(_, ns)| roster.advance_paired(id, place, *ns));
                let Some(gained) = roster.advance(id, place, ns, first) else { continue };
                if gained > 0 {
                    users.push(Ran::new(User::Workload(id), gained, paired));
                    if let Some(recent) = &mut recent {
                        recent.ran(id, place, gained);
                    }
                }
            }
        }
        let before = std::mem::replace(&mut self.awake_ns, sample.awake_ns);
        let gained = sample.awake_ns.zip(before).map(|(now, before)| now.saturating_sub(before));
        self.awake = gained.map(Seconds::from_ns);
    }

    pub(super) fn of(&self, package: usize) -> Running<'_> {
        let known = package < self.users.len() - 1;
        let users = if known { &self.users[package][..] } else { &[] };
        Running { users, paired: known && self.paired[package], awake: self.awake }
    }
}

impl Ran {
    fn new(user: User, ns: u64, paired_ns: u64) -> Self {
        Self { user, ns: ns as f64, paired_ns: paired_ns.min(ns) as f64 }
    }
}

/// Where the energy of a domain comes from.
#[derive(Debug)]
enum Source {
    Counter(Counter),
    /// Worked out from the package's CPU time.
    Estimate(Estimated),
}

/// An estimate as if it were a counter of microjoules.
#[derive(Debug)]
struct Estimated {
    estimate: Arc<Estimate>,
    /// CLOCK_MONOTONIC of the newest sample, nanoseconds.
    newest_ns: Option<u64>,
    /// What the windows so far left of a microjoule, 10⁻¹⁸ J: the next one pays it, so that nothing
    /// is lost however short they are.
    left: u128,
}

impl Estimated {
    fn new(estimate: &Arc<Estimate>) -> Self {
        Self { estimate: Arc::clone(estimate), newest_ns: None, left: 0 }
    }

    /// A window that ends `at_ns`, in which the package's CPUs ran for `busy_ns` together.
    fn advance(&mut self, package: usize, at_ns: u64, busy_ns: u64) -> Outcome {
        let Some(from_ns) = self.newest_ns.replace(at_ns) else { return Outcome::First };
        let time_ns = at_ns.saturating_sub(from_ns);
        let Some(drawn) = self.estimate.attojoules(package, busy_ns, time_ns) else {
            return Outcome::Missing(Reason::Unread);
        };
        const MICROJOULE: u128 = 1_000_000_000_000;
        let due = drawn.saturating_add(self.left);
        self.left = due % MICROJOULE;
        let joules = Joules((due / MICROJOULE) as f64 * 1e-6);
        Outcome::Energy { from_ns, to_ns: at_ns, joules }
    }
}

/// Who ran since the counter's last good reading, where that is not the sample before.
#[derive(Debug, Default)]
struct Awaiting {
    /// Up to the suspect reading and after it: which of the two the next energy begins with is not
    /// known before it comes.
    before: Gathered,
    after: Gathered,
    /// When the suspect was read.
    suspect_ns: Option<u64>,
}

impl Awaiting {
    fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty() && self.suspect_ns.is_none()
    }

    fn clear(&mut self) {
        self.before.clear();
        self.after.clear();
        self.suspect_ns = None;
    }

    /// The counter says nothing of the newest sample, for now.
    fn add(&mut self, counter: &Counter, reading: Option<Reading>, running: Running<'_>) {
        let read_ns = reading.map(|reading| reading.mono_ns);
        let (base_ns, suspect_ns) = counter.starts();
        if suspect_ns.is_some() && suspect_ns == read_ns {
            self.before.take(&mut self.after);
            self.before.add(running);
            self.suspect_ns = suspect_ns;
        } else if base_ns.is_none() || base_ns == read_ns {
            // Energy from before this reading will not come any more.
            self.clear();
        } else {
            self.after.add(running);
        }
    }

    /// Who ran since an energy began, up to the newest sample, whose users are `newest`.
    fn since(mut self, from_ns: u64, newest: Running<'_>) -> Gathered {
        if self.suspect_ns.is_none_or(|suspect_ns| from_ns < suspect_ns) {
            self.before.take(&mut self.after);
            self.after = self.before;
        }
        self.after.add(newest);
        self.after
    }
}

/// What is known of how a domain's power follows from who runs.
#[derive(Debug)]
enum Model {
    /// An estimate's: static power, and the rest by time.
    Known(Watts),
    Learned(Box<Bank>),
}

/// One domain of the CPU side: its source, its model and its ledger.
#[derive(Debug)]
pub(super) struct CpuDomain {
    domain: Domain,
    source: Source,
    model: Model,
    pub(super) ledger: DomainLedger,
    awaiting: Awaiting,
    /// Of the newest window: CPU time, and what it counts.
    times: Vec<(User, f64)>,
    weights: Vec<(User, f64)>,
    /// The kind of static power, where it was known beforehand.
    beforehand: Option<StaticPowerKind>,
}

impl CpuDomain {
    pub(super) fn new(domain: &Domain, header: &Header, estimate: Option<&Arc<Estimate>>) -> Self {
        let estimate = estimate.filter(|_| domain.component == Component::Cpu);
        let static_power = estimate.and_then(|estimate| estimate.static_watts(domain.package));
        let static_power = static_power.map(|watts| (watts, StaticPowerKind::Estimate));
        let known = given_static_power(&domain.name, header).or(static_power);
        let (watts, beforehand) = known.or_else(|| recorded_estimate(&domain.name, header)).unzip();
        let source = match estimate {
            None => Source::Counter(Counter::default()),
            Some(estimate) => Source::Estimate(Estimated::new(estimate)),
        };
        let cpus = header.cpu.as_ref().and_then(|cpu| cpu.online_cpus.get(domain.package));
        let cpus = cpus.map(|cpus| *cpus as f64).filter(|cpus| *cpus >= 1.0).or_else(|| {
            let Host { cpus, .. } = header.host;
            Some(cpus as f64 / header.packages.len().max(1) as f64)
        });
        let is_estimate = matches!(beforehand, Some(StaticPowerKind::Estimate));
        let model = match watts {
            Some(watts) if is_estimate => Model::Known(watts),
            watts => {
                let cpus = cpus.filter(|cpus| *cpus >= 1.0);
                let spread = header.settings.price_spread;
                let traits = Traits::of(domain.component, cpus, spread, domain.joules_per_count);
                Model::Learned(Box::new(Bank::new(watts, traits)))
            }
        };
        Self {
            domain: domain.clone(),
            source,
            model,
            times: Vec::new(),
            weights: Vec::new(),
            ledger: DomainLedger::new(watts),
            awaiting: Awaiting::default(),
            beforehand,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.domain.name
    }

    pub(super) fn component(&self) -> Component {
        self.domain.component
    }

    pub(super) fn package(&self) -> usize {
        self.domain.package
    }

    pub(super) fn static_power(&self) -> StaticPower {
        match &self.model {
            Model::Known(watts) => StaticPower::Given(*watts),
            Model::Learned(bank) => bank.static_power(),
        }
    }

    /// How a user's energy was told from that of others; `None` if it did not run.
    pub(super) fn method(&self, user: User) -> Option<Method> {
        match &self.model {
            Model::Known(_) => self.ledger.bill(user).map(|_| Method::Estimate),
            Model::Learned(bank) => bank.method(user),
        }
    }

    /// The model's terms; `None` where there is none, or it has not learned anything.
    pub(super) fn summary(&self) -> Option<Summary> {
        match &self.model {
            Model::Known(_) => None,
            Model::Learned(bank) => bank.summary().filter(|_| self.ledger.has_figures()),
        }
    }

    pub(super) fn known(&self) -> Known<'_> {
        let power = self.static_power();
        Known { domain: &self.domain.name, power, beforehand: self.beforehand }
    }

    /// Enters what was drawn since the last good reading, shared by who ran since then. `at_ns` is the
    /// sample's time.
    pub(super) fn advance(
        &mut self,
        at_ns: u64,
        reading: Option<Reading>,
        running: Running<'_>,
        roster: &Roster,
        idle_to: IdleTo,
        recent: Option<&mut Recent>,
    ) {
        let outcome = match &mut self.source {
            Source::Counter(counter) => counter.advance(&self.domain, at_ns, reading),
            Source::Estimate(estimated) => {
                // Exact: a window's nanoseconds are far below 2^53, or the recording makes them up.
                let busy_ns = running.users.iter().map(|ran| ran.ns as u64);
                let busy_ns = busy_ns.fold(0, u64::saturating_add);
                estimated.advance(self.domain.package, at_ns, busy_ns)
            }
        };
        match outcome {
            Outcome::First => self.awaiting.clear(),
            Outcome::Missing(_) => {
                if let Source::Counter(counter) = &self.source {
                    self.awaiting.add(counter, reading, running);
                }
            }
            Outcome::Energy { from_ns, to_ns, joules } => {
                let time = Seconds::from_ns(to_ns.saturating_sub(from_ns));
                let window = Window { energy: joules, time };
                if self.awaiting.is_empty() {
                    return self.enter(window, running, idle_to, recent);
                }
                let mut gathered = std::mem::take(&mut self.awaiting).since(from_ns, running);
                self.enter(window, gathered.running(|user| roster.row(user)), idle_to, recent);
            }
        }
    }

    /// There will be no more readings: what still waited for another one is believed now.
    pub(super) fn finish(&mut self, roster: &Roster, idle_to: IdleTo, recent: Option<&mut Recent>) {
        let Source::Counter(counter) = &mut self.source else { return };
        let last = counter.finish(&self.domain);
        if let Some(Outcome::Energy { from_ns, to_ns, joules }) = last {
            let time = Seconds::from_ns(to_ns.saturating_sub(from_ns));
            // It ends with the suspect.
            let mut gathered = std::mem::take(&mut self.awaiting).before;
            let running = gathered.running(|user| roster.row(user));
            self.enter(Window { energy: joules, time }, running, idle_to, recent);
        }
        if let Model::Learned(bank) = &mut self.model {
            bank.finish();
        }
    }

    fn enter(
        &mut self,
        window: Window,
        running: Running<'_>,
        idle_to: IdleTo,
        mut recent: Option<&mut Recent>,
    ) {
        self.times.clear();
        self.times.extend(running.users.iter().map(|ran| (ran.user, ran.ns)));
        let power = match &mut self.model {
            Model::Known(watts) => {
                self.weights.clone_from(&self.times);
                *watts
            }
            Model::Learned(bank) => {
                let seen = Observation { window, running };
                bank.enter(&seen, &mut self.weights)
            }
        };
        let usage = Usage { users: &self.weights, idle: Some(&self.times), ..Usage::default() };
        let component = self.domain.component;
        self.ledger.enter(window, usage, Some(power), idle_to, |posting| {
            if let Some(recent) = &mut recent {
                recent.post(component, posting);
            }
        });
        if let Some(recent) = recent.filter(|_| !self.ledger.is_dead()) {
            recent.measured(component, window.energy);
            recent.covered(component, self.domain.package);
        }
    }

    pub(super) fn correct(&mut self, idle_to: IdleTo) {
        match &mut self.model {
            Model::Known(watts) => {
                self.ledger.correct(Some(*watts), idle_to, |_| {});
                if let Source::Estimate(estimated) = &self.source {
                    self.ledger.set_relative_stderr(estimated.estimate.relative_stderr());
                }
            }
            Model::Learned(bank) => self.ledger.correct_to(&bank.settle_up(), idle_to, |_| {}),
        }
    }

    pub(super) fn fold(&mut self, user: User, into: User) {
        self.ledger.fold(user, into);
        if let Model::Learned(bank) = &mut self.model {
            bank.fold(user, into);
        }
    }

    /// A sentence for each reason why energy is missing.
    pub(super) fn warnings(&self) -> Vec<String> {
        match &self.source {
            Source::Counter(counter) => counter.sentences(&self.domain),
            Source::Estimate(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::sources::CpuFacts;

    /// Joules of windows of (nanoseconds, CPU time).
    fn joules(windows: &[(u64, u64)]) -> Vec<f64> {
        let cpu = CpuFacts { online_cpus: vec![2], ..CpuFacts::default() };
        let mut estimated = Estimated::new(&Arc::new(Estimate::of(&cpu).unwrap()));
        let mut at_ns = 5;
        assert_eq!(estimated.advance(0, at_ns, 7), Outcome::First);
        let advance = |&(time_ns, busy_ns): &(u64, u64)| {
            at_ns += time_ns;
            match estimated.advance(0, at_ns, busy_ns) {
                Outcome::Energy { from_ns, to_ns, joules } => {
                    assert_eq!((from_ns, to_ns), (at_ns - time_ns, at_ns));
                    joules.0
                }
                other => panic!("{other:?}"),
            }
        };
        windows.iter().map(advance).collect()
    }

    #[test]
    fn short_windows_lose_nothing() {
        // 0.9764 W idle and 4.0348 W busy, for each of 2 CPUs; 0.432 of the way at half of the load.
        let watts: f64 = 2.0 * (0.9764 + 0.432 * (4.0348 - 0.9764));
        let short = joules(&[(100, 100); 10_000]);
        assert!((short.iter().sum::<f64>() - watts * 1e-3).abs() < 1e-6);
        assert_eq!(joules(&[(1_000_000, 1_000_000)]), [(watts * 1e3).floor() * 1e-6]);
        assert_eq!(short, joules(&[(100, 100); 10_000]));
    }

    #[test]
    fn each_window_has_its_own_load() {
        let second = 1_000_000_000;
        let apart = joules(&[(second, 2 * second), (second, 0)]);
        assert_eq!(apart, [8_069_600.0 * 1e-6, 1_952_800.0 * 1e-6]);
        // Full and idle in turns, looked at together, are half of the load throughout.
        let together: f64 = joules(&[(2 * second, 2 * second)]).iter().sum();
        assert!((together - 4.0 * (0.9764 + 0.432 * 3.0584)).abs() < 1e-6);
        assert!(together < apart.iter().sum());
        assert_eq!(joules(&[(0, second), (second, 0)]), [0.0, apart[1]]);
    }

    #[test]
    fn a_package_that_is_not_there_is_missing() {
        let cpu = CpuFacts { online_cpus: vec![2], ..CpuFacts::default() };
        let mut estimated = Estimated::new(&Arc::new(Estimate::of(&cpu).unwrap()));
        assert_eq!(estimated.advance(1, 0, 0), Outcome::First);
        assert_eq!(estimated.advance(1, 10, 5), Outcome::Missing(Reason::Unread));
    }
}
