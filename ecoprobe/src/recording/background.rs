//! Recording without waiting for the disk: events are written by a thread of their own.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{
    Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel,
};
use std::time::Duration;

use super::{Recorder, RecordingError};
use crate::base::Patience;
use crate::event::{Event, PackageTime, Sample};

/// Events on their way to the thread, and the most that they may weigh together.
const QUEUE: usize = 1024;
const MOST_ON_THE_WAY: usize = 1 << 18;

/// What may wait because the queue is full, by weight. Of a disk that is slower for longer, nothing is
/// kept.
const MOST_WAITING: usize = 1 << 20;

/// About how much memory an event takes, in entries of a workload's CPU time, 16 bytes each: a sample
/// has as many as workloads ran.
fn weight(event: &Event) -> usize {
    const EVENT: usize = 16;
    EVENT
        + match event {
            Event::Sample(Sample { cpu, .. }) => {
                let times = cpu.packages.iter().chain([&cpu.unplaced]);
                let counts = |time: &PackageTime| {
                    let features = time.features.values().map(|counts| counts.workloads.len());
                    time.workloads.len() + features.sum::<usize>()
                };
                times.map(counts).sum()
            }
            Event::Gpu(window) => 3 * window.usage.len(),
            // Its names.
            Event::Workload(_) => EVENT,
            _ => 0,
        }
}

/// The recording's end of the queue.
#[derive(Debug)]
pub(crate) struct Background {
    /// `None` once the recording was given up.
    queue: Option<SyncSender<Event>>,
    /// The thread's last word.
    result: Receiver<Result<(), RecordingError>>,
    /// Weight of what is in the queue or being written.
    on_the_way: Arc<AtomicUsize>,
    /// What found no room in the queue. Samples with nothing but GPU windows between them become one:
    /// their counters are cumulative, so nothing is lost but when.
    waiting: VecDeque<Event>,
    waiting_weight: usize,
    /// Samples, joined ones as one, and those that were joined to another.
    samples: u64,
    joined_samples: u64,
}

/// Why a recording is not, or not all, there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Incomplete {
    #[error(transparent)]
    Failed(#[from] RecordingError),
    #[error("the recording could not be written fast enough; what is missing at its end is lost")]
    TooSlow,
    #[error(
        "what writes the recording has failed, which is a fault of ecoprobe; what is missing at its end \
         is lost"
    )]
    Panicked,
}

impl Background {
    pub(crate) fn start(mut recorder: Recorder) -> std::io::Result<Self> {
        let (queue, events) = sync_channel::<Event>(QUEUE);
        let (told, result) = sync_channel(1);
        let on_the_way = Arc::new(AtomicUsize::new(0));
        let taken = Arc::clone(&on_the_way);
        std::thread::Builder::new().name("ecoprobe-record".into()).spawn(move || {
            let written = events.iter().try_for_each(|event| {
                let written = recorder.write(&event);
                taken.fetch_sub(weight(&event), Ordering::Relaxed);
                written
            });
            // Nobody listens any more: then nobody misses it.
            let _ = told.send(written.and_then(|()| recorder.finish()));
        })?;
        Ok(Self {
            queue: Some(queue),
            result,
            on_the_way,
            waiting: VecDeque::new(),
            waiting_weight: 0,
            samples: 0,
            joined_samples: 0,
        })
    }

    /// Adds one event; never waits. The first failure is returned and ends the recording: what is
    /// written after it is dropped without another error.
    pub(crate) fn write(&mut self, event: &Event) -> Result<(), Incomplete> {
        if self.queue.is_none() {
            return Ok(());
        }
        self.flush();
        match event {
            Event::Sample(sample) => {
                let last = self.take_last_sample();
                self.samples += u64::from(last.is_none());
                self.joined_samples += u64::from(last.is_some());
                self.wait(Event::Sample(match last {
                    None => sample.clone(),
                    Some(mut last) => {
                        last.absorb(sample);
                        last
                    }
                }));
            }
            event => self.wait(event.clone()),
        }
        self.flush();
        if let Some(error) = self.failure() {
            self.queue = None;
            return Err(error);
        }
        if self.waiting_weight > MOST_WAITING && self.waiting.len() > 1 {
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

    fn wait(&mut self, event: Event) {
        self.waiting_weight += weight(&event);
        self.waiting.push_back(event);
    }

    /// The sample that the next one can be joined to, if it still waits. The joined one stands behind
    /// the GPU windows between the two, which the later one's window has to show. The first sample
    /// stays what it is: the run begins there.
    fn take_last_sample(&mut self) -> Option<Sample> {
        let gpus = self.waiting.iter().rev().take_while(|event| matches!(event, Event::Gpu(_)));
        let index = self.waiting.len().checked_sub(gpus.count() + 1)?;
        if self.samples < 2 || !matches!(self.waiting[index], Event::Sample(_)) {
            return None;
        }
        let event = self.waiting.remove(index)?;
        self.waiting_weight -= weight(&event);
        let Event::Sample(sample) = event else { return None };
        Some(sample)
    }

    fn flush(&mut self) {
        let Some(queue) = &self.queue else { return };
        while let Some(event) = self.waiting.pop_front() {
            let weight = weight(&event);
            // Before it is sent: the thread takes it off again.
            let before = self.on_the_way.fetch_add(weight, Ordering::Relaxed);
            let sent = if before > 0 && before + weight > MOST_ON_THE_WAY {
                Err(TrySendError::Full(event))
            } else {
                queue.try_send(event)
            };
            match sent {
                Ok(()) => self.waiting_weight -= weight,
                Err(TrySendError::Full(event) | TrySendError::Disconnected(event)) => {
                    self.on_the_way.fetch_sub(weight, Ordering::Relaxed);
                    self.waiting.push_front(event);
                    break;
                }
            }
        }
    }

    /// Why the thread has ended before its time, if it has.
    fn failure(&self) -> Option<Incomplete> {
        match self.result.try_recv() {
            Ok(result) => result.err().map(Into::into),
            Err(TryRecvError::Disconnected) => Some(Incomplete::Panicked),
            Err(TryRecvError::Empty) => None,
        }
    }

    /// Writes what is left.
    pub(crate) fn finish(mut self, patience: &Patience) -> Result<(), Incomplete> {
        const PAUSE: Duration = Duration::from_millis(2);
        if self.queue.is_none() {
            return Ok(());
        }
        self.flush();
        while !self.waiting.is_empty() && !patience.is_over() {
            if let Some(error) = self.failure() {
                return Err(error);
            }
            std::thread::sleep(PAUSE);
            self.flush();
        }
        if !self.waiting.is_empty() {
            return Err(Incomplete::TooSlow);
        }
        // The thread ends when there is nothing left to come.
        self.queue = None;
        match patience.receive(&self.result) {
            Ok(result) => Ok(result?),
            Err(RecvTimeoutError::Timeout) => Err(Incomplete::TooSlow),
            Err(RecvTimeoutError::Disconnected) => Err(Incomplete::Panicked),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::base::WorkloadId;
    use crate::event::{CpuTimes, Workload};
    use crate::recording::tests::{gpu, header_of, workload};

    fn sample(ns: u64) -> Event {
        let workloads = vec![(WorkloadId(1), ns)];
        let packages =
            vec![PackageTime { idle: ns, other: ns, workloads, ..PackageTime::default() }];
        let cpu = CpuTimes { packages, unplaced: PackageTime::default() };
        Event::Sample(Sample {
            mono_ns: ns,
            cpu,
            energy: vec![None],
            ends_window: true,
            awake_ns: None,
        })
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
        background.finish(&Duration::from_secs(5).into()).unwrap();
        assert_eq!(fs::read_to_string(file.path()).unwrap().lines().count(), 4);
    }

    /// A recording that nobody reads yet, and its other end.
    fn stalled() -> (Background, fs::File) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let reader = std::thread::spawn({
            let path = path.clone();
            move || fs::File::open(path).unwrap()
        });
        let background = Background::start(Recorder::create(&path).unwrap()).unwrap();
        (background, reader.join().unwrap())
    }

    /// What is written once the other end is read.
    fn lines(background: Background, mut reader: fs::File) -> Vec<serde_json::Value> {
        let text = std::thread::spawn(move || {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut reader, &mut text).unwrap();
            text
        });
        background.finish(&Duration::from_secs(20).into()).unwrap();
        let text = text.join().unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_stalled_disk_joins_samples_and_loses_no_time() {
        let (mut background, reader) = stalled();
        background.write(&header()).unwrap();
        background.write(&workload("a")).unwrap();
        const SAMPLES: u64 = 20_000;
        for ns in 1..=SAMPLES {
            background.write(&sample(ns)).unwrap();
        }
        assert!(background.joined_samples() > SAMPLES / 2, "{}", background.joined_samples());
        let lines = lines(background, reader);
        let last = lines.last().unwrap();
        assert_eq!(last["mono_ns"], SAMPLES);
        assert_eq!(last["cpu"]["packages"][0]["workloads"][0][1], SAMPLES);
    }

    #[test]
    fn samples_with_gpu_windows_between_them_are_joined_behind_these() {
        let (mut background, reader) = stalled();
        background.write(&header()).unwrap();
        background.write(&workload("a")).unwrap();
        const SAMPLES: u64 = 20_000;
        for ns in 1..=SAMPLES {
            background.write(&gpu(ns as f64, 1)).unwrap();
            background.write(&sample(ns)).unwrap();
        }
        assert!(background.joined_samples() > SAMPLES / 2, "{}", background.joined_samples());
        let lines = lines(background, reader);
        let gpus: Vec<_> = lines.iter().filter_map(|line| line["millijoules"].as_f64()).collect();
        assert_eq!(gpus, (1..=SAMPLES).map(|ns| ns as f64).collect::<Vec<_>>());
        // As they were told: what the driver told by then is before each sample.
        let mut told = 0.0;
        for line in &lines {
            told = line["millijoules"].as_f64().unwrap_or(told);
            if let Some(ns) = line["mono_ns"].as_u64() {
                assert_eq!(told, ns as f64);
            }
        }
        assert_eq!(lines.last().unwrap()["mono_ns"], SAMPLES);
    }

    #[test]
    fn the_first_sample_stays_where_the_run_begins() {
        let (mut background, reader) = stalled();
        background.write(&header()).unwrap();
        for _ in 0..20_000 {
            background.write(&workload("a")).unwrap();
        }
        (1..=5).for_each(|ns| background.write(&sample(ns)).unwrap());
        let samples = lines(background, reader).into_iter();
        let samples: Vec<_> = samples.filter_map(|line| line["mono_ns"].as_u64()).collect();
        assert_eq!(samples, [1, 5]);
    }

    #[test]
    fn what_waits_is_bounded_by_what_it_weighs() {
        let (mut background, _reader) = stalled();
        background.write(&header()).unwrap();
        let Event::Workload(one) = workload("a") else { unreachable!() };
        let ids = (1..=10_000).map(WorkloadId);
        for id in ids.clone() {
            background.write(&Event::Workload(Workload { id, ..one.clone() })).unwrap();
        }
        let workloads = ids.map(|id| (id, u64::MAX)).collect();
        let Event::Sample(mut large) = sample(1) else { unreachable!() };
        large.cpu.packages[0].workloads = workloads;
        let mut written = 0;
        // Nothing of this can be joined.
        let error = loop {
            large.mono_ns += 1;
            written += 1;
            let message = written.to_string();
            let warned = background.write(&Event::Warning { message });
            if let Err(error) =
                warned.and_then(|()| background.write(&Event::Sample(large.clone())))
            {
                break error;
            }
        };
        assert!(matches!(error, Incomplete::TooSlow), "{error}");
        assert!(written * 10_000 < 2 * MOST_WAITING, "{written}");
    }

    #[test]
    fn a_thread_that_panics_is_no_success() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let start = || Background::start(Recorder::create(file.path()).unwrap()).unwrap();
        // What is left of a thread that panicked: its word was never said.
        let end_thread = |background: &mut Background| {
            let (told, result) = sync_channel(1);
            drop(told);
            background.result = result;
        };
        let mut background = start();
        end_thread(&mut background);
        assert!(matches!(background.write(&header()), Err(Incomplete::Panicked)));
        assert!(background.write(&header()).is_ok(), "told once");
        let mut background = start();
        end_thread(&mut background);
        let finished = background.finish(&Duration::from_secs(5).into());
        assert!(matches!(finished, Err(Incomplete::Panicked)));
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
