//! The thread that asks the driver: energy and power of every device often, who uses it rarely.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use super::device::Device;
use super::device::FIRST_MOVE_WITHIN;
use super::driver::Driver;
use super::fault::OpenError;
use super::owner::{History, Owner, PidOwner, Present, Whose};
use super::{Found, GpuOptions, Word};
use crate::base::monotonic_ns;
use crate::event::Event;

/// How often the counters are read while looking for the moment of a refresh.
pub(super) const CLOSE_LOOK: Duration = Duration::from_millis(5);
/// Two refreshes of the slowest counters seen, and some.
pub(super) const LOOK_AT_MOST: Duration = Duration::from_millis(250);

/// What every device needs to be read.
#[derive(Debug)]
pub(super) struct Context<O> {
    pub(super) driver: Box<dyn Driver>,
    pub(super) owner: O,
    /// The driver's pids mean something here.
    pub(super) host_pids: bool,
    words: Sender<Word>,
    said: BTreeSet<String>,
}

impl<O> Context<O> {
    pub(super) fn new(driver: Box<dyn Driver>, owner: O, words: Sender<Word>) -> Self {
        Self { driver, owner, host_pids: true, words, said: BTreeSet::new() }
    }

    pub(super) fn publish(&self, event: Event) {
        // Nobody listens any more: then nobody misses it.
        let _ = self.words.send(Word::Event(event));
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

impl<O: PidOwner> Context<O> {
    /// Whose a process is now.
    pub(super) fn present(&mut self, pid: u32) -> Present {
        match self.owner.living(pid) {
            Whose::User(user) => Present::User(user),
            Whose::Gone => Present::Gone,
            Whose::Unknown(why) => {
                // One for all: there may be thousands of them.
                self.warn_once("owner".into(), || {
                    format!(
                        "whose process {pid} is, which uses a GPU, cannot be told: {why}; the \
                         energy of such processes is unattributed"
                    )
                });
                Present::Unknown
            }
        }
    }

    /// Who had a pid at that instant; `owners` notes who has it now.
    pub(super) fn owner_at(
        &mut self,
        pid: u32,
        at_ns: u64,
        owners: &mut BTreeMap<u32, Present>,
    ) -> Owner {
        // In this order: one that exits in between is in the second answer.
        let present = self.present(pid);
        let exited = self.owner.exited(pid);
        let owner = History { present, exited }.owner_at(at_ns);
        owners.insert(pid, owner.map_or(present, Present::User));
        owner
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
    driver: Result<Box<dyn Driver>, OpenError>,
    owner: O,
    found: &SyncSender<Result<Found, OpenError>>,
    words: Sender<Word>,
    stopped: &Receiver<Instant>,
) {
    let opened = driver.and_then(|driver| {
        let mut context = Context::new(driver, owner, words.clone());
        let opened = open_devices(&mut context, options)?;
        Ok((context, opened))
    });
    let (context, Opened { devices, failed, mut warnings }) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let _ = found.send(Err(error));
            return;
        }
    };
    warnings.extend(failed.into_iter().map(|(_, problem)| problem));
    let listed: Vec<_> = devices.iter().map(Device::describe).collect();
    let empty = devices.is_empty();
    let poller = Poller { context, devices, stopped };
    if found.send(Ok(Found { devices: listed, warnings })).is_ok() && !empty {
        poller.run(options, &words);
    }
}

/// The devices that can be measured, and what there is to say about these and the others.
pub(super) struct Opened {
    pub(super) devices: Vec<Device>,
    /// Those that cannot be measured, by index, and why.
    pub(super) failed: Vec<(u32, String)>,
    pub(super) warnings: Vec<String>,
}

/// Finds the devices and looks at their counters until each is known to count: what is measured from
/// then on begins within the first window.
pub(super) fn open_devices<O: PidOwner>(
    context: &mut Context<O>,
    options: &GpuOptions,
) -> Result<Opened, OpenError> {
    let mut warnings = Vec::new();
    let lacks = context.driver.lacks();
    if !lacks.is_empty() {
        warnings.push(format!("this NVML library lacks {}", lacks.join(" and ")));
    }
    context.host_pids = context.owner.sees_host_pids();
    if !context.host_pids {
        warnings.push(
            "GPU energy cannot be billed: the driver gives pids of the host, and this process \
             sees those of a container; run it in the host's pid namespace, or give it the host's \
             procfs with --procfs"
                .into(),
        );
    }
    let count = context.driver.device_count().map_err(|fault| {
        OpenError::new(false, format!("NVML cannot count its devices: {fault}"))
    })?;
    let mut devices: Vec<Device> = Vec::new();
    let mut failed = Vec::new();
    for index in 0..count {
        match Device::find(&*context.driver, index) {
            Ok(device) if devices.iter().any(|known| known.uuid() == device.uuid()) => {
                warnings.push(format!("NVML lists GPU {} twice", device.uuid()));
            }
            Ok(device) => devices.push(device),
            Err(problem) => failed.push((index, problem)),
        }
    }
    prime(context, &mut devices);
    warnings.extend(devices.iter().filter_map(|device| device.stand_in(options.interval)));
    Ok(Opened { devices, failed, warnings })
}

/// Watches the counters closely until each has moved twice: the first time is where the first window
/// begins, and both together tell how fast the counter refreshes. One that has not moved at all is
/// waited for a little longer, and then given up if the device draws power meanwhile.
fn prime<O: PidOwner>(context: &mut Context<O>, devices: &mut [Device]) {
    let start = Instant::now();
    loop {
        let elapsed = start.elapsed();
        for device in &mut *devices {
            device.prime(context, elapsed);
        }
        if elapsed >= FIRST_MOVE_WITHIN || devices.iter().all(|device| device.primed(elapsed)) {
            break;
        }
        std::thread::sleep(CLOSE_LOOK);
    }
    devices.iter_mut().for_each(Device::judge_first_look);
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
    devices: Vec<Device>,
    context: Context<O>,
    stopped: &'a Receiver<Instant>,
}

impl<O: PidOwner> Poller<'_, O> {
    fn run(mut self, options: &GpuOptions, words: &Sender<Word>) {
        if let Order::Finish(deadline) = self.rounds(options) {
            self.close(deadline);
        }
        // Before the driver is shut down, which may take its time or never come back.
        let _ = words.send(Word::End);
    }

    fn wait(&self, time: Duration) -> Order {
        match self.stopped.recv_timeout(time) {
            Ok(deadline) => Order::Finish(deadline),
            Err(RecvTimeoutError::Timeout) => Order::Continue,
            Err(RecvTimeoutError::Disconnected) => Order::Quit,
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
