//! A short look at what NVML offers here, for `doctor`.

use std::sync::mpsc;
use std::time::Duration;

use super::calls::Calls;
use super::device::Device;
use super::driver::{Driver, ProcessKind};
use super::fault::{Fault, Kind, OpenError};
use super::nvml::Nvml;
use super::poller::{Context, Opened, open_devices};
use super::{GpuOptions, PidOwner};
use crate::event::sources::GpuDevice;

/// How long the driver may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What there is to measure with.
#[derive(Debug)]
pub(crate) struct Offer {
    /// A sentence for each device that cannot be measured.
    pub devices: Vec<Result<DeviceOffer, String>>,
    /// The driver's pids mean something here.
    pub host_pids: bool,
}

/// What one device offers.
#[derive(Debug)]
pub(crate) struct DeviceOffer {
    pub device: GpuDevice,
    /// Why its energy is not, or should not be, from its energy counter, in a few words.
    pub without_counter: Option<&'static str>,
    pub mig: bool,
    /// Processes on it now.
    pub processes: Result<usize, Lack>,
    /// Utilisation by process.
    pub utilisation: Result<(), Lack>,
}

/// Something that a device does not tell.
#[derive(Debug)]
pub(crate) struct Lack {
    pub why: String,
    /// Someone with more rights would be told.
    pub denied: bool,
}

impl From<Fault> for Lack {
    fn from(fault: Fault) -> Self {
        let denied = fault.kind() == Some(Kind::Denied);
        Self { why: fault.to_string(), denied }
    }
}

/// NVML does not start.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub why: String,
    /// One line.
    pub mend: &'static str,
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        Self { why: error.message, mend: error.mend }
    }
}

/// Starts NVML, looks at each device as a run does when it starts, and stops it again; gives up after
/// 10 seconds. Of `owner` it is asked only whether the driver's pids mean anything.
///
/// # Errors
///
/// NVML cannot be loaded, does not start, or does not answer.
pub(crate) fn inspect(options: GpuOptions, owner: impl PidOwner) -> Result<Offer, Refusal> {
    let (answer, answered) = mpsc::sync_channel(1);
    // A driver that hangs keeps its thread, and nothing else.
    let thread = std::thread::Builder::new().name("ecoprobe-nvml".into());
    let _ = thread.spawn(move || answer.send(look(&options, owner)));
    answered.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let why = format!("NVML did not answer within {} seconds", PATIENCE.as_secs());
        Err(OpenError::new(false, why).into())
    })
}

fn look(options: &GpuOptions, owner: impl PidOwner) -> Result<Offer, Refusal> {
    let driver = Nvml::open(options.library.as_deref(), Calls::default())?;
    let (words, _nobody_listens) = mpsc::channel();
    let mut context = Context::new(Box::new(driver), owner, words);
    let Opened { devices, failed, .. } = open_devices(&mut context, options)?;
    let mut offers: Vec<(u32, Result<DeviceOffer, String>)> = devices
        .iter()
        .map(|device| (device.index(), Ok(offer(&*context.driver, device))))
        .collect();
    offers.extend(failed.into_iter().map(|(index, problem)| (index, Err(problem))));
    offers.sort_by_key(|(index, _)| *index);
    let devices = offers.into_iter().map(|(_, offer)| offer).collect();
    Ok(Offer { devices, host_pids: context.host_pids })
}

fn offer(driver: &dyn Driver, device: &Device) -> DeviceOffer {
    let handle = device.handle();
    let processes = driver.processes(handle, ProcessKind::Compute);
    DeviceOffer {
        device: device.describe(),
        without_counter: device.without_counter(),
        mig: driver.is_partitioned(handle).unwrap_or(false),
        processes: processes.map(|list| list.len()).map_err(Lack::from),
        utilisation: driver.process_samples(handle, 0).map(drop).map_err(Lack::from),
    }
}
