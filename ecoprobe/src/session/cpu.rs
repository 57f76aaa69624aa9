//! The CPU side: from cumulative CPU time and energy counters to windows.

use std::collections::BTreeMap;

use crate::base::units::{Joules, Seconds, Watts};
use crate::energy::counter::{self, Delta, Doubt};
use crate::energy::ledger::{Account, Share, Window};
use crate::energy::model::{Grain, PowerModel};
use crate::event::sources::StaticPowerKind;
use crate::event::{Domain, Header, Reading, SLOT_IDLE};
use crate::session::billed_to;

/// The CPU time of one package.
#[derive(Debug, Default)]
pub(super) struct Package {
    /// The highest value of each cell so far, nanoseconds. The part of a cell that is still running
    /// is an estimate, so a cell may fall a little; what it counted before is not counted again.
    high_ns: Vec<u64>,
    shares: Vec<Share>,
    busy_ns: u64,
}

impl Package {
    /// Finds what each cell of `row` gained since the last sample. `slots` is one past the last
    /// known slot; the `first` row is where counting starts.
    pub(super) fn advance(&mut self, row: &[u64], slots: usize, first: bool) {
        self.shares.clear();
        self.busy_ns = 0;
        if row.len() > self.high_ns.len() {
            self.high_ns.resize(row.len(), 0);
        }
        if first {
            self.high_ns.copy_from_slice(row);
            return;
        }
        for (slot, (&now, high)) in row.iter().zip(&mut self.high_ns).enumerate() {
            let gained = now.saturating_sub(*high);
            if gained == 0 {
                continue;
            }
            *high = now;
            if slot != SLOT_IDLE {
                self.shares.push(Share { slot: billed_to(slot, slots), weight: gained as f64 });
                self.busy_ns = self.busy_ns.saturating_add(gained);
            }
        }
    }

    /// Nanoseconds that each slot ran in the newest window, idle left out; a slot may stand here
    /// more than once.
    pub(super) fn shares(&self) -> &[Share] {
        &self.shares
    }
}

/// One energy counter, its model and its account.
#[derive(Debug)]
pub(super) struct Meter {
    previous: Option<Reading>,
    pub(super) model: PowerModel,
    pub(super) account: Account,
    /// What the newest window measured, if it could, and what the account owed before it.
    pub(super) latest: Option<(Window, Seconds)>,
    missing: BTreeMap<Reason, Missing>,
    /// The kind of static power, where it was known beforehand.
    pub(super) known: Option<StaticPowerKind>,
}

/// Why windows have no energy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    Unread,
    MoreWraps,
    WentBack,
    Disorder,
    TooMuch,
    OutOfRange,
}

#[derive(Debug, Clone, Copy, Default)]
struct Missing {
    windows: u64,
    seconds: f64,
    worst: Watts,
}

impl Meter {
    pub(super) fn new(domain: &Domain, header: &Header) -> Self {
        let (watts, known) = known_static_power(&domain.name, header).unzip();
        Self {
            previous: None,
            model: PowerModel::new(watts, Grain::RAPL),
            account: Account::new(watts),
            latest: None,
            missing: BTreeMap::new(),
            known,
        }
    }

    /// Enters what the counter gained since its last reading. `length` is the newest window's; it
    /// is 0 at the first sample.
    pub(super) fn advance(
        &mut self,
        domain: &Domain,
        reading: Option<Reading>,
        package: Option<&Package>,
        length: Seconds,
    ) {
        let previous = std::mem::replace(&mut self.previous, reading);
        self.latest = None;
        let reason = match reading.map(|now| (now, counter::delta(domain, previous, now))) {
            // The reading before was of no use.
            Some((_, Delta::First)) if previous.is_some() => Reason::OutOfRange,
            None | Some((_, Delta::First)) => Reason::Unread,
            Some((_, Delta::Ambiguous(Doubt::MoreWraps))) => Reason::MoreWraps,
            Some((_, Delta::Ambiguous(Doubt::WentBack))) => Reason::WentBack,
            Some((_, Delta::Ambiguous(Doubt::TimeWentBack))) => Reason::Disorder,
            Some((_, Delta::OutOfRange)) => Reason::OutOfRange,
            Some((_, Delta::Refused { watts, .. })) => {
                let worst = &mut self.missing.entry(Reason::TooMuch).or_default().worst;
                *worst = if watts > *worst { watts } else { *worst };
                Reason::TooMuch
            }
            Some((now, Delta::Advance(counts) | Delta::Wrapped(counts))) => {
                let from_ns = previous.map_or(now.mono_ns, |previous| previous.mono_ns);
                let window = Window {
                    energy: Joules(counts as f64 * domain.joules_per_count),
                    time: Seconds::from_ns(now.mono_ns - from_ns),
                };
                let shares = package.map_or(&[][..], Package::shares);
                let owed = self.account.owed();
                self.account.add(window, shares);
                let busy_ns = package.map_or(0, |package| package.busy_ns);
                self.model.observe(window, Seconds::from_ns(busy_ns));
                self.latest = Some((window, owed));
                return;
            }
        };
        if length > Seconds(0.0) {
            let missing = self.missing.entry(reason).or_default();
            missing.windows += 1;
            missing.seconds += length.0;
        }
    }

    /// A sentence for each reason why energy of `domain` is missing.
    pub(super) fn warnings(&self, domain: &Domain) -> impl Iterator<Item = String> {
        self.missing.iter().filter(|(_, missing)| missing.windows > 0).map(|(reason, missing)| {
            let Missing { windows, seconds, worst } = missing;
            let why = match reason {
                Reason::Unread => "the counter could not be read".to_owned(),
                Reason::MoreWraps => "the counter may have wrapped more than once between two \
                     readings; a shorter --interval avoids that"
                    .to_owned(),
                Reason::WentBack => "the counter was reset".to_owned(),
                Reason::Disorder => "its readings are not in the order of time".to_owned(),
                Reason::TooMuch => format!(
                    "the counter jumped by more than the hardware can draw ({:.0} W; at most \
                     {:.0} W)",
                    worst.0, domain.max_watts
                ),
                Reason::OutOfRange => "the counter showed a value beyond its range".to_owned(),
            };
            let plural = if *windows == 1 { "" } else { "s" };
            format!(
                "{}: {windows} window{plural}, {seconds:.3} s in all, left out of every energy \
                 figure (mean power, which is over the whole run, is too low for it): {why}",
                domain.name
            )
        })
    }
}

/// The static power of `domain` that was known before the run, and how: from the user, or from the
/// model that an estimate rests on.
pub(super) fn known_static_power(
    domain: &str,
    header: &Header,
) -> Option<(Watts, StaticPowerKind)> {
    let sane = |watts: &f64| watts.is_finite() && *watts >= 0.0;
    if let Some(&watts) = header.settings.static_watts.get(domain).filter(|watts| sane(watts)) {
        return Some((Watts(watts), StaticPowerKind::Given));
    }
    let source = &header.sources.static_power;
    let estimate = source.kind == StaticPowerKind::Estimate;
    let watts = source.watts.get(domain).copied().flatten().filter(|watts| estimate && sane(watts));
    watts.map(|watts| (Watts(watts), StaticPowerKind::Estimate))
}
