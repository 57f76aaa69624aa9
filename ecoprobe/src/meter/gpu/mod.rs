//! GPU energy through NVML.
//!
//! NVML is slow and takes a lock that all its users share, so one thread does all the asking:
//! energy and power often, who uses a device rarely. It publishes [`GpuWindow`]s; whoever drains
//! them never waits for the driver.
//!
//! A window's energy is shared by what its users computed in it, so all depends on its two edges:
//! energy and use must be cut at the same moment. The energy at a moment is known when the counter
//! is seen to move there, the use up to it when the driver has delivered its samples. So before each
//! survey the counters are read every 5 ms until they have moved, the survey follows when the samples
//! reach that far, and the window ends right there.
//!
//! [`GpuWindow`]: crate::event::GpuWindow

mod clock;
mod curve;
mod device;
mod fault;
pub mod inspect;
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
pub use self::owner::{Exit, Owners, PidOwner, Workloads};
use crate::base::error::Error;
use crate::base::own::Quantiles;
use crate::event::Event;
use crate::event::sources::{GpuDevice, GpuEnergyKind, GpuEnergySource};

/// How long the driver may take to wake its devices up: without the persistence daemon, seconds.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_IF_REQUIRED: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum GpuEnergyChoice {
    /// NVML where there is one.
    #[default]
    Auto,
    Nvml,
    None,
}

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

/// What the poller found when it had opened the driver.
#[derive(Debug)]
struct Found {
    devices: Vec<GpuDevice>,
    warnings: Vec<String>,
}

impl GpuMeter {
    /// Starts the poller and waits until the devices are known and their counters have begun, at
    /// most 5 seconds (30 where NVML is required).
    ///
    /// # Errors
    ///
    /// NVML is required, and there is none, or none that works: [`Error::Cannot`]. Where it is not
    /// required that is a warning, and the meter yields nothing; where there is no trace of an
    /// NVIDIA driver, not even that.
    pub fn start(
        options: GpuOptions,
        owner: impl PidOwner,
    ) -> Result<(Self, GpuEnergySource, Vec<String>), Error> {
        let (event_in, events) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let (found, ready) = mpsc::sync_channel(1);
        let latencies = SharedLatencies::default();
        let meter = Self { events, stop, latencies: latencies.clone() };
        let theirs = options.clone();
        // If there is no thread to be had, `ready` is disconnected.
        let _ = std::thread::Builder::new().name("ecoprobe-nvml".into()).spawn(move || {
            poller::run(&theirs, owner, latencies, &found, event_in, &stopped);
        });
        match wait(&options, &ready) {
            Ok(Found { devices, warnings }) => {
                let source = GpuEnergySource { kind: GpuEnergyKind::Nvml, devices };
                Ok((meter, source, warnings))
            }
            Err(error) if options.required => Err(Error::Cannot(format!(
                "{}; check that the NVIDIA driver works (`nvidia-smi`), name its library with \
                 --nvml-lib, or leave --gpu-energy at auto",
                error.message
            ))),
            Err(error) => {
                let driver = options.procfs.join("driver/nvidia").exists();
                let silent = error.absent && !driver;
                let warning = (!silent).then(|| format!("no GPU energy: {}", error.message));
                let source = GpuEnergySource::default();
                Ok((meter, source, warning.into_iter().collect()))
            }
        }
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
        let now = Instant::now();
        // Asking ends earlier, so that what is known without is published in time.
        // An error means that the poller has ended: then the channel only holds what is left.
        let _ = self.stop.send(now + deadline * 3 / 4);
        let deadline = now + deadline;
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

/// Waits for the poller's first word.
fn wait(
    options: &GpuOptions,
    ready: &Receiver<Result<Found, OpenError>>,
) -> Result<Found, OpenError> {
    let patience = if options.required { PATIENCE_IF_REQUIRED } else { PATIENCE };
    match ready.recv_timeout(patience) {
        Ok(Ok(found)) if found.devices.is_empty() => {
            let mut reasons = found.warnings;
            reasons.insert(0, "NVML finds no GPU whose energy can be read".into());
            Err(OpenError::new(false, reasons.join("; ")))
        }
        Ok(answer) => answer,
        Err(RecvTimeoutError::Timeout) => {
            let message = format!("NVML did not answer within {} seconds", patience.as_secs());
            Err(OpenError::new(false, message))
        }
        Err(RecvTimeoutError::Disconnected) => {
            Err(OpenError::new(false, "the NVML thread could not be started".into()))
        }
    }
}
