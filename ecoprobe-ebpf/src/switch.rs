//! `sched_switch`: who ran, for how long, and who runs now.

use core::hint::cold_path;
use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use ecoprobe_ebpf::protocol::{self, Memory as _};
use ecoprobe_ebpf::{
    CpuState, Field, INTERRUPTED, Known, NOT_KTHREADS, NR_KNOWN, OFFSET_AGE_SHIFT, SLOT_OTHER,
    Shared, paired,
};

use crate::cgroups::resolve;
use crate::cpu::{Cpu, selection};
use crate::hidden::{interrupt, ran_unseen, ran_while_interrupted};
use crate::kernel::{Kernel, Typed, Untyped, cgroup_id, cgroup_of};
use crate::maps::{CPUS, KNOWN, SHARED};

/// The root of every hierarchy has this id.
const ROOT_CGROUP_ID: u64 = 1;

/// `PF_KTHREAD` of `task_struct.flags`, unchanged since 2.6.
const PF_KTHREAD: u32 = 0x0020_0000;

/// 2^64 divided by the golden ratio.
const GOLDEN_RATIO: u64 = 0x9e37_79b9_7f4a_7c15;

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    on_switch::<Typed>(&ctx, ctx.arg(1), ctx.arg(2));
    0
}

#[raw_tracepoint(tracepoint = "sched_switch")]
fn sched_switch_raw(ctx: RawTracePointContext) -> i32 {
    on_switch::<Untyped>(&ctx, ctx.arg(1), ctx.arg(2));
    0
}

/// The common switch is one path without calls or spills; all else is in functions of its own. Its
/// cost is that of the cache lines that it touches, its own instructions' included.
#[inline(always)]
fn on_switch<K: Kernel>(ctx: &impl EbpfContext, prev: *const u8, next: *const u8) {
    // SAFETY: sched_switch's own arguments and BTF's offsets. `cpu` is this CPU's entry: the fields
    // written here are written by nobody else, and tracing programs are not preempted by themselves.
    unsafe {
        let Some(cpu) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        let Some(shared) = SHARED.get_ptr_mut(0) else { return };
        protocol::open(Cpu(cpu));

        // The scheduler has just brought the account of `prev` up to date, and `exec_start` is where
        // it stands. The idle task has an account on recent kernels only; idle never follows idle.
        let tgid: u32 = K::read(next, Field::TaskTgid);
        let end: u64 = K::read(prev, Field::TaskExecStart);
        let start = if tgid == 0 { end } else { K::read(next, Field::TaskExecStart) };
        if (*cpu).task != prev as u64
            || (*cpu).seen != read_volatile(&raw const (*shared).generation)
            || (*cpu).offset_epoch != (start >> OFFSET_AGE_SHIFT) as u32
            || (*shared).hidden_tgid == tgid
            || (start != end && (*cpu).tgid != 0)
        {
            cold_path();
            rare_switch::<K>(ctx, cpu, prev, next);
        } else {
            protocol::add_to_running(Cpu(cpu), start.wrapping_sub((*cpu).clock_start));
            (*cpu).clock_start = start;
            (*cpu).task = next as u64;
            let was = (*cpu).tgid;
            (*cpu).tgid = tgid;
            // Either is all that is left to do, so that nothing need be kept meanwhile.
            if Cpu(cpu).has_siblings() && tgid == 0 {
                fall_asleep(cpu);
            } else if Cpu(cpu).has_siblings() && was == 0 {
                wake_up::<K>(cpu, next);
            } else if tgid != 0 && (*cpu).cgroup != cgroup_of::<K>(next) as u64 {
                cold_path();
                look_up::<K>(cpu, next);
            }
        }
        protocol::close(Cpu(cpu));
    }
}

/// A switch that is not the common one: the CPU's first, one with something new to take account of
/// (the clock at least, every few milliseconds), one that a gap follows, one whose beginning was not
/// seen, or one to a task whose own end will not be seen.
#[inline(never)]
unsafe fn rare_switch<K: Kernel>(
    ctx: &impl EbpfContext,
    cpu: *mut CpuState,
    prev: *const u8,
    next: *const u8,
) {
    // SAFETY: as in on_switch.
    unsafe {
        let Some(shared) = SHARED.get_ptr_mut(0) else { return };
        let tgid: u32 = K::read(next, Field::TaskTgid);
        let clocked = if tgid == 0 { prev } else { next };
        let now: u64 = K::read(clocked, Field::TaskExecStart);
        let mono = bpf_ktime_get_ns();
        // Before the cuts are looked at: what it told of is there.
        take_account(cpu, shared);
        let (mut rest, mut lost) = (0, 0);
        if (*cpu).task != 0 {
            lost = mono.saturating_sub(now.wrapping_add((*cpu).clock_offset));
            rest = settle::<K>(ctx, cpu, shared, prev, now, mono);
        }
        (*cpu).clock_start = now;
        (*cpu).offset_epoch = (now >> OFFSET_AGE_SHIFT) as u32;
        (*cpu).clock_offset = mono.wrapping_sub(now);
        if Cpu(cpu).has_siblings() {
            paired::settle_anew(Cpu(cpu), rest, lost, mono);
        }
        if (*shared).hidden_tgid == tgid {
            interrupt::<K>(cpu, prev);
        } else {
            (*cpu).task = next as u64;
            (*cpu).tgid = tgid;
        }
        if Cpu(cpu).has_siblings() {
            turn(cpu);
        }
        if (*shared).hidden_tgid != tgid && tgid != 0 {
            hold_slot_of::<K>(cpu, next);
        }
    }
}

/// The CPU, which was awake, has fallen asleep where its slice began: idle never follows idle.
#[inline(never)]
unsafe fn fall_asleep(cpu: *mut CpuState) {
    paired::fall_asleep(Cpu(cpu), protocol::start(Cpu(cpu)));
}

/// The CPU, which was asleep, has woken up where its slice began, to run `task`.
#[inline(never)]
unsafe fn wake_up<K: Kernel>(cpu: *mut CpuState, task: *const u8) {
    paired::wake_up(Cpu(cpu), protocol::start(Cpu(cpu)));
    // SAFETY: as in on_switch.
    unsafe { hold_slot_of::<K>(cpu, task) };
}

/// The CPU has fallen asleep or woken up where its slice began, or goes on as it did.
#[inline(always)]
pub(crate) unsafe fn turn(cpu: *mut CpuState) {
    // SAFETY: as in on_switch.
    let idles = unsafe { (*cpu).tgid } == 0;
    paired::turn(Cpu(cpu), idles, protocol::start(Cpu(cpu)));
}

/// Drops what `generation` has put out of date.
#[inline(always)]
unsafe fn take_account(cpu: *mut CpuState, shared: *const Shared) {
    // SAFETY: as in on_switch.
    unsafe {
        let generation = read_volatile(&raw const (*shared).generation);
        if (*cpu).seen == generation {
            return;
        }
        Cpu(cpu).fence();
        (*cpu).seen = generation;
        let made = read_volatile(&raw const (*shared).cgroups_made);
        let selection = selection(shared);
        if (*cpu).seen_cgroups_made == made && (*cpu).seen_selection == selection {
            return;
        }
        // The selection is read before what was selected.
        Cpu(cpu).fence();
        (*cpu).seen_cgroups_made = made;
        (*cpu).seen_selection = selection;
        (*cpu).cgroup = 0;
        if let Some(known) = KNOWN.get_ptr_mut(0) {
            for i in 0..NR_KNOWN {
                (*known)[i].cgroup = 0;
            }
        }
    }
}

/// Bills what `prev` ran, and who else may have; how much that was.
#[inline(always)]
unsafe fn settle<K: Kernel>(
    ctx: &impl EbpfContext,
    cpu: *mut CpuState,
    shared: *mut Shared,
    prev: *const u8,
    now: u64,
    mono: u64,
) -> u64 {
    // SAFETY: as in on_switch.
    unsafe {
        let started = (*cpu).clock_start;
        let task = (*cpu).task;
        let elapsed = now.saturating_sub(started);
        if task & !INTERRUPTED != prev as u64 {
            let ran = ran_unseen::<K>(ctx, cpu, shared, prev, elapsed);
            return add_rest(cpu, elapsed, ran);
        }
        let ran = if task & INTERRUPTED != 0 {
            ran_while_interrupted::<K>(ctx, cpu, shared, prev, elapsed)
        } else if (*cpu).tgid == 0 {
            elapsed
        } else {
            K::read::<u64>(prev, Field::TaskExecStart).wrapping_sub(started)
        };
        bill_slice(cpu, ran, mono);
        add_rest(cpu, elapsed, ran)
    }
}

#[inline(never)]
unsafe fn bill_slice(cpu: *mut CpuState, ran: u64, mono: u64) {
    protocol::bill_slice(Cpu(cpu), ran, mono);
}

/// Slices of one CPU tile. What is left is the scheduler's own search for work, or a task that came
/// and went unseen.
#[inline(always)]
unsafe fn add_rest(cpu: *mut CpuState, elapsed: u64, ran: u64) -> u64 {
    let rest = elapsed.saturating_sub(ran);
    if rest > 0 {
        protocol::add(Cpu(cpu), SLOT_OTHER, rest);
    }
    rest
}

/// A task that is not the idle task runs, or has run.
#[inline(always)]
pub(crate) unsafe fn hold_slot_of<K: Kernel>(cpu: *mut CpuState, task: *const u8) {
    // SAFETY: as in on_switch.
    unsafe {
        if (*cpu).cgroup != cgroup_of::<K>(task) as u64 {
            look_up::<K>(cpu, task);
        }
    }
}

/// The cache of one does not know, or is not all there is to know.
///
/// The address of a cgroup says which one it is until another is made: no loads to find its id.
#[inline(never)]
unsafe fn look_up<K: Kernel>(cpu: *mut CpuState, task: *const u8) {
    // SAFETY: as in on_switch.
    unsafe {
        let Some(known) = KNOWN.get_ptr_mut(0) else { return };
        let cgroup = cgroup_of::<K>(task);
        // By way of memory, where the verifier takes a pointer for a number.
        write_volatile(&raw mut (*cpu).cgroup, cgroup as u64);
        let address = read_volatile(&raw const (*cpu).cgroup);
        // The high bits of a product are a good hash (Knuth, volume 3, 6.4).
        let hash = address.wrapping_mul(GOLDEN_RATIO) >> (u64::BITS - NR_KNOWN.ilog2());
        let known = (&raw mut *known).cast::<Known>().add(hash as usize);
        if (*known).cgroup & !NOT_KTHREADS != address {
            let id = cgroup_id::<K>(cgroup);
            let slot = resolve::<K>(cgroup, id, (*cpu).seen_selection);
            let hidden = id == ROOT_CGROUP_ID && slot != SLOT_OTHER;
            (*known).cgroup = if hidden { address | NOT_KTHREADS } else { address };
            (*known).slot = slot;
        }
        (*cpu).cgroup = (*known).cgroup;
        let mut slot = (*known).slot;
        if (*cpu).cgroup & NOT_KTHREADS != 0 {
            let flags: u32 = K::read(task, Field::TaskFlags);
            if flags & PF_KTHREAD != 0 {
                slot = SLOT_OTHER;
            }
        }
        if slot != (*cpu).slot {
            protocol::hold(Cpu(cpu), slot);
        }
    }
}
