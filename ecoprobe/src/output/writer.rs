//! The thread that writes: a reader that stalls, or a terminal that is stopped, costs windows and never
//! a tick or a signal.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Output, is_closed_pipe, progress};
use crate::base::Patience;
use crate::event::Header;
use crate::view::report::{Report, WindowReport};

/// How many windows and notes may wait.
const MOST_WAITING: usize = 256;
/// And how many rows of windows, before the next window.
const ROWS_WAITING: usize = 64 * 1024;

const PAUSE: Duration = Duration::from_millis(2);

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
    /// The thread has panicked.
    Broken,
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
    thread: JoinHandle<()>,
    shared: Arc<Shared>,
    pace: Pace,
    shows_windows: bool,
    /// All that there were.
    windows: u64,
    /// Those that found no room.
    refused_windows: u64,
}

/// What the thread tells.
#[derive(Debug, Default)]
struct Shared {
    failed: AtomicU8,
    delivered_windows: AtomicU64,
    /// Of windows that wait, or are being written.
    rows_waiting: AtomicUsize,
}

const GOOD: u8 = 0;
const NOBODY_READS: u8 = 1;
const SAID: u8 = 2;
const BROKEN: u8 = 3;

/// Has a panic of the thread known.
struct PanicNotice(Arc<Shared>);

impl Drop for PanicNotice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.failed.store(BROKEN, Ordering::Release);
        }
    }
}

impl Writer {
    /// Begins the output, and starts the thread that goes on with it.
    pub(crate) fn start(
        mut output: Box<dyn Output>,
        header: &Header,
        pace: Pace,
    ) -> io::Result<Self> {
        output.begin(header)?;
        let shows_windows = output.shows_windows();
        let (queue, messages) = sync_channel::<Message>(MOST_WAITING);
        let (told, done) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let told_by = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("ecoprobe-output".into());
        let thread = thread.spawn(move || {
            let shared = told_by;
            let _notice = PanicNotice(Arc::clone(&shared));
            for message in messages {
                let finished = matches!(message, Message::Finish(_));
                let (windows, rows) = match &message {
                    Message::Window(window) => (1, rows(window)),
                    _ => (0, 0),
                };
                // What goes on cannot be measured again: a failure does not end the run by itself.
                if shared.failed.load(Ordering::Acquire) == GOOD {
                    match deliver(output.as_mut(), message) {
                        Ok(()) => {
                            shared.delivered_windows.fetch_add(windows, Ordering::AcqRel);
                        }
                        Err(error) => shared.failed.store(say(error, pace), Ordering::Release),
                    }
                }
                shared.rows_waiting.fetch_sub(rows, Ordering::AcqRel);
                if finished {
                    break;
                }
            }
            // With it goes what it has on the screen.
            drop(output);
            let _ = told.send(());
        })?;
        let (windows, refused_windows) = (0, 0);
        Ok(Self { queue, done, thread, shared, pace, shows_windows, windows, refused_windows })
    }

    /// Whether anybody sees windows. Where nobody does they are not worked out.
    pub(crate) fn shows_windows(&self) -> bool {
        self.shows_windows
    }

    pub(crate) fn window(&mut self, window: WindowReport) {
        self.windows += 1;
        let rows = rows(&window);
        let is_full = || self.shared.rows_waiting.load(Ordering::Acquire) >= ROWS_WAITING;
        while is_full() && self.pace == Pace::Patient && !self.thread.is_finished() {
            std::thread::sleep(PAUSE);
        }
        if !is_full() {
            self.shared.rows_waiting.fetch_add(rows, Ordering::AcqRel);
            if self.send(Message::Window(Box::new(window))) {
                return;
            }
            self.shared.rows_waiting.fetch_sub(rows, Ordering::AcqRel);
        }
        self.refused_windows += 1;
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

    /// Windows that are not in the output, nor on their way.
    pub(crate) fn lost_windows(&self) -> u64 {
        match self.failure() {
            None => self.refused_windows,
            Some(_) => self.undelivered_windows(),
        }
    }

    /// Windows that are not in the output.
    pub(crate) fn undelivered_windows(&self) -> u64 {
        self.windows - self.shared.delivered_windows.load(Ordering::Acquire)
    }

    /// Why the output takes no more, if it does not.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self.shared.failed.load(Ordering::Acquire) {
            GOOD => None,
            NOBODY_READS => Some(Failure::NobodyReads),
            BROKEN => Some(Failure::Broken),
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

    /// Writes the report and waits for the end of it. Nothing can be handed over after it.
    pub(crate) fn finish(
        &mut self,
        report: Arc<Report>,
        patience: &Patience,
    ) -> Result<(), Failure> {
        let mut message = Message::Finish(report);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if !patience.is_over() => {
                    message = back;
                    std::thread::sleep(PAUSE);
                }
                Err(TrySendError::Full(_)) => return Err(Failure::Stalled),
                // The thread is gone; what it said last tells why.
                Err(TrySendError::Disconnected(_)) => {
                    return Err(self.failure().unwrap_or(Failure::Broken));
                }
            }
        }
        match patience.receive(&self.done) {
            Ok(()) => self.failure().map_or(Ok(()), Err),
            Err(RecvTimeoutError::Timeout) => Err(Failure::Stalled),
            Err(RecvTimeoutError::Disconnected) => Err(Failure::Broken),
        }
    }
}

/// What a window takes, in rows; one with no workload is not for nothing.
fn rows(window: &WindowReport) -> usize {
    window.workloads.len() + 1
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
    use std::time::Instant;

    use super::*;
    use crate::output::table::fixtures::{header, report, window};

    fn soon(milliseconds: u64) -> Patience {
        Duration::from_millis(milliseconds).into()
    }

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
        let writer = Writer::start(Box::new(gate), &header(), Pace::Live).unwrap();
        (writer, open, saw)
    }

    #[test]
    fn a_reader_that_stalls_costs_windows_and_they_are_counted() {
        let (mut writer, open, saw) = gate();
        for _ in 0..10 {
            writer.window(window(ROWS_WAITING / 4));
        }
        // Four are too much, of which one may be being written.
        let lost = writer.lost_windows();
        assert_eq!(lost, 6);
        (0..20).for_each(|_| open.send(()).unwrap());
        writer.finish(Arc::new(report()), &soon(10_000)).unwrap();
        let seen: Vec<_> = saw.try_iter().collect();
        assert_eq!(seen.len() as u64, 10 - lost + 1);
        assert_eq!(seen.last(), Some(&"report"));
        assert_eq!(writer.undelivered_windows(), lost);
    }

    #[test]
    fn a_reader_that_never_reads_is_not_waited_for() {
        let (mut writer, _open, _saw) = gate();
        for _ in 0..10 {
            writer.window(window(1));
        }
        let start = Instant::now();
        let outcome = writer.finish(Arc::new(report()), &soon(100));
        assert_eq!(outcome, Err(Failure::Stalled));
        assert_eq!(writer.undelivered_windows(), 10, "those on their way count");
        assert!(start.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn a_replay_waits_for_room_and_loses_nothing() {
        let ((open, gate), (seen, saw)) = (channel(), channel());
        let gate = Gate { open: Arc::new(Mutex::new(gate)), seen };
        let mut writer = Writer::start(Box::new(gate), &header(), Pace::Patient).unwrap();
        let sender = std::thread::spawn(move || {
            (0..10).for_each(|_| writer.window(window(ROWS_WAITING / 4)));
            writer
        });
        std::thread::sleep(Duration::from_millis(100));
        assert!(!sender.is_finished(), "no room for ten");
        (0..11).for_each(|_| open.send(()).unwrap());
        let mut writer = sender.join().unwrap();
        writer.finish(Arc::new(report()), &soon(10_000)).unwrap();
        assert_eq!((saw.try_iter().count(), writer.undelivered_windows()), (11, 0));
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
        let mut writer = Writer::start(Box::new(Broken), &header(), Pace::Patient).unwrap();
        writer.window(window(1));
        writer.window(window(1));
        assert_eq!(writer.finish(Arc::new(report()), &soon(10_000)), Err(Failure::Said));
        assert_eq!((writer.lost_windows(), writer.undelivered_windows()), (2, 2));
    }

    #[derive(Debug)]
    struct Panicking;

    impl Output for Panicking {
        fn window(&mut self, _: &WindowReport) -> io::Result<()> {
            panic!("as a test expects")
        }

        fn note(&mut self, _: &str) -> io::Result<()> {
            Ok(())
        }

        fn finish(&mut self, _: &Report) -> io::Result<()> {
            panic!("as a test expects")
        }
    }

    #[test]
    fn an_output_that_panics_is_told_from_one_that_nobody_reads() {
        for windows in [0, 1] {
            let mut writer = Writer::start(Box::new(Panicking), &header(), Pace::Live).unwrap();
            (0..windows).for_each(|_| writer.window(window(1)));
            let outcome = writer.finish(Arc::new(report()), &soon(10_000));
            assert_eq!(outcome, Err(Failure::Broken));
            assert_eq!(writer.failure(), Some(Failure::Broken));
        }
    }
}
