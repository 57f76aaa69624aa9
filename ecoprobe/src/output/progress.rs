//! Standard error: notes, and a line that shows a silent run is alive. Nothing here fails: a run
//! must not end because nobody reads its progress.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd as _;

use nix::poll::{PollFd, PollFlags, poll};

use super::{printable, units};
use crate::view::report::WindowReport;

/// A line that is written over until it is cleared; only where somebody sees it.
#[derive(Debug)]
pub(super) struct Progress {
    enabled: bool,
    shown: bool,
}

impl Progress {
    /// Shows that the first window is awaited.
    pub(super) fn start(wanted: bool) -> Self {
        let enabled = wanted && io::stderr().is_terminal() && !super::dumb_terminal();
        let mut progress = Self { enabled, shown: false };
        progress.show("waiting for the first window …");
        progress
    }

    /// Whether there is somebody to see it.
    pub(super) fn is_shown(&self) -> bool {
        self.enabled
    }

    pub(super) fn window(&mut self, window: &WindowReport) {
        let mut line = units::elapsed(window.start_s + window.seconds);
        if let Some(watts) = window.lines.measured.power_w {
            let _ = write!(line, ", {}", units::watts(watts));
        }
        self.show(&line);
    }

    pub(super) fn note(&mut self, message: &str) {
        self.clear();
        note(message);
    }

    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }

    fn show(&mut self, line: &str) {
        if self.enabled {
            let _ = write!(io::stderr(), "\r\x1b[Kecoprobe: {line}");
            self.shown = true;
        }
    }
}

/// `ecoprobe: MESSAGE` on standard error. `eprintln!` would panic where that is full or closed.
pub fn note(message: &str) {
    to_stderr(&format!("ecoprobe: {}\n", printable(message)));
}

/// Writes to standard error if it takes anything within a moment: a pipe that nobody reads must not
/// keep us from ending.
pub(super) fn to_stderr(text: &str) {
    const PATIENCE_MS: u16 = 100;
    let stderr = io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // A pipe that is ready takes at least PIPE_BUF (4096) bytes without making anybody wait.
    for piece in text.as_bytes().chunks(4096) {
        if poll(&mut ready, PATIENCE_MS) == Ok(0) || stderr.lock().write_all(piece).is_err() {
            return;
        }
    }
}
