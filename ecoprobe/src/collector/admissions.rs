//! Which workloads those to the right have heard of, and which found no room.

use std::collections::HashSet;

use crate::base::WorkloadId;
use crate::event::Workload;
use crate::workload::names::Change;

/// So many workloads without room are told apart.
const MOST_REFUSED: usize = 65_536;

/// Who found room in the probe, and who did not.
#[derive(Debug, Default)]
pub(super) struct Admissions {
    /// Those of whom was told, and whose end was not.
    living: HashSet<WorkloadId>,
    /// Those that found no room, for one cgroup at least; up to [`MOST_REFUSED`].
    refused: HashSet<WorkloadId>,
}

impl Admissions {
    /// What those to the right are to hear of a change, for which the probe `has_room` or not.
    pub(super) fn news(&mut self, change: Change, has_room: bool) -> Option<Workload> {
        match change {
            Change::Began(workload) | Change::Moved { workload } if has_room => {
                self.living.insert(workload.id);
                Some(workload)
            }
            Change::Began(workload) | Change::Moved { workload } => {
                if self.refused.len() < MOST_REFUSED {
                    self.refused.insert(workload.id);
                }
                None
            }
            // A name begins nothing: neither what never had room, nor what has ended since.
            Change::Renamed(workload) => {
                Some(workload).filter(|workload| self.living.contains(&workload.id))
            }
            Change::Gone { .. } => None,
        }
    }

    /// Those to the right have heard of its end.
    pub(super) fn ended(&mut self, id: WorkloadId) {
        self.living.remove(&id);
    }

    pub(super) fn warning(&self) -> Option<String> {
        let count = self.refused.len();
        let least = if count < MOST_REFUSED { "" } else { "at least " };
        (count > 0).then(|| {
            format!(
                "{least}{count} workloads found no room and are part of `other`; raise --max-workloads"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::event::WorkloadKind;

    fn workload(id: u64, name: &str) -> Workload {
        Workload {
            id: WorkloadId(id),
            name: name.to_owned(),
            cgroup: "/a".to_owned(),
            cgroup_id: 7,
            kind: WorkloadKind::Cgroup,
            labels: BTreeMap::new(),
        }
    }

    fn began(id: u64) -> Change {
        Change::Began(workload(id, "a"))
    }

    fn moved(id: u64) -> Change {
        Change::Moved { workload: workload(id, "a") }
    }

    fn renamed(id: u64) -> Change {
        Change::Renamed(workload(id, "b"))
    }

    #[test]
    fn nobody_hears_of_a_workload_without_room_until_it_has_some() {
        let mut admissions = Admissions::default();
        assert_eq!(admissions.news(began(1), false), None);
        assert_eq!(admissions.news(renamed(1), true), None);
        assert!(admissions.news(began(2), true).is_some(), "another one");
        assert!(admissions.news(renamed(2), true).is_some());
        assert!(admissions.news(moved(1), true).is_some());
        assert!(admissions.news(renamed(1), true).is_some());
        // One that was heard of keeps its row until its end, whatever becomes of its next cgroup.
        assert_eq!(admissions.news(moved(2), false), None);
        assert!(admissions.news(renamed(2), true).is_some());
    }

    #[test]
    fn a_name_brings_nobody_back_who_has_ended() {
        let mut admissions = Admissions::default();
        assert!(admissions.news(began(1), true).is_some());
        admissions.ended(WorkloadId(1));
        // Its path was made again, and there was no room.
        assert_eq!(admissions.news(moved(1), false), None);
        assert_eq!(admissions.news(renamed(1), true), None);
        assert!(admissions.news(moved(1), true).is_some());
        assert!(admissions.news(renamed(1), true).is_some());
    }

    #[test]
    fn workloads_without_room_are_counted_once_each() {
        let mut admissions = Admissions::default();
        assert_eq!(admissions.warning(), None);
        admissions.news(began(1), true);
        admissions.news(began(2), false);
        for _ in 0..100 {
            admissions.news(moved(1), false);
            admissions.news(moved(2), false);
        }
        let warning = admissions.warning().unwrap();
        assert!(warning.starts_with("2 workloads found no room"), "{warning}");
        (0..100_000).for_each(|id| drop(admissions.news(began(id), false)));
        assert_eq!(admissions.refused.len(), MOST_REFUSED);
        let warning = admissions.warning().unwrap();
        assert!(warning.starts_with("at least 65536 workloads found no room"), "{warning}");
    }
}
