//! Hands each event to its consumers: the books, the recorder, the view. A live run and a replay differ
//! only in where events come from. No consumer can hold up the events: the books are arithmetic, and
//! what writes has a thread of its own.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::base::Patience;
use crate::base::own::Own;
use crate::energy::books::Books;
use crate::event::{Event, Header};
use crate::output::writer::{Failure, Pace, Writer};
use crate::output::{self, Output};
use crate::recording::{Background, Incomplete, Recorder};
use crate::view::{self, report::Report};

/// What a recording leaves for the report in a hurry.
const FOR_REPORT: Duration = Duration::from_millis(250);

/// The consumers of a run.
#[derive(Debug)]
pub(crate) struct Pipeline {
    books: Books,
    recorder: Option<Background>,
    recording_failed: bool,
    writer: Writer,
    pace: Pace,
    /// The table on a screen lists warnings itself.
    notes_in_report: bool,
}

/// Where a run's events go.
#[derive(Debug)]
pub(crate) struct Consumers {
    pub(crate) recorder: Option<Recorder>,
    pub(crate) output: Box<dyn Output>,
    pub(crate) notes_in_report: bool,
    pub(crate) pace: Pace,
}

impl Pipeline {
    /// Opens the books of the run that `header` describes.
    pub(crate) fn open(header: Header, consumers: Consumers) -> io::Result<Self> {
        let Consumers { recorder, output, notes_in_report, pace } = consumers;
        let writer = Writer::start(output, &header, pace)?;
        let recorder = recorder.map(Background::start).transpose()?;
        let mut pipeline = Self {
            books: Books::open(header.clone(), writer.shows_windows()),
            recorder,
            recording_failed: false,
            writer,
            pace,
            notes_in_report,
        };
        pipeline.record(&Event::Header(Box::new(header)));
        Ok(pipeline)
    }

    /// Whether an event makes more work than arithmetic.
    pub(crate) fn has_work(&self, event: &Event) -> bool {
        match event {
            Event::Sample(sample) => {
                self.recorder.is_some() || (sample.ends_window && self.writer.shows_windows())
            }
            _ => true,
        }
    }

    /// Takes in the next event.
    pub(crate) fn event(&mut self, event: &Event) {
        if let Event::Warning { message } = event {
            // Said once, however often it is found.
            if self.books.knows_warning(message) {
                return;
            }
            if !self.notes_in_report {
                self.writer.note(message.clone());
            }
        }
        let window_ended = self.books.apply(event);
        self.record(event);
        if window_ended
            && self.writer.shows_windows()
            && let Some(window) = view::window(&self.books)
        {
            self.writer.window(window);
        }
    }

    pub(crate) fn warn(&mut self, message: String) {
        self.event(&Event::Warning { message });
    }

    /// Whether the output takes no more: there is nothing left to go on for but the measuring.
    pub(crate) fn output_failed(&self) -> bool {
        self.writer.failure().is_some()
    }

    /// The report of everything so far, and the end of output and recording. `false` if what was asked
    /// for could not all be written; standard error has heard why, and where the report is.
    pub(crate) fn finish(mut self, own: Own, patience: &Patience) -> bool {
        if let Some(recorder) = self.recorder.take() {
            let joined = recorder.joined_samples();
            if joined > 0 {
                self.warn(format!(
                    "{joined} samples of the recording were taken together with the next, because it \
                     could not be written fast enough; a replay may share the energy of that time \
                     out differently"
                ));
            }
            if let Err(error) = recorder.finish(&patience.keeping(FOR_REPORT)) {
                self.recording_failed = true;
                self.warn(sentence(&error));
            }
        }
        let lost = self.writer.lost_windows();
        if let Some(said) = said_of_lost(lost)
            && !self.notes_in_report
        {
            self.writer.note(said);
        }
        self.books.finish();
        let report = view::report(&mut self.books, own);
        let whole = Arc::new(with_lost(report.clone(), lost));
        let failure = self.writer.finish(whole, patience).err();
        // Those that were still on their way did not arrive either.
        let to_rescue = || with_lost(report, self.writer.undelivered_windows());
        match failure {
            None => return !self.recording_failed,
            Some(Failure::NobodyReads) => {}
            Some(Failure::Broken) => {
                let why = "what writes the result has failed, which is a fault of ecoprobe";
                output::rescue_to_file(&to_rescue(), why);
            }
            // A recording can be replayed again.
            Some(_) if self.pace == Pace::Patient => {}
            Some(Failure::Said) => output::rescue_to_stderr(&to_rescue()),
            Some(Failure::Stalled) => {
                output::rescue_to_file(&to_rescue(), "nobody reads the result");
            }
        }
        false
    }

    /// Ends without a report: there will be no more events, and it is said elsewhere why.
    pub(crate) fn abandon(self) {
        self.writer.abandon();
    }

    fn record(&mut self, event: &Event) {
        if let Some(recorder) = &mut self.recorder
            && let Err(error) = recorder.write(event)
        {
            self.give_up_recording(&error);
        }
    }

    /// Without it the run goes on: what is being measured cannot be measured again.
    fn give_up_recording(&mut self, error: &Incomplete) {
        self.recorder = None;
        self.recording_failed = true;
        self.warn(format!("{}; the run goes on without it", sentence(error)));
    }
}

fn sentence(error: &Incomplete) -> String {
    let mut sentence = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        sentence += &format!(": {error}");
        cause = error.source();
    }
    sentence
}

fn said_of_lost(windows: u64) -> Option<String> {
    (windows > 0).then(|| {
        format!(
            "{windows} windows were not written, because the output did not take them; the report has \
             everything"
        )
    })
}

fn with_lost(mut report: Report, windows: u64) -> Report {
    report.own.windows_lost = windows;
    report.warnings.extend(said_of_lost(windows));
    report
}
