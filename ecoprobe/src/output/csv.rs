//! `--format csv`: a header, then a row per window and workload. A value that could not be had is
//! an empty cell. What belongs to no workload (idle, other, unattributed) is in `json` and `jsonl`:
//! rows for it here would be added up with the workloads by the first spreadsheet that sees them.

use std::borrow::Cow;
use std::io;

use serde::Serialize;

use super::progress::Progress;
use super::target::Stream;
use super::{Output, note, printable};
use crate::event::Header;
use crate::event::sources::CpuEnergyKind;
use crate::view::report::{Report, WindowReport};

#[derive(Debug)]
pub(super) struct Csv {
    stream: Stream,
    /// A terminal acts on some of what names may hold.
    screen: bool,
    progress: Progress,
    cpu_energy: Option<CpuEnergyKind>,
    header_written: bool,
}

/// The columns: `start_s` is seconds since the start of the report's window, `cpu_energy` the source
/// of `cpu_j` and `dram_j` (`estimate`: not measured).
#[derive(Serialize)]
struct Row<'a> {
    start_s: f64,
    seconds: f64,
    workload: Cow<'a, str>,
    cpu_seconds: f64,
    cpu_j: Option<f64>,
    dram_j: Option<f64>,
    gpu_j: Option<f64>,
    idle_share_j: Option<f64>,
    total_j: Option<f64>,
    mean_power_w: Option<f64>,
    cpu_energy: Option<CpuEnergyKind>,
}

const COLUMNS: [&str; 11] = [
    "start_s",
    "seconds",
    "workload",
    "cpu_seconds",
    "cpu_j",
    "dram_j",
    "gpu_j",
    "idle_share_j",
    "total_j",
    "mean_power_w",
    "cpu_energy",
];

impl Csv {
    pub(super) fn new(stream: Stream, screen: bool, progress: Progress) -> Self {
        Self { stream, screen, progress, cpu_energy: None, header_written: false }
    }

    /// The header row comes with the first rows, or alone if there never were any.
    fn rows<'a>(&mut self, rows: impl Iterator<Item = Row<'a>>) -> io::Result<()> {
        let mut writer = ::csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
        if !self.header_written {
            writer.write_record(COLUMNS)?;
            self.header_written = true;
        }
        for row in rows {
            writer.serialize(row)?;
        }
        let bytes = writer.into_inner().map_err(|error| io::Error::other(error.to_string()))?;
        self.stream.write(&bytes)
    }
}

impl Output for Csv {
    fn begin(&mut self, header: &Header) -> io::Result<()> {
        self.cpu_energy = Some(header.sources.cpu_energy.kind);
        Ok(())
    }

    fn window(&mut self, window: &WindowReport) -> io::Result<()> {
        self.progress.window(window);
        let cpu_energy = self.cpu_energy;
        let screen = self.screen;
        let name = |name| if screen { printable(name) } else { Cow::Borrowed(name) };
        self.rows(window.workloads.iter().map(|workload| Row {
            start_s: window.start_s,
            seconds: window.seconds,
            workload: name(&*workload.name),
            cpu_seconds: workload.cpu_seconds,
            cpu_j: workload.energy_j.cpu,
            dram_j: workload.energy_j.dram,
            gpu_j: workload.energy_j.gpu,
            idle_share_j: workload.energy_j.idle_share,
            total_j: workload.energy_j.total,
            mean_power_w: workload.mean_power_w,
            cpu_energy,
        }))
    }

    fn note(&mut self, message: &str) -> io::Result<()> {
        note(message);
        Ok(())
    }

    fn finish(&mut self, _: &Report) -> io::Result<()> {
        self.progress.clear();
        self.rows(std::iter::empty())
    }
}
