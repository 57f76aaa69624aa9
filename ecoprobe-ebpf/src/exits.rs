//! `sched_process_exit`: whose a process was, for those who hear of it later.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_tracepoint, raw_tracepoint};
use aya_ebpf::programs::{BtfTracePointContext, RawTracePointContext};
use ecoprobe_ebpf::protocol::Memory as _;
use ecoprobe_ebpf::{Exited, Field, SLOT_OTHER};

use crate::cgroups::resolve;
use crate::cpu::{Cpu, selection};
use crate::kernel::{Kernel, Typed, Untyped, cgroup_id, cgroup_of};
use crate::maps::{CPUS, EXITED, EXITED_OTHERS, SHARED};

// Newer kernels have more arguments; the first is the same in all.
#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    on_exit::<Typed>(ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn sched_process_exit_raw(ctx: RawTracePointContext) -> i32 {
    on_exit::<Untyped>(ctx.arg(0));
    0
}

/// A thread exits. Its leader may be gone already or go on, so each of them is noted, and the last
/// one's word stands.
#[inline(always)]
fn on_exit<K: Kernel>(task: *const u8) {
    // SAFETY: the tracepoint's own argument and BTF's offsets; it has not left its cgroup yet.
    unsafe {
        let Some(this) = CPUS.get_ptr_mut(bpf_get_smp_processor_id()) else { return };
        let Some(shared) = SHARED.get_ptr_mut(0) else { return };
        let selection = selection(shared);
        Cpu(this).fence();
        let cgroup = cgroup_of::<K>(task);
        let slot = resolve::<K>(cgroup, cgroup_id::<K>(cgroup), selection);
        let tgid: u32 = K::read(task, Field::TaskTgid);
        let exited = Exited { mono_ns: bpf_ktime_get_ns(), slot, _pad: 0 };
        // One that finds no room is a process whose GPU time is billed to nobody, if it had any.
        let _ = match slot {
            SLOT_OTHER => EXITED_OTHERS.insert(tgid, exited, 0),
            _ => EXITED.insert(tgid, exited, 0),
        };
    }
}
