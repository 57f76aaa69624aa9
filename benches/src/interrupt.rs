//! Ctrl-C in the middle of a measurement: nothing stays behind.

use std::process::exit;

use anyhow::{Context as _, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::simulators::cgroup;

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// A thread takes the signals, removes our cgroups with whoever is inside, and exits. To be called
/// before there are other threads. Commands that are started later begin with no signal blocked.
pub(crate) fn clean_up_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGHUP);
    signals.thread_block().context("cannot wait for signals")?;
    let statistics = std::fs::read_to_string(STATISTICS);
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("\n{signal}: cleaning up");
        if let Ok(before) = statistics {
            let _ = std::fs::write(STATISTICS, before.trim());
        }
        cgroup::remove_all_of_this_process();
        exit(128 + signal as i32);
    });
    Ok(())
}
