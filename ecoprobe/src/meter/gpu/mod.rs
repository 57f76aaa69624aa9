//! GPU energy through NVML.
//!
//! NVML is slow and takes a lock that all its users share, so one thread does all the asking:
//! energy and power often, who uses a device rarely. It publishes [`GpuWindow`]s; whoever drains
//! them never waits for the driver.
//!
//! [`GpuWindow`]: crate::sample::GpuWindow

mod clock;
mod curve;
mod device;
mod fault;
mod latency;
mod nvml;
mod owner;
mod poller;
mod usage;

use std::path::PathBuf;
use std::sync::PoisonError;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use self::fault::OpenError;
use self::latency::SharedLatencies;
pub use self::owner::{Owners, PidOwner, Workloads};
use crate::error::Error;
use crate::report::{GpuDevice, GpuEnergyKind, GpuEnergySource, Quantiles};
use crate::sample::Event;

/// How long the driver may take to wake its devices up: without the persistence daemon, seconds.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_IF_REQUIRED: Duration = Duration::from_secs(30);

/// What to read, and how often.
#[derive(Debug, Clone)]
pub struct GpuOptions {
    /// NVML was asked for by name: without it there is no run.
    pub required: bool,
    /// The library to load; `None`: the system's.
    pub library: Option<PathBuf>,
    /// Where the host's procfs is mounted: `driver/nvidia` in it says whether a driver is there.
    pub procfs: PathBuf,
    /// Time between readings of energy and power.
    pub interval: Duration,
    /// Time between readings of who uses a device; the length of a window.
    pub process_interval: Duration,
}

/// The poller's end of a running meter. Dropping it stops the poller without a last reading.
#[derive(Debug)]
pub struct GpuMeter {
    events: Receiver<Event>,
    stop: Sender<Instant>,
    latencies: SharedLatencies,
}

/// What is left when a meter has finished.
#[derive(Debug)]
pub struct GpuEnd {
    pub events: Vec<Event>,
    /// How long calls into the driver took: all of them, and by function.
    pub nvml_us: Quantiles,
    pub calls: Vec<(&'static str, Quantiles)>,
}

/// A meter whose driver is still being opened.
#[derive(Debug)]
pub struct Opening {
    options: GpuOptions,
    ready: Receiver<Result<Found, OpenError>>,
    meter: GpuMeter,
}

/// What the poller found when it had opened the driver.
#[derive(Debug)]
struct Found {
    devices: Vec<GpuDevice>,
    warnings: Vec<String>,
}

impl Opening {
    /// Waits until the devices are known, at most 5 seconds (30 where NVML is required).
    ///
    /// # Errors
    ///
    /// NVML is required, and there is none, or none that works: [`Error::Cannot`]. Where it is not
    /// required that is a warning, and the meter yields nothing; where there is no trace of an
    /// NVIDIA driver, not even that.
    pub fn wait(self) -> Result<(GpuMeter, GpuEnergySource, Vec<String>), Error> {
        let patience = if self.options.required { PATIENCE_IF_REQUIRED } else { PATIENCE };
        let failed = |absent: bool, message: String| OpenError { absent, message };
        let found = match self.ready.recv_timeout(patience) {
            Ok(Ok(found)) if found.devices.is_empty() => {
                let mut reasons = found.warnings;
                reasons.insert(0, "NVML finds no GPU whose energy can be read".into());
                Err(failed(false, reasons.join("; ")))
            }
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(failed(
                false,
                format!("NVML did not answer within {} seconds", patience.as_secs()),
            )),
            Err(RecvTimeoutError::Disconnected) => {
                Err(failed(false, "the NVML thread could not be started".into()))
            }
        };
        match found {
            Ok(Found { devices, warnings }) => {
                let source = GpuEnergySource { kind: GpuEnergyKind::Nvml, devices };
                Ok((self.meter, source, warnings))
            }
            Err(error) if self.options.required => Err(Error::Cannot(format!(
                "{}; check that the NVIDIA driver works (`nvidia-smi`), name its library with \
                 --nvml-lib, or leave --gpu-energy at auto",
                error.message
            ))),
            Err(error) => {
                let driver = self.options.procfs.join("driver/nvidia").exists();
                let warnings = if error.absent && !driver {
                    Vec::new()
                } else {
                    vec![format!("no GPU energy: {}", error.message)]
                };
                let source = GpuEnergySource { kind: GpuEnergyKind::None, devices: Vec::new() };
                Ok((self.meter, source, warnings))
            }
        }
    }
}

impl GpuMeter {
    /// Starts the poller, which opens the driver at once; `Opening::wait` says what it found. The
    /// driver may take its time, so whoever has other things to set up does so in between.
    pub fn begin(options: GpuOptions, owner: impl PidOwner) -> Opening {
        let (event_in, events) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let (found, ready) = mpsc::sync_channel(1);
        let latencies = SharedLatencies::default();
        let meter = Self { events, stop, latencies: latencies.clone() };
        let theirs = options.clone();
        // If there is no thread to be had, `ready` is disconnected and `wait` says so.
        let _ = std::thread::Builder::new().name("ecoprobe-nvml".into()).spawn(move || {
            poller::run(&theirs, owner, latencies, &found, event_in, &stopped);
        });
        Opening { options, ready, meter }
    }

    /// Starts the poller and waits until the devices are known.
    ///
    /// # Errors
    ///
    /// As [`Opening::wait`].
    pub fn start(
        options: GpuOptions,
        owner: impl PidOwner,
    ) -> Result<(Self, GpuEnergySource, Vec<String>), Error> {
        Self::begin(options, owner).wait()
    }

    /// Appends what was published since the last call. Never waits.
    pub fn drain(&self, out: &mut Vec<Event>) {
        out.extend(self.events.try_iter());
    }

    /// How long calls into the driver have taken so far, by function.
    pub fn call_latencies(&self) -> Vec<(&'static str, Quantiles)> {
        self.latencies.lock().unwrap_or_else(PoisonError::into_inner).by_call()
    }

    /// Has every device read once more, so that the windows reach past the moment of the call, and
    /// stops. A driver that does not answer by `deadline` is left behind, with a warning.
    pub fn finish(self, deadline: Duration) -> GpuEnd {
        let deadline = Instant::now() + deadline;
        // An error means that the poller has ended: then the channel only holds what is left.
        let _ = self.stop.send(deadline);
        let mut events = Vec::new();
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(event) => events.push(event),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let message = "NVML did not answer in time: the last GPU readings are missing";
                    events.push(Event::Warning { message: message.into() });
                    break;
                }
            }
        }
        let latencies = self.latencies.lock().unwrap_or_else(PoisonError::into_inner);
        GpuEnd { events, nvml_us: latencies.overall(), calls: latencies.by_call() }
    }
}
