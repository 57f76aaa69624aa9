//! The command's standard output on its way to ours, where a result for programs is to go there too:
//! whether the command writes anything decides where the result goes.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::unistd::{ForkResult, fork, pipe2};

/// How often the thread looks whether it is to stop.
const LOOK_MS: u8 = 50;

/// Copies a pipe to standard output.
#[derive(Debug)]
pub(super) struct Relay {
    /// Something was written.
    used: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    /// Ends with the pipe, if somebody may still write to it.
    thread: JoinHandle<Option<(File, File)>>,
}

impl Relay {
    /// Starts it; the command gets the pipe's other end.
    pub(super) fn start(stdout: OwnedFd) -> io::Result<(Self, OwnedFd)> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        let (used, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (uses, stops) = (Arc::clone(&used), Arc::clone(&stop));
        let (from, to) = (File::from(read), File::from(stdout));
        let copy = move || copy(from, to, &uses, &stops);
        let thread = std::thread::Builder::new().name("ecoprobe-relay".into()).spawn(copy)?;
        Ok((Self { used, stop, thread }, write))
    }

    /// Whether the command has written anything, now and later.
    pub(super) fn used(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.used)
    }

    /// The command has ended: what it wrote is passed on, as far as somebody reads it. Processes that
    /// it left behind may go on writing.
    pub(super) fn finish(self, patience: Duration) -> Option<Remaining> {
        self.stop.store(true, Ordering::Release);
        let end = Instant::now() + patience;
        while !self.thread.is_finished() {
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let (from, to) = self.thread.join().ok()??;
        Some(Remaining { from, to })
    }
}

/// A pipe that is empty and not closed.
#[derive(Debug)]
pub(super) struct Remaining {
    from: File,
    to: File,
}

impl Remaining {
    /// Leaves a process behind that copies until the last writer is gone, as if the command had had our
    /// standard output itself. For the very end of the program.
    pub(super) fn leave_behind(self) {
        let (from, to) = (self.from.as_raw_fd(), self.to.as_raw_fd());
        // SAFETY: the child calls read(2), write(2), close(2) and _exit(2), nothing else.
        match unsafe { fork() } {
            Ok(ForkResult::Child) => copy_and_exit(from, to),
            // Without it the writers lose their reader.
            Ok(ForkResult::Parent { .. }) | Err(_) => {}
        }
    }
}

fn copy(
    mut from: File,
    mut to: File,
    used: &AtomicBool,
    stop: &AtomicBool,
) -> Option<(File, File)> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        // What stands in the pipe when we are told to stop is passed on first.
        let stopping = stop.load(Ordering::Acquire);
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, if stopping { 0 } else { LOOK_MS }) {
            Ok(0) if stopping => return Some((from, to)),
            Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
            Ok(_) => {}
            Err(_) => return None,
        }
        let length = from.read(&mut buffer).ok().filter(|length| *length > 0)?;
        used.store(true, Ordering::Release);
        // A reader that went away is the command's to notice: its pipe closes with this thread.
        to.write_all(&buffer[..length]).ok()?;
    }
}

fn copy_and_exit(from: RawFd, to: RawFd) -> ! {
    let mut buffer = [0_u8; 4096];
    // SAFETY: plain system calls on descriptors that this process has inherited; `buffer` outlives
    // them, and `length` is within it.
    unsafe {
        // What else was inherited is not held open.
        for descriptor in 0..1024 {
            if descriptor != from && descriptor != to {
                libc::close(descriptor);
            }
        }
        loop {
            let length = libc::read(from, buffer.as_mut_ptr().cast(), buffer.len());
            if length <= 0 {
                libc::_exit(0);
            }
            let mut written = 0;
            while written < length {
                let left = (length - written) as usize;
                let step = libc::write(to, buffer.as_ptr().add(written as usize).cast(), left);
                if step <= 0 {
                    libc::_exit(0);
                }
                written += step;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay() -> (Relay, File, File) {
        let (read, stdout) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (relay, write) = Relay::start(stdout).unwrap();
        (relay, write.into(), read.into())
    }

    #[test]
    fn what_is_written_arrives_and_is_noticed() {
        let (relay, mut write, mut read) = relay();
        let used = relay.used();
        assert!(!used.load(Ordering::Acquire));
        write.write_all(b"hello").unwrap();
        drop(write);
        assert!(relay.finish(Duration::from_secs(5)).is_none());
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(used.load(Ordering::Acquire));
    }

    #[test]
    fn a_silent_command_is_told_from_one_that_left_a_writer_behind() {
        let (relay, write, _read) = relay();
        let used = relay.used();
        let remaining = relay.finish(Duration::from_secs(5));
        assert!(remaining.is_some() && !used.load(Ordering::Acquire));
        drop(write);
    }

    #[test]
    fn a_reader_that_went_away_is_the_commands_to_notice() {
        let (relay, mut write, read) = relay();
        drop(read);
        write.write_all(b"x").unwrap();
        let gone = |write: &mut File| write.write_all(b"x").is_err();
        while !gone(&mut write) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(relay.finish(Duration::from_secs(5)).is_none());
    }
}
