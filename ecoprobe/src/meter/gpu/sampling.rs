//! Who computed when: the driver's utilisation samples, as rates over time.

use std::collections::{BTreeMap, VecDeque};

use super::driver::ProcessSample;
use super::owner::{History, Owner};

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
    /// Time between two samples in each of the last answers that told it, nanoseconds; none while
    /// answers were one a query.
    periods_ns: VecDeque<u64>,
    /// Where the next query begins, in the driver's own clock: the newest time stamp seen, or the
    /// query before one that came back empty.
    pub(super) since_us: u64,
    /// The newest time stamp of each process in the last answer that had any.
    newest_us: BTreeMap<u32, u64>,
}

/// From how many answers the period is taken. The shortest of them counts: where a process pauses,
/// its samples are several periods apart. As many answers later, a period that has grown is known.
const PERIODS: usize = 8;

/// A sample that is older than the query by more than this was not made for it.
const NOT_FOR_US_NS: u64 = 2_000_000;

impl Sampling {
    /// How far back from now all samples have surely been delivered, nanoseconds.
    pub(super) fn lag_ns(&self) -> u64 {
        self.period_ns().unwrap_or(0)
    }

    fn period_ns(&self) -> Option<u64> {
        self.periods_ns.iter().min().copied()
    }

    /// Adds an answer to `timeline`: utilisation 0 to 1 by owner. `polled` are the times of the
    /// query before and of this one; `mono_ns` maps the driver's time stamps to CLOCK_MONOTONIC;
    /// `history` says who has had a pid.
    pub(super) fn add(
        &mut self,
        samples: &[ProcessSample],
        polled: (u64, u64),
        mono_ns: impl Fn(u64) -> u64,
        mut history: impl FnMut(u32) -> History,
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
            if self.periods_ns.len() == PERIODS {
                self.periods_ns.pop_front();
            }
            self.periods_ns.push_back(gap);
        }
        let period = self.period_ns();
        let since = mono_ns(self.since_us);
        for (pid, times) in by_pid {
            let history = history(pid);
            for (us, sm) in times {
                self.since_us = self.since_us.max(us);
                let to = mono_ns(us).min(polled.1);
                let began = period.map_or(polled.0, |period| to.saturating_sub(period));
                let owner = history.owner_at(began);
                let rate = f64::from(sm) / 100.0;
                match period {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::WorkloadId;
    use crate::base::id::User;
    use crate::meter::gpu::owner::Present;

    const MS: u64 = 1_000_000;

    fn user(id: u64) -> User {
        User::Workload(WorkloadId(id))
    }

    fn always(id: u64) -> History {
        History { exited: None, present: Present::User(user(id)) }
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
        let owner = |pid| always(u64::from(pid));
        sampling.add(&samples, (0, 1000 * MS), mono, owner, &mut timeline);
        let sums = timeline.take(0, 1000 * MS);
        assert!((sums[&Some(user(1))] - 0.15).abs() < 1e-9, "{sums:?}");
        assert!((sums[&Some(user(2))] - 0.2).abs() < 1e-9, "{sums:?}");
        assert_eq!(sampling.since_us, 1_000_000);
        assert_eq!(sampling.lag_ns(), 100 * MS);
    }

    #[test]
    fn one_sample_a_query_covers_the_time_since_the_last() {
        let (mut sampling, mut timeline) = (Sampling::default(), Timeline::default());
        let samples = [ProcessSample { pid: 1, us: 1_000_000, sm: 40 }];
        let mono = |us| us * 1000;
        sampling.add(&samples, (500 * MS, 1000 * MS), mono, |_| always(2), &mut timeline);
        assert!((timeline.take(0, 1000 * MS)[&Some(user(2))] - 0.2).abs() < 1e-9);
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

    /// Answers once a second, of a process that runs all the time.
    fn answer(sampling: &mut Sampling, second: u64, period_ms: u64) {
        let first = second * 1000 - 1000;
        let samples: Vec<ProcessSample> = (first / period_ms + 1..=second * 1000 / period_ms)
            .map(|i| ProcessSample { pid: 1, us: i * period_ms * 1000, sm: 50 })
            .collect();
        let polled = (first * MS, second * 1000 * MS);
        sampling.add(&samples, polled, |us| us * 1000, |_| always(2), &mut Timeline::default());
    }

    #[test]
    fn the_period_is_followed_in_both_directions() {
        let mut sampling = Sampling::default();
        let mut second = 0;
        for period_ms in [166, 20, 100, 250, 50] {
            for _ in 0..PERIODS {
                second += 1;
                answer(&mut sampling, second, period_ms);
            }
            assert_eq!(sampling.lag_ns(), period_ms * MS);
        }
    }

    #[test]
    fn a_process_that_pauses_makes_no_period_longer() {
        let mut sampling = Sampling::default();
        for second in 1..40 {
            // It runs in every fourth period; once in a while in two that follow each other.
            let often = if second % 4 == 0 { 20 } else { 80 };
            answer(&mut sampling, second, often);
            if second > 4 {
                assert_eq!(sampling.lag_ns(), 20 * MS);
            }
        }
    }
}
