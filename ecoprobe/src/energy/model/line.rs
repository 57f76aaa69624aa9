//! The power model of one domain: how much it draws with nothing running.
//!
//! Today `P = S + k·u`: static watts, and watts per busy unit (a busy CPU, a busy GPU) that are
//! the same for every workload; the latter cancel out when energy is shared by use. Where nobody
//! says what `S` is, it is calibrated: a least-squares line through (load, power), whose intercept is
//! `S`, or the mean power while the domain idles, if it ever does.

use super::{StaticPower, Unknown};
use crate::base::units::{Joules, Seconds, Watts};
use crate::energy::attribute::Window;

/// Standard deviation of the error that the counter's refresh makes in one point, in units of one
/// refresh at the point's power: uniform over a refresh, at either end.
const EDGE_ERROR: f64 = 0.408_248_290_463_863;

/// Below this relative spread of the load there is no line to speak of. CPU time is known to about
/// 0.5 % in 100 ms; an error in the load flattens the line by the square of its ratio to the load's
/// spread, and the intercept takes up the difference: 3 % of the dynamic power at this limit.
const LEAST_SPREAD: f64 = 0.03;

/// The 95 % interval of the static power may reach this far to each side: a tenth of the mean
/// dynamic power, or where little runs, a twentieth of all power.
const OF_DYNAMIC: f64 = 0.10;
const OF_TOTAL: f64 = 0.05;

/// What a calibration needs to know about a domain's counter and load.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Grain {
    /// Successive windows are pooled until they are this long.
    pub(crate) pool: Seconds,
    /// How often the counter is refreshed.
    pub(crate) refresh: Seconds,
    /// Up to this load the domain idles, in busy units. What it then draws is static power, too
    /// high by this much of `k` at most.
    pub(crate) idle_load: f64,
}

impl Grain {
    /// Of the tests.
    #[cfg(test)]
    const RAPL: Self = Self { pool: Seconds(0.1), refresh: Seconds(0.001), idle_load: 0.02 };
    /// NVML refreshes every 20 to 100 ms. Load is the part of the time that the device was busy.
    pub(crate) const GPU: Self =
        Self { pool: Seconds(1.0), refresh: Seconds(0.1), idle_load: 0.005 };
}

/// The power model of one domain. Attribution asks it and never looks inside.
#[derive(Debug, Clone)]
pub(crate) struct PowerModel(Knowledge);

#[derive(Debug, Clone)]
enum Knowledge {
    Given(Watts),
    Learned(Calibrator),
}

impl PowerModel {
    /// With `given` static power, or else one that is learned.
    pub(crate) fn new(given: Option<Watts>, grain: Grain) -> Self {
        Self(match given {
            Some(watts) => Knowledge::Given(watts),
            None => Knowledge::Learned(Calibrator::new(grain)),
        })
    }

    /// Learns from one window in which the domain was busy for `busy` (CPU-seconds, or seconds of
    /// the device).
    pub(crate) fn observe(&mut self, window: Window, busy: Seconds) {
        if let Knowledge::Learned(calibrator) = &mut self.0 {
            calibrator.observe(window, busy);
        }
    }

    /// A window of which it is not known how busy the domain was: it teaches nothing.
    pub(crate) fn pass_over(&mut self, window: Window) {
        if let Knowledge::Learned(calibrator) = &mut self.0 {
            calibrator.unknown += window.time;
        }
    }

    /// The best figure as of now.
    pub(crate) fn static_power(&self) -> StaticPower {
        match &self.0 {
            Knowledge::Given(watts) => StaticPower::Given(*watts),
            Knowledge::Learned(calibrator) => calibrator.static_power(),
        }
    }
}

/// Learns a static power from running sums: O(1) in time and memory for each window.
#[derive(Debug, Clone)]
pub(crate) struct Calibrator {
    grain: Grain,
    pool: Window,
    pool_busy: Seconds,
    all: Points,
    idle: Points,
    least: Watts,
    /// Time at a load that is not known.
    unknown: Seconds,
}

impl Calibrator {
    pub(crate) fn new(grain: Grain) -> Self {
        Self {
            grain,
            pool: Window::default(),
            pool_busy: Seconds(0.0),
            all: Points::default(),
            idle: Points::default(),
            least: Watts(f64::INFINITY),
            unknown: Seconds(0.0),
        }
    }

    /// Adds one window in which the domain was busy for `busy`.
    pub(crate) fn observe(&mut self, window: Window, busy: Seconds) {
        self.pool.energy += window.energy;
        self.pool.time += window.time;
        self.pool_busy += busy;
        let Window { energy, time } = self.pool;
        // A counter that stood still for a while is late, not at 0 W: wait for what it owes.
        let late = energy == Joules(0.0) && time < self.grain.pool * 10.0;
        if time < self.grain.pool || late {
            return;
        }
        let (load, power) = (self.pool_busy.0 / time.0, energy / time);
        self.all.add(load, power.0, time.0);
        if load <= self.grain.idle_load {
            self.idle.add(load, power.0, time.0);
        }
        if power < self.least {
            self.least = power;
        }
        self.pool = Window::default();
        self.pool_busy = Seconds(0.0);
    }

    /// The static power, if what was seen identifies it.
    pub(crate) fn static_power(&self) -> StaticPower {
        // Idling shows it directly; a line has to be believed to be straight.
        let idle = self.idle.mean(self.grain.refresh).filter(|idle| self.is_useful(idle));
        let estimate = idle.map_or_else(|| self.extrapolate(), Ok);
        match estimate {
            Ok(Fit { watts, stderr, .. }) => {
                StaticPower::Calibrated { watts: Watts(watts), stderr: Watts(stderr) }
            }
            Err(_) if self.all.count < 3 => {
                StaticPower::Unknown(if self.unknown.0 < 3.0 * self.grain.pool.0 {
                    Unknown::TooShort
                } else {
                    Unknown::LoadUnknown
                })
            }
            Err(why) => StaticPower::Unknown(why),
        }
    }

    /// The line's power at no load.
    fn extrapolate(&self) -> Result<Fit, Unknown> {
        let line = self.all.intercept(self.grain.refresh).ok_or(Unknown::LoadTooEven)?;
        let possible = Fit { watts: line.watts.clamp(0.0, self.least.0.max(0.0)), ..line };
        let spread_enough = self.all.relative_spread() >= LEAST_SPREAD;
        if !spread_enough || !self.is_useful(&possible) {
            Err(Unknown::LoadTooEven)
        } else if (possible.watts - line.watts).abs() > self.tolerance(possible.watts) {
            Err(Unknown::NotALine)
        } else {
            Ok(possible)
        }
    }

    /// How far off a static power may be.
    fn tolerance(&self, watts: f64) -> f64 {
        let mean = self.all.mean_power;
        (OF_DYNAMIC * (mean - watts)).max(OF_TOTAL * mean)
    }

    /// True if an estimate is sharp enough to act on.
    fn is_useful(&self, estimate: &Fit) -> bool {
        student_t(estimate.freedom) * estimate.stderr <= self.tolerance(estimate.watts)
    }
}

/// An estimate of static power in watts, its standard error, and its degrees of freedom.
#[derive(Debug, Clone, Copy)]
struct Fit {
    watts: f64,
    stderr: f64,
    freedom: u64,
}

/// Running moments of (load, power) points, weighted by their duration. Welford's updates: no
/// difference of large sums is ever taken.
#[derive(Debug, Clone, Default)]
struct Points {
    count: u64,
    seconds: f64,
    mean_load: f64,
    mean_power: f64,
    load_load: f64,
    load_power: f64,
    power_power: f64,
}

impl Points {
    fn add(&mut self, load: f64, power: f64, seconds: f64) {
        self.count += 1;
        self.seconds += seconds;
        let part = seconds / self.seconds;
        let (from_load, from_power) = (load - self.mean_load, power - self.mean_power);
        self.mean_load += from_load * part;
        self.mean_power += from_power * part;
        self.load_load += seconds * from_load * (load - self.mean_load);
        self.load_power += seconds * from_load * (power - self.mean_power);
        self.power_power += seconds * from_power * (power - self.mean_power);
    }

    /// Standard deviation of the load over its mean.
    fn relative_spread(&self) -> f64 {
        (self.load_load / self.seconds).sqrt() / self.mean_load
    }

    /// Variance of one second's power about a fit that left `squares` with `freedom` degrees of
    /// freedom. Never below what the counter's refresh alone must cause, however well the
    /// points happen to agree.
    fn variance(&self, squares: f64, freedom: u64, refresh: Seconds) -> f64 {
        let edge = EDGE_ERROR * refresh.0 * self.mean_power;
        (squares / freedom as f64).max(edge * edge * self.count as f64 / self.seconds)
    }

    /// The mean power.
    fn mean(&self, refresh: Seconds) -> Option<Fit> {
        let freedom = self.count.checked_sub(1).filter(|&freedom| freedom >= 2)?;
        let variance = self.variance(self.power_power, freedom, refresh);
        let stderr = (variance / self.seconds).sqrt();
        Some(Fit { watts: self.mean_power, stderr, freedom })
    }

    /// The power at no load, by weighted least squares (Draper & Smith, Applied Regression
    /// Analysis, 1.4).
    fn intercept(&self, refresh: Seconds) -> Option<Fit> {
        let freedom = self.count.checked_sub(2).filter(|&freedom| freedom >= 1)?;
        let slope = self.load_power / self.load_load;
        let squares = (self.power_power - slope * self.load_power).max(0.0);
        let distance = self.mean_load * self.mean_load / self.load_load;
        let variance = self.variance(squares, freedom, refresh);
        let stderr = (variance * (1.0 / self.seconds + distance)).sqrt();
        let watts = self.mean_power - slope * self.mean_load;
        (watts.is_finite() && stderr.is_finite()).then_some(Fit { watts, stderr, freedom })
    }
}

/// Two-sided 95 % quantile of Student's t.
fn student_t(freedom: u64) -> f64 {
    const TABLE: [f64; 10] = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    let exact = freedom.checked_sub(1).and_then(|row| TABLE.get(usize::try_from(row).ok()?));
    // Within 0.5 % beyond the table.
    exact.copied().unwrap_or(1.96 + 2.6 / freedom as f64)
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

    /// Calibrates on windows of `seconds` at the given loads: 20 W and 15 J a CPU-second, within
    /// one refresh of the counter at each end, and `noise` watts.
    fn calibrate(seconds: f64, noise: f64, loads: impl IntoIterator<Item = f64>) -> StaticPower {
        let mut calibrator = Calibrator::new(Grain::RAPL);
        let mut random = Noise(7);
        let mut late = 0.0;
        for load in loads {
            let watts = 20.0 + 15.0 * load + noise * random.next();
            let later = 0.0005 * (1.0 + random.next()) * watts;
            let energy = Joules(watts * seconds + late - later);
            late = later;
            let window = Window { energy, time: Seconds(seconds) };
            calibrator.observe(window, Seconds(load * seconds));
        }
        calibrator.static_power()
    }

    fn steps(count: usize) -> impl Iterator<Item = f64> {
        (0..count).map(|step| [0.3, 1.7, 1.0, 0.6][step % 4])
    }

    fn watts(power: StaticPower) -> f64 {
        power.watts().unwrap_or_else(|| panic!("{power:?}")).0
    }

    #[test]
    fn a_varying_load_shows_the_static_power() {
        // Ten windows of a second, a hundred of 100 ms, a thousand of 10 ms pooled to 100.
        assert!((watts(calibrate(1.0, 0.0, steps(10))) - 20.0).abs() < 0.1);
        assert!((watts(calibrate(0.1, 0.0, steps(100))) - 20.0).abs() < 0.5);
        let slow = (0..1000).map(|step| [0.3, 1.7, 1.0, 0.6][step / 25 % 4]);
        assert!((watts(calibrate(0.01, 0.0, slow)) - 20.0).abs() < 0.5);
        // And with 2 W of noise on 35 W.
        assert!((watts(calibrate(1.0, 2.0, steps(30))) - 20.0).abs() < 1.5);
    }

    #[test]
    fn the_standard_error_is_honest() {
        let (mut inside, mut runs) = (0, 0);
        for seed in 0..400 {
            let mut calibrator = Calibrator::new(Grain::RAPL);
            let mut random = Noise(seed);
            for load in steps(20) {
                let energy = Joules(20.0 + 15.0 * load + 2.0 * random.next());
                calibrator.observe(Window { energy, time: Seconds(1.0) }, Seconds(load));
            }
            if let StaticPower::Calibrated { watts, stderr } = calibrator.static_power() {
                runs += 1;
                inside += u32::from((watts.0 - 20.0).abs() <= 2.1 * stderr.0);
            }
        }
        assert!(runs > 390, "{runs}");
        // 95 % of 400 is 380, give or take 4.4; seven of those are allowed.
        assert!((350..=400).contains(&inside), "{inside}");
    }

    #[test]
    fn points_that_agree_by_chance_are_not_believed_to_the_last_digit() {
        let mut calibrator = Calibrator::new(Grain::RAPL);
        for load in steps(4) {
            let window = Window { energy: Joules(2.0 + 1.5 * load), time: Seconds(0.1) };
            calibrator.observe(window, Seconds(0.1 * load));
        }
        let StaticPower::Calibrated { stderr, .. } = calibrator.static_power() else { panic!() };
        // A refresh at 33.5 W in 100 ms is 0.34 W.
        assert!((0.1..0.3).contains(&stderr.0), "{stderr:?}");
    }

    #[test]
    fn an_even_load_says_nothing() {
        let mut random = Noise(3);
        let even = std::iter::repeat_with(|| 1.0 + 0.01 * random.next()).take(10_000);
        assert_eq!(calibrate(0.1, 0.0, even), StaticPower::Unknown(Unknown::LoadTooEven));
        assert_eq!(calibrate(1.0, 0.0, [1.0; 50]), StaticPower::Unknown(Unknown::LoadTooEven));
        // A load that varies, in a noise that drowns it.
        let drowned = calibrate(0.1, 30.0, steps(20).map(|load| 1.0 + 0.1 * load));
        assert_eq!(drowned, StaticPower::Unknown(Unknown::LoadTooEven));
    }

    #[test]
    fn two_points_are_not_enough() {
        assert_eq!(calibrate(1.0, 0.0, [0.1, 1.0]), StaticPower::Unknown(Unknown::TooShort));
        assert_eq!(calibrate(0.01, 0.0, steps(20)), StaticPower::Unknown(Unknown::TooShort));
        assert!((watts(calibrate(1.0, 0.0, [0.1, 1.0, 0.4])) - 20.0).abs() < 0.5);
    }

    #[test]
    fn idling_shows_it_directly() {
        assert!((watts(calibrate(0.1, 0.0, [0.01; 10])) - 20.15).abs() < 0.1);
        // Even where power does not follow load in a straight line.
        let mut calibrator = Calibrator::new(Grain::RAPL);
        for load in [0.0, 1.0, 0.0, 4.0, 0.0, 9.0, 2.0, 0.0, 7.0_f64] {
            let window = Window { energy: Joules(20.0 + 15.0 * load.sqrt()), time: Seconds(1.0) };
            calibrator.observe(window, Seconds(load));
        }
        assert_eq!(watts(calibrator.static_power()), 20.0);
    }

    #[test]
    fn it_is_never_negative_nor_above_what_was_measured() {
        let learn = |power: fn(f64) -> f64| {
            let mut calibrator = Calibrator::new(Grain::RAPL);
            for load in steps(40) {
                let window = Window { energy: Joules(power(load)), time: Seconds(1.0) };
                calibrator.observe(window, Seconds(load));
            }
            watts(calibrator.static_power())
        };
        assert_eq!(learn(|load| 10.0 * load - 0.1), 0.0);
        assert_eq!(learn(|load| 20.0 - 0.1 * load), 20.0 - 0.17);
        assert_eq!(learn(|_| 0.0), 0.0);
    }

    #[test]
    fn a_line_that_leads_nowhere_is_not_believed() {
        // Half busy with light kernels, then fully with heavy ones, and never idle.
        let mut calibrator = Calibrator::new(Grain::GPU);
        for step in 0..60 {
            let (load, watts) = if step % 20 < 10 { (0.5, 150.0) } else { (1.0, 700.0) };
            calibrator.observe(Window { energy: Joules(watts), time: Seconds(1.0) }, Seconds(load));
        }
        assert_eq!(calibrator.static_power(), StaticPower::Unknown(Unknown::NotALine));
        // Nor one that leads to more at no load than under any.
        let mut calibrator = Calibrator::new(Grain::GPU);
        for step in 0..60 {
            let (load, watts) = if step % 20 < 10 { (0.5, 400.0) } else { (1.0, 300.0) };
            calibrator.observe(Window { energy: Joules(watts), time: Seconds(1.0) }, Seconds(load));
        }
        assert_eq!(calibrator.static_power(), StaticPower::Unknown(Unknown::NotALine));
    }

    #[test]
    fn a_counter_that_stands_still_for_a_while_is_late_not_zero() {
        let mut calibrator = Calibrator::new(Grain::RAPL);
        let mut owed = 0.0;
        for (step, load) in steps(60).enumerate() {
            owed += 0.1 * (20.0 + 15.0 * load);
            let energy = Joules(if step == 5 { 0.0 } else { std::mem::take(&mut owed) });
            calibrator.observe(Window { energy, time: Seconds(0.1) }, Seconds(0.1 * load));
        }
        assert!((watts(calibrator.static_power()) - 20.0).abs() < 0.1);
    }

    #[test]
    fn a_given_power_is_not_learned() {
        let mut model = PowerModel::new(Some(Watts(7.0)), Grain::RAPL);
        let window = Window { energy: Joules(50.0), time: Seconds(1.0) };
        for _ in 0..10 {
            model.observe(window, Seconds(0.0));
        }
        assert_eq!(model.static_power(), StaticPower::Given(Watts(7.0)));
    }
}
