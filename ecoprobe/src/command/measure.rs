//! The loop that `watch` and `run` share: tick, show, and notice when it is over.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::run::child::Signals;
use crate::base::monotonic_ns;
use crate::cli::MeasureArgs;
use crate::collector::{CgroupChanges, Collector, Last};
use crate::host::priority::Undisturbed;
use crate::output::{self, Output};

/// One run: what is read, where it is shown, and how often.
pub(super) struct Measurement {
    collector: Collector,
    output: Box<dyn Output>,
    /// Why the output takes no more.
    failure: Option<Failure>,
    /// The table lists warnings itself.
    notes_in_report: bool,
    ticker: tokio::time::Interval,
    deadline: Option<Instant>,
    signals: Signals,
    cgroup_events: AsyncFd<OwnedFd>,
    /// While ticks are waited for and taken. To begin it and to end it are system calls: it lasts from
    /// one to the next where nothing else is to be done.
    undisturbed: Option<Undisturbed>,
    asked: Option<Instant>,
}

/// Why the loop woke up.
pub(super) enum Wake {
    Tick,
    Deadline,
    /// The time has come that was asked for.
    Asked,
    Signal(Signal),
    Cgroups(CgroupChanges),
}

impl Measurement {
    /// Must be called inside of a tokio runtime. `signals` must have been there before whatever is
    /// measured was started.
    pub(super) fn start(
        args: &MeasureArgs,
        collector: Collector,
        mut output: Box<dyn Output>,
        signals: Signals,
    ) -> anyhow::Result<Self> {
        output.begin(collector.session().header())?;
        let now = Instant::now();
        let mut ticker = interval_at(now + args.interval, args.interval);
        // After a pause the windows go on where they would have been; the late one is longer.
        ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let notes_in_report = output::shows_notes(&args.output);
        let events = collector.cgroup_events_fd()?;
        // SAFETY: an `OwnedFd` stays open, and the same, until it is dropped.
        let cgroup_events = unsafe { AsyncFd::register_with_interest(events, Interest::READABLE) }
            .context("cannot wait for the probe's events")?;
        let mut run = Self {
            collector,
            output,
            failure: None,
            notes_in_report,
            ticker,
            deadline: args.duration.map(|duration| now + duration),
            signals,
            cgroup_events,
            undisturbed: None,
            asked: None,
        };
        run.show_notes();
        Ok(run)
    }

    pub(super) fn collector(&mut self) -> &mut Collector {
        &mut self.collector
    }

    /// To wake up once at that time, CLOCK_MONOTONIC nanoseconds.
    pub(super) fn wake_at(&mut self, at_ns: Option<u64>) {
        let left = at_ns.map(|at| Duration::from_nanos(at.saturating_sub(monotonic_ns())));
        self.asked = left.map(|left| Instant::now() + left);
    }

    /// Waits for the next thing to happen.
    pub(super) async fn next(&mut self) -> anyhow::Result<Wake> {
        let deadline =
            self.deadline.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
        let has_deadline = self.deadline.is_some();
        let (asked, is_asked) = (self.asked.unwrap_or(deadline), self.asked.is_some());
        // Begun here, where time does not matter: the tick is on time, and done in one go.
        self.undisturbed.get_or_insert_with(Undisturbed::begin);
        let wake = tokio::select! {
            biased;
            signal = self.signals.next() => Wake::Signal(signal),
            () = tokio::time::sleep_until(deadline), if has_deadline => Wake::Deadline,
            _ = self.ticker.tick() => Wake::Tick,
            () = tokio::time::sleep_until(asked), if is_asked => Wake::Asked,
            ready = self.cgroup_events.readable() => {
                ready.context("cannot wait for the probe's events")?.clear_ready();
                Wake::Cgroups(self.collector.cgroup_events())
            }
        };
        if !matches!(wake, Wake::Tick | Wake::Deadline) {
            self.undisturbed = None;
        }
        Ok(wake)
    }

    /// A sample, and its window on the output.
    pub(super) fn tick(&mut self) {
        self.tick_and_show(Last::No);
    }

    /// The last sample, and its window.
    pub(super) fn last_tick(&mut self) {
        self.tick_and_show(Last::Yes);
    }

    fn tick_and_show(&mut self, last: Last) {
        let committed = self.collector.tick(last);
        if last == Last::Yes {
            self.undisturbed = None;
        }
        self.show_notes();
        if committed && self.output.shows_windows() {
            self.undisturbed = None;
            if let Some(window) = self.collector.session().window() {
                self.deliver(|output| output.window(&window));
            }
        }
    }

    /// Whether the output takes no more: there is nothing left to go on for but the measuring.
    pub(super) fn output_failed(&self) -> bool {
        self.failure.is_some()
    }

    /// The report of everything up to the last tick. `false` if what was asked for could not all be
    /// written; standard error has heard why, and the report where it would be lost otherwise.
    pub(super) fn finish(mut self, more_warnings: Vec<String>) -> bool {
        for warning in more_warnings {
            self.collector.warn(warning);
        }
        let report = self.collector.finish();
        self.show_notes();
        self.deliver(|output| output.finish(&report));
        if self.failure == Some(Failure::Said) {
            output::rescue(&report);
        }
        self.failure.is_none() && !self.collector.recording_failed()
    }

    fn show_notes(&mut self) {
        let notes = self.collector.notes();
        if !self.notes_in_report && !notes.is_empty() {
            self.undisturbed = None;
            self.deliver(|output| notes.iter().try_for_each(|note| output.note(note)));
        }
    }

    /// Hands something to the output, up to the first failure. That does not end the run by itself:
    /// what goes on here cannot be measured again, and `run` has a command to wait for.
    fn deliver(&mut self, write: impl FnOnce(&mut dyn Output) -> io::Result<()>) {
        if self.failure.is_none()
            && let Err(error) = write(self.output.as_mut())
        {
            let error = anyhow::Error::from(error);
            self.failure = Some(if output::is_closed_pipe(&error) {
                Failure::NobodyReads
            } else {
                output::note(&format!("{error:#}; try elsewhere with --output"));
                Failure::Said
            });
        }
    }
}

/// How the output came to take no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Its reader went away, and wants to hear nothing more.
    NobodyReads,
    /// Standard error has heard why.
    Said,
}

/// One thread does it all: a tick is microseconds.
pub(super) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")
}
