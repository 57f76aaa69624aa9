//! GPU energy.
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

//!
//! What there is to know about a GPU is asked through the narrow trait in `driver`, which NVML is the
//! first to have. A driver is foreign code: what it says is checked, what it does not say is not
//! zero, and whenever it hangs, only its own thread waits.

mod calls;
mod clock;
mod counter;
mod curve;
mod device;
mod driver;
mod fault;
pub(crate) mod inspect;
mod nvml;
mod owner;
mod plausible;
mod poller;
mod sampling;
mod shares;
mod superchip;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use self::calls::Calls;
use self::driver::Driver;
use self::fault::OpenError;
use self::nvml::Nvml;
pub use self::owner::{PidOwner, Whose};
use crate::base::error::Error;
use crate::base::own::Quantiles;
use crate::base::{Patience, monotonic_ns};
use crate::event::Event;
use crate::event::sources::{GpuDevice, GpuEnergyKind, GpuEnergySource};

/// How long the driver may take to wake its devices up: without the persistence daemon, seconds.
const PATIENCE: Duration = Duration::from_secs(5);
const PATIENCE_IF_REQUIRED: Duration = Duration::from_secs(30);

/// How long the driver may take to shut down.
const SHUTDOWN: Duration = Duration::from_millis(500);

/// How long a call may take before it is said that the driver hangs.
const HANGS_NS: u64 = 10_000_000_000;

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
    words: Receiver<Word>,
    stop: Sender<Instant>,
    calls: Calls,
    /// It was said that the driver hangs, and it still does.
    hangs: AtomicBool,
}

/// What the poller says.
#[derive(Debug)]
enum Word {
    Event(Event),
    /// There is nothing to come.
    End,
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
        Self::start_with(options, owner, |options, calls| {
            let driver = Nvml::open(options.library.as_deref(), calls)?;
            Ok(Box::new(driver) as Box<dyn Driver>)
        })
    }

    /// The same, with a driver of the caller's. It is opened, used and closed in the poller's thread.
    fn start_with(
        options: GpuOptions,
        owner: impl PidOwner,
        open: impl FnOnce(&GpuOptions, Calls) -> Result<Box<dyn Driver>, OpenError> + Send + 'static,
    ) -> Result<(Self, GpuEnergySource, Vec<String>), Error> {
        let (word_in, words) = mpsc::channel();
        let (stop, stopped) = mpsc::channel();
        let (found, ready) = mpsc::sync_channel(1);
        let calls = Calls::default();
        let meter = Self { words, stop, calls: calls.clone(), hangs: AtomicBool::new(false) };
        let theirs = options.clone();
        // If there is no thread to be had, `ready` is disconnected.
        let _ = std::thread::Builder::new().name("ecoprobe-nvml".into()).spawn(move || {
            poller::run(&theirs, open(&theirs, calls), owner, &found, word_in, &stopped);
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
        out.extend(self.words.try_iter().filter_map(Word::event));
        let began_ns = self.calls.under_way_ns();
        let hangs = began_ns.is_some_and(|ns| monotonic_ns().saturating_sub(ns) >= HANGS_NS);
        if self.hangs.swap(hangs, Ordering::Relaxed) != hangs && hangs {
            let message = "the GPU driver has not answered for 10 seconds: until it does, GPU \
                           readings are missing";
            out.push(Event::Warning { message: message.into() });
        }
    }

    /// Has every device read once more, so that the windows reach past the moment of the call, and
    /// stops. A driver that does not answer in time is left behind, with a warning.
    pub fn finish(self, patience: impl Into<Patience>) -> GpuEnd {
        let patience = patience.into();
        // Asking ends earlier, so that what is known without is published in time.
        // An error means that the poller has ended: then the channel only holds what is left.
        let _ = self.stop.send(Instant::now() + patience.left() * 3 / 4);
        let mut events = Vec::new();
        loop {
            match patience.receive(&self.words) {
                Ok(Word::Event(event)) => events.push(event),
                Ok(Word::End) => break,
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    let message = "NVML did not answer in time: the last GPU readings are missing";
                    events.push(Event::Warning { message: message.into() });
                    break;
                }
            }
        }
        // A driver that shuts down gets a moment, so that the program's end does not cut it off.
        let _ = patience.at_most(SHUTDOWN).receive(&self.words);
        GpuEnd { events, nvml_us: self.calls.overall(), calls: self.calls.by_call() }
    }
}

impl Word {
    fn event(self) -> Option<Event> {
        match self {
            Self::Event(event) => Some(event),
            Self::End => None,
        }
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
