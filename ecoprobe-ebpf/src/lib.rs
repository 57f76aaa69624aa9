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

/// What one CPU is doing now, and its own cache. Written by that CPU only, except `cuts`.
///
/// Two cache lines; the second is cold unless a running task is moved to another cgroup.
#[repr(C, align(128))]
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
    /// CLOCK_MONOTONIC minus the run-queue clock, ns; 0: not known yet.
    pub clock_offset: u64,
    /// Thread id of the running task; 0: idle.
    pub pid: u32,
    /// Its thread group.
    pub tgid: u32,
    /// Slot that the running task is billed to.
    pub slot: u32,
    /// Slot of `cgroup_id`, valid while `generation` is the current one.
    pub cached_slot: u32,
    pub generation: u32,
    /// Run-queue clock >> [`OFFSET_EPOCH_SHIFT`] when `clock_offset` was read.
    pub offset_epoch: u32,
    /// Moves of the running task; written by whoever moves it.
    pub cuts: Cuts,
}

/// `clock_offset` is read again when the run-queue clock enters a new epoch of 2^23 ns, 8.4 ms.
pub const OFFSET_EPOCH_SHIFT: u32 = 23;

/// Where a slice changes owner because its task was moved while it ran.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Cuts {
    /// The `seq` of the slice that these cuts belong to; others are stale.
    pub seq: u64,
    pub len: u32,
    pub _pad: u32,
    pub cut: [Cut; MAX_CUTS],
}

#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// CLOCK_MONOTONIC of the move, ns.
    pub mono_ns: u64,
    /// Slot from then on.
    pub slot: u32,
    pub _pad: u32,
}

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
    assert!(size_of::<CpuState>() == 128 && align_of::<CpuState>() == 128);
    assert!(core::mem::offset_of!(CpuState, cuts) == 64);
    assert!(size_of::<Cuts>() == 64);
    assert!(size_of::<Resolved>() == 8);
    assert!(size_of::<CgroupEvent>() == 16);
};
