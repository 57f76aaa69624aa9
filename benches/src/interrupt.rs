//! Ctrl-C in the middle of a measurement: nothing stays behind.

use std::fs;
use std::io::Read as _;
use std::os::fd::IntoRawFd as _;
use std::path::Path;
use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::simulators::{cgroup, machine};

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

/// One directory for everything temporary, so that it can be removed without being dropped piece by
/// piece.
pub(crate) fn temporary_files() -> Result<TempDir> {
    let directory = tempfile::Builder::new()
        .prefix("ecoprobe-bench-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    // It was set before only if this was called before.
    let _ = tempfile::env::override_temp_dir(directory.path());
    Ok(directory)
}

/// A thread waits for signals, ends our children, removes our cgroups with whoever is inside and what
/// is `temporary`, and exits. Signals are handled and not blocked: a blocked signal would stay blocked in
/// every command that we start.
pub(crate) fn clean_up_on_signals(temporary: &Path) -> Result<()> {
    let (mut reader, writer) = std::io::pipe().context("cannot wait for signals")?;
    PIPE.store(writer.into_raw_fd(), Ordering::Relaxed);
    let action = SigAction::new(SigHandler::Handler(tell), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler calls nothing but write(2), which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.context("cannot wait for signals")?;
    }
    let statistics = fs::read_to_string(STATISTICS);
    let temporary = temporary.to_owned();
    thread::spawn(move || {
        let mut signal = [0];
        if reader.read_exact(&mut signal).is_err() {
            return;
        }
        CAME.store(true, Ordering::Release);
        eprintln!("\ninterrupted: cleaning up");
        end_descendants();
        if let Ok(before) = statistics {
            let _ = fs::write(STATISTICS, before.trim());
        }
        if cgroup::has_v2() {
            cgroup::remove_all_of_this_process();
        }
        // Last: a simulation that finds its files gone would complain.
        machine::remove_all_of_this_process();
        let _ = fs::remove_dir_all(temporary);
        exit(128 + i32::from(signal[0]));
    });
    Ok(())
}

/// An agent that watches the whole machine would go on for ever. Those of us who are starting
/// another one meanwhile are soon found and parked.
fn end_descendants() {
    for _ in 0..100 {
        let ours = descendants();
        if ours.is_empty() {
            return;
        }
        for pid in ours {
            let _ = kill(pid, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Who lives and has this process among its ancestors.
fn descendants() -> Vec<Pid> {
    let number = |text: &str| text.parse::<i32>().ok();
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        // "7 (name) S 1 …", where the name may contain anything.
        let Some((before, after)) = stat.rsplit_once(") ") else { continue };
        let mut after = after.split(' ');
        let (state, parent) = (after.next(), after.next().and_then(number));
        let pid = before.split(' ').next().and_then(number);
        if let (Some(pid), Some(parent), false) = (pid, parent, state == Some("Z")) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![Pid::this().as_raw()];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.into_iter().skip(1).map(Pid::from_raw).collect()
}

extern "C" fn tell(signal: i32) {
    let byte = signal as u8;
    // SAFETY: one byte of our own memory; a pipe that is full has had a signal before.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}
