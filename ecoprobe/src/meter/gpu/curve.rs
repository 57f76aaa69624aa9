//! Energy against time, from readings of a counter that stands still most of the time, or of power.
//!
//! The counter says nothing about when it was last refreshed; only a change between two readings
//! does. So the curve has a knot for every change that was seen, and is a straight line between
//! knots. What the counter holds back after the last knot belongs to the next window.

use std::collections::VecDeque;

/// More than any board draws; a counter that runs faster than this was not counting energy.
const MOST_WATTS: f64 = 20_000.0;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Knot {
    ns: u64,
    millijoules: f64,
    /// By how much `ns` can be wrong.
    off_ns: u64,
}

/// What a reading of the counter meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The first one, or the same value again.
    Still,
    Advanced,
    /// It went back, or ran ahead faster than any hardware draws: not the same count any more.
    Broken,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Curve {
    /// Energy is counted from `base`, so that a counter that has run for years loses no digits.
    knots: VecDeque<Knot>,
    base: u64,
    /// When the counter was first read.
    began_ns: u64,
    /// The counter's last reading, and the first one with that value.
    last: Option<(u64, u64)>,
    /// The last reading that gave a new value, and how long before it the old one was read.
    changed: Option<(u64, u64)>,
    /// Readings since then that gave the same value.
    still: u32,
    /// How often the counter refreshes, where it was read often enough to tell; nanoseconds.
    refresh: Option<u64>,
    /// The last power reading, milliwatts, while power is integrated.
    power: Option<(u64, f64)>,
}

impl Curve {
    /// Takes a reading of the counter, millijoules.
    pub(super) fn count(&mut self, ns: u64, millijoules: u64) -> Step {
        let Some((last_ns, last)) = self.last else {
            self.last = Some((ns, millijoules));
            self.base = millijoules;
            self.began_ns = ns;
            return Step::Still;
        };
        if ns <= last_ns {
            return Step::Still;
        }
        if millijoules == last {
            self.still += 1;
            self.last = Some((ns, last));
            return Step::Still;
        }
        // What a stale first value and the longest refresh can hide is far below this margin.
        let changed_ns = self.changed.map_or(last_ns, |(ns, _)| ns);
        let seconds = (ns - changed_ns) as f64 * 1e-9 + 1.0;
        if millijoules < last || (millijoules - last) as f64 > MOST_WATTS * seconds * 1e3 {
            return Step::Broken;
        }
        // With two readings or more to a refresh, the distance of two changes is known to a half,
        // and their mean far better.
        let gap = ns - last_ns;
        if let Some((changed_ns, changed_gap)) = self.changed
            && 2 * gap.max(changed_gap) <= ns - changed_ns
        {
            let distance = ns - changed_ns;
            self.refresh = Some(self.refresh.map_or(distance, |known| (3 * known + distance) / 4));
        }
        // The refresh came after the reading before, and no longer ago than refreshes are apart:
        // the middle of that is the best guess. Without knowing the latter: the reading's own time.
        let (age, off_ns) = match self.refresh {
            Some(refresh) => (gap.min(refresh) / 2, gap.min(refresh) / 2),
            None if self.still > 0 => (gap / 2, gap / 2),
            None => (0, gap),
        };
        self.last = Some((ns, millijoules));
        self.changed = Some((ns, gap));
        self.still = 0;
        let millijoules = (millijoules - self.base) as f64;
        self.sharpen_last(ns - age, off_ns);
        self.push(Knot { ns: ns - age, millijoules, off_ns });
        Step::Advanced
    }

    /// A refresh whose time is known tells that of the one before, if that was vague. Where the curve
    /// begins, a window may have ended: that knot stays.
    fn sharpen_last(&mut self, next_ns: u64, off_ns: u64) {
        let begin = self.knots.len() < 2;
        if let (Some(last), Some(refresh), false) = (self.knots.back_mut(), self.refresh, begin)
            && last.off_ns > off_ns
            && let Some(ns) = next_ns.checked_sub(refresh)
            && ns.abs_diff(last.ns) <= 2 * last.off_ns
        {
            last.ns = ns.clamp(last.ns - last.off_ns, last.ns + last.off_ns);
        }
    }

    /// Takes a reading of power, milliwatts: the straight line from the one before is integrated.
    pub(super) fn power(&mut self, ns: u64, milliwatts: f64) {
        let Some((before_ns, before)) = self.power else {
            self.power = Some((ns, milliwatts));
            self.push(Knot { ns, millijoules: 0.0, off_ns: 0 });
            return;
        };
        if ns <= before_ns || milliwatts > MOST_WATTS * 1e3 {
            return;
        }
        self.power = Some((ns, milliwatts));
        let seconds = (ns - before_ns) as f64 * 1e-9;
        let sum = self.knots.back().map_or(0.0, |knot| knot.millijoules);
        let millijoules = sum + (before + milliwatts) / 2.0 * seconds;
        self.push(Knot { ns, millijoules, off_ns: 0 });
    }

    fn push(&mut self, knot: Knot) {
        // Two changes seen at one instant cannot be told apart; the later one holds both.
        match self.knots.back_mut() {
            Some(last) if knot.ns <= last.ns => last.millijoules = knot.millijoules,
            _ => self.knots.push_back(knot),
        }
    }

    /// Gives up waiting for the counter to move: the curve ends at the last reading with the value
    /// that it showed there. Without a knot so far, it begins there.
    pub(super) fn settle(&mut self) {
        if let Some((ns, count)) = self.last {
            self.push(Knot { ns, millijoules: (count - self.base) as f64, off_ns: 0 });
        }
    }

    /// Begins the curve even though the counter has not moved in all of `patience_ns`.
    pub(super) fn begin_if_stuck(&mut self, patience_ns: u64) {
        if self.knots.is_empty()
            && self.last.is_some_and(|(ns, _)| ns - self.began_ns >= patience_ns)
        {
            self.settle();
        }
    }

    /// Where the curve begins.
    pub(super) fn first_ns(&self) -> Option<u64> {
        self.knots.front().map(|knot| knot.ns)
    }

    /// Where the curve ends so far.
    pub(super) fn last_ns(&self) -> Option<u64> {
        self.knots.back().map(|knot| knot.ns)
    }

    /// The newest knot after one instant and up to another whose time is known to within `off_ns`.
    pub(super) fn knot_within(&self, off_ns: u64, after: u64, until: u64) -> Option<u64> {
        let there = self.knots.iter().rev().filter(|knot| knot.ns > after && knot.ns <= until);
        there.map(|knot| (knot.ns, knot.off_ns)).find(|(_, off)| *off <= off_ns).map(|(ns, _)| ns)
    }

    /// Whether two refreshes have been seen: the first to begin at, the second to know how far
    /// apart they are.
    pub(super) fn primed(&self) -> bool {
        self.knots.len() >= 2
    }

    /// Energy at that instant since the curve began, millijoules, if the curve covers it.
    pub(super) fn at(&self, ns: u64) -> Option<f64> {
        let after = self.knots.partition_point(|knot| knot.ns < ns);
        let right = self.knots.get(after)?;
        if right.ns == ns {
            return Some(right.millijoules);
        }
        let left = self.knots.get(after.checked_sub(1)?)?;
        let share = (ns - left.ns) as f64 / (right.ns - left.ns) as f64;
        Some(left.millijoules + share * (right.millijoules - left.millijoules))
    }

    /// Forgets what is before that instant, but for what `at` needs there. Returns how far apart
    /// the forgotten knots were on average, nanoseconds.
    pub(super) fn forget_before(&mut self, ns: u64) -> Option<f64> {
        let before = self.knots.partition_point(|knot| knot.ns <= ns).saturating_sub(1);
        let spacing = match (self.knots.front(), self.knots.get(before)) {
            (Some(first), Some(last)) if before > 0 => {
                Some((last.ns - first.ns) as f64 / before as f64)
            }
            _ => None,
        };
        self.knots.drain(..before);
        spacing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    /// A counter of constant power that refreshes every `refresh` ms, read every `poll` ms.
    fn watched(refresh: u64, poll: u64, readings: u64) -> Curve {
        let mut curve = Curve::default();
        for i in 0..readings {
            let ms = i * poll;
            curve.count(ms * MS, 1_000_000 + ms / refresh * refresh * 100);
        }
        curve
    }

    #[test]
    fn a_slow_counter_gives_one_knot_a_refresh() {
        let curve = watched(100, 10, 101);
        assert_eq!(curve.knots.len(), 10);
        let slope = curve.at(950 * MS).unwrap() - curve.at(450 * MS).unwrap();
        assert!((slope - 500.0 * 100.0).abs() < 1e-6, "{slope}");
    }

    #[test]
    fn the_time_of_a_knot_is_off_by_half_a_poll_at_most() {
        let curve = watched(100, 10, 101);
        for knot in &curve.knots {
            let refreshed = knot.millijoules / 100.0 * MS as f64;
            assert!((knot.ns as f64 - refreshed).abs() <= 5.0 * MS as f64, "{knot:?}");
        }
    }

    #[test]
    fn a_counter_that_stands_still_carries_its_rest_over() {
        let mut curve = Curve::default();
        for (ms, count) in [(0, 10), (10, 20), (20, 20), (30, 20)] {
            curve.count(ms * MS, count);
        }
        assert_eq!(curve.last_ns(), Some(10 * MS));
        assert_eq!(curve.at(20 * MS), None);
        curve.settle();
        assert_eq!(curve.at(30 * MS), Some(10.0));
    }

    #[test]
    fn what_cannot_be_energy_is_refused() {
        let mut curve = Curve::default();
        curve.count(0, 1000);
        assert_eq!(curve.count(10 * MS, 1100), Step::Advanced);
        assert_eq!(curve.clone().count(20 * MS, 1099), Step::Broken);
        assert_eq!(curve.clone().count(20 * MS, u64::MAX), Step::Broken);
        assert_eq!(curve.count(20 * MS, 1100), Step::Still);
    }

    #[test]
    fn a_close_look_tells_a_sharp_moment_from_a_vague_one() {
        let mut curve = Curve::default();
        // Every 5 ms for as long as it takes to know the refresh, then every 100 ms, then closely.
        let times = (0..=210).step_by(5).chain([310, 410, 510]).chain((510..=610).step_by(5));
        for ms in times {
            curve.count(ms * MS, 1_000_000 + (ms + 31) / 100 * 100 * 100);
        }
        // The last three refreshes were at 369, 469 and 569 ms.
        let sharp = curve.knot_within(5 * MS, 300 * MS, 600 * MS).unwrap();
        assert!(sharp.abs_diff(569 * MS) <= 5 * MS / 2, "{sharp}");
        assert_eq!(curve.knot_within(5 * MS, 300 * MS, 560 * MS), None);
        let vague = curve.knot_within(u64::MAX, 300 * MS, 560 * MS).unwrap();
        assert!(vague.abs_diff(469 * MS) <= 50 * MS, "{vague}");
        assert_eq!(curve.knot_within(u64::MAX, sharp, u64::MAX), None);
    }

    #[test]
    fn power_is_integrated_along_the_line() {
        let mut curve = Curve::default();
        for (ms, watts) in [(0, 100.0), (1000, 200.0), (2000, 200.0)] {
            curve.power(ms * MS, watts * 1e3);
        }
        assert_eq!(curve.at(1000 * MS), Some(150_000.0));
        assert_eq!(curve.at(2000 * MS), Some(350_000.0));
    }

    proptest! {
        /// However a curve is cut, the pieces are what the counter advanced by.
        #[test]
        fn pieces_add_up(steps in prop::collection::vec((1u64..50, 0u64..5000), 3..60),
                         cuts in prop::collection::vec(0.0f64..1.0, 0..10)) {
            let mut curve = Curve::default();
            let (mut ms, mut count) = (0, 1 << 53);
            for (wait, advance) in steps {
                ms += wait;
                count += advance;
                prop_assert_ne!(curve.count(ms * MS, count), Step::Broken);
            }
            let (Some(first), Some(last)) = (curve.first_ns(), curve.last_ns()) else {
                return Ok(());
            };
            let whole = curve.at(last).unwrap() - curve.at(first).unwrap();
            let mut edges: Vec<u64> =
                cuts.iter().map(|cut| first + (cut * (last - first) as f64) as u64).collect();
            edges.extend([first, last]);
            edges.sort_unstable();
            let mut sum = 0.0;
            for pair in edges.windows(2) {
                let piece = curve.at(pair[1]).unwrap() - curve.at(pair[0]).unwrap();
                prop_assert!(piece >= 0.0);
                sum += piece;
                curve.forget_before(pair[0]);
            }
            prop_assert!((sum - whole).abs() <= 1e-9 * whole);
        }
    }
}
