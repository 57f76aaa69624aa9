//! A short look at what NVML offers here, for `doctor`.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use nvml_wrapper::error::NvmlError;

use super::device::Device;
use super::fault::{Fault, OpenError};
use super::latency::SharedLatencies;
use super::nvml::{Driver, ProcessKind};
use super::owner::shows_host_pids;
use crate::event::sources::GpuDevice;

/// How long the driver may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What there is to measure with.
#[derive(Debug)]
pub struct Offer {
    /// A sentence for each device that cannot be measured.
    pub devices: Vec<Result<DeviceOffer, String>>,
    /// The driver's pids are those of this procfs.
    pub host_pids: bool,
}

/// What one device offers.
#[derive(Debug)]
pub struct DeviceOffer {
    pub device: GpuDevice,
    pub mig: bool,
    /// Processes on it now.
    pub processes: Result<usize, Lack>,
    /// Utilisation by process.
    pub utilisation: Result<(), Lack>,
}

/// Something that a device does not tell.
#[derive(Debug)]
pub struct Lack {
    pub why: String,
    /// Someone with more rights would be told.
    pub denied: bool,
}

impl From<Fault> for Lack {
    fn from(fault: Fault) -> Self {
        let denied = matches!(fault, Fault::Nvml(NvmlError::NoPermission));
        Self { why: fault.to_string(), denied }
    }
}

/// NVML does not start.
#[derive(Debug)]
pub struct Refusal {
    pub why: String,
    /// One line.
    pub mend: &'static str,
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        Self { why: error.message, mend: error.mend }
    }
}

/// Starts NVML, asks each device once, and stops it again; gives up after 10 seconds.
///
/// # Errors
///
/// NVML cannot be loaded, does not start, or does not answer.
pub fn inspect(library: Option<&Path>, procfs: &Path) -> Result<Offer, Refusal> {
    let (answer, answered) = mpsc::sync_channel(1);
    let (library, procfs): (Option<PathBuf>, PathBuf) = (library.map(Into::into), procfs.into());
    // A driver that hangs keeps its thread, and nothing else.
    let thread = std::thread::Builder::new().name("ecoprobe-nvml".into());
    let _ = thread.spawn(move || answer.send(look(library.as_deref(), &procfs)));
    answered.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let why = format!("NVML did not answer within {} seconds", PATIENCE.as_secs());
        Err(OpenError::new(false, why).into())
    })
}

fn look(library: Option<&Path>, procfs: &Path) -> Result<Offer, Refusal> {
    let driver = Driver::open(library, SharedLatencies::default())?;
    let count = driver.device_count().map_err(|fault| {
        OpenError::new(false, format!("NVML cannot count its devices: {fault}"))
    })?;
    let devices = (0..count).map(|index| offer(&driver, index)).collect();
    Ok(Offer { devices, host_pids: shows_host_pids(procfs) })
}

fn offer(driver: &Driver, index: u32) -> Result<DeviceOffer, String> {
    let device = Device::find(driver, index)?;
    let handle = device.handle();
    let processes = driver.processes(handle, ProcessKind::Compute);
    Ok(DeviceOffer {
        device: device.describe(),
        mig: driver.mig_enabled(handle).unwrap_or(false),
        processes: processes.map(|list| list.len()).map_err(Lack::from),
        utilisation: driver.process_samples(handle, 0).map(drop).map_err(Lack::from),
    })
}
