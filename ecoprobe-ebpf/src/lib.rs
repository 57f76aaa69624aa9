//! The ABI: the types that the probe writes and the agent reads through memory-mapped maps.
//!
//! Times are nanoseconds. "Run-queue clock" is the scheduler's `rq_clock_task` of one CPU: it leaves
//! out IRQ and stolen time and has an origin of its own on every CPU.

#![no_std]

/// Time of cgroups that were not selected, and of kernel threads in the root cgroup.
pub const SLOT_OTHER: u32 = 0;
/// Time of the idle task.
pub const SLOT_IDLE: u32 = 1;
/// The first workload's slot.
pub const SLOT_FIRST: u32 = 2;

/// How often one slice can be cut by moves to other cgroups before cuts are merged.
pub const MAX_CUTS: usize = 3;

/// What one CPU is doing now, and its own cache: three cache lines.
///
/// The first is all that a switch writes. The second is written by whoever moves the running task to
/// another cgroup. The third is written when something rare happens.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct CpuState {
    /// Even: stable; odd: being written. Half of it is the number of switches seen.
    pub seq: u64,
    /// Id of the cgroup last looked up on this CPU; 0: none.
    pub cgroup_id: u64,
    /// `se.sum_exec_runtime` of the running task when it was switched in, ns.
    pub runtime_start: u64,
    /// Run-queue clock at that moment, ns.
    pub clock_start: u64,
    /// CLOCK_MONOTONIC minus the run-queue clock, ns.
    pub clock_offset: u64,
    /// Address of the running task, only ever compared.
    pub task: u64,
    /// Its thread group; 0: idle.
    pub tgid: u32,
    /// Slot that the running task is billed to.
    pub slot: u32,
    /// Slot of `cgroup_id`, while `generation` equals `wanted_generation`.
    pub cached_slot: u32,
    /// Run-queue clock >> [`OFFSET_EPOCH_SHIFT`] when `clock_offset` was read.
    pub offset_epoch: u32,

    /// The `seq` of the slice that the cuts belong to; cuts of another slice are stale.
    pub cut_seq: u64,
    /// A running slice changes owner here, because its task was moved: CLOCK_MONOTONIC, ns.
    pub cut_mono_ns: [u64; MAX_CUTS],
    /// Slot from then on.
    pub cut_slot: [u32; MAX_CUTS],
    pub cut_count: u32,
    /// The selection that `cached_slot` was resolved against.
    pub generation: u32,
    /// The selection that it must have been resolved against. Written by the agent.
    pub wanted_generation: u32,
    /// A thread group that came onto this CPU and was not seen to leave it; 0: none.
    pub vanishing_tgid: u32,
    pub _pad: u32,

    /// Switches that must have happened and were not seen.
    pub dropped: u64,
    /// Moves that found no room: the last cut took the place of the one before.
    pub merged_cuts: u64,
    /// Cgroup events that did not fit into the ring.
    pub lost_events: u64,
    pub _pad2: [u64; 5],
}

/// `clock_offset` is read again when the run-queue clock enters a new epoch of 2^23 ns, 8.4 ms:
/// often enough to follow IRQ and stolen time, too rare to cost anything.
pub const OFFSET_EPOCH_SHIFT: u32 = 23;

/// The probe's read-only globals: what the agent found out about this kernel and this run. Offsets
/// are in bytes, from the running kernel's BTF.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    NrCpus,
    NrSlots,
    /// `cgroup_root.hierarchy_id` of the hierarchy that is followed.
    HierarchyId,
    /// 0: `css_set.dfl_cgrp`; 1: `css_set.subsys[i]->cgroup`.
    ViaCss,
    TaskTgid,
    TaskFlags,
    TaskSumExecRuntime,
    /// 0 on a kernel without.
    TaskPrevSumExecRuntime,
    TaskExecStart,
    TaskCgroups,
    /// Of `dfl_cgrp` or of `subsys[i]`, by `ViaCss`.
    CssSetCgroup,
    CssCgroup,
    CgroupKn,
    /// Of `cgroup.self.parent`.
    CgroupParent,
    CgroupRoot,
    RootHierarchyId,
    KnId,
}

pub const LAYOUT_LEN: usize = Field::KnId as usize + 1;

/// What the probe keeps about one cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Resolved {
    pub slot: u32,
    /// The answer holds while this is the current generation.
    pub generation: u32,
}

/// A cgroup was made or removed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CgroupEvent {
    pub cgroup_id: u64,
    /// 1: made; 0: removed.
    pub made: u32,
    pub _pad: u32,
}

const _: () = {
    assert!(size_of::<CpuState>() == 192 && align_of::<CpuState>() == 64);
    assert!(core::mem::offset_of!(CpuState, cut_seq) == 64);
    assert!(core::mem::offset_of!(CpuState, dropped) == 128);
    assert!(size_of::<Resolved>() == 8);
    assert!(size_of::<CgroupEvent>() == 16);
};
