//! Who used a device between two instants: process lists and what was computed, turned into relative
//! weights.

use std::collections::BTreeMap;

use super::owner::Owner;
use crate::event::{GpuMethod, GpuUsage};

/// What a workload holds on a device at one poll.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Holding {
    /// `None` where the driver does not tell it of one process or more: what is missing is not 0.
    pub(super) bytes: Option<u64>,
    /// Its part of MIG instances, in slices.
    pub(super) slices: f64,
}

impl Default for Holding {
    fn default() -> Self {
        Self { bytes: Some(0), slices: 0.0 }
    }
}

impl Holding {
    pub(super) fn add(&mut self, bytes: Option<u64>, slices: f64) {
        self.bytes = sum(self.bytes, bytes);
        self.slices += slices;
    }
}

fn sum(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    Some(a?.saturating_add(b?))
}

/// Relative parts of what several processes hold: by memory, or alike if that is not told of all of
/// them, or if none of them holds any.
pub(super) fn parts_by_memory(bytes: &[Option<u64>]) -> Vec<f64> {
    let all: Option<Vec<u64>> = bytes.iter().copied().collect();
    match all {
        Some(all) if all.iter().any(|bytes| *bytes > 0) => {
            all.into_iter().map(|bytes| bytes as f64).collect()
        }
        _ => vec![1.0; bytes.len()],
    }
}

/// Who was on a device at one poll.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Census {
    /// The process lists could be had, and the pids in them mean something here.
    pub(super) known: bool,
    pub(super) mig: bool,
    pub(super) holders: BTreeMap<Owner, Holding>,
}

impl Census {
    /// Takes in a later census of the same window.
    pub(super) fn merge(&mut self, later: Self) {
        self.known |= later.known;
        self.mig = later.mig;
        for (owner, holding) in later.holders {
            let most = self.holders.entry(owner).or_default();
            most.bytes = most.bytes.zip(holding.bytes).map(|(a, b)| a.max(b));
            most.slices = most.slices.max(holding.slices);
        }
    }
}

/// Who used a device in a window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shares {
    pub(super) method: GpuMethod,
    pub(super) usage: Vec<GpuUsage>,
    pub(super) unknown_users: bool,
    /// Of those who cannot be told.
    pub(super) lost_weight: f64,
    /// Memory was to decide, and is not told of everybody: all of them count alike.
    pub(super) memory_untold: bool,
}

/// Weighs everybody who was on the device: at the poll before the window, at the one after it, or
/// in a utilisation sample (`sm`: multiprocessor seconds; under MIG slice seconds) between the two.
///
/// One workload alone needs no weighing. Under MIG utilisation is that of instances, if the driver
/// tells it at all; else their slices decide. If the samples say that nobody ran, or there are none,
/// memory decides: a context that only holds memory still keeps the clocks up.
pub(super) fn shares(
    before: &Census,
    after: &Census,
    sm: &BTreeMap<Owner, f64>,
    busy_seconds: Option<f64>,
) -> Shares {
    let mut present: BTreeMap<Owner, Holding> = BTreeMap::new();
    for census in [before, after] {
        for (owner, holding) in &census.holders {
            present.entry(*owner).or_default().add(holding.bytes, holding.slices);
        }
    }
    let ran = sm.iter().filter(|(_, seconds)| **seconds > 0.0);
    for (owner, _) in ran {
        present.entry(*owner).or_default();
    }

    let known = after.known || !sm.is_empty();
    let total_sm: f64 = sm.values().sum();
    let total_slices: f64 = present.values().map(|holding| holding.slices).sum();
    let sole = known && present.len() == 1 && present.keys().all(Option::is_some);
    let method = if sole {
        GpuMethod::Sole
    } else if after.mig && total_slices > 0.0 {
        GpuMethod::Mig
    } else if total_sm > 0.0 {
        GpuMethod::Utilisation
    } else {
        GpuMethod::Memory
    };

    let by_memory = known && method == GpuMethod::Memory;
    let bytes: Vec<Option<u64>> = present.values().map(|holding| holding.bytes).collect();
    let mut shares = Shares {
        method,
        usage: Vec::new(),
        unknown_users: !known,
        lost_weight: 0.0,
        memory_untold: by_memory && bytes.contains(&None),
    };
    if !known {
        return shares;
    }
    for ((owner, holding), by_memory) in present.iter().zip(parts_by_memory(&bytes)) {
        let seconds = sm.get(owner).copied().unwrap_or(0.0);
        let weight = match method {
            GpuMethod::Sole => 1.0,
            GpuMethod::Mig if total_sm > 0.0 => seconds,
            GpuMethod::Mig => holding.slices,
            GpuMethod::Utilisation => seconds,
            GpuMethod::Memory => by_memory,
        };
        let Some(user) = *owner else {
            shares.lost_weight += weight;
            continue;
        };
        let busy_seconds = match method {
            GpuMethod::Sole if total_sm == 0.0 => busy_seconds,
            GpuMethod::Sole | GpuMethod::Utilisation => Some(seconds),
            GpuMethod::Memory | GpuMethod::Mig => None,
        };
        let holds = after.holders.contains_key(owner) || before.holders.contains_key(owner);
        shares.usage.push(GpuUsage { user, weight, busy_seconds, holds });
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::WorkloadId;
    use crate::base::id::User;

    fn user(id: u64) -> User {
        User::Workload(WorkloadId(id))
    }

    fn some(id: u64) -> Owner {
        Some(user(id))
    }

    fn census(holders: &[(Owner, u64, f64)]) -> Census {
        holding(
            &holders.iter().map(|&(o, bytes, slices)| (o, Some(bytes), slices)).collect::<Vec<_>>(),
        )
    }

    fn holding(holders: &[(Owner, Option<u64>, f64)]) -> Census {
        let holders = holders
            .iter()
            .map(|&(owner, bytes, slices)| (owner, Holding { bytes, slices }))
            .collect::<BTreeMap<_, _>>();
        Census { known: true, mig: holders.values().any(|h| h.slices > 0.0), holders }
    }

    fn weights(shares: &Shares) -> Vec<(User, f64)> {
        shares.usage.iter().map(|usage| (usage.user, usage.weight)).collect()
    }

    #[test]
    fn one_workload_alone_gets_all_of_it_however_many_processes() {
        let now = census(&[(some(2), 100, 0.0)]);
        let shares = shares(&now, &now, &BTreeMap::new(), Some(0.5));
        assert_eq!(shares.method, GpuMethod::Sole);
        assert_eq!(shares.usage[0].busy_seconds, Some(0.5));
        assert!(shares.usage[0].holds);
    }

    #[test]
    fn utilisation_decides_before_memory() {
        let now = census(&[(some(2), 100, 0.0), (some(3), 900, 0.0)]);
        let sm = BTreeMap::from([(some(2), 0.7), (some(3), 0.3)]);
        let split = shares(&now, &now, &sm, None);
        assert_eq!(
            (split.method, weights(&split)),
            (GpuMethod::Utilisation, vec![(user(2), 0.7), (user(3), 0.3)])
        );
        let split = shares(&now, &now, &BTreeMap::new(), None);
        assert_eq!(
            (split.method, weights(&split)),
            (GpuMethod::Memory, vec![(user(2), 200.0), (user(3), 1800.0)])
        );
    }

    #[test]
    fn a_process_that_nobody_knows_takes_its_share_along() {
        let now = census(&[(some(2), 100, 0.0)]);
        let sm = BTreeMap::from([(some(2), 0.5), (None, 0.5)]);
        let split = shares(&now, &now, &sm, None);
        assert_eq!(split.method, GpuMethod::Utilisation);
        assert_eq!((weights(&split), split.lost_weight), (vec![(user(2), 0.5)], 0.5));
    }

    #[test]
    fn slices_decide_under_mig() {
        let now = census(&[(some(2), 1, 3.0), (some(3), 900, 1.0)]);
        let split = shares(&now, &now, &BTreeMap::new(), None);
        assert_eq!(
            (split.method, weights(&split)),
            (GpuMethod::Mig, vec![(user(2), 6.0), (user(3), 2.0)])
        );
    }

    #[test]
    fn users_that_cannot_be_known_are_not_invented() {
        let unknown = Census::default();
        let split = shares(&unknown, &unknown, &BTreeMap::new(), Some(1.0));
        assert!(split.unknown_users && split.usage.is_empty());
    }

    #[test]
    fn memory_that_is_not_told_is_not_none() {
        // Of one of two, of both, and of one process of a user who has another.
        for (a, b) in [(None, Some(1000)), (Some(1000), None), (None, None), (None, Some(0))] {
            let now = holding(&[(some(2), a, 0.0), (some(3), b, 0.0)]);
            let split = shares(&now, &now, &BTreeMap::new(), None);
            assert_eq!(split.method, GpuMethod::Memory);
            assert_eq!(weights(&split), [(user(2), 1.0), (user(3), 1.0)], "{a:?} {b:?}");
            assert!(split.memory_untold);
        }
        let mut both = Holding::default();
        both.add(Some(1000), 0.0);
        both.add(None, 0.0);
        assert_eq!(both.bytes, None);
        // Told at one end of the window only.
        let (before, after) =
            (census(&[(some(2), 100, 0.0), (some(3), 300, 0.0)]), holding(&[(some(2), None, 0.0)]));
        let split = shares(&before, &after, &BTreeMap::new(), None);
        assert_eq!(weights(&split), [(user(2), 1.0), (user(3), 1.0)]);
    }

    #[test]
    fn memory_that_does_not_decide_need_not_be_told() {
        let now = holding(&[(some(2), None, 0.0), (some(3), Some(1000), 0.0)]);
        let sm = BTreeMap::from([(some(2), 0.7), (some(3), 0.3)]);
        let split = shares(&now, &now, &sm, None);
        assert_eq!((split.method, split.memory_untold), (GpuMethod::Utilisation, false));
        let alone = holding(&[(some(2), None, 0.0)]);
        let split = shares(&alone, &alone, &BTreeMap::new(), None);
        assert_eq!((split.method, split.memory_untold), (GpuMethod::Sole, false));
        // All of it told, and none held: alike, and nothing is missing.
        let none = census(&[(some(2), 0, 0.0), (some(3), 0, 0.0)]);
        let split = shares(&none, &none, &BTreeMap::new(), None);
        assert_eq!(weights(&split), [(user(2), 1.0), (user(3), 1.0)]);
        assert!(!split.memory_untold);
    }

    #[test]
    fn parts_of_an_instance_go_by_memory_only_if_all_of_it_is_told() {
        assert_eq!(parts_by_memory(&[Some(1), Some(3)]), [1.0, 3.0]);
        assert_eq!(parts_by_memory(&[Some(1), None, Some(3)]), [1.0; 3]);
        assert_eq!(parts_by_memory(&[Some(0), Some(0)]), [1.0; 2]);
        assert_eq!(parts_by_memory(&[]), [0.0; 0]);
    }
}
