//! Energy against time, from readings of a counter that stands still most of the time, or of power.
//!
//! The counter says nothing about when it was last refreshed; only a change between two readings
//! does. So the curve has a knot for every change that was seen, and is a straight line between
//! knots. What the counter holds back after the last knot belongs to the next window.

use std::collections::VecDeque;

use super::plausible::MOST_WATTS;

/// For how long power is believed to have been on the line between two readings when those in
/// between were refused.
const BRIDGED_NS: u64 = 2_000_000_000;

/// How long the first power readings are not believed: drivers that have just been woken up have been
/// seen to give anything.
const SETTLING_NS: u64 = 100_000_000;

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
    /// It went back, or ran ahead faster than the hardware draws: not the same count any more, or no
    /// count at all. The curve is as it was.
    Broken,
}

/// What a reading of power meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PowerStep {
    Taken,
    /// No such power can be drawn. It is no base for the next one.
    Refused,
    /// It can be right, but nothing is known of the time since the last one that could.
    Broken,
}

#[derive(Debug, Clone)]
pub(super) struct Curve {
    /// More than the device can draw.
    most_watts: f64,
    /// Energy is counted from `base`, so that a counter that has run for years loses no digits.
    knots: VecDeque<Knot>,
    base: u64,
    /// When the counter was first read.
    began_ns: u64,
    /// The counter's last reading, and the first one with that value.
    last: Option<(u64, u64)>,
    /// The last reading that gave a new value, and how long before it the old one was read.
    changed: Option<(u64, u64)>,
    /// How often it gave a new value.
    advances: u32,
    /// Readings since the last of them that gave the same value.
    still: u32,
    /// How often the counter refreshes, where it was read often enough to tell; nanoseconds.
    refresh: Option<u64>,
    /// The last power reading that was believed, milliwatts, while power is integrated.
    power: Option<(u64, f64)>,
    /// When power was first read.
    power_began_ns: Option<u64>,
    /// Power was refused since it was last believed.
    refused: bool,
}

impl Default for Curve {
    fn default() -> Self {
        Self::new(MOST_WATTS)
    }
}

impl Curve {
    pub(super) fn new(most_watts: f64) -> Self {
        Self {
            most_watts,
            knots: VecDeque::new(),
            base: 0,
            began_ns: 0,
            last: None,
            changed: None,
            advances: 0,
            still: 0,
            refresh: None,
            power: None,
            power_began_ns: None,
            refused: false,
        }
    }

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
        if millijoules < last || (millijoules - last) as f64 > self.most_watts * seconds * 1e3 {
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
        self.advances = self.advances.saturating_add(1);
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

    /// Takes a reading of power, milliwatts: the straight line from the one before is integrated. The
    /// first ones are looked at and not believed.
    pub(super) fn power(&mut self, ns: u64, milliwatts: f64) -> PowerStep {
        let began_ns = *self.power_began_ns.get_or_insert(ns);
        if !milliwatts.is_finite() || milliwatts < 0.0 || milliwatts > self.most_watts * 1e3 {
            self.refused = true;
            return PowerStep::Refused;
        }
        let Some((before_ns, before)) = self.power else {
            if ns >= began_ns.saturating_add(SETTLING_NS) {
                self.power_anew(ns, milliwatts);
            }
            return PowerStep::Taken;
        };
        if ns <= before_ns {
            return PowerStep::Taken;
        }
        if self.refused && ns - before_ns > BRIDGED_NS {
            return PowerStep::Broken;
        }
        self.refused = false;
        self.power = Some((ns, milliwatts));
        let seconds = (ns - before_ns) as f64 * 1e-9;
        let sum = self.knots.back().map_or(0.0, |knot| knot.millijoules);
        let millijoules = sum + (before + milliwatts) / 2.0 * seconds;
        self.push(Knot { ns, millijoules, off_ns: 0 });
        PowerStep::Taken
    }

    /// Power was read before, by the driver itself: it has settled.
    pub(super) fn power_has_settled(&mut self) {
        self.power_began_ns.get_or_insert(0);
    }

    /// Begins with a reading of power that is believed.
    pub(super) fn power_anew(&mut self, ns: u64, milliwatts: f64) {
        self.clear();
        self.power_began_ns = Some(ns);
        self.power = Some((ns, milliwatts));
        self.push(Knot { ns, millijoules: 0.0, off_ns: 0 });
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

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.most_watts);
    }

    /// Mean power from the first knot to the last, milliwatts.
    pub(super) fn mean_milliwatts(&self) -> Option<f64> {
        let [(from_ns, from), (to_ns, to)] = self.ends()?;
        (to_ns > from_ns).then(|| (to - from) / ((to_ns - from_ns) as f64 * 1e-9))
    }

    #[cfg(test)]
    pub(super) fn knots(&self) -> usize {
        self.knots.len()
    }

    /// The counter's last reading.
    pub(super) fn last_count(&self) -> Option<u64> {
        self.last.map(|(_, count)| count)
    }

    /// How often the counter was seen to move.
    pub(super) fn advances(&self) -> u32 {
        self.advances
    }

    /// For how long the counter has shown the same value, as far as it was read.
    pub(super) fn still_for_ns(&self) -> u64 {
        let since = self.changed.map_or(self.began_ns, |(ns, _)| ns);
        self.last.map_or(0, |(ns, _)| ns.saturating_sub(since))
    }

    /// How often the counter refreshes, where that is known.
    pub(super) fn refresh_ns(&self) -> Option<u64> {
        self.refresh
    }

    /// The first and the last knot: when, and what the counter showed there.
    pub(super) fn ends(&self) -> Option<[(u64, f64); 2]> {
        let at = |knot: &Knot| (knot.ns, self.base as f64 + knot.millijoules);
        Some([at(self.knots.front()?), at(self.knots.back()?)])
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
        // 5 kJ in a second and some.
        assert_eq!(curve.clone().count(20 * MS, 5_000_000), Step::Broken);
        assert_eq!(curve.clone().count(20 * MS, 2_000_000), Step::Advanced);
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

    /// Power once the first readings have been passed over: from there the time counts.
    fn settled(most_watts: f64) -> Curve {
        let mut curve = Curve::new(most_watts);
        curve.power_anew(0, 100_000.0);
        curve
    }

    #[test]
    fn power_is_integrated_along_the_line() {
        let mut curve = settled(MOST_WATTS);
        for (ms, watts) in [(1000, 200.0), (2000, 200.0)] {
            assert_eq!(curve.power(ms * MS, watts * 1e3), PowerStep::Taken);
        }
        assert_eq!(curve.at(1000 * MS), Some(150_000.0));
        assert_eq!(curve.at(2000 * MS), Some(350_000.0));
    }

    #[test]
    fn the_first_powers_are_not_believed_whatever_they_are() {
        for garbage in [4_294_967_294.0, 2_500_000.0, 700_000.0, 0.0, f64::NAN] {
            let mut curve = Curve::default();
            for ms in (0..50).step_by(5) {
                curve.power(ms * MS, garbage);
            }
            for ms in (50..=1100).step_by(10) {
                assert_eq!(curve.power(ms * MS, 100_000.0), PowerStep::Taken);
            }
            assert_eq!(curve.first_ns(), Some(100 * MS), "{garbage}");
            assert!((curve.at(1100 * MS).unwrap() - 100_000.0).abs() < 1.0, "{garbage}");
        }
    }

    #[test]
    fn a_refused_power_is_no_base_for_the_next() {
        for garbage in [4_294_967_295.0, 3_700_000.0, -1.0, f64::INFINITY] {
            let mut curve = settled(MOST_WATTS);
            curve.power(100 * MS, 100_000.0);
            assert_eq!(curve.power(200 * MS, garbage), PowerStep::Refused);
            assert_eq!(curve.power(300 * MS, 100_000.0), PowerStep::Taken);
            assert!((curve.at(300 * MS).unwrap() - 30_000.0).abs() < 1e-6);
        }
        // What one device can draw another cannot.
        assert_eq!(settled(600.0).power(100 * MS, 700_000.0), PowerStep::Refused);
        assert_eq!(settled(1400.0).power(100 * MS, 700_000.0), PowerStep::Taken);
    }

    #[test]
    fn what_was_drawn_while_power_made_no_sense_for_long_is_not_made_up() {
        let mut curve = settled(MOST_WATTS);
        for ms in (100..3000).step_by(100) {
            curve.power(ms * MS, 1e9);
        }
        assert_eq!(curve.power(3000 * MS, 100_000.0), PowerStep::Broken);
        curve.power_anew(3000 * MS, 100_000.0);
        assert_eq!((curve.first_ns(), curve.at(3000 * MS)), (Some(3000 * MS), Some(0.0)));
        // But readings that are rare are none that were refused.
        assert_eq!(curve.power(13_000 * MS, 100_000.0), PowerStep::Taken);
    }

    proptest! {
        /// However a curve is cut, the pieces are what the counter advanced by.
        #[test]
        fn pieces_add_up(steps in prop::collection::vec((1u64..50, 0u64..3000), 3..60),
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
