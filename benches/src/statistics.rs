//! Medians and how far to trust them.

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The 95 % confidence interval of the median, by 2,000 bootstrap resamples: no assumption about the
/// noise but that one value says nothing about the next. The same values give the same interval.
pub(crate) fn interval(values: &[f64]) -> (f64, f64) {
    const RESAMPLES: usize = 2_000;
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut pick = || {
        // xorshift64; good enough to draw lots.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        values[(state % values.len() as u64) as usize]
    };
    if values.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| median(&(0..values.len()).map(|_| pick()).collect::<Vec<_>>()))
        .collect();
    medians.sort_by(f64::total_cmp);
    (medians[RESAMPLES / 40], medians[RESAMPLES - 1 - RESAMPLES / 40])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_more_values() {
        let noisy = |n: u32| (0..n).map(|i| f64::from(i * 7 % 10)).collect::<Vec<_>>();
        let width = |values: &[f64]| {
            let (low, high) = interval(values);
            assert!(low <= median(values) && median(values) <= high);
            high - low
        };
        assert!(width(&noisy(400)) < width(&noisy(20)));
        assert_eq!(interval(&[3.0; 9]), (3.0, 3.0));
        assert!(interval(&[]).0.is_nan());
    }
}
