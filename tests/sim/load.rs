//! Loads with a known shape, in cgroups: forked from the test, moved into their cgroup before they
//! begin, killed by their pid on drop, and with the test if that is killed.

// Every test file includes this one and uses its own part of it.
#![allow(dead_code)]

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// A running load.
#[derive(Debug)]
pub(crate) struct Load {
    pid: Pid,
}

/// What a load does, for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// Never yields.
    Hog,
    /// Runs for `busy` in each `period`.
    Duty { busy: Duration, period: Duration },
    /// Likewise, from `phase` after whole periods of CLOCK_MONOTONIC on.
    InStep { busy: Duration, period: Duration, phase: Duration },
    /// One child after another, each of which runs for this long and ends: with 1 ms, close to a
    /// thousand a second.
    Forks { each: Duration },
    /// Waits for a byte from one pipe and passes it on into another.
    Relay { from: RawFd, to: RawFd },
}

impl Shape {
    pub(crate) const QUARTER: Self =
        Self::Duty { busy: Duration::from_micros(2_500), period: Duration::from_millis(10) };
    pub(crate) const MILLISECOND_CHILDREN: Self = Self::Forks { each: Duration::from_millis(1) };
}

impl Load {
    /// Starts a load in the cgroup with this directory, on one CPU if one is named.
    pub(crate) fn start(shape: Shape, cgroup: &Path, cpu: Option<usize>) -> Self {
        let (gate, mut open) = std::io::pipe().expect("a pipe");
        let gate_fd = gate.as_raw_fd();
        let open_fd = open.as_raw_fd();
        // SAFETY: the test has other threads, so the child may call nothing but what is
        // async-signal-safe; `wait_then_run` keeps to that and never returns.
        let pid = match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", std::io::Error::last_os_error()),
            // SAFETY: as above.
            0 => unsafe { wait_then_run(shape, gate_fd, open_fd) },
            pid => Pid::from_raw(pid),
        };
        // From here on a panic kills it.
        let load = Self { pid };
        if let Some(cpu) = cpu {
            let mut cpus = CpuSet::new();
            cpus.set(cpu).expect("a CPU number");
            sched_setaffinity(pid, &cpus).expect("sched_setaffinity");
        }
        load.move_to(cgroup);
        open.write_all(b"!").expect("the load waits");
        load
    }

    pub(crate) fn hog(cgroup: &Path, cpu: usize) -> Self {
        Self::start(Shape::Hog, cgroup, Some(cpu))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Into another cgroup, in the middle of whatever it does.
    pub(crate) fn move_to(&self, cgroup: &Path) {
        let processes = cgroup.join("cgroup.procs");
        fs::write(&processes, self.pid.to_string())
            .unwrap_or_else(|error| panic!("{}: {error}", processes.display()));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = kill(self.pid, Signal::SIGKILL);
        let _ = waitpid(self.pid, None);
    }
}

/// A process that is born in a cgroup, runs for a while, and ends by itself.
#[derive(Debug)]
pub(crate) struct Job(Pid);

impl Job {
    /// Nothing of it runs anywhere else (CLONE_INTO_CGROUP, Linux 5.7).
    pub(crate) fn start(cgroup: &Path, busy: Duration) -> Self {
        let directory =
            fs::File::open(cgroup).unwrap_or_else(|error| panic!("{cgroup:?}: {error}"));
        // SAFETY: all zeros is a fork.
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        // libc has it as an int, which it does not fit into.
        arguments.flags = 0x2_0000_0000;
        arguments.exit_signal = libc::SIGCHLD as u64;
        arguments.cgroup = directory.as_raw_fd() as u64;
        let size = size_of_val(&arguments);
        // SAFETY: the arguments outlive the call. The child has a copy of this memory, of which other
        // threads may hold locks: it calls nothing but what is async-signal-safe.
        match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size) } {
            -1 => panic!("clone3: {}", std::io::Error::last_os_error()),
            0 => {
                spin_until(now() + busy.as_nanos() as u64);
                // SAFETY: ends the child.
                unsafe { libc::_exit(0) }
            }
            pid => Self(Pid::from_raw(pid as i32)),
        }
    }

    /// Until it has ended.
    pub(crate) fn wait(self) {
        let _ = waitpid(self.0, None);
    }
}

/// The child of a fork. Calls only what is async-signal-safe.
unsafe fn wait_then_run(shape: Shape, gate: i32, open: i32) -> ! {
    // SAFETY: plain system calls on our own memory; see `start` for why nothing else is here.
    unsafe {
        // Dies with the thread that started it, however that ends.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // Else the pipe would not end with the parent.
        libc::close(open);
        let mut byte = 0_u8;
        if libc::read(gate, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(1);
        }
        match shape {
            Shape::Hog => loop {
                std::hint::spin_loop();
            },
            Shape::Duty { busy, period } => repeat(now(), busy, period),
            Shape::InStep { busy, period, phase } => {
                let period_ns = period.as_nanos() as u64;
                let first = (now() / period_ns + 1) * period_ns + phase.as_nanos() as u64;
                sleep_until(first);
                repeat(first, busy, period)
            }
            Shape::Forks { each } => loop {
                match libc::fork() {
                    -1 => libc::_exit(1),
                    0 => {
                        spin_until(now() + each.as_nanos() as u64);
                        libc::_exit(0);
                    }
                    child => libc::waitpid(child, std::ptr::null_mut(), 0),
                };
            },
            Shape::Relay { from, to } => loop {
                let byte = (&raw mut byte).cast();
                if libc::read(from, byte, 1) != 1 || libc::write(to, byte, 1) != 1 {
                    libc::_exit(1);
                }
            },
        }
    }
}

/// Async-signal-safe.
fn repeat(mut start: u64, busy: Duration, period: Duration) -> ! {
    loop {
        spin_until(start + busy.as_nanos() as u64);
        start += period.as_nanos() as u64;
        sleep_until(start);
    }
}

fn sleep_until(at: u64) {
    let at = libc::timespec {
        tv_sec: (at / 1_000_000_000) as libc::time_t,
        tv_nsec: (at % 1_000_000_000) as libc::c_long,
    };
    let null = std::ptr::null_mut();
    // SAFETY: a plain system call on our own memory.
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const at, null)
    };
}

fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: fills in the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn spin_until(end: u64) {
    while now() < end {
        std::hint::spin_loop();
    }
}
