//! The GPU side: windows of the driver's own timing, cut to those of the samples.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::base::units::{Joules, Seconds};
use crate::energy::ledger::{Account, NOBODY, Share, Window};
use crate::energy::model::{Grain, PowerModel};
use crate::event::sources::StaticPowerKind;
use crate::event::{GpuMethod, GpuWindow, Header, SLOT_FIRST, SLOT_OTHER};
use crate::session::billed_to;
use crate::session::cpu::known_static_power;

/// One device, its model and its account.
#[derive(Debug)]
pub(super) struct Gpu {
    uuid: String,
    pub(super) model: PowerModel,
    pub(super) account: Account,
    /// The kind of static power, where it was known beforehand.
    pub(super) known: Option<StaticPowerKind>,
    /// Windows, or what is left of them, that no sample has reached yet.
    ahead: VecDeque<Stretch>,
    /// The end of the newest window taken.
    taken_ns: u64,
    refused: u64,
    /// Pieces settled since the newest sample, and those between it and the one before.
    arriving: Vec<Piece>,
    pub(super) latest: Vec<Piece>,
    /// What the account owed before each of them.
    arriving_owed: Seconds,
    pub(super) latest_owed: Seconds,
    users: BTreeMap<usize, User>,
    users_known: bool,
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
    shares: Arc<[Share]>,
    holders: Arc<[usize]>,
    /// Busy seconds in the whole window, by slot; `None` where unknown.
    busy_seconds: Vec<(usize, Option<f64>)>,
}

/// The part of a driver's window that lies between two samples.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) window: Window,
    /// Over how long the driver's figure is a mean.
    pub(super) resolution: Seconds,
    shares: Arc<[Share]>,
    holders: Arc<[usize]>,
}

/// The share of a device's energy in use beyond which it is said that its users cannot be told.
const LOST_WORTH_SAYING: f64 = 0.01;

/// What one slot did on one device.
#[derive(Debug, Clone, Default)]
struct User {
    busy_seconds: f64,
    busy_unknown: bool,
    joules_by_method: [f64; METHODS.len()],
}

const METHODS: [GpuMethod; 4] =
    [GpuMethod::Sole, GpuMethod::Utilisation, GpuMethod::Memory, GpuMethod::Mig];

impl Piece {
    pub(super) fn enter(&self, account: &mut Account) {
        account.add_held(self.window, &self.shares, &self.holders);
    }
}

impl Gpu {
    pub(super) fn new(uuid: &str, header: &Header) -> Self {
        let (watts, known) = known_static_power(uuid, header).unzip();
        Self {
            uuid: uuid.to_owned(),
            model: PowerModel::new(watts, Grain::GPU),
            account: Account::new(watts),
            known,
            ahead: VecDeque::new(),
            taken_ns: 0,
            refused: 0,
            arriving: Vec::new(),
            latest: Vec::new(),
            arriving_owed: Seconds(0.0),
            latest_owed: Seconds(0.0),
            users: BTreeMap::new(),
            users_known: false,
            used_joules: 0.0,
            lost_joules: 0.0,
        }
    }

    pub(super) fn uuid(&self) -> &str {
        &self.uuid
    }

    /// Takes a window of the driver. One that runs backwards, overlaps the one before or has no
    /// sane energy is refused: a joule missing is better than one billed twice.
    pub(super) fn take(&mut self, window: &GpuWindow, slots: usize) {
        let joules = window.millijoules * 1e-3;
        let sane = joules.is_finite() && joules >= 0.0;
        if !sane || window.to_ns <= window.from_ns || window.from_ns < self.taken_ns {
            self.refused += 1;
            return;
        }
        self.taken_ns = window.to_ns;
        let usage = if window.unknown_users { &[][..] } else { &window.usage[..] };
        let sane = |value: &f64| value.is_finite() && *value >= 0.0;
        let shares = usage
            .iter()
            .filter(|user| sane(&user.weight))
            .map(|user| Share { slot: billed_to(slot_of(user.user), slots), weight: user.weight });
        // Those who were gone before anybody could tell whose they were.
        let lost = (!window.unknown_users && sane(&window.lost_weight))
            .then_some(Share { slot: NOBODY, weight: window.lost_weight });
        let mut holders: Vec<usize> = usage
            .iter()
            .filter(|user| user.holds)
            .map(|user| billed_to(slot_of(user.user), slots))
            .collect();
        holders.sort_unstable();
        holders.dedup();
        let busy = usage
            .iter()
            .map(|user| (billed_to(slot_of(user.user), slots), user.busy_seconds.filter(sane)));
        let nobody = usage.is_empty() && !window.unknown_users && window.lost_weight == 0.0;
        self.ahead.push_back(Stretch {
            from_ns: window.from_ns,
            to_ns: window.to_ns,
            joules,
            length_ns: (window.to_ns - window.from_ns) as f64,
            resolution: Seconds(
                Seconds::from_ns(window.to_ns - window.from_ns)
                    .0
                    .max(window.resolution_ms.filter(|ms| ms.is_finite()).unwrap_or(0.0) * 1e-3),
            ),
            load: window.busy.filter(sane).or(nobody.then_some(0.0)),
            method: window.method,
            users_known: !window.unknown_users,
            shares: shares.chain(lost).collect(),
            holders: holders.into(),
            busy_seconds: busy.collect(),
        });
    }

    /// A sample was taken: everything up to it is in, and a new window of the report begins.
    pub(super) fn sample(&mut self, first_ns: u64, newest_ns: u64) {
        self.settle(first_ns, newest_ns);
        std::mem::swap(&mut self.latest, &mut self.arriving);
        self.latest_owed = self.arriving_owed;
        self.arriving.clear();
        self.arriving_owed = self.account.owed();
    }

    /// Enters what lies between the first and the newest sample. Power is taken as constant within a
    /// driver's window: it says nothing finer.
    pub(super) fn settle(&mut self, first_ns: u64, newest_ns: u64) {
        while let Some(stretch) = self.ahead.front_mut() {
            let from_ns = stretch.from_ns.max(first_ns);
            let to_ns = stretch.to_ns.min(newest_ns);
            if from_ns < to_ns {
                let part = (to_ns - from_ns) as f64 / stretch.length_ns;
                let time = Seconds::from_ns(to_ns - from_ns);
                let window = Window { energy: Joules(stretch.joules * part), time };
                let shares = Arc::clone(&stretch.shares);
                let holders = Arc::clone(&stretch.holders);
                let piece = Piece { window, resolution: stretch.resolution, shares, holders };
                piece.enter(&mut self.account);
                match stretch.load {
                    Some(load) => self.model.observe(window, time * load.min(1.0)),
                    None => self.model.pass_over(window),
                }
                stretch.note_users(&mut self.users, window, part);
                if let Some(lost) = stretch.lost_part() {
                    self.used_joules += window.energy.0;
                    self.lost_joules += window.energy.0 * lost;
                }
                self.users_known |= stretch.users_known;
                self.arriving.push(piece);
                stretch.from_ns = to_ns;
            }
            if stretch.to_ns > newest_ns {
                break;
            }
            self.ahead.pop_front();
        }
    }

    /// True if it was ever known who used the device.
    pub(super) fn users_known(&self) -> bool {
        self.users_known
    }

    /// Seconds that `slot` kept the device busy; `None` if that could not be had.
    pub(super) fn busy_seconds(&self, slot: usize) -> Option<f64> {
        match self.users.get(&slot) {
            _ if !self.users_known => None,
            None => Some(0.0),
            Some(user) if user.busy_unknown => None,
            Some(user) => Some(user.busy_seconds),
        }
    }

    /// How most of what `slot` used was found; `None` if it did not use the device.
    pub(super) fn method(&self, slot: usize) -> Option<GpuMethod> {
        let joules = &self.users.get(&slot)?.joules_by_method;
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

fn slot_of(user: crate::base::id::User) -> usize {
    match user {
        crate::base::id::User::Workload(id) => {
            usize::try_from(id.0).unwrap_or(usize::MAX).saturating_add(SLOT_FIRST)
        }
        crate::base::id::User::Other => SLOT_OTHER,
    }
}

impl Stretch {
    /// The share of those who cannot be told; `None` if nobody used the device.
    fn lost_part(&self) -> Option<f64> {
        let weight = |share: &Share| share.weight;
        let total: f64 = self.shares.iter().map(weight).sum();
        let lost: f64 = self.shares.iter().filter(|share| share.slot == NOBODY).map(weight).sum();
        (total > 0.0).then(|| lost / total)
    }

    /// Notes who used the device in a `part` of this window.
    fn note_users(&self, users: &mut BTreeMap<usize, User>, window: Window, part: f64) {
        for &(slot, busy_seconds) in &self.busy_seconds {
            let user = users.entry(slot).or_default();
            match busy_seconds {
                Some(busy) => user.busy_seconds += busy * part,
                None => user.busy_unknown = true,
            }
        }
        let total: f64 = self.shares.iter().map(|share| share.weight).sum();
        let method = METHODS.iter().position(|&method| method == self.method).unwrap_or_default();
        let billed = |share: &&Share| share.weight > 0.0 && share.slot != NOBODY;
        for share in self.shares.iter().filter(billed) {
            let user = users.entry(share.slot).or_default();
            user.joules_by_method[method] += window.energy.0 * share.weight / total;
        }
    }
}
