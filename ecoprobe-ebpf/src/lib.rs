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

/// What one CPU is doing now, and its own cache of one cgroup, whose counter lives here too.
///
/// A common switch writes the first cache line, reads the second, and touches no other memory of ours:
/// on the way of a switch every line is a cache miss. The second is written by the agent, by whoever
/// moves the running task to another cgroup or makes a cgroup, and when something rare happens. The
/// size is a power of two, so that the kernel finds an entry by a shift.
#[repr(C, align(256))]
#[derive(Clone, Copy, Debug)]
pub struct CpuState {
    /// Even: stable; odd: being written. Half of it is the number of switches seen.
    pub seq: u64,
    /// Address of the running task, only ever compared, and [`VISITED`]; 0: not known yet.
    pub task: u64,
    /// Run-queue clock when it was switched in, ns.
    pub clock_start: u64,
    /// Its thread group; 0: idle.
    pub tgid: u32,
    /// Slot that it is billed to.
    pub slot: u32,
    /// Address of the cached cgroup, and [`NOT_KTHREADS`]; 0: none.
    pub cgroup: u64,
    /// The news that the cache takes account of.
    pub seen: News,
    /// To be added to the counter of `cached_slot`, ns.
    pub cached_ns: u64,
    /// To be added to the counter of the idle task, ns.
    pub idle_ns: u64,

    /// The `seq` of the slice that the cuts belong to; cuts of another slice are stale.
    pub cut_seq: u64,
    /// The cache holds while this equals `seen`.
    pub news: News,
    /// Run-queue clock at which `clock_offset` is to be read again, ns.
    pub offset_until: u64,
    /// A thread group that is not seen to leave this CPU, or [`NOBODY`]. Written by the agent before
    /// the probe is attached: [`INIT`], which some kernels hide, until it is seen to leave.
    pub vanishing_tgid: u32,
    /// Slot that the last task other than idle was to be billed to.
    pub cached_slot: u32,
    /// Where this CPU's counters begin. Written by the agent before the probe is attached.
    pub row: u32,
    pub _pad: [u32; 7],

    /// CLOCK_MONOTONIC minus the run-queue clock, ns.
    pub clock_offset: u64,
    /// With [`VISITED`]: `se.sum_exec_runtime` of the task when its visitor came, ns.
    pub runtime_start: u64,
    /// A running slice changes owner here, because its task was moved: CLOCK_MONOTONIC, ns.
    pub cut_mono_ns: [u64; MAX_CUTS],
    /// Slot from then on.
    pub cut_slot: [u32; MAX_CUTS],
    pub cut_count: u32,

    /// Switches that must have happened and were not seen.
    pub dropped: u64,
    /// Moves that found no room: the last cut took the place of the one before.
    pub merged_cuts: u64,
    /// Cgroup events that did not fit into the ring.
    pub lost_events: u64,
    pub _pad2: [u64; 6],
}

/// What makes a slot looked up before out of date; compared as a whole.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct News {
    /// How often the selection changed. Written by the agent.
    pub selection: u32,
    /// How often a cgroup was made, perhaps at the address of one that is gone.
    pub made: u32,
}

/// In `task`: a task whose leaving we will not see came since, and is reckoned to be gone again.
pub const VISITED: u64 = 1;

/// In `cgroup`: its slot is not for kernel threads. Whoever asks for `/` does not ask for them.
pub const NOT_KTHREADS: u64 = 1;

/// The first process.
pub const INIT: u32 = 1;

/// No thread group has this id.
pub const NOBODY: u32 = u32::MAX;

/// How long `clock_offset` holds, ns: often enough to follow IRQ and stolen time, too rare to cost
/// anything.
pub const OFFSET_AGE: u64 = 8_000_000;

/// The probe's read-only globals: what the agent found out about this kernel and this run. Offsets
/// are in bytes, from the running kernel's BTF.
#[repr(usize)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    // Maps keep their values 8 bytes before a cache line, so one of the rare ones comes first, then
    // what a common switch needs.
    NrCpus,
    TaskTgid,
    TaskExecStart,
    TaskCgroups,
    /// Of `dfl_cgrp` or of `subsys[i]`, by `ViaCss`.
    CssSetCgroup,
    /// 0: `css_set.dfl_cgrp`; 1: `css_set.subsys[i]->cgroup`.
    ViaCss,
    CssCgroup,
    /// `cgroup_root.hierarchy_id` of the hierarchy that is followed.
    HierarchyId,
    TaskFlags,
    TaskSumExecRuntime,
    /// 0 on a kernel without.
    TaskPrevSumExecRuntime,
    CgroupKn,
    /// Of `cgroup.self.parent`.
    CgroupParent,
    CgroupRoot,
    RootHierarchyId,
    KnId,
}

pub const LAYOUT_LEN: usize = Field::KnId as usize + 1;

/// How many cgroups each CPU remembers besides the one that ran last; a power of two.
pub const NR_KNOWN: usize = 64;

/// A cgroup that ran on a CPU, as [`CpuState`] has the last one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// Address and [`NOT_KTHREADS`]; 0: none.
    pub cgroup: u64,
    pub slot: u32,
    pub _pad: u32,
}

/// What the probe keeps about one cgroup.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Resolved {
    pub slot: u32,
    /// The answer holds while this is the current one.
    pub selection: u32,
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

/// Whose a process was of which a thread has exited.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Exited {
    /// When, CLOCK_MONOTONIC, ns.
    pub mono_ns: u64,
    pub slot: u32,
    pub _pad: u32,
}

const _: () = {
    assert!(size_of::<CpuState>() == 256);
    assert!(core::mem::offset_of!(CpuState, cut_seq) == 64);
    assert!(core::mem::offset_of!(CpuState, clock_offset) == 128);
    assert!(size_of::<Known>() == 16);
    assert!(NR_KNOWN.is_power_of_two());
    assert!(size_of::<Resolved>() == 8);
    assert!(size_of::<CgroupEvent>() == 16);
    assert!(size_of::<Exited>() == 16);
};
