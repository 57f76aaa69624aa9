//! Machines with simulated GPUs: a copy of the fake driver library beside its scenario.

#![allow(dead_code, reason = "a module of several tests; none uses all of it")]
#![allow(clippy::unwrap_used, reason = "a simulator that cannot be set up is a failed test")]

use std::path::PathBuf;

use ecoprobe::base::monotonic_ns;
use fake_nvml::{Device, Fault, Process, Scenario};

pub(crate) const GPU_IS_LOST: u32 = 15;
pub(crate) const NO_PERMISSION: u32 = 4;
pub(crate) const NOT_FOUND: u32 = 6;
pub(crate) const DRIVER_NOT_LOADED: u32 = 9;

/// Each has a library file of its own, so tests of one process can have many.
pub(crate) struct Machine {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) scenario: Scenario,
    /// CLOCK_MONOTONIC.
    pub(crate) start_ns: u64,
}

fn simulator() -> PathBuf {
    // Cargo builds the library for this test's dependency, into the directory of its dependencies.
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap().join("libfake_nvml.so")
}

impl Machine {
    pub(crate) fn new(mut scenario: Scenario) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (index, device) in scenario.devices.iter_mut().enumerate() {
            device.uuid = uuid(index);
        }
        std::fs::copy(simulator(), directory.path().join("libnvidia-ml.so.1")).unwrap();
        Self { directory, scenario, start_ns: 0 }.started()
    }

    /// Lets the machine's time begin now.
    pub(crate) fn started(mut self) -> Self {
        self.start_ns = monotonic_ns();
        self.scenario.start_ns = Some(self.start_ns);
        let text = serde_json::to_string(&self.scenario).unwrap();
        std::fs::write(self.directory.path().join("scenario.json"), text).unwrap();
        self
    }

    pub(crate) fn of(devices: Vec<Device>) -> Self {
        Self::new(Scenario { devices, ..Scenario::default() })
    }

    pub(crate) fn with_faults(devices: Vec<Device>, faults: Vec<Fault>) -> Self {
        Self::new(Scenario { devices, faults, ..Scenario::default() })
    }

    pub(crate) fn library(&self) -> PathBuf {
        self.directory.path().join("libnvidia-ml.so.1")
    }

    /// Takes functions out of the library: their names are changed where the loader looks for them.
    pub(crate) fn without(self, symbols: &[&str]) -> Self {
        let mut bytes = std::fs::read(self.library()).unwrap();
        for symbol in symbols {
            let name = format!("\0{symbol}\0").into_bytes();
            let found: Vec<usize> = (0..bytes.len() - name.len())
                .filter(|&at| bytes[at..].starts_with(&name))
                .collect();
            assert!(!found.is_empty(), "{symbol}");
            for at in found {
                bytes[at + 1] = b'x';
            }
        }
        std::fs::write(self.library(), bytes).unwrap();
        self.started()
    }
}

pub(crate) fn uuid(index: usize) -> String {
    format!("GPU-{index:08}")
}

pub(crate) fn process(pid: u32, from_s: f64, to_s: f64, sm: f64) -> Process {
    Process { pid, from_s, to_s, sm, ..Process::default() }
}

pub(crate) fn always(pid: u32, sm: f64) -> Process {
    Process { pid, sm, ..Process::default() }
}

pub(crate) fn device(processes: Vec<Process>) -> Device {
    Device { processes, ..Device::default() }
}
