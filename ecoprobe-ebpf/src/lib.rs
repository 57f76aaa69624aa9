//! What both sides share: the types that the probe writes and the agent reads through memory-mapped
//! maps, and in [`protocol`] and [`paired`] how they are written and read at the same time.
//!
//! Times are nanoseconds. "Run-queue clock" is the scheduler's `rq_clock_task` of one CPU: it leaves
//! out IRQ and stolen time and has an origin of its own on every CPU.

#![no_std]

pub mod paired;
pub mod protocol;

/// Time of cgroups that were not selected, and of kernel threads in the root cgroup.
pub const SLOT_OTHER: u32 = 0;
/// Time of the idle task.
pub const SLOT_IDLE: u32 = 1;
/// The first workload's slot.
pub const SLOT_FIRST: u32 = 2;

/// How often one slice can be cut by moves to other cgroups before cuts are merged.
pub const MAX_CUTS: usize = 3;

/// What one CPU is doing now, and the counter of the slot that ran last.
///
/// A common switch writes the first cache line, reads the first of [`Shared`], and touches no other
/// memory of ours: on the way of a switch every line is a cache miss. A switch to or from idle, where
/// cores have two threads, and one to another cgroup need the second as well. All is written by this
/// CPU alone but for the cuts and what the agent writes. The size is a power of two, so that the kernel
/// finds an entry by a shift.
#[repr(C, align(256))]
#[derive(Clone, Copy, Debug)]
pub struct CpuState {
    /// Even: stable; odd: being written. Half of it is the number of switches seen.
    pub seq: u64,
    /// Address of the running task, only ever compared, and [`INTERRUPTED`]; 0: not known yet.
    pub task: u64,
    /// Run-queue clock when it was switched in, ns.
    pub clock_start: u64,
    /// Address of the cached cgroup, and [`NOT_KTHREADS`]; 0: none.
    pub cgroup: u64,
    /// CPU time of `slot` on this CPU so far, ns. Its counter holds an older value meanwhile.
    pub slot_ns: u64,
    /// CPU time of the idle task so far, ns. It has no counter elsewhere.
    pub idle_ns: u64,
    /// Thread group of the running task; 0: idle.
    pub tgid: u32,
    /// Slot of the last task other than idle.
    pub slot: u32,
    /// The [`Shared::generation`] that the cached cgroup and the cuts take account of.
    pub seen: u32,
    /// When `clock_offset` was read: run-queue clock in units of 2^[`OFFSET_AGE_SHIFT`] ns.
    pub offset_epoch: u32,

    /// How often a counter of this CPU's row was written.
    pub flushes: u64,
    /// CLOCK_MONOTONIC minus the run-queue clock, ns.
    pub clock_offset: u64,
    /// Where this CPU's counters begin. Written by the agent before the probe is attached.
    pub row: u32,
    /// The other thread of this CPU's core, or [`NO_CPU`]. Written by the agent at any time.
    pub sibling: u32,
    /// How long this CPU has idled, for its sibling to read: see [`paired::idle_by`]; 0: not known
    /// yet. Like the three that follow, it is kept only where a core has two threads.
    pub idle_account: u64,
    /// The part of `settled_ns` in which the sibling was busy, ns. Its counter holds an older value
    /// meanwhile.
    pub paired_ns: u64,
    /// The part of `slot_ns` of which it is settled whether the sibling was busy, ns.
    pub settled_ns: u64,
    /// How long the sibling had idled by then, ns; 0: not known.
    pub sibling_idle_ns: u64,
    /// With [`INTERRUPTED`]: `se.sum_exec_runtime` of the task when that happened, ns.
    pub runtime_start: u64,

    /// Which slice was cut, and how often: see [`protocol::cut`].
    pub cuts: u64,
    /// The slice changes owner here, because its task was moved: CLOCK_MONOTONIC, ns.
    pub cut_mono_ns: [u64; MAX_CUTS],
    /// Slot from then on.
    pub cut_slot: [u32; MAX_CUTS],
    pub _pad: u32,
    /// Moves that found no room: the last cut took on the new owner.
    pub merged_cuts: u64,
    /// Switches that must have happened and were not seen.
    pub dropped: u64,

    /// How long the sibling had idled when the slice was cut, ns; 0: not known.
    pub cut_sibling_idle_ns: [u64; MAX_CUTS],
    /// Cgroup events that did not fit into the ring.
    pub lost_events: u64,
    /// What of [`Shared`] the caches take account of.
    pub seen_selection: u32,
    pub seen_cgroups_made: u32,
    /// Means nothing: counting it up is the barrier of machines that need one.
    pub barrier: u64,
    pub _pad2: [u64; 2],
}

/// What all CPUs must know. One entry.
#[repr(C, align(256))]
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// Counts everything that may put a CPU's caches out of date or cut its slice. Counted up by
    /// the agent and by the probe, atomically, after what it tells of.
    pub generation: u32,
    /// A thread group that is not seen to leave a CPU, or [`NOBODY`]. Written by the agent before
    /// the probe is attached: [`INIT`], which some kernels hide, until it is seen to leave.
    pub hidden_tgid: u32,
    /// How often the selection changed. Written by the agent.
    pub selection: u32,
    /// How often a cgroup was made, perhaps at the address of one that is gone. Written by whoever
    /// makes one, under `cgroup_mutex`.
    pub cgroups_made: u32,
    pub _pad: [u64; 30],
}

/// In `task`: a task whose leaving we will not see came since, and is reckoned to be gone again.
pub const INTERRUPTED: u64 = 1;

/// In `cgroup`: its slot is not for kernel threads. Whoever asks for `/` does not ask for them.
pub const NOT_KTHREADS: u64 = 1;

/// The first process.
pub const INIT: u32 = 1;

/// No thread group has this id.
pub const NOBODY: u32 = u32::MAX;

/// No CPU has this number.
pub const NO_CPU: u32 = u32::MAX;

/// `clock_offset` is read again when the run-queue clock has passed a multiple of two to the power
/// of this (8.4 ms): often enough to follow IRQ and stolen time, too rare to cost anything.
pub const OFFSET_AGE_SHIFT: u32 = 23;

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
    /// Of the CPU that a task is on; 0 on a kernel that keeps it elsewhere.
    TaskCpu,
    TaskSignal,
    SignalNrThreads,
    /// 1: cores have two threads, and what runs is told apart by what the other one does.
    Siblings,
}

pub const LAYOUT_LEN: usize = Field::Siblings as usize + 1;

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

/// A cgroup was made or removed. Its path from the root of its hierarchy follows, `path_len` bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CgroupEvent {
    pub cgroup_id: u64,
    /// When, CLOCK_MONOTONIC, ns.
    pub mono_ns: u64,
    /// 1: made; 0: removed.
    pub made: u32,
    /// The spare slot that a new cgroup is billed to until the agent has decided whose it is;
    /// [`SLOT_OTHER`]: there was none to spare.
    pub slot: u32,
    /// Whose its time would be without that slot: its nearest selected ancestor's.
    pub heir: u32,
    /// 0: the path is too long, or of no interest.
    pub path_len: u32,
}

/// A path must be shorter than this to be told, bytes.
pub const MAX_PATH: usize = 256;

/// An event before it is told.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CgroupEventBuffer {
    pub event: CgroupEvent,
    pub path: [u8; MAX_PATH],
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
    assert!(core::mem::offset_of!(CpuState, flushes) == 64);
    assert!(core::mem::offset_of!(CpuState, cuts) == 128);
    assert!(core::mem::offset_of!(CpuState, cut_sibling_idle_ns) == 192);
    assert!(size_of::<Shared>() == 256);
    assert!(size_of::<Known>() == 16);
    assert!(NR_KNOWN.is_power_of_two());
    assert!(size_of::<Resolved>() == 8);
    assert!(size_of::<CgroupEvent>() == 32);
    assert!(size_of::<CgroupEventBuffer>() == 32 + MAX_PATH);
    assert!(size_of::<Exited>() == 16);
};
