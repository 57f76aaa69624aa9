//! Whether counters work, after they have been opened.

use std::time::{Duration, Instant};

use super::Unavailable;
use crate::base::Component;
use crate::event::{Domain, Reading};
use crate::meter::EnergyMeter;

/// How long a counter may stay at zero before it is taken for dead. The registers move every
/// millisecond or so, by 61 µJ a step at most machines: at 1 W 20 ms are hundreds of steps. Ten times
/// as much is for counters that a program keeps, such as a hypervisor's helper, on a busy machine; a
/// counter that counts makes nobody wait.
const TRIAL: Duration = Duration::from_millis(200);

/// A meter whose dead counters can be left out.
pub(crate) trait Counters: EnergyMeter {
    /// Keeps the domains for which `keep`, in their order, is true.
    fn retain(&mut self, keep: &[bool]);
}

/// Leaves out the counters that still stand at zero when [`TRIAL`] has passed since they were
/// `opened`; the notes gain a sentence for each. What shows any count is kept, whether or not it
/// moves: an idle machine's may be slow.
pub(crate) fn drop_dead(
    meter: &mut dyn Counters,
    opened: Instant,
    notes: &mut Vec<String>,
) -> Result<(), Unavailable> {
    let mut readings: Vec<Result<Reading, String>> = Vec::new();
    let mut alive = vec![false; meter.domains().len()];
    loop {
        meter.read(&mut readings);
        for (alive, reading) in alive.iter_mut().zip(&readings) {
            *alive |= reading.as_ref().is_ok_and(|reading| reading.count > 0);
        }
        if alive.iter().all(|alive| *alive) || opened.elapsed() >= TRIAL {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let dead = meter.domains().iter().zip(&alive).zip(&readings).filter(|((_, alive), _)| !**alive);
    notes.extend(dead.map(|((domain, _), reading)| match reading {
        Ok(_) => format!("{} is left out: its counter stays at zero", domain.name),
        Err(why) => format!("{} is left out: {why}", domain.name),
    }));
    meter.retain(&alive);
    if has_package(meter.domains()) { Ok(()) } else { Err(Unavailable::Empty) }
}

/// Without a package's counter, a source is none of the CPU's energy.
pub(crate) fn has_package(domains: &[Domain]) -> bool {
    domains.iter().any(|domain| domain.component == Component::Cpu)
}

/// Keeps the items for which `keep`, in their order, is true.
pub(crate) fn retain<T>(items: &mut Vec<T>, keep: &[bool]) {
    let mut keep = keep.iter();
    items.retain(|_| keep.next().copied().unwrap_or(false));
}
