//! How long the machine was awake: what its packages draw steps up when any CPU wakes. Packages that count
//! how long they sleep know it; elsewhere it follows from what each CPU has idled. Facts are found, a pure
//! function decides, and a source is used that has worked once.

pub(crate) mod package_states;

use std::path::Path;
use std::time::{Duration, Instant};

use self::package_states::PackageStates;
use super::rapl::Unavailable;

/// Where the time awake comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwakeSource {
    /// Counted by the packages.
    PackageStates,
    /// Estimated from the CPUs' accounts.
    Accounts,
}

/// What the decision rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// `None`: usable.
    pub package_states: Option<Unavailable>,
}

/// The source to use, and why no better one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    pub source: AwakeSource,
    pub why: Option<String>,
}

/// Decides on a source: what is counted goes before what is estimated.
pub(crate) fn decide(facts: &Facts) -> Decision {
    match &facts.package_states {
        None => Decision { source: AwakeSource::PackageStates, why: None },
        Some(unavailable) => {
            let why = match unavailable {
                Unavailable::Absent => "no package C-states are counted here".to_owned(),
                // A package that never sleeps and a counter that never counts look the same. Either way
                // such a counter tells the model nothing; the CPUs' accounts do.
                Unavailable::Empty => {
                    "no package slept when its C-state counters were tried".to_owned()
                }
                why => format!("package C-states: {why}"),
            };
            Decision { source: AwakeSource::Accounts, why: Some(why) }
        }
    }
}

/// How long a package has to show that it counts its sleep, and how often it is looked at: each look
/// wakes it. On an idle machine it sleeps within milliseconds, or never does.
const TRIAL: Duration = Duration::from_millis(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The counters, open; they have yet to show that they count.
#[derive(Debug)]
pub struct Opened {
    package_states: Result<PackageStates, Unavailable>,
}

impl Opened {
    pub fn open(sysfs: &Path) -> Self {
        Self { package_states: PackageStates::open(sysfs) }
    }

    /// Waits until a package has slept, or has had the time to.
    pub fn prove(&mut self) {
        let start = Instant::now();
        while let Ok(states) = &mut self.package_states {
            // Even if time has passed: who was busy meanwhile has kept a package awake. And to tell the
            // rate of the counters takes as long.
            std::thread::sleep(LOOK_EVERY);
            match states.try_out() {
                Err(why) => self.package_states = Err(why),
                Ok(true) => return,
                Ok(false) if start.elapsed() >= TRIAL => {
                    self.package_states = Err(Unavailable::Empty);
                }
                Ok(false) => {}
            }
        }
    }

    /// Waits as [`Opened::prove`] does, and takes what has worked.
    pub fn confirm(mut self) -> Awake {
        self.prove();
        Awake { package_states: self.package_states.ok(), ..Awake::default() }
    }

    pub(crate) fn facts(&self) -> Facts {
        Facts { package_states: self.package_states.as_ref().err().cloned() }
    }

    /// What is read, in words.
    pub(crate) fn describe(&self) -> Option<String> {
        self.package_states.as_ref().ok().map(PackageStates::describe)
    }
}

/// The time awake of a machine, tick by tick.
#[derive(Debug, Default)]
pub struct Awake {
    package_states: Option<PackageStates>,
    ns: Option<u64>,
    /// CLOCK_MONOTONIC of the last tick.
    at: u64,
    accounts: Option<u64>,
}

impl Awake {
    pub fn source(&self) -> AwakeSource {
        match self.package_states {
            Some(_) => AwakeSource::PackageStates,
            None => AwakeSource::Accounts,
        }
    }

    /// Cumulative nanoseconds since the first tick; never falls. `mono_ns` is that of the sample, and
    /// `accounts` what the CPUs' accounts say by then, cumulative: for a tick at which the packages
    /// cannot be asked, or say what cannot be, that is what counts.
    pub fn tick(&mut self, mono_ns: u64, accounts: Option<u64>) -> Option<u64> {
        let asked = self.package_states.as_mut().map(PackageStates::awake_share);
        let before = (std::mem::replace(&mut self.at, mono_ns), self.accounts);
        self.accounts = accounts.or(self.accounts);
        if asked.is_none() {
            self.ns = accounts.max(self.ns);
            return self.ns;
        }
        let Some(ns) = self.ns else {
            self.ns = Some(0);
            return self.ns;
        };
        let more = match asked.flatten() {
            Some(share) => (share * mono_ns.saturating_sub(before.0) as f64) as u64,
            None => accounts.unwrap_or(0).saturating_sub(before.1.unwrap_or(0)),
        };
        self.ns = Some(ns.saturating_add(more));
        self.ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_goes_before_what_is_estimated() {
        let decision = |package_states| decide(&Facts { package_states });
        assert_eq!(decision(None), Decision { source: AwakeSource::PackageStates, why: None });
        for (unavailable, said) in [
            (Unavailable::Absent, "no package C-states are counted here"),
            (Unavailable::Empty, "no package slept"),
            (Unavailable::Denied("perf_event_open".into()), "permission denied"),
            (Unavailable::Broken("odd".into()), "package C-states: odd"),
        ] {
            let Decision { source, why } = decision(Some(unavailable));
            assert_eq!(source, AwakeSource::Accounts);
            assert!(why.as_ref().unwrap().contains(said), "{why:?}");
        }
    }

    #[test]
    fn without_counters_it_is_what_the_accounts_say() {
        let mut awake = Awake::default();
        let said = [None, Some(0), Some(7), None, Some(5), Some(9)];
        let found: Vec<_> = (1..).zip(said).map(|(at, said)| awake.tick(at, said)).collect();
        assert_eq!(found, [None, Some(0), Some(7), Some(7), Some(7), Some(9)]);
    }
}
