//! What there is to measure GPUs with.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::super::{Check, Level};
use super::AS_ROOT;
use crate::config::Doctor;
use crate::event::sources::{GpuDevice, GpuReadMethod};
use crate::host;
use crate::meter::gpu::inspect::{DeviceOffer, Lack, Offer, Refusal, inspect};
use crate::meter::gpu::{GpuOptions, PidOwner, Whose};
use crate::workload::owner::shows_host_pids;

/// Asks the code that measures: it loads the library as a run does.
pub(super) fn checks(config: &Doctor) -> (Vec<Check>, bool) {
    let driver = driver(&config.roots.procfs);
    // A library that was named may bring its own driver. Without either, that NVML does not start is
    // what most machines say, and nothing is wrong with them.
    let expected = driver.found || config.nvml_lib.is_some();
    let mut checks = vec![driver];
    let options = GpuOptions {
        required: true,
        library: config.nvml_lib.clone(),
        procfs: config.roots.procfs.clone(),
        interval: Duration::from_millis(100),
        process_interval: Duration::from_secs(1),
    };
    match inspect(options, Nobody { host_pids: shows_host_pids(&config.roots.procfs) }) {
        Ok(offer) => {
            let can = offer.devices.iter().any(Result::is_ok);
            checks.extend(nvml(&offer));
            (checks, can)
        }
        Err(Refusal { why, mend }) => {
            let level = if expected { Level::Missing } else { Level::Info };
            let mend = match expected {
                true => mend.to_owned(),
                false => format!("with an NVIDIA GPU: {mend}"),
            };
            checks.push(Check::new("NVML", level, why).absent().mend(mend));
            (checks, false)
        }
    }
}

/// Nobody's processes are asked for.
struct Nobody {
    host_pids: bool,
}

impl PidOwner for Nobody {
    fn living(&self, _: u32) -> Whose {
        Whose::Gone
    }

    fn sees_host_pids(&self) -> bool {
        self.host_pids
    }
}

fn nvml(offer: &Offer) -> Vec<Check> {
    let count = offer.devices.len();
    let plural = if count == 1 { "" } else { "s" };
    let level = if count == 0 { Level::Missing } else { Level::Ok };
    let mut checks = vec![Check::new("NVML", level, format!("starts; {count} device{plural}"))];
    if count > 0 && !offer.host_pids {
        let detail = "processes of the host cannot be seen here: GPU energy has nobody to bill";
        checks.push(Check::new("process ids", Level::Warning, detail).absent().mend(
            "run in the host's pid namespace (docker --pid=host, Kubernetes hostPID: true), or \
             give the host's procfs with --procfs",
        ));
    }
    checks.extend(offer.devices.iter().map(device));
    checks
}

fn device(offer: &Result<DeviceOffer, String>) -> Check {
    const NAME: &str = "GPU";
    let offer = match offer {
        Ok(offer) => offer,
        Err(why) => return Check::new(NAME, Level::Missing, why.as_str()),
    };
    let GpuDevice { uuid, name, index, method } = &offer.device;
    let energy = match (method, offer.without_counter) {
        (GpuReadMethod::Counter, None) => "energy counter".to_owned(),
        (GpuReadMethod::Counter, Some(why)) => why.to_owned(),
        (GpuReadMethod::Power, why) => {
            format!("{}: power is integrated", why.unwrap_or("has no energy counter"))
        }
    };
    let users = match (&offer.processes, &offer.utilisation) {
        (Err(lack), _) => format!("who is on it is not told ({})", lack.why),
        _ if offer.mig => "MIG: shared by slices".to_owned(),
        (Ok(count), Ok(())) => format!("utilisation by process; processes now: {count}"),
        (Ok(count), Err(lack)) => {
            format!(
                "no utilisation by process ({}): shared by memory; processes now: {count}",
                lack.why
            )
        }
    };
    let detail = format!("{index} {name} {uuid}: {energy}; {users}");
    let denied = |lack: &Lack| lack.denied;
    let told = offer.processes.is_ok() && (offer.mig || offer.utilisation.is_ok());
    if offer.processes.as_ref().is_err_and(denied) || offer.utilisation.as_ref().is_err_and(denied)
    {
        Check::new(NAME, Level::Warning, detail).mend(AS_ROOT)
    } else {
        Check::new(NAME, if told { Level::Ok } else { Level::Warning }, detail)
    }
}

fn driver(procfs: &Path) -> Check {
    const NAME: &str = "NVIDIA driver";
    match host::read(&procfs.join("driver/nvidia/version")) {
        Ok(version) => {
            let version = String::from_utf8_lossy(&version);
            let line = version.lines().next().unwrap_or_default().trim().to_owned();
            Check::new(NAME, Level::Ok, line)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Check::new(NAME, Level::Info, "not loaded (no NVIDIA GPU, or none for this container)")
                .absent()
        }
        Err(error) => Check::new(NAME, Level::Warning, error.to_string()).absent(),
    }
}
