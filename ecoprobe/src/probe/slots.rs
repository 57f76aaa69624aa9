//! Which workload has which slot, and when a slot can be given to another.
//!
//! A slot goes through these states:
//!
//! - live: its cgroup is selected.
//! - ending: the cgroup is gone or not asked for any more, and still selected: tasks that are dying
//!   run on in a removed cgroup. It ends once none is seen to run there, or after a while.
//! - draining: the cgroup is not selected any more. A CPU whose last task was billed to the slot
//!   still may be in the middle of a switch that counts something there; it is drained when no CPU
//!   holds it, seen some time after the selection changed, because a CPU that began to switch
//!   before that has long finished.
//! - free. Its counters stay as they are: the next owner's time is what is counted from then on.

use std::collections::HashMap;

use ecoprobe_ebpf::{MAX_CUTS, SLOT_FIRST};

use crate::base::WorkloadId;
use crate::event::CpuTimes;

/// How long after its end a cgroup stays selected at least, ns: a dying task has then run out.
const GRACE: u64 = 100_000_000;
/// And at most, though tasks go on running there: it was deselected, not removed.
const PATIENCE: u64 = 1_000_000_000;
/// How long a slot drains at least, ns: a switch takes a hundred of them, unless the hypervisor stops
/// it in the middle, which shows; who moves a task takes a few thousand, which does not show.
const DRAIN: u64 = 100_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Live,
    Ending { since: u64 },
    Draining { since: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    state: State,
    /// Index into the accounts.
    account: u32,
    cgroup_id: u64,
}

/// Which slots a CPU may bill to, as of the last reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// It has never switched, or has looked nothing up yet.
    Nothing,
    /// It is in the middle of a switch.
    Unknown,
    Slots {
        /// The last task's.
        held: u32,
        /// Whom the slice that runs is billed to, `None` where it is idle.
        running: Option<u32>,
        cuts: [Option<u32>; MAX_CUTS],
    },
}

/// What has become of a wish to bill a cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    NoRoom,
    /// It is billed to that workload already.
    Known,
    /// The cgroup is to be selected with this slot.
    New(u32),
}

#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// The lowest last.
    free: Vec<u32>,
    /// One more than the highest slot that was ever used.
    used: u32,
    by_cgroup: HashMap<u64, u32>,
    /// Ending or draining.
    leaving: Vec<u32>,
    accounts: Accounts,
    /// Which slots some CPU holds or runs, for a moment.
    marks: Vec<u8>,
}

const HELD: u8 = 1;
const RUNS: u8 = 2;

impl Slots {
    pub(super) fn new(nr_slots: u32, packages: usize) -> Self {
        let nobodys = Slot { state: State::Free, account: 0, cgroup_id: 0 };
        Self {
            slots: vec![nobodys; nr_slots as usize],
            free: (SLOT_FIRST..nr_slots).rev().collect(),
            used: SLOT_FIRST,
            by_cgroup: HashMap::new(),
            leaving: Vec::new(),
            accounts: Accounts::new(packages),
            marks: vec![0; nr_slots as usize],
        }
    }

    /// One more than the highest slot that may hold anything.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    pub(super) fn begin(&mut self, id: WorkloadId, cgroup_id: u64) -> Begin {
        let before = self.by_cgroup.get(&cgroup_id).copied();
        if let Some(slot) = before {
            let slot = &mut self.slots[slot as usize];
            if self.accounts.ids[slot.account as usize] == id {
                // It was ending perhaps, and still is selected.
                slot.state = State::Live;
                return Begin::Known;
            }
        }
        let Some(slot) = self.free.pop() else { return Begin::NoRoom };
        if let Some(before) = before {
            // What is selected is overwritten.
            self.leave(before, State::Draining { since: crate::base::monotonic_ns() });
        }
        self.used = self.used.max(slot + 1);
        let account = self.accounts.open(id);
        self.slots[slot as usize] = Slot { state: State::Live, account, cgroup_id };
        self.by_cgroup.insert(cgroup_id, slot);
        Begin::New(slot)
    }

    /// A cgroup that was begun could not be selected.
    pub(super) fn undo(&mut self, cgroup_id: u64) {
        if let Some(slot) = self.by_cgroup.remove(&cgroup_id) {
            self.leave(slot, State::Draining { since: 0 });
        }
    }

    pub(super) fn end(&mut self, cgroup_id: u64, now: u64) {
        if let Some(&slot) = self.by_cgroup.get(&cgroup_id)
            && self.slots[slot as usize].state == State::Live
        {
            self.leave(slot, State::Ending { since: now });
        }
    }

    pub(super) fn forget(&mut self, id: WorkloadId) {
        self.accounts.forget(id);
    }

    fn leave(&mut self, slot: u32, state: State) {
        self.slots[slot as usize].state = state;
        if !self.leaving.contains(&slot) {
            self.leaving.push(slot);
        }
    }

    /// Whether [`Slots::release`] and [`Slots::deselect`] have anything to do.
    pub(super) fn is_settling(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Frees the slots that nothing is counted in any more; adds to `ended` whose last one it was.
    pub(super) fn release(&mut self, now: u64, views: &[View], ended: &mut Vec<WorkloadId>) {
        self.mark(views);
        let stopped = views.contains(&View::Unknown);
        let mut leaving = std::mem::take(&mut self.leaving);
        leaving.retain(|&number| {
            let slot = &mut self.slots[number as usize];
            match slot.state {
                State::Draining { since } => {
                    if stopped
                        || now < since.saturating_add(DRAIN)
                        || self.marks[number as usize] != 0
                    {
                        return true;
                    }
                    slot.state = State::Free;
                    self.free.push(number);
                    ended.extend(self.accounts.close(slot.account));
                    false
                }
                State::Ending { .. } => true,
                // It has come back.
                State::Live | State::Free => false,
            }
        });
        self.leaving = leaving;
    }

    /// Marks what the CPUs hold and run.
    fn mark(&mut self, views: &[View]) {
        self.marks.fill(0);
        let mut set = |slot: u32, mark: u8| {
            if let Some(marks) = self.marks.get_mut(slot as usize) {
                *marks |= mark;
            }
        };
        for view in views {
            if let View::Slots { held, running, cuts } = view {
                set(*held, HELD);
                for slot in cuts.iter().chain([running]).flatten() {
                    set(*slot, RUNS);
                }
            }
        }
    }

    /// The next cgroup that must not be selected any more. After [`Slots::release`], whose marks it
    /// uses.
    pub(super) fn deselect(&mut self, now: u64) -> Option<u64> {
        let slot = *self.leaving.iter().find(|slot| {
            let State::Ending { since } = self.slots[**slot as usize].state else { return false };
            let age = now.saturating_sub(since);
            let runs = self.marks[**slot as usize] & RUNS != 0;
            age >= PATIENCE || (age >= GRACE && !runs)
        })?;
        let ending = &mut self.slots[slot as usize];
        ending.state = State::Draining { since: now };
        self.by_cgroup.remove(&ending.cgroup_id);
        Some(ending.cgroup_id)
    }

    /// `ns` more on a package (or on CPUs of no known package, which is the one after the last).
    pub(super) fn bill(&mut self, package: usize, slot: u32, ns: u64) -> bool {
        match self.slots.get(slot as usize) {
            Some(owned) if slot >= SLOT_FIRST && owned.state != State::Free => {
                self.accounts.bill(package, owned.account, ns);
                true
            }
            _ => false,
        }
    }

    /// Lists the workloads whose time has changed since the last call.
    pub(super) fn list(&mut self, out: &mut CpuTimes) {
        self.accounts.list(out);
    }
}

/// The CPU time of workloads, which may have had several slots.
#[derive(Debug)]
struct Accounts {
    ids: Vec<WorkloadId>,
    /// How many slots each has.
    slots: Vec<u32>,
    /// By package, the one after the last for CPUs of no known one, and account.
    packages: Vec<Times>,
    /// Sorted by id.
    order: Vec<u32>,
    by_id: HashMap<WorkloadId, u32>,
    free: Vec<u32>,
    /// To be dropped as soon as they have ended.
    unwanted: Vec<bool>,
}

#[derive(Debug, Default, Clone)]
struct Times {
    ns: Vec<u64>,
    changed: Vec<bool>,
    any_changed: bool,
}

impl Accounts {
    fn new(packages: usize) -> Self {
        Self {
            ids: Vec::new(),
            slots: Vec::new(),
            packages: vec![Times::default(); packages + 1],
            order: Vec::new(),
            by_id: HashMap::new(),
            free: Vec::new(),
            unwanted: Vec::new(),
        }
    }

    /// One slot more for a workload.
    fn open(&mut self, id: WorkloadId) -> u32 {
        if let Some(&account) = self.by_id.get(&id) {
            self.slots[account as usize] += 1;
            self.unwanted[account as usize] = false;
            return account;
        }
        let account = self.free.pop().unwrap_or_else(|| {
            self.ids.push(id);
            self.slots.push(0);
            self.unwanted.push(false);
            for times in &mut self.packages {
                times.ns.push(0);
                times.changed.push(false);
            }
            self.ids.len() as u32 - 1
        });
        let index = account as usize;
        self.ids[index] = id;
        self.slots[index] = 1;
        self.unwanted[index] = false;
        self.by_id.insert(id, account);
        let ids = &self.ids;
        let place = self.order.partition_point(|other| ids[*other as usize] < id);
        self.order.insert(place, account);
        account
    }

    /// One slot less; the id if it was the last.
    fn close(&mut self, account: u32) -> Option<WorkloadId> {
        let index = account as usize;
        self.slots[index] -= 1;
        if self.slots[index] > 0 {
            return None;
        }
        let id = self.ids[index];
        if self.unwanted[index] {
            self.drop(id);
        }
        Some(id)
    }

    fn forget(&mut self, id: WorkloadId) {
        let Some(&account) = self.by_id.get(&id) else { return };
        if self.slots[account as usize] == 0 {
            self.drop(id);
        } else {
            self.unwanted[account as usize] = true;
        }
    }

    fn drop(&mut self, id: WorkloadId) {
        let Some(account) = self.by_id.remove(&id) else { return };
        let ids = &self.ids;
        let place = self.order.partition_point(|other| ids[*other as usize] < id);
        self.order.remove(place);
        for times in &mut self.packages {
            times.ns[account as usize] = 0;
            times.changed[account as usize] = false;
        }
        self.free.push(account);
    }

    fn bill(&mut self, package: usize, account: u32, ns: u64) {
        if let Some(times) = self.packages.get_mut(package) {
            times.ns[account as usize] += ns;
            times.changed[account as usize] = true;
            times.any_changed = true;
        }
    }

    fn list(&mut self, out: &mut CpuTimes) {
        let places = out.packages.iter_mut().chain([&mut out.unplaced]);
        for (times, place) in self.packages.iter_mut().zip(places) {
            place.workloads.clear();
            if !std::mem::take(&mut times.any_changed) {
                continue;
            }
            for &account in &self.order {
                let account = account as usize;
                if std::mem::take(&mut times.changed[account]) {
                    place.workloads.push((self.ids[account], times.ns[account]));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
