//! What the simulated machine does, and what is true of it.
//!
//! A device draws `static_watts`, and up to `full_watts` in proportion to the sum of its processes'
//! SM utilisation, which is constant while a process is there. So power is a staircase, and energy
//! and everybody's part in it are known exactly: [`Device::joules`] and [`Device::dynamic_joules`].
//! All times are seconds since the scenario's start.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scenario {
    /// CLOCK_MONOTONIC of the start, nanoseconds; without it, the moment of `nvmlInit_v2`.
    pub start_ns: Option<u64>,
    /// Every call takes at least this long.
    pub delay_ms: f64,
    /// What the library writes to descriptor 1: at once while it starts, every 20 ms from a thread of
    /// its own, and through stdio, which keeps it until the process ends.
    pub prints: Option<String>,
    /// `nvmlShutdown` takes this long.
    pub shutdown_ms: f64,
    pub devices: Vec<Device>,
    pub faults: Vec<Fault>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    pub uuid: String,
    pub name: String,
    pub static_watts: f64,
    /// At 100 % SM utilisation.
    pub full_watts: f64,
    /// The energy counter moves this often; `None`: there is no counter.
    pub refresh_ms: Option<f64>,
    /// What the counter stands at when the scenario starts.
    pub counter_start_mj: u64,
    /// The counter starts again from zero then.
    pub reset_s: Option<f64>,
    /// The counter stands still from then on.
    pub stops_s: Option<f64>,
    /// What the CPU on the same module draws: the energy counter counts it too, and field 186 has a
    /// scope. Without it the scope is ignored, as by drivers that do not know it.
    pub cpu_watts: Option<f64>,
    /// The highest power limit, watts, where the driver tells it.
    pub limit_watts: Option<f64>,
    /// Bytes of an entry in process lists: 24, or 32 as some 535 drivers have it.
    pub entry_bytes: usize,
    /// Field 186.
    pub instant_power: bool,
    /// The driver keeps power samples.
    pub power_samples: bool,
    pub utilisation: Utilisation,
    /// Time between two samples in the driver's buffers.
    pub sample_ms: f64,
    /// Slices of each MIG instance; none: MIG is off.
    pub mig: Vec<u32>,
    /// Performance counters by MIG instance, as on Hopper and later.
    pub gpm: bool,
    pub processes: Vec<Process>,
}

/// How `nvmlDeviceGetProcessUtilization` answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Utilisation {
    /// One sample a process and sampling period.
    Samples,
    /// One sample a process and query: the mean since the query before.
    Query,
    /// `NOT_SUPPORTED`.
    None,
}

impl Default for Device {
    fn default() -> Self {
        Self {
            uuid: "GPU-00000000".into(),
            name: "Simulated GPU".into(),
            static_watts: 50.0,
            full_watts: 300.0,
            refresh_ms: Some(20.0),
            counter_start_mj: 123_456_789,
            reset_s: None,
            stops_s: None,
            cpu_watts: None,
            limit_watts: None,
            entry_bytes: 24,
            instant_power: true,
            power_samples: true,
            utilisation: Utilisation::Samples,
            sample_ms: 20.0,
            mig: Vec::new(),
            gpm: false,
            processes: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    pub pid: u32,
    pub from_s: f64,
    pub to_s: f64,
    /// Percent of the whole device.
    pub sm: f64,
    /// `None`: the driver does not say.
    pub memory_mib: Option<u64>,
    /// Listed as drawing, not as computing.
    pub graphics: bool,
    /// Which of `Device::mig` it is on.
    pub instance: usize,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            pid: 1,
            from_s: 0.0,
            to_s: 1e9,
            sm: 100.0,
            memory_mib: Some(1024),
            graphics: false,
            instance: 0,
        }
    }
}

impl Process {
    /// Seconds of `from_s..to_s` that it is there.
    fn overlap(&self, from_s: f64, to_s: f64) -> f64 {
        (self.to_s.min(to_s) - self.from_s.max(from_s)).max(0.0)
    }
}

/// A call that does not do what it should.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Fault {
    /// The function without its version, or empty for every function of a device.
    pub call: String,
    /// By index; `None`: all.
    pub device: Option<usize>,
    pub from_s: f64,
    pub to_s: f64,
    /// What it returns, unless it returns nonsense.
    pub code: u32,
    /// It succeeds, with a count or length far beyond the buffer, a string without an end, or a
    /// number of all ones.
    pub nonsense: bool,
    /// It succeeds with this number, of energy (millijoules) or power (milliwatts).
    pub value: Option<u64>,
    /// It takes this much longer.
    pub delay_ms: f64,
    /// The time stamps of the samples that it gives are ahead of the clock.
    pub ahead_s: f64,
}

impl Default for Fault {
    fn default() -> Self {
        Self {
            call: String::new(),
            device: None,
            from_s: 0.0,
            to_s: 1e9,
            code: 0,
            nonsense: false,
            value: None,
            delay_ms: 0.0,
            ahead_s: 0.0,
        }
    }
}

impl Device {
    /// The instants at which power changes, in a stretch of time, its ends included.
    fn steps(&self, from_s: f64, to_s: f64) -> Vec<f64> {
        let changes = self.processes.iter().flat_map(|process| [process.from_s, process.to_s]);
        let mut steps: Vec<f64> = changes.filter(|at| *at > from_s && *at < to_s).collect();
        steps.extend([from_s, to_s]);
        steps.sort_by(f64::total_cmp);
        steps
    }

    fn sm_at(&self, s: f64) -> f64 {
        let there = self.processes.iter().filter(|p| p.from_s <= s && s < p.to_s);
        there.map(|process| process.sm).sum()
    }

    pub fn watts(&self, s: f64) -> f64 {
        let load = (self.sm_at(s) / 100.0).min(1.0);
        self.static_watts + load * (self.full_watts - self.static_watts)
    }

    /// All that it draws between two instants.
    pub fn joules(&self, from_s: f64, to_s: f64) -> f64 {
        let steps = self.steps(from_s, to_s);
        steps
            .windows(2)
            .map(|step| self.watts((step[0] + step[1]) / 2.0) * (step[1] - step[0]))
            .sum()
    }

    /// The part of it that is due to one process: its share of what exceeds the static power.
    pub fn dynamic_joules(&self, pid: u32, from_s: f64, to_s: f64) -> f64 {
        let mut sum = 0.0;
        for step in self.steps(from_s, to_s).windows(2) {
            let middle = (step[0] + step[1]) / 2.0;
            let there = |p: &&Process| p.pid == pid && p.from_s <= middle && middle < p.to_s;
            let own: f64 = self.processes.iter().filter(there).map(|process| process.sm).sum();
            if own > 0.0 {
                let dynamic = self.watts(middle) - self.static_watts;
                sum += dynamic * own / self.sm_at(middle) * (step[1] - step[0]);
            }
        }
        sum
    }

    /// Mean SM utilisation of a process, percent.
    pub(crate) fn sm_of(&self, process: &Process, from_s: f64, to_s: f64) -> f64 {
        process.sm * process.overlap(from_s, to_s) / (to_s - from_s)
    }

    /// Mean SM utilisation of a MIG instance, percent of the instance.
    pub(crate) fn instance_sm(&self, instance: usize, from_s: f64, to_s: f64) -> f64 {
        let on_it = self.processes.iter().filter(|process| process.instance == instance);
        let sm: f64 = on_it.map(|process| self.sm_of(process, from_s, to_s)).sum();
        let slices = self.mig.get(instance).copied().unwrap_or(0);
        sm * f64::from(self.mig.iter().sum::<u32>()) / f64::from(slices)
    }

    /// Share of the time that any process computes, percent; one with less than 100 % SM counts as
    /// busy all of its time.
    pub(crate) fn busy(&self, from_s: f64, to_s: f64) -> f64 {
        let steps = self.steps(from_s, to_s);
        let busy = steps.windows(2).filter(|step| self.sm_at((step[0] + step[1]) / 2.0) > 0.0);
        100.0 * busy.map(|step| step[1] - step[0]).sum::<f64>() / (to_s - from_s)
    }

    /// What the energy counter shows.
    pub(crate) fn counter_mj(&self, s: f64) -> Option<u64> {
        let refresh = self.refresh_ms? / 1e3;
        let s = s.min(self.stops_s.unwrap_or(f64::INFINITY));
        let refreshed = (s / refresh).floor() * refresh;
        Some(match self.reset_s {
            Some(reset) if s >= reset => (1e3 * self.joules(reset, refreshed.max(reset))) as u64,
            _ => {
                let cpu = self.cpu_watts.unwrap_or(0.0) * refreshed.max(0.0);
                self.counter_start_mj + (1e3 * (self.joules(0.0, refreshed.max(0.0)) + cpu)) as u64
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_together_and_the_static_power_are_all_of_it() {
        let process =
            |pid, from_s, to_s, sm| Process { pid, from_s, to_s, sm, ..Process::default() };
        let device = Device {
            processes: vec![process(1, 0.5, 2.0, 60.0), process(2, 1.0, 3.0, 70.0)],
            ..Device::default()
        };
        let dynamic = device.dynamic_joules(1, 0.2, 2.7) + device.dynamic_joules(2, 0.2, 2.7);
        let whole = device.joules(0.2, 2.7);
        assert!((whole - dynamic - 50.0 * 2.5).abs() < 1e-9);
        // 0.5 s at 60 %, 1 s at 100 % (of 130), 0.7 s at 70 %.
        assert!((dynamic - 250.0 * (0.5 * 0.6 + 1.0 + 0.7 * 0.7)).abs() < 1e-9, "{dynamic}");
    }
}
