//! Loads as they come: which job keeps how many CPUs busy, from one change to the next.

use fastrand::Rng;

use super::scenario::{Job, Load, Scenario, Wander};

/// Nothing changes twice within this, seconds.
const LEAST: f64 = 1e-7;

/// A job as it runs.
#[derive(Debug)]
pub(super) struct Runner<'a> {
    job: &'a Job,
    /// Of its load; another job's may draw the same.
    times: Rng,
    /// Of everything else.
    random: Rng,
    /// On each of its packages, as it asks for them.
    asked: f64,
    /// Busy while it is even; or whose turn it is.
    turn: u64,
    load_until: f64,
    phase: f64,
    phase_until: f64,
    on: usize,
    move_at: f64,
    own: Drift,
}

impl<'a> Runner<'a> {
    pub(super) fn new(job: &'a Job, scenario: &Scenario, number: u64, seed: u64) -> Self {
        let stream = job.stream.map_or(2 * number, |stream| 2 * stream + 1);
        let mut times = seeded(seed, stream.wrapping_add(1 << 32));
        let mut random = seeded(seed, number);
        let turn = match job.load {
            Load::OnOff { mean_busy, mean_idle, .. } => {
                u64::from(times.f64() >= mean_busy / (mean_busy + mean_idle))
            }
            Load::Turns { of, .. } => times.u64(..of.max(1)),
            _ => 0,
        };
        Self {
            on: random.usize(..job.packages.len()),
            own: Drift::new(scenario.own, &mut random),
            job,
            times,
            random,
            asked: 0.0,
            // The first draw comes at once, and moves on.
            turn: turn.wrapping_sub(1),
            load_until: 0.0,
            phase: 1.0,
            phase_until: 0.0,
            move_at: 0.0,
        }
    }

    /// What it asks for on a package.
    pub(super) fn cpus(&self, package: usize) -> f64 {
        let here = match self.job.moves {
            Some(_) => self.job.packages[self.on] == package,
            None => self.job.packages.contains(&package),
        };
        if here { self.asked } else { 0.0 }
    }

    /// Joules in a CPU-second, now.
    pub(super) fn price(&self) -> f64 {
        self.job.joules_per_cpu_second * self.phase * self.own.factor()
    }

    /// The next change.
    pub(super) fn until(&self) -> f64 {
        self.load_until.min(self.phase_until).min(self.move_at)
    }

    /// What it does at `now`. What changes all the time is looked at on the grid of `step`.
    pub(super) fn look(&mut self, now: f64, step: f64) {
        if now >= self.load_until {
            let (asked, until) = self.load(now, step);
            (self.asked, self.load_until) = (asked, until.max(now + LEAST));
        }
        if now >= self.phase_until {
            self.phase_until = f64::INFINITY;
            if let Some(phases) = self.job.phases {
                self.phase = 1.0 + phases.part * (2.0 * self.random.f64() - 1.0);
                self.phase_until = now + exponential(&mut self.random, phases.seconds);
            }
        }
        if now >= self.move_at {
            self.move_at = f64::INFINITY;
            if let Some(seconds) = self.job.moves {
                self.on = (self.on + 1) % self.job.packages.len();
                self.move_at = now + exponential(&mut self.random, seconds);
            }
        }
    }

    pub(super) fn wander(&mut self, seconds: f64) {
        self.own.pass(seconds, &mut self.random);
    }

    /// CPUs now, and until when.
    fn load(&mut self, now: f64, step: f64) -> (f64, f64) {
        match self.job.load {
            Load::Constant { cpus } => (cpus, f64::INFINITY),
            Load::Bursts { cpus, busy, period } => {
                let began = (now / period).floor() * period;
                // At an edge, rounding may have it on either side.
                if now - began >= period - LEAST {
                    (cpus, began + period + busy)
                } else if now - began < busy - LEAST {
                    (cpus, began + busy)
                } else {
                    (0.0, began + period)
                }
            }
            Load::Sine { mean, swing, period } => {
                let until = ((now / step).round() + 1.0) * step;
                let middle = f64::midpoint(now, until);
                let cpus = mean + swing * (middle * std::f64::consts::TAU / period).sin();
                (cpus.max(0.0), until)
            }
            Load::Once { from, .. } if now < from => (0.0, from),
            Load::Once { cpus, to, .. } if now < to => (cpus, to),
            Load::Once { .. } => (0.0, f64::INFINITY),
            Load::OnOff { cpus, mean_busy, mean_idle } => {
                self.turn = self.turn.wrapping_add(1);
                let busy = self.turn.is_multiple_of(2);
                let mean = if busy { mean_busy } else { mean_idle };
                let seconds = exponential(&mut self.times, mean);
                (if busy { cpus } else { 0.0 }, now + seconds)
            }
            Load::Levels { low, high, mean } => {
                let cpus = low + self.times.f64() * (high - low);
                (cpus, now + exponential(&mut self.times, mean))
            }
            Load::Turns { cpus, turn, of, mean } => {
                self.turn = self.turn.wrapping_add(1);
                let seconds = exponential(&mut self.times, mean);
                (if self.turn % of == turn { cpus } else { 0.0 }, now + seconds)
            }
        }
    }
}

/// A factor about 1 that wanders (Ornstein–Uhlenbeck).
#[derive(Debug)]
pub(super) struct Drift {
    wander: Wander,
    value: f64,
}

impl Drift {
    /// Beyond this it does not go.
    const MOST: f64 = 0.5;

    pub(super) fn new(wander: Wander, random: &mut Rng) -> Self {
        Self { value: wander.part * normal(random), wander }
    }

    pub(super) fn factor(&self) -> f64 {
        1.0 + self.value.clamp(-Self::MOST, Self::MOST)
    }

    pub(super) fn pass(&mut self, seconds: f64, random: &mut Rng) {
        if self.wander.part > 0.0 {
            let kept = (-seconds / self.wander.seconds).exp();
            let new = (1.0 - kept * kept).sqrt() * self.wander.part;
            self.value = self.value * kept + new * normal(random);
        }
    }
}

/// A stream of its own.
pub(super) fn seeded(seed: u64, stream: u64) -> Rng {
    // The generator's first words are near each other where seeds are.
    let mut random = Rng::with_seed(seed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    Rng::with_seed(random.u64(..))
}

fn exponential(random: &mut Rng, mean: f64) -> f64 {
    -mean * (1.0 - random.f64()).ln()
}

/// Box and Muller's.
pub(super) fn normal(random: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - random.f64()).ln()).sqrt();
    radius * (random.f64() * std::f64::consts::TAU).cos()
}
