//! `--format jsonl`: a line a window as it closes, and the report as the last line.

use std::io;

use serde::Serialize;

use super::progress::Progress;
use super::target::Stream;
use super::text::printable_json;
use super::{Output, note};
use crate::event::Header;
use crate::event::sources::CpuEnergyKind;
use crate::view::report::{Report, WindowReport};

#[derive(Debug)]
pub(super) struct JsonLines {
    pub(super) stream: Stream,
    pub(super) progress: Progress,
    /// Said on every line: who reads only windows must see an estimate for what it is.
    pub(super) cpu_energy: Option<CpuEnergyKind>,
}

#[derive(Serialize)]
struct WindowLine<'a> {
    #[serde(flatten)]
    window: &'a WindowReport,
    cpu_energy: Option<CpuEnergyKind>,
}

#[derive(Serialize)]
struct ReportLine<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(flatten)]
    report: &'a Report,
}

impl JsonLines {
    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(line)?;
        line.push(b'\n');
        self.stream.write(&printable_json(line))
    }
}

impl Output for JsonLines {
    fn begin(&mut self, header: &Header) -> io::Result<()> {
        self.cpu_energy = Some(header.sources.cpu_energy.kind);
        Ok(())
    }

    fn window(&mut self, window: &WindowReport) -> io::Result<()> {
        self.progress.window(window);
        self.line(&WindowLine { window, cpu_energy: self.cpu_energy })
    }

    fn note(&mut self, message: &str) -> io::Result<()> {
        note(message);
        Ok(())
    }

    fn finish(&mut self, report: &Report) -> io::Result<()> {
        self.progress.clear();
        self.line(&ReportLine { kind: "report", report })
    }
}
