//! Recordings: the events of a run as JSON Lines, for `replay`. The format is described in
//! `docs/recording.md`.

mod background;
mod shape;
mod v1;

pub(crate) use background::{Background, Incomplete};

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::shape::Shape;
use crate::base::{Error, Rewritten};
use crate::event::{Event, Header};

/// Version of the format; the first line of every recording carries it.
const SCHEMA: &str = "ecoprobe.recording/2";

/// The one before, which is read too.
const SCHEMA_1: &str = "ecoprobe.recording/1";

/// Longer lines are not read, and not written: a file that is not a recording must not fill the
/// memory before that is known.
const MAX_LINE_BYTES: u64 = 32 << 20;

/// How much of a recording a kill may cost.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// A recording that cannot be written, or opened, or read further.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}")]
pub(crate) struct RecordingError {
    doing: &'static str,
    path: String,
    source: io::Error,
}

impl RecordingError {
    fn new(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self { doing, path: path.clone(), source }
    }
}

/// Writes a recording.
#[derive(Debug)]
pub(crate) struct Recorder {
    path: PathBuf,
    /// `None` once a write failed.
    file: Option<BufWriter<Rewritten>>,
    shape: Shape,
    flushed: Instant,
}

impl Recorder {
    /// Creates the file, or opens the one that is there: the first write empties it.
    pub(crate) fn create(path: &Path) -> Result<Self, RecordingError> {
        let cannot = RecordingError::new("create the recording", path);
        let file = Rewritten::open(path).map_err(cannot)?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(BufWriter::new(file)),
            shape: Shape::default(),
            flushed: Instant::now(),
        })
    }

    /// Adds one event; the header must be the first. The first failure is returned and ends the
    /// recording, not the run: what is written after it is dropped without another error.
    pub(crate) fn write(&mut self, event: &Event) -> Result<(), RecordingError> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut write = || {
            self.shape.check(event).map_err(io::Error::other)?;
            let mut line = line(event)?;
            line.push(b'\n');
            if line.len() as u64 > MAX_LINE_BYTES {
                return Err(io::Error::other("too many workloads for a recording"));
            }
            file.write_all(&line)?;
            if self.flushed.elapsed() >= FLUSH_INTERVAL {
                self.flushed = Instant::now();
                file.flush()?;
            }
            Ok(())
        };
        let written = write();
        self.fail_once(written)
    }

    /// Writes what is still buffered.
    pub(crate) fn finish(mut self) -> Result<(), RecordingError> {
        let flushed = self.file.as_mut().map_or(Ok(()), Write::flush);
        self.fail_once(flushed)
    }

    fn fail_once(&mut self, result: io::Result<()>) -> Result<(), RecordingError> {
        result.map_err(|error| {
            if let Some(file) = self.file.take() {
                // Or it would try once more to write what it holds.
                drop(file.into_parts());
            }
            RecordingError::new("write the recording", &self.path)(error)
        })
    }
}

/// An event as its line, without the end of it. The header's says which format it is.
fn line(event: &Event) -> serde_json::Result<Vec<u8>> {
    #[derive(Serialize)]
    struct HeaderLine<'a> {
        r#type: &'static str,
        schema: &'static str,
        #[serde(flatten)]
        header: &'a Header,
    }
    match event {
        Event::Header(header) => {
            serde_json::to_vec(&HeaderLine { r#type: "header", schema: SCHEMA, header })
        }
        event => serde_json::to_vec(event),
    }
}

/// Opens a recording and reads its header. Files that are no recording, or of a newer format, are
/// [`Error::Usage`].
pub fn read(path: &Path) -> anyhow::Result<(Header, Events)> {
    let file = File::open(path).map_err(RecordingError::new("open the recording", path))?;
    let mut events = Events {
        path: path.to_owned(),
        file: BufReader::new(file),
        line: 0,
        shape: Shape::default(),
        first_format: None,
        ended: false,
    };
    let (first, _) = events.next_line()?;
    let (header, schema) = header(&first).map_err(|reason| {
        Error::Usage(format!("{} is not a recording of ecoprobe: {reason}", path.display()))
    })?;
    events.first_format = (schema == SCHEMA_1).then(|| v1::Reader::new(header.packages.len()));
    events.shape.may_fall = events.first_format.is_some();
    events.shape.begin(&header).map_err(|reason| events.broken(reason))?;
    Ok((header, events))
}

/// The header, and the version of the format.
fn header(line: &[u8]) -> Result<(Header, String), String> {
    /// What every version of the format has in its first line.
    #[derive(Deserialize)]
    struct AnyHeader {
        r#type: String,
        schema: String,
    }

    if line.is_empty() {
        return Err("it is empty".into());
    }
    // What gzip and zstd begin with (RFC 1952, RFC 8878).
    if line.starts_with(&[0x1f, 0x8b]) || line.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        return Err("it is compressed; unpack it first".into());
    }
    let any: AnyHeader = serde_json::from_slice(line)
        .map_err(|_| "its first line is not a header; make one with --record FILE".to_owned())?;
    if any.r#type != "header" || !any.schema.starts_with("ecoprobe.recording/") {
        return Err("its first line is not a header; make one with --record FILE".into());
    }
    if ![SCHEMA, SCHEMA_1].contains(&&*any.schema) {
        return Err(format!(
            "its format is {}, and this version reads {SCHEMA_1} and {SCHEMA}; replay it with the \
             version that made it",
            any.schema
        ));
    }
    let header = serde_json::from_slice(line);
    let header = header.map_err(|error| format!("its header cannot be read: {error}"))?;
    Ok((header, any.schema))
}

/// The events of a recording after its header, checked against it.
///
/// A last line that was cut off (the recorder was killed, or the disk was full) becomes a
/// [`Event::Warning`]; any other line that makes no sense is an error that names it, and the end.
#[derive(Debug)]
pub struct Events {
    path: PathBuf,
    file: BufReader<File>,
    /// Number of the line last read, from 1.
    line: u64,
    shape: Shape,
    /// Reads the lines of the first format.
    first_format: Option<v1::Reader>,
    ended: bool,
}

impl Iterator for Events {
    type Item = anyhow::Result<Event>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let event = self.next_event().transpose();
        self.ended = !matches!(event, Some(Ok(_)));
        event
    }
}

impl Events {
    fn next_event(&mut self) -> anyhow::Result<Option<Event>> {
        let (line, whole) = self.next_line()?;
        if line.is_empty() {
            return Ok(None);
        }
        let event = match &mut self.first_format {
            Some(reader) => reader.event(&line),
            None => serde_json::from_slice(&line),
        };
        let event = match event {
            Ok(event) => event,
            Err(_) if !whole => {
                let message = format!("the recording was cut off in line {}", self.line);
                return Ok(Some(Event::Warning { message }));
            }
            Err(error) => return Err(self.broken(error).into()),
        };
        self.shape.check(&event).map_err(|reason| self.broken(reason))?;
        Ok(Some(event))
    }

    /// The next line, without its end, and whether it had one; empty at the end of the file.
    fn next_line(&mut self) -> anyhow::Result<(Vec<u8>, bool)> {
        let mut line = Vec::new();
        self.line += 1;
        let read = self.file.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
        read.map_err(RecordingError::new("read the recording", &self.path))?;
        if line.len() as u64 > MAX_LINE_BYTES {
            return Err(self.broken("it is longer than any line of a recording").into());
        }
        let whole = line.pop_if(|last| *last == b'\n').is_some();
        if whole && line.is_empty() {
            return Err(self.broken("it is empty").into());
        }
        Ok((line, whole))
    }

    fn broken(&self, reason: impl std::fmt::Display) -> Error {
        Error::Usage(format!(
            "{}: line {} makes no sense: {reason}",
            self.path.display(),
            self.line
        ))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::shape::is_amount;
    use super::*;
    use crate::base::Component;
    use crate::base::{User, WorkloadId};
    use crate::event::settings::Settings;
    use crate::event::sources::*;
    use crate::event::*;

    pub(in crate::recording) fn header_of(packages: usize, max_watts: f64) -> Header {
        let names = |kind: &str| (0..packages).map(|i| format!("{kind}-{i}")).collect();
        let packages: Vec<String> = names("package");
        Header {
            version: "0.1.0".into(),
            start: "2026-01-02T03:04:05Z".into(),
            host: Host { name: "n".into(), kernel: "6".into(), cpus: 2, packages: packages.len() },
            cpu: None,
            sources: Sources {
                cpu_time: CpuTimeSource::ebpf("tp_btf/sched_switch", "v2"),
                cpu_energy: CpuEnergySource {
                    kind: CpuEnergyKind::Perf,
                    domains: packages.clone(),
                    basis: None,
                },
                gpu_energy: GpuEnergySource::default(),
                static_power: StaticPowerSource {
                    watts: [("package-0".to_owned(), None)].into(),
                    ..StaticPowerSource::default()
                },
            },
            domains: packages
                .iter()
                .enumerate()
                .map(|(package, name)| Domain {
                    name: name.clone(),
                    component: Component::Cpu,
                    package,
                    joules_per_count: 2.0_f64.powi(-32),
                    range: Some(u64::MAX),
                    max_watts,
                })
                .collect(),
            packages,
            settings: Settings { price: Some(0.3), ..Settings::default() },
        }
    }

    pub(in crate::recording) fn sample(mono_ns: u64, workloads: usize) -> Event {
        let reading = Reading { mono_ns, count: u64::MAX };
        let cpu = times(workloads, u64::MAX);
        Event::Sample(Sample { energy: vec![Some(reading)], ..sample_of(mono_ns, cpu) })
    }

    fn sample_of(mono_ns: u64, cpu: CpuTimes) -> Sample {
        let awake_ns = (mono_ns % 2 == 1).then_some(mono_ns / 2);
        Sample {
            mono_ns,
            ends_window: !mono_ns.is_multiple_of(3),
            cpu,
            awake_ns,
            energy: Vec::new(),
        }
    }

    fn times(workloads: usize, ns: u64) -> CpuTimes {
        let workloads: Vec<_> = (1..=workloads as u64).map(|id| (WorkloadId(id), ns)).collect();
        let counts = Counts { other: ns, workloads: workloads.clone() };
        let features = [(PAIRED, counts)].into();
        let packages = vec![PackageTime { idle: ns, other: ns, workloads, features }];
        CpuTimes { packages, unplaced: PackageTime::default() }
    }

    pub(in crate::recording) fn workload(name: &str) -> Event {
        Event::Workload(Workload {
            id: WorkloadId(1),
            name: name.into(),
            cgroup: format!("/{name}"),
            cgroup_id: u64::MAX,
            kind: WorkloadKind::Systemd,
            labels: [("unit".to_owned(), "a \"b\"\n".to_owned())].into(),
        })
    }

    pub(in crate::recording) fn gpu(millijoules: f64, id: u64) -> Event {
        let user = if id == 0 { User::Other } else { User::Workload(WorkloadId(id)) };
        let usage = GpuUsage { user, weight: 5e-324, busy_seconds: None, holds: true };
        Event::Gpu(GpuWindow {
            uuid: "GPU-1".into(),
            from_ns: 0,
            to_ns: u64::MAX,
            millijoules,
            busy: Some(0.1 + 0.2),
            method: GpuMethod::Sole,
            usage: vec![usage],
            unknown_users: false,
            lost_weight: 0.0,
            resolution_ms: Some(20.5),
            mean_power_w: None,
        })
    }

    fn record(path: &Path, events: &[Event]) {
        let mut recorder = Recorder::create(path).unwrap();
        for event in events {
            recorder.write(event).unwrap();
        }
        recorder.finish().unwrap();
    }

    fn read_all(path: &Path) -> anyhow::Result<Vec<Event>> {
        let (header, events) = read(path)?;
        std::iter::once(Ok(Event::Header(Box::new(header)))).chain(events).collect()
    }

    fn refused(contents: &[u8]) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), contents).unwrap();
        let error = read_all(file.path()).unwrap_err();
        assert!(matches!(error.downcast_ref(), Some(Error::Usage(_))), "{error:?}");
        error.to_string()
    }

    fn events() -> Vec<Event> {
        vec![
            Event::Header(Box::new(header_of(1, f64::MAX))),
            workload("ジョブ"),
            sample(1, 1),
            gpu(f64::MIN_POSITIVE, 1),
            Event::Warning { message: "\u{0}\u{2028}\x1b".into() },
            Event::Sample(Sample { energy: vec![None], ..sample_of(u64::MAX, times(0, u64::MAX)) }),
            Event::Ended { id: WorkloadId(1) },
        ]
    }

    #[test]
    fn what_was_recorded_comes_back() {
        let file = tempfile::NamedTempFile::new().unwrap();
        record(file.path(), &events());
        assert_eq!(read_all(file.path()).unwrap(), events());
    }

    proptest! {
        #[test]
        fn every_amount_comes_back_bit_for_bit(
            millijoules in 0.0..=f64::MAX,
            watts in any::<f64>().prop_filter("an amount", |watts| is_amount(*watts)),
            counts in proptest::collection::vec(any::<u64>(), 3),
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let reading = Reading { mono_ns: counts[0], count: counts[1] };
            let energy = vec![Some(reading)];
            let sample = Sample { energy, ..sample_of(counts[2], times(1, counts[0])) };
            let header = Event::Header(Box::new(header_of(1, watts)));
            let events = [header, workload("a"), Event::Sample(sample), gpu(millijoules, 0)];
            record(file.path(), &events);
            prop_assert_eq!(&read_all(file.path()).unwrap(), &events);
        }

        #[test]
        fn a_recording_cut_anywhere_keeps_its_whole_lines(cut in 0_usize..1500) {
            let file = tempfile::NamedTempFile::new().unwrap();
            record(file.path(), &events());
            let whole = fs::read(file.path()).unwrap();
            let cut = cut.min(whole.len());
            fs::write(file.path(), &whole[..cut]).unwrap();
            let lines = whole[..cut].iter().filter(|byte| **byte == b'\n').count();
            match read_all(file.path()) {
                Ok(read) => {
                    let same = read.iter().zip(&events()).take_while(|(a, b)| a == b).count();
                    prop_assert!(same >= lines);
                    if let Some(Event::Warning { message }) = read.get(same) {
                        prop_assert_eq!(message, &format!("the recording was cut off in line {}", same + 1));
                    } else {
                        prop_assert_eq!(read.len(), same);
                    }
                }
                Err(error) => prop_assert!(lines == 0, "{}", error),
            }
        }
    }

    #[test]
    fn other_files_are_refused_with_a_reason() {
        assert!(refused(b"").ends_with("is not a recording of ecoprobe: it is empty"));
        for contents in
            [&b"hello\n"[..], b"{}\n", b"[1]\n", b"\xff\xfe\n", b"{\"type\":\"sample\"}\n"]
        {
            assert!(refused(contents).contains("not a recording of ecoprobe"), "{contents:?}");
        }
        let newer = refused(b"{\"type\":\"header\",\"schema\":\"ecoprobe.recording/3\"}\n");
        assert!(newer.contains("its format is ecoprobe.recording/3"), "{newer}");
        assert!(refused(&vec![b'['; 1 << 20]).contains("not a recording"));
        for contents in [&b"\x1f\x8b\x08\0"[..], b"\x28\xb5\x2f\xfd\x04"] {
            assert!(
                refused(contents).ends_with("it is compressed; unpack it first"),
                "{contents:?}"
            );
        }
    }

    #[test]
    fn a_line_without_end_does_not_fill_the_memory() {
        let error = read(Path::new("/dev/zero")).unwrap_err().to_string();
        assert!(error.contains("longer than any line"), "{error}");
    }

    #[test]
    fn lines_that_contradict_the_header_are_named() {
        let line = |event: &Event| String::from_utf8(super::line(event).unwrap()).unwrap() + "\n";
        let start = line(&Event::Header(Box::new(header_of(1, 500.0)))) + &line(&workload("a"));
        let rows = |cpu, energy| line(&Event::Sample(Sample { energy, ..sample_of(5, cpu) }));
        let twice = || {
            let mut cpu = times(1, 1);
            cpu.packages[0].workloads.push((WorkloadId(1), 2));
            cpu
        };
        let with_feature = |feature, id, ns| {
            let mut cpu = times(0, 1);
            let counts = Counts { other: 0, workloads: vec![(WorkloadId(id), ns)] };
            cpu.packages[0].features = [(feature, counts)].into();
            cpu
        };
        let first = Sample { energy: vec![None], ..sample_of(5, times(0, 1)) };
        let bad_gpu = |mangle: fn(&mut GpuWindow)| {
            let Event::Gpu(mut window) = gpu(1.0, 1) else { unreachable!() };
            mangle(&mut window);
            line(&Event::Gpu(window))
        };
        for (bad, reason) in [
            ("garbage\n".to_owned(), "expected value"),
            ("\n".to_owned(), "it is empty"),
            ("{\"type\":\"unheard-of\"}\n".to_owned(), "unknown variant"),
            (
                rows(CpuTimes::default(), vec![None]),
                "CPU time of 0 packages where the header has 1",
            ),
            (rows(times(0, 1), vec![]), "0 energy readings where the header has 1"),
            (rows(times(2, 1), vec![None]), "was not introduced"),
            (line(&sample(1, 0)) + &line(&sample(1, 0)), "no later than"),
            (
                line(&sample(1, 1)) + &rows(times(1, 7), vec![None]),
                "less than in the sample before",
            ),
            (
                line(&sample(1, 1)) + &rows(times(0, 7), vec![None]),
                "less than in the sample before",
            ),
            (rows(twice(), vec![None]), "do not ascend"),
            (
                rows(with_feature(PAIRED, 1, 9), vec![None])
                    + &rows(with_feature(PAIRED, 1, 8), vec![None]).replace(":5,", ":6,"),
                "less than in the sample before",
            ),
            (rows(with_feature(PAIRED, 2, 9), vec![None]), "was not introduced"),
            (
                line(&Event::Sample(Sample { awake_ns: Some(7), ..first.clone() }))
                    + &line(&Event::Sample(Sample { awake_ns: Some(6), mono_ns: 6, ..first })),
                "time awake",
            ),
            (line(&Event::Ended { id: WorkloadId(9) }), "was not introduced"),
            (line(&gpu(1.0, 3)), "was not introduced"),
            (line(&gpu(-1.0, 1)), "no amount"),
            (bad_gpu(|window| window.lost_weight = -1.0), "no amount"),
            (bad_gpu(|window| window.resolution_ms = Some(-1.0)), "no amount"),
            (bad_gpu(|window| window.mean_power_w = Some(-1.0)), "no amount"),
            (line(&Event::Ended { id: WorkloadId(1) }) + &line(&sample(1, 1)), "has ended"),
            (line(&Event::Header(Box::new(header_of(1, 1.0)))), "a second header"),
        ] {
            let text = format!("{start}{bad}{}", line(&workload("b")));
            let message = refused(text.as_bytes());
            let number = 2 + bad.lines().count();
            assert!(message.contains(&format!("line {number} makes no sense: ")), "{message}");
            assert!(message.contains(reason), "{message}");
        }
        for (mangle, reason) in [
            ((|header| header.domains[0].package = 1) as fn(&mut Header), "line 1"),
            (|header| header.domains.push(header.domains[0].clone()), "there twice"),
            (|header| header.domains[0].component = Component::Gpu, "line 1 makes no sense"),
            (|header| header.domains[0].joules_per_count = 1e300, "more joules than there are"),
            (|header| header.settings.pue = Some(0.9), "a PUE below 1"),
            (|header| header.start = "yesterday".into(), "no time (RFC 3339)"),
            (|header| header.settings.price = Some(-1.0), "no amount"),
        ] {
            let mut bad = header_of(1, 500.0);
            mangle(&mut bad);
            let message = refused(line(&Event::Header(Box::new(bad))).as_bytes());
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn what_could_not_be_read_back_is_not_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut recorder = Recorder::create(file.path()).unwrap();
        recorder.write(&Event::Header(Box::new(header_of(1, 500.0)))).unwrap();
        let error = recorder.write(&gpu(f64::NAN, 0)).unwrap_err();
        assert!(error.to_string().starts_with("cannot write the recording /"), "{error}");
        recorder.write(&gpu(f64::NAN, 0)).expect("one failure is reported once");
        recorder.finish().unwrap();
    }

    #[test]
    fn a_kill_costs_a_second_at_most() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut recorder = Recorder::create(file.path()).unwrap();
        recorder.flushed = Instant::now().checked_sub(FLUSH_INTERVAL).unwrap();
        recorder.write(&Event::Header(Box::new(header_of(1, 500.0)))).unwrap();
        let written = || fs::read(file.path()).unwrap();
        assert_eq!(written().last(), Some(&b'\n'), "written while the run goes on");
        recorder.write(&workload("a")).unwrap();
        let before = written().len();
        drop(recorder);
        assert!(written().len() > before, "and not at every event");
    }

    #[test]
    fn a_full_disk_is_reported_once() {
        let mut recorder = Recorder::create(Path::new("/dev/full")).unwrap();
        let mut errors = Vec::new();
        errors.extend(recorder.write(&Event::Header(Box::new(header_of(1, 500.0)))).err());
        errors.extend(recorder.write(&workload("a")).err());
        for mono_ns in 1..10_000 {
            errors.extend(recorder.write(&sample(mono_ns, 1)).err());
        }
        errors.extend(recorder.finish().err());
        let [error] = &errors[..] else { panic!("{errors:?}") };
        assert_eq!(error.to_string(), "cannot write the recording /dev/full");
        assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
    }
}
