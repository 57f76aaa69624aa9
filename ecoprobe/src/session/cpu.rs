//! The CPU side: from cumulative CPU time and energy counters to windows.

use crate::base::units::{Seconds, Watts};
use crate::energy::counter::{Counter, Outcome};
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
    counter: Counter,
    pub(super) model: PowerModel,
    pub(super) account: Account,
    /// What the newest window measured, if it could, and what the account owed before it.
    pub(super) latest: Option<(Window, Seconds)>,
    /// The kind of static power, where it was known beforehand.
    pub(super) known: Option<StaticPowerKind>,
}

impl Meter {
    pub(super) fn new(domain: &Domain, header: &Header) -> Self {
        let (watts, known) = known_static_power(&domain.name, header).unzip();
        Self {
            counter: Counter::default(),
            model: PowerModel::new(watts, Grain::RAPL),
            account: Account::new(watts),
            latest: None,
            known,
        }
    }

    /// Enters what the counter gained since its last reading. `at_ns` is the sample's time.
    pub(super) fn advance(
        &mut self,
        domain: &Domain,
        reading: Option<Reading>,
        package: Option<&Package>,
        at_ns: u64,
    ) {
        self.latest = None;
        if let Outcome::Energy { from_ns, to_ns, joules } =
            self.counter.advance(domain, at_ns, reading)
        {
            let window = Window { energy: joules, time: Seconds::from_ns(to_ns - from_ns) };
            let shares = package.map_or(&[][..], Package::shares);
            let owed = self.account.owed();
            self.account.add(window, shares);
            let busy_ns = package.map_or(0, |package| package.busy_ns);
            self.model.observe(window, Seconds::from_ns(busy_ns));
            self.latest = Some((window, owed));
        }
    }

    /// A sentence for each reason why energy of `domain` is missing.
    pub(super) fn warnings(&self, domain: &Domain) -> impl Iterator<Item = String> {
        self.counter.sentences(domain).into_iter()
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
