//! `--format table`: for people. On a terminal it redraws in place and ends with a summary; anywhere
//! else the summary is all there is, without escape codes.

#[cfg(test)]
pub(super) mod fixtures;
mod grid;
mod live;
mod summary;

use std::io::{self, Write};

use self::grid::Paint;
use self::live::Live;
use self::summary::View;
use super::progress::Progress;
use super::target::Document;
use super::{Output, dumb_terminal, note};
use crate::event::Header;
use crate::event::sources::CpuEnergyKind;
use crate::host::stdout;
use crate::view::report::{Report, WindowReport};

/// Up to here a summary on a screen lists every workload; a file or a pipe gets them all.
const WORKLOADS_ON_SCREEN: usize = 50;

#[derive(Debug)]
pub(super) struct Table {
    document: Document,
    progress: Progress,
    /// Standard output is a terminal.
    screen: bool,
    paint: Paint,
    live: Option<Live>,
    /// Lines of the live view now on the screen, the cursor below them.
    drawn: usize,
}

impl Table {
    pub(super) fn new(document: Document, screen: bool, watched: bool, progress: Progress) -> Self {
        let colour = screen && {
            // Knows NO_COLOR, CLICOLOR and TERM=dumb.
            let choice = anstream::AutoStream::choice(&io::stdout());
            choice != anstream::ColorChoice::Never
        };
        let live = (screen && watched && !dumb_terminal()).then(Live::default);
        Self { document, progress, screen, paint: Paint(colour), live, drawn: 0 }
    }

    /// What takes the cursor back to where the live view began, and wipes it.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }
}

impl Output for Table {
    fn begin(&mut self, header: &Header) -> io::Result<()> {
        if let Some(live) = &mut self.live {
            live.estimate = header.sources.cpu_energy.kind == CpuEnergyKind::Estimate;
        }
        Ok(())
    }

    fn shows_windows(&self) -> bool {
        self.live.is_some() || self.progress.is_shown()
    }

    fn window(&mut self, window: &WindowReport) -> io::Result<()> {
        let Some(live) = &mut self.live else {
            self.progress.window(window);
            return Ok(());
        };
        self.progress.clear();
        let (columns, rows) = screen_size();
        let lines = live.frame(window, columns, rows, self.paint);
        let mut frame = self.erase();
        for line in &lines {
            frame.push_str(line);
            frame.push('\n');
        }
        self.drawn = lines.len();
        self.document.write(frame.as_bytes())
    }

    fn note(&mut self, message: &str) -> io::Result<()> {
        let erase = self.erase();
        if !erase.is_empty() {
            self.document.write(erase.as_bytes())?;
        }
        note(message);
        Ok(())
    }

    fn finish(&mut self, report: &Report) -> io::Result<()> {
        self.progress.clear();
        let view = View {
            width: self.screen.then(|| screen_size().0),
            workloads: if self.screen { WORKLOADS_ON_SCREEN } else { usize::MAX },
            paint: self.paint,
        };
        let mut text = self.erase().into_bytes();
        for line in summary::lines(report, &view) {
            writeln!(text, "{line}")?;
        }
        self.document.write(&text)
    }
}

/// The summary as a pipe gets it.
pub(super) fn plain(report: &Report) -> String {
    let view = View { width: None, workloads: usize::MAX, paint: Paint(false) };
    summary::lines(report, &view).into_iter().map(|line| line + "\n").collect()
}

/// Columns and rows of the terminal.
fn screen_size() -> (usize, usize) {
    let size = terminal_size::terminal_size_of(stdout::real());
    size.map_or((80, 24), |(width, height)| (width.0.max(20).into(), height.0.max(2).into()))
}
