//! What some kernels hide from tracers: the switches of some tasks, those of process 1 for one
//! (seen on 6.18 guests), so that a task leaves that nobody saw come, or comes and is gone again.

use aya_ebpf::EbpfContext;
use aya_log_ebpf::warn;
use ecoprobe_ebpf::protocol::{self, Memory as _};
use ecoprobe_ebpf::{CpuState, Field, INTERRUPTED, NOBODY, Shared};

use crate::cpu::Cpu;
use crate::kernel::{Kernel, LAYOUT};
use crate::switch::{hold_slot_of, turn};

/// `PF_EXITING` of `task_struct.flags`, unchanged since 2.6.
const PF_EXITING: u32 = 0x0000_0004;

/// A task comes that will leave unseen, and most likely soon: reckon that `prev` goes on.
#[inline(never)]
pub(crate) unsafe fn interrupt<K: Kernel>(cpu: *mut CpuState, prev: *const u8) {
    // SAFETY: as in on_switch.
    unsafe {
        (*cpu).task |= INTERRUPTED;
        (*cpu).runtime_start = K::read(prev, Field::TaskSumExecRuntime);
    }
}

/// How long the leaving task ran, which a hidden one has interrupted: its own account leaves that out.
#[inline(always)]
pub(crate) unsafe fn ran_while_interrupted<K: Kernel>(
    ctx: &impl EbpfContext,
    cpu: *mut CpuState,
    shared: *const Shared,
    prev: *const u8,
    elapsed: u64,
) -> u64 {
    // SAFETY: as in on_switch.
    unsafe {
        note_hidden_switch(ctx, cpu, (*shared).hidden_tgid);
        if (*cpu).tgid == 0 {
            elapsed
        } else {
            K::read::<u64>(prev, Field::TaskSumExecRuntime).wrapping_sub((*cpu).runtime_start)
        }
    }
}

/// A switch away from a task of `tgid` must have happened, and was not seen.
#[inline(never)]
unsafe fn note_hidden_switch<C: EbpfContext>(ctx: &C, cpu: *mut CpuState, tgid: u32) {
    // SAFETY: as in on_switch.
    unsafe {
        if (*cpu).dropped == 0 {
            warn!(
                ctx,
                "switches of process {} are hidden from tracers; its CPU time may be off", tgid
            );
        }
        (*cpu).dropped += 1;
    }
}

/// The task that leaves is not the one that we saw coming. Makes it the CPU's running task and bills
/// how long it ran, by the fair scheduler's own note of its account when it was picked.
#[inline(never)]
pub(crate) unsafe fn ran_unseen<K: Kernel>(
    ctx: &impl EbpfContext,
    cpu: *mut CpuState,
    shared: *mut Shared,
    prev: *const u8,
    elapsed: u64,
) -> u64 {
    // SAFETY: as in on_switch. All CPUs may write `hidden_tgid`; whichever comes last has learnt as
    // much as the others.
    unsafe {
        let tgid: u32 = K::read(prev, Field::TaskTgid);
        let hidden = (*shared).hidden_tgid;
        if tgid == hidden {
            // It does leave in plain sight.
            (*shared).hidden_tgid = NOBODY;
        } else if (*cpu).task & INTERRUPTED != 0 {
            note_hidden_switch(ctx, cpu, hidden);
        } else if (*cpu).tgid != tgid {
            note_hidden_switch(ctx, cpu, (*cpu).tgid);
            if hidden == NOBODY && (*cpu).tgid != 0 {
                (*shared).hidden_tgid = (*cpu).tgid;
            }
        }
        (*cpu).task = prev as u64;
        (*cpu).tgid = tgid;
        if tgid == 0 {
            return 0;
        }
        if Cpu(cpu).has_siblings() {
            // What it idled of the slice nobody knows; it is not counted as idle time either.
            turn(cpu);
        }
        hold_slot_of::<K>(cpu, prev);
        if LAYOUT.get(Field::TaskPrevSumExecRuntime) == 0 {
            return 0;
        }
        let runtime: u64 = K::read(prev, Field::TaskSumExecRuntime);
        let picked: u64 = K::read(prev, Field::TaskPrevSumExecRuntime);
        let ran = if K::read::<u32>(prev, Field::TaskFlags) & PF_EXITING != 0 {
            // On its way out a task is picked anew (`sched_autogroup_exit_task`), and the note says
            // next to nothing. Those that come and go unseen are mostly short: all of it was here.
            runtime.min(elapsed)
        } else {
            // Real-time tasks have no such note, or an old one.
            let ran = runtime.wrapping_sub(picked);
            if ran <= elapsed { ran } else { 0 }
        };
        // Whole: cuts were meant for the task that we took to be running.
        protocol::add_to_running(Cpu(cpu), ran);
        ran
    }
}
