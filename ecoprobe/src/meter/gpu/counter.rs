//! An energy counter whose readings are checked against each other.
//!
//! A reading that cannot follow from those before (it goes back, or ahead faster than the device can
//! draw) is doubted, not believed: either it made no sense, and the count goes on where it was, with
//! no joule lost; or a new count has begun, and the readings that were doubted follow from each
//! other. Only then are they believed, from the first of them on.

use super::curve::{Curve, Step};

/// For how long a new count has to go on before it is believed.
const PROVEN_NS: u64 = 500_000_000;

/// What a reading meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It follows from those before.
    Believed,
    /// It does not. `first`: those before it did.
    Doubted { first: bool },
    /// It does, and the doubted ones before it were wrong.
    Returned,
    /// A new count has begun; [`Counter::renew`] takes it.
    Anew,
}

#[derive(Debug, Clone)]
pub(super) struct Counter {
    most_watts: f64,
    curve: Curve,
    doubted: Option<Doubted>,
}

/// Readings that do not follow from the believed ones.
#[derive(Debug, Clone)]
struct Doubted {
    since_ns: u64,
    /// They began beyond what could have been reached, not behind.
    ahead: bool,
    curve: Curve,
}

impl Counter {
    pub(super) fn new(most_watts: f64) -> Self {
        Self { most_watts, curve: Curve::new(most_watts), doubted: None }
    }

    pub(super) fn curve(&self) -> &Curve {
        &self.curve
    }

    pub(super) fn curve_mut(&mut self) -> &mut Curve {
        &mut self.curve
    }

    /// Goes on with another curve.
    pub(super) fn replace(&mut self, curve: Curve) {
        (self.curve, self.doubted) = (curve, None);
    }

    /// Takes a reading, millijoules.
    pub(super) fn count(&mut self, ns: u64, millijoules: u64) -> Verdict {
        let follows = match &mut self.doubted {
            Some(doubted) => doubted.curve.count(ns, millijoules) != Step::Broken,
            None => false,
        };
        // With time everything ahead of a count could be reached; what follows from a reading that was
        // too far ahead is no better than that. What lies behind is not reached, but returned from.
        let still_ahead = follows && self.doubted.as_ref().is_some_and(|doubted| doubted.ahead);
        if !still_ahead && self.curve.count(ns, millijoules) != Step::Broken {
            return match self.doubted.take() {
                Some(_) => Verdict::Returned,
                None => Verdict::Believed,
            };
        }
        let first = self.doubted.is_none();
        if !follows {
            let mut curve = Curve::new(self.most_watts);
            curve.count(ns, millijoules);
            let ahead = self.curve.last_count().is_some_and(|last| millijoules > last);
            self.doubted = Some(Doubted { since_ns: ns, ahead, curve });
        }
        // Where nothing was ever seen to move, a count that moves is the better one.
        let doubted = self.doubted.as_ref();
        let proven = doubted.is_some_and(|doubted| match self.curve.advances() {
            0 => doubted.curve.advances() > 0,
            _ => doubted.curve.advances() > 1 && ns - doubted.since_ns >= PROVEN_NS,
        });
        if proven { Verdict::Anew } else { Verdict::Doubted { first } }
    }

    /// For how long the newest readings have been the same, whether they are believed or not.
    pub(super) fn still_for_ns(&self) -> u64 {
        let newest = self.doubted.as_ref().map_or(&self.curve, |doubted| &doubted.curve);
        newest.still_for_ns()
    }

    /// Whether readings are doubted that follow from each other and move: a new count, most likely,
    /// though it has not gone on for long.
    pub(super) fn seems_anew(&self) -> bool {
        self.doubted.as_ref().is_some_and(|doubted| doubted.curve.advances() > 0)
    }

    /// Whether the newest readings are in doubt.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.is_some()
    }

    /// Whether the energy is known at a moment after that, to within `off_ns`.
    pub(super) fn covers(&self, ns: u64, off_ns: u64) -> bool {
        let covers = |curve: &Curve| curve.knot_within(off_ns, ns, u64::MAX).is_some();
        covers(&self.curve) || self.doubted.as_ref().is_some_and(|doubted| covers(&doubted.curve))
    }

    /// Goes on with the new count. What lies between the two is not known.
    pub(super) fn renew(&mut self) {
        if let Some(doubted) = self.doubted.take() {
            self.curve = doubted.curve;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;

    /// 100 W, refreshed every 20 ms.
    fn truth(ms: u64) -> u64 {
        5_000_000 + ms / 20 * 2000
    }

    /// Reads every 10 ms what `reading` says, and tells the verdicts that are no plain belief.
    fn read(
        counter: &mut Counter,
        ms: std::ops::Range<u64>,
        reading: impl Fn(u64) -> u64,
    ) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        for ms in ms.step_by(10) {
            let verdict = counter.count(ms * MS, reading(ms));
            if verdict == Verdict::Anew {
                counter.renew();
            }
            if !matches!(verdict, Verdict::Believed | Verdict::Doubted { first: false }) {
                verdicts.push(verdict);
            }
        }
        verdicts
    }

    fn joules(counter: &Counter, from_ms: u64, to_ms: u64) -> f64 {
        let at = |ms: u64| counter.curve().at(ms * MS).unwrap();
        (at(to_ms) - at(from_ms)) * 1e-3
    }

    #[test]
    fn a_counter_that_steps_aside_and_returns_loses_nothing() {
        for garbage in [0, 4_999_000, 8_500_000, 9_999_999, 1 << 60, u64::MAX - 1] {
            // One reading, and two seconds of them.
            for ms in [1000..1010, 1000..3000] {
                let mut counter = Counter::new(3000.0);
                let wrong = |now: u64| if ms.contains(&now) { garbage } else { truth(now) };
                let verdicts = read(&mut counter, 0..4000, wrong);
                assert_eq!(
                    verdicts,
                    [Verdict::Doubted { first: true }, Verdict::Returned],
                    "{garbage} {ms:?}"
                );
                assert!((joules(&counter, 500, 3500) - 300.0).abs() < 2.0);
            }
        }
    }

    #[test]
    fn a_new_count_is_taken_from_its_first_reading_on() {
        // A reset, and a jump ahead.
        for start in [0, 4_000_000, 8_500_000, 9_500_000, 1 << 40] {
            let mut counter = Counter::new(3000.0);
            let reading =
                |ms: u64| if ms < 1000 { truth(ms) } else { start + (ms - 1000) / 20 * 2000 };
            read(&mut counter, 0..1000, reading);
            assert!((joules(&counter, 100, 900) - 80.0).abs() < 2.0);
            let verdicts = read(&mut counter, 1000..4000, reading);
            assert_eq!(verdicts, [Verdict::Doubted { first: true }, Verdict::Anew]);
            assert!(counter.curve().first_ns().unwrap() <= 1030 * MS);
            assert!((joules(&counter, 1100, 3900) - 280.0).abs() < 2.0);
        }
    }

    #[test]
    fn a_first_value_that_is_wrong_is_no_base() {
        for garbage in [0, 4_000, 1 << 50] {
            let mut counter = Counter::new(600.0);
            let reading = |ms: u64| if ms < 10 { garbage } else { truth(ms) };
            let verdicts = read(&mut counter, 0..1000, reading);
            assert_eq!(verdicts.last(), Some(&Verdict::Anew), "{garbage}");
            let [(_, first), (_, last)] = counter.curve().ends().unwrap();
            assert!(last - first <= 100_000.0, "{garbage}: {}", last - first);
        }
    }

    #[test]
    fn garbage_of_many_kinds_is_never_a_count() {
        let mut counter = Counter::new(3000.0);
        let reading = |ms: u64| match ms {
            1000..2500 => ms.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            _ => truth(ms),
        };
        let verdicts = read(&mut counter, 0..4000, reading);
        assert_eq!(verdicts, [Verdict::Doubted { first: true }, Verdict::Returned]);
        assert!((joules(&counter, 500, 3500) - 300.0).abs() < 2.0);
    }

    proptest! {
        /// Whatever single readings are wrong in whatever way: what is known is what was drawn.
        #[test]
        fn wrong_readings_change_nothing(
            wrong in prop::collection::btree_map(10u64..190, any::<u64>(), 0..20)
        ) {
            let mut counter = Counter::new(3000.0);
            for i in 0..200 {
                let ms = i * 10;
                // Far off: what is off by a few joules cannot be told.
                let far = |value: &u64| value.abs_diff(truth(ms)) > 20_000_000;
                let reading = wrong.get(&i).copied().filter(far).unwrap_or(truth(ms));
                prop_assert_ne!(counter.count(ms * MS, reading), Verdict::Anew);
            }
            prop_assert!((joules(&counter, 100, 1900) - 180.0).abs() < 3.0);
        }
    }
}
