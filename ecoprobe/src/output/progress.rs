//! Standard error: notes, and a line that shows a silent run is alive. Nothing here fails: a run
//! must not end because nobody reads its progress.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::poll::{PollFd, PollFlags, poll};

use super::{printable, units};
use crate::view::report::WindowReport;

/// The progress line stands on the terminal, the cursor at its end. There is one standard error, whoever
/// writes to it next.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// A line that is written over until it is cleared; only where somebody sees it.
#[derive(Debug)]
pub(super) struct Progress {
    enabled: bool,
}

impl Progress {
    /// Shows that the first window is awaited.
    pub(super) fn start(wanted: bool) -> Self {
        let enabled = wanted && io::stderr().is_terminal() && !super::dumb_terminal();
        let progress = Self { enabled };
        progress.show("waiting for the first window …");
        progress
    }

    /// Whether there is somebody to see it.
    pub(super) fn is_shown(&self) -> bool {
        self.enabled
    }

    pub(super) fn window(&self, window: &WindowReport) {
        let mut line = units::elapsed(window.start_s + window.seconds);
        if let Some(watts) = window.lines.measured.power_w {
            let _ = write!(line, ", {}", units::watts(watts));
        }
        self.show(&line);
    }

    pub(super) fn clear(&self) {
        to_stderr("");
    }

    fn show(&self, line: &str) {
        if self.enabled {
            SHOWN.store(true, Ordering::Relaxed);
            let _ = write!(io::stderr(), "\r\x1b[Kecoprobe: {line}");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

/// `ecoprobe: MESSAGE` on standard error. `eprintln!` would panic where that is full or closed.
pub fn note(message: &str) {
    to_stderr(&format!("ecoprobe: {}\n", printable(message)));
}

/// Writes to standard error, in place of the progress line, if it takes anything within a moment: a pipe
/// that nobody reads must not keep us from ending.
pub(super) fn to_stderr(text: &str) {
    const PATIENCE_MS: u16 = 100;
    let erase = if SHOWN.swap(false, Ordering::Relaxed) { "\r\x1b[K" } else { "" };
    let text = [erase, text].concat();
    let stderr = io::stderr();
    let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    // A pipe that is ready takes at least PIPE_BUF (4096) bytes without making anybody wait.
    for piece in text.as_bytes().chunks(4096) {
        if poll(&mut ready, PATIENCE_MS) == Ok(0) || stderr.lock().write_all(piece).is_err() {
            return;
        }
    }
}
