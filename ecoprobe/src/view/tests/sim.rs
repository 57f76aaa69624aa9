//! A machine whose power model is known: it runs jobs, draws power, and can be sampled as a real
//! one is, with counters that refresh, quantise and wrap, and clocks that are late.

use super::{Rows, UNIT, sample_of};
use crate::event::{Reading, Sample};

/// One step of the simulation: 50 µs.
const STEP_NS: u64 = 50_000;
const STEP: f64 = STEP_NS as f64 * 1e-9;
/// RAPL refreshes every 20 steps.
const REFRESH: u64 = 20;

/// CPUs busy by time in seconds, package and user (idle is user 1 and not asked for).
pub(super) type Load = dyn Fn(f64, usize, usize) -> f64;

pub(super) struct Machine<'a> {
    pub static_watts: f64,
    /// Joules of a CPU-second, by user.
    pub per_cpu: Vec<f64>,
    pub load: &'a Load,
    /// Counts at the start, and the counter's range.
    pub start: u64,
    pub range: u64,
    random: u64,
    step: u64,
    joules: Vec<f64>,
    shown: Vec<f64>,
    cpu_ns: Vec<Vec<f64>>,
}

impl<'a> Machine<'a> {
    /// 20 W and 15 J a CPU-second in every package, for `users` users.
    pub(super) fn new(packages: usize, users: usize, load: &'a Load) -> Self {
        Self {
            static_watts: 20.0,
            per_cpu: vec![15.0; users],
            load,
            start: 0,
            range: 1 << 32,
            random: 42,
            step: 0,
            joules: vec![0.0; packages],
            shown: vec![0.0; packages],
            cpu_ns: vec![vec![0.0; users]; packages],
        }
    }

    /// 0..1, a fixed sequence.
    fn random(&mut self) -> f64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1);
        (self.random >> 33) as f64 / (1u64 << 31) as f64
    }

    fn advance(&mut self) {
        let time = self.step as f64 * STEP;
        for (package, row) in self.cpu_ns.iter_mut().enumerate() {
            let mut watts = self.static_watts;
            for (user, cell) in row.iter_mut().enumerate().filter(|&(user, _)| user != 1) {
                let cpus = (self.load)(time, package, user);
                *cell += cpus * STEP_NS as f64;
                watts += self.per_cpu[user] * cpus;
            }
            self.joules[package] += watts * STEP;
            if self.step.is_multiple_of(REFRESH) {
                self.shown[package] = self.joules[package];
            }
        }
        self.step += 1;
    }

    /// Runs for `seconds`, sampling every `interval` with up to 5 % of delay each time. Counters are
    /// read one step after CPU time, and the running part of CPU time is known to 0.3 ms.
    pub(super) fn run(&mut self, seconds: f64, interval: f64) -> Vec<Sample> {
        let mut samples = Vec::new();
        for index in 0..=(seconds / interval).round() as u64 {
            let late = if index == 0 { 0.0 } else { self.random() * 0.05 };
            let at = (index as f64 + late) * interval;
            while (self.step as f64) * STEP < at {
                self.advance();
            }
            let cpu_ns = self.cpu_ns.clone();
            let cpu_ns = cpu_ns.into_iter().map(|row| {
                let noisy = |cell| if cell > 0.0 { cell + self.random() * 3e5 } else { cell };
                row.into_iter().map(noisy).map(|cell: f64| cell as u64).collect()
            });
            let cpu_ns: Rows = cpu_ns.collect();
            let mono_ns = (1 << 40) + self.step * STEP_NS;
            self.advance();
            let energy = self.shown.iter().map(|joules| {
                let count = (self.start + (joules / UNIT) as u64) % self.range;
                Some(Reading { mono_ns: mono_ns + STEP_NS, count })
            });
            let energy = energy.collect();
            samples.push(sample_of(mono_ns, &cpu_ns, energy));
        }
        samples
    }

    /// The true dynamic joules of `user` so far.
    pub(super) fn truth(&self, user: usize) -> f64 {
        let ns: f64 = self.cpu_ns.iter().map(|row| row[user]).sum();
        self.per_cpu[user] * ns * 1e-9
    }
}
