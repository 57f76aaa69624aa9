//! The slow group: who is on a device, and what they did there.

use std::collections::BTreeMap;

use super::{Device, Instance, Question};
use crate::base::monotonic_ns;
use crate::meter::gpu::clock::Clock;
use crate::meter::gpu::nvml::{Process, ProcessKind};
use crate::meter::gpu::owner::{History, PidOwner};
use crate::meter::gpu::poller::Context;
use crate::meter::gpu::usage::{Census, Owner};

impl Device {
    pub(super) fn take_census<O: PidOwner>(&mut self, context: &mut Context<O>) -> Census {
        let polled = (self.state.polled_ns, monotonic_ns());
        self.state.polled_ns = polled.1;
        self.read_busy(context, polled);
        if !context.host_pids {
            return Census::default();
        }
        let handle = self.handle;
        let mig = self.ask(Question::Mig, context, |driver| driver.mig_enabled(handle));
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
            let present = known.unwrap_or_else(|| context.owner.living(pid));
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
        owners: &mut BTreeMap<u32, Owner>,
    ) -> Census {
        let handle = self.handle;
        let mut census = Census::default();
        let mut processes: BTreeMap<u32, u64> = BTreeMap::new();
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
                *most = bytes.unwrap_or(0).max(*most);
            }
        }
        for (pid, bytes) in processes {
            let owner = context.owner.slot_of(pid, self.state.polled_ns);
            owners.insert(pid, owner);
            let holding = census.holders.entry(owner).or_default();
            holding.bytes = holding.bytes.saturating_add(bytes);
        }
        census
    }

    /// Under MIG the processes are those of the instances, and each instance is worth its slices,
    /// shared by memory among who is on it; slices in use, where the driver gives utilisation.
    fn mig_census<O: PidOwner>(
        &mut self,
        context: &mut Context<O>,
        polled: (u64, u64),
        owners: &mut BTreeMap<u32, Owner>,
    ) -> Census {
        let mut census = Census { mig: true, ..Census::default() };
        let handles = match context.driver.mig_instances(self.handle) {
            Ok(handles) => handles,
            Err(fault) => {
                self.tell(context, "its MIG instances", &fault);
                return census;
            }
        };
        census.known = true;
        let mut before = std::mem::take(&mut self.state.instances);
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
            let mut tenants = Vec::new();
            let bytes: u64 = list.iter().filter_map(|process| process.bytes).sum();
            for process in &list {
                let share = match process.bytes {
                    _ if bytes == 0 => 1.0 / list.len() as f64,
                    own => own.unwrap_or(0) as f64 / bytes as f64,
                };
                let owner = context.owner.slot_of(process.pid, polled.1);
                owners.insert(process.pid, owner);
                tenants.push((owner, share));
                let holding = census.holders.entry(owner).or_default();
                holding.bytes = holding.bytes.saturating_add(process.bytes.unwrap_or(0));
                holding.slices += slices * share;
            }
            let device = self.handle;
            let snapshot =
                self.ask(Question::InstanceUse, context, |driver| driver.snapshot(device, handle));
            let Some(snapshot) = snapshot else {
                used.push(None);
                continue;
            };
            used.push(before.remove(&snapshot.place).and_then(|before| {
                let busy = self.ask(Question::InstanceUse, context, |driver| {
                    driver.busy_between(&before.snapshot, &snapshot)
                })?;
                // Who has left is billed for what ran since.
                let users = if tenants.is_empty() { before.tenants } else { tenants.clone() };
                Some((slices * busy, users))
            }));
            instances.insert(snapshot.place, Instance { snapshot, tenants });
        }
        self.state.instances = instances;
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
}
