//! Ctrl-C in the middle of a measurement: nothing stays behind.

use std::io::Read as _;
use std::os::fd::IntoRawFd as _;
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::simulators::cgroup;

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Where the handler writes which signal came.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Set before anything is cleaned up.
static CAME: AtomicBool = AtomicBool::new(false);

/// Once a signal has come, nobody but its thread goes on: or what that removes would be made again, or
/// the program would end before all is removed.
pub(crate) fn stop_if_interrupted() {
    while CAME.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// A thread waits for signals, removes our cgroups with whoever is inside, and exits. Signals are
/// handled and not blocked: a blocked signal would stay blocked in every command that we start.
pub(crate) fn clean_up_on_signals() -> Result<()> {
    let (mut reader, writer) = std::io::pipe().context("cannot wait for signals")?;
    PIPE.store(writer.into_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(tell), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler calls nothing but write(2), which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("cannot wait for signals")?;
    }
    let statistics = std::fs::read_to_string(STATISTICS);
    std::thread::spawn(move || {
        let mut signal = [0];
        if reader.read_exact(&mut signal).is_err() {
            return;
        }
        CAME.store(true, Ordering::Release);
        eprintln!("\ninterrupted: cleaning up");
        if let Ok(before) = statistics {
            let _ = std::fs::write(STATISTICS, before.trim());
        }
        cgroup::remove_all_of_this_process();
        exit(128 + i32::from(signal[0]));
    });
    Ok(())
}

extern "C" fn tell(signal: i32) {
    let byte = signal as u8;
    // SAFETY: one byte of our own memory; a pipe that is full has had a signal before.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}
