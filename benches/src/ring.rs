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
