//! `cgroup_attach_task`: a task was moved to another cgroup. Where it is running at this moment, its
//! slice is cut. Movers hold `cgroup_mutex`, so there is one at a time.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use ecoprobe_ebpf::protocol::{self, Half, Memory as _, Word};
use ecoprobe_ebpf::{Field, INTERRUPTED};

use crate::cgroups::resolve;
use crate::cpu::{Cpu, selection, tell_all};
use crate::kernel::{Kernel, LAYOUT, Typed, Untyped, cgroup_id, cgroup_of};
use crate::maps::{CPUS, SHARED};

/// How many CPUs one call looks at. The verifier looks at every turn of a loop with a known number of
/// turns, but at a global function only once, so two short loops make a long one.
const BLOCK: u32 = 64;

#[btf_tracepoint(function = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let whole_group: u64 = ctx.arg(3);
    on_move::<Typed>(ctx.arg(2), whole_group & 0xff != 0);
    0
}

#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
fn cgroup_attach_task_raw(ctx: RawTracePointContext) -> i32 {
    let whole_group: u64 = ctx.arg(3);
    on_move::<Untyped>(ctx.arg(2), whole_group & 0xff != 0);
    0
}

#[inline(always)]
fn on_move<K: Kernel>(task: *const u8, whole_group: bool) {
    // SAFETY: the tracepoint's own argument and BTF's offsets.
    unsafe {
        let now = bpf_ktime_get_ns();
        let Some(this) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        let Some(shared) = SHARED.get_ptr_mut(0) else { return };
        let selection = selection(shared);
        Cpu(this).fence();
        // The task already points at its new cgroup, whichever hierarchy it was moved in.
        let cgroup = cgroup_of::<K>(task);
        let slot = resolve::<K>(cgroup, cgroup_id::<K>(cgroup), selection);
        if is_alone::<K>(task, whole_group) && LAYOUT.get(Field::TaskCpu) != 0 {
            let cpu: u32 = K::read(task, Field::TaskCpu);
            if let Some(cpu) = CPUS.get_ptr_mut(cpu)
                && let Some(seq) = slice(Cpu(cpu))
                && (*cpu).task & !INTERRUPTED == task as u64
                && !protocol::cut(Cpu(cpu), seq, now, slot)
            {
                (*cpu).merged_cuts += 1;
            }
        } else {
            let tgid: u32 = K::read(task, Field::TaskTgid);
            for first in 0..LAYOUT.get(Field::NrCpus).div_ceil(BLOCK.into()) as u32 {
                cut_group(first * BLOCK, tgid, now, slot);
            }
        }
        tell_all(Cpu(this));
    }
}

/// Whether no other thread moves along.
#[inline(always)]
unsafe fn is_alone<K: Kernel>(task: *const u8, whole_group: bool) -> bool {
    // SAFETY: BTF's offsets; a task that can be moved has its signal struct.
    unsafe {
        let signal: *const u8 = K::read(task, Field::TaskSignal);
        !whole_group || K::read::<u32>(signal, Field::SignalNrThreads) == 1
    }
}

/// The `seq` of the slice that runs; `None` while the CPU switches: it reads the new cgroup by itself.
#[inline(always)]
fn slice(cpu: Cpu) -> Option<u64> {
    let seq = cpu.load(Word::Seq);
    cpu.fence();
    (seq & 1 == 0).then_some(seq)
}

/// Cuts the slices of a thread group on some CPUs.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn cut_group(first_cpu: u32, tgid: u32, mono_ns: u64, slot: u32) -> u32 {
    for i in 0..BLOCK {
        let Some(cpu) = CPUS.get_ptr_mut(first_cpu + i) else { break };
        if let Some(seq) = slice(Cpu(cpu))
            && Cpu(cpu).load_half(Half::Tgid) == tgid
            && !protocol::cut(Cpu(cpu), seq, mono_ns, slot)
        {
            // SAFETY: written here only.
            unsafe { (*cpu).merged_cuts += 1 };
        }
    }
    0
}
