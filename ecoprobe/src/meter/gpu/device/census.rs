//! The slow group: who is on a device, and what they did there.

use std::collections::BTreeMap;

use super::{Busy, Device, Question};
use crate::base::monotonic_ns;
use crate::meter::gpu::clock::Clock;
use crate::meter::gpu::driver::{Process, ProcessKind, SampleKind};
use crate::meter::gpu::owner::{History, Owner, PidOwner, Present};
use crate::meter::gpu::poller::Context;
use crate::meter::gpu::shares::{Census, parts_by_memory};

impl Device {
    pub(super) fn take_census<O: PidOwner>(&mut self, context: &mut Context<O>) -> Census {
        let polled = (self.state.polled_ns, monotonic_ns());
        self.state.polled_ns = polled.1;
        self.read_busy(context, polled);
        if !context.host_pids {
            return Census::default();
        }
        let handle = self.handle;
        let mig = self.ask(Question::Partitions, context, |driver| driver.is_partitioned(handle));
        if self.state.census.mig != (mig == Some(true)) {
            // What it cannot tell while it is partitioned, it can afterwards.
            self.declined.remove(&Question::Utilisation);
            self.declined.remove(&Question::BusySamples);
            self.declined.remove(&Question::BusyNow);
        }
        let mut owners = BTreeMap::new();
        let census = match mig {
            Some(true) => self.mig_census(context, polled, &mut owners),
            _ => self.plain_census(context, &mut owners),
        };
        let since = Clock::now().not_ahead(self.state.sampling.since_us);
        self.state.sampling.since_us = since;
        let samples = self
            .ask(Question::Utilisation, context, |driver| driver.process_samples(handle, since))
            .unwrap_or_default();
        let clock = Clock::now();
        if samples.is_empty() {
            // Not up to now: the driver may be late with its samples.
            self.state.sampling.since_us = since.max(clock.real_us(polled.0));
        }
        let before = &self.state.owners;
        // Of a process that is not on the device any more, what was seen then is better than who
        // has its pid now; but the pid may have changed hands since.
        let history = |pid| {
            let known = owners.get(&pid).or_else(|| before.get(&pid)).copied();
            // In this order: one that exits in between is in the second answer.
            let present = known.unwrap_or_else(|| context.present(pid));
            History { present, exited: context.owner.exited(pid) }
        };
        let mono_ns = |us| clock.mono_ns(us);
        self.state.sampling.add(&samples, polled, mono_ns, history, &mut self.state.ran);
        self.state.owners = owners;
        census
    }

    fn plain_census<O: PidOwner>(
        &mut self,
        context: &mut Context<O>,
        owners: &mut BTreeMap<u32, Present>,
    ) -> Census {
        let handle = self.handle;
        let mut census = Census::default();
        let mut processes: BTreeMap<u32, Option<u64>> = BTreeMap::new();
        for (question, kind) in [
            (Question::Processes, ProcessKind::Compute),
            (Question::Graphics, ProcessKind::Graphics),
            (Question::Mps, ProcessKind::Mps),
        ] {
            let Some(list) = self.ask(question, context, |driver| driver.processes(handle, kind))
            else {
                continue;
            };
            census.known |= kind == ProcessKind::Compute;
            // A process that computes and draws is in two lists, with the same memory.
            for Process { pid, bytes } in list {
                let most = processes.entry(pid).or_default();
                *most = bytes.max(*most);
            }
        }
        for (pid, bytes) in processes {
            let owner = context.owner_at(pid, self.state.polled_ns, owners);
            census.holders.entry(owner).or_default().add(bytes, 0.0);
        }
        census
    }

    /// Under MIG the processes are those of the instances, and each instance is worth its slices,
    /// shared by memory among who is on it; slices in use, where the driver gives utilisation.
    fn mig_census<O: PidOwner>(
        &mut self,
        context: &mut Context<O>,
        polled: (u64, u64),
        owners: &mut BTreeMap<u32, Present>,
    ) -> Census {
        let mut census = Census { mig: true, ..Census::default() };
        let handles = match context.driver.instances(self.handle) {
            Ok(handles) => handles,
            Err(fault) => {
                self.tell(context, "its MIG instances", &fault);
                return census;
            }
        };
        census.known = true;
        let mut before = std::mem::take(&mut self.state.tenants);
        let mut instances = BTreeMap::new();
        let mut used = Vec::new();
        for handle in handles {
            let slices = context.driver.slices(handle);
            let list = context.driver.processes(handle, ProcessKind::Compute);
            let (slices, list) = match (slices, list) {
                (Ok(slices), Ok(list)) => (f64::from(slices), list),
                (Err(fault), _) | (_, Err(fault)) => {
                    self.tell(context, "a MIG instance", &fault);
                    census.known = false;
                    continue;
                }
            };
            let mut tenants: Vec<(Owner, f64)> = Vec::new();
            let bytes: Vec<Option<u64>> = list.iter().map(|process| process.bytes).collect();
            let parts = parts_by_memory(&bytes);
            let all: f64 = parts.iter().sum();
            if bytes.len() > 1 && bytes.contains(&None) {
                self.warn_memory_untold(context);
            }
            for (process, part) in list.iter().zip(parts) {
                let share = part / all;
                let owner = context.owner_at(process.pid, polled.1, owners);
                tenants.push((owner, share));
                census.holders.entry(owner).or_default().add(process.bytes, slices * share);
            }
            let device = self.handle;
            let Some(instance) = self
                .ask(Question::InstanceUse, context, |driver| driver.instance_use(device, handle))
            else {
                used.push(None);
                continue;
            };
            // Who has left is billed for what ran since.
            let users = before
                .remove(&instance.place)
                .map(|before| if tenants.is_empty() { before } else { tenants.clone() });
            used.push(users.zip(instance.busy).map(|(users, busy)| (slices * busy, users)));
            instances.insert(instance.place, tenants);
        }
        self.state.tenants = instances;
        // All or none: an instance of unknown utilisation cannot be weighed against a known one.
        if let Some(used) = used.into_iter().collect::<Option<Vec<_>>>() {
            for (slices, users) in used {
                for (owner, share) in users {
                    self.state.ran.add(owner, polled.0, polled.1, slices * share);
                }
            }
        }
        census
    }

    fn read_busy<O: PidOwner>(&mut self, context: &mut Context<O>, polled: (u64, u64)) {
        let (handle, since) = (self.handle, Clock::now().not_ahead(self.state.busy_since_us));
        self.state.busy_since_us = since;
        let samples = self.ask(Question::BusySamples, context, |driver| {
            driver.samples(handle, SampleKind::Busy, since)
        });
        if let Some(samples) = samples {
            let clock = Clock::now();
            for sample in samples {
                let to = clock.mono_ns(sample.us).min(polled.1);
                let from = match self.state.busy_since_us {
                    0 => to,
                    before => clock.mono_ns(before),
                };
                self.state.busy_since_us = self.state.busy_since_us.max(sample.us);
                self.state.busy.add(Busy::Busy, from, to, sample.value.min(100.0) / 100.0);
                self.state.busy.add(Busy::Known, from, to, 1.0);
            }
        } else if self.declined.contains(&Question::BusySamples)
            && let Some(percent) =
                self.ask(Question::BusyNow, context, |driver| driver.busy(handle))
        {
            self.state.busy.add(Busy::Busy, polled.0, polled.1, f64::from(percent) / 100.0);
            self.state.busy.add(Busy::Known, polled.0, polled.1, 1.0);
        }
    }
}
