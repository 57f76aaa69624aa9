//! The command of `ecoprobe run`: started inside of its cgroup, signalled as if ecoprobe were not
//! there, and its end told as a shell would.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use nix::sys::signal::{self, Signal};
use nix::unistd::{Pid, getpgid, getpgrp, tcgetpgrp};
use tokio::process::Command;

use crate::base::error::{EXIT_CANNOT, EXIT_FAILED, EXIT_USAGE};
use crate::command::signals::restore_file_limit;
use crate::workload::scope::Scope;

/// Why a command did not start.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    #[error("no command was given; write it after `--`")]
    Missing,
    #[error("`{command}` was not found; give its path, or put its directory into PATH")]
    NotFound { command: String },
    #[error("`{command}` cannot be executed: {source}")]
    NotExecutable { command: String, source: io::Error },
    #[error("`{command}` cannot be executed: the interpreter named in its first line is missing")]
    NoInterpreter { command: String },
    #[error(
        "cannot move the command into {cgroup}: {source}; run as root, or start the command \
         yourself and watch its cgroup with --cgroup"
    )]
    Cgroup { cgroup: String, source: io::Error },
    #[error("cannot start `{command}`: {source}")]
    Other { command: String, source: io::Error },
}

impl SpawnError {
    /// 127 and 126 as shells have them; otherwise ecoprobe's own.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Missing => EXIT_USAGE,
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } | Self::NoInterpreter { .. } => 126,
            Self::Cgroup { .. } => EXIT_CANNOT,
            Self::Other { .. } => EXIT_FAILED,
        }
    }
}

/// The running command.
#[derive(Debug)]
pub struct Child {
    process: tokio::process::Child,
}

impl Child {
    /// Starts `command` (its name and arguments) in `scope`, where it is before it executes: all of
    /// its CPU time is spent there. Needs a tokio runtime with I/O enabled.
    ///
    /// The standard library unblocks all signals and restores SIGPIPE in the child; handlers
    /// become the default action by executing, and what was ignored stays ignored, as for nohup.
    pub fn spawn(command: &[OsString], scope: &Scope, stdout: Stdio) -> Result<Self, SpawnError> {
        let (program, arguments) = command.split_first().ok_or(SpawnError::Missing)?;
        let in_cgroup =
            |source| SpawnError::Cgroup { cgroup: scope.directory().display().to_string(), source };
        let processes = scope.processes().map_err(in_cgroup)?;
        let mut command = Command::new(program);
        command.args(arguments).stdout(stdout);
        let prepare = move || {
            restore_file_limit();
            join(&processes)
        };
        // SAFETY: between fork and exec, only signal(2) and write(2) are called, which are
        // async-signal-safe, and an error is built that does not allocate.
        unsafe { command.pre_exec(prepare) };
        let path = Path::new(program);
        let program = || program.to_string_lossy().into_owned();
        let process = command.spawn().map_err(|error| match error.raw_os_error() {
            Some(code) if code > JOIN_FAILED => {
                in_cgroup(io::Error::from_raw_os_error(code - JOIN_FAILED))
            }
            // Only a path says which file was meant: names are looked for in PATH.
            Some(libc::ENOENT) if path.components().count() > 1 && path.exists() => {
                SpawnError::NoInterpreter { command: program() }
            }
            Some(libc::ENOENT) => SpawnError::NotFound { command: program() },
            Some(libc::EACCES | libc::ENOEXEC | libc::ENOTDIR | libc::ELOOP | libc::ETXTBSY) => {
                SpawnError::NotExecutable { command: program(), source: error }
            }
            _ => SpawnError::Other { command: program(), source: error },
        })?;
        Ok(Self { process })
    }

    /// Its pid; `None` once its end was waited for.
    pub fn pid(&self) -> Option<u32> {
        self.process.id()
    }

    /// Waits for its end. May be dropped and called again.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.process.wait().await
    }

    /// Passes on a signal that ecoprobe received. Nothing happens after the command's end, nor for
    /// what the terminal has sent to the command already.
    pub fn forward(&self, signal: Signal) -> io::Result<()> {
        // Until it is waited for, the pid is not given to anybody else.
        let Some(pid) = self.pid().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw)
        else {
            return Ok(());
        };
        let from_keyboard = matches!(signal, Signal::SIGINT | Signal::SIGQUIT);
        if from_keyboard && shares_terminal(pid) {
            return Ok(());
        }
        signal::kill(pid, signal)?;
        if matches!(signal, Signal::SIGTERM | Signal::SIGHUP) {
            // A stopped process hears it only when it goes on. One that runs takes no notice.
            signal::kill(pid, Signal::SIGCONT)?;
        }
        Ok(())
    }
}

/// Added to the errno of a failed move, so that the parent, which is told a number and nothing
/// else, can tell it from a failed exec.
const JOIN_FAILED: i32 = 1 << 16;

/// Moves the calling process into the cgroup whose `cgroup.procs` this is.
fn join(mut processes: &File) -> io::Result<()> {
    processes.write_all(b"0").map_err(|error| {
        io::Error::from_raw_os_error(JOIN_FAILED + error.raw_os_error().unwrap_or(libc::EIO))
    })
}

/// Whether Ctrl-C reaches `pid` without our help: the terminal signals its whole foreground group.
/// That a signal came from the keyboard cannot be known; in the foreground it is by far the
/// likeliest.
fn shares_terminal(pid: Pid) -> bool {
    let group = getpgrp();
    let in_foreground =
        || File::open("/dev/tty").is_ok_and(|terminal| tcgetpgrp(terminal) == Ok(group));
    getpgid(Some(pid)) == Ok(group) && in_foreground()
}

/// What to exit with, as a shell would: the command's own code, 128 and the signal if it was killed.
pub fn exit_code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(EXIT_FAILED),
        (None, Some(signal)) => killed_by(signal),
        (None, None) => EXIT_FAILED,
    }
}

/// As a shell would tell it.
pub(super) fn killed_by(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(EXIT_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_is_the_commands() {
        assert_eq!(exit_code(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_code(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_code(ExitStatus::from_raw(255 << 8)), 255);
        assert_eq!(exit_code(ExitStatus::from_raw(libc::SIGTERM)), 128 + 15);
        // Killed with a core dump.
        assert_eq!(exit_code(ExitStatus::from_raw(libc::SIGQUIT | 0x80)), 128 + 3);
    }
}
