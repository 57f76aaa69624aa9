//! The CPU side: from cumulative CPU time and energy counters to windows.

use std::collections::BTreeMap;

use super::roster::Roster;
use super::window::Recent;
use super::{Known, known_static_power};
use crate::base::{Component, Seconds, User, Watts};
use crate::energy::attribute::{IdleTo, Window};
use crate::energy::counter::{Counter, Outcome, Reason};
use crate::energy::ledger::DomainLedger;
use crate::energy::model::{Grain, PowerModel};
use crate::energy::usage::{Gathered, Usage};
use crate::event::sources::StaticPowerKind;
use crate::event::{CpuTimes, Domain, Header, PackageTime};

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
                        recent.ran(id, gained);
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

/// One energy counter, its model and its ledger.
#[derive(Debug)]
pub(super) struct CpuDomain {
    domain: Domain,
    counter: Counter,
    pub(super) model: PowerModel,
    pub(super) ledger: DomainLedger,
    /// Who ran since the counter's last good reading, where that is not the sample before.
    gathered: Gathered,
    missing: BTreeMap<&'static str, Missing>,
    /// The kind of static power, where it was known beforehand.
    beforehand: Option<StaticPowerKind>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Missing {
    windows: u64,
    seconds: f64,
    worst: Watts,
}

impl CpuDomain {
    pub(super) fn new(domain: &Domain, header: &Header) -> Self {
        let (watts, beforehand) = known_static_power(&domain.name, header).unzip();
        Self {
            domain: domain.clone(),
            counter: Counter::default(),
            model: PowerModel::new(watts, Grain::RAPL),
            ledger: DomainLedger::new(watts),
            gathered: Gathered::default(),
            missing: BTreeMap::new(),
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

    /// Enters what the counter gained since its last good reading, shared by who ran since then.
    /// `length` is the time since the sample before; it is 0 at the first sample.
    pub(super) fn advance(
        &mut self,
        reading: Option<crate::event::Reading>,
        users: &[(User, f64)],
        length: Seconds,
        idle_to: IdleTo,
        recent: Option<&mut Recent>,
    ) {
        match self.counter.advance(&self.domain, reading) {
            Outcome::First => self.gathered.clear(),
            Outcome::Missing(reason) => {
                self.miss(reason, length);
                self.gathered.add(users);
            }
            Outcome::Energy { from_ns, to_ns, joules } => {
                let time = Seconds::from_ns(to_ns.saturating_sub(from_ns));
                if self.gathered.is_empty() {
                    self.enter(Window { energy: joules, time }, users, idle_to, recent);
                } else {
                    let mut gathered = std::mem::take(&mut self.gathered);
                    gathered.add(users);
                    let window = Window { energy: joules, time };
                    self.enter(window, gathered.users(), idle_to, recent);
                }
            }
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
        }
    }

    pub(super) fn correct(&mut self, idle_to: IdleTo) {
        self.ledger.correct(self.model.static_power().watts(), idle_to, |_| {});
    }

    pub(super) fn fold(&mut self, user: User, into: User) {
        self.ledger.fold(user, into);
    }

    fn miss(&mut self, reason: Reason, length: Seconds) {
        if length <= Seconds(0.0) {
            return;
        }
        let missing = self.missing.entry(reason.why()).or_default();
        missing.windows += 1;
        missing.seconds += length.0;
        if let Reason::TooMuch(watts) = reason
            && watts > missing.worst
        {
            missing.worst = watts;
        }
    }

    /// A sentence for each reason why energy is missing.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let domain = &self.domain;
        self.missing.iter().map(move |(why, missing)| {
            let Missing { windows, seconds, worst } = missing;
            let plural = if *windows == 1 { "" } else { "s" };
            let limit = if worst.0 > 0.0 {
                format!(" ({:.0} W; at most {:.0} W)", worst.0, domain.max_watts)
            } else {
                String::new()
            };
            format!(
                "{}: {windows} window{plural}, {seconds:.3} s in all, left out of every energy \
                 figure (mean power, which is over the whole run, is too low for it): {why}{limit}",
                domain.name
            )
        })
    }
}

impl Reason {
    fn why(self) -> &'static str {
        match self {
            Self::Unread => "the counter could not be read",
            Self::MoreWraps => "the counter may have wrapped more than once between two readings",
            Self::WentBack => "the counter was reset",
            Self::Disorder => "its readings are not in the order of time",
            Self::TooMuch(_) => "the counter jumped by more than the hardware can draw",
            Self::OutOfRange => "the counter showed a value beyond its range",
        }
    }
}
