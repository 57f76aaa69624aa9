//! Package C-state residency: how long each package slept, as it counts itself.
//!
//! The kernel shows it as a dynamic perf PMU, `cstate_pkg`, or `cstate_die` where dies sleep on their own
//! (arch/x86/events/intel/cstate.c). It knows Intel processors only; AMD's count no package sleep, and in a
//! virtual machine the kernel leaves it away. The counters of the states do not overlap, and count at the
//! rate of the time stamp counter (Intel SDM vol. 4, MSR_PKG_C2_RESIDENCY and the others; perf's own metrics
//! divide them by `msr/tsc/`).
//!
//! How fast that is `msr/tsc/` tells while the counters are tried, against CLOCK_MONOTONIC. It could go into
//! the group of a package's counters, as a software event. But the kernel reads a package's own events on
//! any of its CPUs, where we happen to run, and a group that has any other event only on the CPU that it
//! was opened on, by an interrupt: each tick would wake one more.
//!
//! Unproven on metal: it was tried on counters of the kernel's that were described as if they were these.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::base::monotonic_ns;
use crate::host::BadFact;
use crate::host::pmu::Pmu;
use crate::meter::perf_events::Events;
use crate::meter::rapl::Unavailable;

/// The time asleep may exceed the time by this part of it: the rate is that of 20 ms, and a clock that NTP
/// hurries along is off by 500 ppm.
const SLACK: f64 = 0.01;
/// And by this, nanoseconds: the registers move every millisecond or so, and we may be stopped between
/// reading a clock and a counter.
const SLACK_NS: f64 = 3e6;

/// Residency counters of every package.
#[derive(Debug)]
pub(crate) struct PackageStates {
    packages: Vec<Package>,
    /// Names of the states that are counted, for people.
    states: Vec<String>,
    clock: Clock,
    ticks_per_ns: f64,
}

impl PackageStates {
    /// Opens the counters that `sysfs` describes, all of them: a state that is not counted would pass for
    /// time awake, and a package that is not for one that slept.
    pub(super) fn open(sysfs: &Path) -> Result<Self, Unavailable> {
        let pmu = match Pmu::read(sysfs, "cstate_pkg").map_err(broken)? {
            Some(pmu) => pmu,
            None => Pmu::read(sysfs, "cstate_die").map_err(broken)?.ok_or(Unavailable::Absent)?,
        };
        if let Some(problem) = pmu.problems.first() {
            return Err(Unavailable::Broken(problem.to_string()));
        }
        let cpus = pmu.cpus.as_deref().unwrap_or_default();
        if cpus.is_empty() || pmu.events.is_empty() {
            return Err(Unavailable::Broken("they are described without CPUs or events".into()));
        }
        let clock = Clock::open(sysfs, cpus[0])?;
        let open = |cpu: &usize| {
            let mut events = Events::default();
            for event in &pmu.events {
                events
                    .add(pmu.kind, event.config, *cpu)
                    .map_err(|error| refused(&format!("{} on CPU {cpu}", event.name), &error))?;
            }
            Ok(Package {
                cpu: *cpu,
                events,
                counts: vec![0; pmu.events.len()],
                sleep: Sleep::default(),
            })
        };
        let packages = cpus.iter().map(open).collect::<Result<_, _>>()?;
        let states = pmu.events.into_iter().map(|event| event.name).collect();
        let mut opened = Self { packages, states, clock, ticks_per_ns: 0.0 };
        opened.read_all().map_err(|error| refused("reading them", &error))?;
        Ok(opened)
    }

    /// Whether any package has slept since they were opened, for no longer than there was time.
    pub(super) fn try_out(&mut self) -> Result<bool, Unavailable> {
        self.ticks_per_ns = self.clock.ticks_per_ns()?;
        let mut slept = false;
        for package in &mut self.packages {
            let sleep = &package.sleep;
            let first = sleep.last;
            let now = package.read().map_err(|error| refused("reading them", &error))?;
            let share = Sleep { last: first, owed: 0.0 }.awake_share(now, self.ticks_per_ns);
            if share.is_none() {
                let why =
                    format!("on CPU {} they count more sleep than there is time", package.cpu);
                return Err(Unavailable::Broken(why));
            }
            slept |= first.is_some_and(|first| now.ticks > first.ticks);
        }
        if slept {
            // From here on it counts.
            self.read_all().map_err(|error| refused("reading them", &error))?;
        }
        Ok(slept)
    }

    /// Which part of the time since the call before the machine was awake, 0 to 1: that of the package that
    /// slept least. `None` if a package cannot tell.
    pub(super) fn awake_share(&mut self) -> Option<f64> {
        let mut most = Some(0.0);
        for package in &mut self.packages {
            let share = match package.read() {
                Ok(now) => package.sleep.awake_share(now, self.ticks_per_ns),
                Err(_) => {
                    package.sleep = Sleep::default();
                    None
                }
            };
            most = most.zip(share).map(|(most, share): (f64, f64)| most.max(share));
        }
        most
    }

    pub(super) fn describe(&self) -> String {
        let cpus: Vec<_> = self.packages.iter().map(|package| package.cpu.to_string()).collect();
        format!("{} on CPU {}", self.states.join(" "), cpus.join(","))
    }

    /// Begins a window.
    fn read_all(&mut self) -> io::Result<()> {
        for package in &mut self.packages {
            package.sleep = Sleep { last: Some(package.read()?), owed: 0.0 };
        }
        Ok(())
    }
}

fn broken(problem: BadFact) -> Unavailable {
    Unavailable::Broken(problem.to_string())
}

fn refused(what: &str, error: &io::Error) -> Unavailable {
    match error.kind() {
        ErrorKind::PermissionDenied => Unavailable::Denied("perf_event_open".into()),
        _ => Unavailable::Broken(format!("{what}: {error}")),
    }
}

#[derive(Debug)]
struct Package {
    cpu: usize,
    /// One for each state.
    events: Events,
    counts: Vec<u64>,
    sleep: Sleep,
}

impl Package {
    fn read(&mut self) -> io::Result<Residency> {
        let before = monotonic_ns();
        self.events.read(&mut self.counts)?;
        let mono_ns = before.midpoint(monotonic_ns());
        let sum = |sum: u64, count: &u64| sum.wrapping_add(*count);
        Ok(Residency { mono_ns, ticks: self.counts.iter().fold(0, sum) })
    }
}

/// Of all states of one package together, cumulative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Residency {
    mono_ns: u64,
    ticks: u64,
}

/// What is known of how long one package slept.
#[derive(Debug, Clone, Copy, Default)]
struct Sleep {
    last: Option<Residency>,
    /// Sleep beyond the time that there was, nanoseconds: that of a window before or after, for a counter
    /// that moves in steps. Cut off, it would make a package that sleeps seem awake for a part of each
    /// window.
    owed: f64,
}

impl Sleep {
    /// Which part of the time since the reading before the package was awake; `None` if there was none, or
    /// if the counters fell, or counted more than there was time for.
    fn awake_share(&mut self, now: Residency, ticks_per_ns: f64) -> Option<f64> {
        let before = self.last.replace(now);
        let owed = std::mem::take(&mut self.owed);
        let before = before.filter(|before| now.mono_ns > before.mono_ns)?;
        let time = (now.mono_ns - before.mono_ns) as f64;
        let asleep = now.ticks.checked_sub(before.ticks)? as f64 / ticks_per_ns + owed;
        // It is no number where the rate is none.
        if asleep.is_nan() || asleep > time * (1.0 + SLACK) + SLACK_NS {
            return None;
        }
        self.owed = (asleep - time).max(0.0);
        Some((1.0 - asleep / time).clamp(0.0, 1.0))
    }
}

/// The time stamp counter, which tells the rate of the others.
#[derive(Debug)]
struct Clock {
    event: Events,
    first: Residency,
}

impl Clock {
    fn open(sysfs: &Path, cpu: usize) -> Result<Self, Unavailable> {
        // Part of every x86 kernel that has perf events.
        let missing = || Unavailable::Broken("there is no msr/tsc/ to tell their rate by".into());
        let pmu = Pmu::read(sysfs, "msr").map_err(broken)?.ok_or_else(missing)?;
        let tsc = pmu.event("tsc").ok_or_else(missing)?;
        let mut event = Events::default();
        event.add(pmu.kind, tsc.config, cpu).map_err(|error| refused("msr/tsc/", &error))?;
        let first = Self::read(&event)?;
        Ok(Self { event, first })
    }

    fn read(event: &Events) -> Result<Residency, Unavailable> {
        let once = || {
            let (before, mut count) = (monotonic_ns(), [0]);
            event.read(&mut count).map_err(|error| refused("msr/tsc/", &error))?;
            let after = monotonic_ns();
            let reading = Residency { mono_ns: before.midpoint(after), ticks: count[0] };
            Ok((after.saturating_sub(before), reading))
        };
        // An interruption between clock and counter would be an error of the rate for all that follows.
        let mut best = once()?;
        for _ in 0..2 {
            let next = once()?;
            if next.0 < best.0 {
                best = next;
            }
        }
        Ok(best.1)
    }

    fn ticks_per_ns(&self) -> Result<f64, Unavailable> {
        let now = Self::read(&self.event)?;
        let ticks = now.ticks.saturating_sub(self.first.ticks) as f64;
        let rate = ticks / now.mono_ns.saturating_sub(self.first.mono_ns) as f64;
        if rate.is_finite() && rate > 0.0 {
            return Ok(rate);
        }
        Err(Unavailable::Broken("msr/tsc/ stands still: their rate is not known".into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: u64 = 1_000_000;
    /// 2 GHz.
    const RATE: f64 = 2.0;

    /// Shares of the windows that end at that ms, with that ms of sleep so far.
    fn shares(readings: &[(u64, u64)]) -> Vec<Option<f64>> {
        let mut sleep = Sleep::default();
        let reading = |&(at, slept): &(u64, u64)| {
            sleep.awake_share(Residency { mono_ns: at * MS, ticks: slept * 2 * MS }, RATE)
        };
        readings.iter().map(reading).collect()
    }

    #[test]
    fn a_package_is_awake_while_it_does_not_sleep() {
        let found = shares(&[(100, 5), (200, 105), (300, 105), (400, 130)]);
        assert_eq!(found, [None, Some(0.0), Some(1.0), Some(0.75)]);
    }

    #[test]
    fn what_cannot_be_is_nobodys_share() {
        // More than there is time for; then a counter that falls; then a clock that stands still.
        let found = shares(&[(100, 0), (200, 150), (300, 250), (400, 10), (400, 10), (500, 10)]);
        assert_eq!(found, [None, None, Some(0.0), None, None, Some(1.0)]);
        let mut sleep = Sleep::default();
        let reading = |at| Residency { mono_ns: at, ticks: at };
        for rate in [0.0, f64::NAN] {
            assert_eq!([1, 2, 3].map(|at| sleep.awake_share(reading(at), rate)), [None; 3]);
        }
    }

    #[test]
    fn a_counter_that_moves_in_steps_counts_its_sleep_all_the_same() {
        // Asleep for 4 of 10 ms, but what it counts comes a window late now and then.
        let readings = [(0, 0), (10, 8), (20, 8), (30, 12), (40, 16)];
        let sum: f64 = shares(&readings).into_iter().flatten().map(|share| share * 10.0).sum();
        assert!((sum - 24.0).abs() < 1e-9, "{sum}");
        // Asleep throughout.
        let readings = [(0, 0), (10, 8), (20, 21), (30, 29), (40, 40)];
        let sum: f64 = shares(&readings).into_iter().flatten().map(|share| share * 10.0).sum();
        assert!(sum <= 4.0 + 1e-9, "{sum}");
    }

    proptest! {
        #[test]
        fn a_share_is_one_whatever_is_read(
            readings in prop::collection::vec((any::<u64>(), any::<u64>()), 1..50),
            rate in any::<f64>(),
        ) {
            let mut sleep = Sleep::default();
            for (mono_ns, ticks) in readings {
                if let Some(share) = sleep.awake_share(Residency { mono_ns, ticks }, rate) {
                    prop_assert!((0.0..=1.0).contains(&share));
                }
            }
        }
    }
}
