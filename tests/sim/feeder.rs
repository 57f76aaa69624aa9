//! Drives the counters of simulated zones by a power model whose truth is known.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use ecoprobe::base::monotonic_ns;

use super::Zone;

/// Joules since the feeder's start.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Truth {
    /// CLOCK_MONOTONIC, nanoseconds.
    pub mono_ns: u64,
    /// Drawn with nothing running.
    pub static_j: f64,
    /// What running added, jobs included.
    pub dynamic_j: f64,
    /// By job, in the order they were given.
    pub jobs_j: Vec<f64>,
}

impl Truth {
    pub fn total_j(&self) -> f64 {
        self.static_j + self.dynamic_j
    }

    /// What was drawn after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let jobs = self.jobs_j.iter().zip(&earlier.jobs_j);
        Self {
            mono_ns: self.mono_ns - earlier.mono_ns,
            static_j: self.static_j - earlier.static_j,
            dynamic_j: self.dynamic_j - earlier.dynamic_j,
            jobs_j: jobs.map(|(now, then)| now - then).collect(),
        }
    }

    fn between(&self, later: &Self, mono_ns: u64) -> Self {
        let span = later.mono_ns.saturating_sub(self.mono_ns).max(1);
        let part = mono_ns.saturating_sub(self.mono_ns) as f64 / span as f64;
        let mix = |from: f64, to: f64| from + (to - from) * part.clamp(0.0, 1.0);
        Self {
            mono_ns,
            static_j: mix(self.static_j, later.static_j),
            dynamic_j: mix(self.dynamic_j, later.dynamic_j),
            jobs_j: self.jobs_j.iter().zip(&later.jobs_j).map(|(a, b)| mix(*a, *b)).collect(),
        }
    }
}

/// What a zone draws.
pub enum Power {
    /// Joules after so many seconds. Must not decrease.
    Function(Box<dyn FnMut(f64) -> f64 + Send>),
    /// Static watts, and joules for each second of CPU time.
    Load {
        static_watts: f64,
        joules_per_cpu_second: f64,
        /// Whose CPU time draws power; without it, that of the jobs alone.
        machine: Option<CpuClock>,
        jobs: Vec<CpuClock>,
    },
}

impl Power {
    /// A constant.
    pub fn constant(watts: f64) -> Self {
        Self::Function(Box::new(move |seconds| watts * seconds))
    }

    /// A load model over cgroups (directories of a cgroup mount). `machine` should be the root of a
    /// v1 `cpuacct` hierarchy where there is one: `cpu.stat` of the v2 root counts by ticks.
    pub fn load(
        static_watts: f64,
        joules_per_cpu_second: f64,
        machine: Option<CpuClock>,
        jobs: Vec<PathBuf>,
    ) -> Self {
        let jobs = jobs.iter().map(|cgroup| CpuClock::new(cgroup)).collect();
        Self::Load { static_watts, joules_per_cpu_second, machine, jobs }
    }

    fn truth(&mut self, start_ns: u64) -> Truth {
        let mono_ns = monotonic_ns();
        let seconds = (mono_ns - start_ns) as f64 * 1e-9;
        match self {
            Self::Function(joules) => {
                Truth { mono_ns, static_j: joules(seconds), ..Truth::default() }
            }
            Self::Load { static_watts, joules_per_cpu_second, machine, jobs } => {
                let mut joules = |clock: &mut CpuClock| *joules_per_cpu_second * clock.seconds();
                let jobs_j: Vec<f64> = jobs.iter_mut().map(&mut joules).collect();
                let dynamic_j = machine.as_mut().map_or_else(|| jobs_j.iter().sum(), &mut joules);
                Truth { mono_ns, static_j: *static_watts * seconds, dynamic_j, jobs_j }
            }
        }
    }
}

impl std::fmt::Debug for Power {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Function(_) => "Power::Function",
            Self::Load { .. } => "Power::Load",
        })
    }
}

/// CPU time of a cgroup since it was first looked at: `cpu.stat` of v2, `cpuacct.usage` of v1. A
/// cgroup that is gone keeps its last value.
#[derive(Debug)]
pub struct CpuClock {
    file: PathBuf,
    /// Which of the figures in the file, on v1.
    column: usize,
    start: f64,
    last: f64,
}

impl CpuClock {
    pub fn new(cgroup: &Path) -> Self {
        let v1 = cgroup.join("cpuacct.usage");
        Self::of(if v1.exists() { v1 } else { cgroup.join("cpu.stat") }, 0)
    }

    /// On one CPU alone, which only v1's `cpuacct` tells.
    pub fn on_cpu(cgroup: &Path, cpu: usize) -> Self {
        Self::of(cgroup.join("cpuacct.usage_percpu"), cpu)
    }

    fn of(file: PathBuf, column: usize) -> Self {
        let mut clock = Self { file, column, start: 0.0, last: 0.0 };
        clock.start = clock.seconds();
        clock
    }

    fn seconds(&mut self) -> f64 {
        if let Ok(text) = fs::read_to_string(&self.file) {
            let usec = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
            let seconds = match usec {
                Some(usec) => usec.parse::<f64>().unwrap() * 1e-6,
                None => {
                    let column = text.split_whitespace().nth(self.column).unwrap();
                    column.parse::<f64>().unwrap() * 1e-9
                }
            };
            self.last = seconds - self.start;
        }
        self.last
    }
}

/// A zone and what drives it.
#[derive(Debug)]
pub struct Feed {
    pub zone: Zone,
    /// Where the counter starts, microjoules: near the end of the range, it soon wraps.
    pub start_uj: u64,
    pub power: Power,
}

/// Writes `energy_uj` of its zones until dropped.
///
/// A count is written in place with one call, padded to one length, so that a reader sees the old or
/// the new one.
#[derive(Debug)]
pub struct Feeder {
    shared: Arc<Mutex<Vec<Fed>>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Fed {
    feed: Feed,
    file: File,
    start_ns: u64,
    broken: bool,
    history: Vec<Truth>,
}

impl Fed {
    fn step(&mut self) {
        let truth = self.feed.power.truth(self.start_ns);
        let total_uj = self.feed.start_uj + (truth.total_j() * 1e6) as u64;
        let text = if self.broken {
            format!("{:<20}\n", "not a count")
        } else {
            format!("{:<20}\n", self.feed.zone.wrap(total_uj))
        };
        self.file.write_all_at(text.as_bytes(), 0).unwrap();
        self.history.push(truth);
    }
}

impl Feeder {
    /// Writes each zone once at once, then every `period` (1 to 10 ms is what hardware does).
    pub fn start(period: Duration, feeds: Vec<Feed>) -> Self {
        let start_ns = monotonic_ns();
        let fed = feeds.into_iter().map(|feed| {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .open(feed.zone.energy())
                .unwrap();
            let mut fed = Fed { feed, file, start_ns, broken: false, history: Vec::new() };
            fed.step();
            fed
        });
        let shared = Arc::new(Mutex::new(fed.collect::<Vec<_>>()));
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                ahead_of_all_load();
                while stopped.recv_timeout(period) == Err(mpsc::RecvTimeoutError::Timeout) {
                    shared.lock().unwrap().iter_mut().for_each(Fed::step);
                }
            }
        });
        Self { shared, stop: Some(stop), thread: Some(thread) }
    }

    /// From now on the zones draw power as before, but cannot be read; or can be read again.
    pub fn set_broken(&self, broken: bool) {
        for fed in self.shared.lock().unwrap().iter_mut() {
            fed.broken = broken;
            fed.step();
        }
    }

    /// The truth now, of each zone in the order given; its counter says the same from here on.
    pub fn truth(&self) -> Vec<Truth> {
        let mut shared = self.shared.lock().unwrap();
        shared.iter_mut().for_each(Fed::step);
        shared.iter().filter_map(|fed| fed.history.last().cloned()).collect()
    }

    /// The truth at a moment in the past, interpolated between two writes.
    pub fn truth_at(&self, mono_ns: u64) -> Vec<Truth> {
        let shared = self.shared.lock().unwrap();
        let at = |fed: &Fed| {
            let later = fed.history.partition_point(|truth| truth.mono_ns < mono_ns);
            let later = later.clamp(1, fed.history.len().max(2) - 1);
            match (fed.history.get(later - 1), fed.history.get(later)) {
                (Some(before), Some(after)) => before.between(after, mono_ns),
                (Some(only), None) => only.clone(),
                _ => Truth::default(),
            }
        };
        shared.iter().map(at).collect()
    }
}

/// Hardware counts however busy the machine is: so does this thread, where it may.
fn ahead_of_all_load() {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: reads the structure that it is given, and changes the calling thread alone. Without
    // the permission nothing changes.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &priority) };
}

impl Drop for Feeder {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been printed already.
            let _ = thread.join();
        }
    }
}
