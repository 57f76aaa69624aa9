//! Recording without waiting for the disk: events are written by a thread of their own.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use super::{Recorder, RecordingError};
use crate::event::Event;

/// Events on their way to the thread.
const QUEUE: usize = 1024;

/// Events that wait because the queue is full. Of a disk that is slower for longer, nothing is kept.
const MOST_WAITING: usize = 64 * 1024;

/// The recording's end of the queue.
#[derive(Debug)]
pub(crate) struct Background {
    /// `None` once the recording was given up.
    queue: Option<SyncSender<Event>>,
    /// The thread's last word.
    result: Receiver<Result<(), RecordingError>>,
    /// What found no room in the queue. Samples next to each other become one: their counters are
    /// cumulative, so nothing is lost but when.
    waiting: VecDeque<Event>,
    joined_samples: u64,
}

/// Why a recording is not, or not all, there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Incomplete {
    #[error(transparent)]
    Failed(#[from] RecordingError),
    #[error("the recording could not be written fast enough; what is missing at its end is lost")]
    TooSlow,
}

impl Background {
    pub(crate) fn start(mut recorder: Recorder) -> std::io::Result<Self> {
        let (queue, events) = sync_channel::<Event>(QUEUE);
        let (told, result) = sync_channel(1);
        std::thread::Builder::new().name("ecoprobe-record".into()).spawn(move || {
            let written = events.iter().try_for_each(|event| recorder.write(&event));
            // Nobody listens any more: then nobody misses it.
            let _ = told.send(written.and_then(|()| recorder.finish()));
        })?;
        Ok(Self { queue: Some(queue), result, waiting: VecDeque::new(), joined_samples: 0 })
    }

    /// Adds one event; never waits. The first failure is returned and ends the recording: what is
    /// written after it is dropped without another error.
    pub(crate) fn write(&mut self, event: &Event) -> Result<(), Incomplete> {
        if self.queue.is_none() {
            return Ok(());
        }
        self.flush();
        match (self.waiting.back_mut(), event) {
            (Some(Event::Sample(last)), Event::Sample(sample)) => {
                last.absorb(sample);
                self.joined_samples += 1;
            }
            _ => self.waiting.push_back(event.clone()),
        }
        self.flush();
        if let Ok(Err(error)) = self.result.try_recv() {
            self.queue = None;
            return Err(error.into());
        }
        if self.waiting.len() > MOST_WAITING {
            self.queue = None;
            self.waiting.clear();
            return Err(Incomplete::TooSlow);
        }
        Ok(())
    }

    /// Samples that became one with another, because the disk was slow.
    pub(crate) fn joined_samples(&self) -> u64 {
        self.joined_samples
    }

    fn flush(&mut self) {
        let Some(queue) = &self.queue else { return };
        while let Some(event) = self.waiting.pop_front() {
            match queue.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event) | TrySendError::Disconnected(event)) => {
                    self.waiting.push_front(event);
                    break;
                }
            }
        }
    }

    /// Writes what is left, for at most `patience`.
    pub(crate) fn finish(mut self, patience: Duration) -> Result<(), Incomplete> {
        const PAUSE: Duration = Duration::from_millis(2);
        if self.queue.is_none() {
            return Ok(());
        }
        let end = Instant::now() + patience;
        self.flush();
        while !self.waiting.is_empty() && Instant::now() < end {
            if let Ok(Err(error)) = self.result.try_recv() {
                return Err(error.into());
            }
            std::thread::sleep(PAUSE);
            self.flush();
        }
        if !self.waiting.is_empty() {
            return Err(Incomplete::TooSlow);
        }
        // The thread ends when there is nothing left to come.
        self.queue = None;
        match self.result.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(result) => Ok(result?),
            Err(RecvTimeoutError::Timeout) => Err(Incomplete::TooSlow),
            Err(RecvTimeoutError::Disconnected) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::base::WorkloadId;
    use crate::event::{CpuTimes, PackageTime, Sample};
    use crate::recording::tests::{header_of, workload};

    fn sample(ns: u64) -> Event {
        let workloads = vec![(WorkloadId(1), ns)];
        let packages = vec![PackageTime { idle: ns, other: ns, workloads }];
        let cpu = CpuTimes { packages, unplaced: PackageTime::default() };
        Event::Sample(Sample { mono_ns: ns, ends_window: true, cpu, energy: vec![None] })
    }

    fn header() -> Event {
        Event::Header(Box::new(header_of(1, 500.0)))
    }

    #[test]
    fn what_is_written_in_the_background_comes_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut background = Background::start(Recorder::create(file.path()).unwrap()).unwrap();
        for event in [header(), workload("a"), sample(5), sample(6)] {
            background.write(&event).unwrap();
        }
        background.finish(Duration::from_secs(5)).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap().lines().count(), 4);
    }

    #[test]
    fn a_stalled_disk_joins_samples_and_loses_no_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A reader that does not read yet.
        let reader = std::thread::spawn({
            let path = path.clone();
            move || fs::File::open(path).unwrap()
        });
        let mut background = Background::start(Recorder::create(&path).unwrap()).unwrap();
        let mut reader = reader.join().unwrap();
        background.write(&header()).unwrap();
        background.write(&workload("a")).unwrap();
        const SAMPLES: u64 = 20_000;
        for ns in 1..=SAMPLES {
            background.write(&sample(ns)).unwrap();
        }
        assert!(background.joined_samples() > SAMPLES / 2, "{}", background.joined_samples());
        let text = std::thread::spawn(move || {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
            text
        });
        background.finish(Duration::from_secs(20)).unwrap();
        let text = text.join().unwrap();
        let last: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(last["mono_ns"], SAMPLES);
        assert_eq!(last["cpu"]["packages"][0]["workloads"][0][1], SAMPLES);
    }

    #[test]
    fn a_failure_is_told_once() {
        let mut background = Background::start(Recorder::create("/dev/full".as_ref()).unwrap());
        let background = background.as_mut().unwrap();
        background.write(&header()).unwrap();
        let mut failures = 0;
        for ns in 1..20_000 {
            failures += u32::from(background.write(&sample(ns)).is_err());
            std::thread::sleep(Duration::from_micros(if failures == 0 { 500 } else { 0 }));
        }
        assert_eq!(failures, 1);
    }
}
