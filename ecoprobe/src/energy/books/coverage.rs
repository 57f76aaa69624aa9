//! What time the energy figures are about, and what time they leave out.

use std::fmt;

use super::roster::{Member, add_ns};
use super::{Books, WindowSums};
use crate::base::{Component, Seconds};

/// Time that a figure is about, and time that it leaves out, nanoseconds.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Coverage {
    pub(crate) covered_ns: u64,
    pub(crate) uncovered_ns: u64,
}

/// What is left out is worth saying from this part of the whole, and from this time.
const UNCOVERED_PART: f64 = 0.001;
const UNCOVERED: Seconds = Seconds(0.001);

impl Coverage {
    /// Of `time`, `uncovered_ns` are left out.
    pub(crate) fn without(uncovered_ns: u64, time_ns: u64) -> Self {
        Self { covered_ns: time_ns.saturating_sub(uncovered_ns), uncovered_ns }
    }

    pub(super) fn add(&mut self, ns: u64, covered: bool) {
        add_ns(if covered { &mut self.covered_ns } else { &mut self.uncovered_ns }, ns);
    }

    /// Everything is left out: the figure is not 0, it is not known.
    pub(crate) fn is_none(self) -> bool {
        self.covered_ns == 0 && self.uncovered_ns > 0
    }

    /// So much is left out that it is worth saying.
    pub(crate) fn is_partial(self) -> bool {
        self.uncovered() >= UNCOVERED && self.uncovered().0 >= UNCOVERED_PART * self.total().0
    }

    pub(crate) fn uncovered(self) -> Seconds {
        Seconds::from_ns(self.uncovered_ns)
    }

    pub(crate) fn total(self) -> Seconds {
        Seconds::from_ns(self.covered_ns) + self.uncovered()
    }
}

/// What a package has to measure a component with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meter {
    None,
    /// A counter that measured nothing.
    Silent,
    Working,
}

/// Where time was that is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place<'a> {
    /// On CPUs whose package is not known.
    Unknown,
    WithoutCounter(&'a str),
    /// On a package whose counter never measured anything.
    SilentCounter(&'a str),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "CPUs whose package is not known"),
            Self::WithoutCounter(package) => write!(f, "{package}, which has no energy counter"),
            Self::SilentCounter(package) => {
                write!(f, "{package}, whose energy counter measured nothing")
            }
        }
    }
}

/// Which packages are measured. That is decided by what was measured and not by what the header
/// promises: a counter may never have worked.
#[derive(Debug)]
pub(crate) struct Covered<'a> {
    packages: &'a [String],
    /// By package, for each component that is measured anywhere.
    meters: [Option<Vec<Meter>>; Component::COUNT],
}

impl Covered<'_> {
    fn new<'a>(books: &'a Books, works: impl Fn(&super::CpuDomain) -> bool) -> Covered<'a> {
        let packages = &books.header.packages[..];
        let meters = Component::ALL.map(|component| {
            let mut meters = vec![Meter::None; packages.len()];
            for domain in books.cpu.iter().filter(|domain| domain.component() == component) {
                if let Some(meter) = meters.get_mut(domain.package()) {
                    let found = if works(domain) { Meter::Working } else { Meter::Silent };
                    *meter = found.max(*meter);
                }
            }
            meters.contains(&Meter::Working).then_some(meters)
        });
        Covered { packages, meters }
    }

    /// How much of the time at these places, in nanoseconds, a component's figure is about.
    pub(crate) fn of(
        &self,
        component: Component,
        times: impl Iterator<Item = (usize, u64)>,
    ) -> Coverage {
        let mut coverage = Coverage::default();
        if let Some(meters) = &self.meters[component as usize] {
            for (place, ns) in times {
                coverage.add(ns, meters.get(place) == Some(&Meter::Working));
            }
        }
        coverage
    }

    /// Where a workload's CPU time was that no CPU energy counter covers, and nanoseconds.
    pub(crate) fn left_out(&self, member: &Member) -> impl Iterator<Item = (Place<'_>, u64)> {
        let meters = self.meters[Component::Cpu as usize].as_ref();
        let times = meters.map(|meters| (meters, member.times()));
        times.into_iter().flat_map(|(meters, times)| {
            times.filter(|(_, ns)| *ns > 0).filter_map(|(place, ns)| {
                let package = self.packages.get(place);
                let place = match (package, meters.get(place)) {
                    (_, Some(Meter::Working)) => return None,
                    (Some(package), Some(Meter::Silent)) => Place::SilentCounter(package),
                    (Some(package), _) => Place::WithoutCounter(package),
                    (None, _) => Place::Unknown,
                };
                Some((place, ns))
            })
        })
    }
}

impl Books {
    /// Which packages were measured in the run so far.
    pub(crate) fn covered(&self) -> Covered<'_> {
        Covered::new(self, |domain| domain.ledger.has_figures())
    }

    /// Which packages were measured in a window.
    pub(crate) fn covered_in(&self, window: &WindowSums) -> Covered<'_> {
        Covered::new(self, |domain| window.covers(domain.component(), domain.package()))
    }
}
