//! CPU time per workload, from the probe.
//!
//! `load` puts the probe into the kernel, `read` takes what it counted out of shared memory: a read
//! makes no system call. Where the probe counts a workload (its slot) is nobody's business outside.

mod awake;
mod events;
mod exits;
mod layout;
mod load;
mod object;
mod read;
mod slots;
mod verifier;

use std::collections::{HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{HashMap, MapData, Queue, RingBuf};
use aya_log::EbpfLogger;
use ecoprobe_ebpf::SLOT_OTHER;

use self::events::ProbeLog;
pub use self::events::{CgroupNews, Fate};
pub(crate) use self::exits::Exits;
use self::exits::History;
pub use self::load::{Hook, LoadOptions};
use self::read::Counters;
use self::slots::{Begin, Slots};
use crate::base::id::User;
use crate::base::own::ProbeStats;
use crate::base::{Error, WorkloadId, monotonic_ns};
use crate::event::CpuTimes;

/// The loaded probe. Dropping it detaches it; nothing is pinned, so the kernel does the same if we
/// are killed.
pub struct Probe {
    ebpf: Ebpf,
    hook: Hook,
    counters: Counters,
    slots: Slots,
    /// Cgroup id → slot, as the probe looks it up.
    selected: HashMap<MapData, u64, u32>,
    /// Slots for the probe to give to cgroups that are made.
    spares: Queue<MapData, u32>,
    events: RingBuf<MapData>,
    /// Taken out of the ring, not told yet.
    news: VecDeque<CgroupNews>,
    /// How many were never told.
    forgotten_news: u64,
    /// Made of late, when the probe had no slot to give away.
    slotless: HashSet<u64>,
    begun_late: u64,
    /// Found to have ended between two readings.
    ended: Vec<WorkloadId>,
    /// When slots were settled last between two readings.
    settled_ns: u64,
    /// Until somebody takes them.
    exits: Option<Exits>,
    /// Who had which slot, where exits are asked for.
    history: Option<History>,
    logger: EbpfLogger<ProbeLog>,
    log: ProbeLog,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("hook", &self.hook).finish_non_exhaustive()
    }
}

/// What a BPF program cost since it was loaded, by the kernel's own account.
#[derive(Debug, Clone, Copy)]
pub struct RunTime {
    pub runs: u64,
    pub time: Duration,
}

/// How many cgroups are taken out of the selection in one reading: each is a system call.
const MOST_DESELECTED: usize = 64;
/// And between two readings, where nobody is in a hurry, and how often at most, ns: it makes every CPU
/// look up its cgroups again.
const MOST_BETWEEN: usize = 1024;
const SETTLE_PAUSE: u64 = 100_000_000;

/// How much news is kept for whoever does not ask for it.
const MOST_NEWS: usize = 64 * 1024;

impl Probe {
    /// Loads the probe with nothing selected; it counts only after [`Probe::attach`].
    pub fn load(options: LoadOptions<'_>) -> Result<Self, Error> {
        load::load(&options)
    }

    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Starts counting. On return every CPU that we may run on has switched once, so that its
    /// running task is known.
    pub fn attach(&mut self) -> Result<(), Error> {
        self.give_spares();
        load::attach(&mut self.ebpf, self.hook)?;
        load::switch_every_cpu(self.counters.nr_cpus(), self.has_siblings());
        Ok(())
    }

    /// Bills a cgroup's subtree to `id` from now on. `false`: there is room for no more, its time
    /// stays in `other`.
    ///
    /// The same id with another cgroup id is the same workload in a new cgroup, or in one more:
    /// times add up. The same cgroup id with another workload's id changes hands.
    ///
    /// A cgroup that was made since the probe was attached, and is not settled yet, has been counted
    /// from its beginning: that is the workload's.
    pub fn begin(&mut self, id: WorkloadId, cgroup_id: u64) -> Result<bool, Error> {
        // The probe may have given it a slot of which we have not heard yet.
        self.hear();
        self.ended.retain(|ended| *ended != id);
        let (slot, since) = match self.slots.begin(id, cgroup_id) {
            Begin::NoRoom => return Ok(false),
            Begin::Known => return Ok(true),
            Begin::Adopted { slot, since } => (slot, Some(since)),
            Begin::New(slot) => {
                self.begun_late += u64::from(self.slotless.remove(&cgroup_id));
                (slot, None)
            }
        };
        if let Some(history) = &self.history {
            history.begin(slot, User::Workload(id), since.unwrap_or_else(monotonic_ns));
        }
        if since.is_some() {
            return Ok(true);
        }
        if let Err(error) = self.selected.insert(cgroup_id, slot, 0) {
            self.slots.undo(cgroup_id);
            return Err(load::cannot("select a cgroup", &error));
        }
        self.counters.selection_changed();
        Ok(true)
    }

    /// The cgroup is gone, or nobody asks for it any more. What dying tasks still run in it belongs
    /// to its workload, so it takes some readings until all has been counted.
    pub fn end(&mut self, cgroup_id: u64) {
        self.slots.end(cgroup_id, monotonic_ns());
    }

    /// Drops what is kept of a workload that is in `ended`. Until then it may begin again, with the
    /// CPU time that it had.
    pub fn forget(&mut self, id: WorkloadId) {
        self.slots.forget(id);
    }

    /// What was made and is not begun by now is billed to its nearest ancestor that is, and always was;
    /// but for cgroups that are `undecided` and still young. Call it when all
    /// [`news`](Probe::cgroup_news) so far have been looked at.
    pub fn settle_newcomers(&mut self, undecided: impl Fn(u64) -> bool) {
        let now = monotonic_ns();
        if !self.slotless.is_empty() {
            self.slotless.clear();
            self.slots.want_more();
        }
        let history = self.history.as_ref();
        self.slots.decline(now, undecided, |declined| {
            if let Some(history) = history {
                let user = declined.heir.map_or(User::Other, User::Workload);
                history.begin(declined.slot, user, declined.since);
            }
        });
        self.give_spares();
        if self.slots.is_urgent() && now >= self.settled_ns.saturating_add(SETTLE_PAUSE) {
            self.settled_ns = now;
            let now = self.counters.look(&mut self.slots);
            self.settle(now, MOST_BETWEEN);
            self.give_spares();
        }
    }

    /// Bills newcomers as [`settle_newcomers`](Self::settle_newcomers) does, and those too of which
    /// nobody was told: before the last reading.
    pub fn settle_all_newcomers(&mut self) {
        self.hear();
        self.slots.told();
        self.settle_newcomers(|_| false);
    }

    /// Sees to it that the probe has slots to give away.
    fn give_spares(&mut self) {
        while let Some(slot) = self.slots.spare() {
            if let Some(history) = &self.history {
                // Not whoever had it before.
                history.begin(slot, User::Other, monotonic_ns());
            }
            if self.spares.push(slot, 0).is_err() {
                self.slots.take_back(slot);
                return;
            }
        }
    }

    /// Cumulative CPU time, running tasks included, and the CLOCK_MONOTONIC time of the reading.
    /// `ended` gains the workloads that have ended and for which nothing will come any more.
    pub fn read(&mut self, out: &mut CpuTimes, ended: &mut Vec<WorkloadId>) -> u64 {
        let now = self.counters.read(&mut self.slots, out);
        if self.slots.is_settling() {
            self.settle(now, MOST_DESELECTED);
        }
        ended.append(&mut self.ended);
        now
    }

    /// How long any CPU of the machine has run since the first reading, as of the last one, nanoseconds;
    /// it never goes back. An estimate from the CPUs' idle accounts, see [`awake`]. `None`: nothing is
    /// known yet.
    pub fn awake_ns(&self) -> Option<u64> {
        self.counters.awake_ns()
    }

    fn settle(&mut self, now: u64, most: usize) {
        // A slot that an event speaks of is still the same when it is heard.
        self.hear();
        self.slots.release(now, self.counters.views(), &mut self.ended);
        let (selected, mut changed) = (&mut self.selected, false);
        self.slots.deselect(now, most, |cgroup_id| {
            // An error is that it is not there.
            let _ = selected.remove(&cgroup_id);
            changed = true;
        });
        if changed {
            self.counters.selection_changed();
        }
    }

    /// CPUs that have run something and whose package nobody knows: their time is in `unplaced`.
    pub fn unplaced_cpus(&self) -> &[usize] {
        self.counters.unplaced_cpus()
    }

    /// Bills a CPU's time to a package from now on.
    pub fn place(&mut self, cpu: usize, package: usize) {
        self.counters.place(cpu, package);
    }

    /// What is the other thread of each CPU's core from now on, as in [`LoadOptions::sibling_of_cpu`].
    /// Without any at first, none can be had later.
    pub fn set_siblings(&mut self, sibling_of_cpu: &[Option<usize>]) {
        self.counters.set_siblings(sibling_of_cpu);
    }

    /// Whether paired time is known.
    pub fn has_siblings(&self) -> bool {
        self.counters.has_siblings()
    }

    /// Whose processes were that have exited; `None` if not loaded for it, or taken before. There is
    /// nothing in it until [`Probe::watch_exits`].
    pub fn take_exits(&mut self) -> Option<Exits> {
        self.exits.take()
    }

    /// From now on, notes whose each process was that exits.
    pub fn watch_exits(&mut self) -> Result<(), Error> {
        load::attach_exit(&mut self.ebpf, self.hook)
    }

    /// Cgroups made or removed in the followed hierarchy since the last call.
    pub fn cgroup_news(&mut self) -> impl Iterator<Item = CgroupNews> + '_ {
        self.hear();
        self.slots.told();
        self.news.drain(..)
    }

    /// Takes everything out of the ring.
    fn hear(&mut self) {
        while let Some(item) = self.events.next() {
            let Some((event, path)) = events::cgroup_event(&item) else { continue };
            if event.made != 0 {
                let unexpected = event.slot == SLOT_OTHER && self.slots.has_reserve();
                if unexpected && self.slotless.len() < MOST_NEWS {
                    self.slotless.insert(event.cgroup_id);
                }
                self.slots.wait(event.slot, event.cgroup_id, event.heir, event.mono_ns);
            }
            if self.news.len() == MOST_NEWS {
                self.news.pop_front();
                self.forgotten_news += 1;
            }
            self.news.push_back(CgroupNews::new(&event, path));
        }
    }

    /// Becomes readable when there are [`news`](Probe::cgroup_news); not for those that a reading came
    /// across.
    pub fn cgroup_events_fd(&self) -> io::Result<OwnedFd> {
        self.events.as_fd().try_clone_to_owned()
    }

    /// How many cgroups were begun of which the probe has not seen the beginning, because too many
    /// were made at a time: what they ran at first is their ancestor's.
    pub fn begun_late(&self) -> u64 {
        self.begun_late
    }

    /// What the probe found worth saying since the last call.
    pub fn warnings(&mut self) -> Vec<String> {
        self.logger.flush();
        self.log.take()
    }

    /// Events that did not fit into the ring: cgroups may have been made that we were not told of.
    pub fn lost_events(&self) -> u64 {
        self.counters.totals().lost_events + self.forgotten_news
    }

    pub fn stats(&self) -> ProbeStats {
        let totals = self.counters.totals();
        ProbeStats {
            events: Some(totals.switches),
            dropped: Some(totals.dropped),
            ns_per_event: self
                .run_time()
                .map(|total| total.time.as_nanos() as f64 / total.runs as f64),
        }
    }

    /// Of the `sched_switch` program. `None` unless `kernel.bpf_stats_enabled` is 1: the statistics
    /// themselves cost time, so we do not turn them on.
    pub fn run_time(&self) -> Option<RunTime> {
        let name = load::program_name("sched_switch", self.hook);
        let info = self.ebpf.program(&name)?.info().ok()?;
        let (runs, time) = (info.run_count(), info.run_time());
        (runs > 0).then_some(RunTime { runs, time })
    }
}

#[cfg(test)]
mod tests;
