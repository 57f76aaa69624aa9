use super::*;
use crate::event::{Counts, PAIRED, PackageTime};

const MS: u64 = 1_000_000;
const IDLE_CPU: View = View::Slots { held: 0, running: None, cuts: [None; MAX_CUTS] };

fn runs(slot: u32) -> View {
    View::Slots { held: slot, running: Some(slot), cuts: [None; MAX_CUTS] }
}

fn new(slot: Begin) -> u32 {
    match slot {
        Begin::New(slot) => slot,
        other => panic!("{other:?}"),
    }
}

/// A reading at that time; the cgroups that are deselected, and the workloads that have ended.
fn settle(slots: &mut Slots, now: u64, views: &[View]) -> (Vec<u64>, Vec<u64>) {
    let mut ended = Vec::new();
    slots.release(now, views, &mut ended);
    let mut deselected = Vec::new();
    slots.deselect(now, usize::MAX, |id| deselected.push(id));
    (deselected, ended.into_iter().map(|id| id.0).collect())
}

fn listed(slots: &mut Slots) -> Vec<(u64, u64)> {
    let mut times = CpuTimes { packages: vec![PackageTime::default()], ..CpuTimes::default() };
    slots.list(&mut times);
    times.packages[0].workloads.iter().map(|(id, ns)| (id.0, *ns)).collect()
}

#[test]
fn a_slot_is_used_again_when_nobody_counts_there_any_more() {
    let mut slots = Slots::new(SLOT_FIRST + 1, 0, 1);
    let slot = new(slots.begin(WorkloadId(7), 70));
    assert_eq!(slots.begin(WorkloadId(8), 80), Begin::NoRoom);
    slots.end(70, 0);
    assert_eq!(slots.begin(WorkloadId(8), 80), Begin::NoRoom);
    // A dying task runs on in the removed cgroup: that is the workload's.
    assert_eq!(settle(&mut slots, 150 * MS, &[runs(slot)]), (vec![], vec![]));
    assert!(slots.bill(0, slot, 5));
    assert_eq!(settle(&mut slots, 160 * MS, &[IDLE_CPU]), (vec![70], vec![]));
    // A CPU was in the middle of a switch.
    assert_eq!(settle(&mut slots, 300 * MS, &[View::Unknown, IDLE_CPU]), (vec![], vec![]));
    // An idle CPU still holds it: whatever it counts next may go there.
    let holds = View::Slots { held: slot, running: None, cuts: [None; MAX_CUTS] };
    assert_eq!(settle(&mut slots, 400 * MS, &[holds]), (vec![], vec![]));
    // A slice was cut, and its later part is this slot's.
    let cuts = [Some(slot), None, None];
    let cut = View::Slots { held: 0, running: Some(0), cuts };
    assert_eq!(settle(&mut slots, 500 * MS, &[cut]), (vec![], vec![]));
    assert_eq!(slots.begin(WorkloadId(8), 80), Begin::NoRoom);
    assert_eq!(settle(&mut slots, 600 * MS, &[View::Nothing, IDLE_CPU]), (vec![], vec![7]));
    assert!(!slots.is_settling());
    assert!(!slots.bill(0, slot, 1), "a free slot is nobody's");
    assert_eq!(slots.begin(WorkloadId(8), 80), Begin::New(slot));
    assert!(slots.bill(0, slot, 3));
    assert_eq!(listed(&mut slots), [(7, 5), (8, 3)]);
}

#[test]
fn a_cgroup_that_is_deselected_while_tasks_run_there_is_not_waited_for() {
    let mut slots = Slots::new(SLOT_FIRST + 1, 0, 1);
    let slot = new(slots.begin(WorkloadId(1), 10));
    slots.end(10, 0);
    assert_eq!(settle(&mut slots, 999 * MS, &[runs(slot)]).0, [0; 0]);
    assert_eq!(settle(&mut slots, 1_000 * MS, &[runs(slot)]).0, [10]);
    // But no one else gets the slot before they have left it.
    assert_eq!(settle(&mut slots, 9_000 * MS, &[runs(slot)]).1, [0; 0]);
    assert_eq!(settle(&mut slots, 9_001 * MS, &[IDLE_CPU]).1, [1]);
}

#[test]
fn a_service_that_restarts_is_one_workload() {
    let mut slots = Slots::new(SLOT_FIRST + 4, 0, 1);
    let first = new(slots.begin(WorkloadId(1), 10));
    slots.bill(0, first, 100);
    slots.end(10, 0);
    // At once, while the old cgroup is settling ...
    let second = new(slots.begin(WorkloadId(1), 11));
    slots.bill(0, second, 10);
    slots.bill(0, first, 1);
    assert_eq!(listed(&mut slots), [(1, 111)]);
    assert_eq!(settle(&mut slots, 200 * MS, &[IDLE_CPU]), (vec![10], vec![]));
    assert_eq!(settle(&mut slots, 400 * MS, &[IDLE_CPU]), (vec![], vec![]));
    // ... and after it has ended altogether.
    slots.end(11, 400 * MS);
    settle(&mut slots, 600 * MS, &[IDLE_CPU]);
    assert_eq!(settle(&mut slots, 800 * MS, &[IDLE_CPU]), (vec![], vec![1]));
    let third = new(slots.begin(WorkloadId(1), 12));
    slots.bill(0, third, 1_000);
    assert_eq!(listed(&mut slots), [(1, 1_111)]);
}

#[test]
fn a_cgroup_that_ends_and_begins_again_keeps_its_slot() {
    let mut slots = Slots::new(SLOT_FIRST + 4, 0, 1);
    new(slots.begin(WorkloadId(1), 10));
    slots.end(10, 0);
    assert_eq!(slots.begin(WorkloadId(1), 10), Begin::Known);
    assert_eq!(settle(&mut slots, 9_000 * MS, &[IDLE_CPU]), (vec![], vec![]));
    assert!(!slots.is_settling());
}

#[test]
fn a_cgroup_may_change_hands() {
    let mut slots = Slots::new(SLOT_FIRST + 4, 0, 1);
    let first = new(slots.begin(WorkloadId(1), 10));
    let second = new(slots.begin(WorkloadId(2), 10));
    assert_ne!(first, second);
    // Ending it ends the second one's.
    slots.end(10, u64::MAX / 4);
    let (deselected, ended) = settle(&mut slots, u64::MAX / 2, &[IDLE_CPU]);
    assert_eq!((deselected, ended), (vec![10], vec![1]));
}

#[test]
fn only_what_has_changed_is_listed_and_by_id() {
    let mut slots = Slots::new(SLOT_FIRST + 9, 0, 2);
    let by_id: Vec<u32> = [5, 2, 9, 1].map(|id| new(slots.begin(WorkloadId(id), id * 10))).to_vec();
    for slot in &by_id {
        slots.bill(0, *slot, 1);
    }
    slots.bill(2, by_id[2], 7);
    let mut times = CpuTimes { packages: vec![PackageTime::default(); 2], ..CpuTimes::default() };
    slots.list(&mut times);
    let ids =
        |package: &PackageTime| package.workloads.iter().map(|(id, _)| id.0).collect::<Vec<_>>();
    assert_eq!(ids(&times.packages[0]), [1, 2, 5, 9]);
    assert_eq!(ids(&times.packages[1]), [0; 0]);
    assert_eq!(times.unplaced.workloads, [(WorkloadId(9), 7)]);
    slots.bill(0, by_id[1], 1);
    slots.list(&mut times);
    assert_eq!(times.packages[0].workloads, [(WorkloadId(2), 2)]);
    assert_eq!(times.unplaced.workloads, []);
}

/// A week of jobs through few slots: nothing is kept of those that are forgotten.
#[test]
fn accounts_do_not_grow_with_jobs() {
    let mut slots = Slots::new(SLOT_FIRST + 8, 0, 1);
    let mut now = 0;
    for job in 0..10_000 {
        let slot = new(slots.begin(WorkloadId(job), job));
        slots.bill(0, slot, job + 1);
        assert_eq!(listed(&mut slots), [(job, job + 1)]);
        slots.end(job, now);
        now += 200 * MS;
        settle(&mut slots, now, &[IDLE_CPU]);
        now += 200 * MS;
        let (_, ended) = settle(&mut slots, now, &[IDLE_CPU]);
        assert_eq!(ended, [job]);
        slots.forget(WorkloadId(job));
    }
    assert_eq!(slots.accounts.ids.len(), 1);
    assert!(slots.accounts.by_id.is_empty() && slots.by_cgroup.is_empty());
    assert_eq!(slots.used(), SLOT_FIRST + 1);
}

fn other(slots: &mut Slots) -> u64 {
    slots.for_other().map(|time| time.ns).sum()
}

/// Paired time goes wherever the CPU time goes of which it is a part, and is listed when it changes.
#[test]
fn paired_time_has_the_same_owners() {
    let mut slots = Slots::new(SLOT_FIRST + 4, 2, 1);
    let mut times = CpuTimes { packages: vec![PackageTime::default()], ..CpuTimes::default() };
    times.packages[0].features.insert(PAIRED, Counts::default());
    let mut list = |slots: &mut Slots| {
        slots.list(&mut times);
        let package = &times.packages[0];
        let ids = |list: &[(WorkloadId, u64)]| {
            list.iter().map(|(id, ns)| (id.0, *ns)).collect::<Vec<_>>()
        };
        (ids(&package.workloads), ids(&package.features[&PAIRED].workloads))
    };
    let own = new(slots.begin(WorkloadId(1), 10));
    let spares = [(); 2].map(|()| slots.spare().unwrap());
    slots.wait(spares[0], 20, 0, 0);
    slots.wait(spares[1], 30, 0, 0);
    slots.bill(0, own, Time { ns: 7, paired: 3 });
    slots.bill(0, spares[0], Time { ns: 5, paired: 5 });
    slots.bill(0, spares[1], Time { ns: 11, paired: 4 });
    assert_eq!(list(&mut slots), (vec![(1, 7)], vec![(1, 3)]));
    assert!(matches!(slots.begin(WorkloadId(2), 20), Begin::Adopted { .. }));
    assert_eq!(declined(&mut slots, 0, &[]), [(spares[1], None)]);
    let other: Vec<Time> = slots.for_other().collect();
    assert_eq!(other[0], Time { ns: 11, paired: 4 });
    slots.bill(0, own, Time { ns: 1, paired: 0 });
    assert_eq!(list(&mut slots), (vec![(1, 8), (2, 5)], vec![(2, 5)]));
    // What was reckoned too high at first: no more CPU time, but some of it turns out to be paired.
    slots.bill(0, own, Time { ns: 0, paired: 2 });
    assert_eq!(list(&mut slots), (vec![], vec![(1, 5)]));
    assert_eq!(list(&mut slots), (vec![], vec![]));
}

fn declined(slots: &mut Slots, now: u64, undecided: &[u64]) -> Vec<(u32, Option<u64>)> {
    let mut heirs = Vec::new();
    slots.told();
    let heir = |declined: Declined| (declined.slot, declined.heir.map(|id| id.0));
    slots.decline(now, |id| undecided.contains(&id), |it| heirs.push(heir(it)));
    heirs
}

#[test]
fn a_newcomer_that_is_begun_has_its_time_from_the_first() {
    let mut slots = Slots::new(SLOT_FIRST + 3, 1, 1);
    let spare = slots.spare().unwrap();
    assert_eq!(slots.spare(), None, "the reserve is one");
    // Before we have heard of it.
    assert!(slots.bill(0, spare, 5));
    slots.wait(spare, 10, 0, 7);
    assert!(slots.bill(0, spare, 6) && slots.bill(1, spare, 2));
    assert_eq!(listed(&mut slots), []);
    assert_eq!(slots.begin(WorkloadId(1), 10), Begin::Adopted { slot: spare, since: 7 });
    assert_eq!(slots.begin(WorkloadId(1), 10), Begin::Known);
    assert!(slots.bill(0, spare, 100));
    let mut times = CpuTimes { packages: vec![PackageTime::default()], ..CpuTimes::default() };
    slots.list(&mut times);
    assert_eq!(times.packages[0].workloads, [(WorkloadId(1), 111)]);
    assert_eq!(times.unplaced.workloads, [(WorkloadId(1), 2)]);
    assert_eq!(declined(&mut slots, MS, &[]), []);
    assert_eq!(other(&mut slots), 0);
    // It has left the reserve, and taken a workload's place.
    assert!(slots.spare().is_some());
    new(slots.begin(WorkloadId(2), 20));
    assert_eq!(slots.begin(WorkloadId(3), 30), Begin::NoRoom);
    slots.end(10, 0);
    assert_eq!(settle(&mut slots, 200 * MS, &[IDLE_CPU]), (vec![10], vec![]));
    assert_eq!(settle(&mut slots, 400 * MS, &[IDLE_CPU]), (vec![], vec![1]));
    new(slots.begin(WorkloadId(3), 30));
}

#[test]
fn a_newcomer_that_nobody_asks_for_is_its_heirs() {
    let mut slots = Slots::new(SLOT_FIRST + 4, 3, 1);
    let parent = new(slots.begin(WorkloadId(1), 10));
    let spares = [(); 3].map(|()| slots.spare().unwrap());
    for (spare, (id, heir)) in spares.into_iter().zip([(11, parent), (12, 0), (13, 0)]) {
        slots.wait(spare, id, heir, 0);
        slots.bill(0, spare, id);
    }
    assert_eq!(declined(&mut slots, 0, &[13]), [(spares[0], Some(1)), (spares[1], None)]);
    assert_eq!((listed(&mut slots), other(&mut slots)), (vec![(1, 11)], 12));
    // And whatever is counted there later.
    assert!(slots.bill(0, spares[0], 1));
    assert!(!slots.bill(0, spares[1], 1), "that is `other`");
    assert_eq!(listed(&mut slots), [(1, 12)]);
    // The heir has not ended before the last that it inherits.
    slots.end(10, 0);
    assert_eq!(settle(&mut slots, 99 * MS, &[runs(spares[0])]), (vec![11, 12], vec![]));
    assert_eq!(settle(&mut slots, 199 * MS, &[runs(spares[0])]), (vec![10], vec![]));
    assert_eq!(settle(&mut slots, 399 * MS, &[runs(spares[0])]), (vec![], vec![]));
    slots.bill(0, spares[0], 8);
    assert_eq!(settle(&mut slots, 499 * MS, &[IDLE_CPU]), (vec![], vec![1]));
    assert_eq!(listed(&mut slots), [(1, 20)]);
    // For so long one may be undecided.
    assert_eq!(declined(&mut slots, WAIT - 1, &[13]), []);
    assert_eq!(declined(&mut slots, WAIT, &[13]), [(spares[2], None)]);
    assert_eq!(other(&mut slots), 13);
}

#[test]
fn a_newcomer_waits_until_somebody_has_heard_of_it() {
    let mut slots = Slots::new(SLOT_FIRST + 4, 3, 1);
    let spare = slots.spare().unwrap();
    slots.wait(spare, 10, 0, 0);
    slots.decline(0, |_| false, |declined| panic!("{declined:?}"));
    slots.bill(0, spare, 1);
    assert_eq!(slots.begin(WorkloadId(1), 10), Begin::Adopted { slot: spare, since: 0 });
    assert_eq!(listed(&mut slots), [(1, 1)]);
    // Or nobody listens.
    let spare = slots.spare().unwrap();
    slots.wait(spare, 11, 0, 0);
    let mut count = 0;
    slots.decline(WAIT, |_| false, |_| count += 1);
    assert_eq!(count, 1);
}

#[test]
fn a_newcomer_below_another_inherits_with_it() {
    for adopted in [true, false] {
        let mut slots = Slots::new(SLOT_FIRST + 4, 3, 1);
        let [outer, inner] = [(); 2].map(|()| slots.spare().unwrap());
        slots.wait(outer, 10, 0, 0);
        slots.wait(inner, 11, outer, 0);
        slots.bill(0, inner, 5);
        assert_eq!(
            declined(&mut slots, 0, &[10]),
            [],
            "whose the outer one is must be known first"
        );
        if adopted {
            slots.begin(WorkloadId(1), 10);
        }
        let heir = adopted.then_some(1);
        let expected = [(outer, None), (inner, heir)];
        assert_eq!(declined(&mut slots, 0, &[]), expected[usize::from(adopted)..]);
        assert_eq!(other(&mut slots), if adopted { 0 } else { 5 });
        assert_eq!(listed(&mut slots), if adopted { vec![(1, 5)] } else { vec![] });
    }
}

#[test]
fn one_that_was_declined_may_be_begun_later() {
    let mut slots = Slots::new(SLOT_FIRST + 4, 2, 1);
    let parent = new(slots.begin(WorkloadId(1), 10));
    let spare = slots.spare().unwrap();
    slots.wait(spare, 11, parent, 0);
    declined(&mut slots, 0, &[]);
    // Its own workload takes what comes from then on.
    let own = new(slots.begin(WorkloadId(2), 11));
    slots.bill(0, own, 3);
    slots.bill(0, spare, 2);
    assert_eq!(listed(&mut slots), [(1, 2), (2, 3)]);
    // The heir itself has it for good.
    let spare = slots.spare().unwrap();
    slots.wait(spare, 12, parent, 0);
    declined(&mut slots, 0, &[]);
    assert_eq!(slots.begin(WorkloadId(1), 12), Begin::Known);
    settle(&mut slots, 9_000 * MS, &[IDLE_CPU]);
    settle(&mut slots, 19_000 * MS, &[IDLE_CPU]);
    slots.bill(0, spare, 1);
    assert_eq!(listed(&mut slots), [(1, 3)]);
}

/// Whatever happens, what is counted is listed or `other`, and no slot is lost.
#[test]
fn a_host_that_makes_cgroups_nobody_wants_takes_nobodys_place() {
    let mut slots = Slots::new(SLOT_FIRST + 2 + 4, 4, 1);
    new(slots.begin(WorkloadId(1), 1));
    let (mut now, mut given, mut counted, mut others) = (0, Vec::new(), 0, 0);
    for id in 10..5_000 {
        given.extend(std::iter::from_fn(|| slots.spare()));
        if let Some(spare) = given.pop() {
            slots.wait(spare, id, [0, SLOT_FIRST, 99][id as usize % 3], now);
            counted += id;
            if !slots.bill(0, spare, id) {
                others += id;
            }
        }
        declined(&mut slots, now, &[]);
        now += 30 * MS;
        settle(&mut slots, now, &[IDLE_CPU]);
        // A workload that comes and goes beside them.
        if id % 100 == 0 {
            new(slots.begin(WorkloadId(id), id + 1_000_000));
            slots.end(id + 1_000_000, now);
        }
    }
    let of_workloads: u64 = listed(&mut slots).iter().map(|(_, ns)| ns).sum();
    assert_eq!(of_workloads + others + other(&mut slots), counted);
    assert!(counted > 4_000_000, "{counted}: most of them had a slot");
    assert!(slots.kept.is_empty() && slots.newcomers.is_empty());
    settle(&mut slots, now + 1_000 * MS, &[IDLE_CPU]);
    settle(&mut slots, now + 2_000 * MS, &[IDLE_CPU]);
    given.iter().for_each(|spare| slots.take_back(*spare));
    assert_eq!((slots.free.len(), slots.reserved, slots.spare), (5, 0, 0));
}

/// Nonsense from outside of any kind.
#[test]
fn slots_of_nobody_are_no_panic() {
    let mut slots = Slots::new(SLOT_FIRST + 1, 0, 1);
    slots.end(1, 0);
    slots.forget(WorkloadId(1));
    slots.undo(1);
    for slot in [0, 1, SLOT_FIRST, u32::MAX] {
        slots.wait(slot, 5, u32::MAX, 0);
        slots.take_back(slot);
    }
    assert_eq!((slots.spare(), declined(&mut slots, u64::MAX, &[])), (None, vec![]));
    assert!(!slots.bill(0, u32::MAX, 1) && !slots.bill(0, 0, 1) && !slots.bill(9, 3, 1));
    let views = [View::Slots { held: u32::MAX, running: Some(99), cuts: [Some(77); MAX_CUTS] }];
    settle(&mut slots, u64::MAX, &views);
}
