//! The CPU time of workloads, which may have had several slots.

use std::collections::HashMap;
use std::ops::AddAssign;

use crate::base::WorkloadId;
use crate::event::{CpuTimes, PAIRED};

/// CPU time, ns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::probe) struct Time {
    pub(in crate::probe) ns: u64,
    /// The part of it in which the other thread of the core was busy.
    pub(in crate::probe) paired: u64,
}

impl From<u64> for Time {
    fn from(ns: u64) -> Self {
        Self { ns, paired: 0 }
    }
}

impl AddAssign for Time {
    fn add_assign(&mut self, more: Self) {
        self.ns += more.ns;
        self.paired += more.paired;
    }
}

#[derive(Debug)]
pub(super) struct Accounts {
    pub(super) ids: Vec<WorkloadId>,
    /// How many slots each has.
    slots: Vec<u32>,
    /// By package, the one after the last for CPUs of no known one, and account.
    packages: Vec<Times>,
    /// Sorted by id.
    order: Vec<u32>,
    pub(super) by_id: HashMap<WorkloadId, u32>,
    free: Vec<u32>,
    /// To be dropped as soon as they have ended.
    unwanted: Vec<bool>,
}

#[derive(Debug, Default, Clone)]
struct Times {
    time: Vec<Time>,
    changed: Vec<Changed>,
    any_changed: Changed,
}

/// Since it was listed.
#[derive(Debug, Default, Clone, Copy)]
struct Changed {
    ns: bool,
    paired: bool,
}

impl Changed {
    fn note(&mut self, more: Time) {
        self.ns |= more.ns > 0;
        self.paired |= more.paired > 0;
    }
}

impl Accounts {
    pub(super) fn new(packages: usize) -> Self {
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
    pub(super) fn open(&mut self, id: WorkloadId) -> u32 {
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
                times.time.push(Time::default());
                times.changed.push(Changed::default());
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

    /// One slot more for a workload that has some.
    pub(super) fn share(&mut self, account: u32) {
        self.slots[account as usize] += 1;
    }

    /// One slot less; the id if it was the last.
    pub(super) fn close(&mut self, account: u32) -> Option<WorkloadId> {
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

    pub(super) fn forget(&mut self, id: WorkloadId) {
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
            times.time[account as usize] = Time::default();
            times.changed[account as usize] = Changed::default();
        }
        self.free.push(account);
    }

    pub(super) fn bill(&mut self, package: usize, account: u32, more: Time) {
        if let Some(times) = self.packages.get_mut(package) {
            times.time[account as usize] += more;
            times.changed[account as usize].note(more);
            times.any_changed.note(more);
        }
    }

    pub(super) fn list(&mut self, out: &mut CpuTimes) {
        let places = out.packages.iter_mut().chain([&mut out.unplaced]);
        for (times, place) in self.packages.iter_mut().zip(places) {
            place.workloads.clear();
            let mut paired = place.features.get_mut(&PAIRED).map(|counts| &mut counts.workloads);
            if let Some(paired) = &mut paired {
                paired.clear();
            }
            let any = std::mem::take(&mut times.any_changed);
            if !any.ns && !any.paired {
                continue;
            }
            for &account in &self.order {
                let account = account as usize;
                let (id, time) = (self.ids[account], times.time[account]);
                let changed = std::mem::take(&mut times.changed[account]);
                if changed.ns {
                    place.workloads.push((id, time.ns));
                }
                if changed.paired
                    && let Some(paired) = &mut paired
                {
                    paired.push((id, time.paired));
                }
            }
        }
    }
}
