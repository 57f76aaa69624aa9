//! What a device can draw: readings beyond it are refused.

/// More than any single GPU draws (the largest announced: 2.3 kW); for those whose driver does not
/// tell its limit.
pub(super) const MOST_WATTS: f64 = 3000.0;

/// How far beyond its highest limit a device may be for a moment.
const BEYOND_LIMIT: f64 = 2.0;

/// More than a device with that highest limit can draw, watts. A limit that is none itself is not
/// believed.
pub(super) fn most_watts(limit: Option<f64>) -> f64 {
    match limit {
        Some(watts) if (1.0..=MOST_WATTS).contains(&watts) => {
            // Laptops' parts are told limits of a few watts, and borrow from the processor's.
            (watts * BEYOND_LIMIT).max(200.0)
        }
        _ => MOST_WATTS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_believed_if_it_can_be_one() {
        assert_eq!(most_watts(Some(700.0)), 1400.0);
        assert_eq!(most_watts(Some(35.0)), 200.0);
        for none in [None, Some(0.0), Some(4_294_967.295), Some(f64::NAN)] {
            assert_eq!(most_watts(none), MOST_WATTS, "{none:?}");
        }
    }
}
