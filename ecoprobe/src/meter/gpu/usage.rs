//! Who used a device between two instants: facts from the driver's samples and process lists,
//! turned into relative weights.

use std::collections::BTreeMap;

use super::nvml::ProcessSample;
use super::owner::History;
use crate::event::{GpuMethod, GpuUsage};

/// The slot of a process, or `None` for one that was gone before anybody could tell.
pub(super) type Owner = Option<usize>;

/// Longest credible time between two samples of the driver.
const LONGEST_PERIOD_NS: u64 = 2_000_000_000;

const MOST_SPANS: usize = 1 << 16;

/// A stretch of time at one rate.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Span<K> {
    key: K,
    from_ns: u64,
    to_ns: u64,
    rate: f64,
}

/// Rates over time, by key, that are cut where windows end.
#[derive(Debug, Clone)]
pub(super) struct Timeline<K> {
    spans: Vec<Span<K>>,
}

impl<K> Default for Timeline<K> {
    fn default() -> Self {
        Self { spans: Vec::new() }
    }
}

impl<K: Copy + Ord> Timeline<K> {
    pub(super) fn add(&mut self, key: K, from_ns: u64, to_ns: u64, rate: f64) {
        // Windows take them out again; while there are none, the oldest make room.
        if self.spans.len() >= MOST_SPANS {
            self.spans.drain(..MOST_SPANS / 2);
        }
        if to_ns > from_ns {
            self.spans.push(Span { key, from_ns, to_ns, rate });
        }
    }

    /// Rate times seconds by key in `from_ns..to_ns`. What is later stays for the next window; what
    /// is earlier is dropped.
    pub(super) fn take(&mut self, from_ns: u64, to_ns: u64) -> BTreeMap<K, f64> {
        let mut sums = BTreeMap::new();
        self.spans.retain_mut(|span| {
            let (from, to) = (span.from_ns.max(from_ns), span.to_ns.min(to_ns));
            if to > from {
                *sums.entry(span.key).or_default() += span.rate * (to - from) as f64 * 1e-9;
            }
            span.from_ns = span.from_ns.max(to_ns);
            span.to_ns > span.from_ns
        });
        sums
    }
}

/// Turns the driver's utilisation samples into spans.
///
/// A driver gives either one sample a process and sampling period (periods in which a process did
/// not run are left out), or one a process and query. Which one shows as soon as a process appears
/// twice in an answer, or with a sample that is older than the query; from then on the period is
/// known.
#[derive(Debug, Clone, Default)]
pub(super) struct Sampling {
    /// Time between two samples, nanoseconds; `None` while answers were one a query.
    period_ns: Option<u64>,
    /// Where the next query begins, in the driver's own clock: the newest time stamp seen, or the
    /// query before one that came back empty.
    pub(super) since_us: u64,
    /// The newest time stamp of each process in the last answer that had any.
    newest_us: BTreeMap<u32, u64>,
}

/// A sample that is older than the query by more than this was not made for it.
const NOT_FOR_US_NS: u64 = 2_000_000;

impl Sampling {
    /// How far back from now all samples have surely been delivered, nanoseconds.
    pub(super) fn lag_ns(&self) -> u64 {
        self.period_ns.unwrap_or(0)
    }

    /// Adds an answer to `timeline`: utilisation 0 to 1 by owner. `polled` are the times of the
    /// query before and of this one; `mono_ns` maps the driver's time stamps to CLOCK_MONOTONIC;
    /// `history` says who has had a pid.
    pub(super) fn add(
        &mut self,
        samples: &[ProcessSample],
        polled: (u64, u64),
        mono_ns: impl Fn(u64) -> u64,
        history: impl Fn(u32) -> History,
        timeline: &mut Timeline<Owner>,
    ) {
        let mut by_pid: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
        for sample in samples {
            by_pid.entry(sample.pid).or_default().push((sample.us, sample.sm));
        }
        let mut gaps = Vec::new();
        for times in by_pid.values_mut() {
            times.sort_unstable();
            times.dedup_by_key(|(us, _)| *us);
            gaps.extend(times.windows(2).map(|pair| (pair[1].0 - pair[0].0).saturating_mul(1000)));
        }
        if gaps.is_empty() {
            // Where queries are no farther apart than samples.
            let made_before = |us| mono_ns(us) + NOT_FOR_US_NS < polled.1;
            gaps.extend(by_pid.iter().filter_map(|(pid, times)| {
                let first = times.first().map(|(us, _)| *us).filter(|us| made_before(*us))?;
                let before = *self.newest_us.get(pid)?;
                (before < first).then(|| (first - before).saturating_mul(1000))
            }));
        }
        if !by_pid.is_empty() {
            let newest = by_pid.iter().filter_map(|(pid, times)| Some((*pid, times.last()?.0)));
            self.newest_us = newest.collect();
        }
        gaps.sort_unstable();
        // Most gaps are one period; those of a process that paused are several.
        if let Some(&gap) = gaps.get(gaps.len() / 2)
            && gap <= LONGEST_PERIOD_NS
        {
            self.period_ns = Some(self.period_ns.map_or(gap, |known| known.min(gap)));
        }
        let since = mono_ns(self.since_us);
        for (pid, times) in by_pid {
            let history = history(pid);
            for (us, sm) in times {
                self.since_us = self.since_us.max(us);
                let to = mono_ns(us).min(polled.1);
                let began = self.period_ns.map_or(polled.0, |period| to.saturating_sub(period));
                let owner = history.slot_at(began);
                let rate = f64::from(sm) / 100.0;
                match self.period_ns {
                    Some(period) => timeline.add(owner, to.saturating_sub(period), to, rate),
                    // A mean over all that the query asked for. If that reaches back beyond the
                    // query before, nobody ran until then.
                    None if since < polled.0 && polled.0 < to && since > 0 => {
                        let stretch = (to - since) as f64 / (to - polled.0) as f64;
                        timeline.add(owner, polled.0, to, rate * stretch);
                    }
                    None => timeline.add(owner, polled.0.max(since), to, rate),
                }
            }
        }
    }
}

/// What a workload holds on a device at one poll.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Holding {
    pub(super) bytes: u64,
    /// Its part of MIG instances, in slices.
    pub(super) slices: f64,
}

/// Who was on a device at one poll.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Census {
    /// The process lists could be had, and the pids in them mean something here.
    pub(super) known: bool,
    pub(super) mig: bool,
    pub(super) holders: BTreeMap<Owner, Holding>,
}

impl Census {
    /// Takes in a later census of the same window.
    pub(super) fn merge(&mut self, later: Self) {
        self.known |= later.known;
        self.mig = later.mig;
        for (owner, holding) in later.holders {
            let most = self.holders.entry(owner).or_default();
            most.bytes = most.bytes.max(holding.bytes);
            most.slices = most.slices.max(holding.slices);
        }
    }
}

/// Who used a device in a window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shares {
    pub(super) method: GpuMethod,
    pub(super) usage: Vec<GpuUsage>,
    pub(super) unknown_users: bool,
    pub(super) lost_weight: f64,
}

/// Weighs everybody who was on the device: at the poll before the window, at the one after it, or
/// in a utilisation sample (`sm`: multiprocessor seconds; under MIG slice seconds) between the two.
///
/// One workload alone needs no weighing. Under MIG utilisation is that of instances, if the driver
/// tells it at all; else their slices decide. If the samples say that nobody ran, or there are none,
/// memory decides: a context that only holds memory still keeps the clocks up.
pub(super) fn shares(
    before: &Census,
    after: &Census,
    sm: &BTreeMap<Owner, f64>,
    busy_seconds: Option<f64>,
) -> Shares {
    let mut present: BTreeMap<Owner, Holding> = BTreeMap::new();
    for census in [before, after] {
        for (owner, holding) in &census.holders {
            let sum = present.entry(*owner).or_default();
            sum.bytes = sum.bytes.saturating_add(holding.bytes);
            sum.slices += holding.slices;
        }
    }
    let ran = sm.iter().filter(|(_, seconds)| **seconds > 0.0);
    for (owner, _) in ran {
        present.entry(*owner).or_default();
    }

    let known = after.known || !sm.is_empty();
    let total_sm: f64 = sm.values().sum();
    let total_slices: f64 = present.values().map(|holding| holding.slices).sum();
    let total_bytes: u64 = present.values().fold(0, |sum, h| sum.saturating_add(h.bytes));
    let sole = known && present.len() == 1 && present.keys().all(Option::is_some);
    let method = if sole {
        GpuMethod::Sole
    } else if after.mig && total_slices > 0.0 {
        GpuMethod::Mig
    } else if total_sm > 0.0 {
        GpuMethod::Utilisation
    } else {
        GpuMethod::Memory
    };

    let mut shares = Shares { method, usage: Vec::new(), unknown_users: !known, lost_weight: 0.0 };
    if !known {
        return shares;
    }
    for (owner, holding) in &present {
        let seconds = sm.get(owner).copied().unwrap_or(0.0);
        let weight = match method {
            GpuMethod::Sole => 1.0,
            GpuMethod::Mig if total_sm > 0.0 => seconds,
            GpuMethod::Mig => holding.slices,
            GpuMethod::Utilisation => seconds,
            // Where the driver hides memory, each holder counts alike.
            GpuMethod::Memory if total_bytes == 0 => 1.0,
            GpuMethod::Memory => holding.bytes as f64,
        };
        let Some(slot) = *owner else {
            shares.lost_weight += weight;
            continue;
        };
        let busy_seconds = match method {
            GpuMethod::Sole if total_sm == 0.0 => busy_seconds,
            GpuMethod::Sole | GpuMethod::Utilisation => Some(seconds),
            GpuMethod::Memory | GpuMethod::Mig => None,
        };
        let holds = after.holders.contains_key(owner) || before.holders.contains_key(owner);
        shares.usage.push(GpuUsage { user: temporary_user(slot), weight, busy_seconds, holds });
    }
    shares
}

pub(super) fn temporary_user(slot: usize) -> crate::base::User {
    match slot.checked_sub(crate::event::SLOT_FIRST) {
        None => crate::base::User::Other,
        Some(index) => crate::base::User::Workload(crate::base::WorkloadId(index as u64 + 1)),
    }
}

pub(super) fn temporary_slot(user: crate::base::User) -> usize {
    match user {
        crate::base::User::Other => crate::event::SLOT_OTHER,
        crate::base::User::Workload(id) => id.0 as usize - 1 + crate::event::SLOT_FIRST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn always(slot: usize) -> History {
        History { exited: None, present: Some(slot) }
    }

    fn census(holders: &[(Owner, u64, f64)]) -> Census {
        let holders = holders
            .iter()
            .map(|&(owner, bytes, slices)| (owner, Holding { bytes, slices }))
            .collect::<BTreeMap<_, _>>();
        Census { known: true, mig: holders.values().any(|h| h.slices > 0.0), holders }
    }

    fn weights(shares: &Shares) -> Vec<(usize, f64)> {
        shares.usage.iter().map(|usage| (temporary_slot(usage.user), usage.weight)).collect()
    }

    #[test]
    fn spans_are_cut_at_edges_and_carried_over() {
        let mut timeline = Timeline::default();
        timeline.add((), 0, 1000 * MS, 0.5);
        timeline.add((), 900 * MS, 1100 * MS, 1.0);
        assert!((timeline.take(100 * MS, 1000 * MS)[&()] - (0.45 + 0.1)).abs() < 1e-12);
        assert!((timeline.take(1000 * MS, 2000 * MS)[&()] - 0.1).abs() < 1e-12);
        assert!(timeline.take(2000 * MS, 3000 * MS).is_empty());
    }

    #[test]
    fn all_samples_count_and_pauses_do_not() {
        // One process runs in the first, second and tenth of ten periods, another in the last two.
        let samples: Vec<ProcessSample> =
            [(1, 100, 50), (1, 200, 50), (1, 1000, 50), (2, 900, 100), (2, 1000, 100)]
                .map(|(pid, ms, sm)| ProcessSample { pid, us: ms * 1000, sm })
                .into();
        let (mut sampling, mut timeline) = (Sampling::default(), Timeline::default());
        let mono = |us| us * 1000;
        let owner = |pid| always(pid as usize);
        sampling.add(&samples, (0, 1000 * MS), mono, owner, &mut timeline);
        let sums = timeline.take(0, 1000 * MS);
        assert!((sums[&Some(1)] - 0.15).abs() < 1e-9, "{sums:?}");
        assert!((sums[&Some(2)] - 0.2).abs() < 1e-9, "{sums:?}");
        assert_eq!(sampling.since_us, 1_000_000);
        assert_eq!(sampling.lag_ns(), 100 * MS);
    }

    #[test]
    fn one_sample_a_query_covers_the_time_since_the_last() {
        let (mut sampling, mut timeline) = (Sampling::default(), Timeline::default());
        let samples = [ProcessSample { pid: 1, us: 1_000_000, sm: 40 }];
        let mono = |us| us * 1000;
        sampling.add(&samples, (500 * MS, 1000 * MS), mono, |_| always(2), &mut timeline);
        assert!((timeline.take(0, 1000 * MS)[&Some(2)] - 0.2).abs() < 1e-9);
    }

    #[test]
    fn samples_rarer_than_queries_are_known_as_such() {
        let mono = |us| us * 1000;
        let answers = |stamp: fn(u64) -> u64| {
            let (mut sampling, mut timeline) = (Sampling::default(), Timeline::default());
            for now in [100, 200, 300, 400, 500] {
                let polled = ((now - 100) * MS, now * MS);
                let us = stamp(now) * 1000;
                let samples = [ProcessSample { pid: 1, us, sm: 50 }];
                let new = &samples[..usize::from(us > sampling.since_us)];
                sampling.add(new, polled, mono, |_| always(2), &mut timeline);
            }
            sampling.lag_ns()
        };
        assert_eq!(answers(|now| now / 166 * 166), 166 * MS);
        assert_eq!(answers(|now| now), 0);
    }

    #[test]
    fn one_workload_alone_gets_all_of_it_however_many_processes() {
        let now = census(&[(Some(2), 100, 0.0)]);
        let shares = shares(&now, &now, &BTreeMap::new(), Some(0.5));
        assert_eq!(shares.method, GpuMethod::Sole);
        assert_eq!(shares.usage[0].busy_seconds, Some(0.5));
        assert!(shares.usage[0].holds);
    }

    #[test]
    fn utilisation_decides_before_memory() {
        let now = census(&[(Some(2), 100, 0.0), (Some(3), 900, 0.0)]);
        let sm = BTreeMap::from([(Some(2), 0.7), (Some(3), 0.3)]);
        let split = shares(&now, &now, &sm, None);
        assert_eq!(
            (split.method, weights(&split)),
            (GpuMethod::Utilisation, vec![(2, 0.7), (3, 0.3)])
        );
        let split = shares(&now, &now, &BTreeMap::new(), None);
        assert_eq!(
            (split.method, weights(&split)),
            (GpuMethod::Memory, vec![(2, 200.0), (3, 1800.0)])
        );
    }

    #[test]
    fn a_process_that_nobody_knows_takes_its_share_along() {
        let now = census(&[(Some(2), 100, 0.0)]);
        let sm = BTreeMap::from([(Some(2), 0.5), (None, 0.5)]);
        let split = shares(&now, &now, &sm, None);
        assert_eq!(split.method, GpuMethod::Utilisation);
        assert_eq!((weights(&split), split.lost_weight), (vec![(2, 0.5)], 0.5));
    }

    #[test]
    fn slices_decide_under_mig() {
        let now = census(&[(Some(2), 1, 3.0), (Some(3), 900, 1.0)]);
        let split = shares(&now, &now, &BTreeMap::new(), None);
        assert_eq!((split.method, weights(&split)), (GpuMethod::Mig, vec![(2, 6.0), (3, 2.0)]));
    }

    #[test]
    fn users_that_cannot_be_known_are_not_invented() {
        let unknown = Census::default();
        let split = shares(&unknown, &unknown, &BTreeMap::new(), Some(1.0));
        assert!(split.unknown_users && split.usage.is_empty());
    }
}
