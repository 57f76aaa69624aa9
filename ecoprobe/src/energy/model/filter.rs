//! A Kalman filter that also carries how sums depend on what it estimates.
//!
//! The state `x` has a covariance `P`. A measurement `y = F·x + noise` moves it by the gain
//! `g = P F / s` with `s = F·P F + noise`. The covariance is updated in Joseph's form
//! (Bucy & Joseph, Filtering for Stochastic Processes, 1968), which stays symmetric and positive
//! however many updates there are:
//!
//! ```text
//! P ← (I − g Fᵀ) P (I − g Fᵀ)ᵀ + g noise gᵀ = P − g (P F)ᵀ − (P F) gᵀ + s g gᵀ
//! ```
//!
//! A sum `a` that was added up with the state as it was known then has a covariance with it,
//! `b = Cov(a, x)`: by the same measurement `a` is corrected by `(b·F / s)·(y − F·x)`. So what is
//! learned late mends what was added up early, and no measurement is kept.

/// The state. Numbers beyond those in use stay at 0.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    /// How many numbers there can be; row length of `covariance`.
    stride: usize,
    /// Those in use come first.
    used: usize,
    pub(super) state: Vec<f64>,
    covariance: Vec<f64>,
    /// `P F` and the gain of the newest measurement.
    toward: Vec<f64>,
    gain: Vec<f64>,
}

/// Sums that depend on the state. There are as many as were ever asked for.
#[derive(Debug, Clone)]
pub(super) struct Sums {
    stride: usize,
    pub(super) joules: Vec<f64>,
    pub(super) variance: Vec<f64>,
    covariance: Vec<f64>,
}

impl Filter {
    pub(super) fn new(used: usize, stride: usize) -> Self {
        Self {
            stride,
            used,
            state: vec![0.0; stride],
            covariance: vec![0.0; stride * stride],
            toward: vec![0.0; stride],
            gain: vec![0.0; stride],
        }
    }

    pub(super) fn variance(&self, index: usize) -> f64 {
        self.covariance[index * self.stride + index]
    }

    /// Begins a number anew: nothing of it is known but its mean and variance.
    pub(super) fn begin(&mut self, index: usize, mean: f64, variance: f64) {
        self.used = self.used.max(index + 1);
        for other in 0..self.used {
            self.covariance[index * self.stride + other] = 0.0;
            self.covariance[other * self.stride + index] = 0.0;
        }
        self.state[index] = mean;
        self.covariance[index * self.stride + index] = variance;
    }

    /// Time passes: a number may have moved.
    pub(super) fn disturb(&mut self, index: usize, variance: f64) {
        self.covariance[index * self.stride + index] += variance;
    }

    /// Two numbers may have been taken for one another: what one has more, the other has less.
    pub(super) fn exchange(&mut self, one: usize, other: usize, variance: f64) {
        self.disturb(one, variance);
        self.disturb(other, variance);
        self.covariance[one * self.stride + other] -= variance;
        self.covariance[other * self.stride + one] -= variance;
    }

    /// A number goes back towards 0, by the factor `keep`.
    pub(super) fn relax(&mut self, index: usize, keep: f64) {
        self.state[index] *= keep;
        for other in 0..self.used {
            self.covariance[index * self.stride + other] *= keep;
            self.covariance[other * self.stride + index] *= keep;
        }
    }

    /// `f·x`.
    pub(super) fn predict(&self, f: &[f64]) -> f64 {
        dot(&self.state[..self.used], f)
    }

    /// `P f`.
    pub(super) fn spread(&self, f: &[f64], out: &mut Vec<f64>) {
        out.clear();
        let rows = self.covariance.chunks_exact(self.stride).take(self.used);
        out.extend(rows.map(|row| dot(&row[..self.used], f)));
    }

    /// `P` times the unit vector of one number.
    pub(super) fn column(&self, index: usize) -> &[f64] {
        &self.covariance[index * self.stride..][..self.used]
    }

    /// The variance of `f·x`. What is learned next has to be about this `f`.
    pub(super) fn look_along(&mut self, f: &[f64]) -> f64 {
        let mut toward = std::mem::take(&mut self.toward);
        self.spread(f, &mut toward);
        self.toward = toward;
        dot(&self.toward, f).max(0.0)
    }

    /// Takes in that `f·x`, which was looked along last, was measured as `residual` more than it was
    /// predicted, with a noise of this variance. Nothing happens where nothing can be learned.
    pub(super) fn learn(&mut self, f: &[f64], residual: f64, noise: f64, sums: &mut Sums) {
        let used = self.used;
        let total = dot(&self.toward, f).max(0.0) + noise;
        if !(total > 0.0 && total.is_finite() && residual.is_finite()) {
            return;
        }
        self.gain.clear();
        self.gain.extend(self.toward.iter().map(|value| value / total));
        for (value, gain) in self.state.iter_mut().zip(&self.gain) {
            *value += gain * residual;
        }
        let (gains, toward) = (&self.gain[..used], &self.toward[..used]);
        for (index, row) in self.covariance.chunks_exact_mut(self.stride).take(used).enumerate() {
            let (gain, along) = (gains[index], toward[index]);
            let row = row[..used].iter_mut().zip(gains.iter().zip(toward));
            // Symmetric to the last bit: the sum of the two products is, whichever comes first.
            row.for_each(|(value, (other_gain, other_along))| {
                *value += total * (gain * other_gain) - (gain * other_along + along * other_gain);
            });
        }
        for number in 0..used {
            let own = &mut self.covariance[number * self.stride + number];
            *own = own.max(0.0);
        }
        sums.learn(f, residual, total, &self.gain);
    }
}

impl Sums {
    pub(super) fn new(stride: usize) -> Self {
        Self { stride, joules: Vec::new(), variance: Vec::new(), covariance: Vec::new() }
    }

    pub(super) fn reserve(&mut self, count: usize) {
        if self.joules.len() < count {
            self.joules.resize(count, 0.0);
            self.variance.resize(count, 0.0);
            self.covariance.resize(count * self.stride, 0.0);
        }
    }

    fn learn(&mut self, f: &[f64], residual: f64, total: f64, gain: &[f64]) {
        let used = gain.len();
        let rows = self.covariance.chunks_exact_mut(self.stride);
        for ((row, joules), variance) in rows.zip(&mut self.joules).zip(&mut self.variance) {
            let row = &mut row[..used];
            let along = dot(row, f);
            if along == 0.0 {
                continue;
            }
            *joules += along / total * residual;
            *variance = (*variance - along * along / total).max(0.0);
            row.iter_mut().zip(gain).for_each(|(value, gain)| *value -= along * gain);
        }
    }

    /// Adds joules whose derivative in the state is `gradient`; `spread` is `P` times it.
    pub(super) fn post(
        &mut self,
        index: usize,
        joules: f64,
        gradient: Gradient<'_>,
        spread: &[f64],
    ) {
        let row = &mut self.covariance[index * self.stride..][..spread.len()];
        let variance = 2.0 * gradient.along(row) + gradient.along(spread);
        self.joules[index] += joules;
        self.variance[index] = (self.variance[index] + variance).max(0.0);
        row.iter_mut().zip(spread).for_each(|(value, more)| *value += more);
    }

    /// A number of the state begins anew: no sum has anything to do with it.
    pub(super) fn forget(&mut self, number: usize) {
        self.covariance.iter_mut().skip(number).step_by(self.stride).for_each(|value| *value = 0.0);
    }

    /// A number of the state went back towards 0.
    pub(super) fn relax(&mut self, number: usize, keep: f64) {
        let column = self.covariance.iter_mut().skip(number).step_by(self.stride);
        column.for_each(|value| *value *= keep);
    }

    /// What one sum depends on, another one does from now on.
    pub(super) fn hand_over(&mut self, from: usize, to: usize) {
        for number in 0..self.stride {
            let value = std::mem::take(&mut self.covariance[from * self.stride + number]);
            self.covariance[to * self.stride + number] += value;
        }
        (self.joules[from], self.variance[from]) = (0.0, 0.0);
    }
}

/// A derivative in the state: a few numbers of its own, less a part of a whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gradient<'a> {
    pub(super) own: &'a [(usize, f64)],
    pub(super) part: f64,
    pub(super) whole: &'a [f64],
}

impl Gradient<'_> {
    fn along(&self, row: &[f64]) -> f64 {
        let own: f64 = self.own.iter().map(|(number, value)| row[*number] * value).sum();
        own - if self.part == 0.0 { 0.0 } else { self.part * dot(row, self.whole) }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums at once: the additions need not wait for one another.
    let mut sums = [0.0; 4];
    let (a_fours, b_fours) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a_fours.remainder().iter().zip(&b[a.len() / 4 * 4..]).map(|(a, b)| a * b).sum();
    for (a, b) in a_fours.zip(b_fours) {
        for lane in 0..4 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A fixed sequence of numbers in -1..1.
    struct Noise(u64);

    impl Noise {
        fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 33) as f64 / (1u64 << 30) as f64 - 1.0
        }
    }

    const TRUTH: [f64; 3] = [20.0, 15.0, -3.0];

    fn begun() -> (Filter, Sums) {
        let mut filter = Filter::new(3, 5);
        (0..3).for_each(|number| filter.begin(number, 0.0, 1e4));
        let mut sums = Sums::new(5);
        sums.reserve(2);
        (filter, sums)
    }

    fn learn(filter: &mut Filter, sums: &mut Sums, f: &[f64], measured: f64, noise: f64) {
        filter.look_along(f);
        filter.learn(f, measured - filter.predict(f), noise, sums);
    }

    #[test]
    fn it_finds_what_least_squares_would() {
        let (mut filter, mut sums) = begun();
        let mut random = Noise(5);
        for _ in 0..2000 {
            let f = [1.0, 1.0 + random.next(), random.next(), 0.0, 0.0];
            let measured: f64 = f.iter().zip(TRUTH).map(|(f, truth)| f * truth).sum();
            learn(&mut filter, &mut sums, &f, measured + 0.3 * random.next(), 0.03);
        }
        for (number, truth) in TRUTH.into_iter().enumerate() {
            let stderr = filter.variance(number).sqrt();
            assert!((filter.state[number] - truth).abs() < 4.0 * stderr, "{:?}", filter.state);
            assert!((0.003..0.02).contains(&stderr), "{stderr}");
        }
    }

    #[test]
    fn what_is_learned_late_mends_what_was_added_up_early() {
        let (mut filter, mut sums) = begun();
        let mut random = Noise(9);
        let (mut first, mut second) = ([0.0; 5], [0.0; 5]);
        let mut spread = Vec::new();
        for row in 0..300 {
            let f = [1.0, 1.0 + random.next(), random.next(), 0.0, 0.0];
            // One sum has the first number's part of each row, the other one the rest.
            let parts = [[f[0], 0.0, 0.0, 0.0, 0.0], [0.0, f[1], f[2], 0.0, 0.0]];
            for (index, part) in parts.iter().enumerate() {
                let joules = filter.predict(part);
                filter.spread(part, &mut spread);
                let gradient = Gradient { own: &[], part: -1.0, whole: part };
                sums.post(index, joules, gradient, &spread);
            }
            for (sum, part) in [(&mut first, parts[0]), (&mut second, parts[1])] {
                sum.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
            }
            // Nothing is measured in the first third of the rows.
            if row >= 100 {
                let measured: f64 = f.iter().zip(TRUTH).map(|(f, truth)| f * truth).sum();
                learn(&mut filter, &mut sums, &f, measured, 1e-3);
            }
        }
        for (index, whole) in [first, second].into_iter().enumerate() {
            let expected = filter.predict(&whole);
            assert!((sums.joules[index] - expected).abs() < 1e-6 * expected.abs(), "{index}");
            filter.spread(&whole, &mut spread);
            let variance = dot(&spread, &whole);
            assert!((sums.variance[index] / variance - 1.0).abs() < 1e-3, "{index}");
        }
    }

    #[test]
    fn a_million_updates_leave_it_whole() {
        let (mut filter, mut sums) = begun();
        let mut random = Noise(1);
        for step in 0..1_000_000 {
            // Hardly any noise, and numbers that are hard to tell apart: what loses a covariance.
            let load = 1.0 + 1e-4 * random.next();
            let f = [1.0, load, load * load, 0.0, 0.0];
            let measured: f64 = f.iter().zip(TRUTH).map(|(f, truth)| f * truth).sum();
            learn(&mut filter, &mut sums, &f, measured, 1e-9);
            filter.disturb(0, 1e-9);
            if step % 100_000 == 0 {
                let along = [random.next(), random.next(), random.next(), 0.0, 0.0];
                assert!(filter.look_along(&along) >= 0.0);
                for row in 0..3 {
                    assert!(filter.variance(row) >= 0.0 && filter.state[row].is_finite());
                    for column in 0..row {
                        let [a, b] = [row * 5 + column, column * 5 + row];
                        assert_eq!(filter.covariance[a], filter.covariance[b]);
                    }
                }
            }
        }
        let f = [1.0, 1.0, 1.0, 0.0, 0.0];
        assert!((filter.predict(&f) - 32.0).abs() < 1e-3, "{:?}", filter.state);
    }

    #[test]
    fn nothing_is_learned_from_nonsense() {
        let (mut filter, mut sums) = begun();
        let f = [1.0, 1.0, 1.0, 0.0, 0.0];
        learn(&mut filter, &mut sums, &f, 32.0, 1.0);
        let before = filter.state.clone();
        for (residual, noise) in [(f64::NAN, 1.0), (1.0, f64::INFINITY), (f64::INFINITY, 1.0)] {
            filter.look_along(&f);
            filter.learn(&f, residual, noise, &mut sums);
        }
        assert_eq!(filter.state, before);
    }
}
