//! What the CPU itself counts.

use std::io;

use perf_event::events::{Event, Hardware, Software};
use perf_event::{Builder, Counter};

/// The instructions that one CPU retires in the kernel, and its context switches.
pub(super) struct Retired {
    instructions: Counter,
    switches: Counter,
    before: (u64, u64),
}

impl Retired {
    /// # Errors
    ///
    /// Where there is no hardware PMU, as on most virtual machines, or no permission.
    pub(super) fn open(cpu: usize) -> io::Result<Self> {
        let instructions = counter(Hardware::INSTRUCTIONS, cpu)?;
        let switches = counter(Software::CONTEXT_SWITCHES, cpu)?;
        let mut retired = Self { instructions, switches, before: (0, 0) };
        // A counter that others keep from the PMU opens and cannot be read.
        retired.per_switch()?;
        Ok(retired)
    }

    /// Instructions per switch since the last call.
    pub(super) fn per_switch(&mut self) -> io::Result<f64> {
        let now = (self.instructions.read()?, self.switches.read()?);
        let (instructions, switches) = (now.0 - self.before.0, now.1 - self.before.1);
        self.before = now;
        Ok(instructions as f64 / switches as f64)
    }
}

fn counter(event: impl Event, cpu: usize) -> io::Result<Counter> {
    // Pinned: on the PMU all the time, or an error.
    let mut builder = Builder::new(event);
    builder.any_pid().one_cpu(cpu).exclude_kernel(false).exclude_user(true).pinned(true);
    builder.enabled(true).build()
}
