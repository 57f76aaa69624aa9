//! What the hypotheses together say: joules and watts, how sure they are, and what they cannot tell.

use libm::hypot;

use super::{Bank, COUNT, Moments, Of};
use crate::base::{Joules, User, Watts};
use crate::energy::ledger::Due;
use crate::energy::model::hypothesis::{ASLEEP, AWAKE, Hypothesis, IDLE, LOSS, PRICE, REST};
use crate::energy::model::pool::Pool;
use crate::energy::model::row::Row;
use crate::energy::model::{Doubt, Figure, Method, StaticPower, Summary, Unknown};

/// Error bars: this part of all joules (of a package at its limit more, of one that is no such model what it
/// is off by), and all of it times this.
const FLOOR: f64 = 0.01;
const CAPPED: f64 = 0.3;
/// Of a machine that was never seen asleep, this part of what seems to be drawn asleep.
const UNSEEN_ASLEEP: f64 = 0.3;
const STRETCH: f64 = 1.2;

/// Rows that are off by this much on average are not what the model makes of the load.
const MISFIT: f64 = 0.05;

/// A bar at 95 % of a static power that reaches this far to each side can be called known: 15 % of the
/// mean dynamic power, or where little runs, 7.5 % of all power.
const OF_DYNAMIC: f64 = 0.15;
const OF_TOTAL: f64 = 0.075;

impl Bank {
    /// What everybody is to have of all windows so far, as is known now, and the idle joules.
    pub(crate) fn settle_up(&mut self) -> Due {
        let figures = self.weights(Of::Figures);
        let bars = self.weights(Of::Bars);
        let floor = match (self.is_capped(), self.is_misfit()) {
            (true, _) => CAPPED,
            (_, true) => self.miss.max(FLOOR),
            _ => FLOOR,
        };
        let count = self.hypotheses.len();
        // What is not carried along any more is corrected for all together, each by what it has of it.
        let mut settled = [0.0; COUNT];
        for place in 0..self.members.len() {
            for (settled, hypothesis) in settled.iter_mut().zip(&self.hypotheses) {
                *settled += hypothesis.settled(place).max(0.0);
            }
        }
        // Seen awake alone, much of what seems to be drawn asleep may be the step: then it is theirs.
        let unseen = match self.never_asleep() && self.traits.awake {
            true => UNSEEN_ASLEEP * self.asleep().value * self.time,
            false => 0.0,
        };
        let dynamic = self.energy - self.asleep().value * self.time;
        let unseen = if dynamic > 0.0 { unseen / dynamic } else { 0.0 };
        let mut all = Vec::with_capacity(self.places.len());
        for (place, member) in self.members.iter().enumerate() {
            let Some(user) = member.user else { continue };
            let mut each = [(0.0, 0.0); COUNT];
            for (index, one) in each.iter_mut().enumerate().take(count) {
                let hypothesis = &self.hypotheses[index];
                *one = hypothesis.account(place, member.sum);
                if settled[index] > 0.0 {
                    let part = hypothesis.settled(place).max(0.0) / settled[index];
                    one.0 += part * hypothesis.sums.joules[REST];
                }
            }
            let Figure { value, stderr } = mix(&figures, &bars, &each);
            let stderr = STRETCH * hypot(hypot(stderr, floor * value), unseen * value);
            all.push((user, Figure { value, stderr }));
        }
        let mut idle = [(0.0, 0.0); COUNT];
        for ((idle, hypothesis), settled) in idle.iter_mut().zip(&self.hypotheses).zip(settled) {
            let rest = if settled > 0.0 { 0.0 } else { hypothesis.sums.joules[REST] };
            idle.0 = hypothesis.sums.joules[IDLE] + rest;
        }
        let mut idle = mix(&figures, &bars, &idle).value;
        // What is not learned from yet is split as it came.
        for pool in [self.held.clone(), Some(self.unfinished())].into_iter().flatten() {
            if pool.time > 0.0 {
                idle += self.add_pool(&pool, &mut all);
            }
        }
        Due { idle: Joules(idle), nobody: Joules(self.nobody), users: all }
    }

    fn unfinished(&self) -> Pool {
        let users = self.pooled.iter().map(|place| (*place, self.members[*place].pooled));
        Pool { users: users.collect(), ..self.pool }
    }

    /// Adds what the users of a pool drew; gives what was idle in it.
    fn add_pool(&mut self, pool: &Pool, all: &mut [(User, Figure)]) -> f64 {
        let (time, awake) = (pool.time, pool.awake);
        let mut row = Row { time, awake, busy: pool.load() * time, ..Row::default() };
        let users = pool.users.iter();
        row.users
            .extend(users.map(|(place, used)| used.active(*place, self.members[*place].column)));
        let mut parts = vec![0.0; row.users.len()];
        let asleep = self.split_into(&mut row, |index, joules| parts[index] = joules);
        let sum: f64 = parts.iter().sum();
        let idle = if sum > 0.0 { (asleep * pool.time).min(pool.energy) } else { pool.energy };
        for ((place, _), part) in pool.users.iter().zip(&parts) {
            let user = self.members[*place].user;
            if let Some((_, figure)) = all.iter_mut().find(|(one, _)| Some(*one) == user) {
                figure.value += (pool.energy - idle) * part / sum;
            }
        }
        idle
    }

    fn mix(
        &self,
        figures: &[f64; COUNT],
        bars: &[f64; COUNT],
        figure: impl Fn(&Hypothesis) -> (f64, f64),
    ) -> Figure {
        let mut each = [(0.0, 0.0); COUNT];
        each.iter_mut()
            .zip(&self.hypotheses)
            .for_each(|(one, hypothesis)| *one = figure(hypothesis));
        mix(figures, bars, &each)
    }

    /// How a user's energy was told from that of others.
    pub(crate) fn method(&self, user: User) -> Option<Method> {
        let member = self.places.get(&user).map(|place| &self.members[*place])?;
        if member.cpu <= 0.0 {
            return None;
        }
        let weights = self.weights(Of::Figures);
        let own: f64 = self
            .hypotheses
            .iter()
            .zip(weights)
            .filter(|(one, _)| {
                member.column.is_some_and(|column| {
                    let (mean, variance) = one.own(column);
                    one.has_columns() && mean * mean > 4.0 * variance
                })
            })
            .map(|(_, weight)| weight)
            .sum();
        Some(if member.alone >= 0.95 * member.cpu {
            Method::Alone
        } else if own > 0.5 {
            Method::OwnPrice
        } else {
            Method::Shared
        })
    }

    pub(crate) fn static_power(&self) -> StaticPower {
        if let Some(watts) = self.given {
            return StaticPower::Given(Watts(watts));
        }
        if self.hypotheses.is_empty() {
            return StaticPower::Unknown(Unknown::TooShort);
        }
        let figures = self.weights(Of::Figures);
        let Figure { value, stderr } = self.asleep_by(&figures, &figures);
        let mean = self.energy / self.time;
        let enough = (OF_DYNAMIC * (mean - value)).max(OF_TOTAL * mean);
        let told = self.rows >= 3 && 1.96 * stderr <= enough && !self.is_doubtful();
        let Figure { value, stderr } = self.asleep();
        let (watts, stderr) = (Watts(value), Watts(stderr));
        match told {
            true => StaticPower::Calibrated { watts, stderr },
            false => StaticPower::Assumed { watts, stderr },
        }
    }

    pub(super) fn asleep(&self) -> Figure {
        self.asleep_by(&self.weights(Of::Figures), &self.weights(Of::Bars))
    }

    fn asleep_by(&self, figures: &[f64; COUNT], bars: &[f64; COUNT]) -> Figure {
        self.mix(figures, bars, |one| (one.asleep(), one.variance(ASLEEP) * one.inflation()))
    }

    pub(crate) fn summary(&self) -> Option<Summary> {
        if self.hypotheses.is_empty() {
            return None;
        }
        let (figures, bars) = (self.weights(Of::Figures), self.weights(Of::Bars));
        let term = |number: usize| {
            self.mix(&figures, &bars, |one| {
                (one.mean(number).max(0.0), one.variance(number) * one.inflation())
            })
        };
        let price = term(PRICE);
        let loss = term(LOSS);
        let weight = Figure {
            value: (1.0 - loss.value / price.value.max(1e-9)).clamp(0.0, 1.0),
            stderr: loss.stderr / price.value.max(1e-9),
        };
        Some(Summary {
            asleep: self.asleep(),
            awake: term(AWAKE),
            price,
            paired_weight: self.traits.paired.then_some(weight),
            residual: self.miss,
            rows: self.rows,
            doubts: self.doubts(),
        })
    }

    fn doubts(&self) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        if self.rows < 10 {
            doubts.push(Doubt::TooShort);
        }
        if self.never_asleep() {
            doubts.push(Doubt::NeverAsleep);
        }
        if self.is_capped() {
            doubts.push(Doubt::Capped);
        }
        if self.is_misfit() {
            doubts.push(Doubt::Misfit);
        }
        doubts
    }

    /// The split between what is drawn asleep and the step to awake rests on what machines are like.
    fn never_asleep(&self) -> bool {
        self.asleep < 1.0 && self.given.is_none()
    }

    fn is_doubtful(&self) -> bool {
        self.is_capped() || self.is_misfit()
    }

    /// What is drawn is not what was predicted, or in a way that goes on and on.
    fn is_misfit(&self) -> bool {
        let weights = self.weights(Of::Figures);
        let alike: f64 =
            self.hypotheses.iter().zip(weights).map(|(one, weight)| weight * one.alike()).sum();
        self.rows >= 30 && (self.miss > MISFIT || (self.miss > 0.4 * MISFIT && alike > 0.6))
    }

    /// The load varies and the power hardly does.
    fn is_capped(&self) -> bool {
        let Moments { rows, load, power, load_load, load_power, power_power } = self.moments;
        if rows < 30.0 || load_load.sqrt() < 0.1 * load || load < 0.5 {
            return false;
        }
        let slope = load_power / load_load;
        let correlation = load_power / (load_load * power_power).sqrt().max(1e-12);
        // What a proportional load would have: power rises by its dynamic part.
        let expected = (power - self.asleep().value).max(0.1 * power) / load;
        slope < 0.3 * expected && correlation < 0.6
    }
}

/// Joules and watts are means by `figures`, their variance by `bars` about that.
fn mix(figures: &[f64; COUNT], bars: &[f64; COUNT], each: &[(f64, f64); COUNT]) -> Figure {
    // From the first: where all agree, it is exactly that.
    let first = each[0].0;
    let off = figures.iter().zip(each).map(|(weight, (value, _))| weight * (value - first));
    let value = first + off.sum::<f64>();
    let variance = bars
        .iter()
        .zip(each)
        .map(|(weight, (one, variance))| weight * (variance + (one - value) * (one - value)));
    Figure { value, stderr: variance.sum::<f64>().max(0.0).sqrt() }
}
