//! The CPU side: from cumulative CPU time and energy counters to windows.

use std::sync::Arc;

use super::roster::Roster;
use super::window::Recent;
use super::{Known, given_static_power, recorded_estimate};
use crate::base::{Component, Joules, Seconds, User};
use crate::energy::attribute::{IdleTo, Window};
use crate::energy::counter::{Counter, Outcome, Reason};
use crate::energy::estimate::Estimate;
use crate::energy::ledger::DomainLedger;
use crate::energy::model::{Grain, PowerModel};
use crate::energy::usage::{Gathered, Usage};
use crate::event::sources::StaticPowerKind;
use crate::event::{CpuTimes, Domain, Header, PackageTime, Reading};

/// CPU time that each package's users gained in the newest sample.
#[derive(Debug)]
pub(super) struct PackageUsage {
    /// By package; the last one stands for CPUs whose package is not known.
    users: Vec<Vec<(User, f64)>>,
    /// The highest CPU time of those who are no workload, likewise, nanoseconds.
    other_ns: Vec<u64>,
}

impl PackageUsage {
    pub(super) fn new(packages: usize) -> Self {
        Self { users: vec![Vec::new(); packages + 1], other_ns: vec![0; packages + 1] }
    }

    /// Finds what everybody gained since the sample before; the `first` one is where counting starts.
    pub(super) fn advance(
        &mut self,
        cpu: &CpuTimes,
        roster: &mut Roster,
        first: bool,
        mut recent: Option<&mut Recent>,
    ) {
        let unplaced = self.users.len() - 1;
        let packages = cpu.packages.iter().take(unplaced).enumerate();
        for users in &mut self.users {
            users.clear();
        }
        for (place, time) in packages.chain([(unplaced, &cpu.unplaced)]) {
            let PackageTime { other, workloads, .. } = time;
            let users = &mut self.users[place];
            let highest = &mut self.other_ns[place];
            let gained = if first { 0 } else { other.saturating_sub(*highest) };
            *highest = (*highest).max(*other);
            if gained > 0 {
                users.push((User::Other, gained as f64));
            }
            for &(id, ns) in workloads {
                let Some(gained) = roster.advance(id, place, ns, first) else { continue };
                if gained > 0 {
                    users.push((User::Workload(id), gained as f64));
                    if let Some(recent) = &mut recent {
                        recent.ran(id, place, gained);
                    }
                }
            }
        }
    }

    /// Nanoseconds that each user ran on a package; a user stands there once.
    pub(super) fn of(&self, package: usize) -> &[(User, f64)] {
        let known = package < self.users.len() - 1;
        if known { &self.users[package] } else { &[] }
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
    fn add(&mut self, counter: &Counter, reading: Option<Reading>, users: &[(User, f64)]) {
        let read_ns = reading.map(|reading| reading.mono_ns);
        let (base_ns, suspect_ns) = counter.starts();
        if suspect_ns.is_some() && suspect_ns == read_ns {
            self.before.take(&mut self.after);
            self.before.add(users);
            self.suspect_ns = suspect_ns;
        } else if base_ns.is_none() || base_ns == read_ns {
            // Energy from before this reading will not come any more.
            self.clear();
        } else {
            self.after.add(users);
        }
    }

    /// Who ran since an energy began, up to the newest sample, whose users are `newest`.
    fn since(mut self, from_ns: u64, newest: &[(User, f64)]) -> Gathered {
        if self.suspect_ns.is_none_or(|suspect_ns| from_ns < suspect_ns) {
            self.before.take(&mut self.after);
            self.after = self.before;
        }
        self.after.add(newest);
        self.after
    }
}

/// One domain of the CPU side: its source, its model and its ledger.
#[derive(Debug)]
pub(super) struct CpuDomain {
    domain: Domain,
    source: Source,
    pub(super) model: PowerModel,
    pub(super) ledger: DomainLedger,
    awaiting: Awaiting,
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
        Self {
            domain: domain.clone(),
            source,
            model: PowerModel::new(watts, Grain::RAPL),
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

    pub(super) fn known(&self) -> Known<'_> {
        let power = self.model.static_power();
        Known { domain: &self.domain.name, power, beforehand: self.beforehand }
    }

    /// Enters what was drawn since the last good reading, shared by who ran since then. `at_ns` is the
    /// sample's time.
    pub(super) fn advance(
        &mut self,
        at_ns: u64,
        reading: Option<Reading>,
        users: &[(User, f64)],
        roster: &Roster,
        idle_to: IdleTo,
        recent: Option<&mut Recent>,
    ) {
        let outcome = match &mut self.source {
            Source::Counter(counter) => counter.advance(&self.domain, at_ns, reading),
            Source::Estimate(estimated) => {
                // Exact: a window's nanoseconds are far below 2^53, or the recording makes them up.
                let busy_ns = users.iter().map(|(_, ns)| *ns as u64);
                let busy_ns = busy_ns.fold(0, u64::saturating_add);
                estimated.advance(self.domain.package, at_ns, busy_ns)
            }
        };
        match outcome {
            Outcome::First => self.awaiting.clear(),
            Outcome::Missing(_) => {
                if let Source::Counter(counter) = &self.source {
                    self.awaiting.add(counter, reading, users);
                }
            }
            Outcome::Energy { from_ns, to_ns, joules } => {
                let time = Seconds::from_ns(to_ns.saturating_sub(from_ns));
                let window = Window { energy: joules, time };
                if self.awaiting.is_empty() {
                    return self.enter(window, users, idle_to, recent);
                }
                let mut gathered = std::mem::take(&mut self.awaiting).since(from_ns, users);
                self.enter(window, gathered.users(|user| roster.row(user)), idle_to, recent);
            }
        }
    }

    /// There will be no more readings: what still waited for another one is believed now.
    pub(super) fn finish(&mut self, roster: &Roster, idle_to: IdleTo, recent: Option<&mut Recent>) {
        let Source::Counter(counter) = &mut self.source else { return };
        if let Some(Outcome::Energy { from_ns, to_ns, joules }) = counter.finish(&self.domain) {
            let time = Seconds::from_ns(to_ns.saturating_sub(from_ns));
            // It ends with the suspect.
            let mut gathered = std::mem::take(&mut self.awaiting).before;
            let users = gathered.users(|user| roster.row(user));
            self.enter(Window { energy: joules, time }, users, idle_to, recent);
        }
    }

    fn enter(
        &mut self,
        window: Window,
        users: &[(User, f64)],
        idle_to: IdleTo,
        mut recent: Option<&mut Recent>,
    ) {
        let busy_ns: f64 = users.iter().map(|(_, ns)| ns).sum();
        self.model.observe(window, Seconds(busy_ns * 1e-9));
        let power = self.model.static_power().watts();
        let usage = Usage { users, ..Usage::default() };
        let component = self.domain.component;
        self.ledger.enter(window, usage, power, idle_to, |posting| {
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
        self.ledger.correct(self.model.static_power().watts(), idle_to, |_| {});
    }

    pub(super) fn fold(&mut self, user: User, into: User) {
        self.ledger.fold(user, into);
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
