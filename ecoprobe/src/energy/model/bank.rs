//! Hypotheses side by side: which of them predicted the rows best decides whose figures count.

use libm::{exp, exp2, hypot, log};
use rustc_hash::FxHashMap;

use super::hypothesis::{
    ASLEEP, AWAKE, COLUMNS, DEPENDANTS, Hypothesis, IDLE, LOSS, PRICE, Prior, REST, Scale, TRACKED,
};
use super::row::{Active, Row};
use super::{Doubt, Figure, Method, Observation, StaticPower, Summary, Traits, Unknown};
use crate::base::{Joules, Seconds, User, Watts};
use crate::energy::attribute::Window;
use crate::energy::ledger::Due;
use crate::energy::usage::{Ran, Running};

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

#[derive(Debug, Clone, Copy, Default)]
struct Use {
    cpu: f64,
    paired: f64,
    bill: Bill,
}

/// What an account was billed for rows that are learned from, and arrears in windows that are not yet.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    billed: f64,
    ahead: f64,
}

impl Account {
    /// A window was billed, which is not learned from yet.
    fn bill(&mut self, bill: Bill) {
        self.ahead += bill.arrears;
    }

    /// It is now.
    fn learn(&mut self, bill: Bill) {
        self.billed += bill.joules;
        self.ahead -= bill.arrears;
    }

    /// What is missing to what it is to have.
    fn owed(&self, due: f64) -> f64 {
        due - self.billed - self.ahead
    }
}

impl Bill {
    fn add(&mut self, other: Self) {
        self.joules += other.joules;
        self.arrears += other.arrears;
    }
}

/// What somebody was billed for dynamic joules, or what was taken as idle, when it was drawn.
#[derive(Debug, Clone, Copy, Default)]
struct Bill {
    joules: f64,
    /// The part of it that was for what was drawn before, paid or withheld.
    arrears: f64,
}

/// What was seen and is not yet learned from.
#[derive(Debug, Clone, Default)]
struct Pool {
    time: f64,
    energy: f64,
    awake: f64,
    idle: Bill,
    users: Vec<(usize, Use)>,
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

    fn asleep(&self) -> Figure {
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

/// Of each bill, so much more or less may be paid for what was drawn before.
const ARREARS: f64 = 0.5;

/// Each bill and what is owed beside it become one bill; the sum of all stays. What is paid to some, all
/// have to do without in proportion to their bills: the nearest to what everybody is to have, by least
/// squares, within the bounds.
fn pay(bills: &mut [(f64, f64)]) {
    let sum: f64 = bills.iter().map(|(bill, _)| bill).sum();
    let paid = |&(bill, owed): &(f64, f64), more: f64| {
        (bill + owed + more * bill).clamp(bill * (1.0 - ARREARS), bill * (1.0 + ARREARS))
    };
    let owed = bills.iter().filter(|(bill, _)| *bill > 0.0).map(|(bill, owed)| (owed / bill).abs());
    let most = owed.fold(0.0, f64::max) + ARREARS;
    let (mut low, mut high) = (-most, most);
    // As near as the numbers are to one another.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        let too_much = bills.iter().map(|one| paid(one, middle)).sum::<f64>() > sum;
        if too_much { high = middle } else { low = middle }
    }
    for one in bills {
        one.0 = paid(one, low);
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

/// What is the same for all users of a window.
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// CPU-seconds of all users together.
    busy: f64,
    /// Seconds in which the machine was awake.
    awake: f64,
    /// The part of the CPU time that was paired, where nobody measured it.
    paired: Option<f64>,
}

impl Reading {
    fn of(&self, ran: &Ran) -> Option<Use> {
        let cpu = ran.ns * 1e-9;
        if !(cpu > 0.0 && cpu.is_finite()) {
            return None;
        }
        let paired = self.paired.map_or(ran.paired_ns * 1e-9, |part| part * cpu);
        Some(Use { cpu, paired: paired.clamp(0.0, cpu), bill: Bill::default() })
    }
}

impl Use {
    fn active(self, member: usize, column: Option<usize>) -> Active {
        let Self { cpu, paired, .. } = self;
        Active { member, column, sum: None, cpu, paired, off: 0.0 }
    }

    fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.paired += other.paired;
        self.bill.add(other.bill);
    }
}

impl Pool {
    fn load(&self) -> f64 {
        self.users.iter().map(|(_, used)| used.cpu).sum::<f64>() / self.time
    }

    fn power(&self) -> f64 {
        self.energy / self.time
    }

    fn absorb(&mut self, other: Self) {
        self.time += other.time;
        self.energy += other.energy;
        self.awake += other.awake;
        self.idle.add(other.idle);
        for (place, used) in other.users {
            match self.users.iter_mut().find(|(known, _)| *known == place) {
                Some((_, sum)) => sum.add(used),
                None => self.users.push((place, used)),
            }
        }
    }

    fn fold(&mut self, place: usize, to: usize) {
        let Some(index) = self.users.iter().position(|(known, _)| *known == place) else { return };
        let (_, used) = self.users.swap_remove(index);
        match self.users.iter_mut().find(|(known, _)| *known == to) {
            Some((_, sum)) => sum.add(used),
            None => self.users.push((to, used)),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Component, WorkloadId};

    fn ran(id: u64, seconds: f64) -> Ran {
        Ran { user: User::Workload(WorkloadId(id)), ns: seconds * 1e9, paired_ns: 0.0 }
    }

    const TRAITS: fn() -> Traits = || Traits::of(Component::Cpu, Some(8.0), None, 6.1e-5);

    /// A machine of 20 W asleep, 20 W more awake and 10 J a CPU-second, and what it was seen to draw.
    struct Seen {
        bank: Bank,
        measured: f64,
        out: Vec<(User, f64)>,
        /// What the windows billed to the first workload.
        counted: f64,
    }

    impl Seen {
        fn new(given: Option<f64>) -> Self {
            let bank = Bank::new(given.map(Watts), TRAITS());
            Self { bank, measured: 0.0, out: Vec::new(), counted: 0.0 }
        }

        fn window(&mut self, time: f64, joules: f64, users: &[Ran]) {
            let window = Window { energy: Joules(joules), time: Seconds(time) };
            let awake = if users.is_empty() { 0.0 } else { time };
            let running = Running { users, paired: true, awake: Some(Seconds(awake)) };
            let idle = self.bank.enter(&Observation { window, running }, &mut self.out);
            assert!(
                idle.0 >= 0.0 && self.out.iter().all(|(_, bill)| *bill >= 0.0),
                "{:?}",
                self.out
            );
            self.measured += joules;
            if let Some((_, bill)) = self.out.iter().find(|(one, _)| *one == user(1)) {
                let sum: f64 = self.out.iter().map(|(_, bill)| bill).sum();
                let dynamic = joules - (idle.0 * time).min(joules);
                self.counted += dynamic * bill / sum;
            }
        }

        /// A window as the machine's power is, and a little noise.
        fn run(&mut self, time: f64, loads: &[(u64, f64)]) {
            let users: Vec<_> = loads.iter().map(|(id, load)| ran(*id, load * time)).collect();
            let busy: f64 = loads.iter().map(|(_, load)| load).sum();
            let noise = 1.0 + 0.002 * (self.measured * 1e3).sin();
            let watts = 20.0 + if busy > 0.0 { 20.0 } else { 0.0 } + 10.0 * busy;
            self.window(time, watts * time * noise, &users);
        }

        /// What everybody is to have: it adds up to what was measured, and nothing is for sure.
        fn settle(&mut self) -> FxHashMap<User, Figure> {
            self.bank.finish();
            let due = self.bank.settle_up();
            let users: f64 = due.users.iter().map(|(_, figure)| figure.value).sum();
            let sum = due.idle.0 + due.nobody.0 + users;
            let off = (sum - self.measured).abs();
            assert!(off <= 1e-9 * self.measured.abs().max(1.0), "{sum} {}", self.measured);
            for (user, figure) in &due.users {
                assert!(
                    figure.value.is_finite() && figure.stderr.is_finite(),
                    "{user:?} {figure:?}"
                );
                assert!(figure.stderr > 0.0 || figure.value == 0.0, "{user:?} {figure:?}");
            }
            let Figure { value, stderr } = self.bank.asleep();
            assert!(value.is_finite() && stderr.is_finite());
            due.users.into_iter().collect()
        }
    }

    fn user(id: u64) -> User {
        User::Workload(WorkloadId(id))
    }

    /// Sleeps, then one, then the other, then both, over and over.
    fn turns(seen: &mut Seen, rounds: u64, apart: bool) {
        for _ in 0..rounds {
            seen.run(1.0, &[]);
            if apart {
                seen.run(1.0, &[(1, 2.0)]);
                seen.run(1.0, &[(2, 3.0)]);
            }
            seen.run(1.0, &[(1, 2.0), (2, 3.0)]);
        }
    }

    #[test]
    fn like_jobs_that_were_seen_alone_have_a_small_bar() {
        let mut seen = Seen::new(None);
        turns(&mut seen, 40, true);
        let figures = seen.settle();
        // Alone 20 W of step and 10 J a CPU-second; together by what each adds.
        for (id, truth) in [(1, 40.0 * (40.0 + 28.0)), (2, 40.0 * (50.0 + 42.0))] {
            let Figure { value, stderr } = figures[&user(id)];
            assert!((value - truth).abs() < 0.02 * truth, "{id}: {value} for {truth}");
            assert!(1.96 * stderr < 0.06 * truth, "{id}: ± {}", 1.96 * stderr / truth);
        }
        assert!(matches!(seen.bank.static_power(), StaticPower::Calibrated { .. }));
        let summary = seen.bank.summary().unwrap();
        assert!((summary.asleep.value - 20.0).abs() < 0.5, "{summary:?}");
        assert!((summary.awake.value - 20.0).abs() < 2.0, "{summary:?}");
        assert!((summary.price.value - 10.0).abs() < 0.5, "{summary:?}");
        assert!(summary.residual < 0.01, "{summary:?}");
    }

    #[test]
    fn jobs_that_always_run_together_have_a_wide_bar() {
        let mut seen = Seen::new(None);
        turns(&mut seen, 60, false);
        let figures = seen.settle();
        for (id, truth) in [(1, 60.0 * 28.0), (2, 60.0 * 42.0)] {
            let Figure { value, stderr } = figures[&user(id)];
            assert!((value - truth).abs() < 0.02 * truth, "{id}: {value} for {truth}");
            assert!(1.96 * stderr > 0.2 * truth, "{id}: ± {}", 1.96 * stderr / truth);
        }
    }

    #[test]
    fn the_spread_of_prices_can_be_given() {
        let bars = [0.0, 0.1, 0.4, 0.8].map(|spread| {
            let mut seen = Seen::new(None);
            seen.bank.traits.spread = spread;
            turns(&mut seen, 60, false);
            let Figure { value, stderr } = seen.settle()[&user(1)];
            assert!((value - 60.0 * 28.0).abs() < 0.02 * value, "{spread}: {value}");
            stderr / value
        });
        assert!(bars.is_sorted() && bars[3] > 3.0 * bars[1], "{bars:?}");
    }

    #[test]
    fn what_windows_bill_comes_to_what_is_due() {
        for given in [None, Some(20.0)] {
            let mut seen = Seen::new(given);
            // Together from the start: everything is learned late.
            turns(&mut seen, 10, false);
            turns(&mut seen, 20, true);
            let counted = seen.counted;
            let due = seen.settle()[&user(1)].value;
            eprintln!(
                "{:?} idle {:?} counted {counted} due {due}",
                seen.bank.members.iter().map(|m| m.account).collect::<Vec<_>>(),
                seen.bank.idle
            );
            assert!((counted / due - 1.0).abs() < 1e-3, "{given:?}: {counted} {due}");
        }
    }

    #[test]
    fn arrears_are_paid_within_the_bill_and_add_up() {
        for (mut bills, expected) in [
            (vec![(10.0, 2.0), (10.0, -2.0)], vec![12.0, 8.0]),
            (vec![(10.0, 20.0), (10.0, 0.0)], vec![15.0, 5.0]),
            (vec![(10.0, 20.0), (10.0, 20.0)], vec![10.0, 10.0]),
            (vec![(10.0, -20.0), (5.0, 0.0), (5.0, 0.0)], vec![5.0, 7.5, 7.5]),
            (vec![(4.0, 1.0), (4.0, 1.0), (4.0, -0.5)], vec![4.5, 4.5, 3.0]),
            (vec![(7.0, 3.0)], vec![7.0]),
            (vec![(0.0, 3.0), (4.0, 0.0)], vec![0.0, 4.0]),
            (vec![], vec![]),
        ] {
            pay(&mut bills);
            assert_eq!(bills.len(), expected.len());
            for ((bill, _), expected) in bills.iter().zip(&expected) {
                assert!((bill - expected).abs() < 1e-12, "{bills:?} {expected:?}");
            }
        }
    }

    #[test]
    fn bad_input_leaves_the_books_closed() {
        for given in [None, Some(20.0), Some(40.0), Some(10.0), Some(0.0)] {
            let mut seen = Seen::new(given);
            turns(&mut seen, 5, true);
            // A counter that stands still, and then owes; one that jumps.
            (0..8).for_each(|_| seen.window(0.1, 0.0, &[ran(1, 0.2)]));
            seen.window(0.1, 70.0, &[ran(1, 0.2)]);
            seen.window(1.0, 1e7, &[ran(1, 2.0)]);
            // CPU time that no window can hold; a clock that stands still; one that ends at once.
            seen.window(1.0, 60.0, &[ran(1, 1e6), ran(2, 1.0)]);
            seen.window(0.0, 0.0, &[ran(1, 1.0)]);
            seen.window(0.0, 1.0, &[]);
            seen.window(1e-9, 1e-3, &[ran(3, 1e-9)]);
            // Paired time that is more than all; a sibling that is gone.
            seen.window(1.0, 60.0, &[Ran { paired_ns: 1e12, ..ran(1, 2.0) }]);
            turns(&mut seen, 5, true);
            seen.settle();
        }
    }

    #[test]
    fn ten_thousand_that_each_run_once() {
        let mut seen = Seen::new(None);
        for id in 1..=10_000 {
            seen.run(0.1, &[(id, 1.0)]);
        }
        let figures = seen.settle();
        assert_eq!(figures.len(), 10_000);
        // 1 s of each ten has 40 W asleep or awake, 10 for the one who ran.
        let mean = figures.values().map(|figure| figure.value).sum::<f64>() / 10_000.0;
        assert!((0.5..5.0).contains(&mean), "{mean}");
    }

    #[test]
    fn who_is_folded_takes_its_joules_along() {
        let mut seen = Seen::new(None);
        turns(&mut seen, 5, true);
        seen.bank.fold(user(2), user(9));
        seen.bank.fold(user(77), user(9));
        turns(&mut seen, 5, true);
        seen.bank.fold(user(1), user(9));
        let figures = seen.settle();
        // Each round has 68 J of the first and 92 J of the second: all of it but the second's last five.
        for (id, truth) in [(9, 10.0 * 68.0 + 5.0 * 92.0), (2, 5.0 * 92.0)] {
            let value = figures[&user(id)].value;
            assert!((value - truth).abs() < 0.03 * truth, "{id}: {value} for {truth}");
        }
    }

    #[test]
    fn it_forgets_what_is_no_longer_true() {
        let mut seen = Seen::new(None);
        turns(&mut seen, 20, true);
        // A price of its own that goes away again.
        for round in 0..120 {
            let load = 1.0 + f64::from(round % 3);
            seen.run(1.0, &[(1, load), (2, 3.0)]);
        }
        let figures = seen.settle();
        let [one, two] = [1, 2].map(|id| figures[&user(id)].value);
        // In CPU-seconds: 2:3 for 60 s, and 2:3 on average after that.
        assert!((one / two / (2.0 / 3.0) - 1.0).abs() < 0.1, "{one} {two}");
    }

    #[test]
    fn one_low_row_is_not_what_is_drawn_asleep() {
        let mut seen = Seen::new(None);
        turns(&mut seen, 20, true);
        // A counter that shows a second's joules with the next one's.
        seen.window(1.0, 0.0, &[]);
        seen.window(1.0, 40.0, &[]);
        turns(&mut seen, 20, true);
        seen.settle();
        let idle = seen.bank.settle_up().idle.0;
        let asleep = seen.bank.asleep().value;
        assert!((asleep - 20.0).abs() < 0.5, "{asleep}");
        assert!((idle / (asleep * 162.0) - 1.0).abs() < 0.01, "{idle} {asleep}");
    }

    #[test]
    fn many_folded_into_one_are_no_surer_than_each() {
        let mut seen = Seen::new(None);
        for round in 0..300 {
            seen.run(0.2, &[(round % 150 + 1, 2.0)]);
        }
        let mut apart = Seen { bank: seen.bank.clone(), out: Vec::new(), ..seen };
        let relative = |figure: &Figure| figure.stderr / figure.value;
        let figures = apart.settle();
        let least = figures.values().map(relative).fold(f64::INFINITY, f64::min);
        for id in 1..=150 {
            seen.bank.fold(user(id), user(1000));
        }
        let folded = seen.settle()[&user(1000)];
        assert!(relative(&folded) > 0.5 * least, "{folded:?} {least}");
    }

    #[test]
    fn where_others_keep_the_machine_awake_the_step_is_nobodys() {
        let mut seen = Seen::new(None);
        turns(&mut seen, 20, true);
        for _ in 0..50 {
            let window = Window { energy: Joules(40.0), time: Seconds(1.0) };
            let running = Running { users: &[], paired: true, awake: Some(Seconds(1.0)) };
            let idle = seen.bank.enter(&Observation { window, running }, &mut seen.out);
            assert!((idle.0 - 20.0).abs() < 1.0, "{idle:?}");
            seen.measured += 40.0;
        }
        seen.settle();
        let nobody = seen.bank.settle_up().nobody.0;
        assert!((nobody - 1000.0).abs() < 50.0, "{nobody}");
        assert!(seen.bank.summary().unwrap().residual < 0.02);
    }

    #[test]
    fn a_package_at_its_limit_is_said() {
        let mut seen = Seen::new(None);
        for round in 0..200 {
            let load = 2.0 + f64::from(round * 7 % 6);
            seen.window(1.0, 60.0 + 0.1 * f64::from(round % 3), &[ran(1, load)]);
        }
        seen.settle();
        let doubts = seen.bank.summary().unwrap().doubts;
        assert!(doubts.contains(&Doubt::Capped), "{doubts:?}");
        assert!(!matches!(seen.bank.static_power(), StaticPower::Calibrated { .. }));
        let mut seen = Seen::new(None);
        turns(&mut seen, 50, true);
        seen.settle();
        assert_eq!(seen.bank.summary().unwrap().doubts, []);
    }

    /// Microseconds of a row at this quantile, `active` of `known` workloads running in each.
    fn cost(known: u64, active: u64, quantile: f64) -> f64 {
        let mut bank = Bank::new(None, Traits::of(Component::Cpu, Some(64.0), None, 6.1e-5));
        let mut took = Vec::new();
        let mut out = Vec::new();
        for row in 0..2000_u64 {
            // Half of them stay, the others change.
            let ids = (0..active).map(|place| match place < active / 2 {
                true => place,
                false => active + (row / 7 * 13 + place) % (known - active),
            });
            let load = |id: u64| 0.1 + ((row * 31 + id * 17) % 97) as f64 / 97.0;
            let users: Vec<_> = ids.map(|id| ran(id + 1, 0.05 * load(id))).collect();
            let busy: f64 = users.iter().map(|ran| ran.ns * 1e-9).sum();
            let energy = Joules(2.0 + 10.0 * busy);
            let window = Window { energy, time: Seconds(0.1) };
            let running = Running { users: &users, paired: false, awake: Some(Seconds(0.1)) };
            let seen = Observation { window, running };
            let start = std::time::Instant::now();
            bank.enter(&seen, &mut out);
            took.push(start.elapsed().as_secs_f64() * 1e6);
        }
        took.drain(..100);
        took.sort_unstable_by(f64::total_cmp);
        took[(took.len() as f64 * quantile) as usize]
    }

    /// `cargo test --release -p ecoprobe --lib -- --ignored --nocapture cost_of_a_row`
    #[test]
    #[ignore = "a measurement, of a release build"]
    fn cost_of_a_row() {
        for (known, active) in [(1_000, 50), (10_000, 500)] {
            let [median, most] = [0.5, 0.99].map(|quantile| cost(known, active, quantile));
            println!("{active} of {known} active: {median:.0} µs, p99 {most:.0} µs");
        }
    }
}
