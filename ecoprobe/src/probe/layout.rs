//! The probe's read-only globals.

use ecoprobe_ebpf::{Field, LAYOUT_LEN, SLOT_FIRST};

use super::LoadOptions;
use super::slots::RESERVE;
use crate::base::Error;
use crate::host::btf::{BtfError, KernelLayout};

pub(super) struct Constants {
    pub(super) nr_cpus: u32,
    pub(super) nr_slots: u32,
    /// How many of them are no workload's in particular.
    pub(super) reserve: u32,
    /// Of all CPUs together.
    pub(super) nr_counters: u32,
    /// Whether any core has two threads.
    pub(super) siblings: bool,
    pub(super) fields: [u64; LAYOUT_LEN],
}

impl Constants {
    pub(super) fn new(layout: &KernelLayout, options: &LoadOptions<'_>) -> Result<Self, Error> {
        let siblings = options.sibling_of_cpu.iter().any(Option::is_some);
        let fields = fields(layout, options)
            .map_err(|error| Error::Cannot(format!("{error}; this kernel is not supported")))?;
        let reserve = if options.newcomers { RESERVE } else { 0 };
        let sizes = || {
            let nr_cpus = u32::try_from(options.package_of_cpu.len()).ok()?;
            let nr_slots = options.max_workloads.checked_add(SLOT_FIRST + reserve)?;
            Some((nr_cpus, nr_slots, nr_cpus.checked_mul(nr_slots)?))
        };
        let (nr_cpus, nr_slots, nr_counters) = sizes().ok_or_else(|| {
            Error::Usage(format!(
                "{} workloads on {} CPUs are too many: choose a lower --max-workloads",
                options.max_workloads,
                options.package_of_cpu.len()
            ))
        })?;
        Ok(Self { nr_cpus, nr_slots, reserve, nr_counters, siblings, fields })
    }
}

fn fields(layout: &KernelLayout, options: &LoadOptions<'_>) -> Result<[u64; LAYOUT_LEN], BtfError> {
    let se = layout.offset("task_struct", "se")?;
    let css_set_cgroup = match options.v1_controller {
        None => layout.offset("css_set", "dfl_cgrp")?,
        Some(controller) => {
            let index = layout
                .subsystem(controller)
                .ok_or_else(|| BtfError::Missing(format!("cgroup controller `{controller}`")))?;
            let pointer = size_of::<u64>() as u64;
            layout.offset("css_set", "subsys")? + u64::from(index) * pointer
        }
    };
    let css_parent = layout.offset("cgroup_subsys_state", "parent")?;
    // Not every kernel has these; the probe then does without.
    let prev_sum = layout.offset("sched_entity", "prev_sum_exec_runtime");
    let in_task = layout.offset("task_struct", "cpu");
    let in_thread_info = || {
        let info = layout.offset("task_struct", "thread_info")?;
        layout.offset("thread_info", "cpu").map(|cpu| info + cpu)
    };
    let mut fields = [0; LAYOUT_LEN];
    for (field, value) in [
        (Field::NrCpus, options.package_of_cpu.len() as u64),
        (Field::HierarchyId, options.hierarchy_id.into()),
        (Field::ViaCss, options.v1_controller.is_some().into()),
        (Field::TaskTgid, layout.offset("task_struct", "tgid")?),
        (Field::TaskFlags, layout.offset("task_struct", "flags")?),
        (Field::TaskSumExecRuntime, se + layout.offset("sched_entity", "sum_exec_runtime")?),
        (Field::TaskPrevSumExecRuntime, prev_sum.map_or(0, |offset| se + offset)),
        (Field::TaskExecStart, se + layout.offset("sched_entity", "exec_start")?),
        (Field::TaskCgroups, layout.offset("task_struct", "cgroups")?),
        (Field::CssSetCgroup, css_set_cgroup),
        (Field::CssCgroup, layout.offset("cgroup_subsys_state", "cgroup")?),
        (Field::CgroupKn, layout.offset("cgroup", "kn")?),
        (Field::CgroupParent, layout.offset("cgroup", "self")? + css_parent),
        (Field::CgroupRoot, layout.offset("cgroup", "root")?),
        (Field::RootHierarchyId, layout.offset("cgroup_root", "hierarchy_id")?),
        (Field::KnId, layout.offset("kernfs_node", "id")?),
        (Field::TaskCpu, in_task.or_else(|_| in_thread_info()).unwrap_or(0)),
        (Field::TaskSignal, layout.offset("task_struct", "signal")?),
        (Field::Siblings, options.sibling_of_cpu.iter().any(Option::is_some).into()),
        (Field::SignalNrThreads, layout.offset("signal_struct", "nr_threads")?),
    ] {
        fields[field as usize] = value;
    }
    Ok(fields)
}
