//! Runs of the GPU meter alone against a simulated driver, and what must come of them. A test that
//! uses this also has `sim/gpu.rs` as `gpu`.

#![allow(dead_code, reason = "a module of several tests; none uses all of it")]
#![allow(clippy::unwrap_used, reason = "what cannot be set up or read is a failed test")]

use std::collections::BTreeMap;
use std::time::Duration;

use ecoprobe::base::id::User;
use ecoprobe::base::{WorkloadId, monotonic_ns};
use ecoprobe::door::{GpuEnd, GpuMeter, GpuOptions, PidOwner};
use ecoprobe::event::sources::GpuEnergySource;
use ecoprobe::event::{Event, GpuWindow};

use crate::gpu::{Machine, uuid};

// ---- the machine ---------------------------------------------------------------------------------

impl Machine {
    pub(crate) fn options(&self) -> GpuOptions {
        GpuOptions {
            required: true,
            library: Some(self.library()),
            procfs: "/proc".into(),
            interval: Duration::from_millis(10),
            process_interval: Duration::from_millis(200),
        }
    }

    /// Runs the meter until `seconds` after the machine's start.
    pub(crate) fn run(&self, seconds: f64) -> Run {
        self.run_with(seconds, &self.options(), pid_is_user)
    }

    pub(crate) fn run_with(&self, seconds: f64, options: &GpuOptions, owner: impl PidOwner) -> Run {
        let (meter, source, mut warnings) = GpuMeter::start(options.clone(), owner).unwrap();
        let passed = Duration::from_nanos(monotonic_ns() - self.start_ns);
        std::thread::sleep(Duration::from_secs_f64(seconds).saturating_sub(passed));
        let stop_ns = monotonic_ns();
        let mut events = Vec::new();
        meter.drain(&mut events);
        let end = meter.finish(Duration::from_secs(10));
        events.extend(end.events.iter().cloned());
        let mut windows: BTreeMap<String, Vec<GpuWindow>> = BTreeMap::new();
        for event in events {
            match event {
                Event::Gpu(window) => windows.entry(window.uuid.clone()).or_default().push(window),
                Event::Warning { message } => warnings.push(message),
                other => panic!("{other:?}"),
            }
        }
        Run { start_ns: self.start_ns, stop_ns, source, windows, warnings, end }
    }
}

/// Pids up to 99 are workloads with that number, the rest belong to others.
pub(crate) fn pid_is_user(pid: u32) -> Option<User> {
    Some(if pid < 100 { user(pid.into()) } else { User::Other })
}

pub(crate) fn user(id: u64) -> User {
    User::Workload(WorkloadId(id))
}

// ---- what came of it -----------------------------------------------------------------------------

pub(crate) struct Run {
    pub(crate) start_ns: u64,
    pub(crate) stop_ns: u64,
    pub(crate) source: GpuEnergySource,
    pub(crate) windows: BTreeMap<String, Vec<GpuWindow>>,
    pub(crate) warnings: Vec<String>,
    pub(crate) end: GpuEnd,
}

/// A session in miniature: static energy apart, the rest by weight.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) measured: f64,
    pub(crate) idle: f64,
    pub(crate) nobody: f64,
    pub(crate) by_user: BTreeMap<User, f64>,
}

impl Run {
    pub(crate) fn of(&self, index: usize) -> &[GpuWindow] {
        self.windows.get(&uuid(index)).map_or(&[], Vec::as_slice)
    }

    /// Seconds since the machine's start that the windows of a device reach from and to.
    pub(crate) fn span(&self, index: usize) -> (f64, f64) {
        // The driver's samples reach back to before the start.
        let seconds = |ns: u64| (ns as f64 - self.start_ns as f64) * 1e-9;
        let windows = self.of(index);
        (seconds(windows[0].from_ns), seconds(windows[windows.len() - 1].to_ns))
    }

    pub(crate) fn books(&self, index: usize, static_watts: f64) -> Books {
        let mut books = Books::default();
        for window in self.of(index) {
            let joules = window.millijoules / 1e3;
            let seconds = (window.to_ns - window.from_ns) as f64 * 1e-9;
            let idle = (static_watts * seconds).min(joules);
            let dynamic = joules - idle;
            let weights: f64 = window.usage.iter().map(|usage| usage.weight).sum();
            let weights = weights + window.lost_weight;
            books.measured += joules;
            books.idle += idle;
            for usage in window.usage.iter().filter(|_| weights > 0.0) {
                *books.by_user.entry(usage.user).or_default() += dynamic * usage.weight / weights;
            }
            if weights == 0.0 {
                books.nobody += dynamic;
            } else {
                books.nobody += dynamic * window.lost_weight / weights;
            }
        }
        let sum = books.idle + books.nobody + books.by_user.values().sum::<f64>();
        assert!((sum - books.measured).abs() <= 1e-9 * books.measured, "{books:?}");
        books
    }

    /// Holds every user of a device, and the device, to the scenario's truth.
    pub(crate) fn check(&self, index: usize, machine: &Machine, tolerance: f64) {
        let device = &machine.scenario.devices[index];
        let (from_s, to_s) = self.span(index);
        assert!(from_s < 0.5, "the first window begins at {from_s} s");
        let stop_s = (self.stop_ns - self.start_ns) as f64 * 1e-9;
        assert!(to_s >= stop_s - 0.1, "windows end at {to_s} s, the run at {stop_s} s");
        self.check_tiles(index);
        let books = self.books(index, device.static_watts);
        near("device", books.measured, device.joules(from_s, to_s), tolerance);
        let mut truth: BTreeMap<User, f64> = BTreeMap::new();
        let pids: std::collections::BTreeSet<u32> =
            device.processes.iter().map(|process| process.pid).collect();
        for pid in pids {
            let joules = device.dynamic_joules(pid, from_s, to_s);
            *truth.entry(pid_is_user(pid).unwrap()).or_default() += joules;
        }
        for (user, joules) in truth {
            let ours = books.by_user.get(&user).copied().unwrap_or(0.0);
            near(&format!("{user:?} on {index}"), ours, joules, tolerance);
        }
    }

    pub(crate) fn check_tiles(&self, index: usize) {
        for pair in self.of(index).windows(2) {
            assert_eq!(pair[0].to_ns, pair[1].from_ns);
        }
    }

    pub(crate) fn warned(&self, text: &str) -> usize {
        self.warnings.iter().filter(|warning| warning.contains(text)).count()
    }
}

#[track_caller]
pub(crate) fn near(what: &str, ours: f64, truth: f64, tolerance: f64) {
    assert!(
        (ours - truth).abs() <= tolerance * truth.abs().max(1.0),
        "{what}: {ours:.3} J, in truth {truth:.3} J ({:+.2} %)",
        100.0 * (ours / truth - 1.0)
    );
}
