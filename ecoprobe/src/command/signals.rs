//! The signals that a measurement hears.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use nix::sys::signal::{self, SigHandler, Signal};
use tokio::signal::unix::{self, SignalKind};

/// They end a measurement, or are passed on to the command of `run`.
const HEARD: [Signal; 6] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// Of those, the ones that ask for an end.
pub(super) fn asks_for_the_end(signal: Signal) -> bool {
    !matches!(signal, Signal::SIGUSR1 | Signal::SIGUSR2)
}

/// The signals that end a measurement or are passed on to the command. Listen before the command
/// starts, so that none is lost in between. The default hears none.
#[derive(Debug, Default)]
pub struct Signals {
    streams: Vec<(Signal, unix::Signal)>,
}

impl Signals {
    /// A hangup that is ignored when ecoprobe starts stays ignored, here and in the command:
    /// listening would undo `nohup`. The others are listened to even so: shells start background
    /// jobs with interrupts ignored, and a script that interrupts one means it.
    pub fn listen() -> io::Result<Self> {
        let wanted = |signal: &Signal| *signal != Signal::SIGHUP || !is_ignored(*signal);
        let streams = HEARD.into_iter().filter(wanted).map(|signal| {
            let stream = unix::signal(SignalKind::from_raw(signal as i32))?;
            Ok((signal, stream))
        });
        Ok(Self { streams: streams.collect::<io::Result<_>>()? })
    }

    /// The next signal to arrive. May be dropped and called again.
    pub async fn next(&mut self) -> Signal {
        self.next_of(|_| true).await
    }

    /// The next one that asks for an end; the others can still be heard.
    pub(super) async fn next_end(&mut self) -> Signal {
        self.next_of(asks_for_the_end).await
    }

    /// One that asks for an end, if it has come already.
    pub(super) async fn end_already(&mut self) -> Option<Signal> {
        // The runtime hears of signals only while it waits.
        tokio::time::timeout(Duration::from_millis(1), self.next_end()).await.ok()
    }

    async fn next_of(&mut self, wanted: impl Fn(Signal) -> bool) -> Signal {
        poll_fn(|context| {
            for (signal, stream) in self.streams.iter_mut().filter(|(signal, _)| wanted(*signal)) {
                if let Poll::Ready(Some(())) = stream.poll_recv(context) {
                    return Poll::Ready(*signal);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Until [`ignore_file_limit`], a file beyond `ulimit -f` was the end of a process.
static LIMIT_WAS_FATAL: AtomicBool = AtomicBool::new(false);

/// A file that may not grow any more is an error of the write, as a full disk is.
pub(super) fn ignore_file_limit() {
    // SAFETY: to ignore a signal runs no handler.
    let before = unsafe { signal::signal(Signal::SIGXFSZ, SigHandler::SigIgn) };
    LIMIT_WAS_FATAL.store(matches!(before, Ok(SigHandler::SigDfl)), Ordering::Relaxed);
}

/// Gives a child what we had ourselves. Async-signal-safe.
pub(super) fn restore_file_limit() {
    if LIMIT_WAS_FATAL.load(Ordering::Relaxed) {
        // SAFETY: signal(2) is async-signal-safe, and the default runs no handler.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_DFL) };
    }
}

fn is_ignored(signal: Signal) -> bool {
    // SAFETY: sigaction(2) with no new action only fills in the old one, which is plain data.
    let action = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal as i32, std::ptr::null(), &mut action);
        action
    };
    action.sa_sigaction == libc::SIG_IGN
}
