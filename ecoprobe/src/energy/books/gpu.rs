//! The GPU side: windows of the driver's own timing, cut to those of the samples.

use std::collections::{BTreeMap, VecDeque};

use super::coverage::Coverage;
use super::roster::Roster;
use super::window::Recent;
use super::{Clock, Known, given_static_power};
use crate::base::{Component, Joules, Seconds, User};
use crate::energy::attribute::{IdleTo, Window};
use crate::energy::ledger::DomainLedger;
use crate::energy::model::line::{Grain, PowerModel};
use crate::energy::usage::Usage;
use crate::event::sources::StaticPowerKind;
use crate::event::{GpuMethod, GpuWindow, Header};

/// One device, its model and its ledger.
#[derive(Debug)]
pub(super) struct GpuDomain {
    uuid: String,
    pub(super) model: PowerModel,
    pub(super) ledger: DomainLedger,
    /// The kind of static power, where it was known beforehand.
    beforehand: Option<StaticPowerKind>,
    /// Windows, or what is left of them, that no sample has reached yet.
    ahead: VecDeque<Stretch>,
    /// The end of the newest window taken.
    taken_ns: u64,
    refused: u64,
    /// How much of its time was told of since the newest window of the run ended, and when that was.
    covered: Seconds,
    users: BTreeMap<User, Use>,
    /// Time of which it is told who used the device, and of which it is not.
    told: Coverage,
    /// Joules of windows in which somebody used the device, and the part of them whose users
    /// cannot be told.
    used_joules: f64,
    lost_joules: f64,
}

/// A driver's window, of which everything up to `from_ns` is settled.
#[derive(Debug)]
struct Stretch {
    from_ns: u64,
    to_ns: u64,
    /// The whole window's.
    joules: f64,
    length_ns: f64,
    resolution: Seconds,
    load: Option<f64>,
    method: GpuMethod,
    users_known: bool,
    users: Vec<(User, f64)>,
    untold: f64,
    holders: Vec<User>,
    /// Busy seconds in the whole window; `None` where unknown.
    busy_seconds: Vec<(User, Option<f64>)>,
}

/// The share of a device's energy in use beyond which it is said that its users cannot be told.
const LOST_WORTH_SAYING: f64 = 0.01;

/// What one user did on one device.
#[derive(Debug, Clone, Default)]
struct Use {
    busy_seconds: f64,
    busy_unknown: bool,
    joules_by_method: [f64; METHODS.len()],
}

const METHODS: [GpuMethod; 4] =
    [GpuMethod::Sole, GpuMethod::Utilisation, GpuMethod::Memory, GpuMethod::Mig];

impl GpuDomain {
    pub(super) fn new(uuid: &str, header: &Header) -> Self {
        let (watts, beforehand) = given_static_power(uuid, header).unzip();
        Self {
            uuid: uuid.to_owned(),
            model: PowerModel::new(watts, Grain::GPU),
            ledger: DomainLedger::new(watts),
            beforehand,
            ahead: VecDeque::new(),
            taken_ns: 0,
            refused: 0,
            covered: Seconds(0.0),
            users: BTreeMap::new(),
            told: Coverage::default(),
            used_joules: 0.0,
            lost_joules: 0.0,
        }
    }

    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    pub(super) fn known(&self) -> Known<'_> {
        let power = self.model.static_power();
        Known { domain: &self.uuid, power, beforehand: self.beforehand }
    }

    /// Takes a window of the driver. One that runs backwards, overlaps the one before or has no
    /// sane energy is refused: a joule missing is better than one billed twice.
    pub(super) fn take(&mut self, window: &GpuWindow) {
        let joules = window.millijoules * 1e-3;
        let sane = |value: &f64| value.is_finite() && *value >= 0.0;
        if !sane(&joules) || window.to_ns <= window.from_ns || window.from_ns < self.taken_ns {
            self.refused += 1;
            return;
        }
        self.taken_ns = window.to_ns;
        let told = !window.unknown_users;
        let usage = if told { &window.usage[..] } else { &[] };
        let users = usage.iter().filter(|one| sane(&one.weight));
        let holders = usage.iter().filter(|one| one.holds).map(|one| one.user);
        let busy = usage.iter().map(|one| (one.user, one.busy_seconds.filter(sane)));
        let nobody = told && usage.is_empty() && window.lost_weight == 0.0;
        let length = Seconds::from_ns(window.to_ns - window.from_ns).0;
        let resolution = window.resolution_ms.filter(|ms| ms.is_finite()).unwrap_or(0.0) * 1e-3;
        self.ahead.push_back(Stretch {
            from_ns: window.from_ns,
            to_ns: window.to_ns,
            joules,
            length_ns: (window.to_ns - window.from_ns) as f64,
            resolution: Seconds(length.max(resolution)),
            load: window.busy.filter(sane).or(nobody.then_some(0.0)),
            method: window.method,
            users_known: told,
            users: users.map(|one| (one.user, one.weight)).collect(),
            untold: if told && sane(&window.lost_weight) { window.lost_weight } else { 0.0 },
            holders: holders.collect(),
            busy_seconds: busy.collect(),
        });
    }

    /// Enters what lies between the first and the newest sample. Power is taken as constant within a
    /// driver's window: it says nothing finer.
    pub(super) fn settle(
        &mut self,
        clock: Clock,
        roster: &Roster,
        idle_to: IdleTo,
        mut recent: Option<&mut Recent>,
    ) {
        let Clock { first_ns, newest_ns } = clock;
        while let Some(stretch) = self.ahead.front_mut() {
            let from_ns = stretch.from_ns.max(first_ns);
            let to_ns = stretch.to_ns.min(newest_ns);
            if from_ns < to_ns {
                let part = (to_ns - from_ns) as f64 / stretch.length_ns;
                let time = Seconds::from_ns(to_ns - from_ns);
                let window = Window { energy: Joules(stretch.joules * part), time };
                match stretch.load {
                    Some(load) => self.model.observe(window, time * load.min(1.0)),
                    None => self.model.pass_over(window),
                }
                let power = self.model.static_power().watts();
                stretch.place(roster);
                self.ledger.enter(window, stretch.usage(), power, idle_to, |posting| {
                    if let Some(recent) = &mut recent {
                        recent.post(Component::Gpu, posting);
                    }
                });
                stretch.note_users(&mut self.users, window, part);
                if let Some(lost) = stretch.lost_part() {
                    self.used_joules += window.energy.0;
                    self.lost_joules += window.energy.0 * lost;
                }
                self.told.add(to_ns - from_ns, stretch.users_known);
                if let Some(recent) = &mut recent {
                    if !self.ledger.is_dead() {
                        recent.measured(Component::Gpu, window.energy);
                    }
                    self.covered += time;
                    recent.gpu(self.covered, stretch.resolution, stretch.users_known);
                }
                stretch.from_ns = to_ns;
            }
            if stretch.to_ns > newest_ns {
                break;
            }
            self.ahead.pop_front();
        }
    }

    /// A window of the run has ended.
    pub(super) fn end_window(&mut self) {
        self.covered = Seconds(0.0);
    }

    pub(super) fn correct(&mut self, idle_to: IdleTo) {
        self.ledger.correct(self.model.static_power().watts(), idle_to, |_| {});
    }

    pub(super) fn fold(&mut self, user: User, into: User) {
        self.ledger.fold(user, into);
        if let Some(one) = self.users.remove(&user) {
            let sum = self.users.entry(into).or_default();
            sum.busy_seconds += one.busy_seconds;
            sum.busy_unknown |= one.busy_unknown;
            for (joules, more) in sum.joules_by_method.iter_mut().zip(one.joules_by_method) {
                *joules += more;
            }
        }
    }

    /// Time of which it is told who used the device.
    pub(super) fn told(&self) -> Coverage {
        self.told
    }

    /// Seconds that a user kept the device busy; `None` if that could not be had.
    pub(super) fn busy_seconds(&self, user: User) -> Option<f64> {
        match self.users.get(&user) {
            _ if self.told.is_none() => None,
            None => Some(0.0),
            Some(one) if one.busy_unknown => None,
            Some(one) => Some(one.busy_seconds),
        }
    }

    /// How most of what a user used was found; `None` if it did not use the device.
    pub(super) fn method(&self, user: User) -> Option<GpuMethod> {
        let joules = &self.users.get(&user)?.joules_by_method;
        let most = joules.iter().zip(METHODS).max_by(|(a, _), (b, _)| a.total_cmp(b));
        most.filter(|(joules, _)| **joules > 0.0).map(|(_, method)| method)
    }

    /// What the reader of the report should know: a sentence each.
    pub(super) fn warnings(&self) -> impl Iterator<Item = String> {
        let uuid = &self.uuid;
        let refused = (self.refused > 0).then(|| {
            let plural = if self.refused == 1 { "" } else { "s" };
            format!(
                "{uuid}: {} reading{plural} of energy refused: negative, not a number, or not in the \
                 order of time",
                self.refused
            )
        });
        // Of whom a sample speaks who was gone by the first look: at the edges of a run, a little.
        let lost = (self.lost_joules > LOST_WORTH_SAYING * self.used_joules).then(|| {
            format!(
                "{uuid}: {:.1} J were drawn when processes computed that were gone before their \
                 cgroup could be found: that part is unattributed",
                self.lost_joules
            )
        });
        refused.into_iter().chain(lost)
    }
}

impl Stretch {
    fn usage(&self) -> Usage<'_> {
        Usage {
            users: &self.users,
            untold: self.untold,
            holders: &self.holders,
            ..Usage::default()
        }
    }

    /// Puts those who are billed in the place of those who used the device.
    fn place(&mut self, roster: &Roster) {
        let users = self.users.iter_mut().map(|(user, _)| user);
        let busy = self.busy_seconds.iter_mut().map(|(user, _)| user);
        for user in users.chain(busy).chain(&mut self.holders) {
            *user = roster.row(*user);
        }
        self.holders.sort_unstable();
        self.holders.dedup();
    }

    /// The share of those who cannot be told; `None` if nobody used the device.
    fn lost_part(&self) -> Option<f64> {
        (self.usage().total() > 0.0).then(|| self.usage().untold_part())
    }

    /// Notes who used the device in a `part` of this window.
    fn note_users(&self, users: &mut BTreeMap<User, Use>, window: Window, part: f64) {
        for &(user, busy_seconds) in &self.busy_seconds {
            let one = users.entry(user).or_default();
            match busy_seconds {
                Some(busy) => one.busy_seconds += busy * part,
                None => one.busy_unknown = true,
            }
        }
        let method = METHODS.iter().position(|&method| method == self.method).unwrap_or_default();
        for (user, share, _) in self.usage().parts() {
            users.entry(user).or_default().joules_by_method[method] += window.energy.0 * share;
        }
    }
}
