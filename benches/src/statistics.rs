//! Medians and how far to trust them.
//!
//! All by resampling (bootstrap): nothing is assumed about the noise but that one value says nothing about the
//! next. The same values give the same figures.

use fastrand::Rng;

const RESAMPLES: usize = 2_000;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

pub(crate) fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}

/// The value that `share` of the values do not exceed, interpolated; NaN of no values.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let position = share.clamp(0.0, 1.0) * values.len().saturating_sub(1) as f64;
    let at = |index: f64| values.get(index as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (at(position.floor()), at(position.ceil()));
    // Not `low + (high - low) * …`: that rounds where both are the same.
    low * (1.0 - position.fract()) + high * position.fract()
}

/// The 95 % confidence interval of the median.
pub(crate) fn interval(values: &[f64]) -> (f64, f64) {
    interval_of(values, median)
}

/// The 95 % confidence interval of a figure of what was found.
pub(crate) fn interval_of<T: Copy>(found: &[T], figure: impl Fn(&[T]) -> f64) -> (f64, f64) {
    let mut random = Rng::with_seed(SEED);
    middle(&(0..RESAMPLES).map(|_| figure(&resample(found, &mut random))).collect::<Vec<_>>())
}

/// How far two medians of the same thing lie apart, at most, 95 times in 100: the values are dealt
/// into two halves again and again.
pub(crate) fn noise(values: &[f64]) -> f64 {
    let mut random = Rng::with_seed(SEED);
    let mut values = values.to_vec();
    let apart = (0..RESAMPLES).map(|_| {
        random.shuffle(&mut values);
        let (one, other) = values.split_at(values.len() / 2);
        (median(one) - median(other)).abs()
    });
    quantile(&apart.collect::<Vec<_>>(), 0.95)
}

/// How the medians of two sets of values differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Difference {
    /// The 95 % confidence interval of `after - before`.
    pub interval: (f64, f64),
    /// How often, of all resamples, `after` was the higher: 0 to 1.
    pub higher: f64,
}

pub(crate) fn difference(before: &[f64], after: &[f64]) -> Difference {
    let mut random = Rng::with_seed(SEED);
    let apart: Vec<f64> = (0..RESAMPLES)
        .map(|_| median(&resample(after, &mut random)) - median(&resample(before, &mut random)))
        .collect();
    let higher = apart.iter().filter(|apart| **apart > 0.0).count() as f64
        + apart.iter().filter(|apart| **apart == 0.0).count() as f64 / 2.0;
    Difference { interval: middle(&apart), higher: higher / RESAMPLES as f64 }
}

fn resample<T: Copy>(values: &[T], random: &mut Rng) -> Vec<T> {
    values.iter().filter_map(|_| values.get(random.usize(..values.len())).copied()).collect()
}

/// Where the middle 95 % lie.
fn middle(values: &[f64]) -> (f64, f64) {
    (quantile(values, 0.025), quantile(values, 0.975))
}

/// How a cost grows with what it depends on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Growth {
    pub law: Law,
    /// The cost is `fixed + each · f(n)`.
    pub fixed: f64,
    pub each: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Law {
    Constant,
    Linear,
    Quadratic,
}

impl Law {
    const ALL: [Self; 3] = [Self::Constant, Self::Linear, Self::Quadratic];

    fn of(self, n: f64) -> f64 {
        match self {
            Self::Constant => 0.0,
            Self::Linear => n,
            Self::Quadratic => n * n,
        }
    }
}

impl Growth {
    /// The law that explains the points best, by relative least squares: each point counts by its
    /// relative error, or the largest alone would decide. A law with one more figure has to explain
    /// more than chance would let it: Schwarz's criterion. `None` of fewer than five points, or of
    /// costs that are not positive.
    pub(crate) fn fit(points: &[(f64, f64)]) -> Option<Self> {
        if points.len() < 5 || points.iter().any(|(_, cost)| *cost <= 0.0) {
            return None;
        }
        // A cost that changes by less than a tenth does not grow, however well a line explains it.
        let costs: Vec<f64> = points.iter().map(|(_, cost)| *cost).collect();
        let most = costs.iter().copied().fold(0.0, f64::max);
        let fits = Law::ALL.map(|law| fit(points, law));
        if most < 1.1 * least(&costs) {
            return fits.first().map(|(growth, _)| *growth);
        }
        let criterion = |(growth, squares): &(Self, f64)| {
            let count = points.len() as f64;
            let figures = if growth.law == Law::Constant { 1.0 } else { 2.0 };
            // Below one part in a hundred a fit is as good as any: measurements are no better.
            let variance = (squares / count).max(1e-4);
            count * variance.ln() + figures * count.ln()
        };
        fits.into_iter()
            .min_by(|one, other| criterion(one).total_cmp(&criterion(other)))
            .map(|(growth, _)| growth)
    }

    pub(crate) fn at(&self, n: f64) -> f64 {
        self.fixed + self.each * self.law.of(n)
    }
}

/// Least squares of relative errors, with neither figure below zero; and the sum of squares left.
fn fit(points: &[(f64, f64)], law: Law) -> (Growth, f64) {
    let mut sums = [0.0; 5];
    for &(n, cost) in points {
        let (one, x) = (1.0 / cost, law.of(n) / cost);
        let terms = [one * one, one * x, x * x, one, x];
        for (sum, term) in sums.iter_mut().zip(terms) {
            *sum += term;
        }
    }
    let [aa, ab, bb, a, b] = sums;
    let determinant = aa * bb - ab * ab;
    let both = ((a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant);
    let candidates = [both, (a / aa, 0.0), (0.0, b / bb)];
    let left = |growth: &Growth| {
        points.iter().map(|&(n, cost)| (growth.at(n) / cost - 1.0).powi(2)).sum::<f64>()
    };
    candidates
        .into_iter()
        .filter(|(fixed, each)| *fixed >= 0.0 && *each >= 0.0)
        .map(|(fixed, each)| Growth { law, fixed, each })
        .map(|growth| (growth, left(&growth)))
        .min_by(|one, other| one.1.total_cmp(&other.1))
        .unwrap_or((Growth { law, fixed: f64::NAN, each: f64::NAN }, f64::INFINITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noisy(count: u32) -> Vec<f64> {
        (0..count).map(|i| f64::from(i * 7 % 10)).collect()
    }

    #[test]
    fn quantiles_are_interpolated() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 0.95), 4.8);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_interval_holds_the_median_and_narrows_with_more_values() {
        let width = |values: &[f64]| {
            let (low, high) = interval(values);
            assert!(low <= median(values) && median(values) <= high);
            high - low
        };
        assert!(width(&noisy(400)) < width(&noisy(20)));
        assert_eq!(interval(&[3.0; 9]), (3.0, 3.0));
        assert!(interval(&[]).0.is_nan());
    }

    #[test]
    fn the_interval_holds_the_truth_as_often_as_it_says() {
        let mut random = Rng::with_seed(1);
        let held = (0..300).filter(|_| {
            let values: Vec<f64> = (0..15).map(|_| random.f64() + random.f64()).collect();
            let (low, high) = interval(&values);
            (low..=high).contains(&1.0)
        });
        // 95 % of 300 is 285; small samples reach a little less.
        assert!((270..=298).contains(&held.count()));
    }

    #[test]
    fn noise_is_how_far_halves_differ() {
        assert_eq!(noise(&[5.0; 10]), 0.0);
        assert!(noise(&noisy(10)) > 2.0);
        assert!(noise(&noisy(1000)) < 1.1);
    }

    #[test]
    fn a_difference_is_told_from_noise() {
        let before = noisy(50);
        let after: Vec<f64> = before.iter().map(|value| value + 5.0).collect();
        let up = difference(&before, &after);
        assert!(up.interval.0 > 0.0 && up.higher > 0.99, "{up:?}");
        let same = difference(&before, &before);
        assert!(same.interval.0 < 0.0 && same.interval.1 > 0.0, "{same:?}");
        assert!((0.3..0.7).contains(&same.higher), "{same:?}");
        assert_eq!(difference(&[1.0], &[1.0]).higher, 0.5);
    }

    #[test]
    fn growth_is_recognised() {
        let sizes = [10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0];
        let law = |cost: fn(f64) -> f64| {
            let mut wobble = [1.0, 1.03, 0.97].into_iter().cycle();
            let mut point = |n| (n, cost(n) * wobble.next().unwrap());
            Growth::fit(&sizes.map(&mut point)).unwrap().law
        };
        assert_eq!(law(|_| 7.0), Law::Constant);
        assert_eq!(law(|n| 2.0 + 0.005 * n), Law::Linear);
        assert_eq!(law(|n| 0.1 * n), Law::Linear);
        assert_eq!(law(|n| 2.0 + 1e-5 * n * n), Law::Quadratic);
        // As measured on a busy machine.
        let noisy =
            [(2105.0, 0.967), (3797.0, 1.36), (10_002.0, 2.12), (1532.0, 0.988), (80_617.0, 6.35)];
        assert_eq!(Growth::fit(&noisy).unwrap().law, Law::Linear);
        assert_eq!(Growth::fit(&[(1.0, 1.0); 4]), None);
        let linear = Growth::fit(&sizes.map(|n| (n, 2.0 + 0.005 * n))).unwrap();
        assert!((linear.at(2000.0) - 12.0).abs() < 1e-9, "{linear:?}");
    }
}
