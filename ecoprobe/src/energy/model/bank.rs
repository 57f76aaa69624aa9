//! Hypotheses side by side: which of them predicted the rows best decides whose figures count.

mod figures;
#[cfg(test)]
mod tests;

use libm::{exp, exp2, log};
use rustc_hash::FxHashMap;

use super::arrears::{Account, Bill, pay};
use super::hypothesis::{AWAKE, COLUMNS, DEPENDANTS, Hypothesis, IDLE, Prior, Scale, TRACKED};
use super::pool::{Pool, Reading, Use};
use super::row::{Active, Row};
use super::{Observation, Traits};
use crate::base::{Joules, Seconds, User, Watts};
use crate::energy::attribute::Window;
use crate::energy::usage::Running;

/// Alike or not, bent or not, with or without a step from asleep to awake; see `docs/model.md` for how
/// they were chosen. What is plain counts in figures unless the evidence is against it: that is what
/// caution is for. Error bars know none.
const PRIORS: [Prior; COUNT] = [
    Prior { own: false, moves: 0.0, curved: 0.15, wakes: FLAT, belief: 1.0, caution: 1.0 },
    Prior { own: false, moves: 0.0, curved: 1.0, wakes: FLAT, belief: 0.5, caution: 5.0 },
    Prior { own: false, moves: 0.0, curved: 0.15, wakes: STEP, belief: 1.0, caution: 20.0 },
    Prior { own: true, moves: 0.01, curved: 0.3, wakes: FLAT, belief: 1.0, caution: 3e3 },
    Prior { own: true, moves: 0.01, curved: 0.3, wakes: STEP, belief: 1.0, caution: 6e4 },
];
const COUNT: usize = 5;
/// The step to awake: next to none, or as it is on real machines (`docs/model.md`).
const FLAT: (f64, f64) = (0.0, 0.05);
const STEP: (f64, f64) = (1.4, 0.6);

/// Where nobody measured how long the machine was awake, nothing could ever tell a step from what is drawn
/// asleep: it is left to the error bars.
const UNSEEN_STEP: f64 = 1e6;

/// Of the scores' memory, by row.
const FORGET: f64 = 0.9995;

/// Windows are pooled until they are this long. Where one row has what the next one lacks, energy and CPU
/// time are not of the same instants: rows are made longer, up to so much.
const POOL: f64 = 0.1;
const LONGEST_POOL: f64 = 1.6;
const TO_AND_FRO: f64 = -0.25;

/// How well the running part of a CPU's time is known, seconds: an even error of up to this.
const RUNNING: f64 = 3e-4;

/// Rows that a user's usual load is a mean of.
const CALM: f64 = 30.0;

/// Busy up to this part of one CPU, the machine is asleep; and awake for up to this part of the time.
const ASLEEP_LOAD: f64 = 0.02;
const ASLEEP_PART: f64 = 0.05;

/// Of the scores that columns go by, seconds; and the part of the load that is worth one.
const HALF_LIFE: f64 = 60.0;
const WORTH_A_COLUMN: f64 = 0.002;

/// What hypotheses are weighed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Figures,
    Bars,
}

/// Who used the domain.
#[derive(Debug, Clone, Default)]
struct Member {
    user: Option<User>,
    column: Option<usize>,
    sum: Option<usize>,
    /// CPU-seconds of late: what columns go by, as of `scored_at`.
    score: f64,
    scored_at: f64,
    /// Its load: mean and variance, and of how many rows.
    mean: f64,
    variance: f64,
    rows: f64,
    /// CPU-seconds in all, and those of rows in which nearly nobody else ran.
    cpu: f64,
    alone: f64,
    account: Account,
    /// The newest row in which it ran, and its load in it.
    row: u64,
    load: f64,
    /// In the row that is being pooled.
    pooled: Use,
}

/// The power model of one domain.
#[derive(Debug, Clone)]
pub(crate) struct Bank {
    traits: Traits,
    given: Option<f64>,
    members: Vec<Member>,
    places: FxHashMap<User, usize>,
    vacant: Vec<usize>,
    columns: [Option<usize>; COLUMNS],
    tracked: [Option<usize>; DEPENDANTS],
    hypotheses: Vec<Hypothesis>,
    pool: Pool,
    pool_time: f64,
    pooled: Vec<usize>,
    held: Option<Pool>,
    row: Row,
    split_row: Row,
    parts: Vec<f64>,
    sums: Vec<f64>,
    /// Power and load of the row before, and how much the load swung.
    before: Option<(f64, f64)>,
    swing: f64,
    rows: u64,
    time: f64,
    energy: f64,
    asleep: f64,
    idle: Account,
    bills: Vec<(f64, f64)>,
    paid: Vec<Bill>,
    /// Joules beyond what was given as static, while nobody ran.
    nobody: f64,
    /// Mean absolute error of what the next row was predicted to be, relative, of late.
    miss: f64,
    /// Moments of load and power, to see whether one follows the other.
    moments: Moments,
}

#[derive(Debug, Clone, Copy, Default)]
struct Moments {
    rows: f64,
    load: f64,
    power: f64,
    load_load: f64,
    load_power: f64,
    power_power: f64,
}

impl Moments {
    fn add(&mut self, load: f64, power: f64) {
        self.rows = (self.rows + 1.0).min(300.0);
        let part = 1.0 / self.rows;
        let (by_load, by_power) = (load - self.load, power - self.power);
        self.load += by_load * part;
        self.power += by_power * part;
        for (moment, product) in [
            (&mut self.load_load, by_load * by_load),
            (&mut self.load_power, by_load * by_power),
            (&mut self.power_power, by_power * by_power),
        ] {
            *moment = (1.0 - part) * (*moment + part * product);
        }
    }
}

impl Bank {
    /// With what is drawn asleep given, or else learned.
    pub(crate) fn new(given: Option<Watts>, traits: Traits) -> Self {
        Self {
            traits,
            given: given.map(|watts| watts.0),
            members: Vec::new(),
            places: FxHashMap::default(),
            vacant: Vec::new(),
            columns: [None; COLUMNS],
            tracked: [None; DEPENDANTS],
            hypotheses: Vec::new(),
            pool: Pool::default(),
            pool_time: POOL,
            pooled: Vec::new(),
            held: None,
            row: Row::default(),
            split_row: Row::default(),
            parts: Vec::new(),
            sums: Vec::new(),
            before: None,
            swing: 0.0,
            rows: 0,
            time: 0.0,
            energy: 0.0,
            asleep: 0.0,
            idle: Account::default(),
            bills: Vec::new(),
            paid: Vec::new(),
            nobody: 0.0,
            miss: 0.0,
            moments: Moments::default(),
        }
    }

    /// Takes in one window: what was drawn, and who ran meanwhile. Gives the watts that are to be idle, and
    /// into `out` what each user is to be billed of the rest, or at least how the rest is to be shared.
    ///
    /// That is what is known now, and arrears: what was billed before is no more than about right, and what
    /// is learned since is paid or withheld in the windows that follow, up to half of each bill. So sums of
    /// windows never fall, and agree with the corrected accounts in the end.
    pub(crate) fn enter(&mut self, seen: &Observation<'_>, out: &mut Vec<(User, f64)>) -> Watts {
        let asleep = self.split(seen, out);
        let window = seen.window;
        let part = out.iter().map(|(_, weight)| *weight).sum::<f64>();
        let energy = window.energy.0;
        let idle = (asleep.0 * window.time.0).min(energy);
        if !(part > 0.0 && window.time.0 > 0.0) {
            let awake = self.read(seen).awake;
            let joules = self.idle_of_nobody(window, awake);
            self.observe(seen, Bill { joules, arrears: 0.0 }, &[]);
            let known = self.given.is_some() || window.time.0 <= 0.0;
            return if known { asleep } else { Watts(joules / window.time.0) };
        }
        let figures = self.weights(Of::Figures);
        // The account of what is idle first, if it is not given.
        let mut bills = std::mem::take(&mut self.bills);
        bills.clear();
        let due = |place: Option<usize>| -> f64 {
            let joules = |one: &Hypothesis| match place {
                Some(place) => one.joules(place, self.members[place].sum),
                None => one.sums.joules[IDLE],
            };
            self.hypotheses.iter().zip(figures).map(|(one, weight)| weight * joules(one)).sum()
        };
        let learned = !self.hypotheses.is_empty();
        let idle_owed = match self.given {
            None if learned => self.idle.owed(due(None)),
            _ => 0.0,
        };
        bills.push((idle, idle_owed));
        for (user, weight) in out.iter() {
            let joules = (energy - idle) * weight / part;
            let place = self.places.get(user).copied().filter(|_| learned);
            let owed =
                place.map_or(0.0, |place| self.members[place].account.owed(due(Some(place))));
            bills.push((joules, owed));
        }
        let fixed = usize::from(self.given.is_some());
        pay(&mut bills[fixed..]);
        let idle_bill = Bill { joules: bills[0].0, arrears: bills[0].0 - idle };
        for ((_, weight), (joules, _)) in out.iter_mut().zip(&bills[1..]) {
            let arrears = joules - (energy - idle) * *weight / part;
            if energy > idle {
                *weight = *joules;
            }
            self.paid.push(Bill { joules: *joules, arrears });
        }
        let paid = std::mem::take(&mut self.paid);
        self.observe(seen, idle_bill, &paid);
        self.paid = paid;
        self.paid.clear();
        self.bills = bills;
        // What was given may be more than what was measured, which is to be said.
        if self.given.is_some() { asleep } else { Watts(idle_bill.joules / window.time.0) }
    }

    fn observe(&mut self, seen: &Observation<'_>, idle: Bill, paid: &[Bill]) {
        let reading = self.read(seen);
        self.pool.idle.add(idle);
        self.idle.bill(idle);
        self.pool.time += seen.window.time.0;
        self.pool.energy += seen.window.energy.0;
        self.pool.awake += reading.awake;
        self.traits.paired |= seen.running.paired;
        self.traits.awake |= seen.running.awake.is_some();
        let mut paid = paid.iter();
        for ran in seen.running.users {
            let Some(mut used) = reading.of(ran) else { continue };
            used.bill = paid.next().copied().unwrap_or_default();
            let place = self.place(ran.user);
            self.members[place].account.bill(used.bill);
            let pooled = &mut self.members[place].pooled;
            if pooled.cpu == 0.0 {
                self.pooled.push(place);
            }
            pooled.add(used);
        }
        let Pool { time, energy, .. } = self.pool;
        // A counter that stood still for a while is late, not at 0 W: wait for what it owes.
        let late = energy <= 0.0 && time < 10.0 * self.pool_time.max(self.traits.refresh);
        // Windows of exactly this length may be a little short of it.
        if time >= 0.999 * self.pool_time && !late {
            self.end_row();
        }
    }

    /// What is the same for all users of a window.
    fn read(&self, seen: &Observation<'_>) -> Reading {
        let time = seen.window.time.0;
        let Running { users, paired, awake } = seen.running;
        let busy: f64 = users.iter().map(|ran| ran.ns.max(0.0) * 1e-9).sum();
        // Where nobody measured it: one CPU's worth of work wakes the machine for as long.
        let awake = awake.map_or(busy.min(time), |awake| awake.0.clamp(0.0, time));
        // Nor that: beyond one thread a core, two are busy beside one another.
        let paired = match self.traits.cpus {
            _ if paired => None,
            Some(cpus) if cpus >= 4.0 && busy > 0.0 && time > 0.0 => {
                Some(2.0 * (1.0 - cpus * time / (2.0 * busy)).clamp(0.0, 0.5))
            }
            _ => Some(0.0),
        };
        Reading { busy, awake, paired }
    }

    fn place(&mut self, user: User) -> usize {
        *self.places.entry(user).or_insert_with(|| {
            let member = Member { user: Some(user), ..Member::default() };
            match self.vacant.pop() {
                Some(place) => {
                    self.members[place] = member;
                    place
                }
                None => {
                    self.members.push(member);
                    self.members.len() - 1
                }
            }
        })
    }

    /// What was pooled is a row. It is learned from when the next one is there: then it is known
    /// whether the load changed at its end.
    fn end_row(&mut self) {
        let mut row = std::mem::take(&mut self.pool);
        row.users = self.take_pooled();
        let next = Some((row.load(), row.power()));
        if let Some(held) = self.held.replace(row) {
            self.learn(held, next);
        }
    }

    /// Whether the machine is asleep, by how long it was awake if that is measured.
    fn sleeps(&self, load: f64, awake: f64) -> bool {
        if self.traits.awake { awake <= ASLEEP_PART } else { load <= ASLEEP_LOAD }
    }

    /// Idle joules of a window in which nobody ran here. Asleep, all of it is, unless less was given; while
    /// others keep the machine awake, what goes beyond is nobody's.
    fn idle_of_nobody(&self, window: Window, awake: f64) -> f64 {
        let Window { energy: Joules(energy), time: Seconds(time) } = window;
        let asleep = match self.given {
            Some(given) => given,
            None if self.hypotheses.is_empty() || self.sleeps(0.0, awake / time) => return energy,
            None => self.asleep().value,
        };
        (asleep * time).min(energy)
    }

    fn take_pooled(&mut self) -> Vec<(usize, Use)> {
        let members = &mut self.members;
        let uses = self.pooled.drain(..);
        uses.map(|place| (place, std::mem::take(&mut members[place].pooled))).collect()
    }

    fn begin(&mut self, pool: &Pool) {
        let scale = Scale {
            power: pool.power().max(1e-6),
            load: pool.load(),
            awake: pool.awake / pool.time,
            given: self.given,
            paired_known: self.traits.paired,
            ratio: self.traits.ratio,
            cpus: self.traits.cpus,
            spread: self.traits.spread,
        };
        self.hypotheses = PRIORS.iter().map(|prior| Hypothesis::new(*prior, &scale)).collect();
    }

    fn learn(&mut self, pool: Pool, next: Option<(f64, f64)>) {
        if self.hypotheses.is_empty() {
            self.begin(&pool);
        }
        self.lay_out(&pool, next);
        let mut row = std::mem::take(&mut self.row);
        if row.sane && self.rows > 0 {
            let predicted = self.predict(&row);
            let miss = ((predicted - row.energy) / row.energy.max(1e-9)).abs().min(1.0);
            self.miss += (miss - self.miss) / (self.rows as f64).min(300.0);
        }
        if row.busy > 0.0 {
            self.hypotheses.iter_mut().for_each(|hypothesis| hypothesis.learn(&row));
        } else {
            let window = Window { energy: Joules(row.energy), time: Seconds(row.time) };
            let idle = self.idle_of_nobody(window, row.awake);
            self.nobody += row.energy - idle;
            self.hypotheses.iter_mut().for_each(|hypothesis| hypothesis.rest(&row, idle));
        }
        self.forget_scores();
        self.rows += 1;
        let weights = self.weights(Of::Figures);
        let alike = self.hypotheses.iter().zip(weights).map(|(one, weight)| weight * one.alike());
        if alike.sum::<f64>() < TO_AND_FRO && self.pool_time < LONGEST_POOL {
            self.pool_time *= 2.0;
            self.hypotheses.iter_mut().for_each(Hypothesis::look_anew);
        }
        row.users.clear();
        self.row = row;
    }

    /// What the row is predicted to draw.
    fn predict(&mut self, row: &Row) -> f64 {
        let weights = self.weights(Of::Figures);
        let mut parts = std::mem::take(&mut self.parts);
        let mut sum = 0.0;
        for (hypothesis, weight) in self.hypotheses.iter().zip(weights) {
            hypothesis.predict(row, &mut parts);
            let dynamic = match parts.is_empty() {
                true => hypothesis.mean(AWAKE).max(0.0) * row.awake,
                false => parts.iter().sum(),
            };
            sum += weight * (hypothesis.asleep() * row.time + dynamic);
        }
        self.parts = parts;
        sum
    }

    /// Everything about a row but what the hypotheses make of it.
    fn lay_out(&mut self, pool: &Pool, next: Option<(f64, f64)>) {
        let Pool { time, energy, awake, .. } = *pool;
        let (load, power) = (pool.load(), pool.power());
        self.time += time;
        self.energy += energy;
        self.admit(pool);
        self.idle.learn(pool.idle);
        let cpus = self.traits.cpus.unwrap_or_else(|| load.max(self.row.cpus).max(1.0));
        let sleeps = self.sleeps(load, awake / time);
        let (load_before, power_before) = self.before.unwrap_or((load, power));
        let (load_after, power_after) = next.unwrap_or((load, power));
        let edge =
            |before: f64, after: f64, now: f64| (now - before).abs().max((now - after).abs());
        self.swing = edge(load_before, load_after, load).powi(2).max(0.5 * self.swing);
        let step = edge(power_before, power_after, power);
        self.before = Some((load, power));
        let refresh = self.traits.refresh;
        let row = &mut self.row;
        row.time = time;
        row.energy = energy;
        row.awake = awake;
        row.cpus = cpus;
        row.noise = (refresh * step).powi(2) / 3.0
            + 2.0 * (power * refresh).powi(2) / 12.0
            + self.traits.resolution.powi(2) / 6.0;
        row.cpu_noise = 2.0 * RUNNING * RUNNING / 12.0 * load.max(1.0);
        row.swing = 2.0 * time * self.swing / (4.0 * cpus);
        row.falls_asleep = sleeps && self.asleep == 0.0 && self.rows > 0;
        row.sane = energy.is_finite() && load <= 1.1 * cpus.max(1.0) && time > 0.0;
        if sleeps {
            self.asleep += time;
        }
        self.moments.add(load, power);
        let busy: f64 = pool.users.iter().map(|(_, used)| used.cpu).sum();
        row.users.clear();
        let (mut same, mut all) = (0.0, 0.0);
        for (place, used) in &pool.users {
            let member = &mut self.members[*place];
            let load = used.cpu / time;
            same += if member.row + 1 == self.rows { load.min(member.load) } else { 0.0 };
            all += load;
            (member.row, member.load) = (self.rows, load);
            member.cpu += used.cpu;
            member.account.learn(used.bill);
            if used.cpu > 0.95 * busy {
                member.alone += used.cpu;
            }
            let cpu = member.calm(used.cpu, time);
            let calm = cpu / used.cpu;
            row.users.push(Active {
                member: *place,
                column: member.column,
                sum: member.sum,
                cpu,
                paired: used.paired * calm,
                off: cpu - member.mean * time,
            });
        }
        // Those who no longer run are in the load before alone.
        let most = all.max(load_before);
        row.changed = if most > 0.0 { (1.0 - same / most).clamp(0.0, 1.0) } else { 0.0 };
        row.busy = row.users.iter().map(|user| user.cpu).sum();
        row.paired = row.users.iter().map(|user| user.paired).sum();
    }

    /// Columns go to those who run the most; sums that are carried along to those who ran of late.
    fn admit(&mut self, pool: &Pool) {
        let busy: f64 = pool.users.iter().map(|(_, used)| used.cpu).sum();
        let now = self.time;
        for (place, used) in &pool.users {
            let member = &mut self.members[*place];
            member.score = member.score_at(now) + used.cpu;
            member.scored_at = now;
        }
        let mut poorest = None;
        for (place, used) in &pool.users {
            if self.members[*place].sum.is_none() {
                self.track(*place, now);
            }
            if self.members[*place].column.is_none() && used.cpu >= WORTH_A_COLUMN * busy {
                let (column, score) = *poorest.get_or_insert_with(|| self.poorest_column(now));
                // Twice as much, or they would take turns.
                if self.members[*place].score >= 2.0 * score {
                    self.give_column(*place, column);
                    poorest = None;
                }
            }
        }
    }

    /// The column whose workload ran the least of late, and its score; of one that is free, 0.
    fn poorest_column(&self, now: f64) -> (usize, f64) {
        let score =
            |place: &Option<usize>| place.map_or(0.0, |place| self.members[place].score_at(now));
        let scores = self.columns.iter().map(score).enumerate();
        scores.min_by(|(_, one), (_, other)| one.total_cmp(other)).unwrap_or((0, f64::INFINITY))
    }

    fn give_column(&mut self, place: usize, column: usize) {
        if let Some(before) = self.columns[column].replace(place) {
            self.members[before].column = None;
        }
        self.members[place].column = Some(column);
        self.hypotheses.iter_mut().for_each(|hypothesis| hypothesis.give_column(column));
    }

    fn track(&mut self, place: usize, now: f64) {
        let sum = match self.tracked.iter().position(Option::is_none) {
            Some(sum) => sum,
            None => {
                // One that has rested for the longest.
                let age = |sum: &usize| {
                    let place = self.tracked[*sum];
                    place.map_or(f64::INFINITY, |place| now - self.members[place].scored_at)
                };
                let oldest = (0..DEPENDANTS).max_by(|a, b| age(a).total_cmp(&age(b)));
                let Some(sum) = oldest.filter(|sum| age(sum) > 0.0) else { return };
                sum
            }
        };
        if let Some(before) = self.tracked[sum] {
            self.settle(before);
        }
        self.tracked[sum] = Some(place);
        self.members[place].sum = Some(TRACKED + sum);
        self.hypotheses.iter_mut().for_each(|hypothesis| hypothesis.track(TRACKED + sum));
    }

    fn settle(&mut self, place: usize) {
        if let Some(sum) = self.members[place].sum.take() {
            self.tracked[sum - TRACKED] = None;
            self.hypotheses.iter_mut().for_each(|hypothesis| hypothesis.settle(place, sum));
        }
    }

    fn forget_scores(&mut self) {
        let most = self.hypotheses.iter().map(|one| one.score).fold(f64::NEG_INFINITY, f64::max);
        for hypothesis in &mut self.hypotheses {
            let start = log(hypothesis.prior.belief);
            hypothesis.score = FORGET * (hypothesis.score - most) + (1.0 - FORGET) * start;
        }
    }

    /// How much each hypothesis counts.
    fn weights(&self, of: Of) -> [f64; COUNT] {
        let mut weights = [0.0; COUNT];
        let unlike = self.traits.spread > 0.0;
        let counts = |one: &&Hypothesis| of == Of::Figures || !unlike || one.has_columns();
        let scores = self.hypotheses.iter().filter(counts).map(|one| one.score);
        let most = scores.fold(f64::NEG_INFINITY, f64::max);
        for (weight, hypothesis) in weights.iter_mut().zip(&self.hypotheses) {
            *weight = exp(hypothesis.score - most);
            if of == Of::Figures {
                let Prior { caution, wakes, .. } = hypothesis.prior;
                let blind = !self.traits.awake || self.traits.cpus.is_none();
                let blind = blind && wakes == STEP;
                *weight /= if blind { UNSEEN_STEP * caution } else { caution };
            } else if unlike && !hypothesis.has_columns() {
                *weight = 0.0;
            }
        }
        let sum: f64 = weights.iter().sum();
        weights.map(|weight| weight / sum)
    }

    /// Watts asleep, and into `out` joules that each user of a window is predicted to have drawn.
    fn split(&mut self, seen: &Observation<'_>, out: &mut Vec<(User, f64)>) -> Watts {
        out.clear();
        let reading = self.read(seen);
        let mut row = std::mem::take(&mut self.split_row);
        row.users.clear();
        for ran in seen.running.users {
            let Some(used) = reading.of(ran) else { continue };
            let place = self.places.get(&ran.user).copied();
            let column = place.and_then(|place| self.members[place].column);
            row.users.push(used.active(place.unwrap_or_default(), column));
            out.push((ran.user, 0.0));
        }
        (row.time, row.busy, row.awake) = (seen.window.time.0, reading.busy, reading.awake);
        let asleep = self.split_into(&mut row, |index, joules| out[index].1 = joules);
        self.split_row = row;
        Watts(asleep)
    }

    /// Watts asleep; tells what each user of the row is predicted to have drawn.
    fn split_into(&mut self, row: &mut Row, mut tell: impl FnMut(usize, f64)) -> f64 {
        row.cpus = self.traits.cpus.unwrap_or(self.row.cpus.max(1.0));
        if self.hypotheses.is_empty() {
            row.users.iter().enumerate().for_each(|(index, user)| tell(index, user.cpu));
            return self.given.unwrap_or(0.0);
        }
        let weights = self.weights(Of::Figures);
        let (mut parts, mut sums) =
            (std::mem::take(&mut self.parts), std::mem::take(&mut self.sums));
        sums.clear();
        sums.resize(row.users.len(), 0.0);
        let mut asleep = 0.0;
        for (hypothesis, weight) in self.hypotheses.iter().zip(weights) {
            hypothesis.predict(row, &mut parts);
            asleep += weight * hypothesis.asleep();
            sums.iter_mut().zip(&parts).for_each(|(sum, part)| *sum += weight * part);
        }
        sums.iter().enumerate().for_each(|(index, joules)| tell(index, *joules));
        (self.parts, self.sums) = (parts, sums);
        asleep
    }

    /// There will be no more windows.
    pub(crate) fn finish(&mut self) {
        if self.pool.time > 0.0 {
            // Too short to be learned from alone; a counter's refresh is most of it.
            let mut last = std::mem::take(&mut self.pool);
            last.users = self.take_pooled();
            match &mut self.held {
                Some(held) if last.time < self.pool_time => held.absorb(last),
                held => {
                    if let Some(held) = held.replace(last) {
                        self.learn(held, None);
                    }
                }
            }
        }
        if let Some(held) = self.held.take() {
            self.learn(held, None);
        }
    }

    /// One user's account becomes part of another's.
    pub(crate) fn fold(&mut self, user: User, into: User) {
        let Some(place) = self.places.remove(&user) else { return };
        let to = self.place(into);
        self.settle(place);
        self.settle(to);
        if let Some(column) = self.members[place].column.take() {
            self.columns[column] = None;
        }
        self.hypotheses.iter_mut().for_each(|hypothesis| hypothesis.fold(place, to));
        // What still waits to be learned from is the other's.
        let pooled = std::mem::take(&mut self.members[place].pooled);
        if pooled.cpu > 0.0 {
            self.pooled.retain(|pooled| *pooled != place);
            if self.members[to].pooled.cpu == 0.0 {
                self.pooled.push(to);
            }
            self.members[to].pooled.add(pooled);
        }
        if let Some(held) = &mut self.held {
            held.fold(place, to);
        }
        let from = std::mem::take(&mut self.members[place]);
        self.members[to].account.billed += from.account.billed;
        self.members[to].account.ahead += from.account.ahead;
        self.members[to].cpu += from.cpu;
        self.members[to].alone += from.alone;
        self.vacant.push(place);
    }
}

impl Member {
    fn score_at(&self, now: f64) -> f64 {
        self.score * exp2(-(now - self.scored_at) / HALF_LIFE)
    }

    /// CPU time is read with an error. What varies by no more than that does not vary: the part of a
    /// deviation from the mean that is believed is the part of its variance that is no error.
    fn calm(&mut self, cpu: f64, time: f64) -> f64 {
        let load = cpu / time;
        self.rows = (self.rows + 1.0).min(CALM);
        let part = 1.0 / self.rows;
        if self.rows == 1.0 {
            self.mean = load;
        }
        let off = load - self.mean;
        self.variance = ((1.0 - part) * (self.variance + part * off * off)).max(0.0);
        let error = 2.0 * RUNNING * RUNNING / 12.0 * load.max(1.0) / (time * time);
        let believed = 1.0 - error / self.variance.max(off * off / 9.0).max(1e-300);
        let calm = self.mean + believed.clamp(0.0, 1.0) * off;
        self.mean += off * part;
        time * calm.max(1e-3 * load)
    }
}
