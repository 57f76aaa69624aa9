//! The loop that `watch` and `run` share: tick, tell, and notice when it is over.

use std::mem;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::Runtime;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::signals::{Signals, asks_for_the_end};
use crate::base::{Patience, monotonic_ns};
use crate::collector::{CgroupChanges, Collector, Last};
use crate::config::Measure;
use crate::event::{Event, Header};
use crate::host::priority::Undisturbed;
use crate::output::writer::Pace;
use crate::output::{self, Output};
use crate::pipeline::{Consumers, Pipeline};
use crate::recording::Recorder;
use crate::workload::names::Change;

/// Where the result goes, and the recording. Opened before there are [`Signals`]: a FIFO waits for its
/// reader, and what waits must be ended by a signal as usual.
pub(super) type Results = (Box<dyn Output>, Option<Recorder>);

/// How long the end may take once it was asked for: a signal ends a run within a second.
const HURRY: Duration = Duration::from_millis(800);

/// One run: what is read, what becomes of it, and how often.
pub(super) struct Measurement {
    collector: Collector,
    pipeline: Pipeline,
    ticker: tokio::time::Interval,
    rhythm: Rhythm,
    deadline: Option<Instant>,
    signals: Signals,
    /// A signal has asked for the end.
    end_asked_for: bool,
    /// With those who are waited for at the end.
    patience: Patience,
    cgroup_events: AsyncFd<OwnedFd>,
    /// While ticks are waited for and taken. To begin it and to end it are system calls: it lasts from
    /// one to the next where nothing else is to be done.
    undisturbed: Option<Undisturbed>,
    /// When to wake up besides.
    asked: Option<Instant>,
}

/// Counters are read as often as they need; windows end as often as was asked for.
#[derive(Debug)]
struct Rhythm {
    start: Instant,
    period: Duration,
    /// Ticks in a window.
    ticks: u32,
    windows: u128,
}

/// Counters are read at least so often, whether or not they could wrap: with each reading what a GPU's
/// driver told is taken over, a driver that hangs is noticed, and a CPU that came online is placed.
const LONGEST_PERIOD: Duration = Duration::from_secs(10);

impl Rhythm {
    fn new(start: Instant, interval: Duration, longest: Option<Duration>) -> Self {
        let longest = longest.map_or(LONGEST_PERIOD, |longest| longest.min(LONGEST_PERIOD));
        let needed = interval.as_secs_f64() / longest.as_secs_f64().max(0.001);
        let ticks = needed.ceil().clamp(1.0, f64::from(u32::MAX)) as u32;
        Self { start, period: interval / ticks, ticks, windows: 0 }
    }

    /// Whether a window ends with the tick that was due at `due`.
    fn ends_window(&mut self, due: Instant) -> bool {
        let window = self.period * self.ticks;
        // Half a period of tolerance: the division of the interval rounds.
        let passed = due.saturating_duration_since(self.start) + self.period / 2;
        let windows = passed.as_nanos() / window.as_nanos().max(1);
        mem::replace(&mut self.windows, windows) < windows
    }
}

/// Why the loop woke up.
pub(super) enum Wake {
    /// With the time at which it was due.
    Tick(Instant),
    Deadline,
    /// The time has come that was asked for.
    Asked,
    Signal(Signal),
    Cgroups(CgroupChanges),
}

impl Measurement {
    /// Takes the first sample. Must be called inside of a tokio runtime. `signals` must have been there
    /// before whatever is measured was started.
    pub(super) fn start(
        config: &Measure,
        (mut collector, header): (Collector, Header),
        (output, recorder): Results,
        signals: Signals,
    ) -> anyhow::Result<Self> {
        let longest = collector.longest_interval();
        let patience = Patience::default();
        collector.share(&patience);
        let consumers = Consumers {
            recorder,
            output,
            notes_in_report: output::shows_notes(&config.output),
            pace: Pace::Live,
        };
        let mut pipeline = Pipeline::open(header, consumers)?;
        let emit = &mut |event: &Event| pipeline.event(event);
        collector.begin(emit);
        collector.tick(Last::No, true, emit);

        let now = Instant::now();
        let rhythm = Rhythm::new(now, config.interval, longest);
        let mut ticker = interval_at(now + rhythm.period, rhythm.period);
        // After a pause the windows go on where they would have been; the late one is longer.
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let events = collector.cgroup_events_fd()?;
        // SAFETY: an `OwnedFd` stays open, and the same, until it is dropped.
        let cgroup_events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .context("cannot wait for the probe's events")?;
        Ok(Self {
            collector,
            pipeline,
            ticker,
            rhythm,
            deadline: config.duration.map(|duration| now + duration),
            signals,
            end_asked_for: false,
            patience,
            cgroup_events,
            undisturbed: None,
            asked: None,
        })
    }

    pub(super) fn apply(&mut self, changes: Vec<Change>) -> anyhow::Result<()> {
        let Self { collector, pipeline, .. } = self;
        for change in changes {
            collector.apply(change, &mut |event| pipeline.event(event))?;
        }
        Ok(())
    }

    /// What became of cgroups since it was told last.
    pub(super) fn cgroup_changes(&mut self) -> CgroupChanges {
        self.collector.cgroup_events()
    }

    /// New cgroups that have not begun by now are nobody's, but for the `undecided`.
    pub(super) fn settle_newcomers(&mut self, undecided: impl Fn(u64) -> bool) {
        self.collector.settle_newcomers(undecided);
    }

    /// Asks to be woken at a time, CLOCK_MONOTONIC nanoseconds.
    pub(super) fn wake_at(&mut self, at_ns: Option<u64>) {
        let left = at_ns.map(|at| Duration::from_nanos(at.saturating_sub(monotonic_ns())));
        self.asked = left.map(|left| Instant::now() + left);
    }

    /// Moves the deadline to so long from now.
    pub(super) fn end_after(&mut self, time: Option<Duration>) {
        self.deadline = time.map(|time| Instant::now() + time);
    }

    pub(super) fn warn(&mut self, message: String) {
        self.pipeline.warn(message);
    }

    /// Waits for the next thing to happen.
    pub(super) async fn next(&mut self) -> anyhow::Result<Wake> {
        let deadline =
            self.deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
        let has_deadline = self.deadline.is_some();
        let (asked, has_asked) = (self.asked.unwrap_or(deadline), self.asked.is_some());
        // Begun here, where time does not matter: the tick is on time, and done in one go.
        self.undisturbed.get_or_insert_with(Undisturbed::begin);
        let wake = tokio::select! {
            biased;
            signal = self.signals.next() => Wake::Signal(signal),
            () = tokio::time::sleep_until(deadline), if has_deadline => Wake::Deadline,
            () = tokio::time::sleep_until(asked), if has_asked => Wake::Asked,
            due = self.ticker.tick() => Wake::Tick(due),
            ready = self.cgroup_events.readable() => {
                ready.context("cannot wait for the probe's events")?.clear_ready();
                Wake::Cgroups(self.collector.cgroup_events())
            }
        };
        if !matches!(wake, Wake::Tick(_) | Wake::Deadline) {
            self.undisturbed = None;
        }
        if let Wake::Signal(signal) = wake {
            self.end_asked_for |= asks_for_the_end(signal);
        }
        Ok(wake)
    }

    /// A signal that asks for an end, if it has come already.
    pub(super) async fn end_already(&mut self) -> Option<Signal> {
        self.signals.end_already().await
    }

    /// The loop is over. What is left waits for others: as long as they take, but not for long once a
    /// signal asks for the end, or if one has.
    pub(super) fn leave_loop(&mut self, runtime: Runtime) {
        // Its priority is not for the thread.
        self.undisturbed = None;
        if self.end_asked_for {
            self.patience.hurry(HURRY);
            return;
        }
        let (mut signals, patience) = (mem::take(&mut self.signals), self.patience.clone());
        let hear = move || {
            runtime.block_on(signals.next_end());
            patience.hurry(HURRY);
        };
        let thread = std::thread::Builder::new().name("ecoprobe-signals".into());
        if thread.spawn(hear).is_err() {
            // Without a thread nobody would hear them.
            self.patience.hurry(HURRY);
        }
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// A sample, and perhaps the end of a window.
    pub(super) fn tick(&mut self, due: Instant) {
        let ends_window = self.rhythm.ends_window(due);
        self.take_sample(Last::No, ends_window);
    }

    /// The last sample, and its window.
    pub(super) fn last_tick(&mut self) {
        self.undisturbed = Some(Undisturbed::begin());
        self.take_sample(Last::Yes, true);
        self.undisturbed = None;
    }

    fn take_sample(&mut self, last: Last, ends_window: bool) {
        let Self { collector, pipeline, undisturbed, .. } = self;
        collector.tick(last, ends_window, &mut |event| {
            // What is made of it is not part of the tick any more.
            if pipeline.has_work(event) {
                *undisturbed = None;
            }
            pipeline.event(event);
        });
    }

    /// Whether the output takes no more: there is nothing left to go on for but the measuring.
    pub(super) fn output_failed(&self) -> bool {
        self.pipeline.output_failed()
    }

    /// The report of everything up to the last tick. `false` if what was asked for could not all be
    /// written; standard error has heard why, and where the report is.
    pub(super) fn finish(self, more_warnings: Vec<String>) -> bool {
        let Self { mut collector, mut pipeline, patience, .. } = self;
        for warning in more_warnings {
            pipeline.warn(warning);
        }
        let own = collector.finish(&mut |event| pipeline.event(event));
        pipeline.finish(own, &patience)
    }
}

/// One thread does it all: a tick is microseconds.
pub(super) fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The ticks of a window, and which of the first `count` ticks end one.
    fn rhythm(interval: u64, longest: Option<u64>, count: u32) -> (Duration, Vec<u32>) {
        let seconds = Duration::from_secs;
        let start = Instant::now();
        let mut rhythm = Rhythm::new(start, seconds(interval), longest.map(seconds));
        let period = rhythm.period;
        let ends = |tick: &u32| rhythm.ends_window(start + period * *tick);
        (period, (1..=count).filter(ends).collect())
    }

    #[test]
    fn a_window_holds_as_many_readings_as_its_counters_need() {
        let seconds = Duration::from_secs;
        assert_eq!(rhythm(1, None, 3), (seconds(1), vec![1, 2, 3]));
        assert_eq!(rhythm(1, Some(11), 3), (seconds(1), vec![1, 2, 3]));
        assert_eq!(rhythm(40, Some(10), 9), (seconds(10), vec![4, 8]));
        assert_eq!(rhythm(60, Some(6), 20), (seconds(6), vec![10, 20]));
        // One that does not divide without a rest.
        let (period, ends) = rhythm(10, Some(3), 4000);
        assert_eq!(period, seconds(10) / 4);
        assert_eq!(ends, (1..=1000).map(|window| window * 4).collect::<Vec<_>>());
    }

    #[test]
    fn however_long_the_window_its_counters_are_read_in_time() {
        let year = 365 * 24 * 3600;
        let (period, _) = rhythm(year, Some(5), 1);
        assert!(period <= Duration::from_secs(5), "{period:?}");
        // Those that never wrap, too.
        for longest in [None, Some(3600)] {
            assert_eq!(rhythm(3600, longest, 720), (LONGEST_PERIOD, vec![360, 720]));
        }
    }

    #[test]
    fn a_window_whose_last_tick_was_missed_ends_with_the_next() {
        let start = Instant::now();
        let seconds = Duration::from_secs;
        let mut rhythm = Rhythm::new(start, seconds(40), Some(seconds(11)));
        let ends: Vec<bool> =
            [10, 20, 30, 50, 60, 80].map(|at| rhythm.ends_window(start + seconds(at))).into();
        assert_eq!(ends, [false, false, false, true, false, true]);
    }
}
