//! The thread that writes: a reader that stalls, or a terminal that is stopped, costs windows and never
//! a tick or a signal.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use super::{Output, is_closed_pipe, progress};
use crate::event::Header;
use crate::view::report::{Report, WindowReport};

/// How many windows may wait, by how many workloads are in one.
const MOST_WAITING: usize = 256;
const LEAST_WAITING: usize = 4;
const ROWS_WAITING: usize = 64 * 1024;

#[derive(Debug)]
enum Message {
    Window(Box<WindowReport>),
    Note(String),
    Finish(Arc<Report>),
}

/// How the output came to take no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Its reader went away, and wants to hear nothing more.
    NobodyReads,
    /// Standard error has heard why.
    Said,
    /// Its reader does not read.
    Stalled,
}

/// What a full queue means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Windows are left out: what is measured does not wait.
    Live,
    /// The sender waits: a recording has time.
    Patient,
}

/// The sender's end of the queue.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: SyncSender<Message>,
    /// The thread's last word: the report is written, or it never will be.
    done: Receiver<()>,
    failed: Arc<AtomicU8>,
    pace: Pace,
    shows_windows: bool,
    lost_windows: u64,
}

const GOOD: u8 = 0;
const NOBODY_READS: u8 = 1;
const SAID: u8 = 2;

impl Writer {
    /// Begins the output, and starts the thread that goes on with it.
    pub(crate) fn start(
        mut output: Box<dyn Output>,
        header: &Header,
        rows: usize,
        pace: Pace,
    ) -> io::Result<Self> {
        output.begin(header)?;
        let shows_windows = output.shows_windows();
        let room = (ROWS_WAITING / (rows + 1)).clamp(LEAST_WAITING, MOST_WAITING);
        let (queue, messages) = sync_channel::<Message>(room);
        let (told, done) = sync_channel(1);
        let failed = Arc::new(AtomicU8::new(GOOD));
        let state = Arc::clone(&failed);
        std::thread::Builder::new().name("ecoprobe-output".into()).spawn(move || {
            for message in messages {
                let finished = matches!(message, Message::Finish(_));
                // What goes on cannot be measured again: a failure does not end the run by itself.
                if state.load(Ordering::Acquire) == GOOD
                    && let Err(error) = deliver(output.as_mut(), message)
                {
                    state.store(say(error, pace), Ordering::Release);
                }
                if finished {
                    break;
                }
            }
            let _ = told.send(());
        })?;
        Ok(Self { queue, done, failed, pace, shows_windows, lost_windows: 0 })
    }

    /// Whether anybody sees windows. Where nobody does they are not worked out.
    pub(crate) fn shows_windows(&self) -> bool {
        self.shows_windows
    }

    pub(crate) fn window(&mut self, window: WindowReport) {
        if !self.send(Message::Window(Box::new(window))) {
            self.lost_windows += 1;
        }
    }

    /// For standard error, without spoiling what is on the screen.
    pub(crate) fn note(&mut self, note: String) {
        // A note that finds no room stands in the report.
        self.send(Message::Note(note));
    }

    fn send(&self, message: Message) -> bool {
        match self.pace {
            Pace::Patient => self.queue.send(message).is_ok(),
            Pace::Live => self.queue.try_send(message).is_ok(),
        }
    }

    /// Windows that found no room.
    pub(crate) fn lost_windows(&self) -> u64 {
        self.lost_windows
    }

    /// Why the output takes no more, if it does not.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self.failed.load(Ordering::Acquire) {
            GOOD => None,
            NOBODY_READS => Some(Failure::NobodyReads),
            _ => Some(Failure::Said),
        }
    }

    /// Waits for what was handed over to be written, without a report.
    pub(crate) fn abandon(self) {
        let Self { queue, done, .. } = self;
        drop(queue);
        // An error is that the thread has ended already.
        let _ = done.recv();
    }

    /// Writes the report and waits for the end of it, at most for `patience`.
    pub(crate) fn finish(self, report: Arc<Report>, patience: Duration) -> Result<(), Failure> {
        const PAUSE: Duration = Duration::from_millis(2);
        let end = Instant::now() + patience;
        let mut message = Message::Finish(report);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < end => {
                    message = back;
                    std::thread::sleep(PAUSE);
                }
                Err(TrySendError::Full(_)) => return Err(Failure::Stalled),
                // The thread is gone; what it said last tells why.
                Err(TrySendError::Disconnected(_)) => {
                    return Err(self.failure().unwrap_or(Failure::Said));
                }
            }
        }
        if self.done.recv_timeout(end.saturating_duration_since(Instant::now())).is_err() {
            return Err(Failure::Stalled);
        }
        self.failure().map_or(Ok(()), Err)
    }
}

fn deliver(output: &mut dyn Output, message: Message) -> io::Result<()> {
    match message {
        Message::Window(window) => output.window(&window),
        Message::Note(note) => output.note(&note),
        Message::Finish(report) => output.finish(&report),
    }
}

/// Says why, unless nobody wants to hear it.
fn say(error: io::Error, pace: Pace) -> u8 {
    let error = anyhow::Error::from(error);
    if is_closed_pipe(&error) {
        return NOBODY_READS;
    }
    // A replay can be run again.
    let advice = if pace == Pace::Live { "; try elsewhere with --output" } else { "" };
    progress::note(&format!("{error:#}{advice}"));
    SAID
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::output::table::fixtures::{header, report, window};

    /// Writes when it is told to.
    #[derive(Debug)]
    struct Gate {
        open: Arc<Mutex<Receiver<()>>>,
        seen: Sender<&'static str>,
    }

    impl Gate {
        fn pass(&self, what: &'static str) -> io::Result<()> {
            let _ = self.open.lock().unwrap().recv();
            let _ = self.seen.send(what);
            Ok(())
        }
    }

    impl Output for Gate {
        fn window(&mut self, _: &WindowReport) -> io::Result<()> {
            self.pass("window")
        }

        fn note(&mut self, _: &str) -> io::Result<()> {
            self.pass("note")
        }

        fn finish(&mut self, _: &Report) -> io::Result<()> {
            self.pass("report")
        }
    }

    fn gate() -> (Writer, Sender<()>, Receiver<&'static str>) {
        let ((open, gate), (seen, saw)) = (channel(), channel());
        let gate = Gate { open: Arc::new(Mutex::new(gate)), seen };
        let writer = Writer::start(Box::new(gate), &header(), 100_000, Pace::Live).unwrap();
        (writer, open, saw)
    }

    #[test]
    fn a_reader_that_stalls_costs_windows_and_they_are_counted() {
        let (mut writer, open, saw) = gate();
        for _ in 0..10 {
            writer.window(window(1));
        }
        // One is being written, and as many wait as find room.
        let lost = writer.lost_windows();
        assert!(
            (10 - LEAST_WAITING as u64 - 1..=10 - LEAST_WAITING as u64).contains(&lost),
            "{lost}"
        );
        (0..20).for_each(|_| open.send(()).unwrap());
        writer.finish(Arc::new(report()), Duration::from_secs(10)).unwrap();
        let seen: Vec<_> = saw.iter().collect();
        assert_eq!(seen.len() as u64, 10 - lost + 1);
        assert_eq!(seen.last(), Some(&"report"));
    }

    #[test]
    fn a_reader_that_never_reads_is_not_waited_for() {
        let (mut writer, _open, _saw) = gate();
        for _ in 0..10 {
            writer.window(window(1));
        }
        let start = Instant::now();
        let outcome = writer.finish(Arc::new(report()), Duration::from_millis(100));
        assert_eq!(outcome, Err(Failure::Stalled));
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[derive(Debug)]
    struct Broken;

    impl Output for Broken {
        fn window(&mut self, _: &WindowReport) -> io::Result<()> {
            Err(io::Error::other("no"))
        }

        fn note(&mut self, _: &str) -> io::Result<()> {
            Ok(())
        }

        fn finish(&mut self, _: &Report) -> io::Result<()> {
            panic!("a broken output is left alone")
        }
    }

    #[test]
    fn an_output_that_fails_says_so_once_and_is_left_alone() {
        let mut writer = Writer::start(Box::new(Broken), &header(), 1, Pace::Patient).unwrap();
        writer.window(window(1));
        writer.window(window(1));
        assert_eq!(writer.finish(Arc::new(report()), Duration::from_secs(10)), Err(Failure::Said));
    }
}
