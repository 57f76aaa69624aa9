//! The simulated machine: what it draws, who runs, and what its counters show of it.
//!
//! From one change of a load to the next everything is a straight line, so time passes in steps of
//! any length. The readings are as imperfect as real ones: counters move once in a refresh, in whole
//! counts, and wrap; they are read a moment after CPU time; the running part of CPU time is known to
//! 0.3 ms; samples are late.

use std::collections::VecDeque;

use ecoprobe::base::WorkloadId;
use ecoprobe::event::{Counts, CpuTimes, PAIRED, PackageTime, Reading, Sample};
use fastrand::Rng;

use super::load::{Drift, Runner, normal, seeded};
use super::scenario::Scenario;

/// How well the running part of a task is known, nanoseconds.
const RUNNING_NS: f64 = 3e5;
/// A reading of the counters takes up to this, seconds.
const READING: f64 = 5e-5;
/// Seconds in which a package warms up.
const WARM_UP: f64 = 30.0;
/// CLOCK_MONOTONIC at the start.
const START_NS: u64 = 1 << 40;

#[derive(Debug)]
pub(super) struct Machine<'a> {
    scenario: &'a Scenario,
    random: Rng,
    now: f64,
    /// Everybody else first, then the jobs.
    runners: Vec<Option<Runner<'a>>>,
    packages: Vec<Package>,
    /// Part of the time that any CPU is awake, as of now.
    awake: f64,
    awake_seconds: f64,
    asleep: bool,
    asleep_until: f64,
    wander_at: f64,
    next: f64,
    /// What somebody has caused, joules: everybody else and each job.
    pub(super) caused: Vec<f64>,
    /// Of a warm package on which nothing runs.
    pub(super) nobodys: f64,
}

#[derive(Debug)]
struct Package {
    common: Drift,
    /// Of each runner, as of now: CPUs, and watts without those of warmth.
    cpus: Vec<f64>,
    watts: Vec<f64>,
    dynamic: f64,
    /// Part of the CPUs that are busy whose sibling is, too.
    paired_part: f64,
    /// Mean dynamic watts of late.
    warmth: f64,
    /// Of each runner, seconds.
    cpu: Vec<f64>,
    paired: Vec<f64>,
    joules: f64,
    /// When, and the joules until then: as far back as a counter may look.
    history: VecDeque<(f64, f64)>,
    refresh: f64,
    phase: f64,
    noise: f64,
    shown: (f64, f64),
    /// What was read, nanoseconds: it never goes back.
    read: Vec<u64>,
    paired_read: Vec<u64>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(scenario: &'a Scenario, seed: u64) -> Self {
        let mut random = seeded(seed, 1 << 48);
        let jobs = scenario.jobs.iter().map(Some);
        let jobs = std::iter::once(scenario.background.as_ref()).chain(jobs).zip(0..);
        let runners: Vec<_> = jobs
            .map(|(job, number)| job.map(|job| Runner::new(job, scenario, number, seed)))
            .collect();
        let (places, refresh) = (runners.len(), scenario.counter.refresh_ms * 1e-3);
        let mut package = |_| Package {
            common: Drift::new(scenario.common, &mut random),
            cpus: vec![0.0; places],
            watts: vec![0.0; places],
            dynamic: 0.0,
            paired_part: 0.0,
            warmth: 0.0,
            cpu: vec![0.0; places],
            paired: vec![0.0; places],
            joules: 0.0,
            history: VecDeque::from([(0.0, 0.0)]),
            // Not quite what it says, so that no sample always meets it at the same moment.
            refresh: refresh * (1.0 + 1e-3 * random.f64()),
            phase: refresh * random.f64(),
            noise: 0.0,
            shown: (0.0, 0.0),
            read: vec![0; places],
            paired_read: vec![0; places],
        };
        Self {
            packages: (0..scenario.packages).map(&mut package).collect(),
            scenario,
            random,
            now: 0.0,
            runners,
            awake: 0.0,
            awake_seconds: 0.0,
            // The first look turns it over.
            asleep: scenario.asleep > 0.0,
            asleep_until: 0.0,
            wander_at: if scenario.common.part + scenario.own.part > 0.0 {
                0.0
            } else {
                f64::INFINITY
            },
            next: 0.0,
            caused: vec![0.0; places],
            nobodys: 0.0,
        }
    }

    /// Sample number `index`, at its time or a little later.
    pub(super) fn sample(&mut self, index: u64) -> Sample {
        let Scenario { interval, counter, late, .. } = self.scenario;
        let late = if index == 0 { 0.0 } else { self.random.f64() * late };
        self.advance(counter.lag_ms * 1e-3 + (index as f64 + late) * interval);
        let mono_ns = ns(self.now);
        let all = self.scenario.cpus.unwrap_or(0.0) * self.now;
        let mut cpu = CpuTimes {
            packages: self.packages.iter_mut().map(|one| one.read(all, &mut self.random)).collect(),
            unplaced: PackageTime::default(),
        };
        if self.scenario.threads_per_core < 2 {
            cpu.packages.iter_mut().for_each(|time| time.features.clear());
        }
        let awake_ns = Some((self.awake_seconds * 1e9) as u64);
        let mut energy = Vec::new();
        for package in 0..self.packages.len() {
            let after = if package == 0 { counter.after_ms * 1e-3 } else { 0.0 };
            let reading = READING * self.random.f64();
            self.advance(self.now + after + reading);
            let joules = self.packages[package].show(self.now, self.scenario, &mut self.random);
            let count = counter.start.wrapping_add((joules / counter.joules_per_count) as u64);
            energy.push(Some(Reading { mono_ns: ns(self.now), count: count % counter.range }));
        }
        Sample { mono_ns, ends_window: true, cpu, awake_ns, energy }
    }

    /// Seconds since the start.
    pub(super) fn now(&self) -> f64 {
        self.now
    }

    /// Logical CPUs of a package.
    fn cpus(&self) -> f64 {
        self.scenario.cpus.unwrap_or(f64::INFINITY)
    }

    pub(super) fn advance(&mut self, to: f64) {
        while self.now < to {
            if self.now >= self.next {
                self.look();
            }
            let seconds = self.next.min(to) - self.now;
            self.pass(seconds);
            self.now = self.next.min(to);
        }
    }

    /// Who runs from now on, what it draws, and until when that holds.
    fn look(&mut self) {
        let (now, step) = (self.now, self.scenario.step());
        if now >= self.wander_at {
            let Scenario { common, own, .. } = self.scenario;
            let wanders = [common, own].into_iter().filter(|one| one.part > 0.0);
            let shortest = wanders.fold(f64::INFINITY, |least, one| least.min(one.seconds));
            let seconds = (shortest / 8.0).max(step);
            self.runners.iter_mut().flatten().for_each(|runner| runner.wander(seconds));
            for package in &mut self.packages {
                package.common.pass(seconds, &mut self.random);
            }
            self.wander_at = now + seconds;
        }
        if now >= self.asleep_until {
            let Scenario { asleep, asleep_period, .. } = *self.scenario;
            self.asleep = asleep > 0.0 && !self.asleep;
            let part = if self.asleep { asleep } else { 1.0 - asleep };
            self.asleep_until =
                if asleep > 0.0 { now + part * asleep_period } else { f64::INFINITY };
        }
        self.next = self.wander_at.min(self.asleep_until);
        for runner in self.runners.iter_mut().flatten() {
            runner.look(now, step);
            self.next = self.next.min(runner.until());
        }
        self.draw();
    }

    /// CPUs and watts of everybody.
    fn draw(&mut self) {
        let available = self.cpus();
        let scenario = self.scenario;
        let mut nobody_awake = 1.0;
        for (number, package) in self.packages.iter_mut().enumerate() {
            let mut busy = 0.0;
            for (runner, cpus) in self.runners.iter().zip(&mut package.cpus) {
                let asked = runner.as_ref().map_or(0.0, |runner| runner.cpus(number));
                *cpus = if self.asleep { 0.0 } else { asked };
                busy += *cpus;
            }
            if busy > available {
                package.cpus.iter_mut().for_each(|cpus| *cpus *= available / busy);
                busy = available;
            }
            let cores = available / scenario.threads_per_core as f64;
            // Cores fill up first, then their second threads.
            package.paired_part = if scenario.threads_per_core > 1 && busy > cores {
                2.0 * (busy - cores) / busy
            } else {
                0.0
            };
            let mut factor = 1.0 - package.paired_part * (1.0 - scenario.paired_weight);
            if available.is_finite() {
                factor *= 1.0 + scenario.bend * (busy - 1.0).max(0.0) / (available - 1.0).max(1.0);
            }
            factor *= package.common.factor();
            let mut sum = 0.0;
            for ((runner, watts), cpus) in
                self.runners.iter().zip(&mut package.watts).zip(&package.cpus)
            {
                let price = runner.as_ref().map_or(0.0, Runner::price);
                *watts = price * cpus * factor;
                sum += *watts;
            }
            package.dynamic = sum;
            nobody_awake *= 1.0 - busy.min(1.0);
        }
        self.awake = 1.0 - nobody_awake;
        if scenario.awake_watts > 0.0 {
            self.wake();
        }
        if let Some(cap) = scenario.cap_watts {
            for package in &mut self.packages {
                let most = (cap - scenario.static_watts).max(0.0);
                if package.dynamic > most {
                    let part = most / package.dynamic;
                    package.watts.iter_mut().for_each(|watts| *watts *= part);
                    package.dynamic = most;
                }
            }
        }
    }

    /// The step that a package takes when any CPU of the machine wakes: its own runners' while one
    /// of them runs, and else of those who run elsewhere.
    fn wake(&mut self) {
        let of_loads: Vec<Vec<f64>> =
            self.packages.iter().map(|package| package.watts.clone()).collect();
        let sums: Vec<f64> = self.packages.iter().map(|package| package.dynamic).collect();
        let all: f64 = sums.iter().sum();
        let step = self.scenario.awake_watts;
        for (number, package) in self.packages.iter_mut().enumerate() {
            let own = package.cpus.iter().sum::<f64>().min(1.0);
            let others = self.awake - own;
            let elsewhere = all - sums[number];
            if sums[number] > 0.0 {
                let part = 1.0 + step * own / sums[number];
                package.watts.iter_mut().for_each(|watts| *watts *= part);
                package.dynamic += step * own;
            }
            if others > 0.0 && elsewhere > 0.0 {
                for (_, watts) in of_loads.iter().enumerate().filter(|(other, _)| *other != number)
                {
                    for (mine, load) in package.watts.iter_mut().zip(watts) {
                        *mine += step * others * load / elsewhere;
                    }
                }
                package.dynamic += step * others;
            }
        }
    }

    /// So many seconds in which nothing changes.
    fn pass(&mut self, seconds: f64) {
        let scenario = self.scenario;
        self.awake_seconds += self.awake * seconds;
        let now = self.now + seconds;
        for package in &mut self.packages {
            let mut warm = 0.0;
            if scenario.warm_up > 0.0 {
                let gone = 1.0 - (-seconds / WARM_UP).exp();
                let ahead = package.dynamic - package.warmth;
                warm = scenario.warm_up * (package.dynamic * seconds - ahead * WARM_UP * gone);
                package.warmth += ahead * gone;
            }
            let dynamic = package.dynamic * seconds;
            package.joules += scenario.static_watts * seconds + dynamic + warm;
            package.history.push_back((now, package.joules));
            if package.dynamic <= 0.0 {
                self.nobodys += warm;
                continue;
            }
            let part = seconds + warm / package.dynamic;
            for (caused, watts) in self.caused.iter_mut().zip(&package.watts) {
                *caused += watts * part;
            }
            for (place, cpus) in package.cpus.iter().enumerate().filter(|(_, cpus)| **cpus > 0.0) {
                package.cpu[place] += cpus * seconds;
                package.paired[place] += cpus * seconds * package.paired_part;
            }
        }
    }

    /// All joules of the packages, without noise.
    #[cfg(test)]
    fn joules(&self) -> f64 {
        self.packages.iter().map(|package| package.joules).sum()
    }
}

impl Package {
    /// CPU time as it is read, of so many seconds of all CPUs.
    fn read(&mut self, all: f64, random: &mut Rng) -> PackageTime {
        let mut workloads = Vec::new();
        let mut counts = Counts::default();
        for place in 0..self.cpu.len() {
            let unsure = if self.cpus[place] > 0.0 {
                random.f64() * RUNNING_NS * self.cpus[place].max(1.0).sqrt()
            } else {
                0.0
            };
            let (time, paired) = (self.cpu[place] * 1e9 + unsure, self.paired[place] * 1e9);
            let changed = time as u64 > self.read[place];
            self.read[place] = self.read[place].max(time as u64);
            self.paired_read[place] = self.paired_read[place].max(paired as u64);
            // The first place is everybody else's.
            if place > 0 && changed {
                let id = WorkloadId(place as u64);
                workloads.push((id, self.read[place]));
                counts.workloads.push((id, self.paired_read[place]));
            }
        }
        counts.other = self.paired_read[0];
        let idle = (all - self.cpu.iter().sum::<f64>()).max(0.0) * 1e9;
        PackageTime {
            idle: idle as u64,
            other: self.read[0],
            workloads,
            features: [(PAIRED, counts)].into(),
        }
    }

    /// What its counter shows at `now`, joules.
    fn show(&mut self, now: f64, scenario: &Scenario, random: &mut Rng) -> f64 {
        let Scenario { counter, noise_watts, .. } = scenario;
        let refreshed = ((now - self.phase) / self.refresh).floor() * self.refresh + self.phase;
        let at = (refreshed - counter.lag_ms * 1e-3).max(self.shown.0);
        // Each millisecond has a noise of its own.
        let deviation = noise_watts * ((at - self.shown.0) * 1e-3 / 3.0).sqrt();
        self.noise += deviation * normal(random);
        while self.history.len() > 2 && self.history[1].0 < at {
            self.history.pop_front();
        }
        let [(from, before), (to, after)] = match (self.history.front(), self.history.get(1)) {
            (Some(first), Some(second)) => [*first, *second],
            _ => [(0.0, 0.0); 2],
        };
        let part = if to > from { ((at - from) / (to - from)).clamp(0.0, 1.0) } else { 0.0 };
        let joules = before + (after - before) * part + self.noise;
        self.shown = (at, joules.max(self.shown.1));
        self.shown.1
    }
}

fn ns(seconds: f64) -> u64 {
    START_NS + (seconds * 1e9).round() as u64
}

#[cfg(test)]
mod tests;
