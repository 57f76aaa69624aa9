//! One hypothesis about a domain: how unlike its workloads are and how its power bends, with all that
//! would follow from it.
//!
//! A row of `τ` seconds in which `u` of `U` CPUs were busy, workload `i` for `cᵢ` CPU-seconds, `pᵢ` of
//! them beside a busy thread of the same core, and in which the machine was awake for `a` seconds, is
//!
//! ```text
//! E = asleep·τ + awake·a + Σ cᵢ·(price + bend·u/U + ownᵢ) − loss·Σ pᵢ + wander·D + warm·L·τ + noise
//! ```
//!
//! with `D` the joules that follow the load, as they are predicted, and `L` the mean power of those and
//! the step in the last half minute. Workload `i` has its own terms; of the step from asleep to awake, and of what was
//! measured beyond the prediction, it has the part `sᵢ` that its own terms are of those of all.

// Not the C library's: its last digit depends on the processor, and a replay's must not.
use libm::{exp, hypot, log, log1p};

use super::filter::{Filter, Gradient, Sums};
use super::row::Row;

/// Where the numbers of the state stand.
pub(super) const ASLEEP: usize = 0;
pub(super) const PRICE: usize = 1;
pub(super) const BEND: usize = 2;
pub(super) const LOSS: usize = 3;
pub(super) const AWAKE: usize = 4;
const WANDER: usize = 5;
const WARM: usize = 6;
const SHARED: usize = 7;

/// So many workloads have a price of their own at a time.
pub(super) const COLUMNS: usize = 40;

/// Where the sums stand that are carried along.
pub(super) const IDLE: usize = 0;
pub(super) const REST: usize = 1;
pub(super) const TRACKED: usize = 2;
/// So many accounts can still be corrected one by one; what would be corrected for others is corrected
/// for all of them together.
pub(super) const DEPENDANTS: usize = 64;

/// Standard deviations, where nothing else is said. Relative to the price:
const BEND_SPREAD: f64 = 0.3;
/// Of the loss, where paired time is measured; and where it is guessed from the load, and nobody knows
/// whether the CPUs have two threads.
const LOSS_MEASURED: (f64, f64) = (0.35, 0.12);
const LOSS_GUESSED: f64 = 0.2;
/// With so many CPUs, that part is only about as sure as it is on average.
const FEW_CPUS: f64 = 6.0;
/// Where there is a step, what is drawn asleep is this part of what it is without.
const STEP_RATIO: f64 = 0.75;
/// The machine is first seen asleep: what seemed to be drawn asleep may be the step to awake.
const WOKEN: f64 = 1.5;
/// What all do together wanders by this much, and goes back in this time.
const WANDER_SPREAD: f64 = 0.01;
const WANDER_TIME: f64 = 3.0;
/// A warm package leaks more: of the mean dynamic power of this time.
const WARM_PART: (f64, f64) = (0.02, 0.02);
pub(super) const WARM_TIME: f64 = 30.0;
/// Drift in √s: of the power asleep, relative to the power; of the price, relative to itself.
const ASLEEP_DRIFT: f64 = 0.0005;
const PRICE_DRIFT: f64 = 0.001;
/// Noise of a row relative to its joules before any was seen, worth so many rows; the most rows that it
/// is a mean of, and the least that it can be.
const NOISE: f64 = 0.01;
const NOISE_ROWS: f64 = 4.0;
const NOISE_MEMORY: f64 = 300.0;
const LEAST_NOISE: f64 = 0.001;
/// Power asleep is noise too.
const NOISE_OF_ALL: f64 = 0.05;
/// Degrees of freedom of the noise: rows that do not fit count for less.
const FREEDOM: f64 = 5.0;
/// A price is within these parts of the common one.
const LEAST_PRICE: f64 = 0.15;
const MOST_PRICE: f64 = 6.0;
/// A thread beside another counts for at least this much less than 1.
const MOST_LOST: f64 = 0.6;
/// Prices that are taken as alike may still differ by this much, unseen.
const UNSEEN: f64 = 0.07;
/// Within a row some ran alone and some together: of the step to awake, this part of a user's part times
/// that of the others may be with the wrong one; more where those who run changed.
const UNSEEN_WAKER: (f64, f64) = (0.1, 0.4);
/// Lags of the residuals' autocorrelation, and how fast their statistics forget, by row.
const LAGS: usize = 8;
const KEEP: f64 = 0.997;
/// Fewer say nothing of how alike they are.
const FEW_ROWS: f64 = 12.0;

/// What a hypothesis says before anything is seen.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prior {
    /// Workloads have prices of their own.
    pub(super) own: bool,
    /// How much a price of its own moves, relative to the common one, by √s.
    pub(super) moves: f64,
    /// How bent power is: a part of the spreads above.
    pub(super) curved: f64,
    /// What waking adds, relative to what is drawn asleep, and its standard deviation.
    pub(super) wakes: (f64, f64),
    pub(super) belief: f64,
    /// In figures it counts for this much less than in error bars.
    pub(super) caution: f64,
}

/// What is known of a domain's size before the first row is learned from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale {
    /// Power and load of the first row, and the part of it in which the machine was awake.
    pub(super) power: f64,
    pub(super) load: f64,
    pub(super) awake: f64,
    /// What is drawn asleep, if that was given.
    pub(super) given: Option<f64>,
    pub(super) paired_known: bool,
    /// What is drawn asleep is about this part of what is drawn with all CPUs busy, with its standard
    /// deviation.
    pub(super) ratio: (f64, f64),
    /// How many CPUs there are, if that is known.
    pub(super) cpus: Option<f64>,
    /// Standard deviation of prices, relative to the common one.
    pub(super) spread: f64,
}

/// Of one account, beside what can still be corrected one by one.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Account {
    pub(super) joules: f64,
    pub(super) variance: f64,
    /// Variance of how the noise fell.
    own: f64,
    /// Standard deviation of what no row can tell.
    loose: f64,
    /// Likewise of who it was who kept the machine awake.
    woken: f64,
}

#[derive(Debug, Clone)]
pub(super) struct Hypothesis {
    pub(super) prior: Prior,
    filter: Filter,
    pub(super) sums: Sums,
    pub(super) accounts: Vec<Account>,
    given: bool,
    /// Standard deviation of prices, relative to the common one; 0: all are alike.
    spread: f64,
    /// The variance that each column began with, or would have by what the common price is known to be
    /// now.
    granted: [f64; COLUMNS],
    /// Relative variance of a row's noise.
    noise: f64,
    noise_rows: f64,
    /// Logarithm of how well rows were predicted.
    pub(super) score: f64,
    squares: f64,
    products: [f64; LAGS],
    rows: f64,
    newest: [f64; LAGS],
    /// Mean common price so far.
    usual: f64,
    warmth: Option<f64>,
    /// Joules of the row's users, as predicted, then their parts of the whole.
    parts: Vec<f64>,
    f: Vec<f64>,
    rest: Vec<f64>,
    spread_f: Vec<f64>,
    spread_j: Vec<f64>,
    by_part: Vec<f64>,
    by_cpu: Vec<f64>,
}

impl Hypothesis {
    pub(super) fn new(prior: Prior, scale: &Scale) -> Self {
        let prices_differ = if prior.own { scale.spread } else { 0.0 };
        let stride = if prices_differ > 0.0 { SHARED + COLUMNS } else { SHARED };
        let mut filter = Filter::new(SHARED, stride);
        let Scale { power, load, awake, given, paired_known, ratio: (part, off), cpus, .. } =
            *scale;
        let square = |value: f64| value * value;
        let (step, step_off) = prior.wakes;
        // Packages that step up draw less asleep.
        let (part, off) =
            if step > 0.0 { (STEP_RATIO * part, STEP_RATIO * off) } else { (part, off) };
        // It was measured on machines with some CPUs. What all of them share weighs more with few.
        let off = off * cpus.map_or(1.0, |cpus| hypot(FEW_CPUS / cpus, 1.0));
        // Of all that can be drawn: asleep, the step to awake, and the rest for the CPUs.
        let by_load = (1.0 - part - step * part) / cpus.unwrap_or(2.0 * load.max(1.0));
        let mut full = power / (part + step * part * awake + by_load * load);
        let mut asleep = part * full;
        let mut price = by_load * full;
        if let Some(given) = given {
            asleep = given;
            let left = power - given * (1.0 + step * awake);
            full = if given > 0.0 { given / part } else { full };
            price = if load >= 0.5 { left.max(0.1 * power) / load } else { by_load * full };
        }
        let (asleep, price) = (asleep.max(0.0), price.max(1e-9));
        filter.begin(ASLEEP, asleep, if given.is_some() { 0.0 } else { square(asleep) });
        filter.begin(PRICE, price, square(price));
        filter.begin(BEND, 0.0, square(BEND_SPREAD * prior.curved * price));
        let (loss, spread) = if paired_known { LOSS_MEASURED } else { (0.0, LOSS_GUESSED) };
        filter.begin(LOSS, loss * price, square(spread * price));
        filter.begin(AWAKE, step * asleep, square(step_off * asleep) + square(step * asleep));
        filter.begin(WANDER, 0.0, square(WANDER_SPREAD));
        filter.begin(WARM, WARM_PART.0, square(WARM_PART.1));
        let mut sums = Sums::new(stride);
        sums.reserve(TRACKED);
        let mut believe = |terms: &[(usize, f64)], off: f64| {
            let mut f = vec![0.0; stride];
            terms.iter().for_each(|(number, value)| f[*number] = *value);
            let residual = -filter.predict(&f);
            filter.look_along(&f);
            filter.learn(&f, residual, square(off), &mut sums);
        };
        // awake = step·asleep, give or take.
        if step > 0.0 {
            believe(&[(AWAKE, 1.0), (ASLEEP, -step)], step_off * asleep);
        }
        if let Some(cpus) = cpus.filter(|_| given.is_none()) {
            // asleep = part·(asleep + awake + cpus·(price − loss)), give or take.
            let loss = if paired_known { part * cpus } else { 0.0 };
            let terms = [(ASLEEP, 1.0 - part), (PRICE, -part * cpus), (LOSS, loss), (AWAKE, -part)];
            believe(&terms, off * full);
        }
        let given = given.is_some();
        Self {
            prior,
            filter,
            sums,
            accounts: Vec::new(),
            given,
            spread: prices_differ,
            granted: [0.0; COLUMNS],
            noise: square(NOISE),
            noise_rows: NOISE_ROWS,
            score: log(prior.belief),
            squares: 0.0,
            products: [0.0; LAGS],
            rows: 0.0,
            newest: [0.0; LAGS],
            usual: price,
            warmth: None,
            parts: Vec::new(),
            f: vec![0.0; stride],
            rest: Vec::new(),
            spread_f: Vec::new(),
            spread_j: Vec::new(),
            by_part: Vec::new(),
            by_cpu: Vec::new(),
        }
    }

    pub(super) fn has_columns(&self) -> bool {
        self.spread > 0.0
    }

    /// A workload takes a column.
    pub(super) fn give_column(&mut self, column: usize) {
        if self.has_columns() {
            let variance = (self.spread * self.price()).powi(2);
            self.granted[column] = variance;
            self.filter.begin(SHARED + column, 0.0, variance);
            self.sums.forget(SHARED + column);
        }
    }

    /// An account is carried along from now on.
    pub(super) fn track(&mut self, sum: usize) {
        self.sums.reserve(sum + 1);
    }

    /// The common price, as it was on average.
    fn price(&self) -> f64 {
        self.usual.max(1e-9)
    }

    pub(super) fn mean(&self, number: usize) -> f64 {
        self.filter.state[number]
    }

    pub(super) fn variance(&self, number: usize) -> f64 {
        self.filter.variance(number)
    }

    pub(super) fn asleep(&self) -> f64 {
        self.filter.state[ASLEEP].max(0.0)
    }

    /// The mean and variance of the price of a column's workload less the common price.
    pub(super) fn own(&self, column: usize) -> (f64, f64) {
        let number = SHARED + column;
        match self.has_columns() {
            true => (self.filter.state[number], self.filter.variance(number)),
            false => (0.0, 0.0),
        }
    }

    /// The part of a CPU-second that does not count beside a busy thread of the same core.
    fn lost(&self) -> f64 {
        let state = &self.filter.state;
        (state[LOSS] / state[PRICE].max(0.05 * self.price())).clamp(0.0, MOST_LOST)
    }

    /// Joules that each user of a row is predicted to have drawn, none below 0.
    pub(super) fn predict(&self, row: &Row, out: &mut Vec<f64>) {
        let state = &self.filter.state;
        let common = state[PRICE] + state[BEND] * row.bend();
        let lost = self.lost();
        let awake = state[AWAKE].max(0.0);
        let floor = 0.05 * self.price();
        out.clear();
        out.extend(row.users.iter().map(|user| {
            let beside = if user.cpu > 0.0 { user.paired / user.cpu } else { 0.0 };
            let counts = 1.0 - lost * beside;
            let base = (common * counts).max(floor);
            let own = counts
                * match user.column {
                    Some(column) if self.has_columns() => state[SHARED + column],
                    _ => 0.0,
                };
            let price = (base + own).clamp(LEAST_PRICE * base, MOST_PRICE * base);
            user.cpu * price
        }));
        // The step to awake belongs to those who run, as the rest does.
        let sum: f64 = out.iter().sum();
        let factor = 1.0 + awake * row.awake / sum;
        if factor.is_finite() {
            out.iter_mut().for_each(|joules| *joules *= factor);
        }
    }

    /// Learns from a row, mends what was billed before, and bills the row.
    pub(super) fn learn(&mut self, row: &Row) {
        let Row { time, energy, .. } = *row;
        let power = energy / time;
        self.pass(row, power);
        let mut parts = std::mem::take(&mut self.parts);
        self.predict(row, &mut parts);
        let mut dynamic: f64 = parts.iter().sum();
        // Without the step: hypotheses with one and without expect the same noise of the same row.
        let by_load = (dynamic - self.filter.state[AWAKE].max(0.0) * row.awake).max(0.0);
        let warmth = *self.warmth.get_or_insert(dynamic / time);
        self.lay_out(row, by_load, warmth);

        if row.sane {
            let f = std::mem::take(&mut self.f);
            let residual = energy - self.filter.predict(&f);
            let uncertainty = self.filter.look_along(&f);
            let scale = (by_load + NOISE_OF_ALL * energy).powi(2);
            let known = self.known_noise(row);
            let noise = self.weigh(residual, uncertainty, known, scale);
            self.filter.learn(&f, residual, noise, &mut self.sums);
            self.f = f;
        }

        // The row's own joules, by what is known now.
        self.predict(row, &mut parts);
        dynamic = parts.iter().sum();
        let asleep = self.asleep() * time;
        if dynamic > 0.0 {
            parts.iter_mut().for_each(|part| *part /= dynamic);
            self.post(row, &parts, energy, asleep);
        }
        let keep = exp(-time / WARM_TIME);
        self.warmth = Some(warmth * keep + dynamic / time * (1.0 - keep));
        let busy = row.busy / time;
        if busy > 0.02 {
            let now = (self.filter.state[PRICE] + self.filter.state[BEND] * row.bend()).max(0.0);
            let weight =
                (row.busy / (row.busy + 100.0)).max(1.0 / (self.noise_rows + 1.0)).min(1.0);
            self.usual += (now - self.usual) * weight;
        }
        self.parts = parts;
    }

    /// A row in which nobody ran: it shows what is drawn asleep, and is billed as it is.
    pub(super) fn rest(&mut self, row: &Row, idle: f64) {
        self.pass(row, row.energy / row.time);
        let warmth = self.warmth.unwrap_or(0.0);
        self.lay_out(row, 0.0, warmth);
        if row.sane {
            let f = std::mem::take(&mut self.f);
            let residual = row.energy - self.filter.predict(&f);
            let uncertainty = self.filter.look_along(&f);
            let scale = (NOISE_OF_ALL * row.energy).powi(2);
            let noise = self.weigh(residual, uncertainty, row.noise, scale);
            self.filter.learn(&f, residual, noise, &mut self.sums);
            self.f = f;
        }
        self.sums.joules[IDLE] += idle;
        self.warmth = self.warmth.map(|warmth| warmth * exp(-row.time / WARM_TIME));
    }

    /// Time passes: what is known of some numbers grows old.
    fn pass(&mut self, row: &Row, power: f64) {
        let price = self.price();
        if !self.given {
            self.filter.disturb(ASLEEP, (ASLEEP_DRIFT * power).powi(2) * row.time);
            if row.falls_asleep {
                self.filter.exchange(ASLEEP, AWAKE, (WOKEN * self.asleep()).powi(2));
            }
        }
        self.filter.disturb(PRICE, (PRICE_DRIFT * price).powi(2) * row.time);
        let keep = exp(-row.time / WANDER_TIME);
        self.filter.relax(WANDER, keep);
        self.sums.relax(WANDER, keep);
        self.filter.disturb(WANDER, WANDER_SPREAD.powi(2) * (1.0 - keep * keep));
        if self.has_columns() {
            let most = (self.spread * price).powi(2);
            let step = (self.prior.moves * price).powi(2) * row.time;
            for column in row.users.iter().filter_map(|user| user.column) {
                let granted = &mut self.granted[column];
                if most > 1.1 * *granted {
                    self.filter.disturb(SHARED + column, most - *granted);
                    *granted = most;
                }
                let room = (most - self.filter.variance(SHARED + column)).max(0.0);
                self.filter.disturb(SHARED + column, step.min(room));
            }
        }
    }

    /// The row as a measurement of the state.
    fn lay_out(&mut self, row: &Row, by_load: f64, warmth: f64) {
        let lost = self.lost();
        let f = &mut self.f;
        f.fill(0.0);
        f[ASLEEP] = row.time;
        f[PRICE] = row.busy;
        f[BEND] = row.busy * row.bend();
        f[LOSS] = -row.paired;
        f[AWAKE] = row.awake;
        f[WANDER] = by_load;
        f[WARM] = warmth * row.time;
        if self.spread > 0.0 {
            for user in &row.users {
                if let Some(column) = user.column {
                    f[SHARED + column] = user.cpu - lost * user.paired;
                }
            }
        }
    }

    /// Variance of what is known to be uncertain about a row.
    fn known_noise(&self, row: &Row) -> f64 {
        let price = self.price();
        let mut noise = row.noise + row.cpu_noise * price * price;
        let spread = match self.has_columns() {
            true => self.spread,
            false => 0.0,
        };
        if spread > 0.0 {
            let apart = row.users.iter().filter(|user| user.column.is_none());
            noise += apart.map(|user| (spread * price * user.off).powi(2)).sum::<f64>();
        }
        // Where the load changed within the row, the power at its mean is not the mean power.
        let bends = [BEND, LOSS]
            .map(|number| self.filter.state[number].powi(2) + self.filter.variance(number));
        noise + row.swing.powi(2) * (bends[0] + bends[1])
    }

    /// Scores a row and learns how noisy rows are. Gives the noise that this one is to be taken with.
    fn weigh(&mut self, residual: f64, uncertainty: f64, known: f64, scale: f64) -> f64 {
        let noise = known + self.noise * scale;
        let total = uncertainty + noise;
        if !(total > 0.0 && total.is_finite() && residual.is_finite()) {
            return f64::INFINITY;
        }
        let square = residual * residual / total;
        self.score += -0.5 * (FREEDOM + 1.0) * log1p(square / FREEDOM) - 0.5 * log(total);
        // E[noise² | row]: a step of expectation-maximisation.
        let part = noise / total;
        let expected =
            part * part * (residual * residual).min(9.0 * total) + noise * uncertainty / total;
        self.noise_rows = (self.noise_rows + 1.0).min(NOISE_MEMORY);
        let found = (expected - known).max(0.0) / scale.max(1e-12);
        self.noise += (found - self.noise) / self.noise_rows;
        self.noise = self.noise.max(LEAST_NOISE * LEAST_NOISE);

        let z = (residual / total.sqrt()).clamp(-4.0, 4.0);
        self.rows = self.rows * KEEP + 1.0;
        self.squares = self.squares * KEEP + z * z;
        for (product, before) in self.products.iter_mut().zip(self.newest) {
            *product = *product * KEEP + z * before;
        }
        self.newest.rotate_right(1);
        self.newest[0] = z;
        noise * ((FREEDOM + square) / (FREEDOM + 1.0)).max(1.0)
    }

    fn post(&mut self, row: &Row, parts: &[f64], energy: f64, asleep: f64) {
        let mut f = std::mem::take(&mut self.f);
        // What wanders is shared as everything is.
        (f[WANDER], f[WARM]) = (0.0, 0.0);
        let mut spread_f = std::mem::take(&mut self.spread_f);
        self.filter.spread(&f, &mut spread_f);
        let mut spread_j = std::mem::take(&mut self.spread_j);
        let (bend, price, lost) = (row.bend(), self.price(), self.lost());
        // What is the same for all users: by their part, by their CPU time, by their paired time.
        let mut by_part = std::mem::take(&mut self.by_part);
        let mut by_cpu = std::mem::take(&mut self.by_cpu);
        by_part.clear();
        by_cpu.clear();
        let awake = self.filter.column(AWAKE).iter().map(|value| row.awake * value);
        by_part.extend(spread_f.iter().zip(awake).map(|(whole, awake)| awake - whole));
        let bent = self.filter.column(BEND).iter().map(|value| bend * value);
        by_cpu.extend(self.filter.column(PRICE).iter().zip(bent).map(|(price, bent)| price + bent));
        let noise = self.noise * (energy - asleep).max(NOISE_OF_ALL * energy).powi(2) + row.noise;
        let unseen = UNSEEN_WAKER.0 + UNSEEN_WAKER.1 * row.changed;
        let step = unseen * self.filter.state[AWAKE].abs() * row.awake;
        let columns = self.has_columns();
        let unseen = if columns { self.spread } else { UNSEEN };
        let mut rest = std::mem::take(&mut self.rest);
        rest.clear();
        rest.resize(f.len(), 0.0);
        let mut rest_part = 0.0;
        for (user, &part) in row.users.iter().zip(parts) {
            let account = at(&mut self.accounts, user.member);
            let joules = part * (energy - asleep);
            account.woken += step * part * (1.0 - part);
            account.own += noise * part * (1.0 - part);
            if !(columns && user.column.is_some() && user.sum.is_some()) {
                account.loose += unseen * price * user.cpu * (1.0 - part);
            }
            let own = [
                (PRICE, user.cpu),
                (BEND, user.cpu * bend),
                (LOSS, -user.paired),
                (AWAKE, row.awake * part),
                (user.column.filter(|_| columns).map_or(PRICE, |column| SHARED + column), {
                    if columns && user.column.is_some() {
                        user.cpu - lost * user.paired
                    } else {
                        0.0
                    }
                }),
            ];
            match user.sum {
                Some(sum) => {
                    let common = by_part.iter().zip(&by_cpu);
                    let common = common.map(|(part_of, cpu_of)| part * part_of + user.cpu * cpu_of);
                    let (number, value) = own[4];
                    let column = self.filter.column(number).iter();
                    spread_j.clear();
                    spread_j.extend(common.zip(column).map(|(sum, one)| sum + value * one));
                    if user.paired > 0.0 {
                        let loss = self.filter.column(LOSS).iter();
                        spread_j
                            .iter_mut()
                            .zip(loss)
                            .for_each(|(sum, one)| *sum -= user.paired * one);
                    }
                    let gradient = Gradient { own: &own, part, whole: &f };
                    self.sums.post(sum, joules, gradient, &spread_j);
                }
                None => {
                    account.joules += joules;
                    rest_part += part;
                    own.iter().for_each(|(number, value)| rest[*number] += value);
                }
            }
        }
        if rest_part > 0.0 {
            rest.iter_mut().zip(&f).for_each(|(value, whole)| *value -= rest_part * whole);
            self.filter.spread(&rest, &mut spread_j);
            let gradient = Gradient { own: &[], part: -1.0, whole: &rest };
            self.sums.post(REST, 0.0, gradient, &spread_j);
        }
        spread_j.clear();
        spread_j.extend(self.filter.column(ASLEEP).iter().map(|value| value * row.time));
        let own = [(ASLEEP, if self.given { 0.0 } else { row.time })];
        self.sums.post(IDLE, asleep, Gradient { own: &own, part: 0.0, whole: &f }, &spread_j);
        (self.f, self.rest, self.spread_f, self.spread_j) = (f, rest, spread_f, spread_j);
        (self.by_part, self.by_cpu) = (by_part, by_cpu);
    }

    /// Residuals that are larger than they should be, or alike from row to row: the factor by which
    /// variances are too small.
    pub(super) fn inflation(&self) -> f64 {
        if self.rows < 1.0 {
            return 1.0;
        }
        let size = (self.squares / self.rows).clamp(1.0, 25.0);
        // Bartlett's weights.
        let weights = (1..=LAGS).map(|lag| 1.0 - lag as f64 / (LAGS + 1) as f64);
        let alike: f64 = self.products.iter().zip(weights).map(|(product, w)| product * w).sum();
        size * (1.0 + 2.0 * alike / self.squares.max(1e-9)).clamp(1.0, 20.0)
    }

    /// How alike successive residuals are, −1 to 1; 0 until there are some.
    pub(super) fn alike(&self) -> f64 {
        if self.rows < FEW_ROWS { 0.0 } else { self.products[0] / self.squares.max(1e-9) }
    }

    /// Rows are longer from now on: what was seen of their residuals says nothing of them.
    pub(super) fn look_anew(&mut self) {
        (self.squares, self.rows) = (0.0, 0.0);
        (self.products, self.newest) = ([0.0; LAGS], [0.0; LAGS]);
        self.noise_rows = self.noise_rows.min(NOISE_ROWS);
    }

    /// An account's joules and their variance. `sum`: where it is carried along.
    pub(super) fn account(&self, member: usize, sum: Option<usize>) -> (f64, f64) {
        let account = self.accounts.get(member).copied().unwrap_or_default();
        let (joules, variance) = match sum {
            Some(sum) => (self.sums.joules[sum], self.sums.variance[sum]),
            None => (0.0, 0.0),
        };
        let variance = (account.variance + variance + account.own) * self.inflation();
        (account.joules + joules, variance + account.loose.powi(2) + account.woken.powi(2))
    }

    /// An account's joules.
    pub(super) fn joules(&self, member: usize, sum: Option<usize>) -> f64 {
        self.settled(member) + sum.map_or(0.0, |sum| self.sums.joules[sum])
    }

    /// The part of an account that is no longer carried along.
    pub(super) fn settled(&self, member: usize) -> f64 {
        self.accounts.get(member).map_or(0.0, |account| account.joules)
    }

    /// An account is no longer carried along.
    pub(super) fn settle(&mut self, member: usize, sum: usize) {
        let (joules, variance) = (self.sums.joules[sum], self.sums.variance[sum]);
        let account = at(&mut self.accounts, member);
        account.joules += joules;
        account.variance = both(account.variance, variance);
        self.sums.hand_over(sum, REST);
    }

    /// One account becomes part of another. Neither is carried along.
    pub(super) fn fold(&mut self, member: usize, into: usize) {
        let from = std::mem::take(at(&mut self.accounts, member));
        let to = at(&mut self.accounts, into);
        to.joules += from.joules;
        to.variance = both(to.variance, from.variance);
        to.own += from.own;
        to.loose += from.loose;
        to.woken += from.woken;
    }
}

/// Variance of the sum of two that are off for the same reasons: what is not known of the machine.
fn both(one: f64, other: f64) -> f64 {
    (one.max(0.0).sqrt() + other.max(0.0).sqrt()).powi(2)
}

fn at(accounts: &mut Vec<Account>, member: usize) -> &mut Account {
    if member >= accounts.len() {
        accounts.resize(member + 1, Account::default());
    }
    &mut accounts[member]
}
