//! The newest window: what was posted since the one before ended.

use rustc_hash::{FxHashMap, FxHashSet};

use super::roster::add_ns;
use crate::base::{Account, Component, Joules, Seconds, WorkloadId};
use crate::energy::attribute::Posting;
use crate::energy::ledger::Bill;

/// Sums of one window. A GPU's figures are what its driver told since the window before, which may be
/// about a time a little earlier.
#[derive(Debug, Clone, Default)]
pub(crate) struct WindowSums {
    /// CLOCK_MONOTONIC of its ends, nanoseconds, and of the first sample.
    pub(crate) from_ns: u64,
    pub(crate) to_ns: u64,
    pub(crate) first_ns: u64,
    /// `None` where nothing was measured in this window.
    pub(crate) measured: [Option<Joules>; Component::COUNT],
    pub(crate) idle: [Joules; Component::COUNT],
    pub(crate) unattributed: [Joules; Component::COUNT],
    pub(crate) other: [Bill; Component::COUNT],
    pub(crate) workloads: FxHashMap<WorkloadId, [Bill; Component::COUNT]>,
    /// By package; beyond all of them stand CPUs whose package is not known.
    times_ns: FxHashMap<(WorkloadId, usize), u64>,
    /// How many places there can be in these times.
    places: usize,
    /// Packages that a component was measured on.
    covered: FxHashSet<(Component, usize)>,
    /// How much of the GPUs' time was told of: the longest of all devices.
    pub(crate) gpu_time: Seconds,
    /// Whether it was told who used a GPU, and whether it was not of one.
    pub(crate) gpu_users: bool,
    pub(crate) unknown_gpu_users: bool,
    /// GPU figures are means over this long.
    pub(crate) resolution: Option<Seconds>,
}

impl WindowSums {
    pub(crate) fn time(&self) -> Seconds {
        Seconds::from_ns(self.to_ns - self.from_ns)
    }

    /// A workload's CPU time, nanoseconds; by package, as above.
    pub(crate) fn times(&self, id: WorkloadId) -> impl Iterator<Item = (usize, u64)> {
        let times = (0..self.places).map(move |place| (place, self.times_ns.get(&(id, place))));
        times.filter_map(|(place, ns)| Some((place, *ns?)))
    }

    /// Whether there is anything of a workload in this window.
    pub(crate) fn has(&self, id: WorkloadId) -> bool {
        let bills = self.workloads.get(&id);
        bills.is_some_and(|bills| bills.iter().any(Bill::is_some))
            || self.times(id).any(|(_, ns)| ns > 0)
    }

    pub(super) fn covers(&self, component: Component, package: usize) -> bool {
        self.covered.contains(&(component, package))
    }

    fn clear(&mut self) {
        self.measured = [None; Component::COUNT];
        self.idle = Default::default();
        self.unattributed = Default::default();
        self.other = Default::default();
        self.workloads.clear();
        self.times_ns.clear();
        self.covered.clear();
        self.gpu_time = Seconds(0.0);
        (self.gpu_users, self.unknown_gpu_users) = (false, false);
        self.resolution = None;
    }
}

/// The window that goes on, and the newest that has ended.
#[derive(Debug, Default)]
pub(super) struct Recent {
    open: WindowSums,
    closed: WindowSums,
    has_closed: bool,
    started: bool,
}

impl Recent {
    /// A sample at `now_ns` is about to be taken in.
    pub(super) fn begin(&mut self, first_ns: u64, now_ns: u64) {
        if !std::mem::replace(&mut self.started, true) {
            self.open.first_ns = first_ns;
            self.open.from_ns = now_ns;
        }
    }

    pub(super) fn close(&mut self, now_ns: u64) {
        self.open.to_ns = now_ns;
        std::mem::swap(&mut self.open, &mut self.closed);
        self.has_closed = true;
        self.open.clear();
        self.open.first_ns = self.closed.first_ns;
        self.open.from_ns = now_ns;
    }

    pub(super) fn closed(&self) -> Option<&WindowSums> {
        self.has_closed.then_some(&self.closed)
    }

    pub(super) fn ran(&mut self, id: WorkloadId, place: usize, ns: u64) {
        self.open.places = self.open.places.max(place + 1);
        add_ns(self.open.times_ns.entry((id, place)).or_default(), ns);
    }

    pub(super) fn covered(&mut self, component: Component, package: usize) {
        self.open.covered.insert((component, package));
    }

    pub(super) fn measured(&mut self, component: Component, joules: Joules) {
        *self.open.measured[component as usize].get_or_insert_default() += joules;
    }

    pub(super) fn post(&mut self, component: Component, posting: Posting) {
        let index = component as usize;
        let bill = match posting.account {
            Account::Idle => return self.open.idle[index] += posting.idle,
            Account::Unattributed => return self.open.unattributed[index] += posting.dynamic,
            Account::Other => &mut self.open.other[index],
            Account::Workload(id) => &mut self.open.workloads.entry(id).or_default()[index],
        };
        bill.dynamic += posting.dynamic;
        bill.idle += posting.idle;
    }

    /// One workload's sums become another's.
    pub(super) fn fold(&mut self, id: WorkloadId, into: WorkloadId) {
        let WindowSums { workloads, times_ns, places, .. } = &mut self.open;
        if let Some(bills) = workloads.remove(&id) {
            let sums = workloads.entry(into).or_default();
            sums.iter_mut().zip(bills).for_each(|(sum, bill)| *sum += bill);
        }
        for place in 0..*places {
            if let Some(ns) = times_ns.remove(&(id, place)) {
                add_ns(times_ns.entry((into, place)).or_default(), ns);
            }
        }
    }

    /// A GPU's figures covered this long, are means over that long, and its users were told or not.
    pub(super) fn gpu(&mut self, covered: Seconds, resolution: Seconds, told: bool) {
        self.open.gpu_users |= told;
        self.open.unknown_gpu_users |= !told;
        if covered > self.open.gpu_time {
            self.open.gpu_time = covered;
        }
        let known = self.open.resolution.get_or_insert(resolution);
        if resolution > *known {
            *known = resolution;
        }
    }
}
