//! The command's standard output on its way to ours, where a result for programs is to go there too:
//! whether the command writes anything decides where the result goes.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::{ForkResult, fork, pipe2};

use crate::base::Patience;

/// How often the thread looks whether it is to stop.
const LOOK_MS: u8 = 50;

/// What is left of a hurry's time for those who write the result.
const FOR_RESULT: Duration = Duration::from_millis(350);

/// Makes a write that waits for a reader return. By default nobody hears it, and nobody else here uses
/// it.
const INTERRUPT: Signal = Signal::SIGURG;

/// Copies a pipe to standard output.
#[derive(Debug)]
pub(super) struct Relay {
    /// Something was written.
    used: Arc<AtomicBool>,
    orders: Arc<Orders>,
    thread: JoinHandle<io::Result<Option<Remaining>>>,
}

#[derive(Debug, Default)]
struct Orders {
    /// End when what stands in the pipe is passed on.
    stop: AtomicBool,
    /// End now.
    hand_over: AtomicBool,
}

impl Relay {
    /// Starts it; the command gets the pipe's other end.
    pub(super) fn start(stdout: OwnedFd) -> io::Result<(Self, OwnedFd)> {
        let quietly = SigHandler::Handler(do_nothing);
        // Without SA_RESTART: an interrupted write says how far it came.
        let action = SigAction::new(quietly, SaFlags::empty(), SigSet::empty());
        // SAFETY: the handler does nothing, which is async-signal-safe.
        unsafe { sigaction(INTERRUPT, &action) }?;
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        let (used, orders) = (Arc::new(AtomicBool::new(false)), Arc::new(Orders::default()));
        let (uses, hears) = (Arc::clone(&used), Arc::clone(&orders));
        let (from, to) = (File::from(read), File::from(stdout));
        let copy = move || copy(from, to, &uses, &hears);
        let thread = std::thread::Builder::new().name("ecoprobe-relay".into()).spawn(copy)?;
        Ok((Self { used, orders, thread }, write))
    }

    /// Whether the command has written anything, now and later.
    pub(super) fn used(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.used)
    }

    /// The command has ended: nothing is waited for but that what it wrote is read.
    pub(super) fn stop(&self) {
        self.orders.stop.store(true, Ordering::Release);
    }

    /// Stops, and waits until what the command wrote is passed on. The rest, if there is no time, and
    /// what processes that it left behind may go on writing, is in what is returned.
    ///
    /// # Errors
    ///
    /// Not all of it could be written.
    pub(super) fn finish(self, patience: &Patience) -> io::Result<Option<Remaining>> {
        self.stop();
        let patience = patience.keeping(FOR_RESULT);
        while !self.thread.is_finished() {
            if patience.is_over() {
                self.orders.hand_over.store(true, Ordering::Release);
                // Again and again: one may come just before the write begins.
                // SAFETY: a thread that was not joined yet may be signalled.
                unsafe { libc::pthread_kill(self.thread.as_pthread_t(), INTERRUPT as i32) };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let failed = |_| Err(io::Error::other("what passes it on has failed"));
        let remaining = self.thread.join().unwrap_or_else(failed)?;
        if remaining.is_some() {
            // Whoever is left may write at any time.
            self.used.store(true, Ordering::Release);
        }
        Ok(remaining)
    }
}

extern "C" fn do_nothing(_: libc::c_int) {}

/// A pipe that is not closed, and what was read from it and not written yet.
#[derive(Debug)]
pub(super) struct Remaining {
    from: File,
    to: File,
    rest: Vec<u8>,
}

impl Remaining {
    /// Leaves a process behind that copies until the last writer is gone, as if the command had had our
    /// standard output itself. For the very end of the program.
    ///
    /// # Errors
    ///
    /// There is no process to be had: what was not passed on is lost, and the writers lose their reader.
    pub(super) fn leave_behind(self) -> io::Result<()> {
        let (from, to) = (self.from.as_raw_fd(), self.to.as_raw_fd());
        // SAFETY: the child makes async-signal-safe system calls and nothing else.
        match unsafe { fork() }? {
            ForkResult::Child => copy_and_exit(from, to, &self.rest),
            ForkResult::Parent { .. } => Ok(()),
        }
    }
}

fn copy(
    mut from: File,
    mut to: File,
    used: &AtomicBool,
    orders: &Orders,
) -> io::Result<Option<Remaining>> {
    let mut buffer = vec![0; 64 * 1024];
    // What stood in the pipe when we were told to stop, and is not passed on yet. Whoever is left may
    // write for ever: that is waited for by nobody.
    let mut owed = None;
    loop {
        if owed.is_none() && orders.stop.load(Ordering::Acquire) {
            owed = Some(bytes_in(&from)?);
        }
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
        match poll(&mut ready, if owed.is_some() { 0 } else { LOOK_MS }) {
            Ok(0) if owed.is_some() => return Ok(Some(Remaining { from, to, rest: Vec::new() })),
            Ok(0) | Err(Errno::EINTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let more = ready[0].revents().is_some_and(|events| events.contains(PollFlags::POLLIN));
        if owed == Some(0) && more {
            return Ok(Some(Remaining { from, to, rest: Vec::new() }));
        }
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        owed = owed.map(|owed| owed.saturating_sub(length));
        used.store(true, Ordering::Release);
        let mut rest = &buffer[..length];
        while !rest.is_empty() {
            match to.write(rest) {
                Ok(written) => rest = &rest[written..],
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Whoever gave us the descriptor may have made it non-blocking.
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let _ = poll(&mut [PollFd::new(to.as_fd(), PollFlags::POLLOUT)], LOOK_MS);
                }
                // A reader that went away is the command's to notice: its pipe closes with this thread.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(None),
                Err(error) => return Err(error),
            }
            if orders.hand_over.load(Ordering::Acquire) {
                let rest = rest.to_vec();
                return Ok(Some(Remaining { from, to, rest }));
            }
        }
    }
}

fn bytes_in(pipe: &File) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes an int, which `bytes` is.
    Errno::result(unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

fn copy_and_exit(from: RawFd, to: RawFd, rest: &[u8]) -> ! {
    let mut buffer = [0_u8; 4096];
    // SAFETY: plain system calls on descriptors that this process has inherited (above 2, which the
    // runtime keeps open); `buffer` and `rest` outlive them, and lengths are within them.
    unsafe {
        // What was handled here ends this process, as it ends any other.
        for signal in 1..=31 {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut action);
            if action.sa_sigaction != libc::SIG_IGN {
                libc::signal(signal, libc::SIG_DFL);
            }
        }
        // What else was inherited is not held open.
        libc::dup2(from, 0);
        libc::dup2(to, 1);
        if libc::syscall(libc::SYS_close_range, 2, libc::c_uint::MAX, 0) != 0 {
            // Before Linux 5.9.
            (2..1024).for_each(|descriptor| {
                libc::close(descriptor);
            });
        }
        write_or_exit(rest);
        loop {
            match libc::read(0, buffer.as_mut_ptr().cast(), buffer.len()) {
                length @ 1.. => write_or_exit(&buffer[..length as usize]),
                _ => libc::_exit(0),
            }
        }
    }
}

/// # Safety
///
/// For a process that `fork` made, whose descriptor 1 is the output.
unsafe fn write_or_exit(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: `bytes` lives as long as the calls; nothing is allocated.
        unsafe {
            match libc::write(1, bytes.as_ptr().cast(), bytes.len()) {
                written @ 1.. => bytes = &bytes[written as usize..],
                _ if *libc::__errno_location() == libc::EAGAIN => {
                    let mut ready = libc::pollfd { fd: 1, events: libc::POLLOUT, revents: 0 };
                    libc::poll(&mut ready, 1, -1);
                }
                _ => libc::_exit(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn seconds(seconds: u64) -> Patience {
        Duration::from_secs(seconds).into()
    }

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
        assert!(relay.finish(&seconds(5)).unwrap().is_none());
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "hello");
        assert!(used.load(Ordering::Acquire));
    }

    #[test]
    fn a_silent_command_is_told_from_one_that_left_a_writer_behind() {
        for left_behind in [false, true] {
            let (relay, write, _read) = relay();
            let used = relay.used();
            let write = left_behind.then_some(write);
            let remaining = relay.finish(&seconds(5)).unwrap();
            assert_eq!(
                (remaining.is_some(), used.load(Ordering::Acquire)),
                (left_behind, left_behind)
            );
            drop(write);
        }
    }

    #[test]
    fn whoever_is_left_and_never_stops_writing_is_not_waited_for() {
        let (relay, mut write, mut read) = relay();
        let writer = std::thread::spawn(move || while write.write_all(&[b'x'; 4096]).is_ok() {});
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while read.read(&mut buffer).is_ok_and(|length| length > 0) {}
        });
        let remaining = relay.finish(&seconds(60)).unwrap();
        assert!(remaining.is_some());
        drop(remaining);
        writer.join().unwrap();
        reader.join().unwrap();
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (relay, write) = Relay::start(full.into()).unwrap();
        let mut write = File::from(write);
        write.write_all(b"hi").unwrap();
        drop(write);
        let error = relay.finish(&seconds(5)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
    }

    #[test]
    fn no_byte_is_lost_to_a_reader_that_is_slow() {
        let (relay, mut write, mut read) = relay();
        // More than one pipe holds: some of it is in the other, or in between.
        let text: Vec<u8> = (0..120_000_u32).map(|i| (i % 251) as u8).collect();
        write.write_all(&text).unwrap();
        drop(write);
        let start = Instant::now();
        let hurry = Patience::default();
        hurry.hurry(FOR_RESULT + Duration::from_millis(50));
        let remaining = relay.finish(&hurry).unwrap().unwrap();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        assert!(!remaining.rest.is_empty());
        remaining.leave_behind().unwrap();
        let mut arrived = Vec::new();
        read.read_to_end(&mut arrived).unwrap();
        assert!(arrived == text, "{} bytes of {}", arrived.len(), text.len());
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
        assert!(relay.finish(&seconds(5)).unwrap().is_none());
    }
}
