//! The thread that asks the driver: energy and power of every device often, who uses it rarely.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use super::device::Device;
use super::fault::OpenError;
use super::latency::SharedLatencies;
use super::nvml::Driver;
use super::owner::PidOwner;
use super::{Found, GpuOptions};
use crate::base::monotonic_ns;
use crate::event::Event;

/// How often the counters are read while looking for the moment of a refresh.
pub(super) const CLOSE_LOOK: Duration = Duration::from_millis(5);
/// Two refreshes of the slowest counters seen, and some.
pub(super) const LOOK_AT_MOST: Duration = Duration::from_millis(250);

/// What every device needs to be read.
#[derive(Debug)]
pub(super) struct Context<O> {
    pub(super) driver: Driver,
    pub(super) owner: O,
    /// The driver's pids mean something here.
    pub(super) host_pids: bool,
    pub(super) events: Sender<Event>,
    said: BTreeSet<String>,
}

impl<O> Context<O> {
    pub(super) fn publish(&self, event: Event) {
        // Nobody listens any more: then nobody misses it.
        let _ = self.events.send(event);
    }

    pub(super) fn warn(&self, message: String) {
        self.publish(Event::Warning { message });
    }

    /// Warns, but of one thing only once.
    pub(super) fn warn_once(&mut self, topic: String, message: impl FnOnce() -> String) {
        if self.said.insert(topic) {
            self.warn(message());
        }
    }
}

impl<O> Drop for Context<O> {
    fn drop(&mut self) {
        // Else a poller that failed would look like one that had no more to say.
        if std::thread::panicking() {
            self.warn("the NVML thread failed: GPU readings from then on are missing".into());
        }
    }
}

/// The body of the thread.
pub(super) fn run<O: PidOwner>(
    options: &GpuOptions,
    owner: O,
    latencies: SharedLatencies,
    found: &SyncSender<Result<Found, OpenError>>,
    events: Sender<Event>,
    stopped: &Receiver<Instant>,
) {
    let driver = match Driver::open(options.library.as_deref(), latencies) {
        Ok(driver) => driver,
        Err(error) => {
            let _ = found.send(Err(error));
            return;
        }
    };
    let mut warnings = Vec::new();
    let missing = driver.missing();
    if !missing.is_empty() {
        warnings.push(format!("this NVML library lacks {}", missing.join(" and ")));
    }
    let host_pids = owner.sees_host_pids();
    if !host_pids {
        warnings.push(
            "GPU energy cannot be billed: the driver gives pids of the host, and this process \
             sees those of a container; run it in the host's pid namespace, or give it the host's \
             procfs with --procfs"
                .into(),
        );
    }
    let count = match driver.device_count() {
        Ok(count) => count,
        Err(fault) => {
            let message = format!("NVML cannot count its devices: {fault}");
            let _ = found.send(Err(OpenError::new(false, message)));
            return;
        }
    };
    let mut devices: Vec<Device> = Vec::new();
    for index in 0..count {
        match Device::find(&driver, index) {
            Ok(device) if devices.iter().any(|known| known.uuid() == device.uuid()) => {
                warnings.push(format!("NVML lists GPU {} twice", device.uuid()));
            }
            Ok(device) => devices.push(device),
            Err(problem) => warnings.push(problem),
        }
    }
    warnings.extend(devices.iter().filter_map(|device| device.stand_in(options.interval)));
    let listed = devices.iter().map(Device::describe).collect();
    let context = Context { driver, owner, host_pids, events, said: BTreeSet::new() };
    let mut poller = Poller { context, devices, stopped };
    // Before anybody is told: what is measured from then on begins within the first window.
    poller.prime();
    let empty = poller.devices.is_empty();
    if found.send(Ok(Found { devices: listed, warnings })).is_ok() && !empty {
        poller.run(options);
    }
}

/// Whether to go on, and if not, until when there is time to finish.
enum Order {
    Continue,
    /// With a last reading, by then.
    Finish(Instant),
    /// At once.
    Quit,
}

struct Poller<'a, O> {
    // Before the driver in `context`, so that what they keep in it is dropped before it is shut down.
    devices: Vec<Device>,
    context: Context<O>,
    stopped: &'a Receiver<Instant>,
}

impl<O: PidOwner> Poller<'_, O> {
    fn run(mut self, options: &GpuOptions) {
        if let Order::Finish(deadline) = self.rounds(options) {
            self.close(deadline);
        }
    }

    fn wait(&self, time: Duration) -> Order {
        match self.stopped.recv_timeout(time) {
            Ok(deadline) => Order::Finish(deadline),
            Err(RecvTimeoutError::Timeout) => Order::Continue,
            Err(RecvTimeoutError::Disconnected) => Order::Quit,
        }
    }

    /// Watches the counters closely until each has moved twice: the first time is where the first
    /// window begins, and both together tell how fast the counter refreshes.
    fn prime(&mut self) {
        let end = Instant::now() + LOOK_AT_MOST;
        loop {
            for device in &mut self.devices {
                device.prime(&mut self.context);
            }
            if Instant::now() >= end || self.devices.iter().all(Device::primed) {
                break;
            }
            std::thread::sleep(CLOSE_LOOK);
        }
    }

    /// Both groups until the end. Devices are surveyed one at a time, with a fast round between any
    /// two when it is due, so neither group holds up the other for long.
    fn rounds(&mut self, options: &GpuOptions) -> Order {
        let start = Instant::now();
        let (mut fast_due, mut slow_due) = (start, start);
        loop {
            if Instant::now() >= fast_due {
                let begin = Instant::now();
                for device in &mut self.devices {
                    device.read(&mut self.context);
                }
                // Where the driver is slow and devices are many, the slow group has half of the time.
                fast_due = next(fast_due, options.interval.max(begin.elapsed()));
            }
            if Instant::now() >= slow_due && self.devices.iter().all(Device::rests) {
                self.devices.iter_mut().for_each(Device::begin);
                slow_due = next(slow_due, options.process_interval);
            }
            for device in &mut self.devices {
                device.look(&mut self.context);
            }
            let pause = self.attend(fast_due, slow_due);
            match self.wait(pause) {
                Order::Continue => {}
                order => return order,
            }
        }
    }

    /// Surveys a device that is ready for it, and says for how long there is nothing else to do.
    fn attend(&mut self, fast_due: Instant, slow_due: Instant) -> Duration {
        let now_ns = monotonic_ns();
        // The next round of surveys begins when this one is over.
        let rest = self.devices.iter().all(Device::rests);
        let due = if rest { fast_due.min(slow_due) } else { fast_due };
        let due = due.saturating_duration_since(Instant::now());
        let is_ready = |device: &&mut Device| device.ready_ns().is_some_and(|ns| ns <= now_ns);
        if let Some(device) = self.devices.iter_mut().find(is_ready) {
            device.survey(&mut self.context);
            return Duration::ZERO;
        }
        if self.devices.iter().any(Device::is_looked_at) {
            return due.min(CLOSE_LOOK);
        }
        let ready_ns = self.devices.iter().filter_map(Device::ready_ns).min();
        ready_ns.map_or(due, |ns| due.min(Duration::from_nanos(ns - now_ns)))
    }

    /// Reads every counter until it has moved past now, then closes every device's last window.
    fn close(&mut self, deadline: Instant) {
        let end_ns = monotonic_ns();
        let patience = deadline.min(Instant::now() + LOOK_AT_MOST);
        while self.devices.iter().any(|device| !device.covers(end_ns)) {
            for device in self.devices.iter_mut().filter(|device| !device.covers(end_ns)) {
                device.read(&mut self.context);
            }
            if Instant::now() >= patience {
                break;
            }
            std::thread::sleep(CLOSE_LOOK);
        }
        let told_ns = self.devices.iter().map(Device::told_ns).max().unwrap_or(0);
        let rest = Duration::from_nanos(told_ns.saturating_sub(monotonic_ns())).min(LOOK_AT_MOST);
        std::thread::sleep(rest.min(deadline.saturating_duration_since(Instant::now())));
        for device in &mut self.devices {
            device.close(&mut self.context, end_ns, Instant::now() < deadline);
        }
    }
}

/// When a round is due again: missed ones are not made up for.
fn next(due: Instant, interval: Duration) -> Instant {
    let now = Instant::now();
    if due + interval > now { due + interval } else { now + interval }
}
