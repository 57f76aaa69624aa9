//! Events of a perf PMU on one CPU, opened and read together.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// The PMUs that are read here are dynamic ones: their types, their codes and their CPUs are whatever
// this machine's sysfs says. The perf-event crate of the same author opens the kernel's own kinds of
// events, on a task or a CPU, and keeps such attributes to itself; what is needed here is the call, and
// this is it.
use perf_event_open_sys::bindings::{PERF_FLAG_FD_CLOEXEC, PERF_FORMAT_GROUP, perf_event_attr};
use perf_event_open_sys::perf_event_open;

/// No PMU has more of interest: there are seven package C-states.
const MOST: usize = 8;

/// One read for all of them.
#[derive(Debug, Default)]
pub(crate) struct Events {
    leader: Option<File>,
    /// Only kept from being closed.
    members: Vec<OwnedFd>,
}

impl Events {
    /// Opens one more, a counting event for everything that happens on `cpu`.
    pub(crate) fn add(&mut self, kind: u32, config: [u64; 3], cpu: usize) -> io::Result<()> {
        if self.len() == MOST {
            return Err(io::Error::other("more events than are read together"));
        }
        let fd = open_event(kind, config, cpu, self.leader.as_ref())?;
        match self.leader {
            None => self.leader = Some(fd.into()),
            Some(_) => self.members.push(fd),
        }
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.leader.is_none()
    }

    fn len(&self) -> usize {
        usize::from(self.leader.is_some()) + self.members.len()
    }

    /// Reads all counts, in the order of `add`; there have to be as many.
    pub(crate) fn read(&self, counts: &mut [u64]) -> io::Result<()> {
        const WORD: usize = size_of::<u64>();
        // PERF_FORMAT_GROUP: the number of values, then the values.
        let mut buffer = [0; WORD * (1 + MOST)];
        let mut leader = self.leader.as_ref().ok_or(ErrorKind::NotFound)?;
        let length = leader.read(&mut buffer)?;
        let mut words = buffer
            .get(..length)
            .unwrap_or_default()
            .chunks_exact(WORD)
            .map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
        // An event whose CPU went offline is in error and reads as nothing at all.
        let expected = counts.len();
        if words.next() != Some(expected as u64) || words.len() != expected {
            return Err(io::Error::other("the counters went away (is their CPU still online?)"));
        }
        for (count, word) in counts.iter_mut().zip(words) {
            *count = word;
        }
        Ok(())
    }
}

/// Opens a counting event for everything that happens on `cpu`.
fn open_event(
    kind: u32,
    config: [u64; 3],
    cpu: usize,
    leader: Option<&File>,
) -> io::Result<OwnedFd> {
    let mut attributes = perf_event_attr {
        type_: kind,
        size: size_of::<perf_event_attr>() as u32,
        config: config[0],
        // Filters (exclude_user and so on) stay off: these PMUs count everybody, and refuse.
        read_format: PERF_FORMAT_GROUP as u64,
        ..Default::default()
    };
    attributes.__bindgen_anon_3.config1 = config[1];
    attributes.__bindgen_anon_4.config2 = config[2];
    let cpu = cpu.try_into().map_err(|_| ErrorKind::InvalidInput)?;
    let leader = leader.map_or(-1, AsRawFd::as_raw_fd);
    // SAFETY: `attributes` is a valid perf_event_attr whose `size` is its own, and lives through the
    // call; the kernel reads it and keeps no pointer to it.
    let fd =
        unsafe { perf_event_open(&mut attributes, -1, cpu, leader, PERF_FLAG_FD_CLOEXEC.into()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
