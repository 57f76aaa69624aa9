//! What lies between two readings of one energy counter.
//!
//! Counters wrap, are reset, freeze and jump. Only a difference that has exactly one explanation
//! becomes joules; everything else keeps its name, so that the report can say what is missing.

use crate::base::units::{Joules, Seconds, Watts};
use crate::event::{Domain, Reading};

/// How much longer than the time between two readings the energy between them may have flowed.
/// RAPL refreshes about once a millisecond, and a reader may be preempted between the clock and
/// the counter; without this allowance very short windows would be refused falsely.
pub(super) const SLACK: Seconds = Seconds(0.010);

/// The difference of two readings of one counter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Delta {
    /// There is nothing to compare with: this reading is where counting starts.
    First,
    /// The counter advanced by so many counts.
    Advance(u64),
    /// The counter passed the end of its range once; so many counts in all.
    Wrapped(u64),
    /// More than one advance would explain these readings.
    Ambiguous(Doubt),
    /// The one advance that would explain them is more than the hardware can draw.
    Refused { joules: Joules, watts: Watts },
    /// The counter read a value that it does not have.
    OutOfRange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doubt {
    /// So much time passed that the counter may have wrapped once more than it shows.
    MoreWraps,
    /// A counter that never wraps is lower than before: it was reset, some time in between.
    WentBack,
    /// The second reading is older than the first.
    TimeWentBack,
}

impl Delta {
    /// The advance, where there is one to trust.
    pub(crate) fn counts(self) -> Option<u64> {
        match self {
            Self::Advance(counts) | Self::Wrapped(counts) => Some(counts),
            _ => None,
        }
    }
}

/// True if the counter of `domain` can have this value at all.
pub(crate) fn in_range(domain: &Domain, reading: Reading) -> bool {
    domain.range.is_none_or(|range| reading.count < range)
}

/// Compares two readings of the counter of `domain`.
pub(crate) fn delta(domain: &Domain, previous: Option<Reading>, now: Reading) -> Delta {
    if !in_range(domain, now) {
        return Delta::OutOfRange;
    }
    let Some(previous) = previous.filter(|&reading| in_range(domain, reading)) else {
        return Delta::First;
    };
    let Some(elapsed_ns) = now.mono_ns.checked_sub(previous.mono_ns) else {
        return Delta::Ambiguous(Doubt::TimeWentBack);
    };

    let (counts, delta) = match (now.count.checked_sub(previous.count), domain.range) {
        (Some(counts), _) => (counts, Delta::Advance(counts)),
        // Both are below the range, so neither step can overflow.
        (None, Some(range)) => {
            let counts = range - previous.count + now.count;
            (counts, Delta::Wrapped(counts))
        }
        (None, None) => return Delta::Ambiguous(Doubt::WentBack),
    };

    let elapsed = Seconds::from_ns(elapsed_ns) + SLACK;
    let most = Watts(domain.max_watts) * elapsed;
    let joules = |counts: f64| Joules(counts * domain.joules_per_count);
    let drawn = joules(counts as f64);
    // Written so that a NaN from a damaged recording is refused.
    if !(Joules(0.0)..=most).contains(&drawn) {
        return Delta::Refused { joules: drawn, watts: drawn / elapsed };
    }
    match domain.range {
        Some(range) if joules(counts as f64 + range as f64) <= most => {
            Delta::Ambiguous(Doubt::MoreWraps)
        }
        _ => delta,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::Component;

    const RANGE: u64 = 1 << 32;

    fn domain(range: Option<u64>) -> Domain {
        Domain {
            name: "package-0".into(),
            component: Component::Cpu,
            package: 0,
            joules_per_count: 6.103515625e-5,
            range,
            max_watts: 500.0,
        }
    }

    fn at(ms: u64, count: u64) -> Reading {
        Reading { mono_ns: ms * 1_000_000, count }
    }

    fn between(range: Option<u64>, a: Reading, b: Reading) -> Delta {
        delta(&domain(range), Some(a), b)
    }

    #[test]
    fn the_first_reading_measures_nothing() {
        assert_eq!(delta(&domain(None), None, at(0, 7)), Delta::First);
        // Nor does the first one after nonsense.
        assert_eq!(between(Some(RANGE), at(0, RANGE), at(1, 7)), Delta::First);
    }

    #[test]
    fn a_32_bit_counter_wraps_exactly() {
        assert_eq!(between(Some(RANGE), at(0, 5), at(1000, 1005)), Delta::Advance(1000));
        assert_eq!(between(Some(RANGE), at(0, RANGE - 1), at(1000, 0)), Delta::Wrapped(1));
        assert_eq!(between(Some(RANGE), at(0, RANGE - 3), at(1000, 4)), Delta::Wrapped(7));
        // powercap's range is rarely a power of two.
        let range = Some(262_143_328_850);
        let mut microjoules = domain(range);
        microjoules.joules_per_count = 1e-6;
        let wrapped = delta(&microjoules, Some(at(0, 262_143_328_000)), at(1000, 150));
        assert_eq!(wrapped, Delta::Wrapped(1000));
    }

    #[test]
    fn the_widest_range_does_not_overflow() {
        let mut wide = domain(Some(u64::MAX));
        wide.joules_per_count = 1e-12;
        assert_eq!(delta(&wide, Some(at(0, u64::MAX - 1)), at(1000, 1)), Delta::Wrapped(2));
    }

    #[test]
    fn a_window_in_which_two_wraps_fit_is_ambiguous() {
        // The range is 262,144 J: 524 s at 500 W.
        let (first, now) = (at(0, 1_000_000), at(540_000, 1_000_016));
        assert_eq!(between(Some(RANGE), first, now), Delta::Ambiguous(Doubt::MoreWraps));
        assert_eq!(between(Some(RANGE), first, at(500_000, 1_000_016)), Delta::Advance(16));
        assert_eq!(between(None, first, now), Delta::Advance(16));
    }

    #[test]
    fn a_reset_is_never_taken_for_energy() {
        let (high, low) = (at(0, 4_000_000_000), at(1000, 12));
        assert_eq!(between(None, high, low), Delta::Ambiguous(Doubt::WentBack));
        // A 32-bit counter that was reset looks like a wrap of an impossible size.
        assert!(matches!(
            between(Some(RANGE), at(0, 1_000_000_000), low),
            Delta::Refused { watts: Watts(watts), .. } if watts > 100_000.0
        ));
    }

    #[test]
    fn more_than_the_hardware_can_draw_is_refused() {
        let limit = |ms: u64| (500.0 * (ms as f64 * 1e-3 + SLACK.0) / 6.103515625e-5) as u64;
        assert_eq!(between(None, at(0, 0), at(1000, limit(1000))), Delta::Advance(limit(1000)));
        assert!(matches!(
            between(None, at(0, 0), at(1000, limit(1000) + 1)),
            Delta::Refused { .. }
        ));
    }

    #[test]
    fn a_refresh_at_the_edge_of_a_very_short_window_is_not_refused() {
        // One refresh at 400 W, seen in a window of 50 µs.
        let refresh = (400.0 * 0.001 / 6.103515625e-5) as u64;
        let (a, b) =
            (Reading { mono_ns: 0, count: 0 }, Reading { mono_ns: 50_000, count: refresh });
        assert_eq!(between(None, a, b), Delta::Advance(refresh));
        assert_eq!(between(None, at(5, 9), at(5, 9)), Delta::Advance(0));
        assert!(matches!(between(None, at(5, 9), at(5, 1 << 40)), Delta::Refused { .. }));
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(between(Some(100), at(0, 5), at(1, 100)), Delta::OutOfRange);
        assert_eq!(delta(&domain(Some(100)), None, at(1, 100)), Delta::OutOfRange);
        assert_eq!(between(None, at(2, 5), at(1, 6)), Delta::Ambiguous(Doubt::TimeWentBack));
        let mut broken = domain(None);
        broken.joules_per_count = f64::NAN;
        assert!(matches!(delta(&broken, Some(at(0, 0)), at(1, 1)), Delta::Refused { .. }));
    }

    proptest! {
        #[test]
        fn what_was_drawn_is_what_is_counted(
            start in 0..RANGE,
            drawn in proptest::collection::vec(0u64..8_000_000, 1..50),
        ) {
            let mut previous = at(0, start);
            let mut sum = 0;
            for (second, counts) in drawn.iter().enumerate() {
                let now = at(1000 * (second as u64 + 1), (previous.count + counts) % RANGE);
                sum += between(Some(RANGE), previous, now).counts().unwrap();
                previous = now;
            }
            prop_assert_eq!(sum, drawn.iter().sum::<u64>());
        }

        #[test]
        fn any_two_readings_give_an_answer_within_the_limit(
            range in proptest::option::of(1u64..), a_ns: u64, b_ns: u64, a: u64, b: u64,
        ) {
            let (first, now) =
                (Reading { mono_ns: a_ns, count: a }, Reading { mono_ns: b_ns, count: b });
            if let Some(counts) = between(range, first, now).counts() {
                let most = 500.0 * ((b_ns - a_ns) as f64 * 1e-9 + SLACK.0);
                prop_assert!(counts as f64 * 6.103515625e-5 <= most * (1.0 + 1e-12));
            }
        }
    }
}
