//! Whose the processes were that have exited, for those who hear of them later (a GPU's driver).

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError, RwLock};

use aya::maps::{HashMap, MapData};
use ecoprobe_ebpf::{Exited, SLOT_OTHER};

use crate::base::id::User;

/// How many owners of a slot are remembered. The probe remembers an exit for seconds, and a slot
/// changes hands some five times a second at most, and is nobody's in between.
const MOST_OWNERS: usize = 32;

/// Since when who has had a slot, CLOCK_MONOTONIC in nanoseconds.
type SlotOwners = VecDeque<(u64, User)>;

/// Of each slot.
#[derive(Debug, Clone, Default)]
pub(super) struct History(Arc<RwLock<Vec<SlotOwners>>>);

impl History {
    /// `since` is when it began to be counted there.
    pub(super) fn begin(&self, slot: u32, user: User, since: u64) {
        let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let slot = slot as usize;
        if slots.len() <= slot {
            slots.resize_with(slot + 1, SlotOwners::new);
        }
        if slots[slot].len() == MOST_OWNERS {
            slots[slot].pop_front();
        }
        slots[slot].push_back((since, user));
    }

    /// `None`: too long ago.
    fn owner(&self, slot: u32, at_ns: u64) -> Option<User> {
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let owners = slots.get(slot as usize)?;
        owners.iter().rev().find(|(since, _)| *since <= at_ns).map(|(_, user)| *user)
    }
}

/// The processes that exited lately, as the probe noted them.
#[derive(Debug)]
pub struct Exits {
    pub(super) noted: [HashMap<MapData, u32, Value>; 2],
    pub(super) history: History,
}

/// As the map has it.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Value(Exited);

// SAFETY: integers without implicit padding.
unsafe impl aya::Pod for Value {}

impl Exits {
    /// Who a process of the initial pid namespace was billed to when a thread of it exited last, and
    /// the CLOCK_MONOTONIC time of that in nanoseconds. Two system calls.
    pub fn find(&self, pid: u32) -> Option<(User, u64)> {
        // An error is that there is no such process.
        let found = self.noted.iter().filter_map(|exited| exited.get(&pid, 0).ok());
        let Value(last) = found.max_by_key(|Value(exited)| exited.mono_ns)?;
        let user = match last.slot {
            SLOT_OTHER => User::Other,
            slot => self.history.owner(slot, last.mono_ns)?,
        };
        Some((user, last.mono_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{WorkloadId, monotonic_ns};

    fn workload(id: u64) -> User {
        User::Workload(WorkloadId(id))
    }

    #[test]
    fn an_exit_belongs_to_whoever_had_the_slot_then() {
        let history = History::default();
        let before = monotonic_ns();
        history.begin(5, workload(1), monotonic_ns());
        let first = monotonic_ns();
        history.begin(5, workload(2), monotonic_ns());
        assert_eq!(history.owner(5, first), Some(workload(1)));
        assert_eq!(history.owner(5, monotonic_ns()), Some(workload(2)));
        assert_eq!(history.owner(5, before - 1), None);
        assert_eq!(history.owner(4, first), None);
        assert_eq!(history.owner(99, first), None);
        for id in 3..100 {
            history.begin(5, workload(id), monotonic_ns());
        }
        assert_eq!(history.owner(5, first), None, "too long ago to say");
        assert_eq!(history.owner(5, monotonic_ns()), Some(workload(99)));
    }
}
