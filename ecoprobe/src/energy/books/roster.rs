//! Everybody who is or was billed in this run.

use std::collections::{BTreeMap, VecDeque};

use rustc_hash::FxHashMap;

use crate::base::{User, WorkloadId};
use crate::event::{Workload, WorkloadKind};

/// How many workloads that have ended are kept apart. Of more, the oldest become one.
const MOST_ENDED: usize = 4096;

/// Those that ended long ago, together. No workload has this id.
const FOLDED: WorkloadId = WorkloadId(0);

/// One workload, and its CPU time.
#[derive(Debug, Clone)]
pub(crate) struct Member {
    pub(crate) workload: Workload,
    /// All packages together, nanoseconds.
    pub(crate) cpu_ns: u64,
    /// By package; the last one stands for CPUs whose package is not known.
    times_ns: Vec<u64>,
    /// The highest CPU time seen, likewise.
    seen_ns: Vec<u64>,
    seen_paired_ns: Vec<u64>,
    ended: bool,
}

impl Member {
    fn new(workload: Workload) -> Self {
        Self {
            workload,
            cpu_ns: 0,
            times_ns: Vec::new(),
            seen_ns: Vec::new(),
            seen_paired_ns: Vec::new(),
            ended: false,
        }
    }

    /// Nothing more will come for it, so far as is known now.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended || self.workload.kind == WorkloadKind::Ended
    }

    fn take(&mut self, other: &Self) {
        add_ns(&mut self.cpu_ns, other.cpu_ns);
        for (place, ns) in other.times() {
            add_ns(at(&mut self.times_ns, place), ns);
        }
    }

    /// CPU time by package, nanoseconds; beyond all of them stand CPUs whose package is not known.
    pub(crate) fn times(&self) -> impl Iterator<Item = (usize, u64)> {
        self.times_ns.iter().copied().enumerate()
    }
}

/// The members, in the order of their ids.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    /// Each is large, and a table has more places than members.
    members: FxHashMap<WorkloadId, Box<Member>>,
    ended: VecDeque<WorkloadId>,
    folded: u64,
    /// Ids ascend: who is no member and has none above this one was never introduced.
    highest: u64,
}

impl Roster {
    /// A workload began, or has another cgroup or name now. One that had ended goes on.
    pub(super) fn enter(&mut self, workload: Workload) {
        let id = workload.id;
        self.highest = self.highest.max(id.0);
        if let Some(member) = self.members.get_mut(&id) {
            member.workload = workload;
            if std::mem::take(&mut member.ended) {
                self.ended.retain(|other| *other != id);
            }
        } else {
            self.members.insert(id, Box::new(Member::new(workload)));
        }
    }

    /// Nothing more will come for a workload. Where too many have ended, says which one's sums are to
    /// be folded into another's.
    pub(super) fn end(&mut self, id: WorkloadId) -> Option<(WorkloadId, WorkloadId)> {
        let member = self.members.get_mut(&id).filter(|member| !member.ended)?;
        member.ended = true;
        // Should it come back, its time begins again.
        (member.seen_ns, member.seen_paired_ns) = (Vec::new(), Vec::new());
        self.ended.push_back(id);
        if self.ended.len() <= MOST_ENDED {
            return None;
        }
        let oldest = self.ended.pop_front()?;
        let gone = self.members.remove(&oldest)?;
        self.folded += 1;
        let together = self.members.entry(FOLDED).or_insert_with(|| {
            Box::new(Member::new(Workload {
                id: FOLDED,
                name: String::new(),
                cgroup: String::new(),
                cgroup_id: 0,
                kind: WorkloadKind::Ended,
                labels: BTreeMap::new(),
            }))
        });
        together.workload.name = format!("{} that ended before", self.folded);
        together.take(&gone);
        Some((oldest, FOLDED))
    }

    /// Who is billed for what a user did: the user, or those that it was folded with meanwhile. Time
    /// of a workload that nobody spoke of is nobody's. Whatever comes late, from another reading or
    /// another clock, asks here before it is entered.
    pub(super) fn row(&self, user: User) -> User {
        match user {
            User::Workload(id) if !self.members.contains_key(&id) => {
                let was_folded = self.folded > 0 && id.0 <= self.highest;
                if was_folded { User::Workload(FOLDED) } else { User::Other }
            }
            user => user,
        }
    }

    /// In the order in which they began; those that ended long ago come last, as one.
    pub(crate) fn members(&self) -> Vec<(WorkloadId, &Member)> {
        let mut members: Vec<_> =
            self.members.iter().map(|(id, member)| (*id, &**member)).collect();
        members.sort_unstable_by_key(|(id, _)| (*id == FOLDED, *id));
        members
    }

    /// What a workload's CPU time on a package (or beyond all: on CPUs whose package is not known)
    /// gained since the sample before. `None`: no such workload, its time is nobody's here.
    pub(super) fn advance(
        &mut self,
        id: WorkloadId,
        place: usize,
        ns: u64,
        first: bool,
    ) -> Option<u64> {
        let member = self.members.get_mut(&id)?;
        let seen = at(&mut member.seen_ns, place);
        let gained = if first { 0 } else { ns.saturating_sub(*seen) };
        *seen = ns.max(*seen);
        add_ns(&mut member.cpu_ns, gained);
        add_ns(at(&mut member.times_ns, place), gained);
        Some(gained)
    }

    /// Likewise of the time beside a busy thread of the same core, which is no time of its own.
    pub(super) fn advance_paired(&mut self, id: WorkloadId, place: usize, ns: u64) -> u64 {
        let Some(member) = self.members.get_mut(&id) else { return 0 };
        let seen = at(&mut member.seen_paired_ns, place);
        ns.saturating_sub(std::mem::replace(seen, ns.max(*seen)))
    }
}

/// CPU time is added up like this wherever it is: a recording may say anything, and no run comes near
/// the 584 years at which a sum stays where it is.
pub(super) fn add_ns(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

/// The entry at `place`, which is made if the list is too short.
fn at(list: &mut Vec<u64>, place: usize) -> &mut u64 {
    if place >= list.len() {
        list.resize(place + 1, 0);
    }
    &mut list[place]
}
