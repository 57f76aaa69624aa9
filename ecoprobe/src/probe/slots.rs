//! Which workload has which slot, and when a slot can be given to another.
//!
//! A slot goes through these states:
//!
//! - spare: the probe may give it to a cgroup that is made.
//! - waiting: it did, and nobody has said yet whose that cgroup is. What is counted there, and in a
//!   spare one whose cgroup we have not heard of, is kept.
//! - live: its cgroup is selected.
//! - ending: the cgroup is gone or not asked for any more, and still selected: tasks that are dying
//!   run on in a removed cgroup. It ends once none is seen to run there, or after a while.
//! - draining: the cgroup is not selected any more. A CPU whose last task was billed to the slot
//!   still may be in the middle of a switch that counts something there; it is drained when no CPU
//!   holds it, seen some time after the selection changed, because a CPU that began to switch
//!   before that has long finished.
//! - free. Its counters stay as they are: the next owner's time is what is counted from then on.
//!
//! A waiting cgroup that somebody asks for is live with all that was counted. One that nobody asks for
//! ends at once: its time, and whatever is still counted there, is that of its nearest selected
//! ancestor (the heir), whose it would have been without a slot. So nothing is counted twice or given
//! back, and no CPU has to look anything up before the slot leaves.
//!
//! Spare slots and those that nobody asked for come out of a reserve. However many cgroups are made
//! that nobody wants, they take no workload's place; with the reserve exhausted, cgroups are counted
//! for the heir until they are begun.

mod accounts;

use std::collections::HashMap;

use ecoprobe_ebpf::{MAX_CUTS, SLOT_FIRST};

use self::accounts::Accounts;
pub(super) use self::accounts::Time;
use crate::base::WorkloadId;
use crate::event::CpuTimes;

/// How many slots the probe can take at first before it hears from us: a burst of cgroups. Each is a
/// counter more to read for each CPU; where they have not been enough, there are more.
const SPARES: u32 = 256;
/// How many slots there are for those and for cgroups that nobody asked for, until they are settled.
pub(super) const RESERVE: u32 = 1024;

/// So many slots at a time are settled by ticks alone, whose business it is not to make system calls.
const MANY: usize = 128;

/// How long after its end a cgroup stays selected at least, ns: a dying task has then run out.
const GRACE: u64 = 100_000_000;
/// And at most, though tasks go on running there: it was deselected, not removed.
const PATIENCE: u64 = 1_000_000_000;
/// How long a slot drains at least, ns: a switch takes a hundred of them, unless the hypervisor stops
/// it in the middle, which shows; who moves a task takes a few thousand, which does not show.
const DRAIN: u64 = 100_000_000;
/// How long a cgroup waits at most, ns: whoever looks for it has found it by then, or never will.
const WAIT: u64 = 1_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Spare,
    Waiting,
    Live,
    Ending { since: u64 },
    Draining { since: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    state: State,
    /// Index into the accounts; `None`: nobody's, its time is `other`.
    account: Option<u32>,
    cgroup_id: u64,
    /// Out of the reserve.
    reserved: bool,
}

/// A cgroup that the probe has given a spare slot.
#[derive(Debug, Clone, Copy)]
struct Newcomer {
    slot: u32,
    cgroup_id: u64,
    heir: u32,
    /// When it was made.
    since: u64,
    /// Whether whoever may ask for it has heard of it.
    told: bool,
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
    /// It has been counted there since it was made, at that time.
    Adopted {
        slot: u32,
        since: u64,
    },
    /// The cgroup is to be selected with this slot.
    New(u32),
}

/// Whose a newcomer's time is that nobody asked for, from when on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Declined {
    pub(super) slot: u32,
    pub(super) since: u64,
    /// `None`: `other`.
    pub(super) heir: Option<WorkloadId>,
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
    /// How many slots are spare and how many should be, how many are out of the reserve and how many may
    /// be.
    spare: u32,
    spares: u32,
    reserved: u32,
    reserve: u32,
    /// Waiting, in the order in which they were made; and some that do not any more.
    newcomers: Vec<Newcomer>,
    /// What was counted in spare and waiting slots, by package.
    kept: HashMap<u32, Vec<Time>>,
    /// What of that turned out to be nobody's, by package.
    for_other: Vec<Time>,
    accounts: Accounts,
    /// Which slots some CPU holds or runs, for a moment.
    marks: Vec<u8>,
}

const HELD: u8 = 1;
const RUNS: u8 = 2;

impl Slots {
    /// `reserve` of the slots are for cgroups whose owner is not known.
    pub(super) fn new(nr_slots: u32, reserve: u32, packages: usize) -> Self {
        let nobodys = Slot { state: State::Free, account: None, cgroup_id: 0, reserved: false };
        Self {
            slots: vec![nobodys; nr_slots as usize],
            free: (SLOT_FIRST..nr_slots).rev().collect(),
            used: SLOT_FIRST,
            by_cgroup: HashMap::new(),
            leaving: Vec::new(),
            spare: 0,
            spares: SPARES.min(reserve),
            reserved: 0,
            reserve,
            newcomers: Vec::new(),
            kept: HashMap::new(),
            for_other: vec![Time::default(); packages + 1],
            accounts: Accounts::new(packages),
            marks: vec![0; nr_slots as usize],
        }
    }

    /// One more than the highest slot that may hold anything.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Whether the probe is to have slots to give away.
    pub(super) fn has_reserve(&self) -> bool {
        self.reserve > 0
    }

    /// Another slot for the probe to give away, if it is to have one.
    pub(super) fn spare(&mut self) -> Option<u32> {
        if self.spare >= self.spares || self.reserved >= self.reserve {
            return None;
        }
        let number = self.take()?;
        self.slots[number as usize] =
            Slot { state: State::Spare, account: None, cgroup_id: 0, reserved: true };
        self.spare += 1;
        self.reserved += 1;
        Some(number)
    }

    /// The probe had none when it needed one.
    pub(super) fn want_more(&mut self) {
        self.spares = self.spares.saturating_mul(2).min(self.reserve);
    }

    /// The probe could not be given a spare slot.
    pub(super) fn take_back(&mut self, slot: u32) {
        if self.state(slot) == State::Spare {
            self.spare -= 1;
            self.set_free(slot);
        }
    }

    /// Whether slots should not wait for the next tick to be settled: many do, or the probe has few to
    /// give away.
    pub(super) fn is_urgent(&self) -> bool {
        let many = self.leaving.len() > MANY || self.room() < self.leaving.len();
        self.is_settling() && (many || self.spare < self.spares / 2)
    }

    /// The probe has given a spare slot to a new cgroup.
    pub(super) fn wait(&mut self, slot: u32, cgroup_id: u64, heir: u32, since: u64) {
        if self.state(slot) != State::Spare {
            return;
        }
        self.spare -= 1;
        if let Some(before) = self.by_cgroup.insert(cgroup_id, slot) {
            // The id of one that is long gone.
            self.leave(before, State::Draining { since });
        }
        let waiting = &mut self.slots[slot as usize];
        waiting.state = State::Waiting;
        waiting.cgroup_id = cgroup_id;
        self.newcomers.push(Newcomer { slot, cgroup_id, heir, since, told: false });
    }

    pub(super) fn begin(&mut self, id: WorkloadId, cgroup_id: u64) -> Begin {
        let before = self.by_cgroup.get(&cgroup_id).copied();
        if let Some(number) = before {
            let slot = self.slots[number as usize];
            if slot.account.is_some_and(|account| self.accounts.ids[account as usize] == id) {
                // It was ending perhaps, and still is selected.
                self.slots[number as usize].state = State::Live;
                self.claim(number);
                return Begin::Known;
            }
            if slot.state == State::Waiting {
                return self.adopt(id, number);
            }
        }
        if self.room() == 0 {
            return Begin::NoRoom;
        }
        let Some(slot) = self.take() else { return Begin::NoRoom };
        if let Some(before) = before {
            // What is selected is overwritten.
            self.leave(before, State::Draining { since: crate::base::monotonic_ns() });
        }
        let account = Some(self.accounts.open(id));
        self.slots[slot as usize] =
            Slot { state: State::Live, account, cgroup_id, reserved: false };
        self.by_cgroup.insert(cgroup_id, slot);
        Begin::New(slot)
    }

    /// A waiting cgroup is a workload's, with all that was counted.
    fn adopt(&mut self, id: WorkloadId, number: u32) -> Begin {
        if self.room() == 0 {
            return Begin::NoRoom;
        }
        let newcomer = self.newcomers.iter().find(|newcomer| newcomer.slot == number);
        let since = newcomer.map_or(0, |newcomer| newcomer.since);
        let account = Some(self.accounts.open(id));
        let slot = &mut self.slots[number as usize];
        slot.state = State::Live;
        slot.account = account;
        self.claim(number);
        self.pass_on(number);
        Begin::Adopted { slot: number, since }
    }

    /// All newcomers so far may have been asked for.
    pub(super) fn told(&mut self) {
        self.newcomers.iter_mut().for_each(|newcomer| newcomer.told = true);
    }

    /// Gives the waiting cgroups to their heirs, but for those that may still be asked for.
    pub(super) fn decline(
        &mut self,
        now: u64,
        undecided: impl Fn(u64) -> bool,
        mut declined: impl FnMut(Declined),
    ) {
        let mut newcomers = std::mem::take(&mut self.newcomers);
        newcomers.retain(|newcomer| {
            let slot = self.slots[newcomer.slot as usize];
            if slot.state != State::Waiting || slot.cgroup_id != newcomer.cgroup_id {
                return false;
            }
            let in_time = now < newcomer.since.saturating_add(WAIT);
            // An heir that is undecided itself was made before, and so comes first in this list.
            if in_time
                && (!newcomer.told
                    || undecided(newcomer.cgroup_id)
                    || self.state(newcomer.heir) == State::Waiting)
            {
                return true;
            }
            let heir = self.slots.get(newcomer.heir as usize).and_then(|heir| heir.account);
            if let Some(account) = heir {
                self.accounts.share(account);
            }
            self.slots[newcomer.slot as usize].account = heir;
            self.leave(newcomer.slot, State::Ending { since: now });
            self.pass_on(newcomer.slot);
            let heir = heir.map(|account| self.accounts.ids[account as usize]);
            declined(Declined { slot: newcomer.slot, since: newcomer.since, heir });
            false
        });
        self.newcomers = newcomers;
    }

    /// Bills what was kept to whoever has the slot now.
    fn pass_on(&mut self, number: u32) {
        let account = self.slots[number as usize].account;
        for (package, time) in self.kept.remove(&number).into_iter().flatten().enumerate() {
            match account {
                _ if time == Time::default() => {}
                Some(account) => self.accounts.bill(package, account, time),
                None => self.for_other[package] += time,
            }
        }
    }

    /// What is to be added to `other`, by package, the one after the last for CPUs of no known one.
    pub(super) fn for_other(&mut self) -> impl Iterator<Item = Time> {
        self.for_other.iter_mut().map(std::mem::take)
    }

    /// How many workloads' cgroups more there may be.
    fn room(&self) -> usize {
        self.free.len().saturating_sub((self.reserve - self.reserved) as usize)
    }

    fn take(&mut self) -> Option<u32> {
        let slot = self.free.pop()?;
        self.used = self.used.max(slot + 1);
        Some(slot)
    }

    /// A slot is a workload's own from now on.
    fn claim(&mut self, number: u32) {
        if std::mem::take(&mut self.slots[number as usize].reserved) {
            self.reserved -= 1;
        }
    }

    fn set_free(&mut self, number: u32) {
        self.claim(number);
        self.slots[number as usize].state = State::Free;
        self.free.push(number);
    }

    fn state(&self, number: u32) -> State {
        self.slots.get(number as usize).map_or(State::Free, |slot| slot.state)
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
                    let account = slot.account.take();
                    self.set_free(number);
                    ended.extend(account.and_then(|account| self.accounts.close(account)));
                    false
                }
                State::Ending { .. } => true,
                // It has come back.
                State::Live | State::Free | State::Spare | State::Waiting => false,
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

    /// Tells the cgroups that must not be selected any more, `most` at most. After
    /// [`Slots::release`], whose marks it uses.
    pub(super) fn deselect(&mut self, now: u64, most: usize, mut each: impl FnMut(u64)) {
        let mut left = most;
        for &number in &self.leaving {
            let slot = &mut self.slots[number as usize];
            let State::Ending { since } = slot.state else { continue };
            let age = now.saturating_sub(since);
            let runs = self.marks[number as usize] & RUNS != 0;
            // Whatever else runs in one that nobody asked for is the heir's anyhow.
            if slot.reserved || age >= PATIENCE || (age >= GRACE && !runs) {
                let Some(less) = left.checked_sub(1) else { return };
                left = less;
                slot.state = State::Draining { since: now };
                self.by_cgroup.remove(&slot.cgroup_id);
                each(slot.cgroup_id);
            }
        }
    }

    /// So much more on a package (or on CPUs of no known package, which is the one after the last).
    /// `false`: it is nobody's.
    pub(super) fn bill(&mut self, package: usize, slot: u32, time: impl Into<Time>) -> bool {
        let time = time.into();
        let Some(owned) = self.slots.get(slot as usize) else { return false };
        match (owned.state, owned.account) {
            (State::Spare | State::Waiting, _) => {
                let packages = self.for_other.len();
                let kept = self.kept.entry(slot);
                let kept = kept.or_insert_with(|| vec![Time::default(); packages]);
                kept.get_mut(package).map(|kept| *kept += time).is_some()
            }
            (State::Free, _) | (_, None) => false,
            (_, Some(account)) => {
                self.accounts.bill(package, account, time);
                true
            }
        }
    }

    /// Lists the workloads whose time has changed since the last call.
    pub(super) fn list(&mut self, out: &mut CpuTimes) {
        self.accounts.list(out);
    }
}

#[cfg(test)]
mod tests;
