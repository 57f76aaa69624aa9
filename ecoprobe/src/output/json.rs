//! `--format json`: the report, one document at the end.

use std::io;

use super::progress::Progress;
use super::target::Document;
use super::text::printable_json;
use super::{Output, note};
use crate::view::report::{Report, WindowReport};

#[derive(Debug)]
pub(super) struct Json {
    pub(super) document: Document,
    pub(super) progress: Progress,
}

impl Output for Json {
    fn shows_windows(&self) -> bool {
        self.progress.is_shown()
    }

    fn window(&mut self, window: &WindowReport) -> io::Result<()> {
        self.progress.window(window);
        Ok(())
    }

    fn note(&mut self, message: &str) -> io::Result<()> {
        note(message);
        Ok(())
    }

    fn finish(&mut self, report: &Report) -> io::Result<()> {
        self.progress.clear();
        let mut document = serde_json::to_vec_pretty(report)?;
        document.push(b'\n');
        self.document.write(&printable_json(document))
    }
}
