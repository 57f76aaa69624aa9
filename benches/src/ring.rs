//! Tasks that do nothing but switch: a byte goes round among them, on one CPU.

use std::io::{Result, Write as _, pipe};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use crate::simulators::load::{Load, Shape};

/// Runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Ring {
    _tasks: Vec<Load>,
}

impl Ring {
    /// A task in each of these cgroups; they take turns in this order.
    pub(crate) fn start(cgroups: &[&Path], cpu: usize) -> Result<Self> {
        // Tasks inherit them all; ours are closed at the end.
        let mut pipes = cgroups.iter().map(|_| pipe()).collect::<Result<Vec<_>>>()?;
        let next = pipes.iter().cycle().skip(1);
        let tasks = cgroups.iter().zip(&pipes).zip(next).map(|((cgroup, (from, _)), (_, to))| {
            let shape = Shape::Relay { from: from.as_raw_fd(), to: to.as_raw_fd() };
            Load::start(shape, cgroup, Some(cpu))
        });
        let tasks = tasks.collect();
        if let Some((_, to)) = pipes.first_mut() {
            to.write_all(b"!")?;
        }
        Ok(Self { _tasks: tasks })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::simulators::cgroup::TestCgroup;

    #[test]
    #[ignore = "needs root: it makes cgroups"]
    fn everybody_gets_a_turn() {
        let cgroups = ["one", "other", "third"].map(TestCgroup::v2);
        let _ring = Ring::start(&cgroups.each_ref().map(TestCgroup::path), 0).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        for cgroup in &cgroups {
            let task = std::fs::read_to_string(cgroup.path().join("cgroup.procs")).unwrap();
            let status = std::fs::read_to_string(format!("/proc/{}/status", task.trim())).unwrap();
            let line =
                status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let switches: u64 = line.unwrap().trim().parse().unwrap();
            assert!(switches > 100, "{switches}");
        }
    }
}
