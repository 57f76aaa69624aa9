//! One row: a domain over a tenth of a second or more, as every hypothesis sees it.

/// One user of the domain in a row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Active {
    /// Who it is, in the bank.
    pub(super) member: usize,
    /// Which price of its own it has, if it has one.
    pub(super) column: Option<usize>,
    /// Which of the sums that are carried along is its own.
    pub(super) sum: Option<usize>,
    /// CPU-seconds, and those of them beside a busy thread of the same core.
    pub(super) cpu: f64,
    pub(super) paired: f64,
    /// CPU-seconds more than it usually has.
    pub(super) off: f64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub(super) time: f64,
    pub(super) energy: f64,
    pub(super) users: Vec<Active>,
    /// CPU-seconds of all users together, and of the paired ones.
    pub(super) busy: f64,
    pub(super) paired: f64,
    /// Seconds in which the machine was awake.
    pub(super) awake: f64,
    /// How many CPUs there are.
    pub(super) cpus: f64,
    /// Variance of what the counter's refresh and resolution do, square joules; and of the CPU time's
    /// reading, square CPU-seconds.
    pub(super) noise: f64,
    pub(super) cpu_noise: f64,
    /// By how much a bend in the power can change the row, because the load changed within it, in units of
    /// the bend.
    pub(super) swing: f64,
    /// How much of what ran is not what ran in the row before, 0 to 1.
    pub(super) changed: f64,
    /// The machine sleeps, and was never seen asleep before.
    pub(super) falls_asleep: bool,
    /// What was read is possible, so there is something to learn from it.
    pub(super) sane: bool,
}

impl Row {
    /// The part of all CPUs that was busy.
    pub(super) fn bend(&self) -> f64 {
        self.busy / (self.time * self.cpus)
    }
}
